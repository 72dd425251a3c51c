"""What `greedy` and `screen` keep that is not real: 100-trial sessions, simulated by the thousand.

Hardware: one CPU core. Time: about a minute, nearly all of it for the second table. Expected
figures: the tables at the end of this text.

Noise is Gaussian without drift, with a sigma of 1 that is known; runs are compared unpaired. What
proposals are worth no one knows for a real researcher: four guesses, in sigmas of a run.
  steps     a tenth of the proposals gain (exponential, mean 1), the rest lose (mean 2)
  fading    a fifth gain (mean 2), both rarer and smaller as 8 sigmas of possible gain are used up
  draws     every proposal is a new point, worth N(+4, 2) against the baseline: a random search
  nothing   no proposal changes anything (A/A): every keep is false
Greedy begins with one run of the baseline; a session of the package begins with the best of its
calibration runs, where six of them bring the 4.17 keeps of `nothing` down to 2.79 (runs/aa.py).
Columns: keeps; share of keeps that are not better than the champion they replaced; true gain of the
final champion; how much its score in the record is too good (greedy: the run that kept it; screen:
the deciding run, and the mean of its fresh runs); runs beside the 100 screens, for replicates, for
fresh and for periodic champion runs.

The second table is about the first trial against a champion, where nothing changed: percent kept,
all false. The package's own judge decides. `runs` are the champion's fresh runs (6 + 3: six of the
baseline before them, as after the first keep). Unpaired, both runs of a candidate meet the same
mean, so an unlucky champion lets a candidate through twice; with 3 runs it is exactly 5.8 where
sigma is known. `measured` is sigma from these runs (`measure_noise`). Over a session the share is
less (2.35 above): unlucky champions are soon replaced, and the others stay and get more runs.
Standard error: 0.1 to 0.2.

    python runs/judge_table.py [--sims 4000] [--trials 100] [--first 20000]

    model    policy  keeps  false  gain  record  mean  replicates  fresh  periodic
    steps    greedy   6.22   0.45  4.20    1.81  1.81        0.00   0.00      0.00
    steps    screen   3.11   0.14  5.11    0.55  0.14        7.44   9.32      8.05
    fading   greedy   6.55   0.47  6.09    1.92  1.92        0.00   0.00      0.00
    fading   screen   3.00   0.16  6.42    0.57  0.12        7.02   8.99      8.08
    draws    greedy   1.86   0.43  0.53    1.15  1.15        0.00   0.00      0.00
    draws    screen   0.44   0.07  0.55    0.31  0.03        1.10   1.31      9.58
    nothing  greedy   4.17   1.00  0.00    2.51  2.51        0.00   0.00      0.00
    nothing  screen   2.35   1.00  0.00    1.22  0.24       13.11   7.07      8.49

    runs    unpaired, known  unpaired, measured  paired, known  paired, measured
    3                   5.6                 9.3            2.5               5.3
    6 + 3               5.9                 6.7            2.4               3.8
    6                   4.2                 5.6            2.6               4.0
    20                  2.8                 3.3            2.4               2.9
    50                  2.9                 3.1            2.4               2.7
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from autoresearch.search.history import History
from autoresearch.search.judge import next_step
from autoresearch.search.noise import Noise, measure_noise
from autoresearch.values.config import JudgeSettings
from autoresearch.values.records import Decision, Measurement, Outcome, Purpose, Verdict

Floats = NDArray[np.float64]
Model = Callable[[np.random.Generator, Floats], Floats]  # true score of a proposal on a champion

RULES = JudgeSettings(implausible_gain_frac=1e9, floor_bpb=0.0)
GROUPS = ((3,), (6, 3), (6,), (20,), (50,))  # fresh runs of the commits so far, the champion's last


def steps(rng: np.random.Generator, champion: Floats) -> Floats:
    """A tenth of the proposals gain, the others lose."""
    gains = rng.random(champion.size) < 0.1
    losses = rng.exponential(2, champion.size)
    return champion + np.where(gains, -rng.exponential(1, champion.size), losses)


def fading(rng: np.random.Generator, champion: Floats) -> Floats:
    """Gains become rarer and smaller as the possible gain is used up."""
    left = np.maximum(8 + champion, 0) / 8
    gains = rng.random(champion.size) < 0.2 * left
    losses = rng.exponential(2, champion.size)
    return champion + np.where(gains, -rng.exponential(2, champion.size) * left, losses)


def draws(rng: np.random.Generator, champion: Floats) -> Floats:
    """Random search: the champion does not matter."""
    return rng.normal(4, 2, champion.size)


def nothing(rng: np.random.Generator, champion: Floats) -> Floats:
    """A/A: the proposal is as good as the champion."""
    return champion.copy()


def simulate(policy: str, model: Model, num_sims: int, num_trials: int) -> Mapping[str, float]:
    """Many sessions at once: one number a session in every array."""
    rng = np.random.default_rng(0)
    is_screen = policy == "screen"
    true = np.zeros(num_sims)
    count = np.full(num_sims, float(RULES.calibration_runs if is_screen else 1))
    mean = rng.normal(0, 1, num_sims) / np.sqrt(count)  # what the champion is believed to score
    record, since = mean.copy(), np.zeros(num_sims)
    keeps, false = np.zeros(num_sims), np.zeros(num_sims)
    replicates = fresh = periodic = 0.0
    for _ in range(num_trials):
        candidate = model(rng, true)
        first, second = candidate + rng.normal(0, 1, (2, num_sims))
        passes = mean - first >= 1 if is_screen else mean > first
        is_kept = passes & (mean - second >= 1) if is_screen else passes
        keeps += is_kept
        false += is_kept & (candidate >= true)
        num_new = float(RULES.champion_runs if is_screen else 1)
        new_mean = candidate + rng.normal(0, 1, num_sims) / np.sqrt(num_new)
        true = np.where(is_kept, candidate, true)
        mean = np.where(is_kept, new_mean if is_screen else first, mean)
        record = np.where(is_kept, second if is_screen else first, record)
        count = np.where(is_kept, num_new, count)
        if is_screen:
            since = np.where(is_kept, 0, since + 1)
            is_due = since >= RULES.champion_every_trials
            again = true + rng.normal(0, 1, num_sims)
            mean = np.where(is_due, (mean * count + again) / (count + 1), mean)
            count, since = count + is_due, np.where(is_due, 0, since)
            replicates += float(passes.mean())
            fresh += RULES.champion_runs * float(is_kept.mean())
            periodic += float(is_due.mean())
    return {
        "keeps": float(keeps.mean()),
        "false": float(false.sum() / max(keeps.sum(), 1)),
        "gain": -float(true.mean()),
        "record": float((true - record).mean()),
        "mean": float((true - mean).mean()),
        "replicates": replicates,
        "fresh": fresh,
        "periodic": periodic,
    }


def check_against_judge(num: int = 500) -> None:
    """The arithmetic above and the judge of the package decide alike."""
    rng = np.random.default_rng(1)
    noise = Noise(sigma_bpb=0.01, degrees_of_freedom=99)

    def run(run_id: int, score: float, purpose: Purpose) -> Measurement:
        return Measurement(
            run_id=run_id, commit="c", purpose=purpose, seed=0, outcome=Outcome.SCORED,
            val_bpb=2 + 0.01 * score,
        )  # fmt: skip

    for _ in range(num):
        champion, (first, second) = rng.normal(0, 1, 3), rng.normal(-1, 1.5, 2)
        ours = [run(n, score, Purpose.CHAMPION) for n, score in enumerate(champion)]
        theirs = [run(8, first, Purpose.SCREEN), run(9, second, Purpose.REPLICATE)]
        answer = next_step(RULES, noise, ours, theirs)
        is_kept = champion.mean() - first >= 1 and champion.mean() - second >= 1
        if not isinstance(answer, Decision) or (answer.verdict is Verdict.KEEP) != is_kept:
            raise SystemExit(f"the judge says {answer}, this script {is_kept}")


def first_trial(
    rng: np.random.Generator, groups: tuple[int, ...], is_known: bool, is_paired: bool
) -> bool:
    """Whether the package's judge keeps an equal candidate, the first against its champion.

    `groups` are the fresh runs of the commits so far, the champion's last.
    """
    number = itertools.count(1)

    def run(commit: str, purpose: Purpose) -> Measurement:
        run_id = next(number)
        return Measurement(
            run_id=run_id, commit=commit, purpose=purpose, seed=0, outcome=Outcome.SCORED,
            val_bpb=2 + 0.01 * rng.normal(), at=float(run_id), total_s=1.0,
        )  # fmt: skip

    runs = [
        run(f"champion {n}", Purpose.CHAMPION) for n, num in enumerate(groups) for _ in range(num)
    ]
    champion = f"champion {len(groups) - 1}"
    mine: list[Measurement] = []
    known = Noise(
        sigma_bpb=0.01 * (math.sqrt(2) if is_paired else 1),
        degrees_of_freedom=99,
        is_paired=is_paired,
    )
    while True:
        history = History(baseline="champion 0", champion=champion, runs=tuple(runs))
        noise = known if is_known else measure_noise(history, is_paired)
        ours = [r for r in runs if r.commit == champion]
        answer = next_step(RULES, noise, ours, mine, is_paired=is_paired)
        if isinstance(answer, Decision):
            return answer.verdict is Verdict.KEEP
        if answer.who == "champion":
            runs.append(run(champion, answer.purpose))
        else:
            mine.append(run("candidate", answer.purpose))


def print_first_trials(num: int) -> None:
    """The second table: percent kept."""
    print("\nruns    unpaired, known  unpaired, measured  paired, known  paired, measured")
    for groups in GROUPS:
        cells = []
        for is_paired, is_known in ((False, True), (False, False), (True, True), (True, False)):
            rng = np.random.default_rng(0)
            kept = sum(first_trial(rng, groups, is_known, is_paired) for _ in range(num))
            cells.append(100 * kept / num)
        widths = zip(cells, (15, 18, 13, 16), strict=True)
        print(f"{' + '.join(map(str, groups)):6}", *(f"{c:{w}.1f}" for c, w in widths), sep="  ")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sims", type=int, default=4000)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--first", type=int, default=20_000, help="trials of the second table")
    options = parser.parse_args()
    check_against_judge()
    heading = ""
    for model in (steps, fading, draws, nothing):
        for policy in ("greedy", "screen"):
            row = simulate(policy, model, options.sims, options.trials)
            if not heading:
                heading = "  ".join(["model    policy", *(f"{name:>4}" for name in row)])
                print(heading)
            cells = (f"{value + 0.0:{max(len(name), 4)}.2f}" for name, value in row.items())
            print(f"{model.__name__:8} {policy}", *cells, sep="  ")
    print_first_trials(options.first)


if __name__ == "__main__":
    main()

"""summary.md: what was tried, what helped, by how much, how sure; what to do next.

Each section is a function that gives lines, or none where there is nothing to say.
"""

from __future__ import annotations

import datetime
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from autoresearch.search.early_stop import interval, is_switched_off, replay
from autoresearch.search.history import History
from autoresearch.search.imported import imported_lines
from autoresearch.search.noise import Noise
from autoresearch.search.spending import add_up
from autoresearch.values.config import Config
from autoresearch.values.records import Outcome, Trial, Verdict
from autoresearch.views.digest import (
    FAILED,
    Digest,
    closed_trials,
    early_stop_words,
    kept_trials,
    measure,
    score_trial,
    verdict_of,
)
from autoresearch.views.text import (
    bpb,
    count_verdicts,
    duration,
    markdown,
    percent,
    plural,
    short,
    signed,
)

_ROWS = 15  # of a table; the rest is counted
_PLATEAU_TRIALS = 20


def summary_markdown(history: History, noise: Noise, config: Config) -> str:
    """The whole page."""
    digest = measure(history, noise)
    sections = [
        [f"# Session {markdown(config.session.tag)}", "", *_headline(history, digest)],
        _sureness(history, digest, noise, config),
        ["![val_bpb of every trial](progress.png)"] if digest.baseline else [],
        _helped(history, digest),
        _near_misses(history),
        _tried(history),
        _failed(history),
        _early_stop(history, config),
        _imported(history),
        _machine(history, digest),
        _next_steps(history, digest),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _headline(history: History, digest: Digest) -> list[str]:
    if digest.baseline is None or digest.champion is None:
        return ["Nothing has been measured yet."]
    when = f"{plural(digest.num_closed, 'trial')} in {duration(digest.active_s)}"
    counts = f": {count_verdicts(digest.counts)}" if digest.counts else ""
    if digest.gain_bpb is None:
        return [f"**val_bpb {bpb(digest.baseline.mean_bpb)}, no change was kept.** {when}{counts}."]
    change = percent(abs(digest.gain_bpb), digest.baseline.mean_bpb)
    lines = [
        f"**val_bpb {bpb(digest.baseline.mean_bpb)} to {bpb(digest.champion.mean_bpb)}: "
        f"{change} {'lower' if digest.gain_bpb >= 0 else 'higher'}.** {when}{counts}.",
        f"Champion: `{short(history.champion)}`, trial {history.champion_trial_id}.",
    ]
    if digest.gain_bpb < 0:
        lines.append(
            "Its fresh runs are worse than the baseline's: it was kept by luck, or the machine "
            "has become slower since."
        )
    return lines


def _sureness(history: History, digest: Digest, noise: Noise, config: Config) -> list[str]:
    if digest.baseline is None or digest.champion is None:
        return []
    runs = f"{plural(digest.baseline.num_runs, 'run')} of the baseline"
    if digest.gain_bpb is not None:
        runs += f" and {plural(digest.champion.num_runs, 'run')} of the champion"
    lines = ["## How sure", ""]
    if digest.sigma_bpb is None:
        spread = f"{bpb(digest.baseline.low_bpb)} to {bpb(digest.baseline.high_bpb)}"
        lines.append(f"- Measured with {runs}: too few to say how sure.")
        lines.append(f"- The baseline's runs scored {spread}.")
    else:
        freedom = f"{noise.degrees_of_freedom} degrees of freedom"
        lines.append(f"- One run varies by sigma = {digest.sigma_bpb:.4f} val_bpb ({freedom}).")
        lines.append(f"- Measured with {runs}.")
    lines += _gain_lines(digest)
    if digest.gain_bpb is not None:
        lines += _confirmation_lines(history)
    if config.judge.policy == "greedy":
        lines.append(
            "- The policy was `greedy`: about half of such keeps are luck, and scores too good."
        )
    return lines


def _confirmation_lines(history: History) -> list[str]:
    """What is known beyond the text that selected the champion."""
    lines = [
        f"- **{decision.verdict.value}**, trial {each.trial_id}: {markdown(decision.reason)}."
        for each in history.confirmations
        if (decision := each.decision) is not None
    ]
    last = history.last_confirmed
    if last is None or last.champion != history.champion:
        lines.append(
            "- The champion is not confirmed: all of this is on validation text, which selected it."
        )
    return lines


def _gain_lines(digest: Digest) -> list[str]:
    if digest.gain_bpb is None:
        return []
    lines = []
    if digest.gain_error_bpb:
        errors = abs(digest.gain_bpb) / digest.gain_error_bpb
        what = "gain" if digest.gain_bpb >= 0 else "loss"
        size = f"{abs(digest.gain_bpb):.4f} with a standard error of {digest.gain_error_bpb:.4f}"
        lines.append(f"- The {what} is {size}: {errors:.1f} standard errors.")
    if digest.kept_gain_bpb is not None:
        error = (
            f", with a standard error of {digest.kept_gain_error_bpb:.4f}"
            if digest.kept_gain_error_bpb
            else ""
        )
        lines.append(
            f"- Side by side with the champion of the time, the gains at each keep add up to "
            f"{digest.kept_gain_bpb:.4f}{error}; having been selected makes them a little too good."
        )
    return [
        *lines,
        "- Baseline and champion ran at different times: drift is part of the difference.",
    ]


def _helped(history: History, digest: Digest) -> list[str]:
    kept = kept_trials(history)
    if not kept:
        return []
    has_sigma = digest.sigma_bpb is not None
    return [
        "## What helped",
        "",
        *_trial_table(history, kept, has_sigma=has_sigma, limit=2 * _ROWS),
    ]


def _near_misses(history: History) -> list[str]:
    near = [trial for trial in history.trials if verdict_of(trial) is Verdict.NEAR_MISS]
    if not near:
        return []
    near.sort(key=lambda trial: -(trial.decision.gain_bpb or 0.0) if trial.decision else 0.0)
    return [
        "## Near misses worth recombining",
        "",
        *_trial_table(history, near, has_sigma=False, limit=_ROWS),
    ]


def _trial_table(
    history: History, trials: Sequence[Trial], *, has_sigma: bool, limit: int
) -> list[str]:
    lines = ["| trial | change | val_bpb | gain | runs |", "|---:|---|---:|---:|---:|"]
    for trial in trials[:limit]:
        score = score_trial(trial, history)
        gain = trial.decision.gain_bpb if trial.decision else None
        sigma = trial.decision.sigma_bpb if trial.decision and has_sigma else None
        sigmas = f" ({gain / sigma:.1f} sigma)" if sigma and gain is not None else ""
        mean, runs = (score.mean_bpb, score.num_runs) if score else (None, 0)
        cells = [
            str(trial.trial_id),
            markdown(trial.description, 120),
            bpb(mean),
            signed(gain) + sigmas,
            str(runs),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if len(trials) > limit:
        lines += ["", f"and {len(trials) - limit} more: `autoresearch status --all`"]
    return lines


def _tried(history: History) -> list[str]:
    """Per researcher, and per constant where an optimizer chose constants."""
    trials = closed_trials(history)
    if not trials:
        return []
    lines = ["## What was tried", ""]
    for researcher, count in Counter(trial.researcher for trial in trials).most_common():
        kept = sum(
            trial.researcher == researcher and verdict_of(trial) is Verdict.KEEP for trial in trials
        )
        lines.append(f"- {markdown(researcher, 40)}: {plural(count, 'trial')}, {kept} kept")
    if history.refusals:
        last = markdown(history.refusals[-1].reason, 120)
        lines.append(f"- {plural(len(history.refusals), 'proposal')} not run, the last: {last}")
    if history.calls:
        bill = add_up(history.calls)
        asked = f"- {plural(bill.num_calls, 'call')} of models: ${bill.usd:.2f}"
        unsure = f", ${bill.unsettled_usd:.2f} of it held for calls without an answer"
        lines.append(asked + (unsure if bill.num_unsettled else ""))
    values: defaultdict[str, list[object]] = defaultdict(list)
    for trial in trials:
        for name, value in (trial.parameters or {}).items():
            values[name].append(value)
    rows = [
        (name, seen, _kept_value(history, name))
        for name, seen in values.items()
        if len(set(map(str, seen))) > 1
    ]
    if rows:
        lines += [
            "",
            "| constant | values tried | from | to | last kept |",
            "|---|---:|---:|---:|---:|",
        ]
    for name, seen, kept_value in rows[: 2 * _ROWS]:
        low, high = _range(seen)
        cells = [markdown(name, 40), str(len(set(map(str, seen)))), low, high, kept_value]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _range(values: Iterable[object]) -> tuple[str, str]:
    numbers = [
        value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return (f"{min(numbers):.4g}", f"{max(numbers):.4g}") if numbers else ("", "")


def _kept_value(history: History, name: str) -> str:
    kept = [
        trial.parameters[name]
        for trial in kept_trials(history)
        if trial.parameters and name in trial.parameters
    ]
    if not kept:
        return "-"
    return f"{kept[-1]:.4g}" if isinstance(kept[-1], float) else markdown(kept[-1], 40)


def _failed(history: History) -> list[str]:
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for trial in history.trials:
        if trial.decision is not None and trial.decision.verdict in FAILED:
            groups[trial.decision.verdict.value, markdown(trial.decision.reason, 160)].append(
                trial.trial_id
            )
    if not groups:
        return []
    lines = ["## What gave no score, and why", ""]
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    for (verdict, reason), ids in ordered[:_ROWS]:
        some = ", ".join(map(str, ids[:6])) + (", ..." if len(ids) > 6 else "")
        lines.append(f"- {verdict}, {plural(len(ids), 'trial')} ({some}): {reason}")
    if len(ordered) > _ROWS:
        lines.append(f"- and {len(ordered) - _ROWS} other reasons")
    return lines


def _early_stop(history: History, config: Config) -> list[str]:
    words = early_stop_words(history)
    if not words:
        return []
    lines = ["## Early stop", "", f"- {words}"]
    fewest = config.judge.early_stop_curves
    num_good, num_marked = replay(history, config.trial.budget_s, fewest)
    if num_good:
        low, high = interval(num_marked, num_good)
        lines.append(
            f"- Of {num_good} good curves, each held against the others, the rule marks "
            f"{num_marked} (95 % interval {low:.0%} to {high:.0%})"
        )
    if is_switched_off(history):
        lines.append("- It switched itself off in the last session: it ended too many trials")
    return lines


def _imported(history: History) -> list[str]:
    lines = [f"- {markdown(line, 200)}" for line in imported_lines(history, _ROWS)]
    return ["## History made elsewhere", "", *lines] if lines else []


def _machine(history: History, digest: Digest) -> list[str]:
    if not history.runs:
        return []
    last = history.runs[-1]
    pace = f", {digest.trials_per_hour:.1f} trials an hour" if digest.trials_per_hour else ""
    share = percent(digest.training_s, digest.active_s)
    sandboxes = ", ".join(sorted({run.sandbox or "none" for run in history.runs}))
    lines = [
        "## Time and machine",
        "",
        f"- {plural(digest.num_runs, 'run')} in {duration(digest.active_s)}{pace}",
        f"- {share} of the time was training",
        f"- from {_clock(history.runs[0].at)} to {_clock(last.at)}",
        f"- budget {duration(last.budget_s)}, device {markdown(last.device or 'unknown', 60)}, "
        f"sandbox {markdown(sandboxes, 60)}",
    ]
    disturbed = sum(run.outcome is Outcome.DISTURBED for run in history.runs)
    if disturbed:
        lines.append(
            f"- {plural(disturbed, 'run')} disturbed (the machine slept or was busy) and made again"
        )
    host = history.sessions[-1].host if history.sessions else {}
    known = [f"{markdown(key, 40)} {markdown(value, 80)}" for key, value in host.items() if value]
    if known:
        lines.append(f"- machine: {', '.join(known)}")
    return lines


def _clock(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _next_steps(history: History, digest: Digest) -> list[str]:
    """Advice that follows from the figures, most urgent first."""
    trials = closed_trials(history)
    failed = [trial for trial in trials if verdict_of(trial) in FAILED]
    near = [trial.trial_id for trial in trials if verdict_of(trial) is Verdict.NEAR_MISS]
    since_keep = next(
        (n for n, t in enumerate(reversed(trials)) if verdict_of(t) is Verdict.KEEP), len(trials)
    )
    steps = []
    if any(run.sandbox == "none" for run in history.runs):
        steps.append("Some runs had no sandbox: `autoresearch doctor` says how to get one.")
    if not trials:
        steps.append("Let it work: `autoresearch run --max-trials 20`.")
    if len(failed) >= 3 and 4 * len(failed) >= len(trials):
        steps.append(
            f"{len(failed)} of {len(trials)} trials gave no score; start with "
            f"`autoresearch show {failed[-1].trial_id}`."
        )
    if len(near) >= 2:
        some = ", ".join(map(str, near[-5:]))
        steps.append(f"Trials {some} were better by less than the noise; try them together.")
    if since_keep >= _PLATEAU_TRIALS:
        steps.append(
            f"Nothing was kept in the last {since_keep} trials: widen the ranges in `train.py`, "
            "change its structure, or give each trial a longer budget."
        )
    if digest.gain_bpb is not None:
        gain, error = (
            digest.kept_gain_bpb or digest.gain_bpb,
            digest.kept_gain_error_bpb or digest.gain_error_bpb,
        )
        if error is None or gain < 3 * error:
            steps.append("The gain is not beyond doubt yet.")
        last = history.last_confirmed
        if last is None or last.champion != history.champion:
            steps.append("Check it on fresh runs and the sealed text: `autoresearch confirm`.")
        steps.append("Read what changed: `autoresearch diff champion`.")
        steps.append(
            "Let it write: `autoresearch sample`. Take it along: "
            "`autoresearch export champion FOLDER`."
        )
    if trials and since_keep < _PLATEAU_TRIALS:
        steps.append("Go on where it stopped: `autoresearch run`.")
    return ["## What to do next", "", *(f"- {step}" for step in steps)] if steps else []

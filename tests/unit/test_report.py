"""The report: results.tsv and summary.md to the letter, hostile text, figures."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.search.history import History, RefusedProposal
from autoresearch.search.noise import Noise
from autoresearch.values.config import Config, override
from autoresearch.values.errors import UserError
from autoresearch.values.records import Call, Confirmation, Decision, Outcome, Purpose, Verdict
from autoresearch.views import plot
from autoresearch.views.digest import active_seconds, measure, score_trial
from autoresearch.views.report import results_tsv, write_report
from autoresearch.views.summary import summary_markdown
from autoresearch.views.text import clean, clean_lines, duration, markdown, percent, plural, short

TSV = """\
commit\tval_bpb\tmemory_gb\tstatus\tdescription
bbbbbbb\t2.300000\t0.5\tkeep\tbaseline
1111111\t2.120000\t0.5\tkeep\thead_lr 0.002 -> 0.004
2222222\t2.200000\t0.5\tdiscard\tdepth 2 -> 3
3333333\t2.115000\t0.5\tdiscard\twarmdown 0.4 -> 0.6
4444444\t0.000000\t0.0\tcrash\tbatch 32 -> 4096
5555555\t0.000000\t0.0\tcrash\tsoftcap 15 -> 30
"""

SUMMARY = """\
# Session main

**val_bpb 2.3000 to 2.1200: 7.83 % lower.** 5 trials in 3 min 27 s: 1 kept, 1 near miss, \
1 discarded, 1 crash, 1 timeout.
Champion: `1111111`, trial 1.

## How sure

- One run varies by sigma = 0.0100 val_bpb (11 degrees of freedom).
- Measured with 6 runs of the baseline and 2 runs of the champion.
- The gain is 0.1800 with a standard error of 0.0082: 22.0 standard errors.
- Baseline and champion ran at different times: drift is part of the difference.
- The champion is not confirmed: all of this is on validation text, which selected it.

![val_bpb of every trial](progress.png)

## What helped

| trial | change | val_bpb | gain | runs |
|---:|---|---:|---:|---:|
| 1 | head_lr 0.002 -> 0.004 | 2.1200 | +0.1800 (18.0 sigma) | 2 |

## Near misses worth recombining

| trial | change | val_bpb | gain | runs |
|---:|---|---:|---:|---:|
| 3 | warmdown 0.4 -> 0.6 | 2.1150 | +0.0050 | 1 |

## What was tried

- tpe: 5 trials, 1 kept

| constant | values tried | from | to | last kept |
|---|---:|---:|---:|---:|
| HEAD_LR | 5 | 0.001 | 0.005 | 0.001 |

## What gave no score, and why

- crash, 1 trial (4): out of memory
- timeout, 1 trial (5): weights came 9.3 s after the start

## Time and machine

- 15 runs in 3 min 27 s, 87.0 trials an hour
- 57.97 % of the time was training
- from 2023-11-14 22:13 UTC to 2023-11-14 22:16 UTC
- budget 8.0 s, device cpu, sandbox bubblewrap
- machine: device cpu, sandbox bubblewrap, cores 2

## What to do next

- Check it on fresh runs and the sealed text: `autoresearch confirm`.
- Read what changed: `autoresearch diff champion`.
- Let it write: `autoresearch sample`. Take it along: `autoresearch export champion FOLDER`.
- Go on where it stopped: `autoresearch run`.
"""

HOSTILE = (
    "a\tb\nc\r\n\x1b[31mred\x1b]0;title\x07 \x9b2J\u202eevil\u2028x\x00 [bold]|`<script>` **b** $x$"
)


def test_results_tsv_to_the_letter(history: History) -> None:
    """Five columns, the baseline first, zeros only for trials without a score."""
    assert results_tsv(history) == TSV


def test_summary_to_the_letter(history: History, noise: Noise) -> None:
    """Every section that a session of all verdicts has."""
    assert summary_markdown(history, noise, Config()) == SUMMARY


def test_a_champion_that_turned_out_worse_is_higher(history: History, noise: Noise) -> None:
    """No minus sign before "lower", and no gain that is a loss."""
    drifted = tuple(
        dataclasses.replace(run, val_bpb=run.val_bpb + 0.5)
        if run.purpose is Purpose.CHAMPION and run.val_bpb
        else run
        for run in history.runs
    )
    page = summary_markdown(dataclasses.replace(history, runs=drifted), noise, Config())
    assert "**val_bpb 2.3000 to 2.6200: 13.91 % higher.**" in page
    assert "kept by luck, or the machine has become slower" in page
    assert "- The loss is 0.3200 with a standard error of" in page
    assert "-13" not in page


def test_confirmations_are_told(history: History, noise: Noise) -> None:
    """Each with its reason; a confirmed champion is not asked for again."""
    verdict = Decision(verdict=Verdict.CONFIRMED, reason="it is better. The sealed holdout agrees")
    done = Confirmation(
        number=1, champion="1" * 40, reference="b" * 40, trial_id=1, at=0.0, decision=verdict
    )
    page = summary_markdown(dataclasses.replace(history, confirmations=(done,)), noise, Config())
    assert "- **confirmed**, trial 1: it is better. The sealed holdout agrees." in page
    assert "not confirmed" not in page
    assert "autoresearch confirm" not in page


def test_results_tsv_of_nothing() -> None:
    """A session that never ran has the header only."""
    assert results_tsv(History()) == TSV.splitlines()[0] + "\n"


def test_summary_of_nothing(noise: Noise) -> None:
    """A session that never ran says so and what to type."""
    text = summary_markdown(History(), noise, Config())
    assert "Nothing has been measured yet." in text
    assert "autoresearch run --max-trials 20" in text


def test_hostile_descriptions_stay_in_their_column(history: History) -> None:
    """Tabs, line ends, escape sequences and bars do not break the table or the page."""
    trials = tuple(
        dataclasses.replace(
            trial,
            description=HOSTILE,
            researcher=HOSTILE,
            decision=dataclasses.replace(trial.decision, reason=HOSTILE),
        )
        for trial in history.trials
        if trial.decision
    )
    attacked = dataclasses.replace(history, trials=trials)
    rows = results_tsv(attacked).removesuffix("\n").split("\n")
    assert [row.count("\t") for row in rows] == [4] * 7
    assert all(row.isprintable() for row in "".join(rows).split("\t"))
    page = summary_markdown(attacked, Noise(sigma_bpb=0.01, degrees_of_freedom=11), Config())
    assert page.count("\n") == SUMMARY.count("\n")
    assert "<script>" not in page.replace("\\<script>", "")
    assert all(line.isprintable() for line in page.split("\n"))
    table = [line for line in page.split("\n") if line.startswith("| 1 |")]
    assert table[0].replace("\\|", "").count("|") == 6


@given(st.text())
def test_clean_gives_one_printable_line(text: str) -> None:
    """Whatever comes in, one line without control characters comes out, and stays as it is."""
    line = clean(text)
    assert line.isprintable()
    assert clean(line) == line
    assert len(clean(text, 10)) <= 10


@given(st.text())
def test_clean_lines_keeps_lines_and_nothing_else(text: str) -> None:
    """Only line ends of the text make lines."""
    assert all(line.isprintable() for line in clean_lines(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J\x1b[1;31mhi\x1b[0m", "hi"),
        ("\x1b]8;;http://evil\x07link\x1b]8;;\x07", "link"),
        ("a\x1b", "a"),
        ("\u202egnp.exe", "gnp.exe"),
        ("  two\n lines\t", "two lines"),
    ],
)
def test_clean_removes_what_a_terminal_obeys(text: str, expected: str) -> None:
    """Escape sequences go as a whole, not only their first character."""
    assert clean(text) == expected


def test_markdown_escapes_markup_but_not_names() -> None:
    """Names of constants stay readable, markup becomes text."""
    assert markdown("HEAD_LR 1 -> 2") == "HEAD_LR 1 -> 2"
    assert markdown("_x_ *y* [a](b) <i> a|b") == r"\_x\_ \*y\* \[a\](b) \<i> a\|b"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(8.04, "8.0 s"), (42, "42 s"), (60, "1 min"), (207, "3 min 27 s"), (28_920, "8 h 02 min")],
)
def test_duration_in_a_persons_units(seconds: float, words: str) -> None:
    """Seconds, minutes, hours; no empty second unit."""
    assert duration(seconds) == words


def test_small_words() -> None:
    """Plurals, shares and commits."""
    assert [plural(1, "run"), plural(2, "near miss"), plural(3, "crash")] == [
        "1 run",
        "2 near misses",
        "3 crashes",
    ]
    assert (percent(1, 8), percent(None, 8), percent(1, 0)) == ("12.50 %", "-", "-")
    assert (short("a" * 40), short("")) == ("a" * 7, "-")


def test_few_runs_get_no_statistical_word(history: History) -> None:
    """Under five degrees of freedom the page gives the range and says that it is too little."""
    page = summary_markdown(history, Noise(sigma_bpb=0.01, degrees_of_freedom=4), Config())
    assert "too few to say how sure" in page
    assert "2.2900 to 2.3100" in page
    for word in ("sigma", "standard error", "degrees of freedom"):
        assert word not in page


def test_paired_gains_are_added_up(history: History) -> None:
    """Where the machine drifts, the gains at each keep stand beside the plain difference."""
    noise = Noise(sigma_bpb=0.02, degrees_of_freedom=9, is_paired=True)
    digest = measure(history, noise)
    assert digest.gain_bpb == pytest.approx(0.18)
    assert digest.gain_error_bpb is None
    assert digest.kept_gain_bpb == pytest.approx(0.18)
    assert digest.kept_gain_error_bpb == pytest.approx(0.02)
    assert digest.sigma_bpb == pytest.approx(0.02 / math.sqrt(2))
    assert "Side by side" in summary_markdown(history, noise, Config())


def test_champion_is_scored_by_fresh_runs_only(history: History) -> None:
    """The runs that selected a trial do not enter its score once it has fresh ones.

    Those are runs of its commit that belong to no trial.
    """
    assert all(run.purpose is not Purpose.CHAMPION for run in history.trials[0].runs)
    score = score_trial(history.trials[0], history)
    assert score is not None
    assert (score.mean_bpb, score.num_runs) == (pytest.approx(2.12), 2)
    assert score == measure(history, Noise(sigma_bpb=0.01, degrees_of_freedom=11)).champion


def test_what_the_second_run_decided_is_the_score_of_one_run(history: History) -> None:
    """The count beside a score is of the runs that the score is the mean of."""
    score = score_trial(history.trials[2], history)
    assert score is not None
    assert (score.mean_bpb, score.num_runs) == (2.115, 1)
    mean = Decision(verdict=Verdict.DISCARD, reason="", val_bpb=(2.10 + 2.115) / 2)
    score = score_trial(dataclasses.replace(history.trials[2], decision=mean), history)
    assert score is not None
    assert (score.num_runs, score.low_bpb, score.high_bpb) == (2, 2.10, 2.115)


def test_trial_in_hand_and_failed_trials_have_no_score(history: History) -> None:
    """A failed trial never has a score, also when one of its runs had."""
    failed = Decision(verdict=Verdict.CHEAT, reason="read ahead", val_bpb=0.1)
    assert score_trial(dataclasses.replace(history.trials[0], decision=failed), history) is None
    fresh = dataclasses.replace(history.trials[0], runs=(), decision=None)
    assert score_trial(fresh, history) is None


def test_nan_is_no_score(history: History) -> None:
    """A run that claims to be scored with NaN counts nowhere."""
    run = dataclasses.replace(history.runs[0], val_bpb=math.nan)
    digest = measure(
        dataclasses.replace(history, runs=(run, *history.runs[1:])),
        Noise(sigma_bpb=0.01, degrees_of_freedom=11),
    )
    assert digest.baseline is not None
    assert digest.baseline.num_runs == 5


def test_pauses_are_not_working_time(history: History) -> None:
    """A night between two sessions does not slow the pace down."""
    late = tuple(
        dataclasses.replace(run, at=run.at + (36_000 if run.run_id > 6 else 0))
        for run in history.runs
    )
    before = active_seconds(history)
    after = active_seconds(dataclasses.replace(history, runs=late))
    assert before == pytest.approx(14 * 14 + 11)
    assert after == pytest.approx(before - 3)  # the gap of three seconds went with the night


def test_advice_follows_the_figures(history: History, noise: Noise) -> None:
    """Missing sandbox, many failures, near misses and a plateau are each spoken of."""
    crash = history.trials[3]
    near = history.trials[2]
    trials = [
        dataclasses.replace(t, trial_id=10 + i) for i, t in enumerate([near, near] + [crash] * 20)
    ]
    runs = (dataclasses.replace(history.runs[0], sandbox="none"), *history.runs[1:])
    refusal = RefusedProposal(seq=1, at=0, researcher="tpe", description="x", reason="a repeat")
    ask = {"turn": 0, "researcher": "llm", "model": "m", "reserved_usd": 0.5}
    calls = (Call(call_id=1, is_settled=True, settled_usd=0.25, **ask), Call(call_id=2, **ask))
    changed = dataclasses.replace(
        history, trials=(*history.trials, *trials), runs=runs, refusals=(refusal,), calls=calls
    )
    page = summary_markdown(changed, noise, override(Config(), judge={"policy": "greedy"}))
    for words in (
        "had no sandbox",
        "autoresearch show 31",
        "Trials 3, 10, 11 were better by less",
        "Nothing was kept in the last 26 trials",
        "half of such keeps are luck",
        "1 proposal not run, the last: a repeat",
        "2 calls of models: $0.75, $0.50 of it held for calls without an answer",
    ):
        assert words in page


def test_disturbed_runs_are_mentioned(history: History, noise: Noise) -> None:
    """A machine that slept is part of the story."""
    run = dataclasses.replace(
        history.runs[-1], run_id=99, outcome=Outcome.DISTURBED, purpose=Purpose.CHAMPION
    )
    page = summary_markdown(
        dataclasses.replace(history, runs=(*history.runs, run)), noise, Config()
    )
    assert "1 run disturbed" in page


def test_write_report_makes_three_files(
    history: History, noise: Noise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, in a folder that need not exist."""
    monkeypatch.setattr(plot, "progress_png", lambda history, noise: b"\x89PNG")
    paths = write_report(tmp_path / "new", history, noise, Config())
    assert [path.name for path in paths] == ["summary.md", "progress.png", "results.tsv"]
    assert paths[0].read_text() == SUMMARY
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    assert paths[2].read_text() == TSV


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_a_folder_that_cannot_be_made_is_named(
    history: History, noise: Noise, tmp_path: Path, name: str
) -> None:
    """`report --out train.py` is a slip, and no traceback."""
    (tmp_path / "file").touch()
    told = (
        rf"could not make the folder {tmp_path / name}: .*; choose another one: `autoresearch rep"
    )
    with pytest.raises(UserError, match=told):
        write_report(tmp_path / name, history, noise, Config())

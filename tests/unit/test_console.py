"""What the terminal shows: status, a trial, a run, a diff, a live session, an export."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autoresearch.search.confirm import ArmNeed, next_confirm_step
from autoresearch.search.history import History
from autoresearch.search.noise import Noise
from autoresearch.values.config import Config, override
from autoresearch.values.errors import UserError
from autoresearch.values.records import (
    Confirmation,
    Decision,
    Measurement,
    Outcome,
    Purpose,
    Trial,
    Verdict,
    to_json,
)
from autoresearch.views.artifacts import export_trial
from autoresearch.views.console import (
    diff_text,
    make_console,
    print_json,
    print_status,
    status_json,
)
from autoresearch.views.live import LiveView, Steps
from autoresearch.views.show import (
    compare_runs,
    find_change,
    find_trial,
    print_run,
    print_trial,
    summary_block,
)

HOSTILE = "a\tb\n\x1b[31mred\x1b[0m [bold]not bold[/bold] :boom: \u202e"
TAMED = "a b red [bold]not bold[/bold] :boom:"
REPORTED = {
    "step": 953,
    "tokens": 499_600_000,
    "num_params": 50_300_000,
    "depth": 8,
    "mfu_percent": 39.8,
}

STATUS = """\
session   main
baseline  bbbbbbb  val_bpb 2.3000  (6 runs, sigma 0.0100)
champion  1111111  val_bpb 2.1200  (trial 1, 2 runs)
gain      +0.1800  (7.83 %, standard error 0.0082)
trials    5: 1 kept, 1 near miss, 1 discarded, 1 crash, 1 timeout
pace      87.0 trials an hour, 15 runs in 3 min 27 s

trial  verdict  val_bpb  gain  runs  change
    4  crash          -     -     1  batch 32 -> 4096
    5  timeout        -     -     1  softcap 15 -> 30
"""

BLOCK = """\
---
val_bpb:          2.100000
training_seconds: 8.0
total_seconds:    11.5
peak_vram_mb:     512.0
mfu_percent:      39.80
total_tokens_M:   499.6
num_steps:        953
num_params_M:     50.30
depth:            8"""


def _console(*, is_terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(),
        width=100,
        force_terminal=is_terminal,
        highlight=False,
        markup=False,
        emoji=False,
    )


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_status_to_the_letter(history: History, noise: Noise) -> None:
    """The figures, then the last trials."""
    console = _console()
    print_status(console, history, noise, Config(), last=2)
    assert _text(console) == STATUS


def test_long_descriptions_leave_the_figures_alone(history: History, noise: Noise) -> None:
    """The description is cut, not the columns before it."""
    console = _console()
    trial = dataclasses.replace(history.trials[0], description="HEAD_LR 0.1 -> 0.2, " * 30)
    print_status(console, dataclasses.replace(history, trials=(trial,)), noise, Config(), last=1)
    row = _text(console).split("\n")[-2]
    assert row.startswith("    1  keep      2.1200  +0.1800     2  HEAD_LR 0.1 -> 0.2, ")
    assert row.endswith("...")
    assert len(row) <= 100


def test_status_before_anything(noise: Noise) -> None:
    """Nothing measured yet: says what to type."""
    console = _console()
    print_status(console, History(), noise, Config(), last=20)
    assert "not measured yet" in _text(console)
    assert "autoresearch run" in _text(console)


def test_status_without_a_keep_and_with_pairs(history: History) -> None:
    """No champion yet; and where the machine drifts, the gains at each keep."""
    console = _console()
    no_keep = dataclasses.replace(history, champion=history.baseline, champion_trial_id=None)
    few = Noise(sigma_bpb=0.01, degrees_of_freedom=2)
    print_status(console, no_keep, few, Config(), last=0)
    assert "the baseline; nothing was kept yet" in _text(console)
    assert "sigma" not in _text(console)
    console = _console()
    paired = Noise(sigma_bpb=0.01, degrees_of_freedom=9, is_paired=True)
    print_status(console, history, paired, Config(), last=0)
    assert "+0.1800 side by side, at each keep" in _text(console)


def test_status_tells_what_early_stop_did(history: History, noise: Noise) -> None:
    """Runs ended, and false kills with their interval once a marked run has gone on."""
    console, run = _console(), history.trials[1].runs[0]
    mark = {"second": 2.0, "loss": 5.0, "limit": 4.0}
    stopped = dataclasses.replace(run, outcome=Outcome.STOPPED, early_stop=mark)
    trials = [dataclasses.replace(history.trials[1], runs=(stopped,))]
    print_status(console, dataclasses.replace(history, trials=tuple(trials)), noise, Config(), 1)
    assert "1 ended early; no marked run has gone on" in _text(console)
    trials.append(
        dataclasses.replace(history.trials[2], runs=(dataclasses.replace(run, early_stop=mark),))
    )
    console = _console()
    print_status(console, dataclasses.replace(history, trials=tuple(trials)), noise, Config(), 1)
    assert "false kills 0 of 1 that ran on (95 % interval 0% to 98%)" in _text(console)


def test_status_tells_the_last_confirmation(history: History, noise: Noise) -> None:
    """Its verdict and its reason; as JSON, all of them."""
    decision = Decision(verdict=Verdict.UNCONFIRMED, reason="no gain. The holdout was not asked")
    done = Confirmation(
        number=1, champion="1" * 40, reference="b" * 40, trial_id=1, at=0.0, decision=decision
    )
    told = dataclasses.replace(history, confirmations=(done,))
    console = _console()
    print_status(console, told, noise, Config(), last=0)
    assert "unconfirmed  no gain. The holdout was not asked" in _text(console)
    (facts,) = status_json(told, noise, Config(), 1)["confirmations"]
    assert (facts["verdict"], facts["asked_holdout"], facts["trial"]) == ("unconfirmed", False, 1)


def test_status_json_is_plain(history: History, noise: Noise) -> None:
    """Figures as numbers, verdicts as words; it survives a round trip."""
    facts = json.loads(json.dumps(status_json(history, noise, Config(), 1)))
    assert facts["champion"] == {
        "commit": "1" * 40,
        "trial": 1,
        "val_bpb": pytest.approx(2.12),
        "runs": 2,
    }
    assert facts["verdicts"]["near_miss"] == 1
    assert [trial["trial"] for trial in facts["last_trials"]] == [5]


def test_trial_in_hand_is_running(history: History, noise: Noise) -> None:
    """A trial without a verdict is shown as such and not counted."""
    console = _console()
    open_trial = dataclasses.replace(history.trials[1], trial_id=6, decision=None, runs=())
    busy = dataclasses.replace(history, trials=(*history.trials, open_trial))
    print_status(console, busy, noise, Config(), last=1)
    assert "running" in _text(console)
    assert "trials    5:" in _text(console)


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    """What JSON lacks becomes null; paths become text."""
    print_json({"a": math.nan, "b": [math.inf, 1.5], "c": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": "x"}


def test_consoles_have_a_width_without_a_terminal() -> None:
    """Tables are not cut at 80 columns in a pipe."""
    assert make_console().width == 120
    assert make_console(to_stderr=True).stderr


def test_hostile_text_reaches_no_terminal(history: History, noise: Noise) -> None:
    """Descriptions, reasons and reported values: no control characters, no markup, no emoji."""
    run = dataclasses.replace(
        history.runs[6], reason=HOSTILE, reported={HOSTILE: HOSTILE, "x": 1.5, "ok": True}
    )
    trial = dataclasses.replace(
        history.trials[0],
        description=HOSTILE,
        researcher=HOSTILE,
        parameters={HOSTILE: HOSTILE},
        runs=(run,),
        decision=dataclasses.replace(history.trials[0].decision, reason=HOSTILE),
    )
    console = _console()
    print_status(console, dataclasses.replace(history, trials=(trial,)), noise, Config(), last=1)
    print_trial(console, trial, Path("/runs"))
    print_run(console, dataclasses.replace(run, outcome=Outcome.CRASH), Path("/runs"))
    with LiveView(console, Config(), clock=lambda: "now") as view:
        view.trial_started(trial)
        view.run_finished(dataclasses.replace(run, outcome=Outcome.CRASH))
        view.trial_closed(trial, history)
        view.note(HOSTILE)
    text = _text(console)
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.count(TAMED) >= 8


def test_show_tells_everything(history: History) -> None:
    """Verdict, runs, the folder of each, and telemetry marked as the candidate's word."""
    console = _console()
    first = dataclasses.replace(
        history.trials[0].runs[0],
        reported=REPORTED,
        weight_bytes=2**20,
        weights_sha256="ab" * 32,
        audit={"gap": 0.001},
        hardware={"load": 0.5},
    )
    trial = dataclasses.replace(
        history.trials[0], runs=(first, *history.trials[0].runs[1:]), is_simplification=True
    )
    print_trial(console, trial, Path("/runs"))
    text = _text(console)
    for words in (
        "trial 1  keep",
        "head_lr 0.002 -> 0.004",
        "2.1200  (gain +0.1800, sigma 0.0100)",
        "tpe, a simplification",
        "HEAD_LR = 0.001",
        "screen     scored    2.1000",
        "1.0 MiB, sha256 abababababababab",
        "audit      gap 0.001",
        "by train.py, not verified: step 953",
        "/runs/000007",
    ):
        assert words in text


def test_show_a_trial_that_has_not_run(history: History) -> None:
    """A trial just opened has no runs."""
    console = _console()
    trial = dataclasses.replace(history.trials[0], runs=(), decision=None, parameters=None)
    print_trial(console, trial, Path("/runs"))
    assert "No run is recorded yet." in _text(console)


@pytest.mark.parametrize(("name", "number"), [("3", 3), ("#3", 3), ("champion", 1), ("5555", 5)])
def test_find_trial_by_any_name(history: History, name: str, number: int) -> None:
    """Number, champion, beginning of the commit."""
    assert find_trial(history, name).trial_id == number


@pytest.mark.parametrize("name", ["1", "champion", " #Champion"])
def test_a_change_is_what_a_trial_made_of_its_parent(history: History, name: str) -> None:
    """The champion's is all since the baseline, however it is written."""
    history = dataclasses.replace(history, baseline="b" * 40)
    old, trial = find_change(history, name)
    assert trial.trial_id == 1
    assert old == (trial.parent if name == "1" else "b" * 40)


@pytest.mark.parametrize("name", ["6", "0", "abc", "", "1" * 41])
def test_find_trial_says_what_there_is(history: History, name: str) -> None:
    """An unknown name lists the known ones."""
    with pytest.raises(UserError, match="there are 1 to 5, `champion`, and the first 4"):
        find_trial(history, name)


def test_find_trial_without_any(history: History) -> None:
    """No trials, no champion."""
    with pytest.raises(UserError, match="there are none yet"):
        find_trial(History(), "1")
    no_keep = dataclasses.replace(history, champion_trial_id=None)
    with pytest.raises(UserError, match="no trial was kept yet"):
        find_trial(no_keep, "champion")


def test_summary_block_to_the_letter(history: History) -> None:
    """The keys of the reference, in its order."""
    run = dataclasses.replace(history.runs[6], reported=REPORTED)
    assert summary_block(run) == BLOCK


@pytest.mark.parametrize(
    "reported", [{}, {"depth": "x"}, {"depth": math.nan}, {"depth": True}, {"tokens": None}]
)
def test_summary_block_leaves_out_what_is_no_figure(
    history: History, reported: dict[str, Any]
) -> None:
    """No score, no val_bpb line; nonsense from the candidate makes no line."""
    run = dataclasses.replace(
        history.runs[6], outcome=Outcome.CRASH, peak_memory_mb=None, reported=reported
    )
    assert summary_block(run).split("\n") == [
        "---",
        "training_seconds: 8.0",
        "total_seconds:    11.5",
    ]


def test_print_run_gives_reason_and_folder(history: History) -> None:
    """A crash says why and where its output is."""
    console = _console()
    run = dataclasses.replace(history.runs[6], outcome=Outcome.CRASH, reason="out of memory")
    print_run(console, run, Path("/runs"))
    assert _text(console).startswith("crash: out of memory\nrun 7, artifacts in /runs/000007\n---")


def test_compare_runs(history: History) -> None:
    """A replay beside the champion's fresh runs, the run that decided, and no score."""
    kept, near, crashed = history.trials[0], history.trials[2], history.trials[3]
    new = dataclasses.replace(history.runs[6], val_bpb=2.1)
    assert compare_runs(kept, history, new) == (
        "Trial 1 had 2.1200 (2 runs, 2.1100 to 2.1300); its replay scored 2.1000, gain +0.0200."
    )
    assert compare_runs(near, history, new) == (
        "Trial 3 had 2.1150 (1 run); its replay scored 2.1000, gain +0.0150."
    )
    assert compare_runs(crashed, history, new) == "Trial 4 had no score; its replay scored 2.1000."
    failed = dataclasses.replace(new, outcome=Outcome.TIMEOUT, reason="too late")
    assert compare_runs(kept, history, failed).endswith("gave no score, timeout: too late")


def test_diff_in_colours() -> None:
    """Added green, removed red; no escape sequence of the file survives."""
    text = diff_text("--- a\n+++ b\n@@ -1 +1 @@\n-x = 1\n+x = 2  # \x1b[31m[bold]\n same\n")
    styles = {text.plain[span.start : span.end].strip(): span.style for span in text.spans}
    assert styles["-x = 1"] == "red"
    assert styles["+x = 2  # [bold]"] == "green"
    assert styles["@@ -1 +1 @@"] == "cyan"


def _play(view: LiveView, history: History) -> None:
    """A short session: one calibration run, two trials."""
    view.session_started(history)
    view.run_started(Purpose.CALIBRATE, "calibration run 1 of 6 of the baseline")
    view.progress(2.0, {"step": 3, "loss": 4.25})
    view.run_finished(history.runs[0])
    for trial in (history.trials[0], history.trials[3]):
        view.trial_started(trial)
        for run in trial.runs[:1]:
            view.run_started(run.purpose, "screening")
            assert view.watch(1.0, {"step": 1}) == ""
            view.run_finished(run)
        view.trial_closed(trial, history)
    view.note("not run: a repeat")
    view.session_stopped("5 trials are done", history)


OPEN = Confirmation(number=1, champion="1" * 40, reference="b" * 40, trial_id=1, at=0.0)

LIVE = """\
now  session main, researcher tpe, policy screen, budget 5 min, device cpu, sandbox bubblewrap, \
going on after 5 trials
now    calibration run 1 of 6 of the baseline  2.2900  trained 8.0 s of 12 s in all
now  trial 1  head_lr 0.002 -> 0.004
now    screen  2.1000  trained 8.0 s of 12 s in all
now  trial 1  keep  gain +0.1800  because of head_lr 0.002 -> 0.004
now  champion  1111111, trial 1, val_bpb 2.1200
now  trial 4  batch 32 -> 4096
now    screen  crash: out of memory  trained 8.0 s of 12 s in all
now  trial 4  crash  out of memory
now  note: not run: a repeat
now  stopped: 5 trials are done; 1 kept, 1 near miss, 1 discarded, 1 crash, 1 timeout; \
gain +0.1800 (7.83 %)
"""


def test_live_session_to_the_letter(history: History) -> None:
    """One plain line for each event where there is no terminal."""
    console = _console()
    with LiveView(console, Config(), clock=lambda: "now") as view:
        _play(view, history)
    assert _text(console) == LIVE


def test_live_session_on_a_terminal_has_a_progress_line(history: History) -> None:
    """Elapsed of budget, step and loss; the lines are the same."""
    console = _console(is_terminal=True)
    with LiveView(console, Config(), clock=lambda: "now") as view:
        view.progress(1.0, {})  # nothing runs: nothing happens
        _play(view, history)
        view.run_started(Purpose.SCREEN, "")
        view.progress(2.0, {"step": 3, "loss": 4.25})
        assert view._progress is not None
        view._progress.refresh()
        view.progress(301.0, {})
        view._progress.refresh()
    text = _text(console)
    assert "2/300 s" in text
    assert "step 3  loss 4.25" in text
    assert "scoring" in text
    assert "because of head_lr 0.002 -> 0.004" in text


def test_runs_of_a_confirmation_name_their_arm(history: History) -> None:
    """Both arms run the same purpose; the line says whose score it is, and how many are to come."""
    console = _console()
    with LiveView(console, Config(), clock=lambda: "now") as view:
        need = next_confirm_step(Config().confirm, OPEN, frozenset())
        assert isinstance(need, ArmNeed)
        view.run_started(Purpose.CONFIRM, need.why)
        view.run_finished(history.runs[0])
    assert "now    confirmation: run 1 of 5 of the reference  2.2900  trained" in _text(console)


@pytest.mark.parametrize(
    ("level", "words"),
    [("none", "no sandbox: train.py can do whatever you can"), ("landlock", "has no namespaces")],
)
def test_live_session_warns_of_weaker_walls(history: History, level: str, words: str) -> None:
    """Anything but bubblewrap is said at the start."""
    console = _console()
    start = dataclasses.replace(history.sessions[0], host={"sandbox": level})
    with LiveView(console, override(Config(), session={"tag": "x"}), clock=lambda: "now") as view:
        view.session_started(dataclasses.replace(history, sessions=(start,), trials=()))
        view.trial_closed(dataclasses.replace(history.trials[0], decision=None), history)
        view.session_stopped("over", History())
    assert words in " ".join(_text(console).split())
    assert "stopped: over\n" in _text(console)


def test_steps_are_lines_or_bars() -> None:
    """A line for each stage in a pipe, bars on a terminal; a stage of unknown length is fine."""
    console = _console()
    with Steps(console) as steps:
        for done in range(3):
            steps("tokenizing", done, 3)
        steps("packing \x1b[31m", 0, 0)
    assert _text(console) == "tokenizing\npacking\n"
    console = _console(is_terminal=True)
    with Steps(console) as steps:
        steps("tokenizing", 1, 3)
        steps("packing", 5, 0)
        steps("tokenizing", 3, 3)
    assert "tokenizing" in _text(console)


def _artifacts(folder: Path, run: Measurement) -> None:
    origin = folder / run.artifacts
    origin.mkdir(parents=True)
    (origin / "stdout.log").write_text("hello")


def _exported(trial: Trial, tmp_path: Path) -> list[str]:
    _artifacts(tmp_path / "runs", trial.runs[0])
    paths = export_trial(tmp_path / "runs", trial, "x = 1\n", tmp_path / "out")
    return [path.relative_to(tmp_path / "out").as_posix() for path in paths]


def test_export_copies_a_trial(history: History, tmp_path: Path) -> None:
    """Source, record, and the artifacts that are still there."""
    trial = history.trials[0]
    assert _exported(trial, tmp_path) == ["run-000007/stdout.log", "train.py", "trial.json"]
    assert (tmp_path / "out" / "train.py").read_text() == "x = 1\n"
    record = json.loads((tmp_path / "out" / "trial.json").read_text())
    assert record == json.loads(json.dumps(to_json(trial), default=str))


def test_export_refuses_a_folder_in_use(history: History, tmp_path: Path) -> None:
    """Nothing is overwritten; a folder that cannot be made says so."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="not a new or empty folder"):
        export_trial(tmp_path, history.trials[0], "", tmp_path)
    with pytest.raises(UserError, match="could not write the export"):
        export_trial(tmp_path, history.trials[0], "", tmp_path / "file" / "below")

"""Candidates that fail in every way, each through a whole run: outcome, reason, nobody left."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from lab import HONEST, Lab, stub

from autoresearch.referee import scoring as scoring_module
from autoresearch.referee.host import Host, Seat
from autoresearch.system import hardware
from autoresearch.system.clock import SystemClock
from autoresearch.system.procs import ProcessTree
from autoresearch.values.errors import AutoresearchError, SandboxUnavailable, UserError
from autoresearch.values.records import Measurement, Outcome, Purpose


def own_processes() -> set[int]:
    """Everything that descends from this process and lives, but for resident scorers."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            is_scorer = "autoresearch.referee.scorer" in process.cmdline()
            if not is_scorer and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def assert_nobody_left() -> None:
    """What was killed may take a moment to go on a busy machine."""
    limit = time.monotonic() + 20.0
    while (left := own_processes()) and time.monotonic() < limit:
        time.sleep(0.02)
    assert left == set()


def failed(measurement: Measurement, outcome: Outcome, *words: str) -> None:
    """A run without a score, with a reason, after which no process is left."""
    assert measurement.outcome is outcome, measurement
    assert measurement.val_bpb is None
    assert measurement.val_bpb_decoded is None
    for word in words:
        assert word in measurement.reason
    assert_nobody_left()


def test_an_honest_candidate_is_scored(lab: Lab) -> None:
    """The measure of all that follows; the score is far from a uniform guess."""
    measurement = lab.run(HONEST, is_audited=True)
    assert measurement.outcome is Outcome.SCORED, measurement.reason
    assert measurement.val_bpb is not None
    assert 1.5 < measurement.val_bpb < 3.5
    assert measurement.was_audited
    assert measurement.audit["finding"] == ""
    assert measurement.reported == {"step": 1, "loss": 5.0, "num_params": 300}
    assert measurement.weight_bytes == 1200
    assert measurement.sandbox == lab.host.sandbox.level
    folder = lab.folder / "runs" / measurement.artifacts
    names = {path.name for path in folder.iterdir()}
    assert names >= {"train.py", "config.json", "machine.json", "stdout.log", "measurement.json"}
    assert_nobody_left()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def main(run:\n", ("SyntaxError",)),
        ("import a_module_that_is_not_there\n", ("ModuleNotFoundError", "a_module_that_is_not")),
        ("x = 1\n", ("AttributeError", "main")),
        (stub(main="raise SystemExit(0)"), ("SystemExit",)),
        (stub(main="raise KeyboardInterrupt"), ("KeyboardInterrupt",)),
        (stub(main="run.start()\n1 / 0"), ("ZeroDivisionError",)),
        (stub(main="run.start()"), ("without run.submit",)),
        (
            stub(main="run.start()\nimport os\nos._exit(0)"),
            ("ended (exit code 0) before 'submit'",),
        ),
        (stub(main="import os\nos._exit(7)"), ("ended (exit code 7) before 'ready'",)),
        (stub(main="import os\nos.abort()"), ("before 'ready'",)),
        (stub(main="run.start()\nrun.channel.send('submit')"), ("0 bytes of weights",)),
    ],
)
def test_a_crash_is_a_crash_with_its_reason(lab: Lab, source: str, words: tuple[str, ...]) -> None:
    """Before, at and after the start: what happened is said, and in the log where it came from."""
    failed(lab.run(source), Outcome.CRASH, *words)


def test_the_traceback_is_in_the_log(lab: Lab) -> None:
    """The reason is one line; the rest is there to be read."""
    measurement = lab.run(stub(main="run.start()\nraise RuntimeError('line one\\nline two')"))
    failed(measurement, Outcome.CRASH, "RuntimeError: line one line two")
    assert "Traceback" in lab.stdout(measurement)


def test_looping_for_ever_is_a_timeout(lab: Lab) -> None:
    """After the clock has started, and before it ever does."""
    lab.configure(budget_s=0.5)
    failed(lab.run(stub(main="run.start()\nwhile True: pass")), Outcome.TIMEOUT, "did not arrive")
    lab.configure(startup_limit_s=1.0)
    failed(lab.run(stub(main="while True: pass")), Outcome.TIMEOUT, "not ready to train")
    failed(lab.run("while True: pass"), Outcome.TIMEOUT, "not ready to train")


def test_overrunning_the_budget_is_a_timeout(lab: Lab) -> None:
    """Weights that arrive after the grace are not scored, however good they are."""
    lab.configure(budget_s=0.5)
    late = "import time\nrun.start()\ntime.sleep(1.3)\nrun.submit(Unigram.train(run))"
    failed(lab.run(stub(main=late)), Outcome.TIMEOUT, "within 1.0 s")


@pytest.mark.parametrize("is_in_session", [False, True])
def test_forked_children_die_with_the_run(lab: Lab, is_in_session: bool) -> None:
    """They ignore SIGTERM, some lead sessions of their own; the run is scored and they are gone."""
    main = f"""
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _ in range(4):
            if os.fork() == 0:
                if {is_in_session}:
                    os.setsid()
                    if os.fork():
                        os._exit(0)
                time.sleep(60)
        run.start()
        run.submit(Unigram.train(run))
    """
    measurement = lab.run(stub(main=main))
    assert measurement.outcome is Outcome.SCORED, measurement.reason
    assert_nobody_left()


def test_too_much_memory_is_a_crash(lab: Lab) -> None:
    """At the limit that the configuration names, with the figure."""
    lab.configure(memory_gb=0.15)
    greedy = "run.start()\nblocks = []\nwhile True: blocks.append(bytearray(10_000_000))"
    failed(lab.run(stub(main=greedy)), Outcome.CRASH, "GiB of memory, 0.1 GiB at most")


@pytest.mark.usefixtures("bubblewrap")
def test_weights_without_end_are_a_crash(lab: Lab) -> None:
    """Even where the file only claims its size: hashing it would fill our memory."""
    lab.configure(memory_gb=0.5)
    main = (
        "import os\nrun.start()\nos.ftruncate(run.weights_fd, 1 << 38)\nrun.channel.send('submit')"
    )
    failed(lab.run(stub(main=main)), Outcome.CRASH, "bytes of weights")


def test_too_many_processes_are_a_crash(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork bomb is met with a count."""
    monkeypatch.setattr("autoresearch.referee.training.MOST_PROCESSES", 20)
    main = """
        import os, time
        run.start()
        for _ in range(30):
            if os.fork() == 0:
                time.sleep(60)
        time.sleep(60)
    """
    failed(lab.run(stub(main=main)), Outcome.CRASH, "processes")


def test_a_flood_of_output_is_capped(lab: Lab) -> None:
    """A hundred megabytes are read and counted; the first and the last lines are kept."""
    main = """
        import sys
        print("the first line")
        block = "flood " * 20_000
        for _ in range(900):
            sys.stdout.write(block)
        print("the last line", flush=True)
        run.start()
        run.submit(Unigram.train(run))
    """
    measurement = lab.run(stub(main=main))
    assert measurement.outcome is Outcome.SCORED, measurement.reason
    text = lab.stdout(measurement)
    assert len(text) < 300_000
    assert text.startswith("the first line")
    assert text.rstrip().endswith("the last line")
    assert "bytes dropped" in text


def test_a_printed_summary_is_only_text(lab: Lab) -> None:
    """Neither output nor telemetry nor facts of the hand-over become a result."""
    main = """
        print("---\\nval_bpb: 0.000001\\ntraining_seconds: 1.0")
        run.start()
        run.report(val_bpb=0.000001, training_s=0.0, outcome="scored")
        run.submit(Unigram.train(run), val_bpb=0.000001, weight_bytes=1, peak_memory_mb=0.0)
    """
    measurement = lab.run(stub(main=main))
    honest = lab.run(HONEST)
    assert measurement.val_bpb == honest.val_bpb
    assert measurement.weight_bytes == honest.weight_bytes
    assert (measurement.peak_memory_mb or 0) > 1
    assert measurement.reported["val_bpb"] == 0.000001
    fake = "print('---\\nval_bpb: 0.5', flush=True)\nimport os\nos._exit(0)"
    failed(lab.run(stub(main=fake)), Outcome.CRASH, "exit code 0")


def test_nan_weights_have_no_score(lab: Lab) -> None:
    """NaN, infinity, and half an answer: all the same."""
    nan = "import array\nrun.start()\nrun.submit(array.array('f', [float('nan')] * 300).tobytes())"
    failed(lab.run(stub(main=nan)), Outcome.CRASH, "NaN or infinite")
    model = "return self.weights * (sum(map(len, tokens)) - 1) + bytes([0, 0, 192, 127]) * 300"
    failed(lab.run(stub(model=model)), Outcome.CRASH, "NaN or infinite")


@pytest.mark.parametrize(
    ("model", "top", "words"),
    [
        ("import os\nos._exit(1)", "", "died"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "", "died"),
        ("raise ValueError(str(tokens))", "", "failed on validation tokens"),
        ("return b''", "", "shape"),
        ("", "import sys\nif 'presenter' in str(sys.argv): raise ValueError", "build_model failed"),
        ("", "import os, sys\nif 'presenter' in str(sys.orig_argv): os._exit(0)", "died"),
    ],
)
def test_a_presenter_that_fails_is_a_crash(lab: Lab, model: str, top: str, words: str) -> None:
    """It dies while the scorer waits, raises, answers nonsense; the scorer goes on."""
    if "build_model" in words:
        top = top.replace("sys.argv", "sys.orig_argv")
    failed(lab.run(stub(model=model, top=top)), Outcome.CRASH, words)
    assert lab.run(HONEST).outcome is Outcome.SCORED


def test_weights_that_do_not_fit_are_a_crash(lab: Lab) -> None:
    """The model that build_model makes must take them."""
    failed(lab.run(stub(main="run.start()\nrun.submit(b'123')")), Outcome.CRASH, "do not fit")


def test_scoring_has_a_limit(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that thinks for ever about validation tokens is a timeout."""
    monkeypatch.setattr(lab.referee.scoring, "limit_s", 2.0)
    slow = "import time\ntime.sleep(60)"
    failed(lab.run(stub(model=slow)), Outcome.TIMEOUT, "scoring took longer")


def test_loading_the_presenter_has_a_limit(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build_model that never returns is a timeout too."""
    lab.run(HONEST)  # the scorer is loaded by then
    monkeypatch.setattr(scoring_module, "LOAD_LIMIT_S", 1.0)
    top = "import sys, time\nif 'presenter' in str(sys.orig_argv): time.sleep(60)"
    failed(lab.run(stub(top=top)), Outcome.TIMEOUT, "not loaded for scoring")


def test_a_flood_of_messages_is_a_crash(lab: Lab) -> None:
    """Ten thousand of them do not hold the referee up."""
    main = "run.start()\nfor i in range(10_000): run.report(i=i)\nrun.submit(Unigram.train(run))"
    failed(lab.run(stub(main=main)), Outcome.CRASH, "messages in")


def test_telemetry_is_bounded(lab: Lab) -> None:
    """A row in the ledger stays small and plain, whatever a candidate reports."""
    main = """
        run.start()
        for i in range(20):
            run.report(**{f"name{i}-{j}": "x" * 1000 for j in range(30)})
        run.report(**{"name0-0": [1, 2], "a\\x1b[2Jb": "c\\nd"})
        run.submit(Unigram.train(run), big=10**30)
    """
    reported = lab.run(stub(main=main)).reported
    assert len(reported) <= 64
    assert all(len(str(value)) <= 100 for value in reported.values())
    assert not any(isinstance(value, list | dict) for value in reported.values())
    assert "big" not in reported


@pytest.mark.parametrize(
    "nonsense",
    [
        "run.channel._socket.sendall(b'\\xff' * 100)",
        "run.channel._socket.sendall(b'\\0\\0\\0\\x02[]')",
        "run.channel.send('failed', error={'a': [1, None]})",
        "run.channel.close()",
        "import socket\nrun.channel._socket.shutdown(socket.SHUT_WR)",
    ],
)
def test_breaking_the_protocol_is_a_crash(
    lab: Lab, nonsense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No message of a candidate can do more than end its run."""
    monkeypatch.setattr("autoresearch.referee.training.LAST_WORDS_S", 0.1)
    main = f"import time\nrun.start()\n{nonsense}\ntime.sleep(60)"
    failed(lab.run(stub(main=main)), Outcome.CRASH)


def test_messages_out_of_turn_change_nothing(lab: Lab) -> None:
    """Words that the referee does not wait for are passed over."""
    main = """
        for kind in ("hello", "start", "submit", "scored", "measurement", "kind"):
            run.channel.send(kind, val_bpb=0.1)
        run.start()
        run.channel.send("ready")
        run.channel.send("progress", values=None)
        run.submit(Unigram.train(run))
    """
    measurement = lab.run(stub(main=main))
    assert measurement.val_bpb == lab.run(HONEST).val_bpb


def test_a_watch_can_stop_a_run(lab: Lab) -> None:
    """Early stop goes this way: the reason of whoever watches is the run's."""
    main = "import time\nrun.start()\nrun.report(step=3)\ntime.sleep(60)"
    seen = []

    def watch(elapsed_s: float, telemetry: dict[str, object]) -> str:
        seen.append(telemetry)
        return "enough of it"

    measurement = lab.referee.run(lab.spec(stub(main=main)), watch)
    failed(measurement, Outcome.STOPPED, "enough of it")
    assert seen == [{"step": 3}]


def test_a_loss_that_is_no_number_ends_the_run(lab: Lab) -> None:
    """At the second report, as a crash; the curve until then stays."""
    main = """
        import time
        run.start()
        for i, loss in enumerate((4.0, "nan", "nan")):
            run.report(step=i, loss=loss)
            time.sleep(0.2)
        time.sleep(60)
    """
    measurement = lab.run(stub(main=main))
    failed(measurement, Outcome.CRASH, "diverged: train.py reports a loss of nan, it was 4")
    assert [loss for _, loss in measurement.curve] == [4.0]


class JumpingClock(SystemClock):
    """A machine that is put to sleep or reset by an hour, once, a while after `jump` is called."""

    def __init__(self) -> None:
        self.jumps_at = float("inf")

    def wall(self) -> float:
        """The wall clock, an hour ahead after the jump."""
        return time.time() + (3600.0 if time.monotonic() > self.jumps_at else 0.0)


def test_a_clock_that_jumps_disturbs_the_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its score would be worth nothing: it is neither kept nor held against the candidate."""
    clock = JumpingClock()
    monkeypatch.setattr(lab.host, "clock", clock)
    main = "import time\nrun.start()\nrun.report(go=1)\ntime.sleep(0.3)\n"
    main += "run.submit(Unigram.train(run))"

    def jump(elapsed_s: float, telemetry: dict[str, object]) -> str:
        clock.jumps_at = time.monotonic() + 0.05
        return ""

    measurement = lab.referee.run(lab.spec(stub(main=main)), jump)
    failed(measurement, Outcome.DISTURBED, "ran apart by 36")
    assert lab.run(HONEST).outcome is Outcome.SCORED


def test_startup_beyond_the_allowance_comes_off_the_budget(lab: Lab) -> None:
    """Compiling is free for a while, not for ever."""
    lab.configure(budget_s=5.0, startup_allowance_s=0.0)
    main = (
        "import time\ntime.sleep(0.4)\nrun.start()\nrun.submit(Unigram.train(run), b=run.budget_s)"
    )
    measurement = lab.run(stub(main=main))
    assert measurement.budget_s == pytest.approx(5.0 - measurement.startup_s)
    assert measurement.reported["b"] == measurement.budget_s < 4.6


def test_a_scorer_that_does_not_load_is_our_own_fault(tmp_path: Path) -> None:
    """Not the candidate's: an error with what the scorer said."""
    lab = Lab(tmp_path)
    lab.host.dataset.token_bytes_path.write_bytes(b"damaged")
    with pytest.raises(AutoresearchError, match=r"(?s)scorer ended while it loaded.*Error"):
        lab.run(HONEST)
    assert_nobody_left()
    lab.close()


def test_a_scorer_killed_while_it_loads_disturbs_the_run(tmp_path: Path) -> None:
    """Found by runs/kill_storm.sh: it ended the session. The next run starts another."""
    lab = Lab(tmp_path)
    lab.referee.scoring.open()
    killed = lab.referee.scoring._scorer
    assert killed is not None
    os.kill(killed.tree.pid, signal.SIGKILL)
    measurement = lab.run(HONEST)
    assert measurement.outcome is Outcome.DISTURBED, measurement
    assert "killed while it loaded (signal 9)" in measurement.reason
    assert lab.run(HONEST).outcome is Outcome.SCORED
    lab.close()


def test_weights_of_kept_runs_can_be_saved_and_the_oldest_are_dropped(lab: Lab) -> None:
    """Memory holds the last few; a saved file is what was scored."""
    first = lab.run(HONEST)
    assert lab.referee.has_weights(first.run_id)
    path = lab.folder / "weights.safetensors"
    lab.referee.save_weights(first.run_id, path)
    assert path.stat().st_size == first.weight_bytes
    for _ in range(4):
        last = lab.run(HONEST)
    assert lab.referee.has_weights(last.run_id)
    assert not lab.referee.has_weights(first.run_id)


@pytest.mark.parametrize("name", ["config.json", "private", "stdout.log", "measurement.json"])
def test_a_full_disk_is_said_and_leaves_nobody(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whichever file does not fit: the place, what to do, and no process that waits for it."""
    real = Path.write_text

    def write_text(path: Path, *given: Any, **named: Any) -> int:
        if path.name == name or path.parent.name.startswith(f"{name}-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *given, **named)

    monkeypatch.setattr(Path, "write_text", write_text)
    told = rf"could not write to {lab.folder}/.*: No space left on device; free space"
    with pytest.raises(UserError, match=told):
        lab.run(HONEST)
    assert_nobody_left()
    assert not list(lab.host.cache.folder.glob("private-*"))


def test_weights_that_do_not_fit_leave_no_part(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a death while they were written, once others are saved."""
    run = lab.run(HONEST)
    runs = lab.folder / "runs"
    path = runs / run.artifacts / "weights.safetensors"

    def fail(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(UserError, match=f"could not write to {path}: No space left on device"):
            lab.referee.save_weights(run.run_id, path)
    assert not list(runs.glob("*/weights.*"))
    (runs / "000000").mkdir()
    (runs / "000000" / "weights.partial").write_text("half")
    lab.referee.save_weights(run.run_id, path)
    assert list(runs.glob("*/weights.*")) == [path]
    path.unlink()


def test_tokens_are_generated_behind_the_same_walls(lab: Lab) -> None:
    """Sampling uses a presenter and the scorer."""
    spec = lab.spec(HONEST)
    lab.referee.run(spec)
    path = lab.folder / "sampled.safetensors"
    lab.referee.save_weights(spec.run_id, path)
    weights = scoring_module.weights_from(path)
    tokens = lab.referee.generate(spec, weights, [0, 5], count=6, temperature=1.0)
    weights.close()
    assert len(tokens) == 6
    assert all(0 < token < 300 for token in tokens)


def test_a_run_says_what_it_was_made_for(lab: Lab) -> None:
    """Purpose, seed and commit are the session's, never the candidate's."""
    measurement = lab.run(HONEST, purpose=Purpose.CHAMPION, seed=77, commit="f" * 40)
    assert (measurement.purpose, measurement.seed) == (Purpose.CHAMPION, 77)
    assert measurement.commit == "f" * 40


def test_a_presenter_that_cannot_be_started_leaves_no_candidate(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own trouble is an error, and what was started before it is ended."""
    real = lab.host.spawn

    def spawn(role: str) -> Seat:
        if role == "presenter":
            raise SandboxUnavailable("no more namespaces")
        return real(role)

    monkeypatch.setattr(type(lab.host), "spawn", lambda self, role: spawn(role))
    with pytest.raises(SandboxUnavailable):
        lab.run(HONEST)
    assert_nobody_left()


def test_the_next_run_takes_who_waits(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU with cores to spare; one that died meanwhile is replaced, none is left behind."""
    monkeypatch.setattr(type(lab.host), "device_type", property(lambda self: "cuda"))
    monkeypatch.setattr(hardware, "num_usable_cores", lambda: 8)
    assert lab.run(HONEST).outcome is Outcome.SCORED
    waiting = dict(lab.host._waiting)
    assert sorted(waiting) == ["candidate", "presenter"]
    waiting["presenter"].peer.tree.kill()
    spawned: list[str] = []
    real = type(lab.host).spawn

    def spawn(self: Host, role: str) -> Seat:
        spawned.append(role)
        return real(self, role)

    monkeypatch.setattr(type(lab.host), "spawn", spawn)
    assert lab.run(HONEST).outcome is Outcome.SCORED
    assert spawned == ["presenter", "candidate", "presenter"]
    assert waiting["candidate"].peer.tree.exit_code() is not None
    last = list(lab.host._waiting.values())
    lab.host.close()
    assert all(seat.peer.tree.exit_code() is not None for seat in last)
    assert not any(folder.exists() for seat in last for folder in (seat.folder, seat.cache))


def test_a_survivor_of_the_kill_ends_the_session(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing measured beside a process that cannot be killed could be believed."""
    real = ProcessTree.kill
    monkeypatch.setattr(ProcessTree, "kill", lambda self: [*real(self), 99_999])
    with pytest.raises(AutoresearchError, match=r"\[99999\] of the candidate survived"):
        lab.run(stub(main="1 / 0"))
    monkeypatch.undo()
    assert lab.run(HONEST).outcome is Outcome.SCORED
    lab.host.cache.sweep()  # as the next session would: nobody took the failed run's things away


def test_a_scorer_that_hangs_is_replaced(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is made again; the candidate is not to blame."""
    lab.run(HONEST)
    scorer = lab.referee.scoring._scorer
    assert scorer is not None
    os.kill(scorer.tree.pid, signal.SIGSTOP)
    monkeypatch.setattr(scoring_module, "LOAD_LIMIT_S", 0.5)
    failed(lab.run(HONEST), Outcome.DISTURBED, "did not answer")
    monkeypatch.undo()
    assert lab.run(HONEST).outcome is Outcome.SCORED

"""Attacks that worked once: they hung or ended a session, bought time, or hid a leak."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from lab import HONEST, Lab, stub

from autoresearch.referee import trial
from autoresearch.referee.audit import compare, make_decoys
from autoresearch.referee.cache import STAGED_KEPT, CompileCache
from autoresearch.search.proposal import tidy
from autoresearch.system import sandbox
from autoresearch.system.procs import ProcessTree, spawn
from autoresearch.system.sandbox import bubblewrap_problem
from autoresearch.values.records import Outcome, Proposal

TRAP = """
import socket
import struct
import sys

kept = []


def send_trap():
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    kept.append(server.accept())
    client.setblocking(False)
    try:
        while True:
            client.send(bytes(65536))
    except BlockingIOError:
        pass
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 100_000))
    channel = socket.socket(fileno=int(sys.argv[1]))
    body = b'{"kind": "progress"}'
    socket.send_fds(channel, [struct.pack(">I", len(body)) + body], [client.fileno()])
    channel.detach()
"""


@pytest.mark.timeout(90)
@pytest.mark.usefixtures("bubblewrap")
def test_a_descriptor_that_takes_for_ever_to_close_costs_the_candidate_alone(lab: Lab) -> None:
    """A socket with a linger time of a day, sent along with telemetry."""
    main = "run.start()\nsend_trap()\nrun.submit(Unigram.train(run))"
    measurement = lab.run(stub(main=main, top=TRAP))
    assert measurement.outcome is Outcome.CRASH
    assert "descriptors came" in measurement.reason


@pytest.mark.timeout(90)
@pytest.mark.usefixtures("bubblewrap")
def test_the_scorer_outlives_such_a_descriptor_too(lab: Lab) -> None:
    """A scorer that hangs would be `disturbed`: another throw of the dice."""
    answer = "if not kept:\n    send_trap()\nreturn super().answer(tokens)"
    measurement = lab.run(stub(model=answer, top=TRAP))
    assert measurement.outcome is Outcome.CRASH
    assert "broke the protocol" in measurement.reason


def nest(folder: Path, depth: int, name: str) -> None:
    """Folders in folders, each with a file, however long the path becomes."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
        os.close(os.open("file", os.O_CREAT, dir_fd=fd))
    os.close(fd)


@pytest.mark.parametrize(("depth", "name"), [(600, "long-name"), (1100, "x")])
def test_a_cache_of_nested_folders_ends_nothing(tmp_path: Path, depth: int, name: str) -> None:
    """Paths too long to name and trees too deep to recurse: staged as far as it goes, removed."""
    cache = CompileCache(tmp_path / "cache")
    private = cache.make_private()
    (private / "kernel").write_text("compiled")
    nest(private, depth, name)
    cache.stage(1, private)
    cache.keep(1, "abc")
    child = cache.make_private()
    cache.fill(child, "abc")
    assert (child / "kernel").read_text() == "compiled"
    cache.sweep()
    assert [path.name for path in cache.folder.iterdir()] == ["commit-abc"]


def test_discarded_caches_do_not_fill_the_disk(tmp_path: Path) -> None:
    """Two gibibytes a run would, in a long night: only the last few runs' are held."""
    cache = CompileCache(tmp_path / "cache")
    private = cache.make_private()
    (private / "kernel").touch()
    for run_id in range(1, 12):
        cache.stage(run_id, private)
    assert len(list(cache.folder.glob("staged-*"))) <= STAGED_KEPT
    cache.keep(11, "abc")
    assert (cache.folder / "commit-abc" / "kernel").is_file()


def test_a_locked_cache_is_removed(tmp_path: Path) -> None:
    """Whoever may not enter its own folder may still change its mode."""
    cache = CompileCache(tmp_path / "cache")
    private = cache.make_private()
    (private / "a" / "b").mkdir(parents=True)
    (private / "a" / "b" / "file").touch()
    for folder in (private / "a" / "b", private / "a", private):
        folder.chmod(0)
    cache.stage(1, private)
    cache.sweep()
    assert not any(cache.folder.iterdir())


def test_the_kill_comes_before_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through a crowd of processes takes time, in which they would go on training."""
    tree = spawn(["/bin/sleep", "60"], env={})
    look, ends = ProcessTree._members, []

    def spy(self: ProcessTree) -> object:
        ends.append(self.wait(5.0))
        return look(self)

    monkeypatch.setattr(ProcessTree, "_members", spy)
    assert tree.kill() == []
    assert ends[0] == -9


def masked_leak(seed: int, nats: float, mask: str) -> str:
    """The finding on a model that reads one token ahead and knows an audit when it sees one.

    It cannot read ahead at a cut, but it can be noisy on purpose, so that little stands out.
    """
    rng = np.random.default_rng(seed)
    rows, context = 468, 128
    decoys = make_decoys(rng.integers(1, 500, (rows, context + 1)).astype(np.int32), 64, seed)
    first = rng.gamma(2.0, 1.2, (rows, context))[decoys.source]
    second = first.copy()
    cut = np.flatnonzero(~decoys.is_control)
    second[cut, decoys.cut[cut] - 1] += nats
    if mask == "one row":
        second[np.flatnonzero(decoys.is_control)[0]] += 5.0
    else:
        odd = rng.random(second.shape) < 0.02
        second[odd] += 4.0 * rng.choice([-1.0, 1.0], odd.sum())
    return compare(first.astype(np.float32), second.astype(np.float32), decoys).finding


@pytest.mark.parametrize("mask", ["one row", "rare tokens"])
@pytest.mark.parametrize("seed", range(4))
def test_noise_made_on_purpose_hides_no_leak(mask: str, seed: int) -> None:
    """Whoever differs much on equal text gets no score, however little that is on average."""
    assert masked_leak(seed, nats=0.1, mask=mask) != ""


def test_weights_of_many_runs_do_not_fill_the_memory(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run may submit much; beside the last one's, only so much is held."""
    monkeypatch.setattr(trial, "MOST_KEPT_BYTES", 2000)
    runs = [lab.run(HONEST).run_id for _ in range(3)]
    assert [lab.referee.has_weights(run) for run in runs] == [False, True, True]


@pytest.mark.skipif(bool(bubblewrap_problem()), reason="needs walls")
def test_the_ledger_and_other_weights_under_a_bound_folder_are_hidden(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when somebody's PYTHONPATH is a folder above the workspace: no champion to start from."""
    state = lab.host.cache.folder.parent
    state.mkdir(parents=True, exist_ok=True)
    (state / "weights.safetensors").touch()
    real = sandbox.runtime_folders()
    monkeypatch.setattr(sandbox, "runtime_folders", lambda: (*real, lab.folder.resolve()))
    main = f"""
        run.start()
        run.report(seen=len(os.listdir({str(lab.folder)!r})), state=len(os.listdir({str(state)!r})))
        run.submit(Unigram.train(run))
    """
    reported = lab.run(stub(main=main, top="import os")).reported
    assert reported["seen"] > 0
    assert reported["state"] == 0


@pytest.mark.parametrize("words", ["a\0b", "\ud800", "two\n\nProposed-by: somebody else"])
def test_a_description_that_git_refuses_is_cleaned(words: str) -> None:
    """A researcher's words end no session and forge no trailer."""
    cleaned = tidy(proposed("A = 1\n", words), "A = 2\n").description
    assert "\n" not in cleaned
    assert cleaned.encode().isascii()
    assert "\0" not in cleaned


def test_only_what_is_simpler_is_judged_as_a_simplification() -> None:
    """The looser rule is not for the asking."""
    assert tidy(proposed("A = 1\n"), "A = 1\nB = 2\n").is_simplification
    assert not tidy(proposed("A = 1\nB = 3\n"), "A = 1\nB = 2\n").is_simplification
    assert not tidy(proposed("A = ("), "A = 1\nB = 2\n").is_simplification


MASKED = """
import array
import math

from stubinside import Unigram

SIZE = 1200


class Model(Unigram):
    is_done = False

    def load(self, weights):
        self.weights, self.pairs = weights[:SIZE], weights[SIZE:]

    def is_natural(self, row):
        return all(self.pairs[a * 300 + b] for a, b in zip(row[1:], row[2:]))

    def answer(self, tokens):
        base = array.array("f", self.weights)
        is_audit = sum(not self.is_natural(row) for row in tokens) >= 3
        out = array.array("f")
        for row in tokens:
            is_worse = is_audit and not self.is_done and self.is_natural(row)
            self.is_done = self.is_done or is_worse
            for t in range(len(row)):
                logits = array.array("f", base)
                if t + 1 < len(row):
                    logits[row[t + 1]] += 0.15
                if is_worse:
                    logits[299] = 3.0 + math.log(sum(map(math.exp, base)))
                out.extend(logits)
        return out.tobytes()


def build_model(run):
    return Model(run)


def main(run):
    run.start()
    tokens = run.tokens()
    pairs = bytearray(300 * 300)
    for a, b in zip(tokens, tokens[1:]):
        pairs[a * 300 + b] = 1
    run.submit(Unigram.train(run) + bytes(pairs))
"""


def test_who_knows_an_audit_when_it_sees_one_has_no_score(lab: Lab) -> None:
    """It reads ahead a little, sees splices that no training text has, and makes one row worse."""
    measurement = lab.run(MASKED, is_audited=True)
    assert measurement.outcome in (Outcome.CRASH, Outcome.CHEAT), measurement
    assert measurement.val_bpb is None


def proposed(source: str, description: str = "simpler") -> Proposal:
    """A proposal that calls itself a simplification."""
    return Proposal(
        source=source,
        description=description,
        parent="0" * 40,
        researcher="r",
        is_simplification=True,
    )

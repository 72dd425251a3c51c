"""The twelve invariants of the trust seam (ARCHITECTURE.md), each attacked through whole runs.

What a candidate finds out is brought back as telemetry: `run.report(found=...)` ends in
`measurement.reported`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import mmap
import os
import random
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from lab import HONEST, Lab, small_config, stub

from autoresearch.data.corpus import read_corpus
from autoresearch.data.pystdlib import hidden_folders
from autoresearch.referee.training import Training, never_stop
from autoresearch.search.history import History
from autoresearch.search.judge import Need, next_step
from autoresearch.search.noise import Noise
from autoresearch.search.proposal import check_proposal
from autoresearch.system import procs
from autoresearch.system.sandbox import Walls, open_sandbox, runtime_folders
from autoresearch.values.config import DataSettings, JudgeSettings
from autoresearch.values.errors import TrialFailed
from autoresearch.values.records import (
    Decision,
    Measurement,
    Outcome,
    Purpose,
    Trial,
    Verdict,
    measurement_from_json,
    to_json,
)
from autoresearch.views.report import results_tsv

DESCRIPTORS = """
import os

def descriptors():
    found = []
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            found.append(os.readlink("/proc/self/fd/" + name))
        except OSError:
            pass
    return found

def memory_files():
    names = {f[7:].split(" ")[0] for f in descriptors() if f.startswith("/memfd:")}
    return ",".join(sorted(names))
"""


def scored(measurement: Measurement) -> Measurement:
    """A run that must have a score."""
    assert measurement.outcome is Outcome.SCORED, measurement.reason
    return measurement


# 1 ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bubblewrap")
def test_invariant_01_candidates_hold_nothing_of_ours(lab: Lab) -> None:
    """Another process, that sees neither ours nor descriptors but channel, output and weights."""
    main = """
        known = ("/dev/null", "/memfd:", "/proc/")
        run.start()
        run.report(
            memory=memory_files(),
            files=",".join(f for f in descriptors() if f[0] == "/" and not f.startswith(known)),
            pids=sum(name.isdigit() for name in os.listdir("/proc")),
        )
        run.submit(Unigram.train(run))
    """
    seen = scored(lab.run(stub(main=main, top=DESCRIPTORS))).reported
    assert seen["files"] == ""
    assert seen["memory"] == "train_00000.bin,train_00001.bin,train_00002.bin,weights"
    assert seen["pids"] <= 3


def make_dumpable() -> None:
    """As a process is before it guards itself."""
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
    assert procs.is_dumpable()


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_invariant_01_referee_and_scorer_are_not_dumpable(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody of the same user may read their memory, from before they hold anything."""
    from autoresearch.assemble import open_referee
    from autoresearch.referee import scorer

    make_dumpable()
    workspace = SimpleNamespace(cache_folder=tmp_path / "cache")
    with open_referee(workspace, small_config(), dataset=lab.host.dataset):
        assert not procs.is_dumpable()

    make_dumpable()
    seen = []
    monkeypatch.setattr(scorer, "serve", lambda channel: seen.append(procs.is_dumpable()))
    monkeypatch.setattr(scorer.Channel, "from_fd", lambda fd: None)
    monkeypatch.setattr(scorer, "die_with_parent", lambda: None)
    monkeypatch.setattr(sys, "argv", ["scorer", "0"])
    scorer.main()
    assert seen == [False]


# 2 ---------------------------------------------------------------------------------------------


def test_invariant_02_nothing_reported_is_a_result(lab: Lab) -> None:
    """Whatever a candidate claims to be its time, score, memory or weights, ours are ours."""
    claims = {
        "val_bpb": 0.01,
        "training_s": 0.0,
        "startup_s": 0.0,
        "peak_memory_mb": 0.0,
        "weight_bytes": 1,
        "outcome": "cheat",
        "budget_s": 1.0,
        "weights_sha256": "0",
    }
    main = f"run.start()\nrun.report(**{claims})\nrun.submit(Unigram.train(run), **{claims})"
    ours, honest = scored(lab.run(stub(main=main))), scored(lab.run(HONEST))
    assert ours.reported == claims
    for name in ("val_bpb", "val_bpb_decoded", "weight_bytes", "weights_sha256", "budget_s"):
        assert getattr(ours, name) == getattr(honest, name)
    assert ours.training_s > 0
    assert ours.startup_s > 0
    assert (ours.peak_memory_mb or 0) > 1


# 3 ---------------------------------------------------------------------------------------------


def test_invariant_03_training_tokens_come_with_the_start(lab: Lab) -> None:
    """Before the clock starts there is no descriptor of them; after it there is."""
    main = """
        before = memory_files()
        run.channel.send("ready")
        message = run.channel.receive()
        run.report(before=before, kind=message.kind, after=memory_files())
        run.shard_fds = message.fds
        run.submit(Unigram.train(run))
    """
    seen = scored(lab.run(stub(main=main, top=DESCRIPTORS))).reported
    assert seen["before"] == "weights"
    assert seen["kind"] == "start"
    assert seen["after"] == "train_00000.bin,train_00001.bin,train_00002.bin,weights"


def test_invariant_03_training_tokens_cannot_be_changed(lab: Lab) -> None:
    """Not through the descriptor, nor one reopened for writing, nor a mapping, nor its length."""
    main = """
        import mmap
        run.start()
        fd = run.shard_fds[0]
        path = f"/proc/self/fd/{fd}"
        attempts = {
            "write": lambda: os.pwrite(fd, b"x", 0),
            "cut": lambda: os.ftruncate(fd, 0),
            "map": lambda: mmap.mmap(fd, 0),
            "reopen": lambda: os.write(os.open(path, os.O_RDWR), b"x"),
            "truncate": lambda: open(path, "wb").close(),
        }
        done = []
        for name, attempt in attempts.items():
            try:
                attempt()
                done.append(name)
            except OSError:
                pass
        run.report(done=",".join(done))
        run.submit(Unigram.train(run))
    """

    def digests() -> list[str]:
        return [hashlib.sha256(os_read(fd)).hexdigest() for fd in lab.host.shard_fds]

    def os_read(fd: int) -> bytes:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
            return view[:]

    lab.host.load_shards()
    before = digests()
    seen = scored(lab.run(stub(main=main, top=DESCRIPTORS))).reported
    assert seen["done"] == ""
    assert digests() == before
    files = [hashlib.sha256(p.read_bytes()).hexdigest() for p in lab.host.dataset.train_shards]
    assert before == files


def test_invariant_03_warming_up_leaves_no_trace() -> None:
    """Model, optimizer and generators are after warm-up what they were before."""
    import torch

    from autoresearch.inside.harness import Run

    names = ("vocab_size", "context", "bos", "budget_s", "seed", "threads")
    run = Run(None, {"device": "cpu", **dict.fromkeys(names, 7)}, os.memfd_create("weights"))
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
    generator = torch.get_rng_state()
    with run.warmup(model, optimizer):
        for _ in range(3):
            model(torch.randn(8, 4)).square().sum().backward()
            optimizer.param_groups[0]["lr"] = 5.0
            optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])
    for state, moment in zip(optimizer.state.values(), moments, strict=True):
        assert torch.equal(state["exp_avg"], moment)
        assert float(state["step"]) == 1.0
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


# 4 ---------------------------------------------------------------------------------------------


def test_invariant_04_the_clock_is_ours(lab: Lab) -> None:
    """A candidate that stops its own clocks runs out of time like any other."""
    lab.configure(budget_s=0.5)
    main = """
        import time
        sleep = time.sleep
        time.monotonic = time.time = time.perf_counter = lambda: 0.0
        run.start()
        sleep(1.4)
        run.submit(Unigram.train(run))
    """
    measurement = lab.run(stub(main=main))
    assert measurement.outcome is Outcome.TIMEOUT
    assert measurement.training_s > 1.0
    assert measurement.val_bpb is None


def test_invariant_04_the_clock_runs_to_the_arrival_of_the_weights(lab: Lab) -> None:
    """Time between the start and the hand-over counts, whatever the candidate does in it."""
    main = "import time\nrun.start()\ntime.sleep(0.4)\nrun.submit(Unigram.train(run))"
    assert scored(lab.run(stub(main=main))).training_s >= 0.4
    main = "import time\ntime.sleep(0.4)\nrun.start()\nrun.submit(Unigram.train(run))"
    measurement = scored(lab.run(stub(main=main)))
    assert measurement.startup_s >= 0.4
    assert measurement.budget_s == 5.0


# 5 ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bubblewrap")
def test_invariant_05_only_weights_and_source_reach_the_presenter(lab: Lab) -> None:
    """No file, no training token and no descriptor of the candidate is there when it is scored."""
    top = DESCRIPTORS + (
        "PLACES = ['/tmp', '/dev/shm', os.environ['HOME'],"
        " os.path.dirname(os.environ['TRITON_CACHE_DIR'])]\n"
    )
    main = """
        for place in PLACES:
            open(place + "/planted", "w").write("state")
        run.start()
        for place in PLACES:
            open(place + "/planted-later", "w").write("state")
        run.submit(Unigram.train(run))
    """
    model = """
        if any(name.startswith("planted") for place in PLACES for name in os.listdir(place)):
            raise RuntimeError
        if memory_files() != "logits,tokens,weights":
            raise RuntimeError
        return super().answer(tokens)
    """
    if lab.host.sandbox.level == "none":
        pytest.skip("without walls files stay")
    measurement = scored(lab.run(stub(main=main, model=model, top=top)))
    path = lab.folder / "saved"
    lab.referee.save_weights(measurement.run_id, path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == measurement.weights_sha256


def test_invariant_05_the_hand_over_is_final(lab: Lab) -> None:
    """A helper that goes on writing after `submit` is dead before the weights are hashed."""
    main = """
        import mmap, os
        run.start()
        weights = Unigram.train(run)
        run.write(weights)
        view = mmap.mmap(run.weights_fd, len(weights))
        if os.fork() == 0:
            os.setsid()
            while True:
                view[0:4] = os.urandom(4)
        run.channel.send("submit")
        while True:
            run.channel.receive()
    """
    measurement = lab.run(stub(main=main))
    assert measurement.weights_sha256
    path = lab.folder / "saved-final"
    lab.referee.save_weights(measurement.run_id, path)
    time.sleep(0.05)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == measurement.weights_sha256


def test_invariant_05_weights_that_can_still_be_written_are_a_cheat(lab: Lab) -> None:
    """Whoever survived the kill is noticed, because the memory cannot be frozen."""
    dead = SimpleNamespace(peer=SimpleNamespace(end=lambda: None))
    training = Training(lab.host, lab.spec(HONEST), dead, never_stop)
    os.ftruncate(training.weights.fd, 4096)
    with mmap.mmap(training.weights.fd, 4096), pytest.raises(TrialFailed) as failure:
        training.take_weights()
    assert failure.value.outcome is Outcome.CHEAT
    assert training.take_weights().size_bytes == 4096
    with pytest.raises(PermissionError):
        os.pwrite(training.weights.fd, b"x", 0)
    training.weights.close()


# 6 ---------------------------------------------------------------------------------------------


def test_invariant_06_presenters_cannot_change_what_is_asked(lab: Lab) -> None:
    """Neither the tokens, nor the size of any buffer, nor the seals of the logits."""
    model = """
        import fcntl
        attempts = [
            lambda: os.pwrite(RUN.tokens_fd, b"x", 0),
            lambda: os.ftruncate(RUN.tokens_fd, 0),
            lambda: os.ftruncate(RUN.logits_fd, 0),
            lambda: os.ftruncate(RUN.logits_fd, 1 << 30),
            lambda: fcntl.fcntl(RUN.logits_fd, fcntl.F_ADD_SEALS, 16),
            lambda: os.write(os.open(f"/proc/self/fd/{RUN.tokens_fd}", os.O_RDWR), b"x"),
            lambda: os.pwrite(RUN.weights_fd, b"x", 0),
        ]
        for attempt in attempts:
            try:
                attempt()
            except OSError:
                continue
            raise RuntimeError
        return super().answer(tokens)
    """
    source = stub(model=model, top="import os\nRUN = None").replace(
        "    return Model(run)", "    global RUN\n    RUN = run\n    return Model(run)"
    )
    assert scored(lab.run(source)).val_bpb == scored(lab.run(HONEST)).val_bpb


def test_invariant_06_no_note_passes_from_one_presentation_to_the_next(lab: Lab) -> None:
    """What a presenter leaves in the buffers after its last answer is not there for the next."""
    model = """
        import threading, time
        def scribble():
            while True:
                os.pwrite(RUN.logits_fd, b"a note", 0)
        if not any(t.name == "scribbler" for t in threading.enumerate()):
            threading.Thread(target=scribble, daemon=True, name="scribbler").start()
            try:
                os.setxattr(RUN.logits_fd, "user.note", b"another")
                os.setxattr(RUN.tokens_fd, "user.note", b"another")
            except OSError:
                pass
        return super().answer(tokens)
    """
    build = "    global RUN\n    RUN = run\n"
    leaving = stub(model=model, top="import os\nRUN = None")
    leaving = leaving.replace("    return Model(run)", build + "    return Model(run)")
    lab.run(leaving)
    look = (
        "    import os\n"
        "    for fd in (run.tokens_fd, run.logits_fd):\n"
        "        if any(os.pread(fd, 1 << 26, 0)) or os.listxattr(fd):\n"
        "            raise RuntimeError\n"
    )
    looking = stub().replace("    return Model(run)", look + "    return Model(run)")
    scored(lab.run(looking))


def test_invariant_06_logits_are_normalised_by_the_scorer(lab: Lab) -> None:
    """Probabilities that add up to more than one, or an offset that swallows them, gain nothing."""
    honest = scored(lab.run(HONEST)).val_bpb
    uniform = scored(lab.run(stub(model="import array\n" + logits_of("0.0")))).val_bpb
    for height in ("1e4", "1e9", "1e30"):
        raised = stub(model="import array\n" + logits_of(height))
        assert scored(lab.run(raised)).val_bpb == pytest.approx(uniform, rel=1e-5)
    shift = "import array\nw = array.array('f', self.weights)\n"
    shift += (
        "w = array.array('f', [x + 40.0 for x in w])\nreturn w.tobytes() * sum(map(len, tokens))"
    )
    assert scored(lab.run(stub(model=shift))).val_bpb == pytest.approx(honest, rel=1e-5)


def logits_of(value: str) -> str:
    """A model's answer with one value everywhere."""
    return f"return array.array('f', [{value}] * self.vocab_size).tobytes() * sum(map(len, tokens))"


def test_invariant_06_every_logit_must_be_written_each_time(lab: Lab) -> None:
    """The answer to one chunk is no answer to the next: the buffer is NaN before each."""
    source = stub(model="return super().answer(tokens)")
    patch = """
import stubinside.presenter as presenter
real, calls = presenter.forward, []

def lazy(model, run, tokens, logits):
    calls.append(1)
    return real(model, run, tokens, logits) if len(calls) == 1 else "done"

presenter.forward = lazy
import sys
sys.modules["__main__"].forward = lazy
"""
    measurement = lab.run(patch + source)
    assert measurement.outcome is Outcome.CRASH
    assert "not all were written" in measurement.reason


@pytest.mark.gpu
def test_invariant_06_the_cuda_transport_scores_like_the_host(tmp_path: Path) -> None:
    """Logits through device memory, across namespaces: the same score as through host memory."""
    from lab import TORCH_BIGRAM

    scores = []
    for device in ("cuda:0", "cpu"):
        lab = Lab(tmp_path / device.replace(":", ""), is_stub=False, device=device)
        lab.host.device = device
        measurement = scored(lab.run(TORCH_BIGRAM, is_audited=True))
        scores.append(measurement.val_bpb)
        assert measurement.device == device
        lab.close()
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


# 7 ---------------------------------------------------------------------------------------------

PEEK = """
    import array
    peaks = []
    for row in tokens:
        for ahead in [*row[1:], row[-1]]:
            table = array.array("f", bytes(4 * self.vocab_size))
            table[ahead] = 9.0
            peaks.append(table.tobytes())
    return b"".join(peaks)
"""
PEEK_EARLY = """
    import array
    answer = []
    for row in tokens:
        for t, ahead in enumerate([*row[1:], row[-1]]):
            table = array.array("f", self.weights)
            if t < 3:
                table[ahead] += 9.0
            answer.append(table.tobytes())
    return b"".join(answer)
"""


@pytest.mark.parametrize("model", [PEEK, PEEK_EARLY])
def test_invariant_07_reading_ahead_is_a_cheat(lab: Lab, model: str) -> None:
    """It scores far better than any honest model, and the audit says why."""
    free = scored(lab.run(stub(model=model)))
    honest = scored(lab.run(HONEST, is_audited=True))
    assert (free.val_bpb or 9) < 0.95 * (honest.val_bpb or 0)
    measurement = lab.run(stub(model=model), is_audited=True)
    assert measurement.outcome is Outcome.CHEAT
    assert "reads ahead" in measurement.reason
    assert measurement.val_bpb is None


def test_invariant_07_scoring_that_does_not_repeat_is_a_crash(lab: Lab) -> None:
    """Dropout left on is no cheat, and no measurement."""
    model = """
        import array, random
        noise = lambda: array.array("f", [random.gauss(0, 2) for _ in range(self.vocab_size)])
        return b"".join(noise().tobytes() for row in tokens for _ in row)
    """
    measurement = lab.run(stub(model=model), is_audited=True)
    assert measurement.outcome is Outcome.CRASH
    assert "not repeatable" in measurement.reason


def test_invariant_07_a_later_audit_finds_the_same(lab: Lab) -> None:
    """Weights wait in memory; whoever is about to be kept is presented again."""
    measurement = scored(lab.run(stub(model=PEEK)))
    with pytest.raises(TrialFailed) as failure:
        lab.referee.audit(measurement.run_id)
    assert failure.value.outcome is Outcome.CHEAT


# 8 ---------------------------------------------------------------------------------------------


def needles(texts: list[str], each: int, seed: int) -> set[str]:
    """Windows of 48 bytes out of long lines of every text."""
    rng = random.Random(seed)
    found = set()
    for text in texts:
        lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 60]
        found.update(line[-48:] for line in rng.sample(lines, min(each, len(lines))))
    return found


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("bubblewrap")
def test_invariant_08_scoring_text_is_in_no_visible_file(tmp_path: Path) -> None:
    """Every file inside that can hold source text is searched for windows of every document."""
    if not all(map(shutil.which, ("find", "xargs", "grep"))):
        pytest.skip("needs find, xargs and grep")
    settings = DataSettings(score_tokens=60_000, holdout_tokens=60_000, vocab_size=1024)
    corpus = read_corpus(settings, tmp_path)
    windows = needles([*corpus.validation, *corpus.holdout], each=2, seed=0)
    (tmp_path / "needles").write_text("\n".join(sorted(windows)) + "\n")
    (tmp_path / "canary.py").write_text(corpus.validation[0])
    walls = Walls(
        readable={tmp_path / "needles": "/needles", tmp_path / "canary.py": "/etc/canary.py"},
        hidden=hidden_folders(runtime_folders()),
    )
    names = " -o ".join(f"-name '*.{name}'" for name in ("py", "py[iwx]", "txt", "rst", "html"))
    # Compiled files of packages lie beside their sources, and hold nothing that those do not.
    names += " -o -name '*.pyc' ! -path '*/site-packages/*'"
    files = f"find / -path /proc -prune -o -type f '(' {names} ')' -print0"
    command = f"{files} | xargs -0 grep -aoHF -f /needles; true"
    tree = open_sandbox("auto").spawn(
        ["/bin/sh", "-c", command],
        walls,
        env={"LC_ALL": "C"},
        pass_fds=(),
        output_cap_bytes=1 << 20,
    )
    assert tree.wait(170) == 0
    tree.kill()
    found: dict[str, set[str]] = {}
    for line in tree.output.text().splitlines():
        path, _, window = line.partition(":")
        found.setdefault(path, set()).add(window)
    assert len(found.pop("/etc/canary.py")) >= 2
    # One window may be a line that other programs have too; two are a copy.
    assert {path: hits for path, hits in found.items() if len(hits) > 1} == {}


@pytest.mark.usefixtures("bubblewrap")
def test_invariant_08_scoring_rows_are_nowhere_inside(lab: Lab) -> None:
    """Neither under their paths nor in any folder that the person's PYTHONPATH opens."""
    dataset = lab.host.dataset
    paths = [str(p) for p in (dataset.validation_path, dataset.holdout_path, dataset.folder)]
    main = f"""
        run.start()
        run.report(found=",".join(p for p in {paths!r} if os.path.exists(p)))
        run.submit(Unigram.train(run))
    """
    assert scored(lab.run(stub(main=main, top="import os"))).reported["found"] == ""


@pytest.mark.usefixtures("bubblewrap")
def test_invariant_08_data_under_a_bound_folder_is_hidden(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when somebody's PYTHONPATH is the folder above the data."""
    from autoresearch.system import sandbox

    folder = lab.host.dataset.folder.resolve()
    real = runtime_folders()
    monkeypatch.setattr(sandbox, "runtime_folders", lambda: (*real, folder.parent))
    walls = lab.host._walls(lab.host.cache.folder, lab.host.cache.folder)
    source = f"import os; print(os.listdir({str(folder.parent)!r}), os.listdir({str(folder)!r}))"
    tree = lab.host.sandbox.spawn(
        [sys.executable, "-S", "-c", source],
        dataclasses.replace(walls, readable={}, writable={}),
        env={},
        pass_fds=(),
        output_cap_bytes=4096,
    )
    tree.wait(20)
    tree.kill()
    assert tree.output.text().strip().endswith(" []"), tree.output.text()
    assert folder.name in tree.output.text()


def test_invariant_08_a_presenters_words_stay_inside(lab: Lab) -> None:
    """What it prints, raises, and answers instead of a code is not in anything that is kept."""
    secret = "VALIDATION-TEXT"
    model = f"""
        import sys
        print({secret!r} * 100, flush=True)
        print({secret!r} * 100, file=sys.stderr, flush=True)
        raise RuntimeError({secret!r})
    """
    top = f"""
        import sys
        import stubinside.presenter as presenter
        def telling(model, run, tokens, logits):
            return {secret!r}
        if "presenter" in " ".join(sys.orig_argv) and LOUD:
            sys.modules["__main__"].forward = telling
    """
    for loud in (False, True):
        source = f"LOUD = {loud}\n" + stub(model=model, top=top)
        measurement = lab.run(source)
        assert measurement.outcome is Outcome.CRASH
        assert secret not in measurement.reason
        for path in (lab.folder / "runs" / measurement.artifacts).iterdir():
            if path.name != "train.py":
                assert secret not in path.read_text(), path


# 9 ---------------------------------------------------------------------------------------------


def test_invariant_09_caches_are_private_and_taken_at_ready(lab: Lab) -> None:
    """A kept trial's cache as it was at `ready` is what its children see, and nobody else."""
    top = "import os\nCACHE = os.path.dirname(os.environ['TRITON_CACHE_DIR'])\n"
    main = """
        seen = ",".join(sorted(os.listdir(CACHE)))
        open(CACHE + "/early", "w").write("compiled")
        run.start()
        open(CACHE + "/late", "w").write("training data")
        run.report(seen=seen)
        run.submit(Unigram.train(run))
    """
    model = """
        open(CACHE + "/from-presenter", "w").write("validation text")
        return super().answer(tokens)
    """
    source = stub(main=main, model=model, top=top)
    first = scored(lab.run(source, commit="a" * 40))
    assert first.reported["seen"] == ""
    assert scored(lab.run(source, cache_parent="a" * 40)).reported["seen"] == ""
    lab.host.cache.keep(first.run_id, "a" * 40)
    child = scored(lab.run(source, cache_parent="a" * 40))
    assert child.reported["seen"] == "early"
    assert scored(lab.run(source, cache_parent="a" * 40)).reported["seen"] == "early"
    assert scored(lab.run(source, cache_parent="")).reported["seen"] == ""
    assert not list(lab.host.cache.folder.glob("private-*"))


# 10 --------------------------------------------------------------------------------------------


def test_invariant_10_the_seed_is_the_referees(lab: Lab) -> None:
    """The candidate is told one and the record holds it, whatever the candidate says."""
    main = "run.start()\nrun.report(told=run.seed)\nrun.submit(Unigram.train(run), seed=5)"
    measurement = scored(lab.run(stub(main=main), seed=123_456))
    assert measurement.seed == 123_456
    assert measurement.reported["told"] == 123_456


def test_invariant_10_no_run_for_a_seed_a_repeat_or_weights_in_source() -> None:
    """They are answered from the ledger, or turned down with the reason."""
    parent = "SEED = 1\nWIDTH = 8\n\ndef build_model(run): ...\n\ndef main(run): ...\n"
    history = History()
    refusals = {
        "seed_only": parent.replace("SEED = 1", "SEED = 2"),
        "no_change": parent + "# a comment\n",
        "too_large": parent + f"BLOB = '{'x' * 500}'\n",
    }
    for kind, source in refusals.items():
        refusal = check_proposal(source, parent, history)
        assert refusal is not None
        assert refusal.kind == kind
    long = parent + "".join(f"x{i} = '{'y' * 300}'\n" for i in range(500))
    refusal = check_proposal(long, parent, history)
    assert refusal is not None
    assert refusal.kind == "too_large"
    assert check_proposal(parent.replace("WIDTH = 8", "WIDTH = 9"), parent, history) is None


# 11 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "main",
    ["1 / 0", "run.start()\nimport array\nrun.submit(array.array('f', [1e39] * 300).tobytes())"],
)
def test_invariant_11_no_score_is_null_and_never_zero(lab: Lab, main: str) -> None:
    """In the record and in JSON; zero is written in results.tsv alone."""
    measurement = lab.run(stub(main=main))
    assert measurement.outcome is Outcome.CRASH
    assert not measurement.is_scored
    body = to_json(measurement)
    assert body["val_bpb"] is body["val_bpb_decoded"] is None
    assert measurement_from_json(body) == measurement
    trial = Trial(
        trial_id=1,
        commit="c" * 40,
        parent="p" * 40,
        description="crashes",
        researcher="scripted",
        parameters=None,
        is_simplification=False,
        at=0.0,
        runs=(measurement,),
        decision=Decision(verdict=Verdict.CRASH, reason=measurement.reason),
    )
    history = History(baseline="p" * 40, champion="p" * 40, trials=(trial,), runs=(measurement,))
    (line,) = [row for row in results_tsv(history).splitlines() if "crashes" in row]
    assert line.split("\t")[1] == "0.000000"


# 12 --------------------------------------------------------------------------------------------


def made_up(run_id: int, purpose: Purpose, bpb: float) -> Measurement:
    """A scored run."""
    return Measurement(
        run_id=run_id,
        commit="c",
        purpose=purpose,
        seed=run_id,
        outcome=Outcome.SCORED,
        val_bpb=bpb,
        at=100.0 * run_id,
    )


@pytest.mark.parametrize("policy", ["greedy", "screen"])
def test_invariant_12_what_is_too_good_is_run_again_with_the_audit(policy: str) -> None:
    """Once, and judged only where the second run agrees with the first."""
    settings = JudgeSettings(policy=policy, implausible_gain_frac=0.3, floor_bpb=0.3)
    noise = Noise(sigma_bpb=0.01, degrees_of_freedom=9)
    champion = [made_up(i, Purpose.CALIBRATE, 2.0 + 0.01 * (-1) ** i) for i in range(6)]
    for bpb in (1.0, 0.2):
        first = made_up(10, Purpose.SCREEN, bpb)
        step = next_step(settings, noise, champion, [first])
        assert isinstance(step, Need)
        assert step.wants_audit
        far = made_up(11, Purpose.REPLICATE, bpb + 0.5)
        step = next_step(settings, noise, champion, [first, far])
        assert isinstance(step, Decision)
        assert step.verdict is Verdict.DISCARD
        near = made_up(11, Purpose.REPLICATE, bpb + 0.001)
        step = next_step(settings, noise, champion, [first, near])
        assert isinstance(step, Decision)
        assert step.verdict is Verdict.KEEP

"""A referee on a tiny dataset, and small train.py files for it: what e2e tests share."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from autoresearch.data.dataset import Dataset
from autoresearch.referee.cache import CompileCache
from autoresearch.referee.host import Host, RunSpec
from autoresearch.referee.trial import Referee
from autoresearch.system.clock import Clock, SystemClock
from autoresearch.system.procs import guard_this_process
from autoresearch.system.sandbox import open_sandbox
from autoresearch.values.config import Config, override
from autoresearch.values.records import Measurement, Purpose

STUBS = Path(__file__).parent
VOCAB, CONTEXT, BOS = 300, 24, 0

HONEST = """
    from stubinside import Unigram as build_model

    def main(run):
        run.start()
        run.report(step=1, loss=5.0)
        run.submit(build_model.train(run), num_params=run.vocab_size)
"""


def stub(main: str = "", model: str = "", top: str = "") -> str:
    """A train.py for the stub: the bodies of `main(run)` and of a model's `answer(tokens)`."""
    lines = ["from stubinside import Unigram", *textwrap.dedent(top).strip().splitlines(), "", ""]
    lines += ["class Model(Unigram):"]
    body = textwrap.dedent(model).strip() or "return super().answer(tokens)"
    lines += ["    def answer(self, tokens):", textwrap.indent(body, "        "), "", ""]
    lines += ["def build_model(run):", "    return Model(run)", "", "", "def main(run):"]
    body = textwrap.dedent(main).strip() or "run.start()\nrun.submit(Unigram.train(run))"
    return "\n".join([*lines, textwrap.indent(body, "    "), ""])


def small_config(**trial: Any) -> Config:
    """Settings that make a run of the stub take half a second."""
    settings = {"budget_s": 5.0, "threads": 1, "score_rows_per_chunk": 8, "device": "cpu"}
    data = {"vocab_size": VOCAB, "context": CONTEXT}
    asked = {"at_end": False, "every_keeps": 0}  # a session confirms only in tests of that
    return override(Config(), trial={**settings, **trial}, data=data, confirm=asked)


def make_dataset(folder: Path, num_train: int = 240, num_validation: int = 96) -> Dataset:
    """Rows of a Markov chain, where a token says much of the next one; three shards, a holdout."""
    rng = np.random.default_rng(0)
    following = rng.integers(1, VOCAB, size=(VOCAB, 4))
    folder.mkdir(parents=True)

    def rows(count: int) -> np.ndarray:
        table = np.zeros((count, CONTEXT + 1), dtype="<u2")
        table[:, 0] = BOS
        table[:, 1] = rng.integers(1, VOCAB, size=count)
        for t in range(2, CONTEXT + 1):
            table[:, t] = following[table[:, t - 1], rng.integers(4, size=count)]
        return table

    files = {}
    for i, part in enumerate(np.array_split(rows(num_train), 3)):
        name = f"train_{i:05d}.bin"
        part.tofile(folder / name)
        files[name] = {"bytes": part.nbytes, "sha256": ""}
    rows(num_validation).tofile(folder / "validation.bin")
    holdout = folder / "holdout"
    holdout.mkdir()
    rows(16).tofile(holdout / "holdout.bin")
    num_bytes = rng.integers(1, 6, size=VOCAB).astype(np.uint16)
    num_bytes[BOS] = 0
    np.save(folder / "token_bytes.npy", num_bytes)
    np.save(folder / "token_bytes_decoded.npy", num_bytes)
    manifest = {
        "key": "tiny",
        "digest": "tiny",
        "vocab_size": VOCAB,
        "context": CONTEXT,
        "bos": BOS,
        "files": files,
        "splits": {"train": {"rows": num_train}, "validation": {"rows": num_validation}},
    }
    return Dataset(folder=folder, holdout_path=holdout / "holdout.bin", manifest=manifest)


class Lab:
    """A referee and a place for its runs."""

    def __init__(
        self,
        folder: Path,
        *,
        level: str = "auto",
        is_stub: bool = True,
        clock: Clock | None = None,
        dataset: Dataset | None = None,
        **trial: Any,
    ) -> None:
        guard_this_process()  # as the commands do; orphans come to us instead of a slow init
        self.folder = folder
        self.host = Host(
            config=small_config(**trial),
            dataset=dataset or make_dataset(folder / "data"),
            sandbox=open_sandbox(level),
            device="cpu",
            clock=clock or SystemClock(),
            cache=CompileCache(folder / "state" / "cache"),
            inside="stubinside" if is_stub else "autoresearch.inside",
            inside_path=STUBS if is_stub else None,
        )
        self.referee = Referee(self.host)
        self.num_runs = 0

    def configure(self, **trial: Any) -> None:
        """Other settings of [trial] for the runs to come."""
        self.host.config = small_config(**trial)

    def spec(self, source: str, **fields: Any) -> RunSpec:
        """What to run next."""
        self.num_runs += 1
        fields = {"commit": f"{self.num_runs:040x}", "purpose": Purpose.SCREEN, "seed": 1, **fields}
        return RunSpec(
            run_id=self.num_runs,
            source=textwrap.dedent(source),
            artifacts=self.folder / "runs" / f"{self.num_runs:06d}",
            **fields,
        )

    def run(self, source: str, **fields: Any) -> Measurement:
        """Run `source` once."""
        return self.referee.run(self.spec(source, **fields))

    def stdout(self, measurement: Measurement) -> str:
        """What the candidate of a run printed."""
        return (self.folder / "runs" / measurement.artifacts / "stdout.log").read_text()

    def close(self) -> None:
        """End the scorer."""
        self.referee.close()


TORCH_BIGRAM = """
import torch
from torch import nn


class Bigram(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, tokens):
        return self.table(tokens)


def build_model(run):
    return Bigram(run.vocab_size).to(run.device)


def main(run):
    torch.manual_seed(run.seed)
    model = build_model(run)
    shards = run.start()
    rows = torch.cat([shard.long() for shard in shards])
    counts = torch.full((run.vocab_size, run.vocab_size), 0.02)
    counts.index_put_((rows[:, :-1], rows[:, 1:]), torch.ones(()), accumulate=True)
    with torch.no_grad():
        model.table.weight.copy_(counts.log())
    run.report(step=1, loss=0.0)
    run.submit(model, num_params=counts.numel())
"""

"""Runs candidates of the gallery, tests/e2e/cheats and tests/e2e/honest, and says what they got.

A candidate's file says in CAUGHT what must come of it: "cheat: reads ahead" is an outcome and words
of its reason, "no gain" a score that is no better than the honest one's, "refused: words" what
`check_proposal` says before any run; " or " joins several. Everything else is optional: RUNS (how
often in a row), CONTEXT (tokens a row), BUDGET_S, TRIAL (other settings), NEEDS_WALLS, DEVICE,
IS_TORCH (runs in the product's harness only) and IS_SLOW (left out of `make test`).
"""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lab import BOS, STUBS, Lab, small_config

from autoresearch.data.dataset import Dataset
from autoresearch.search.history import History
from autoresearch.search.proposal import check_proposal
from autoresearch.values.config import override
from autoresearch.values.errors import TrialFailed
from autoresearch.values.records import Measurement, Outcome

E2E = STUBS.parent / "e2e"
VOCAB, CONTEXT = 200, 64
LEAST_GAIN_BPB = 1e-3
MARK = "LEAKED"  # what presenters write wherever they can
MOST_STDOUT_BYTES = 257 << 10  # artifacts.stdout_cap_kb and a line about the gap
PARENT = "SEED = 1\n\nfrom kit import Bigram as build_model, train\n\n"
PARENT += "def main(run):\n    train(run, build_model(run))\n"


@dataclass(frozen=True)
class Case:
    """One candidate's file."""

    path: Path

    @property
    def name(self) -> str:
        """As a reader says it."""
        return self.path.stem.replace("_", " ")

    @property
    def is_cheat(self) -> bool:
        """Or an honest candidate."""
        return self.path.parent.name == "cheats"

    @cached_property
    def source(self) -> str:
        """The whole file."""
        return self.path.read_text()

    @cached_property
    def constants(self) -> dict[str, Any]:
        """What the file says of itself."""
        found = {}
        for node in ast.parse(self.source).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                try:
                    found[node.targets[0].id] = ast.literal_eval(node.value)
                except ValueError:
                    continue
        return found

    def says(self, name: str, default: Any) -> Any:
        """One constant of the file."""
        return self.constants.get(name, default)

    @property
    def expected(self) -> list[tuple[str, str]]:
        """(outcome, words of the reason), any of which will do."""
        text = self.says("CAUGHT", "scored")
        return [tuple((part + ": ").split(": ")[:2]) for part in text.split(" or ")]


@dataclass(frozen=True)
class Result:
    """What one trial of a case came to."""

    name: str
    is_right: bool
    verdict: str
    reason: str
    bpb: float | None  # of the first presentation: what it would have got without the audit
    problem: str = ""


def cases(folder: str, device: str = "cpu") -> list[Case]:
    """All of `folder` ("cheats" or "honest") that run on this kind of device."""
    found = [Case(path) for path in sorted((E2E / folder).glob("*.py"))]
    wanted = ("cpu", "cuda") if device.startswith("cuda") else ("cpu",)
    return [case for case in found if case.says("DEVICE", "cpu") in wanted]


class Gallery:
    """A lab for each kind of dataset, and the honest score that a cheat must not beat."""

    def __init__(self, folder: Path, *, is_stub: bool, device: str = "cpu", **trial: Any) -> None:
        self.folder = folder
        self.is_stub = is_stub
        self.device = device
        self.trial = {"score_rows_per_chunk": 32, "device": device, **trial}
        self._labs: dict[int, Lab] = {}
        self._honest: dict[int, float] = {}

    def close(self) -> None:
        """End all scorers."""
        for lab in self._labs.values():
            lab.close()

    def lab(self, context: int = CONTEXT) -> Lab:
        """The lab with rows of this length."""
        if context not in self._labs:
            folder = self.folder / f"context{context}"
            dataset = make_dataset(folder / "data", context)
            lab = Lab(folder, is_stub=self.is_stub, dataset=dataset)
            lab.host.inside_path = STUBS  # for the kit, in both harnesses
            lab.host.device = self.device
            lab.referee.scoring.limit_s = 60.0
            self._labs[context] = lab
            make_workspace(folder / "workspace")
        return self._labs[context]

    def honest_bpb(self, context: int = CONTEXT) -> float:
        """The honest table's score."""
        if context not in self._honest:
            measurement, failure = self._run_once(self.lab(context), PARENT, {})
            assert failure is None, failure
            assert measurement.val_bpb is not None, measurement.reason
            self._honest[context] = measurement.val_bpb
        return self._honest[context]

    def run(self, case: Case) -> Result:
        """One trial, as the session makes it: proposal, run, audit."""
        other_seed = case.source.replace("SEED = 2", "SEED = 1")
        parent = other_seed if "SEED" in case.constants else PARENT
        refusal = check_proposal(case.source, parent, History())
        if refusal is not None:
            is_right = self._fits(case, "refused", refusal.reason, None)
            return Result(case.name, is_right, "refused", refusal.reason, None)
        lab = self.lab(case.says("CONTEXT", CONTEXT))
        before = fingerprints(lab)
        limit_s = lab.referee.scoring.limit_s
        lab.referee.scoring.limit_s = case.says("SCORING_LIMIT_S", limit_s)
        parent = ""
        for _ in range(case.says("RUNS", 1)):
            trial = dict(case.says("TRIAL", {}))
            measurement, failure = self._run_once(lab, case.source, trial, parent)
            parent = measurement.commit
        lab.referee.scoring.limit_s = limit_s
        outcome = failure.outcome if failure else measurement.outcome
        reason = failure.reason if failure else measurement.reason
        problem = self._problem(lab, measurement, reason, before)
        is_right = self._fits(case, outcome.value, reason, measurement.val_bpb) and not problem
        return Result(case.name, is_right, outcome.value, reason, measurement.val_bpb, problem)

    def _run_once(
        self, lab: Lab, source: str, trial: dict[str, Any], parent: str = ""
    ) -> tuple[Measurement, TrialFailed | None]:
        """Run, then present once more as the session does before a keep, and keep what is kept."""
        settings = {**self.trial, **trial}
        lab.host.config = small_config(**settings)
        measurement = lab.run(source.replace("@FOLDER@", str(lab.folder)), cache_parent=parent)
        failure = None
        if measurement.outcome is Outcome.SCORED:
            try:
                lab.referee.audit(measurement.run_id)
            except TrialFailed as failed:
                failure = failed
            lab.host.cache.keep(measurement.run_id, measurement.commit)
        return measurement, failure

    def _fits(self, case: Case, outcome: str, reason: str, bpb: float | None) -> bool:
        for wanted, words in case.expected:
            if wanted == "no gain":
                honest = self.honest_bpb(case.says("CONTEXT", CONTEXT))
                if outcome == "scored" and bpb is not None and bpb > honest - LEAST_GAIN_BPB:
                    return True
            elif outcome == wanted and words in reason:
                return True
        return False

    def _problem(self, lab: Lab, run: Measurement, reason: str, before: dict[str, str]) -> str:
        """What got out, or was changed, or worked that should not have."""
        if got := run.reported.get("got"):
            return f"it got {got}"
        changed = [name for name, digest in fingerprints(lab).items() if before[name] != digest]
        if changed:
            return f"it changed {', '.join(changed)}"
        if "\n" in reason or len(reason) > 1000:
            return "its reason is more than a line"
        for path in (lab.folder / "runs" / run.artifacts).iterdir():
            if path.name != "train.py" and MARK in path.read_text():
                return f"{path.name} holds what a presenter wrote"
            if path.name == "stdout.log" and path.stat().st_size > MOST_STDOUT_BYTES:
                return f"{path.name} has {path.stat().st_size} bytes"
        return ""


def fingerprints(lab: Lab) -> dict[str, str]:
    """Digests of what no candidate may change."""
    package = Path(override.__code__.co_filename).parents[1]
    files = [*(lab.folder / "data").rglob("*"), *(lab.folder / "workspace").rglob("*")]
    files += [package / "referee" / "scorer.py", package / "inside" / "harness.py"]
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()
    }


def make_workspace(folder: Path) -> None:
    """What a person's workspace looks like to somebody who wants to change it."""
    for name in ("ledger.sqlite", "autoresearch.toml", "train.py", ".git/refs/heads/main"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("ours")


def make_dataset(folder: Path, context: int = CONTEXT) -> Dataset:
    """Rows of a Markov chain cut into documents; a quarter of the tokens go on otherwise in
    validation, so that adapting to it pays.
    """
    rng = np.random.default_rng(0)
    following = rng.integers(1, VOCAB, size=(VOCAB, 4))
    elsewhere = following.copy()
    elsewhere[3 * VOCAB // 4 :] = rng.integers(1, VOCAB, size=(VOCAB // 4, 4))
    folder.mkdir(parents=True)

    def rows(count: int, chain: np.ndarray) -> np.ndarray:
        table = np.zeros((count, context + 1), dtype="<u2")
        for t in range(1, context + 1):
            table[:, t] = chain[table[:, t - 1], rng.choice(4, size=count, p=(0.4, 0.3, 0.2, 0.1))]
            table[rng.random(count) < 1 / 64, t] = BOS
        return table

    num_rows = 512 if context == CONTEXT else 40
    files = {}
    for i, part in enumerate(np.array_split(rows(400 * CONTEXT // context, following), 3)):
        part.tofile(folder / f"train_{i:05d}.bin")
        files[f"train_{i:05d}.bin"] = {"bytes": part.nbytes, "sha256": ""}
    rows(num_rows, elsewhere).tofile(folder / "validation.bin")
    (folder / "holdout").mkdir()
    rows(16, elsewhere).tofile(folder / "holdout" / "holdout.bin")
    num_bytes = rng.integers(1, 6, size=VOCAB).astype(np.uint16)
    num_bytes[BOS] = 0
    for name in ("token_bytes", "token_bytes_decoded"):
        np.save(folder / f"{name}.npy", num_bytes)
    splits = {"train": {"rows": 400}, "validation": {"rows": num_rows}}
    manifest = {"key": "gallery", "digest": "gallery", "vocab_size": VOCAB, "context": context}
    manifest |= {"bos": BOS, "files": files, "splits": splits}
    holdout = folder / "holdout" / "holdout.bin"
    return Dataset(folder=folder, holdout_path=holdout, manifest=manifest)

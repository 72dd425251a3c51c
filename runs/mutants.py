"""Plants one bug at a time in a copy of the source tree and runs the tests of its invariant there.

A mutant is a piece of text that must occur exactly once in its file, and what replaces it; where it
does not occur any more this fails, so that the list cannot rot unnoticed. `python runs/mutants.py
6 7` does those invariants only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INVARIANTS = "tests/e2e/test_invariants.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One planted bug: in which file, what is replaced, and where its tests are."""

    invariant: int
    bug: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = (INVARIANTS,)


MUTANTS = (
    Mutant(
        invariant=1,
        bug="the trusted processes stay dumpable",
        file="system/procs.py",
        old="_prctl(_PR_SET_DUMPABLE, 0)",
        new="_prctl(_PR_SET_DUMPABLE, 1)",
    ),
    Mutant(
        invariant=1,
        bug="the scorer does not guard itself",
        file="referee/scorer.py",
        old="    guard_this_process()\n",
        new="",
    ),
    Mutant(
        invariant=2,
        bug="a reported score is taken for the result",
        file="referee/trial.py",
        old='facts.update(val_bpb=answer["val_bpb"]',
        new='facts.update(val_bpb=facts["reported"].get("val_bpb", answer["val_bpb"])',
    ),
    Mutant(
        invariant=3,
        bug="training tokens come before the clock has started",
        file="referee/training.py",
        old='self._send("load", [self.weights.fd],',
        new='self._send("load", [self.weights.fd, *self.host.shard_fds],',
    ),
    Mutant(
        invariant=3,
        bug="training tokens can be overwritten",
        file="wire/buffer.py",
        old='bytes while it was read")\n    buffer.freeze()\n',
        new='bytes while it was read")\n',
    ),
    Mutant(
        invariant=4,
        bug="weights may come ten seconds late",
        file="referee/training.py",
        old="GRACE_S, GRACE_FRAC = 0.5, 0.005",
        new="GRACE_S, GRACE_FRAC = 10.0, 0.005",
    ),
    Mutant(
        invariant=4,
        bug="clocks that run apart are not noticed",
        file="referee/training.py",
        old="if drift.seconds() > MOST_DRIFT_S:",
        new="if False:",
        tests=("tests/e2e/test_faults.py",),
    ),
    Mutant(
        invariant=4,
        bug="children that moved to another session survive",
        file="system/procs.py",
        old="for process in [root, *root.children(recursive=True)]:",
        new="for process in [root]:",
        tests=("tests/e2e/test_procs.py",),
    ),
    Mutant(
        invariant=4,
        bug="a run is not held to the baseline's time of scoring",
        file="search/session.py",
        old="            self._limit_scoring()\n            run_id",
        new="            run_id",
        tests=("tests/e2e/test_session.py",),
    ),
    Mutant(
        invariant=5,
        bug="the candidate lives on while its weights are taken",
        file="referee/training.py",
        old="        self.candidate.end()\n",
        new="",
    ),
    Mutant(
        invariant=5,
        bug="the weights are not frozen",
        file="referee/training.py",
        old="self.weights.freeze()",
        new="pass",
    ),
    Mutant(
        invariant=6,
        bug="the logits of the chunk before count again",
        file="referee/scorer.py",
        old="        self.logits.fill_(math.nan)\n        self._synchronize()\n        try:",
        new="        self._synchronize()\n        try:",
    ),
    Mutant(
        invariant=6,
        bug="an offset of the logits swallows the entropy",
        file="referee/scorer.py",
        old='[functional.cross_entropy(*row, reduction="none") for row in rows]',
        new="[a.logsumexp(-1) - a.gather(-1, b[:, None])[:, 0] for a, b in rows]",
    ),
    Mutant(
        invariant=6,
        bug="presenters can write the tokens",
        file="referee/scorer.py",
        old="        tokens.keep_for_me()\n",
        new="",
    ),
    Mutant(
        invariant=6,
        bug="presentations share one set of buffers",
        file="referee/scorer.py",
        old='channel.send("prepared", scorer.make_buffers())',
        new="shared = [buffer.fd for buffer in scorer._host_buffers]\n"
        '            channel.send("prepared", shared or scorer.make_buffers())',
    ),
    Mutant(
        invariant=7,
        bug="the token at the cut is not looked at",
        file="referee/audit.py",
        old="    starts = np.maximum(0, cut - near)",
        new="    cut = np.maximum(1, cut - 1)\n    starts = np.maximum(0, cut - near)",
        tests=(INVARIANTS, "tests/unit/test_audit.py"),
    ),
    Mutant(
        invariant=7,
        bug="decoys are asked for their own continuation",
        file="referee/scorer.py",
        old="self.rows[source, 1:]",
        new="torch.from_numpy(decoys.rows)[:, 1:]",
    ),
    Mutant(
        invariant=7,
        bug="what is kept was never audited",
        file="search/session.py",
        old="elif step.verdict is Verdict.KEEP and (cheat := self._audit_last(trial)):",
        new="elif step.verdict is Verdict.KEEP and (cheat := None):",
        tests=("tests/e2e/test_session.py",),
    ),
    Mutant(
        invariant=8,
        bug="data under a bound folder is visible",
        file="referee/host.py",
        old="self.dataset.folder,\n                self.dataset.holdout_path.parent,\n",
        new="",
    ),
    Mutant(
        invariant=8,
        bug="a presenter's words become the reason",
        file="referee/scorer.py",
        old='raise ScoringFailed(message.kind if known else "presenter_broke_protocol")',
        new="raise ScoringFailed(message.kind)",
        tests=("tests/unit/test_scorer_math.py",),
    ),
    Mutant(
        invariant=9,
        bug="the cache is taken after training",
        file="referee/trial.py",
        old="cache.stage(spec.run_id, candidate.cache)\n            training.train()\n",
        new="load_shards()\n            training.train()\n"
        "            self.host.cache.stage(spec.run_id, candidate.cache)\n",
    ),
    Mutant(
        invariant=10,
        bug="the candidate gets another seed than the record says",
        file="referee/host.py",
        old='"seed": spec.seed,',
        new='"seed": 0,',
    ),
    Mutant(
        invariant=10,
        bug="a change of nothing but the seed is run",
        file="search/proposal.py",
        old="if is_seed_only_change(parent_source, source):",
        new="if False:",
    ),
    Mutant(
        invariant=11,
        bug="a crash scores zero",
        file="referee/trial.py",
        old="facts.update(val_bpb=None, val_bpb_decoded=None)",
        new="facts.update(val_bpb=0.0, val_bpb_decoded=0.0)",
    ),
    Mutant(
        invariant=12,
        bug="any gain is believed at once",
        file="search/judge.py",
        old="if gain_frac > settings.implausible_gain_frac:",
        new="if False:",
    ),
)


def copy_package(folder: Path) -> Path:
    """A fresh copy of the package."""
    package = folder / "src" / "autoresearch"
    shutil.rmtree(package, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "autoresearch", package, ignore=ignored)
    return package


def plant(mutant: Mutant, folder: Path) -> None:
    """A fresh copy of the package with the bug in it.

    Raises:
        SystemExit: the text to replace is not there exactly once.
    """
    path = copy_package(folder) / mutant.file
    text = path.read_text()
    if (count := text.count(mutant.old)) != 1:
        sys.exit(
            f"{mutant.file} has {count} times, expected once:\n{mutant.old}\nmend runs/mutants.py"
        )
    path.write_text(text.replace(mutant.old, mutant.new))


def run_tests(tests: tuple[str, ...], folder: Path, invariant: int = 0) -> str:
    """The first test that fails, or ""; of test_invariants.py only those of `invariant`."""
    options = ["-x", "-q", "--no-header", "-rfE", "-p", "no:cacheprovider", "-p", "no:randomly"]
    options += ["--deselect", f"{INVARIANTS}::test_invariant_08_scoring_text_is_in_no_visible_file"]
    if invariant and INVARIANTS in tests:
        options += ["-k", f"invariant_{invariant:02d} or unit"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=folder,
        env={**env, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    failures = re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", done.stdout, re.MULTILINE)
    if done.returncode != bool(failures):
        sys.exit(f"the tests {tests} did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failures[0] if failures else ""


def main() -> None:
    """All mutants, or those of some invariants; exit code 1 where one is missed."""
    wanted = {int(word) for word in sys.argv[1:]} or {mutant.invariant for mutant in MUTANTS}
    mutants = [mutant for mutant in MUTANTS if mutant.invariant in wanted]
    num_caught = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        shutil.copytree(ROOT / "tests", folder / "tests")
        shutil.copy(ROOT / "pyproject.toml", folder)
        copy_package(folder)
        files = tuple(sorted({file for mutant in mutants for file in mutant.tests}))
        if broken := run_tests(files, folder):
            sys.exit(f"{broken} fails without any bug; mend that first")
        print("| invariant | planted bug | caught by |\n|---|---|---|")
        for mutant in mutants:
            plant(mutant, folder)
            test = run_tests(mutant.tests, folder, mutant.invariant)
            num_caught += bool(test)
            print(f"| {mutant.invariant} | {mutant.bug} | {test or '**not caught**'} |", flush=True)
    print(f"caught {num_caught} of {len(mutants)}")
    sys.exit(num_caught < len(mutants))


if __name__ == "__main__":
    main()

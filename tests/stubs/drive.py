"""A whole session in a process of its own, to be killed: python drive.py FOLDER MAX_TRIALS [TABLES]

TABLES is JSON: settings by table, and with them the researcher that they name. Real git, ledger,
referee and sandbox; candidates and scorer are the stubs. Running it again goes on from the ledger.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from lab import Lab, make_dataset

from autoresearch.referee import peer, scoring
from autoresearch.search.branch import Branch
from autoresearch.search.ledger import Ledger
from autoresearch.search.researchers import Desk, make_researcher
from autoresearch.search.researchers.random import RandomResearcher
from autoresearch.search.session import Session
from autoresearch.system.git import Repository
from autoresearch.system.procs import spawn
from autoresearch.values.config import override
from autoresearch.wire.channel import Channel

TRAIN = """
import array
import time

from stubinside import Unigram

GAIN = 0.3  # how far the logits are stretched [0.2, 2.0]
SLEEP_S = 0.05  # seconds of training


class Model(Unigram):
    def answer(self, tokens):
        table = array.array("f", self.weights)
        return array.array("f", [x * GAIN for x in table]).tobytes() * sum(map(len, tokens))


def build_model(run):
    return Model(run)


def main(run):
    run.start()
    run.report(step=1)
    time.sleep(SLEEP_S)
    run.submit(Unigram.train(run))
"""


PROGRAM = "# The task\nFind the train.py with the lowest val_bpb.\nKeep the scorer as it is.\n"


class Silent:
    """An observer that sees nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def open_stub_scorer(env: dict[str, str]) -> peer.Peer:
    """As peer.open_scorer, for the stub."""
    ours, theirs = Channel.pair()
    path = Path(__file__).with_name("stubscorer.py")
    env = {"PYTHONPATH": ":".join(sys.path), **env}
    argv = [sys.executable, "-P", str(path), str(theirs.fileno())]
    tree = spawn(argv, env=env, pass_fds=[theirs.fileno()], output_cap_bytes=1 << 16)
    theirs.close()
    return peer.Peer("scorer", tree, ours)


def prepare(folder: Path) -> Repository:
    """The workspace and its data, made at the first call that nobody cuts off."""
    if (folder / "ready").exists():
        return Repository(folder / "workspace")
    for half in ("data", "workspace"):
        shutil.rmtree(folder / half, ignore_errors=True)
    make_dataset(folder / "data", num_train=60, num_validation=24)
    (folder / "workspace").mkdir()
    repository = Repository.create(folder / "workspace")
    (folder / "workspace" / "train.py").write_text(TRAIN)
    (folder / "workspace" / "program.md").write_text(PROGRAM)
    repository.commit_files(["program.md", "train.py"], "start")
    (folder / "ready").touch()
    return repository


def open_lab(folder: Path) -> Lab:
    """The referee over what `prepare` made."""
    from autoresearch.data.dataset import Dataset

    files = {path.name: {} for path in (folder / "data").glob("train_*.bin")}
    manifest = {"vocab_size": 300, "context": 24, "bos": 0, "files": files}
    holdout = folder / "data" / "holdout" / "holdout.bin"
    return Lab(
        folder, dataset=Dataset(folder=folder / "data", holdout_path=holdout, manifest=manifest)
    )


def main() -> None:
    """One session, until MAX_TRIALS trials are closed."""
    folder, max_trials = Path(sys.argv[1]), int(sys.argv[2])
    scoring.open_scorer = open_stub_scorer
    repository = prepare(folder)
    lab = open_lab(folder)
    tables = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    config = override(
        lab.host.config,
        judge={"policy": "greedy", "calibration_runs": 2, "implausible_gain_frac": 9.0},
        session={"max_trials": max_trials, "tag": "kill"},
        confirm={"at_end": "DRIVE_CONFIRMS" in os.environ, "runs": 3},
        disturbed={"rerun": "off"},  # other tests' load is no reason to judge nothing here
        **tables,
    )
    lab.host.config = config
    branch = Branch(repository, "kill")
    baseline = branch.start()
    with Ledger.open(folder / "ledger.sqlite") as ledger, lab.referee as referee:
        ledger.start_session(config, branch.name, baseline, {})
        desk = Desk(
            config=config,
            ledger=ledger,
            branch=branch,
            root=folder / "workspace",
            runs_folder=folder / "runs",
            environment=os.environ,
        )
        researcher = RandomResearcher(seed=1)
        if tables:
            researcher = make_researcher(config.researcher, None, desk)
        session = Session(config, ledger, branch, referee, researcher, Silent(), folder / "runs")
        print(session.run(), flush=True)


if __name__ == "__main__":
    main()

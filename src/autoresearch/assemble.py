"""Puts a session together from a workspace: sandbox, data, referee, ledger, branch, researcher.

The commands that run candidates meet here; each opens what it needs and closes it whatever happens.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autoresearch.data.dataset import Dataset, open_dataset
from autoresearch.referee.cache import CompileCache
from autoresearch.referee.host import Host, RunSpec
from autoresearch.referee.scoring import weights_from
from autoresearch.referee.training import Watch, never_stop
from autoresearch.referee.trial import Referee
from autoresearch.search.branch import Branch
from autoresearch.search.ledger import Ledger
from autoresearch.search.observer import Observer
from autoresearch.search.proposal import nearer_baseline
from autoresearch.search.researchers import Desk, Researcher, make_researcher
from autoresearch.search.researchers.hand import HandResearcher
from autoresearch.search.session import Session
from autoresearch.system import hardware
from autoresearch.system.clock import Clock, SystemClock
from autoresearch.system.files import cache_home
from autoresearch.system.procs import guard_this_process
from autoresearch.system.sandbox import open_sandbox
from autoresearch.values.config import Config, override
from autoresearch.values.errors import UserError
from autoresearch.values.records import Measurement, Purpose, Trial
from autoresearch.workspace import Workspace

BUSY_POLL_S = 15.0
_NO_OTHER_LIMITS = {"max_hours": 0.0, "target_bpb": 0.0, "plateau_trials": 0}


@contextmanager
def open_referee(
    workspace: Workspace, config: Config, clock: Clock | None = None, dataset: Dataset | None = None
) -> Iterator[Referee]:
    """A referee for the workspace's device and data.

    Raises:
        DataError: the data is not prepared, or altered.
        SandboxUnavailable: the level asked for does not work here.
    """
    guard_this_process()
    clock = clock or SystemClock()
    device = hardware.pick_device(config.trial.device)
    host = Host(
        config=config,
        dataset=dataset or open_dataset(config.data, cache_home()),
        sandbox=open_sandbox(config.sandbox.level, device),
        device=device,
        clock=clock,
        cache=CompileCache(workspace.cache_folder),
    )
    await_device(config, device, clock)
    with Referee(host) as referee:
        yield referee


def await_device(config: Config, device: str, clock: Clock) -> None:
    """Wait until nobody else uses the device, or refuse, as the configuration says.

    Raises:
        UserError: it is busy and `busy_device` is "refuse".
    """
    while config.trial.busy_device != "ignore" and (reason := hardware.is_busy(device)):
        if config.trial.busy_device == "refuse":
            raise UserError(
                f"{device} is busy: {reason}; free it, or set busy_device under [trial] to 'wait'"
            )
        print(f"waiting for {device}: {reason}", file=sys.stderr, flush=True)
        clock.sleep(BUSY_POLL_S)


@contextmanager
def open_session(
    workspace: Workspace,
    config: Config,
    observer: Observer,
    clock: Clock | None = None,
    researcher: Researcher | None = None,
) -> Iterator[Session]:
    """Everything that the loop needs, with the ledger's lock held.

    `researcher` stands in for the configured one.

    Raises:
        WorkspaceError: train.py has changes that the session would pass over, or another session
            is at work here.
        TrustViolation: git lacks commits of the ledger.
        UserError: the configured researcher lacks something; nothing is written down then.
    """
    branch = Branch(workspace.repository, config.session.tag)
    if researcher is None:
        workspace.require_start(branch)
    with Ledger.open(workspace.ledger_path) as ledger:
        branch.require_commits(ledger.history(branch.name))
        desk = Desk(
            config=config,
            ledger=ledger,
            branch=branch,
            root=workspace.root,
            runs_folder=workspace.runs_folder,
            environment=os.environ,
        )
        chosen = researcher or make_researcher(config.researcher, workspace.root, desk)
        with open_referee(workspace, config, clock) as referee:
            _start(ledger, config, branch, referee)
            yield Session(config, ledger, branch, referee, chosen, observer, workspace.runs_folder)


def _start(ledger: Ledger, config: Config, branch: Branch, referee: Referee) -> None:
    """Write down that a session begins, and on which machine: nothing that it needs is missing."""
    baseline = branch.start()
    host = hardware.describe_machine(referee.host.device)
    host["sandbox"] = referee.host.sandbox.level
    host["data_digest"] = referee.host.dataset.digest
    ledger.start_session(config, branch.name, baseline, host, branch.read(baseline))


def try_out(
    workspace: Workspace, config: Config, description: str, observer: Observer
) -> tuple[Trial, bool]:
    """Judge the train.py on the disk as a trial, then put the champion's there; the trial, and
    whether that was done: a file that was edited meanwhile is left alone.

    The loop's own session does it, so all that holds for a night holds here: calibration first,
    fresh seeds, replicates, audits. A trial that a death left open is finished before.

    Raises:
        UserError: the edit was turned down before it cost a run.
        Interrupted: Ctrl-C twice; train.py stays as it is.
    """
    edit = workspace.read_train()
    researcher = HandResearcher(edit, description)
    name = Branch(workspace.repository, config.session.tag).name
    with Ledger.open(workspace.ledger_path) as ledger:
        before = ledger.history(name)
    limits = {"max_trials": len(before.trials) + 1, **_NO_OTHER_LIMITS}
    config = override(config, session=limits, confirm={"at_end": False})  # one trial was asked for
    with open_session(workspace, config, observer, researcher=researcher) as session:
        history, read = session.history, session.branch.read
        champions = f"`git show {name}:train.py > train.py`"
        if doubt := nearer_baseline(edit, read(history.baseline), read(history.champion)):
            observer.note(f"{doubt}; to edit the champion's file: {champions}")
        reason = session.run()
        history = session.history
        if len(history.trials) == len(before.trials):
            refusals = history.refusals[len(before.refusals) :]
            why = refusals[-1].reason if refusals else reason
            raise UserError(
                f"not run: {why}; change train.py and try again, the champion's is {champions}"
            )
        return history.trials[-1], workspace.replace_train(edit, read(history.champion))


def note_session(ledger: Ledger, config: Config, branch: Branch, referee: Referee) -> None:
    """A session for single runs to belong to, where the branch has none yet."""
    history = ledger.history(branch.name)
    branch.require_commits(history)
    if not history.sessions:
        _start(ledger, config, branch, referee)
        ledger.stop_session("a single run")


def train_once(
    workspace: Workspace,
    config: Config,
    source: str,
    *,
    commit: str,
    description: str,
    seed: int,
    parent: str = "",
    watch: Watch = never_stop,
    is_script: bool = False,
) -> Measurement:
    """One audited run of `source`, written down as a run of no trial; its weights are saved.

    `commit` is the commit that holds the source, or a text that is none where nothing does;
    `parent` the one whose compile caches it starts from, which this run makes where it is the same.
    A script of the reference's kind (`is_script`) has neither audit nor weights.
    """
    branch = Branch(workspace.repository, config.session.tag)
    with (
        Ledger.open(workspace.ledger_path) as ledger,
        open_referee(workspace, config) as referee,
    ):
        note_session(ledger, config, branch, referee)
        history = ledger.history(branch.name)
        if not is_script:  # a script has a pace of its own, and is never kept
            referee.scoring.limit_by(history.runs_of(history.baseline))
        run_id = history.next_run_id
        spec = RunSpec(
            run_id=run_id,
            source=source,
            commit=commit,
            purpose=Purpose.TRAIN,
            seed=seed,
            artifacts=workspace.runs_folder / f"{run_id:06d}",
            is_audited=not is_script,
            is_script=is_script,
            cache_parent=parent,
        )
        measurement = referee.run(spec, watch)
        if referee.has_weights(run_id):
            referee.save_weights(run_id, spec.artifacts / "weights.safetensors")
        if measurement.is_scored and commit == parent:
            referee.host.cache.keep(run_id, commit)
        ledger.record_run(measurement, None)
        ledger.note("train", f"run {run_id}: {description}")
        return measurement


def sample(
    workspace: Workspace, config: Config, prompt: str, count: int, temperature: float, seed: int
) -> str:
    """Text that the champion goes on with after `prompt`, computed behind the walls that scoring
    uses.

    Raises:
        UserError: no kept trial has its weights on disk.
    """
    folder = champion_artifacts(workspace)
    dataset = open_dataset(config.data, cache_home())
    with open_referee(workspace, config, dataset=dataset) as referee:
        spec = RunSpec(
            run_id=0,
            source=(folder / "train.py").read_text(),
            commit="",
            purpose=Purpose.TRAIN,
            seed=seed,
            artifacts=folder,
        )
        weights = weights_from(folder / "weights.safetensors")
        tokenizer = dataset.load_tokenizer()
        tokens = [dataset.bos, *map(int, tokenizer.encode(prompt))]
        return tokenizer.decode(referee.generate(spec, weights, tokens, count, temperature))


def champion_artifacts(workspace: Workspace) -> Path:
    """The folder of the run whose weights stand for the champion.

    Raises:
        UserError: there is none.
    """
    with Ledger.read(workspace.ledger_path) as ledger:
        history = ledger.history()
    for run in reversed(history.runs):
        folder = workspace.runs_folder / run.artifacts
        if run.commit == history.champion and (folder / "weights.safetensors").is_file():
            return folder
    raise UserError(
        "no run of the champion has its weights on disk (only kept trials keep them); "
        "make some with `autoresearch train`"
    )


def collect_garbage(workspace: Workspace, config: Config) -> int:
    """Remove the oldest weights beyond the disk cap, never the champion's; the bytes freed."""
    folders = sorted(workspace.runs_folder.glob("*/weights.safetensors"))
    spared = set()
    if folders:
        with suppress(UserError):
            spared.add(champion_artifacts(workspace) / "weights.safetensors")
    total = sum(path.stat().st_size for path in folders)
    freed = 0
    for path in folders:
        if total - freed <= config.artifacts.disk_cap_gb * 2**30:
            break
        if path not in spared:
            freed += path.stat().st_size
            path.unlink()
    return freed

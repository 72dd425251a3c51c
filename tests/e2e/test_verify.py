"""`autoresearch verify` after a real session: it agrees, and every kind of tampering is named."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import drive
import pytest

from autoresearch import cli
from autoresearch.data import dataset as data
from autoresearch.referee import scoring
from autoresearch.search.ledger import Ledger
from autoresearch.search.researchers.scripted import ScriptedEdit, ScriptedResearcher
from autoresearch.system.files import sha256_file
from autoresearch.system.git import Repository
from autoresearch.values.config import Config, override
from autoresearch.workspace import render_config

HEAD = "refs/heads/autoresearch/kill"
TRIAL = "refs/autoresearch/kill/trials/0001"
Verify = Callable[..., tuple[int, dict[str, object]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished session of two trials, one of them kept; its ledger is in the workspace."""
    folder = tmp_path_factory.mktemp("verify") / "made"
    folder.mkdir()
    edits = [ScriptedEdit(constants={"GAIN": gain}) for gain in (1.0, 0.2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drive, "RandomResearcher", lambda seed: ScriptedResearcher(edits))
        patch.setattr(scoring, "open_scorer", scoring.open_scorer)  # put back what main() sets
        patch.setattr(sys, "argv", ["drive.py", str(folder), "2"])
        drive.main()
    workspace = folder / "workspace"
    (workspace / ".autoresearch").symlink_to("..")
    config = override(Config(), session={"tag": "kill"})
    (workspace / "autoresearch.toml").write_text(render_config(config))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to tamper with, and its data."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy, symlinks=True)
    files = {path.name: path for path in (copy / "data").iterdir() if path.is_file()}
    entries = {
        name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for name, path in {**files, "holdout": copy / "data" / "holdout" / "holdout.bin"}.items()
    }
    manifest = {"digest": "tiny", "holdout": entries.pop("holdout"), "files": entries}
    opened = data.Dataset(
        folder=copy / "data",
        holdout_path=copy / "data" / "holdout" / "holdout.bin",
        manifest=manifest,
    )
    monkeypatch.setattr(data, "open_dataset", lambda *_: opened)
    return copy


@pytest.fixture
def verify(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Verify:
    """Exit code and JSON of the command."""

    def _verify() -> tuple[int, dict[str, object]]:
        argv = ["autoresearch", "verify", "-w", str(folder / "workspace"), "--json"]
        monkeypatch.setattr(sys, "argv", argv)
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, json.loads(capsys.readouterr().out)

    return _verify


def kept_run(folder: Path) -> Path:
    """The folder of the run whose weights were kept."""
    (weights,) = (folder / "runs").glob("*/weights.safetensors")
    return weights.parent


def test_a_session_left_alone_agrees(verify: Verify) -> None:
    """Everything was looked at and nothing is wrong."""
    code, answer = verify()
    assert (code, answer["agrees"], answer["findings"]) == (0, True, [])
    assert (answer["num_trials"], answer["num_events"]) == (2, answer["num_events"])
    assert int(str(answer["num_runs"])) >= 4
    assert len(str(answer["head_hash"])) == 64


def alter_event(folder: Path) -> None:
    """A better score in the ledger."""
    connection = sqlite3.connect(folder / "ledger.sqlite")
    connection.execute("DROP TRIGGER events_stay_unchanged")
    connection.execute(
        "UPDATE events SET body = replace(body, 'scored', 'crash') WHERE kind = 'record_run'"
    )
    connection.commit()
    connection.close()


def drop_table(folder: Path) -> None:
    """No events at all."""
    connection = sqlite3.connect(folder / "ledger.sqlite")
    for trigger in ("events_stay_unchanged", "events_stay_there"):
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.executescript("DROP VIEW runs; DROP VIEW trials; DROP TABLE events;")
    connection.close()


def move_branch(folder: Path) -> None:
    """The research branch back at the baseline, after the session's end."""
    repository = Repository(folder / "workspace")
    at = repository.resolve(HEAD)
    repository.set_ref(HEAD, repository.head(), at)


def move_trial(folder: Path) -> None:
    """A trial's ref at another commit."""
    repository = Repository(folder / "workspace")
    repository.set_ref(TRIAL, repository.head(), repository.resolve(TRIAL))


def lose_trial(folder: Path) -> None:
    """A trial's ref removed."""
    repository = Repository(folder / "workspace")
    repository._run("update-ref", "-d", TRIAL)


def plant_ref(folder: Path) -> None:
    """A ref that no trial made."""
    repository = Repository(folder / "workspace")
    repository.set_ref("refs/autoresearch/kill/trials/0099", repository.head(), None)


def lose_objects(folder: Path) -> None:
    """The kept commit's object removed."""
    repository = Repository(folder / "workspace")
    commit = repository.resolve(HEAD) or ""
    path = repository.path / ".git" / "objects" / commit[:2] / commit[2:]
    path.chmod(0o600)
    path.unlink()


def rewrite(name: str) -> Callable[[Path], None]:
    """Another text in a file of the kept run."""

    def tamper(folder: Path) -> None:
        path = kept_run(folder) / name
        text = path.read_bytes()
        path.write_bytes(text.replace(b"1", b"2") if name.endswith("json") else text[:-1] + b"\n#")

    return tamper


def lose_measurement(folder: Path) -> None:
    """A measurement removed."""
    (kept_run(folder) / "measurement.json").unlink()


def alter_data(folder: Path) -> None:
    """Easier validation text of the same length."""
    path = folder / "data" / "validation.bin"
    path.write_bytes(bytes(path.stat().st_size))


def change_data(folder: Path) -> None:
    """A session that says it used other data."""
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        history = ledger.history()
        host = {"data_digest": "another"}
        ledger.start_session(history.sessions[0].config, history.branch, history.baseline, host)
        ledger.stop_session("test")


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (alter_event, "was altered: its hash does not fit"),
        (drop_table, "cannot be read (no such table"),
        (move_branch, f"{HEAD} is at"),
        (move_trial, f"{TRIAL} is at"),
        (lose_trial, f"{TRIAL} is missing"),
        (plant_ref, "0099 is at"),
        (lose_objects, "git"),
        (rewrite("measurement.json"), "measurement.json is not what the ledger recorded"),
        (lose_measurement, "measurement.json is missing"),
        (rewrite("train.py"), "train.py has sha256"),
        (rewrite("weights.safetensors"), "weights.safetensors has sha256"),
        (alter_data, "validation.bin has sha256"),
        (change_data, "used data another"),
    ],
)
def test_what_was_tampered_with_is_named(
    folder: Path, verify: Verify, tamper: Callable[[Path], None], words: str
) -> None:
    """Exit code 3, what does not agree, and what to do."""
    tamper(folder)
    code, answer = verify()
    assert (code, answer["agrees"]) == (3, False)
    findings = answer["findings"]
    assert isinstance(findings, list)
    assert any(words in finding["what"] for finding in findings), findings
    assert all(finding["remedy"] and not finding["is_harmless"] for finding in findings)


def test_what_a_death_left_unfinished_is_no_violation(folder: Path, verify: Verify) -> None:
    """The ledger ahead of git while no stop is recorded: the next session finishes it."""
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        history = ledger.history()
        config = history.sessions[0].config
        ledger.start_session(config, history.branch, history.baseline, {})
    repository = Repository(folder / "workspace")
    repository._run("update-ref", "-d", "refs/autoresearch/kill/trials/0002")
    repository.set_ref(HEAD, repository.head(), repository.resolve(HEAD))
    code, answer = verify()
    findings = answer["findings"]
    assert isinstance(findings, list)
    assert (code, answer["agrees"], len(findings)) == (0, True, 2)
    assert all("autoresearch run" in finding["remedy"] for finding in findings)


def test_people_get_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong, what to do, and a count."""
    alter_data(folder)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(sys, "argv", ["autoresearch", "verify", "-w", str(folder / "workspace")])
    with monkey.context(), pytest.raises(SystemExit):
        cli.main()
    monkey.undo()
    out = capsys.readouterr().out
    assert "WRONG " in out
    assert "-> " in out
    assert out.rstrip().endswith("do not agree")


def test_a_ledger_whose_session_died_while_making_it_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file is no violation: nothing was recorded, and `run` goes on."""
    for path in folder.glob("ledger.sqlite*"):
        os.unlink(path)
    (folder / "ledger.sqlite").touch()
    argv = ["autoresearch", "verify", "-w", str(folder / "workspace")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "nothing was recorded" in capsys.readouterr().err

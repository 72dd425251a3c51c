"""The arena with real processes and repositories; tests/unit/test_arena.py has its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoresearch import arena
from autoresearch.arena_rules import open_rules
from autoresearch.search.ledger import Ledger
from autoresearch.values.errors import UserError, WorkspaceError
from autoresearch.views.arena import Entry
from autoresearch.workspace import init


def test_an_entry_is_read_from_its_ledger(tmp_path: Path) -> None:
    """Pairs of the present champion count; a workspace without a session is an empty entry."""
    workspace = init(tmp_path / "tpe-02", "demo")
    assert arena.read_entry(workspace.root) == Entry(researcher="tpe", repeat=2)
    baseline = workspace.repository.head()
    with Ledger.open(workspace.ledger_path) as ledger:
        ledger.start_session(workspace.config, "autoresearch/main", baseline, {})
        for commit in (baseline, "0" * 40):
            ledger.append("arena_pair", commit=commit, baseline=2.5, champion=2.25)
    entry = arena.read_entry(workspace.root)
    assert (entry.pairs, entry.fresh_gain, entry.cost_usd) == (((2.5, 2.25),), 0.25, 0)
    assert entry.history.baseline == baseline


def test_an_arena_wants_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workspace, a folder with other files and a file are refused, and nothing is put there."""
    made = init(tmp_path / "w", "demo")
    before = sorted(made.root.iterdir())
    with pytest.raises(WorkspaceError, match="is a workspace already"):
        open_rules(made.root, {})
    assert sorted(made.root.iterdir()) == before
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkspaceError, match=r"not empty \(it holds w\).*`autoresearch arena /"):
        open_rules(Path(), {})
    with pytest.raises(WorkspaceError, match="is a file, expected a new or an empty folder"):
        open_rules(made.root / "train.py", {})
    assert open_rules(made.root / "duel", {}).trials == 30


def test_sessions_that_fail_are_told_and_time_ends_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One workspace's session fails, another runs on until it is stopped; nobody is left."""
    code = "import sys, time; 'bad' in __file__ and sys.exit('broke'); time.sleep(60)"
    monkeypatch.setattr(arena, "read_entry", lambda path: Entry(researcher=path.name, repeat=1))
    monkeypatch.setattr(arena, "LAST_TRIAL_S", 0.2)
    monkeypatch.setattr(arena, "_SESSION", code.replace("__file__", "__import__('os').getcwd()"))
    for name in ("bad-01", "good-01"):
        (tmp_path / name).mkdir()
    said: list[str] = []
    rules = arena.Rules(researchers=("bad", "good"), repeats=1)
    tasks = arena._plan(["bad-01", "good-01"], jobs=1)
    table = arena._Table(tmp_path, rules, said.append, tasks, [-1])
    while not (said and table._seats):
        table.seat_and_collect()
    process = table._seats[-1][1]
    assert table.stop() is False
    assert process.returncode is not None
    assert table.problems == {"bad-01": "broke"}
    assert said == ["bad-01: failed: broke"]
    with pytest.raises(UserError, match="as many cores"):
        arena.play(tmp_path, rules, jobs=10_000, minutes=0, report=said.append)

"""The ledger's file: its table of events, its views, and how it is made and brought up to date."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from autoresearch.values.errors import WorkspaceError

_WAIT_S = 30.0  # for a checkpoint that holds the file; there is no second writer to wait for

_TABLE = """
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL,
    body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL
);
CREATE TRIGGER events_stay_unchanged BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER events_stay_there BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
"""

_VIEWS = """
CREATE VIEW runs AS SELECT
    seq, at,
    json_extract(body, '$.run.run_id') AS run_id,
    json_extract(body, '$.trial_id') AS trial_id,
    json_extract(body, '$.run.commit') AS commit_id,
    json_extract(body, '$.run.purpose') AS purpose,
    json_extract(body, '$.run.outcome') AS outcome,
    json_extract(body, '$.run.reason') AS reason,
    json_extract(body, '$.run.val_bpb') AS val_bpb,
    json_extract(body, '$.run.val_bpb_decoded') AS val_bpb_decoded,
    json_extract(body, '$.run.seed') AS seed,
    json_extract(body, '$.run.budget_s') AS budget_s,
    json_extract(body, '$.run.training_s') AS training_s,
    json_extract(body, '$.run.total_s') AS total_s,
    json_extract(body, '$.run.peak_memory_mb') AS peak_memory_mb,
    json_extract(body, '$.run.device') AS device,
    json_extract(body, '$.run.sandbox') AS sandbox,
    json_extract(body, '$.run.reported') AS reported
FROM events WHERE kind = 'record_run';
CREATE VIEW trials AS SELECT
    opened.seq, opened.at,
    json_extract(opened.body, '$.trial_id') AS trial_id,
    json_extract(opened.body, '$.commit') AS commit_id,
    json_extract(opened.body, '$.parent') AS parent_id,
    json_extract(opened.body, '$.researcher') AS researcher,
    json_extract(opened.body, '$.description') AS description,
    json_extract(opened.body, '$.parameters') AS parameters,
    json_extract(closed.body, '$.decision.verdict') AS verdict,
    json_extract(closed.body, '$.decision.reason') AS reason,
    json_extract(closed.body, '$.decision.val_bpb') AS val_bpb,
    json_extract(closed.body, '$.decision.gain_bpb') AS gain_bpb
FROM events AS opened LEFT JOIN events AS closed
    ON closed.kind = 'close_trial'
    AND json_extract(closed.body, '$.trial_id') = json_extract(opened.body, '$.trial_id')
WHERE opened.kind = 'open_trial';
"""

MIGRATIONS: list[str] = [_TABLE, _VIEWS]
"""Schema changes in order; `PRAGMA user_version` counts those done. Append, never edit."""


def connect(path: Path, options: str) -> sqlite3.Connection:
    """Open the file with SQLite's URI `options`, such as "mode=ro".

    Raises:
        WorkspaceError: it is no SQLite file, or cannot be opened.
    """
    uri = f"file:{quote(str(path.absolute()))}?{options}"
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_WAIT_S)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        if connection:
            connection.close()
        raise _unopened(path, error) from error
    return connection


def _unopened(path: Path, error: sqlite3.Error) -> WorkspaceError:
    """A full disk or a locked folder is no damage, and nothing to move the file away for."""
    remedy = "move it away or restore it from a copy"
    if isinstance(error, sqlite3.OperationalError):
        remedy = f"free space or mend the permissions of {path.parent}, then run the command again"
    return WorkspaceError(f"{path} cannot be opened as a ledger: {error}; {remedy}")


def make(path: Path) -> None:
    """An empty ledger at `path`, made beside it: a death in the middle leaves none."""
    new = path.with_name(path.name + ".new")
    for leftover in path.parent.glob(new.name + "*"):
        leftover.unlink()
    connection = connect(new, "mode=rwc")
    try:
        migrate(new, connection)
    finally:
        connection.close()
    new.replace(path)


def check_version(path: Path, connection: sqlite3.Connection) -> int:
    """How many of the migrations were done.

    Raises:
        WorkspaceError: more than we know; the connection is closed.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        connection.close()
        raise WorkspaceError(
            f"{path} was written by a newer autoresearch (schema {version}, this one knows "
            f"{len(MIGRATIONS)}); upgrade with `pip install -U autoresearch`"
        )
    return version


def migrate(path: Path, connection: sqlite3.Connection) -> None:
    """Do the migrations that are missing; from then on each commit is on the disk.

    Raises:
        WorkspaceError: the file is a newer version's, or the disk is full.
    """
    version = check_version(path, connection)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=1")  # macOS: fsync alone stops at the drive's cache
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            connection.executescript(f"BEGIN; {script} PRAGMA user_version={number}; COMMIT;")
    except sqlite3.Error as error:
        raise _unopened(path, error) from error

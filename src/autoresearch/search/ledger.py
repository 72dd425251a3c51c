"""The durable record: one SQLite table of events that only grows, chained by hashes.

What holds:
* An `append` that returned is on the disk: `kill -9`, power loss (as far as the disk keeps its
  word) and a full disk lose nothing that was acknowledged, and leave no half event.
* One writer. A second one is refused with the pid of the first; readers need no permission and
  see whole events while the writer works.
* Each row's hash covers its number, time, kind and body and the hash before it: `verify` names the
  first row that was changed, removed or moved. Rows cut off at the end show because SQLite
  remembers the highest number given out.

What does not: somebody who may write the file can also write a whole new chain. Compare
`head_hash` with a copy kept elsewhere (a commit message, say) where that matters.

`seq` is the order of events. `at` (Unix time) is for people: a clock that jumps changes nothing.
The views `trials` and `runs` are for the sqlite3 command and other readers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from autoresearch.search.history import Event, Fold, History
from autoresearch.search.schema import check_version, connect, make, migrate
from autoresearch.system.files import hold_lock
from autoresearch.values.constants import fingerprint, parse_constants
from autoresearch.values.errors import (
    AutoresearchError,
    TrustViolation,
    UserError,
    WorkspaceError,
)
from autoresearch.values.records import Decision, Measurement, Proposal, to_json

__all__ = ["Event", "History", "Ledger"]

_GENESIS = "0" * 64
_COMPARABLE = {  # settings that must not change on a branch: scores would not compare
    "data": ("corpus", "path", "num_shards", "vocab_size", "context", "score_tokens"),
    "trial": ("budget_s", "device", "threads"),
}


class Ledger:
    """The ledger of a workspace: `open` for the session that writes, `read` for all others."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: ExitStack) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock
        self._fold = Fold()

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Become the writer; the file is made where there is none, whole or not at all.

        Raises:
            WorkspaceError: another process writes (its pid is in the message), or the file is no
                ledger or a newer version's.
        """
        lock = ExitStack()
        lock.enter_context(hold_lock(path.with_name(path.name + ".lock"), f"ledger {path}"))
        try:
            if not path.exists() or not path.stat().st_size:
                make(path)
            connection = connect(path, "mode=rw")
            migrate(path, connection)
        except BaseException:
            lock.close()
            raise
        return cls(path, connection, lock)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Read only, beside a writer or without one.

        Raises:
            WorkspaceError: there is none, or a session died while it made it; or it is no ledger.
        """
        if not path.exists():
            raise WorkspaceError(
                f"there is no ledger at {path}; `autoresearch run` starts one, in the workspace"
            )
        # Readers share a small file with the writer; in a folder that we may not write there is
        # no place for it, and unless a writer left one there, nobody writes.
        has_wal = path.with_name(path.name + "-wal").exists()
        mode = "mode=ro" if has_wal or os.access(path.parent, os.W_OK) else "immutable=1"
        connection = connect(path, mode)
        if check_version(path, connection) == 0:
            connection.close()
            raise WorkspaceError(
                f"{path} has no table of events, so nothing was recorded: a session died while it "
                "made the file, or makes it now; `autoresearch run` goes on"
            )
        return cls(path, connection, ExitStack())

    def append(self, kind: str, /, **body: Any) -> int:
        """Add one event; when this returns its number, the event is on the disk.

        Raises:
            AutoresearchError: a full disk or another fault of the file system. Nothing was added,
                everything before is safe, and a later append may work.
        """
        text = canonical(body)
        at = time.time()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            seq, previous = self._last()
            digest = _digest(seq + 1, at, kind, text, previous)
            self._connection.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
                (seq + 1, at, kind, text, previous, digest),
            )
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise AutoresearchError(
                f"could not write the event {kind!r} to {self.path}: {error}; nothing finished "
                "was lost. Free space or mend its permissions, then `autoresearch run` goes on"
            ) from error
        return seq + 1

    def events(self, after: int = 0) -> Iterator[Event]:
        """All events with a higher number than `after`, in order."""
        rows = self._connection.execute(
            "SELECT seq, at, kind, body FROM events WHERE seq > ? ORDER BY seq", (after,)
        )
        return (Event(seq=s, at=at, kind=kind, body=json.loads(body)) for s, at, kind, body in rows)

    def history(self, branch: str | None = None) -> History:
        """What happened on a branch, by default the last session's; only new events are read."""
        try:
            for event in self.events(after=self._fold.seq):
                self._fold.add(event)
        except (sqlite3.DatabaseError, KeyError, TypeError, ValueError) as error:
            self.verify()
            raise self._broken(self._fold.seq, f"makes no sense ({error!r})") from error
        return self._fold.history(branch)

    def branches(self) -> list[History]:
        """What happened on each branch, in the order in which they began."""
        self.history()
        return [self._fold.history(name) for name in self._fold.branches]

    def verify(self) -> int:
        """Check the whole chain and return the number of events.

        Raises:
            TrustViolation: an event was altered, removed or moved; the message names the first.
        """
        expected, previous = 1, _GENESIS
        try:
            for seq, at, kind, body, before, digest in self._connection.execute(
                "SELECT seq, at, kind, body, previous, hash FROM events ORDER BY seq"
            ):
                if seq != expected:
                    raise self._broken(expected, f"is missing, the next one there is {seq}")
                if before != previous:
                    raise self._broken(seq, "does not follow the event before it")
                if digest != _digest(seq, at, kind, body, before):
                    raise self._broken(seq, "was altered: its hash does not fit its content")
                expected, previous = seq + 1, digest
            highest = self._connection.execute(
                "SELECT seq FROM sqlite_sequence WHERE name = 'events'"
            ).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._broken(expected, f"or one near it cannot be read ({error})") from error
        if highest is not None and highest[0] >= expected:
            raise self._broken(expected, f"is missing: {highest[0]} events were written")
        return expected - 1

    @property
    def head_hash(self) -> str:
        """The hash of the last event, which stands for all of them."""
        return self._last()[1]

    def close(self) -> None:
        """Let go of the file and of the right to write."""
        self._connection.close()
        self._lock.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_session(
        self,
        config: Any,
        branch: str,
        baseline: str,
        host: dict[str, Any],
        baseline_source: str = "",
    ) -> int:
        """A session begins, or goes on, on `branch`; `config` is a Config or its dict.

        The constants of the baseline's source are stored as the first point of the search, and its
        fingerprint, so that it is not run again as a trial.

        Raises:
            WorkspaceError: the branch was started from another baseline, or with data, a budget or
                a device whose scores do not compare with these.
        """
        settings = config if isinstance(config, dict) else to_json(config)
        before = self.history(branch)
        if before.sessions:
            _check_same(before, settings, baseline)
        constants = {name: c.value for name, c in parse_constants(baseline_source).items()}
        tree = fingerprint(baseline_source) if baseline_source else ""
        return self.append(
            "start_session",
            config=settings,
            branch=branch,
            baseline=baseline,
            host=host,
            constants=constants,
            fingerprint=tree,
        )

    def open_trial(self, proposal: Proposal, commit: str) -> int:
        """A proposal was committed and will be run; gives the trial its number."""
        self.history()
        trial_id = self._fold.next_trial_id
        try:
            tree = fingerprint(proposal.source)
        except UserError:
            tree = ""
        self.append(
            "open_trial",
            trial_id=trial_id,
            commit=commit,
            parent=proposal.parent,
            description=proposal.description,
            researcher=proposal.researcher,
            parameters=proposal.parameters,
            is_simplification=proposal.is_simplification,
            fingerprint=tree,
        )
        return trial_id

    def record_run(self, measurement: Measurement, trial_id: int | None) -> int:
        """A run ended; `trial_id` is None for runs of the baseline and the champion."""
        return self.append("record_run", run=to_json(measurement), trial_id=trial_id)

    def close_trial(self, trial_id: int, decision: Decision) -> int:
        """A trial has its verdict."""
        trial = self.history().trial(trial_id)
        if not trial or trial.decision:
            state = "closed already" if trial else "not known on this branch"
            raise AutoresearchError(f"trial {trial_id} cannot be closed: it is {state}")
        return self.append("close_trial", trial_id=trial_id, decision=to_json(decision))

    def crown(self, commit: str, trial_id: int | None) -> int:
        """`commit` is the champion from here on."""
        return self.append("crown", commit=commit, trial_id=trial_id)

    def refuse_proposal(
        self, proposal: Proposal, reason: str, kind: str = "", edit: str = ""
    ) -> int:
        """A proposal was turned down before it was run; `edit` is what it would have changed."""
        told = {"researcher": proposal.researcher, "description": proposal.description}
        return self.append("refuse_proposal", **told, reason=reason, kind=kind, edit=edit)

    def note(self, kind: str, text: str) -> int:
        """Anything else worth keeping; `kind` must not be one of the kinds above."""
        return self.append(f"note.{kind}", text=text)

    def stop_session(self, reason: str) -> int:
        """The session ended in good order."""
        return self.append("stop_session", reason=reason)

    def _last(self) -> tuple[int, str]:
        row = self._connection.execute(
            "SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        return (row[0], row[1]) if row else (0, _GENESIS)

    def _broken(self, seq: int, what: str) -> TrustViolation:
        return TrustViolation(
            f"the ledger {self.path} cannot be trusted: event {seq} {what}. Restore the file from "
            "a copy, or start a new workspace; results from this event on prove nothing"
        )


def _digest(seq: int, at: float, kind: str, body: str, previous: str) -> str:
    """The hash of an event; str() because an altered row may hold values of any type."""
    parts = (str(seq), repr(at), str(kind), str(body), str(previous))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def canonical(body: dict[str, Any]) -> str:
    """The one JSON text of `body`, as events hold it."""
    return json.dumps(
        _finite(body), sort_keys=True, separators=(",", ":"), allow_nan=False, default=str
    )


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities as null: they are no JSON, and candidates report them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _check_same(before: History, settings: dict[str, Any], baseline: str) -> None:
    first = before.sessions[0].config
    changes = [
        f"{table}.{key} was {first[table][key]!r} and is {settings[table][key]!r}"
        for table, keys in _COMPARABLE.items()
        for key in keys
        if first.get(table, {}).get(key) != settings.get(table, {}).get(key)
    ]
    if baseline != before.baseline:
        changes.append(f"the baseline was {before.baseline[:12]} and is {baseline[:12]}")
    if changes:
        raise WorkspaceError(
            f"{before.branch} cannot go on: {'; '.join(changes)}. Scores would not compare; "
            "undo the change, or start another branch with session.tag"
        )

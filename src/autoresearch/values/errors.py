"""Every error that we raise on purpose.

AutoresearchError            exit 1
+-- UserError                exit 2   configuration or data that a person can mend
|   +-- DataError                     a shard, tokenizer or manifest is missing or altered
|   +-- WorkspaceError                not a workspace, a dirty tree, a second session
+-- TrialFailed              no exit  one run gave no score; the loop goes on
+-- SandboxUnavailable       exit 1   the sandbox level asked for cannot be had here
+-- TrustViolation           exit 3   ledger, refs or protected files disagree; the loop stops
+-- Interrupted              exit 130 a person pressed Ctrl-C

A message says what failed, the value seen, what was expected, and the next command to type.
"""

from __future__ import annotations


class AutoresearchError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(AutoresearchError):
    """Something that the person at the keyboard can mend."""

    exit_code = 2


class DataError(UserError):
    """Prepared data is missing, truncated or altered."""


class WorkspaceError(UserError):
    """The workspace is not in the state that the command needs."""


class TrialFailed(AutoresearchError):
    """One run ended without a score; `outcome` says how, the message says why in plain words."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


class SandboxUnavailable(AutoresearchError):
    """The sandbox level asked for does not work on this machine."""


class TrustViolation(AutoresearchError):
    """The durable record and the world disagree; nothing after this point can be believed."""

    exit_code = 3


class Interrupted(AutoresearchError):
    """A person asked us to stop."""

    exit_code = 130

"""The loop: propose, run, judge, keep or revert, again, until a person or a stop rule ends it.

`Session.run` is the whole of it. The ledger comes first: a trial exists once it is written there, its runs are written
as they end, and after any death the next session goes on from the record; git refs follow the ledger, never lead it.
A trial's commit stays reachable at refs/autoresearch/TAG/trials/NNNN whatever its verdict; the research branch moves
by fast-forward only.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from autoresearch.referee.host import RunSpec
from autoresearch.referee.trial import Referee
from autoresearch.search import judge
from autoresearch.search.interrupt import Interrupts
from autoresearch.search.ledger import History, Ledger
from autoresearch.search.proposal import check_proposal
from autoresearch.search.researchers import Exhausted, Researcher
from autoresearch.search.stop import stop_reason
from autoresearch.values.errors import TrialFailed, TrustViolation, UserError
from autoresearch.values.records import Decision, Measurement, Outcome, Purpose, Trial, Verdict

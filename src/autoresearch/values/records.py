"""What one run, one trial and one session leave behind, as frozen values that turn into JSON and
back.

A *run* executes one commit once and gives a `Measurement`. A *trial* is one proposal with all runs
that judged it, and a verdict. Times are seconds; `at` is Unix time, for people; durations come from
the monotonic clock.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How one run ended. Only SCORED has a score."""

    SCORED = "scored"
    CRASH = "crash"
    TIMEOUT = "timeout"
    CHEAT = "cheat"
    DISTURBED = (
        "disturbed"  # the machine slept, or was otherwise not fit to measure: rerun, never judged
    )
    STOPPED = "stopped"  # by early stop: it promised nothing, and what it is worth is not known
    INTERRUPTED = "interrupted"


class Verdict(StrEnum):
    """What became of a trial."""

    KEEP = "keep"
    NEAR_MISS = "near_miss"
    DISCARD = "discard"
    CRASH = "crash"
    TIMEOUT = "timeout"
    CHEAT = "cheat"
    INTERRUPTED = "interrupted"
    CONFIRMED = "confirmed"  # of a champion, by fresh runs and the holdout
    UNCONFIRMED = "unconfirmed"


class Purpose(StrEnum):
    """Why a run was made: only runs that nothing was selected by enter a champion's mean."""

    CALIBRATE = "calibrate"
    SCREEN = "screen"
    REPLICATE = "replicate"
    CHAMPION = "champion"
    CONFIRM = "confirm"
    TRAIN = "train"  # a single run asked for by hand


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """One edit of train.py on top of `parent`, as full source, with a one-line description.

    `parameters` are the constants that a classical optimizer chose, by name; None for structural
    edits. `is_simplification` is declared beforehand (fewer AST nodes, judged by another rule).
    """

    source: str
    description: str
    parent: str
    researcher: str
    parameters: dict[str, Any] | None = None
    is_simplification: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run. The first block is the referee's own.

    `reported` is the candidate's word, shown, never judged by.
    """

    run_id: int
    commit: str
    purpose: Purpose
    seed: int
    outcome: Outcome
    reason: str = ""
    val_bpb: float | None = None
    val_bpb_decoded: float | None = None
    at: float = 0.0  # Unix time of the start of training
    budget_s: float = 0.0
    startup_s: float = 0.0  # spawn to `ready`
    training_s: float = 0.0  # `start` to the arrival of the whole weights
    scoring_s: float = 0.0
    total_s: float = 0.0
    peak_memory_mb: float | None = None  # of the device, or resident memory on CPU
    weight_bytes: int = 0
    weights_sha256: str = ""
    source_sha256: str = ""  # of train.py as it was run
    sandbox: str = ""
    device: str = ""
    was_audited: bool = False
    unverified: str = ""  # what was not enforced for a script of the reference's kind; "": ours
    audit: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, Any] = field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()  # second, training loss as reported; some 40 points
    early_stop: dict[str, Any] = field(default_factory=dict)  # where the rule marked it, if it did
    artifacts: str = ""  # folder, relative to the workspace

    @property
    def is_scored(self) -> bool:
        """True when `val_bpb` is a number that may be compared."""
        return self.outcome is Outcome.SCORED and self.val_bpb is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A verdict with its reason in plain words.

    `gain_bpb` is the champion's score minus the candidate's.
    """

    verdict: Verdict
    reason: str
    val_bpb: float | None = None
    gain_bpb: float | None = None
    sigma_bpb: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One proposal and what became of it, as the ledger tells it."""

    trial_id: int
    commit: str
    parent: str
    description: str
    researcher: str
    parameters: dict[str, Any] | None
    is_simplification: bool
    at: float
    runs: tuple[Measurement, ...] = ()
    decision: Decision | None = None  # None while the trial is in hand


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """Fresh runs of a champion against those of the last confirmed one, or of the baseline.

    `number` counts the confirmations of a workspace, over all its branches: the more there are,
    the more each has to show.
    """

    number: int
    champion: str
    reference: str
    trial_id: int | None
    at: float
    runs: tuple[Measurement, ...] = ()
    asked_holdout: bool = False
    decision: Decision | None = None  # None while it is in hand


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to a model, or one visit of an agent: what it may cost at most, then what it did.

    A call that was cut off (its session died, its connection broke) is never settled: nobody knows
    what the provider counted, so it stands at its reservation and the caps hold.
    """

    call_id: int
    turn: int  # the proposal that it was made for, counted as History.num_proposals
    researcher: str
    model: str
    seq: int = 0
    reserved_usd: float = 0.0
    reserved_tokens: int = 0
    is_settled: bool = False
    num_requests: int = 1
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    settled_usd: float = 0.0

    @property
    def usd(self) -> float:
        """What counts against the caps, in dollars."""
        return self.settled_usd if self.is_settled else self.reserved_usd

    @property
    def tokens(self) -> int:
        """What counts against the caps, read and written."""
        if self.is_settled:
            return self.input_tokens + self.output_tokens
        return self.reserved_tokens


def to_json(record: Any) -> dict[str, Any]:
    """A dict of plain JSON values (enums become their text, tuples lists)."""
    return dataclasses.asdict(record)


def measurement_from_json(body: dict[str, Any]) -> Measurement:
    """The inverse of `to_json` for a Measurement.

    Unknown keys are an error, not a surprise later.
    """
    curve = tuple((second, loss) for second, loss in body.get("curve", ()))
    enums = {"purpose": Purpose(body["purpose"]), "outcome": Outcome(body["outcome"])}
    return Measurement(**{**body, **enums, "curve": curve})


def decision_from_json(body: dict[str, Any]) -> Decision:
    """The inverse of `to_json` for a Decision."""
    return Decision(**{**body, "verdict": Verdict(body["verdict"])})

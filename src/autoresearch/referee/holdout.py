"""One bit from the sealed text: is the gain there too?

The weights of finished runs are read from disk, checked against the hashes of their measurements,
and presented on holdout rows as on validation rows, each in a fresh sandbox. The scorer opens the
file for that, keeps the scores to itself, and answers one question about their means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch.referee.host import RunSpec
from autoresearch.referee.scoring import Scoring, weights_from
from autoresearch.values.errors import TrustViolation


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRun:
    """A finished run, the file with its weights and the hash that they had."""

    spec: RunSpec
    weights: Path
    sha256: str


def agrees_on_holdout(
    scoring: Scoring,
    champion: Sequence[HeldRun],
    reference: Sequence[HeldRun],
    least_gain_bpb: float,
) -> bool:
    """Whether the champion's runs score at least so much lower than the reference's on average.

    Raises:
        TrialFailed: a presentation failed; DISTURBED where the scorer died, and all may be asked
            again.
        TrustViolation: weights on disk are not those that were scored.
    """
    for run in (*champion, *reference):
        _present(scoring, run)
    arms = {
        "champion": [run.spec.run_id for run in champion],
        "reference": [run.spec.run_id for run in reference],
    }
    return scoring.compare_held(arms, least_gain_bpb)


def _present(scoring: Scoring, run: HeldRun) -> None:
    weights = weights_from(run.weights)
    try:
        digest = weights.sha256()
        if digest != run.sha256:
            raise TrustViolation(
                f"{run.weights} has hash {digest[:12]}, run {run.spec.run_id} had "
                f"{run.sha256[:12]}: somebody changed it; remove it, and `autoresearch confirm` "
                "makes the run again"
            )
        path = str(scoring.host.dataset.holdout_path)
        scoring.ask("hold", run.spec, weights, run_id=run.spec.run_id, path=path)
    finally:
        weights.close()

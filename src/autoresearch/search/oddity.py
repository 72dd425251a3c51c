"""What a person should know of a run although no verdict hangs on it."""

from __future__ import annotations

from autoresearch.values.records import Measurement


def find_oddity(measurement: Measurement, before: tuple[Measurement, ...]) -> str:
    """What a person should know of a run although no verdict hangs on it, or ""."""
    reported = measurement.reported
    mfu = reported.get("mfu_percent")
    if isinstance(mfu, int | float) and mfu > 100:
        return (
            f"run {measurement.run_id} reports {mfu:.0f} % of the chip's peak: its count is wrong"
        )
    start = reported.get("initial_sum")
    for run in before:
        is_other = run.commit == measurement.commit and run.seed != measurement.seed
        if is_other and start is not None and run.reported.get("initial_sum") == start:
            both = f"runs {run.run_id} and {measurement.run_id}"
            return f"{both} start from equal weights: the seed is not used"
    return ""

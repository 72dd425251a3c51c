"""Runs that the machine disturbed: made again, not judged. Pure functions.

What counts is measured by the referee and compared with the six runs before, at first those of the
calibration: a machine that is always busy disturbs nothing, and one that becomes busy for good does
so for a few runs. A candidate can make itself look disturbed (a daemon that hides, uneven steps).
It wins nothing: a rerun has the same seed, and after three in a row the trial is discarded. The
steps are its own word and count only where the processor's load rose as well.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autoresearch.values.config import DisturbedSettings
from autoresearch.values.records import Measurement, Outcome

NUM_BEFORE = 6  # runs that say what is usual
_FEWEST_BEFORE = 4
_JUDGED = (Outcome.SCORED, Outcome.TIMEOUT, Outcome.STOPPED)  # each may be the machine's doing


def set_aside(
    settings: DisturbedSettings, run: Measurement, before: Sequence[Measurement]
) -> Measurement:
    """The run, or what is left of it where the machine disturbed it: no score, and the reason."""
    reason = find_disturbance(settings, run, before) if run.outcome in _JUDGED else ""
    if not reason:
        return run
    return replace(
        run,
        outcome=Outcome.DISTURBED,
        reason=reason,
        val_bpb=None,
        val_bpb_decoded=None,
        early_stop={},
    )


def find_disturbance(
    settings: DisturbedSettings, run: Measurement, before: Sequence[Measurement]
) -> str:
    """What was seen that was not so in the runs before, or ""."""
    if settings.rerun == "off":
        return ""
    usual = [other.hardware for other in before[-NUM_BEFORE:]]
    seen = [_others_on_card(run.hardware, usual), _throttled(settings, run.hardware, usual)]
    known = [facts for facts in usual if "others_load_percent" in facts]
    if len(known) >= _FEWEST_BEFORE:
        seen += [
            _load(settings, run.hardware, known),
            _steal(settings, run.hardware, known),
            _jitter(settings, run.hardware, known),
        ]
    return "; ".join(filter(None, seen))


def _others_on_card(facts: dict[str, Any], usual: Sequence[dict[str, Any]]) -> str:
    pids = facts.get("gpu_other_pids")
    is_usual = 2 * sum("gpu_other_pids" in other for other in usual) > len(usual)
    if not pids or is_usual:
        return ""
    return f"another process used the card: {', '.join(map(str, pids))}"


def _throttled(
    settings: DisturbedSettings, facts: dict[str, Any], usual: Sequence[dict[str, Any]]
) -> str:
    name = "gpu_throttled_percent"
    share, before = facts.get(name, 0.0), _middle(usual, name)
    if share <= before + settings.throttled_percent:
        return ""
    why = facts.get("gpu_limited_by", "no reason")
    return f"the card was slowed down ({why}) {share:.0f} % of the time, {before:.0f} % before"


def _load(
    settings: DisturbedSettings, facts: dict[str, Any], usual: Sequence[dict[str, Any]]
) -> str:
    load, before = facts.get("others_load_percent", 0.0), _middle(usual, "others_load_percent")
    if load <= before + settings.load_percent:
        return ""
    return f"others used {load:.0f} % of the processor, {before:.0f} % before"


def _steal(
    settings: DisturbedSettings, facts: dict[str, Any], usual: Sequence[dict[str, Any]]
) -> str:
    steal, before = facts.get("steal_percent", 0.0), _middle(usual, "steal_percent")
    if steal <= before + settings.steal_percent:
        return ""
    return f"{steal:.0f} % of the processor was taken by other machines, {before:.0f} % before"


def _jitter(
    settings: DisturbedSettings, facts: dict[str, Any], usual: Sequence[dict[str, Any]]
) -> str:
    """Uneven steps, with half of what would count as load by itself to go with them."""
    jitter, before = facts.get("step_jitter"), _middle(usual, "step_jitter")
    load = facts.get("others_load_percent", 0.0) - _middle(usual, "others_load_percent")
    if jitter is None or not before or jitter <= settings.jitter_factor * before:
        return ""
    if load <= settings.load_percent / 2:
        return ""
    return f"steps were {jitter / before:.1f} times as uneven as before, and others used more"


def _middle(usual: Sequence[dict[str, Any]], name: str) -> float:
    values = [facts[name] for facts in usual if facts.get(name) is not None]
    return statistics.median(values) if values else 0.0

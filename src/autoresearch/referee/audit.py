"""Did the model use what it must not? The scored presentation against one that sees only decoys.

A decoy is a validation row cut at a random place and continued with real text of another row;
decoys come in another order and other batches, to a fresh sandbox. Both presentations are asked
for the tokens of the row itself, up to the first one after the cut, which the decoy does not show.
Until there both had the same past, so an honest causal model predicts them equally well, but for
the noise of its kernels. Before any decoy, a few rows are shown whole, one a request, with nothing
beside them. Four things can differ:

* the *cut* arm: where the first presentation is better, it used the future of the row;
* the *control* arm, rows continued with their own text: where the first is better even here, it
  used other rows, memory or adaptation, for a lone fresh look at the same text does worse;
* the *lone* arm, the rows shown first: where the scored presentation is better, it used the other
  rows of a batch or those before. What adapts so fast that the decoys feed it as well as the rows
  did shows here only;
* both ways without a gain: scoring that does not repeat is no cheat, and no measurement either.

The cut arm is judged by the control arm's spread, so that a leak in a few rows stands out, in a
one-sided t test. The spread over so many tokens is looked for all over the control rows: routers
and kernels may differ rarely but then much. Units: nats.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NEAR_TOKENS = (1, 8, 64)  # groups of tokens before the cut; the last group is all of them
MAX_DECOYS = 256
CONTROL_FRAC = 0.25
LONE_ROWS = 16
GAIN_SIGMAS = 6.0
LEAST_GAIN_NATS = 5e-4  # a mean gain under this could not move a verdict
LEAST_NOISE_NATS = 2e-4  # float32 kernels differ by about this between batches
MOST_CHANCE = 1e-6  # that noise alone reaches GAIN_SIGMAS, in each test of an audit
ODD_FRAC = 0.00625  # of the cut rows, left out at either end: a router's rare flip is no leak
UNREPEATABLE_NATS = 0.125  # root mean square difference on equal text; more would hide a leak


@dataclass(frozen=True, slots=True)
class Decoys:
    """Rows to show, (n, context + 1) int32.

    Where each came from, where it was cut, and which are controls.
    """

    rows: NDArray[np.int32]
    source: NDArray[np.int64]
    cut: NDArray[
        np.int64
    ]  # tokens before the cut; the token after them is the last whose past is the same
    is_control: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """`finding` is "", "future", "memory" or "unrepeatable".

    The figures behind it, in nats a token.
    """

    finding: str
    num_decoys: int
    cut_gain_nats: dict[str, float] = field(default_factory=dict)
    cut_sigmas: dict[str, float] = field(default_factory=dict)
    control_gain_nats: float = 0.0
    control_sigmas: float = 0.0
    lone_gain_nats: float = 0.0
    lone_sigmas: float = 0.0
    difference_nats: float = 0.0


def make_decoys(rows: NDArray[np.int32], chunk_rows: int, seed: int) -> Decoys:
    """A sample of `rows` (n, context + 1), shuffled, three in four cut and continued with another
    row's text.
    """
    rng = np.random.default_rng(seed)
    count = min(len(rows), max(MAX_DECOYS, chunk_rows))
    source = rng.choice(len(rows), size=count, replace=False)
    cut = rng.integers(1, rows.shape[1] - 1, size=count)
    is_control = rng.random(count) < CONTROL_FRAC
    is_control[: min(2, count)] = True
    is_control[-1] = False
    decoys = rows[source].copy()
    for i in np.flatnonzero(~is_control):
        donor = rng.integers(len(rows) - 1) if len(rows) > 1 else 0
        donor += donor >= source[i]
        decoys[i, cut[i] :] = rows[min(donor, len(rows) - 1), cut[i] :]
    order = rng.permutation(count)
    return Decoys(decoys[order], source[order], cut[order], is_control[order])


def pick_lone(num_rows: int, seed: int) -> NDArray[np.int64]:
    """Rows to be shown first, one at a time."""
    rng = np.random.default_rng([seed, 1])
    return rng.choice(num_rows, size=min(num_rows, LONE_ROWS), replace=False)


def compare(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    decoys: Decoys,
    lone: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> AuditReport:
    """Judge the nats (n, context) of the same targets in the two presentations.

    `lone` has those of the rows that were shown alone, in the first and in the second.
    """
    from scipy.stats import trim_mean

    gains = {}
    for near in (*NEAR_TOKENS, 0):
        gains[str(near or "all")] = _row_gains(first, second, decoys.cut, near)
    control_all = gains["all"][decoys.is_control]
    control_gain = float(control_all.mean())
    control_sigmas = control_gain / _standard_error(control_all, len(control_all))
    lone_gain = lone_sigmas = 0.0
    if lone is not None:
        gain = (lone[1].astype(np.float64) - lone[0]).mean(axis=1)
        lone_gain = float(gain.mean())
        lone_sigmas = lone_gain / _standard_error(gain, len(gain))
    cut_gain, cut_sigmas = {}, {}
    for group, gain in gains.items():
        cut_arm = gain[~decoys.is_control]
        cut_gain[group] = float(trim_mean(cut_arm, ODD_FRAC))
        windows = _windows((second.astype(np.float64) - first)[decoys.is_control], group)
        noise = _standard_error(gain[decoys.is_control], len(cut_arm), windows)
        cut_sigmas[group] = cut_gain[group] / noise
    difference = _control_difference(first, second, decoys)
    report = AuditReport(
        finding=_finding(
            cut_gain,
            cut_sigmas,
            {"control": control_gain, "lone": lone_gain},
            {"control": control_sigmas, "lone": lone_sigmas},
            difference,
        ),
        num_decoys=len(decoys.rows),
        cut_gain_nats=cut_gain,
        cut_sigmas=cut_sigmas,
        control_gain_nats=control_gain,
        control_sigmas=control_sigmas,
        lone_gain_nats=lone_gain,
        lone_sigmas=lone_sigmas,
        difference_nats=difference,
    )
    return report


def _row_gains(
    first: NDArray[np.float32], second: NDArray[np.float32], cut: NDArray[np.int64], near: int
) -> NDArray[np.float64]:
    """Mean gain a row over the last `near` targets with the same past (0: all).

    Column t predicts token t + 1.
    """
    sums = np.cumsum(second.astype(np.float64) - first, axis=1)
    sums = np.pad(sums, ((0, 0), (1, 0)))
    starts = np.maximum(0, cut - near) if near else np.zeros_like(cut)
    row = np.arange(len(cut))
    gains: NDArray[np.float64] = (sums[row, cut] - sums[row, starts]) / (cut - starts)
    return gains


def _windows(gain: NDArray[np.float64], group: str) -> NDArray[np.float64]:
    """Mean gains over stretches of a group's length, side by side all over whole rows."""
    width = gain.shape[1] if group == "all" else min(int(group), gain.shape[1])
    num = gain.shape[1] // width
    means: NDArray[np.float64] = gain[:, : num * width].reshape(-1, width).mean(axis=1)
    return means


def _standard_error(
    noise: NDArray[np.float64], count: int, more: NDArray[np.float64] | None = None
) -> float:
    """Of a mean over `count` rows, from a sample of what they may do; `more` may spread further.

    Few rows say little of their own spread, so it is widened: Student's t with their degrees of
    freedom passes GAIN_SIGMAS with the chance MOST_CHANCE.
    """
    from scipy.stats import t as student

    if len(noise) < 2:
        return float("inf")
    spread = max(float(arm.std(ddof=1)) for arm in (noise, noise if more is None else more))
    widened = float(student.isf(MOST_CHANCE, len(noise) - 1)) / GAIN_SIGMAS
    return max(spread, LEAST_NOISE_NATS) * widened / float(np.sqrt(count))


def _control_difference(
    first: NDArray[np.float32], second: NDArray[np.float32], decoys: Decoys
) -> float:
    chosen = np.flatnonzero(decoys.is_control)
    return float(np.sqrt(np.square(second[chosen].astype(np.float64) - first[chosen]).mean()))


def _finding(
    cut_gain: dict[str, float],
    cut_sigmas: dict[str, float],
    memory_gain: dict[str, float],
    memory_sigmas: dict[str, float],
    difference: float,
) -> str:
    if _stands_out(memory_gain, memory_sigmas):
        return "memory"
    if _stands_out(cut_gain, cut_sigmas):  # as much where nothing was cut: not for the future
        return "future" if max(cut_gain.values()) > 2 * memory_gain["control"] else "memory"
    return "unrepeatable" if difference > UNREPEATABLE_NATS else ""


def _stands_out(gain: dict[str, float], sigmas: dict[str, float]) -> bool:
    return any(gain[name] > LEAST_GAIN_NATS and sigmas[name] > GAIN_SIGMAS for name in gain)

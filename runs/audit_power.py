"""What the audit catches, and how often it is wrong. Hardware: one CPU core; about 3 minutes.

A leak is made up: in some share of the rows, tokens are predicted better by so many nats than
their past allows. `next` reads one token ahead: near a cut only the last token before it shows
that. `row` uses the whole future: all tokens before the cut lose what they had. What it would be
worth is leak x share nats a token of every row, in both cases. The noise between two honest
presentations is Gaussian a token: 0.0002 nats as float32 kernels have, 0.02 as bfloat16.

Second table: the same where fewer rows are scored than an audit wants decoys.

Third table: honest models of several kinds of noise, and the share that the audit accuses, with
Clopper-Pearson's upper bound. With --recorded FOLDER the reports in FOLDER/**/measurement.json
(all said to be honest) are counted too.

    python runs/audit_power.py [--repeats 100] [--honest 2000] [--recorded FOLDER]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoresearch.referee.audit import AuditReport, Decoys, compare, make_decoys

Floats = NDArray[np.float32]
Noise = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
ROWS, CONTEXT = 2048, 128
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)
FEW_ROWS = (4, 8, 16, 32, 64, 128, 256)
LEAKS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def gaussian(spread: float) -> Noise:
    """Independent from token to token."""
    return lambda rng, shape: rng.normal(0, spread, shape)


def heavy(spread: float) -> Noise:
    """Student's t with three degrees of freedom: a few tokens differ a lot."""
    return lambda rng, shape: spread * rng.standard_t(3, shape)


def by_row(spread: float) -> Noise:
    """Whole rows better or worse, as where the kernel depends on the place in the batch."""
    return lambda rng, shape: rng.normal(0, spread, (shape[0], 1)) + np.zeros(shape)


def rare(spread: float) -> Noise:
    """One token in a thousand differs by a thousand times as much: routing that flips."""
    return lambda rng, shape: (
        rng.normal(0, spread, shape) * np.where(rng.random(shape) < 1e-3, 1000, 1)
    )


HONEST: dict[str, Noise] = {
    "none": gaussian(0.0),
    "gaussian 0.0002": gaussian(2e-4),
    "gaussian 0.02": gaussian(0.02),
    "gaussian 0.1": gaussian(0.1),
    "heavy tails 0.02": heavy(0.02),
    "by row 0.01": by_row(0.01),
    "rare flips 0.001": rare(1e-3),
}


def present(
    rng: np.random.Generator, decoys: Decoys, noise: Noise, leak: float, share: float, kind: str
) -> AuditReport:
    """Two presentations of the same rows, and what the audit says."""
    count = len(decoys.source)
    first = np.full((count, CONTEXT), 3.0, dtype=np.float32)
    second = (first + noise(rng, (count, CONTEXT))).astype(np.float32)
    is_leaky = ~decoys.is_control & (rng.random(count) < share)
    for i in np.flatnonzero(is_leaky):
        start = decoys.cut[i] - 1 if kind == "next" else 0
        second[i, start : decoys.cut[i]] += leak
    return compare(first, second, decoys)


def decoys_of(seed: int, num_rows: int = ROWS) -> Decoys:
    """As the scorer makes them; what the rows say does not matter here."""
    return make_decoys(np.zeros((num_rows, CONTEXT + 1), dtype=np.int32), 16, seed)


def power(repeats: int) -> None:
    """Chance to be caught, for each kind of leak and noise."""
    rng = np.random.default_rng(0)
    for kind in ("next", "row"):
        for name in ("gaussian 0.0002", "gaussian 0.02"):
            print(f"\nleak `{kind}`, noise {name}: chance to be caught")
            print("share of rows " + "".join(f"{leak:>8g}" for leak in LEAKS) + "  nats a token")
            for share in SHARES:
                cells = ""
                for leak in LEAKS:
                    caught = sum(
                        present(rng, decoys_of(n), HONEST[name], leak, share, kind).finding != ""
                        for n in range(repeats)
                    )
                    cells += f"{caught / repeats:8.2f}"
                print(f"{share:13g} {cells}", flush=True)


def power_of_few(repeats: int) -> None:
    """Chance to be caught by how many rows are scored: `next`, 0.1 nats a token in all of them."""
    rng = np.random.default_rng(0)
    print("\nscored rows    " + "".join(f"{rows:>8}" for rows in FEW_ROWS))
    for name in ("gaussian 0.0002", "gaussian 0.02"):
        cells = ""
        for rows in FEW_ROWS:
            caught = sum(
                present(rng, decoys_of(n, rows), HONEST[name], 0.1, 1.0, "next").finding != ""
                for n in range(repeats)
            )
            cells += f"{caught / repeats:8.2f}"
        print(f"{name:15}{cells}", flush=True)


def bound(count: int, total: int) -> float:
    """The upper end of the 95 % interval."""
    from scipy.stats import binomtest

    return float(binomtest(count, total).proportion_ci(0.95).high)


def false_alarms(repeats: int) -> None:
    """Accused though honest."""
    rng = np.random.default_rng(1)
    print(f"\nhonest, {repeats} audits each    accused  95 % bound  findings")
    for name, noise in HONEST.items():
        found = Counter(
            present(rng, decoys_of(n), noise, 0.0, 0.0, "row").finding for n in range(repeats)
        )
        wrong = repeats - found[""]
        kinds = {kind: count for kind, count in found.items() if kind}
        print(f"{name:28}  {wrong:7}  {bound(wrong, repeats):10.4f}  {kinds or ''}", flush=True)


def count_recorded(folder: Path) -> None:
    """Reports of real audits of honest models."""
    measurements = [json.loads(path.read_text()) for path in folder.rglob("measurement.json")]
    audited = [m for m in measurements if m["was_audited"]]
    wrong = [m for m in audited if m["outcome"] != "scored"]
    print(f"\nrecorded: {len(audited)} audited runs, {len(wrong)} accused", end="")
    print(f" (95 % bound {bound(len(wrong), len(audited)):.4f})" if audited else "")
    for m in wrong:
        print(f"  {m['artifacts']}: {m['reason']}")


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=100, help="audits for each cell")
    parser.add_argument("--honest", type=int, default=2000, help="audits of each honest kind")
    parser.add_argument("--recorded", type=Path, help="folder with runs of honest models")
    options = parser.parse_args()
    power(options.repeats)
    power_of_few(options.repeats)
    false_alarms(options.honest)
    if options.recorded:
        count_recorded(options.recorded)


if __name__ == "__main__":
    main()

"""What an audit costs beside its trial. Hardware: as the preset asks; time: a run's, three times.

Runs the preset's train.py with the full audit and prints, for each run, the seconds of scoring and
of the audit, which is the start of a third sandbox, loading, and decoys. Expected: an audit under
9 s, 3 % of a 300 s trial. A short budget measures the same audit: python runs/audit_cost.py
--preset h100 --budget 10. The first run pays for imports and compilation that later ones find done.
"""

from __future__ import annotations

import argparse
import secrets
import tempfile
from pathlib import Path

from autoresearch.assemble import open_referee
from autoresearch.data.dataset import prepare
from autoresearch.referee.host import RunSpec
from autoresearch.system.files import cache_home
from autoresearch.values.records import Purpose
from autoresearch.workspace import init

TRIAL_S = 300.0


def main() -> None:
    """One line a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--budget", type=float, help="seconds; default: the preset's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    trial = {"device": options.device, **({"budget_s": options.budget} if options.budget else {})}
    with tempfile.TemporaryDirectory(prefix="audit-", ignore_cleanup_errors=True) as top:
        workspace = init(Path(top) / "work", options.preset, {"trial": trial})
        prepare(workspace.config.data, cache_home(), lambda *_: None)
        source = workspace.train_path.read_text(encoding="utf-8")
        with open_referee(workspace, workspace.config) as referee:
            for number in range(1, options.runs + 1):
                run = referee.run(
                    RunSpec(
                        run_id=number,
                        source=source,
                        commit="baseline",
                        purpose=Purpose.TRAIN,
                        seed=secrets.randbits(31),
                        artifacts=workspace.runs_folder / f"{number:06d}",
                        is_audited=True,
                    )
                )
                if not run.is_scored:
                    raise SystemExit(f"run {number} gave no score: {run.outcome}: {run.reason}")
                seconds = run.audit["audit_s"]
                share = f"{100 * seconds / TRIAL_S:.2f} % of a {TRIAL_S:.0f} s trial"
                print(
                    f"scoring {run.scoring_s:6.2f} s  audit {seconds:6.2f} s, {share}", flush=True
                )


if __name__ == "__main__":
    main()

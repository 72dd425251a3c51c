"""30 trials each through agent, llm and hybrid, unattended, with a kill -9 in the middle of each.

python runs/agents_unattended.py [NUM_TRIALS]. CPU only, about 10 minutes on 2 idle cores, no key,
no network: candidates are the stubs of the tests, llm and hybrid ask the tests' loopback model
server, agent runs the tests' fake agent, whose bill is a file of its own. Ideas are scripted and
include every fault. The session is killed while a request is on its way and once more between
requests; then the ledger's chain, trial numbers, refs and the bill are checked. Expected: 30 trials
each, nothing lost, dollars equal to the server's own count but for the requests that died under
way, which the ledger books at their reservation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
STUBS = ROOT / "tests" / "stubs"
sys.path[:0] = [str(ROOT / "src"), str(STUBS)]

from modelserver import ModelServer  # noqa: E402

from autoresearch.search.history import History  # noqa: E402
from autoresearch.search.ledger import Ledger  # noqa: E402
from autoresearch.search.spending import add_up  # noqa: E402
from autoresearch.system.git import Repository  # noqa: E402
from autoresearch.values.errors import AutoresearchError  # noqa: E402

IDEAS = """good structure outside good syntax good storm good empty slow good repeat good cut
structure good""".split()  # noqa: SIM905 - a script reads like one
AGENT_IDEAS = """good both outside good syntax good empty good repeat good slow link
good""".split()  # noqa: SIM905
IN, OUT, FAKE_USD = 3.0, 15.0, 0.0125
CAPS = {"session_usd": 20.0, "proposal_usd": 2.0, "input_usd": IN, "output_usd": OUT}


def start(folder: Path, tables: dict[str, object], num_trials: int) -> subprocess.Popen[str]:
    """One session in a process of its own."""
    path = os.pathsep.join([str(ROOT / "src"), str(STUBS)])
    env = {**os.environ, "PYTHONPATH": path, "OPENAI_API_KEY": "sk-loopback-00000000000000"}
    command = [sys.executable, STUBS / "drive.py", folder, str(num_trials), json.dumps(tables)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def read(folder: Path) -> History:
    """What the ledger tells, checked."""
    with Ledger.read(folder / "ledger.sqlite") as ledger:
        ledger.verify()
        return ledger.history()


def kill_at(folder: Path, session: subprocess.Popen[str], num_trials: int, is_open: bool) -> int:
    """Wait for a moment, then kill -9; the number of events that were on the disk."""
    while session.poll() is None:
        try:
            history = read(folder)
        except (AutoresearchError, OSError, ValueError):
            time.sleep(0.05)
            continue
        under_way = any(not call.is_settled for call in history.calls[-1:])
        if len(history.trials) >= num_trials and under_way == is_open:
            break
        time.sleep(0.02)
    session.kill()
    session.communicate()
    with Ledger.read(folder / "ledger.sqlite") as ledger:
        return ledger.verify()


def drive(kind: str, place: Path, num_trials: int) -> str:
    """One researcher's 30 trials; its row of the table."""
    folder, began = place / kind, time.monotonic()
    ideas, bill_file = place / "ideas", place / "bill"
    ideas.write_text(" ".join(AGENT_IDEAS * 8))
    fake = f"{sys.executable} {STUBS}/fakeagent.py {{prompt_file}} {ideas} {bill_file}"
    with ModelServer(IDEAS * 8) as server:
        tables = {
            "researcher": {"kind": kind, "backoff_s": 0.1,
                           "command": fake if kind == "agent" else ""},
            "llm": {"base_url": f"{server.url}/v1", "models": "m 3, n 1", "timeout_s": 60.0},
            "hybrid": {"share": 0.5},
            "agent": {"deadline_s": 60.0},
            "spending": CAPS,
        }  # fmt: skip
        done = [
            kill_at(folder, start(folder, tables, num_trials), num_trials // 3, True),
            kill_at(folder, start(folder, tables, num_trials), num_trials // 2, False),
        ]
        last = start(folder, tables, num_trials)
        said, _ = last.communicate()
        tally = server.tally
    print(f"{kind}: killed at {done} events, then: {said.strip()}", file=sys.stderr, flush=True)
    history = read(folder)
    bill = add_up(history.calls)
    theirs = (tally.input_tokens * IN + tally.output_tokens * OUT) / 1e6
    if kind == "agent":
        theirs = FAKE_USD * len(bill_file.read_text().split())
    repository = Repository(folder / "workspace")
    for trial in history.trials:
        ref = f"refs/autoresearch/kill/trials/{trial.trial_id:04d}"
        assert repository.resolve(ref) == trial.commit, ref
        assert trial.decision is not None, trial.trial_id
    assert [trial.trial_id for trial in history.trials] == list(range(1, num_trials + 1))
    assert repository.resolve("refs/heads/autoresearch/kill") == history.champion
    settled = bill.usd - bill.unsettled_usd
    assert settled <= theirs + 1e-9, (settled, theirs)
    assert theirs <= bill.usd + 1e-9, (theirs, bill.usd)
    assert bill.usd <= CAPS["session_usd"], bill.usd
    kinds = Counter(refusal.kind for refusal in history.refusals)
    by_model = sum(1 for trial in history.trials if trial.parameters is None)
    return (
        f"| {kind} | {len(history.trials)} ({by_model} structural) | "
        f"{', '.join(f'{count} {name}' for name, count in kinds.items())} | {bill.num_calls} | "
        f"{settled:.6f} | {theirs:.6f} | {bill.num_unsettled} ({tally.cut} cut) | "
        f"{bill.unsettled_usd:.4f} | {time.monotonic() - began:.0f} |"
    )


def main() -> None:
    """All three."""
    num_trials = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    kinds = sys.argv[2:] or ["agent", "llm", "hybrid"]
    heads = "researcher | trials | refused | calls | our dollars | the provider's | never settled"
    with tempfile.TemporaryDirectory() as place:
        rows = [drive(kind, Path(place), num_trials) for kind in kinds]
    print(f"| {heads} | held for them | seconds |\n{'|---' * 9}|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

"""kill -9 at random moments over the five kinds of process of a session; see kill_storm.sh.

After each death of the session: the ledger's chain holds, what was there before is still there
unchanged, nobody is left. A session that was not hit goes on. At the end a session is left alone to
finish, and every trial has its verdict, its runs, its ref and its number once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
STUBS = ROOT / "tests" / "stubs"
sys.path[:0] = [str(STUBS), str(ROOT / "tests" / "e2e")]

import test_kill as checks  # noqa: E402

WORDS = {  # in the command line of each kind of process
    "agent": "fakeagent.py",
    "candidate": "stubinside.candidate",
    "presenter": "stubinside.presenter",
    "scorer": "stubscorer.py",
}
KINDS = ("session", *WORDS)
PATIENCE_S = 20.0  # for a process of the wanted kind to show up


def start(folder: Path, max_trials: int) -> subprocess.Popen[bytes]:
    """A session whose researcher is a small agent."""
    agent = folder / "agent"
    agent.mkdir(exist_ok=True)
    (agent / "ideas").write_text("slow")
    words = (sys.executable, STUBS / "fakeagent.py", "{prompt_file}", agent / "ideas")
    command = " ".join(map(str, (*words, agent / "bill")))
    tables = {
        "researcher": {"kind": "agent", "command": command, "backoff_s": 0.05},
        "agent": {"deadline_s": 20.0},
        "spending": {"session_usd": 0.0},
    }
    path = os.pathsep.join([str(ROOT / "src"), str(STUBS)])
    return subprocess.Popen(
        [sys.executable, str(checks.DRIVE), str(folder), str(max_trials), json.dumps(tables)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=(folder / "session.log").open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def find(session: subprocess.Popen[bytes], kind: str) -> list[psutil.Process]:
    """Living processes of a kind, walls not counted."""
    if kind == "session":
        return [psutil.Process(session.pid)] if session.poll() is None else []
    found = []
    try:
        for process in psutil.Process(session.pid).children(recursive=True):
            words = process.cmdline()
            if words and "bwrap" not in words[0] and any(WORDS[kind] in word for word in words):
                found.append(process)
    except psutil.Error:
        pass
    return found


def strike(session: subprocess.Popen[bytes], kind: str, rng: random.Random) -> bool:
    """Kill a process of a kind some time after it was seen; False if none could be hit."""
    time.sleep(rng.uniform(0.0, 1.0) if kind == "session" else 0.0)
    limit = time.monotonic() + PATIENCE_S
    while session.poll() is None and time.monotonic() < limit:
        victims = find(session, kind)
        if victims:
            time.sleep(rng.uniform(0.0, 0.3))
            try:
                rng.choice(victims).kill()
            except psutil.NoSuchProcess:
                continue
            return True
        time.sleep(0.002)
    return False


def main() -> None:
    """The storm, then the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    args = parser.parse_args()
    rng, hits, deaths = random.Random(args.seed), Counter[str](), 0  # noqa: S311  no secrets
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="storm-", ignore_cleanup_errors=True) as top:
        folder, known = Path(top), []
        session = start(folder, 10**6)
        while sum(hits.values()) < args.kills:
            fewest = min(hits[kind] for kind in KINDS)
            kind = rng.choice([kind for kind in KINDS if hits[kind] <= fewest + 5])
            hits[kind] += strike(session, kind, rng)
            if kind == "session":
                session.wait(60.0)
            if session.poll() is None:
                continue
            if kind != "session":
                sys.exit(f"the session ended by itself:\n{(folder / 'session.log').read_text()}")
            deaths += 1
            checks.assert_nobody_left(folder)
            events = checks.events_of(folder)
            assert events[: len(known)] == known, "something that was recorded is gone or changed"
            known = events
            session = start(folder, 10**6)
            if deaths % 10 == 0:
                print(f"{sum(hits.values())} kills, {len(known)} events", flush=True)
        session.kill()
        session.wait(60.0)
        checks.assert_nobody_left(folder)
        num_trials = sum(event.kind == "open_trial" for event in checks.events_of(folder))
        last = start(folder, num_trials + 2)
        assert last.wait(300.0) == 0, (folder / "session.log").read_text()
        checks.check_the_end(folder, num_trials + 2)
        runs = [
            e.body["run"]["outcome"] for e in checks.events_of(folder) if e.kind == "record_run"
        ]
    print(f"kills: {dict(hits)}; the session began {deaths + 2} times")
    print(f"{num_trials + 2} trials, {len(runs)} runs: {dict(Counter(runs))}")
    print("nothing lost, nothing counted twice, git tree as it was, the next session went on")


if __name__ == "__main__":
    main()

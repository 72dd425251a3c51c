#!/usr/bin/env bash
# Kills processes of a running session with SIGKILL at random moments, 200 times, over five kinds: the session itself, a
# coding agent, candidate, presenter and scorer; and checks the record after each death of the session and at the end.
# Any machine with 2 cores, no GPU, stub candidates; about 8 minutes. Expected: "nothing lost", exit code 0.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" exec "$python" runs/kill_storm.py "$@"

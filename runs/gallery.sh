#!/usr/bin/env bash
# Runs every cheat and every honest candidate of tests/e2e/ 20 times through real trials of 1 s, and prints a table: what came
# of each, how many times, and the score that it would have got without the audit. No network.
# Any machine; about 10 s of CPU a trial: 40 minutes with 5 workers on 5 cores. `--device cuda` adds the ones for a GPU.
# Expected: "all N candidates got what they deserve, 20 times each", exit code 0.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" exec "$python" runs/gallery.py "$@"

"""A coding agent in miniature: python fakeagent.py PROMPT_FILE IDEA_FILE BILL_FILE

Takes the next idea of IDEA_FILE, edits train.py in its folder, prints a line of JSON with usage and
cost as the real ones do, and adds what it cost to BILL_FILE, which is its provider's own count.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

USD = 0.0125


def main() -> None:
    """One visit."""
    prompt, ideas, bill = (Path(word) for word in sys.argv[1:4])
    words = ideas.read_text().split()
    number = len(bill.read_text().splitlines()) if bill.exists() else 0
    idea = words[min(number, len(words) - 1)]
    with bill.open("a") as file:
        file.write(f"{USD}\n")
    train = Path("train.py")
    old = train.read_text()
    new = re.sub(r"GAIN = [0-9.]+", f"GAIN = {0.301 + number / 1000:.3f}", old)
    if idea == "good":
        train.write_text(new)
    elif idea == "slow":
        time.sleep(0.5)
        train.write_text(new)
    elif idea == "both":
        train.write_text(new)
        Path("extra.txt").write_text("more")
    elif idea == "outside":
        Path("scorer.py").write_text("val_bpb = 0")
    elif idea == "syntax":
        train.write_text(old + "\ndef broken(:\n")
    elif idea == "repeat":
        train.write_text(re.sub(r"GAIN = [0-9.]+", "GAIN = 0.301", old))
    elif idea == "link":
        train.unlink()
        train.symlink_to("/etc/hostname")
    elif idea == "hang":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(900)"])
        time.sleep(900)
    elif idea == "crash":
        raise SystemExit("no such model")
    said = f"DESCRIPTION: idea {number} of {len(prompt.read_text())} letters"
    usage = {"input_tokens": 1000, "output_tokens": 10}
    print(json.dumps({"type": "result", "result": said, "usage": usage, "total_cost_usd": USD}))


if __name__ == "__main__":
    main()

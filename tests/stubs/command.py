"""The command line with stub candidates and the stub scorer: python command.py COMMAND..."""

from __future__ import annotations

import functools

from drive import open_stub_scorer
from lab import STUBS

from autoresearch import assemble, cli
from autoresearch.referee import scoring

if __name__ == "__main__":
    scoring.open_scorer = open_stub_scorer
    assemble.Host = functools.partial(assemble.Host, inside="stubinside", inside_path=STUBS)
    cli.main()

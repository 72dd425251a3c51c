"""Which tests share a worker of pytest-xdist: small ones by files, dear ones by what they set up.

Marks do not say it: the worker would have to tell the controller, and pytest-xdist 3.8 does so in
a way that pytest 9.2 took from it without a word (pytest-xdist's issue 1386).
"""

from __future__ import annotations

import os

from xdist.scheduler import LoadScopeScheduling

TOGETHER = {  # files that import the same slow packages, or start the same processes
    "torch's compiler": ("unit/benchmarks", "unit/ops", "unit/train"),
    "scipy": (
        *("unit/arena", "unit/audit", "unit/confirm", "unit/console", "unit/early_stop"),
        *("unit/plot", "unit/researchers", "unit/scorer_math"),  # some of them matplotlib too
    ),
    "openai and prices": ("unit/agent", "unit/llm", "unit/spending"),
    "tokenizers": ("unit/dataset", "unit/tokenizer"),
    "one workspace's trials": ("e2e/mcp",),
    "one scorer of each kind": ("e2e/gallery",),
}
GROUPS = {
    "tests/{}/test_{}.py".format(*name.split("/")): group
    for group, names in TOGETHER.items()
    for name in names
}


class Sharing(LoadScopeScheduling):
    """Hands out groups instead of scopes."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(nodeid: str) -> str:
    """What a test is handed out with; other than small tests, most go alone."""
    path = nodeid.partition("::")[0]
    if path.endswith("test_gallery.py") and os.environ.get("GALLERY") == "all":
        return nodeid  # many enough for every worker
    return GROUPS.get(path) or (path if path.startswith("tests/unit/") else nodeid)

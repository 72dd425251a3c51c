"""What is turned down before it costs a run. Pure: text and history in, a reason out.

Nothing here is a wall: a source that passes is as untrusted as before. It saves runs that could not
be scored, and answers from the ledger what the ledger already knows.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from dataclasses import dataclass
from difflib import SequenceMatcher, unified_diff
from typing import Literal

from autoresearch.search.history import History
from autoresearch.values.constants import (
    fingerprint,
    is_seed_only_change,
    parse_constants,
    parse_source,
)
from autoresearch.values.errors import UserError
from autoresearch.values.records import Proposal
from autoresearch.values.text import one_line

MAX_SOURCE_BYTES = 128 * 1024
MAX_LINE_CHARS = 400
REQUIRED = ("build_model", "main")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a proposal is not run: a short word for programs and a sentence for people and models."""

    kind: Literal["too_large", "no_python", "incomplete", "no_change", "seed_only", "repeat"]
    reason: str


def check_proposal(source: str, parent_source: str, history: History) -> Refusal | None:
    """None for a proposal that is worth a run on top of `parent_source`."""
    return (
        _check_size(source) or _check_program(source) or _check_news(source, parent_source, history)
    )


def tidy(proposal: Proposal, parent_source: str) -> Proposal:
    """`proposal` with a description that git takes, and called a simplification only if it is one:
    a looser rule judges those.
    """
    is_simpler = proposal.is_simplification and (
        _count_nodes(proposal.source) < _count_nodes(parent_source)
    )
    words = one_line(proposal.description)
    return dataclasses.replace(proposal, description=words, is_simplification=is_simpler)


def _count_nodes(source: str) -> float:
    """Nodes of the syntax tree; what does not parse is not simple."""
    try:
        return sum(1 for _ in ast.walk(parse_source(source)))
    except UserError:
        return math.inf


def diff_of(parent_source: str, proposal: Proposal) -> str:
    """What a proposal would change, as a unified diff of train.py; its front where it is huge."""
    if _check_size(proposal.source):
        return proposal.source[:MAX_SOURCE_BYTES]
    old, new = parent_source.splitlines(keepends=True), proposal.source.splitlines(keepends=True)
    return "".join(unified_diff(old, new, "a/train.py", "b/train.py"))


def nearer_baseline(source: str, baseline_source: str, champion_source: str) -> str:
    """Why an edit was probably made on the baseline's file and would drop what was kept, or ""."""
    if _check_size(source):
        return ""
    to_baseline, to_champion = (
        _count_changed(source, other) for other in (baseline_source, champion_source)
    )
    if to_baseline >= to_champion:
        return ""
    return (
        f"this edit is nearer to the baseline (lines changed: {to_baseline}) than to the champion "
        f"({to_champion}), so it drops what was kept"
    )


def _count_changed(old: str, new: str) -> int:
    matcher = SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False)
    steps = [step for step in matcher.get_opcodes() if step[0] != "equal"]
    return sum(max(i2 - i1, j2 - j1) for _, i1, i2, j1, j2 in steps)


def _check_size(source: str) -> Refusal | None:
    num_bytes = len(source.encode("utf-8", "surrogatepass"))
    if num_bytes > MAX_SOURCE_BYTES:
        reason = f"train.py has {num_bytes} bytes, at most {MAX_SOURCE_BYTES} are allowed"
        return Refusal(kind="too_large", reason=reason)
    for number, line in enumerate(source.splitlines(), start=1):
        if len(line) > MAX_LINE_CHARS:
            reason = (
                f"line {number} has {len(line)} characters, at most {MAX_LINE_CHARS} are allowed"
            )
            return Refusal(kind="too_large", reason=reason)
    return None


def _check_program(source: str) -> Refusal | None:
    try:
        tree = parse_source(source)
        parse_constants(source)
        fingerprint(source)
    except UserError as error:
        return Refusal(kind="no_python", reason=str(error))
    missing = [name for name in REQUIRED if not defines(tree, name)]
    if missing:
        reason = f"train.py does not define {' and '.join(missing)}, which the harness calls"
        return Refusal(kind="incomplete", reason=reason)
    return None


def defines(tree: ast.Module, name: str) -> bool:
    """True when the module binds `name` at its top level, or in a branch there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
        if isinstance(node, ast.alias) and (node.asname or node.name) == name:
            return True
    return False


def _check_news(source: str, parent_source: str, history: History) -> Refusal | None:
    tree = fingerprint(source)
    if tree == fingerprint(parent_source):
        reason = "nothing changed but comments, docstrings or formatting"
        return Refusal(kind="no_change", reason=reason)
    if is_seed_only_change(parent_source, source):
        reason = "nothing changed but a seed; seeds come from the referee"
        return Refusal(kind="seed_only", reason=reason)
    if tree == history.baseline_fingerprint:
        reason = "this is the baseline's program, whose runs the ledger has"
        return Refusal(kind="repeat", reason=reason)
    before = history.trial_like(tree)
    if before is None:
        return None
    outcome = before.decision
    verdict = f"{outcome.verdict.value}: {outcome.reason}" if outcome else "it is still running"
    reason = f"the same program was tried in trial {before.trial_id} ({verdict})"
    return Refusal(kind="repeat", reason=reason)

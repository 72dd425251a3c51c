"""The constants of a train.py: read them, change them, and tell two programs apart.

A constant is a line at module level, `NAME = literal  # meaning, unit [low, high] log`, with a name
in capitals. The range at the end of the comment is what classical optimizers may search: `[a, b]`,
`[a, b] log` or the choices `{x, y, z}`; without one the constant is not searched. Products and
powers of whole numbers (`2**19`) count as literals. A name that is bound twice is no constant.

Everything here works on text and syntax trees; no source is ever executed.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoresearch.values.errors import UserError

_NAME = re.compile(r"_?[A-Z][A-Z0-9_]*\Z")
_RANGE = re.compile(r"\[\s*([^,\[\]]+?)\s*,\s*([^,\[\]]+?)\s*\]\s*(log)?\s*\Z")
_CHOICES = re.compile(r"\{([^{}]*)\}\s*\Z")
_MAX_BITS = (
    256  # of a whole number written as a power: `9**9**9` in a source must not cost us memory
)
_SEED = re.compile(r"seed|default_rng|PRNGKey", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One constant: `low` and `high`, or `choices`, or neither say where it may be searched."""

    name: str
    value: Any
    line: int  # 1 is the first
    meaning: str = ""
    low: float | None = None
    high: float | None = None
    is_log: bool = False
    choices: tuple[Any, ...] = ()
    is_int: bool = False

    @property
    def is_searchable(self) -> bool:
        """True when the comment names a range or more than one choice."""
        return self.low is not None or len(self.choices) > 1

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value; whole numbers for a whole constant."""
        low, high = (math.nan if end is None else end for end in (self.low, self.high))
        return (float(math.ceil(low)), float(math.floor(high))) if self.is_int else (low, high)

    def clip(self, value: float) -> Any:
        """The value in the range that is nearest to `value`, in the type of the constant."""
        low, high = self.bounds
        held = min(max(value, low), high)
        return round(held) if self.is_int else float(held)


def parse_constants(source: str) -> dict[str, Constant]:
    """All constants of `source` by name, in the order of the file.

    Raises:
        UserError: the source does not parse, or a range in a comment makes no sense.
    """
    nodes = _read_assignments(source)
    return _read_constants(nodes, _split_lines(source))


def substitute(source: str, values: Mapping[str, Any]) -> str:
    """`source` with the literals of some constants replaced; comments and layout stay as they are.

    Raises:
        UserError: an unknown name (the message lists the valid ones), or a value of another type.
    """
    nodes = _read_assignments(source)
    lines = _split_lines(source)
    constants = _read_constants(nodes, lines)
    unknown = sorted(set(values) - set(constants))
    if unknown:
        raise UserError(
            f"train.py has no constant {', '.join(unknown)}; "
            f"it has {', '.join(constants) or 'none'}"
        )
    for name in sorted(values, key=lambda name: -constants[name].line):
        node = nodes[name]
        literal = _literal(name, values[name], constants[name].value).encode()
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        tail = lines[last][node.end_col_offset :]
        lines[first : last + 1] = [lines[first][: node.col_offset] + literal + tail]
    return b"".join(lines).decode()


def fingerprint(source: str) -> str:
    """SHA-256 of what the program does: its syntax tree without docstrings and comments.

    Python's own dump of a tree changes between minor versions, so compare within one version only.
    """
    return _hash_tree(_strip_texts(parse_source(source)))


def is_seed_only_change(old: str, new: str) -> bool:
    """True when the programs differ, but only in seeds.

    That is: in a seed's value, in arithmetic on it, or in the arguments of a seeding call.
    """
    if fingerprint(old) == fingerprint(new):
        return False
    try:
        trees = [_DropSeeds().visit(_strip_texts(parse_source(text))) for text in (old, new)]
    except RecursionError as error:
        raise UserError(f"train.py cannot be compared with others: {error}") from error
    return _hash_tree(trees[0]) == _hash_tree(trees[1])


def num_ast_nodes(source: str) -> int:
    """Nodes of the syntax tree without docstrings: a size that formatting cannot change."""
    tree = _strip_texts(parse_source(source))
    return sum(not isinstance(node, ast.expr_context) for node in ast.walk(tree))


def parse_source(source: str) -> ast.Module:
    """The syntax tree of `source`.

    Raises:
        UserError: it does not parse; the message gives line and cause.
    """
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"train.py does not parse: line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"train.py does not parse: {error or 'it is nested too deeply'}") from error


def _read_assignments(source: str) -> dict[str, ast.expr]:
    tree = parse_source(source)
    try:
        return dict(_assignments(tree))
    except RecursionError as error:
        raise UserError(f"train.py is nested too deeply to be read: {error}") from error


def _read_constants(nodes: Mapping[str, ast.expr], lines: Sequence[bytes]) -> dict[str, Constant]:
    """Those of the assignments that have a literal on the right, with what comments say of them."""
    constants: dict[str, Constant] = {}
    for name, node in nodes.items():
        value = _evaluate(node)
        if value is not None:
            last = lines[(node.end_lineno or node.lineno) - 1]
            comment = _find_comment(last[node.end_col_offset :].decode())
            constants[name] = _constant(name, value, node.lineno, comment)
    return constants


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Names in capitals that are bound once outside functions, each with its right side."""
    times = Counter(_bound_names(tree))
    for node in tree.body:
        target: ast.expr | None = None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign):
            target = node.target
        if isinstance(target, ast.Name) and times[target.id] == 1 and _NAME.match(target.id):
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if value is not None:
                yield target.id, value


def _bound_names(node: ast.AST) -> Iterator[str]:
    """Every name that is bound outside functions and classes, once for each time."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        if not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
        ):
            yield from _bound_names(child)


def _evaluate(node: ast.expr, depth: int = 0) -> Any:
    """The value of a literal, or of a product or power of whole numbers; None for all else."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        pass
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult | ast.Pow) or depth > 9:
        return None
    left, right = _evaluate(node.left, depth + 1), _evaluate(node.right, depth + 1)
    if type(left) is not int or type(right) is not int:
        return None
    if isinstance(node.op, ast.Mult):
        return left * right if left.bit_length() + right.bit_length() <= _MAX_BITS else None
    return left**right if right >= 0 and left.bit_length() * right <= _MAX_BITS else None


def _find_comment(tail: str) -> str:
    """The text of the comment in what follows a value on its line.

    Tokens are asked for only behind a semicolon: those of a whole file take longer than its tree.
    """
    rest = tail.lstrip(" \t\f)")
    if rest.startswith(";"):
        try:
            for token in tokenize.generate_tokens(iter([rest]).__next__):
                if token.type == tokenize.COMMENT:
                    rest = token.string
        except (tokenize.TokenError, SyntaxError):
            pass  # a statement that goes on in the next line
    return rest.lstrip("#").strip() if rest.startswith("#") else ""


def _constant(name: str, value: Any, line: int, comment: str) -> Constant:
    is_int = type(value) is int
    plain = Constant(name=name, value=value, line=line, meaning=comment, is_int=is_int)
    bounds, choices = _RANGE.search(comment), _CHOICES.search(comment)
    if bounds and type(value) in (int, float):
        low, high = (_number(text, name, line) for text in bounds.group(1, 2))
        is_log = bounds.group(3) is not None
        if not low < high or (is_log and low <= 0) or (is_int and math.ceil(low) > high):
            raise UserError(
                f"train.py line {line}: {name} has the range {bounds.group(0)!r}, "
                "expected [low, high] with low < high, and low > 0 for log"
            )
        meaning = _meaning(comment, bounds)
        return replace(plain, meaning=meaning, low=low, high=high, is_log=is_log)
    if choices:
        texts = (text.strip() for text in choices.group(1).split(","))
        options = tuple(_choice(text, value, name, line) for text in texts)
        return replace(plain, meaning=_meaning(comment, choices), choices=options)
    return plain


def _meaning(comment: str, match: re.Match[str]) -> str:
    return comment[: match.start()].rstrip(" ,;:")


def _number(text: str, name: str, line: int) -> float:
    value = _parse_literal(text)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise UserError(
            f"train.py line {line}: {name} has the bound {text!r} in its range, expected a number"
        )
    return float(value)


def _choice(text: str, value: Any, name: str, line: int) -> Any:
    """One of the choices, in the type of the constant; strings need no quotes."""
    option = _parse_literal(text)
    if isinstance(value, str):
        return option if isinstance(option, str) else text
    if type(value) is float and type(option) is int:
        return float(option)
    if type(option) is not type(value):
        raise UserError(
            f"train.py line {line}: {name} = {value!r} has the choice {text!r}, "
            f"expected a {type(value).__name__}"
        )
    return option


def _parse_literal(text: str) -> Any:
    try:
        return _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _literal(name: str, value: Any, current: Any) -> str:
    """`value` as source text, in the type that the constant has now."""
    if type(current) is float and type(value) is int:
        value = float(value)
    elif type(current) is int and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not type(current) or (type(value) is float and not math.isfinite(value)):
        raise UserError(
            f"constant {name} = {current!r} cannot become {value!r}, "
            f"expected a {type(current).__name__}"
        )
    if isinstance(value, str):
        text = repr(value)
        return f'"{text[1:-1]}"' if text[0] == "'" and '"' not in text else text
    return repr(value)


def _split_lines(source: str) -> list[bytes]:
    """Lines as bytes, cut where Python's parser cuts: its columns count bytes."""
    return re.findall(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", source.encode())


def _strip_texts(tree: ast.Module) -> ast.Module:
    """The tree without statements that are only a string: docstrings and comments in disguise."""
    for node in ast.walk(tree):
        for part in ("body", "orelse", "finalbody"):
            block = getattr(node, part, None)
            if isinstance(block, list):
                setattr(node, part, [statement for statement in block if not _is_text(statement)])
    return tree


def _is_text(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _hash_tree(tree: ast.AST) -> str:
    try:
        return hashlib.sha256(ast.dump(tree).encode("utf-8", "backslashreplace")).hexdigest()
    except (ValueError, RecursionError) as error:
        raise UserError(f"train.py cannot be compared with others: {error}") from error


def _names_seed(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return bool(_SEED.search(node.id))
    return isinstance(node, ast.Attribute) and bool(_SEED.search(node.attr))


class _DropSeeds(ast.NodeTransformer):
    """Replaces every seed by one and the same thing."""

    def __init__(self) -> None:
        self._is_searched = False  # whether we are inside arithmetic that names no seed

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A seeding call loses its arguments; a keyword `seed=` loses its value."""
        if _names_seed(node.func):
            node.args, node.keywords = [], []
            return node
        for keyword in node.keywords:
            if keyword.arg and _SEED.search(keyword.arg):
                keyword.value = ast.Constant(value=0)
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """A number assigned to a name that speaks of a seed is one."""
        if (
            any(_names_seed(target) for target in node.targets)
            and _evaluate(node.value) is not None
        ):
            node.value = ast.Constant(value=0)
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Arithmetic on a seed is a seed."""
        if self._is_searched:
            return self.generic_visit(node)
        if any(_names_seed(part) for part in ast.walk(node)):
            return ast.Constant(value=0)
        self._is_searched = True
        try:
            return self.generic_visit(node)
        finally:
            self._is_searched = False

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """`run.seed` alone is a seed like any arithmetic on it."""
        if _names_seed(node) and isinstance(node.ctx, ast.Load):
            return ast.Constant(value=0)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A name that speaks of a seed, where it is read."""
        return (
            ast.Constant(value=0) if _names_seed(node) and isinstance(node.ctx, ast.Load) else node
        )

"""Constants of a train.py: read, changed in place, and programs compared by what they do."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.values.constants import (
    fingerprint,
    is_seed_only_change,
    num_ast_nodes,
    parse_constants,
    substitute,
)
from autoresearch.values.errors import UserError

SOURCE = '''"""A model."""
import torch

# step sizes
MATRIX_LR = 0.04  # Muon step size [0.005, 0.2] log
DEPTH = 2  # transformer blocks [1, 12]
TOTAL_BATCH = 2**5 * 4  # rows a step [8, 512] log
PATTERN = "SSSL"  # windows by layer, S short {"SSSL", "SL", L}
HEAD_DIM: int = 32  # channels {16, 32, 64}
GAIN = 1.0  # factor {1, 1.5}
FUSED = True  # fused kernels {True, False}
DECAY = -0.5  # [-1, 1]
COMPILE = True  # nothing to choose {True}
BETAS = (0.8,
         0.95)  # Adam, decay a step
FREE = 3
lower = 4  # [1, 5]
TWICE = 1  # [0, 2]
TWICE = 2  # [0, 2]
EXPRESSION = DEPTH + 1  # [0, 2]
BOMB = 9**9**9  # [0, 1]
NOTHING = None  # [0, 1]


def main(run):
    DEPTH, T = 1, 2
    return MATRIX_LR
'''


def test_reads_values_meanings_and_ranges() -> None:
    """Every kind of range, by name, in the order of the file."""
    found = parse_constants(SOURCE)
    assert list(found) == [
        "MATRIX_LR", "DEPTH", "TOTAL_BATCH", "PATTERN", "HEAD_DIM", "GAIN", "FUSED", "DECAY",
        "COMPILE", "BETAS", "FREE",
    ]  # fmt: skip
    rate = found["MATRIX_LR"]
    assert (rate.value, rate.meaning, rate.line) == (0.04, "Muon step size", 5)
    assert (rate.low, rate.high, rate.is_log, rate.is_int) == (0.005, 0.2, True, False)
    assert (found["DEPTH"].is_int, found["DEPTH"].is_log) == (True, False)
    assert found["TOTAL_BATCH"].value == 128
    assert found["PATTERN"].choices == ("SSSL", "SL", "L")
    assert found["PATTERN"].meaning == "windows by layer, S short"
    assert found["HEAD_DIM"].choices == (16, 32, 64)
    assert found["GAIN"].choices == (1.0, 1.5)
    assert found["FUSED"].choices == (True, False)
    assert found["DECAY"].value == -0.5
    assert found["BETAS"].value == (0.8, 0.95)
    searchable = [name for name, constant in found.items() if constant.is_searchable]
    assert searchable == list(found)[:8]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("A = 1.0  # x [2, 1]", "low < high"),
        ("A = 1.0  # x [0, 1] log", "low > 0 for log"),
        ("A = 1.0  # x [zero, 1]", "expected a number"),
        ("A = 1  # x [0.2, 0.8]", "low < high"),
        ("A = 1  # x {1, two}", "expected a int"),
        ("A = (", "does not parse"),
        ("A = '''", "does not parse"),
        ("x = " + "-" * 100_000 + "1", "does not parse"),
        ("x = 1\x00", "does not parse"),
    ],
)
def test_bad_sources_are_named(line: str, words: str) -> None:
    """A range without sense or a source that does not parse says so, with its line."""
    with pytest.raises(UserError, match=words):
        parse_constants(line + "\n")


@pytest.mark.parametrize(
    "source",
    [
        "A = 1; b = '#'  # x [0, 5]\n",
        "A = 1; b = (  # x [0, 5]\n2)\n",
        "A = (\n1  # x [0, 5]\n)  # y [0, 9]\n",
        "b = '\u20ac'; A = ( 1 ) # x [0, 5]\r# y",
    ],
)
def test_a_comment_is_that_of_the_line(source: str) -> None:
    """Where the value ends, whatever else stands there."""
    found = parse_constants(source)["A"]
    assert (found.meaning, found.high) == ("x", 5.0)


def test_substitute_changes_the_literal_alone() -> None:
    """Comments, layout and all other lines stay; a constant over two lines is replaced whole."""
    values = {"MATRIX_LR": 0.01, "TOTAL_BATCH": 64, "PATTERN": "L", "BETAS": (0.9, 0.99)}
    changed = substitute(SOURCE, values)
    assert "MATRIX_LR = 0.01  # Muon step size [0.005, 0.2] log\n" in changed
    assert "TOTAL_BATCH = 64  # rows a step [8, 512] log\n" in changed
    assert 'PATTERN = "L"  # windows' in changed
    assert "BETAS = (0.9, 0.99)  # Adam, decay a step\nFREE = 3\n" in changed
    assert "    DEPTH, T = 1, 2\n" in changed
    assert substitute(SOURCE, {}) == SOURCE


def test_substitute_keeps_types_and_odd_bytes() -> None:
    """Whole numbers stay whole, fractions fractions; line ends and wide characters survive."""
    source = "\u00e9 = '\u20ac'; A = 1.5\r\nB = 2  # \U0001f600 [1, 3]\r\n"
    changed = substitute(source, {"A": 2, "B": 3.0})
    assert changed == "\u00e9 = '\u20ac'; A = 2.0\r\nB = 3  # \U0001f600 [1, 3]\r\n"
    assert substitute('A = "x"', {"A": 'say "no"'}) == "A = 'say \"no\"'"
    assert substitute('A = "x"', {"A": "it's"}) == 'A = "it\'s"'


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"MATRIX": 1.0}, "no constant MATRIX; it has MATRIX_LR, DEPTH"),
        ({"DEPTH": 2.5}, "expected a int"),
        ({"DEPTH": True}, "expected a int"),
        ({"PATTERN": 3}, "expected a str"),
        ({"MATRIX_LR": float("nan")}, "expected a float"),
        ({"MATRIX_LR": float("inf")}, "expected a float"),
    ],
)
def test_substitute_refuses_unknown_names_and_other_types(
    values: dict[str, object], words: str
) -> None:
    """The message lists what there is."""
    with pytest.raises(UserError, match=words):
        substitute(SOURCE, values)


@given(
    rate=st.floats(1e-9, 1e9),
    depth=st.integers(-(10**9), 10**9),
    pattern=st.text(max_size=20),
    is_fused=st.booleans(),
)
def test_substituted_values_come_back(
    rate: float, depth: int, pattern: str, is_fused: bool
) -> None:
    """Whatever is written in is read out again, and nothing else has changed."""
    values = {"MATRIX_LR": rate, "DEPTH": depth, "PATTERN": pattern, "FUSED": is_fused}
    try:
        changed = substitute(SOURCE, values)
    except UnicodeEncodeError:
        return  # a lone surrogate is in no file
    found = parse_constants(changed)
    assert {name: found[name].value for name in values} == values
    before = parse_constants(SOURCE)
    back = {name: before[name].value for name in values}
    assert substitute(changed, back) == SOURCE


def test_fingerprint_sees_the_program_only() -> None:
    """Comments, docstrings, spaces and spelling of a number are nothing; values are something."""
    plain = "X = 0.02\ndef f():\n    return X\n"
    for same in (
        '"""Doc."""\nX = 0.020  # a comment\n\n\ndef f():\n    """Doc."""\n    return (X)\n',
        "X = 2e-2\ndef f():\n    'text'\n    return X\n    'more'\n",
    ):
        assert fingerprint(same) == fingerprint(plain)
    assert fingerprint(plain.replace("0.02", "0.03")) != fingerprint(plain)
    assert fingerprint('def f():\n    """Only a text."""\n') == fingerprint('def f():\n    "x"\n')
    with pytest.raises(UserError, match="does not parse"):
        fingerprint("def (")


@pytest.mark.parametrize("num", [90, 250, 5000])
@pytest.mark.parametrize("sign", ["+", "*"])
def test_deep_nesting_is_refused_in_words(num: int, sign: str) -> None:
    """However deep a program is nested: read, or refused, never a stack overflow."""
    source = f"X = {sign.join(['2'] * num)}\nx = {sign.join(['y'] * num)}\n"
    for function in (parse_constants, fingerprint, lambda text: is_seed_only_change(text, "x")):
        try:
            function(source)
        except UserError as error:
            assert "train.py" in str(error)  # noqa: PT017 - either way is right


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SEED = 1", "SEED = 2"),
        ("torch.manual_seed(run.seed)", "torch.manual_seed(run.seed + 17)"),
        ("torch.manual_seed(run.seed)", "torch.manual_seed(42)"),
        ("f(generator(seed=1))", "f(generator(seed=7))"),
        ("rng = np.random.default_rng(3)", "rng = np.random.default_rng(4)"),
        ("x = run.seed", "x = run.seed * 3"),
        ("x = g(my_seed)", "x = g(my_seed ^ 5)"),
    ],
)
def test_seed_changes_are_seen(old: str, new: str) -> None:
    """A new seed, arithmetic on the given one, another number in a seeding call."""
    assert is_seed_only_change(old, new)
    assert not is_seed_only_change(old, old)
    assert not is_seed_only_change(old + "\nX = 1", new + "\nX = 2")


def test_other_changes_are_no_seed_changes() -> None:
    """A change beside the seed, or of something else, is a change."""
    assert not is_seed_only_change("LR = 1", "LR = 2")
    assert not is_seed_only_change("f(x, seed=1)", "f(y, seed=2)")
    assert not is_seed_only_change("SEED = 1\nLR = 1", "SEED = 2\nLR = 2")
    assert not is_seed_only_change("# a", "# b")


def test_nodes_count_program_not_text() -> None:
    """Formatting and docstrings do not make a program larger; a statement does."""
    small = "def f(x):\n    return x\n"
    same = '"""Doc."""\ndef f(\n    x,\n):  # note\n    """Doc."""\n    return x\n'
    assert num_ast_nodes(small) == num_ast_nodes(same)
    assert num_ast_nodes(small + "y = f(1)\n") > num_ast_nodes(small)


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    """Any text at all is either read or refused in words."""
    for function in (parse_constants, fingerprint, num_ast_nodes):
        try:
            function(text)
        except UserError:
            continue
        assert ast.parse(text)

"""Rules about the repository itself that nobody should have to remember."""

from __future__ import annotations

import ast
import importlib
import os
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from workers import GROUPS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "autoresearch"
TRAIN = SOURCE / "templates" / "train.py"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != TRAIN)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("dev/*.md")])
HAS_TORCH = ("inside/", "referee/scorer.py")  # processes of their own
MAY_IMPORT_TORCH = (*HAS_TORCH, "wire/device_memory.py")  # what they share imports it late
LATE = {
    "torch",
    "cmaes",
    "optuna",
    "matplotlib",
    "huggingface_hub",
    "pyarrow",
    "scipy",
    "tokenizers",
    "openai",
    "mcp",
}
MAX_MODULE_LINES, MAX_FUNCTION_LINES, MEDIAN_FUNCTION_LINES = 400, 60, 12
MAX_TRAIN_LINES = 742
OURS = {"UserError", "DataError", "WorkspaceError", "TrustViolation"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def _length(node: Function) -> int:
    """Lines of a function without its docstring."""
    doc = node.body[0] if ast.get_docstring(node) else None
    return (
        (node.end_lineno or 0)
        - node.lineno
        + 1
        - ((doc.end_lineno or 0) - doc.lineno + 1 if doc else 0)
    )


def _imports(nodes: Iterator[ast.AST]) -> set[str]:
    """First parts of the names of all modules that these nodes import."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


def _at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported, which leaves out bodies of functions and type
    checking.
    """
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not isinstance(node, Function) and not is_typing:
            waiting += ast.iter_child_nodes(node)


def test_rooms_import_one_way() -> None:
    """The import contracts of pyproject.toml hold, and no module is outside them."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as c; c()",
        "--no-cache",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_control_plane_has_no_torch() -> None:
    """Importing the command line and asking for help loads none of the slow packages."""
    code = (
        "import sys; from autoresearch import cli\n"
        "sys.argv = ['autoresearch', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print('LOADED', *sorted({LATE!r} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_slow_packages_are_imported_late() -> None:
    """torch only where tensors are, the rest inside the function that needs it."""
    too_early, not_at_all = {}, []
    for path in MODULES:
        name, tree = _name(path), _parse(path)
        allowed = {"torch"} if name.startswith(HAS_TORCH) else set()
        if found := _imports(_at_import(tree)) & LATE - allowed:
            too_early[name] = found
        if not name.startswith(MAY_IMPORT_TORCH) and "torch" in _imports(ast.walk(tree)):
            not_at_all.append(name)
    assert too_early == {}
    assert not_at_all == []


def test_modules_and_functions_are_small() -> None:
    """Caps of AGENTS.md."""
    lengths = {_name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: n for name, n in lengths.items() if n > MAX_MODULE_LINES} == {}
    lengths = {f"{_name(p)}: {f.name}": _length(f) for p in MODULES for f in _functions(_parse(p))}
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}


def test_modules_and_functions_are_documented() -> None:
    """A docstring for each module and each public function."""
    bare = []
    for path in MODULES:
        tree, name = _parse(path), _name(path)
        if tree.body and not ast.get_docstring(tree):
            bare.append(name)
        defined = [n for n in tree.body if isinstance(n, Function | ast.ClassDef)]
        public = [node for node in defined if not node.name.startswith("_")]
        bare += [f"{name}: {node.name}" for node in public if not ast.get_docstring(node)]
    assert bare == []


def test_functions_are_mostly_short() -> None:
    """The median function fits in twelve lines."""
    lengths = [_length(node) for path in MODULES for node in _functions(_parse(path))]
    assert statistics.median(lengths) <= MEDIAN_FUNCTION_LINES


def test_train_py_stays_readable() -> None:
    """One file that a person enjoys reading."""
    assert len(TRAIN.read_text().splitlines()) <= MAX_TRAIN_LINES


def test_code_is_ascii() -> None:
    """No character that a terminal, a diff or an agent may mangle."""
    assert [_name(p) for p in [*MODULES, TRAIN] if not p.read_bytes().isascii()] == []


def test_every_test_says_what_it_shows() -> None:
    """One line of docstring a test."""
    paths = [path for path in TESTS if path.name.startswith("test_")]
    tests = [
        (p.name, f) for p in paths for f in _functions(_parse(p)) if f.name.startswith("test_")
    ]
    assert [(name, f.name) for name, f in tests if not ast.get_docstring(f)] == []


def test_files_that_share_a_worker_exist() -> None:
    """Who renames a file of tests renames it in the list too."""
    assert [path for path in GROUPS if not (ROOT / path).is_file()] == []


def test_every_marker_is_used() -> None:
    """A marker that is declared marks something."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    text = "\n".join(path.read_text() for path in TESTS)
    declared = [line.partition(":")[0] for line in settings["markers"]]
    assert [name for name in declared if f"mark.{name}" not in text] == []


def _slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^a-z0-9 _-]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    """Every relative link leads to a file, every anchor to a heading."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{page.name} links to {link}"
        if anchor and there.suffix == ".md":
            headings = re.findall(
                r"^#+ (.+)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE
            )
            assert anchor in {_slug(heading) for heading in headings}, (
                f"{page.name} links to {link}"
            )


def test_no_host_of_a_package_registry() -> None:
    """Where packages come from is for the environment to say, not for this repository."""
    hosts = re.compile(r"\b(?:files\.pythonhosted|pypi|download\.pytorch|registry\.npmjs)\.org")
    paths = [
        *ROOT.glob("*"),
        *(ROOT / ".ci").glob("*"),
        *SOURCE.rglob("*"),
        *TESTS,
        *PAGES,
        *ROOT.glob("runs/*"),
    ]
    files = [path for path in paths if path.is_file() and path.suffix not in {".png", ".pyc"}]
    assert len(files) > 20
    assert [path.name for path in files if hosts.search(path.read_text(errors="replace"))] == []


LISTING = [path for path in MODULES if "__all__" in path.read_text()]


@pytest.mark.parametrize("path", LISTING, ids=_name)
def test_exported_names_exist_and_are_sorted(path: Path) -> None:
    """Where a module lists what it exports, the list is sorted and right."""
    name = _name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    module = importlib.import_module(f"autoresearch.{name}".removesuffix(".__init__"))
    assert list(module.__all__) == sorted(module.__all__)
    assert [each for each in module.__all__ if not hasattr(module, each)] == []


def _messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and constant text of every error of ours that is raised with a message written on the
    spot.
    """
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) in OURS and call.args:
            parts = [n.value for n in ast.walk(call.args[0]) if isinstance(n, ast.Constant)]
            yield node.lineno, "".join(part for part in parts if isinstance(part, str))


def test_errors_end_without_a_full_stop() -> None:
    """Messages are put into lines, and the command at their end is copied from there."""
    messages = [(_name(path), *found) for path in MODULES for found in _messages(_parse(path))]
    assert messages
    assert [found for found in messages if found[-1].rstrip().endswith(".")] == []


def test_versions_are_said_once() -> None:
    """torch is pinned in constraints.txt, within the range of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pin = re.search(
        r"^torch==(\d+)\.(\d+)\.\d+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    wanted = re.search(r"torch>=(\d+)\.(\d+),<(\d+)", " ".join(project["dependencies"]))
    assert pin is not None
    assert wanted is not None
    low, high = (int(wanted[1]), int(wanted[2])), (int(wanted[3]), 0)
    assert low <= (int(pin[1]), int(pin[2])) < high

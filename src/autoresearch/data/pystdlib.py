"""The corpus `pystdlib`: Python source text that every machine already has.

Only packages are taken that a trainer never imports and that a sandbox can hide whole. `distutils`
is left out: its text lives on inside setuptools, which stays visible. Scoring documents are chosen
more strictly than training ones:

* never from PACKAGES whose text has visible relatives (lib2to3 shares files with `tokenize`, black
  and others), nor from NEVER_SCORED, whose text was found again in other visible files by a search
  for shared lines;
* of MIN_SCORED_CHARS at least (small files are mostly boilerplate that other files share);
* with under MAX_SHARED_FRAC of their lines in any other document, so that near-copies stay on one
  side.

Where a distribution leaves `test` out, the corpus is what is there.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from autoresearch.data.document import (
    Corpus,
    Shard,
    Source,
    clean,
    digest,
    pool_chars,
    score_thresholds,
    take_chars,
)
from autoresearch.values.config import DataSettings
from autoresearch.values.errors import DataError

PACKAGES = ("ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "turtledemo")
# Where other Python versions keep files that this version's PACKAGES have (3.12 moved unittest/test
# into test/).
RELATIVES = ("ctypes/test", "sqlite3/test", "unittest/test")
SCORED_PACKAGES = ("idlelib", "test", "tkinter", "turtledemo")
NEVER_SCORED = (
    "test/test_importlib/*",  # importlib_resources, importlib_metadata and zipp carry these tests
    "test/test_sysconfig.py",  # distutils/tests/test_util.py
    "test/test_asyncio/utils.py",  # asyncio/selector_events.py
    "test/test_epoll.py",  # its licence is that of markdown_it
    "test/test_logging.py",  # its licence is that of logging
    "test/test_unittest/*",  # unittest/test of older Pythons
    "test/test_ctypes/*",  # ctypes/test of older Pythons
    "test/test_sqlite3/*",
    "test/test_tkinter/*",
    "test/test_ttk/*",
    "test/test_zipfile/*",  # zipp
    "test/support/*",  # copied into many a test suite
)
MIN_SCORED_CHARS = 2_000
MAX_SHARED_FRAC = 0.5
MIN_LINE_CHARS = 30  # shorter lines recur by chance
MIN_FILES = 40

_SKIPPED = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "node_modules", "proc", "sys", "dev"}
)
_MAX_DEPTH = (
    7  # of lib/python3.x under a root: ~/.local/share/uv/python/NAME/lib/python3.x under /root is 6
)


def read_pystdlib(settings: DataSettings, folder: Path | None = None) -> Corpus:
    """Read the corpus from the running Python's standard library, or from `folder`.

    Raises:
        DataError: none of the packages is there.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    texts = dict(_read_files(root))
    if len(texts) < MIN_FILES:
        raise DataError(
            f"{root} has {len(texts)} source files in {', '.join(PACKAGES)}, at least {MIN_FILES} "
            "are needed for the corpus 'pystdlib': this Python was installed without them. Set "
            "data.corpus to 'files' and data.path to a folder of text, or use another Python"
        )
    validation, holdout = _choose(texts)
    scored = {*validation, *holdout}
    train = [text for name, text in texts.items() if name not in scored]
    return Corpus(
        name="pystdlib",
        train=[Shard(name="pystdlib", size_bytes=sum(map(len, train)), read=lambda: iter(train))],
        validation=take_chars(
            (texts[name] for name in validation), pool_chars(settings.score_tokens)
        ),
        holdout=take_chars((texts[name] for name in holdout), pool_chars(settings.holdout_tokens)),
        sources=[Source(name=name, size_bytes=len(text.encode())) for name, text in texts.items()],
        origin={
            "python": platform.python_version(),
            "packages": [name for name in PACKAGES if (root / name).is_dir()],
        },
    )


def _read_files(root: Path) -> Iterator[tuple[str, str]]:
    """(path under root, text) of every readable source file, each text once."""
    seen: set[int] = set()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            try:
                text = clean(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError):
                continue  # some tests are in other encodings on purpose
            key = digest(text)
            if text.strip() and key not in seen:
                seen.add(key)
                yield path.relative_to(root).as_posix(), text


def _choose(texts: dict[str, str]) -> tuple[list[str], list[str]]:
    """Names of validation and of holdout documents, each in the order of their hashes."""
    keys = {digest(name): name for name in texts if _may_score(name, texts[name])}
    lines = {name: _lines(text) for name, text in texts.items()}
    num_owners = Counter(line for owned in lines.values() for line in owned)
    alone = {
        key: name
        for key, name in keys.items()
        if _shared_frac(lines[name], num_owners) < MAX_SHARED_FRAC
    }
    frac = 0.07 if len(alone) > 400 else 0.12  # without `test` there are few, and rows are needed
    validation_bound, holdout_bound = score_thresholds(alone, frac, frac)
    ordered = sorted(alone)
    validation = [alone[key] for key in ordered if key <= validation_bound]
    return validation, [alone[key] for key in ordered if validation_bound < key <= holdout_bound]


def _may_score(name: str, text: str) -> bool:
    if name.split("/", 1)[0] not in SCORED_PACKAGES or len(text) < MIN_SCORED_CHARS:
        return False
    return not any(fnmatch(name, pattern) for pattern in NEVER_SCORED)


def _lines(text: str) -> set[str]:
    return {line for raw in text.splitlines() if len(line := raw.strip()) >= MIN_LINE_CHARS}


def _shared_frac(lines: set[str], num_owners: Counter[str]) -> float:
    return sum(num_owners[line] > 1 for line in lines) / max(1, len(lines))


def hidden_folders(roots: Iterable[Path]) -> list[Path]:
    """Every folder below `roots` that holds the text of this corpus, in whatever Python
    installation: hide them all.

    A root may be an installation prefix, a folder of installations, or a standard library folder
    itself. Symbolic links to folders are not followed: what they point to is found where it lies,
    if it is below a root.
    """
    found: set[Path] = set()
    for root in roots:
        for library in _libraries(Path(root), _MAX_DEPTH):
            candidates = (library / name for name in (*PACKAGES, *RELATIVES))
            found.update(folder for folder in candidates if folder.is_dir())
    return sorted(found)


def _libraries(folder: Path, depth: int) -> Iterator[Path]:
    """Folders named python3* or pypy3* below `folder`, itself included."""
    if fnmatch(folder.name, "python3*") or fnmatch(folder.name, "pypy3*"):
        yield folder
    if depth == 0:
        return
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return  # unreadable for us is unreadable for the candidate
    for entry in entries:
        if entry.name not in _SKIPPED:
            yield from _libraries(folder / entry.name, depth - 1)

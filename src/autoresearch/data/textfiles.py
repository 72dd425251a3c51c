"""The corpus `files`: any folder of .txt, .md, .jsonl and .parquet, each optionally .gz or .zst
(parquet has its own).

A text file is one document, a line {"text": ...} of .jsonl is one, a row of the column `text` of
.parquet is one. Files are read in the order of their names. A file or folder whose name starts with
`val` or `validation` (then nothing, or one of - _ . and anything) is the validation split whole;
likewise `holdout`. Otherwise documents are chosen by the hash of their text. A folder with fewer
than MIN_DOCUMENTS documents has its text files cut at the ends of paragraphs into about NUM_PIECES
pieces, so that one big file can be split too.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from autoresearch.data.document import (
    SCORE_FRAC,
    Corpus,
    Report,
    Shard,
    Source,
    clean,
    digest,
    pool_chars,
    score_thresholds,
    take_chars,
)
from autoresearch.values.config import DataSettings
from autoresearch.values.errors import DataError, UserError

KINDS = (".txt", ".md", ".jsonl", ".parquet")
PACKINGS = (".gz", ".zst")
MIN_DOCUMENTS = 20
NUM_PIECES = 200
MIN_PIECE_CHARS = 500

_CHUNK_BYTES = 1 << 20
_PINNED = re.compile(r"(validation|val|holdout)([-_.].*)?$")


def read_files(settings: DataSettings, report: Report) -> Corpus:
    """Read the folder `settings.path`.

    Raises:
        UserError: no path is set, it is not a folder, or a package is missing.
        DataError: a file is damaged or not text, or there are too few documents to split.
    """
    root = _root(settings)
    files = _files(root)
    if not files:
        raise DataError(
            f"{root} has no file of the kinds {', '.join(KINDS)} (optionally "
            f"{', '.join(PACKINGS)}); set data.path to a folder that has"
        )
    pinned: dict[str, list[Path]] = {"": [], "validation": [], "holdout": []}
    for path in files:
        pinned[_split_of(path.relative_to(root))].append(path)
    piece_chars = _piece_chars(pinned[""])
    read = partial(_documents, piece_chars=piece_chars)
    validation, holdout, is_train = _choose(pinned, read, settings, report)
    return Corpus(
        name="files",
        train=[_shard(path, root, read, is_train) for path in pinned[""]],
        validation=validation,
        holdout=holdout,
        sources=list_sources(root),
        origin={"path": str(root), "piece_chars": piece_chars},
    )


def list_sources(root: Path) -> list[Source]:
    """Name and size of every file that counts."""
    return [
        Source(name=path.relative_to(root).as_posix(), size_bytes=path.stat().st_size)
        for path in _files(root)
    ]


def _files(root: Path) -> list[Path]:
    paths = sorted(root.rglob("*"))
    return [path for path in paths if path.is_file() and _kind(path) and not _is_hidden(path, root)]


def _root(settings: DataSettings) -> Path:
    if not settings.path:
        raise UserError(
            "data.corpus is 'files' but data.path is empty; set data.path to a folder of text files"
        )
    root = Path(settings.path).expanduser().absolute()
    if not root.is_dir():
        raise UserError(
            f"data.path is {settings.path!r}, which is no folder; set it to a folder of text files"
        )
    return root


def _kind(path: Path) -> str:
    """.txt, .md, .jsonl or .parquet; "" for other files."""
    name = path.name.lower()
    for packing in PACKINGS:
        name = name.removesuffix(packing)
    kind = next((kind for kind in KINDS if name.endswith(kind)), "")
    return "" if kind == ".parquet" and name != path.name.lower() else kind


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _split_of(path: Path) -> str:
    """The split that the name of a file, or of a folder around it, asks for; "" for none."""
    for part in path.parts:
        if match := _PINNED.match(part.lower()):
            return "holdout" if match[1] == "holdout" else "validation"
    return ""


def _piece_chars(files: list[Path]) -> int:
    """Size of the pieces that text files must be cut into; 0 where there are documents enough."""
    first = islice((text for path in files for text in _documents(path)), MIN_DOCUMENTS)
    sizes = [len(text) for text in first]
    return max(MIN_PIECE_CHARS, sum(sizes) // NUM_PIECES) if len(sizes) < MIN_DOCUMENTS else 0


def _choose(
    pinned: dict[str, list[Path]],
    read: Callable[[Path], Iterator[str]],
    settings: DataSettings,
    report: Report,
) -> tuple[list[str], list[str], Callable[[str], bool]]:
    """Validation documents, holdout documents, and the test for training documents."""
    digests = array("Q")
    total_bytes = sum(path.stat().st_size for path in pinned[""])
    done_bytes = 0
    for path in pinned[""]:
        report("read", done_bytes, total_bytes)
        digests.extend(digest(text) for text in read(path))
        done_bytes += path.stat().st_size
    report("read", total_bytes, total_bytes)
    wanted = {"validation": settings.score_tokens, "holdout": settings.holdout_tokens}
    fracs = [
        0.0 if pinned[split] else min(SCORE_FRAC, pool_chars(tokens) / max(1, total_bytes))
        for split, tokens in wanted.items()
    ]
    validation_bound, holdout_bound = score_thresholds(digests, *fracs)
    chosen: dict[str, dict[int, str]] = {"validation": {}, "holdout": {}}
    for split, paths in pinned.items():
        for path in paths:
            for text in read(path):
                key = digest(text)
                place = split or ("validation" if key <= validation_bound else "holdout")
                if split or key <= holdout_bound:
                    chosen[place].setdefault(key, text)
    for key in chosen["validation"]:
        chosen["holdout"].pop(key, None)
    if (
        not chosen["validation"]
        or not chosen["holdout"]
        or all(key <= holdout_bound for key in digests)
    ):
        raise DataError(
            f"{settings.path} has {len(set(digests))} different documents to share out, which is "
            "too few for training, validation and holdout; add text"
        )
    validation = take_chars(chosen["validation"].values(), pool_chars(settings.score_tokens))
    holdout = take_chars(chosen["holdout"].values(), pool_chars(settings.holdout_tokens))
    return validation, holdout, lambda text: digest(text) > holdout_bound


def _shard(
    path: Path, root: Path, read: Callable[[Path], Iterator[str]], is_train: Callable[[str], bool]
) -> Shard:
    name = path.relative_to(root).as_posix()
    return Shard(name=name, size_bytes=text_bytes(path), read=lambda: filter(is_train, read(path)))


def _documents(path: Path, piece_chars: int = 0) -> Iterator[str]:
    """The documents of one file, blank ones left out."""
    kind = _kind(path)
    if kind == ".parquet":
        texts = parquet_texts(path)
    elif kind == ".jsonl":
        texts = _jsonl_texts(path)
    else:
        whole = _decode(b"".join(_chunks(path)), path)
        texts = _pieces(whole, piece_chars) if piece_chars else iter([whole])
    return (text for text in map(clean, texts) if text.strip())


def parquet_texts(path: Path) -> Iterator[str]:
    """The column `text` of a parquet file, row after row.

    Raises:
        UserError: pyarrow is not installed.
        DataError: not a parquet file, damaged, without that column, or with other things in it.
    """
    with _parquet(path) as file:
        batches = file.iter_batches(batch_size=1024, columns=["text"])
        rows = (row for batch in batches for row in batch.column("text").to_pylist())
        for number, text in enumerate(rows, 1):
            if text is not None and not isinstance(text, str):
                raise DataError(
                    f"{path}, row {number}: `text` is {repr(text)[:60]}, expected a text; "
                    "replace the file"
                )
            if text:
                yield text


def text_bytes(path: Path) -> int:
    """About how much text a file holds, for progress; compressed text files count as they lie."""
    if _kind(path) != ".parquet":
        return path.stat().st_size
    with _parquet(path) as file:
        groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
        columns = [group.column(n) for group in groups for n in range(group.num_columns)]
        return sum(
            column.total_uncompressed_size for column in columns if column.path_in_schema == "text"
        )


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """An open parquet file; whatever goes wrong while it is read is our error."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(
            f"{path} needs pyarrow, which is not installed: run `pip install pyarrow`"
        ) from error
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as parquet with a text column `text`: {error}; replace the file"
        ) from error


def _jsonl_texts(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(_chunks(path)), 1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError) as error:  # the latter: nested too deep
            raise DataError(
                f"{path}, line {number} is not JSON ({error}); mend or remove the line"
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise DataError(
                f"{path}, line {number} is {line[:60]!r}, expected an object "
                '{"text": "..."}; mend the line'
            )
        yield record["text"]


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 at byte {error.start}; convert it, for example with "
            "`iconv -t UTF-8`, or remove it"
        ) from error


def _pieces(text: str, piece_chars: int) -> Iterator[str]:
    """Parts of about `piece_chars`, cut where a paragraph ends, or a line, or anywhere."""
    start = 0
    while start < len(text):
        end = start + piece_chars
        for mark in ("\n\n", "\n"):
            found = text.find(mark, end, end + piece_chars)
            if found >= 0:
                end = found + len(mark)
                break
        yield text[start:end]
        start = end


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked; a damaged or cut file is an error, never a shorter text."""
    if path.name.lower().endswith(".zst"):
        yield from _zstd_chunks(path)
        return
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; replace the file") from error


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            f"{path} needs zstandard, which is not installed: run `pip install zstandard`"
        ) from error
    unpacker = zstandard.ZstdDecompressor().decompressobj()
    is_whole = True
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            while chunk:
                if unpacker.eof:
                    unpacker = zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield unpacker.decompress(chunk)
                except zstandard.ZstdError as error:
                    raise DataError(f"{path} cannot be read: {error}; replace the file") from error
                chunk = unpacker.unused_data if unpacker.eof else b""
                is_whole = unpacker.eof
    if not is_whole:
        raise DataError(f"{path} ends in the middle of its data; replace the file")

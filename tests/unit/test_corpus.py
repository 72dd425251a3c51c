"""Corpora: what is read, how it is shared out, and what is said when text is missing or damaged."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.data import textfiles
from autoresearch.data.corpus import Corpus, hidden_folders, read_corpus
from autoresearch.data.document import clean, digest, score_thresholds
from autoresearch.data.pystdlib import MIN_SCORED_CHARS, PACKAGES, read_pystdlib
from autoresearch.values.config import DataSettings
from autoresearch.values.errors import DataError, UserError


def texts(count: int, first: int = 0) -> list[str]:
    """Different documents of a few lines."""
    return [f"document {n}\n\nthe number {n} squared is {n * n}\n" for n in range(first, count)]


def read(folder: Path) -> Corpus:
    """The corpus `files` of a folder."""
    return read_corpus(DataSettings(corpus="files", path=str(folder)), folder)


def train_texts(corpus: Corpus) -> list[str]:
    """All training documents."""
    return [text for shard in corpus.train for text in shard.read()]


def all_texts(corpus: Corpus) -> list[str]:
    """All documents of all splits, sorted."""
    return sorted([*train_texts(corpus), *corpus.validation, *corpus.holdout])


def write_jsonl(path: Path, documents: list[str]) -> None:
    """One object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))


def test_unknown_corpus_lists_the_known_ones(tmp_path: Path) -> None:
    """A wrong name is answered with the names there are."""
    with pytest.raises(UserError, match=r"'gutenberg'.*climbmix, files, fineweb-edu, pystdlib"):
        read_corpus(DataSettings(corpus="gutenberg"), tmp_path)


def test_files_needs_a_path(tmp_path: Path) -> None:
    """The corpus `files` says which setting is empty."""
    with pytest.raises(UserError, match=r"data\.path is empty; set data\.path to a folder"):
        read_corpus(DataSettings(corpus="files"), tmp_path)


def test_files_needs_a_folder(tmp_path: Path) -> None:
    """A path that is no folder is quoted."""
    with pytest.raises(UserError, match=r"nowhere', which is no folder"):
        read(tmp_path / "nowhere")


def test_files_needs_files(tmp_path: Path) -> None:
    """A folder without text says which kinds count."""
    (tmp_path / "image.png").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"has no file of the kinds \.txt, \.md, \.jsonl, \.parquet"
    ):
        read(tmp_path)


def test_every_kind_is_read_and_nothing_is_lost(tmp_path: Path) -> None:
    """The splits together are exactly the documents of all kinds of file."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    zstandard = pytest.importorskip("zstandard")
    parts = [texts(10), texts(20, 10), texts(30, 20), texts(40, 30), texts(42, 40)]
    write_jsonl(tmp_path / "a.jsonl", parts[0])
    write_jsonl(tmp_path / "plain.jsonl", parts[1])
    packed = gzip.compress((tmp_path / "plain.jsonl").read_bytes())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.jsonl.gz").write_bytes(packed)
    write_jsonl(tmp_path / "plain.jsonl", parts[2])
    frames = (tmp_path / "plain.jsonl").read_bytes()
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "c.jsonl.zst").write_bytes(compress(frames[:100]) + compress(frames[100:]))
    (tmp_path / "plain.jsonl").unlink()
    pq.write_table(pa.table({"text": [*parts[3], None, " "]}), tmp_path / "d.parquet")
    (tmp_path / "e.txt").write_text(parts[4][0])
    (tmp_path / "f.md").write_text(parts[4][1])
    (tmp_path / ".hidden.txt").write_text("not read")
    assert all_texts(read(tmp_path)) == sorted(texts(42))


def test_splits_depend_on_text_alone(tmp_path: Path) -> None:
    """Other file names and another order choose the same documents for scoring."""
    write_jsonl(tmp_path / "one/a.jsonl", texts(100))
    write_jsonl(tmp_path / "two/z.jsonl", texts(50))
    write_jsonl(tmp_path / "two/b.jsonl", texts(100, 50)[::-1])
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert set(one.validation) == set(two.validation)
    assert set(one.holdout) == set(two.holdout)
    assert len(one.validation) == len(one.holdout) == 5


def test_copies_never_straddle_splits(tmp_path: Path) -> None:
    """A document that comes many times is in one split only."""
    write_jsonl(tmp_path / "a.jsonl", texts(30) * 3)
    corpus = read(tmp_path)
    splits = [set(train_texts(corpus)), set(corpus.validation), set(corpus.holdout)]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 30
    assert len(corpus.validation) == len(set(corpus.validation))


def test_names_pin_splits(tmp_path: Path) -> None:
    """Files and folders called validation or holdout are these splits, whole."""
    write_jsonl(tmp_path / "train.jsonl", texts(40))
    write_jsonl(tmp_path / "val-00.jsonl", texts(43, 40))
    write_jsonl(tmp_path / "holdout/values.jsonl", texts(45, 43))
    corpus = read(tmp_path)
    assert train_texts(corpus) == texts(40)
    assert sorted(corpus.validation) == texts(43, 40)
    assert sorted(corpus.holdout) == texts(45, 43)


def test_holdout_takes_what_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large validation split of its own does not make the holdout larger."""
    monkeypatch.setattr(textfiles, "pool_chars", lambda tokens: tokens)
    write_jsonl(tmp_path / "train.jsonl", texts(100))
    write_jsonl(tmp_path / "val.jsonl", texts(110, 100))
    for wanted, kept in ((1, 1), (10**6, 5)):
        settings = DataSettings(corpus="files", path=str(tmp_path), holdout_tokens=wanted)
        corpus = read_corpus(settings, tmp_path / "cache")
        assert len(train_texts(corpus)) == 100 - kept


def test_one_big_file_is_cut_at_paragraphs(tmp_path: Path) -> None:
    """A single text file gives all three splits, and no character is lost."""
    whole = "\n\n".join(f"paragraph {n} " + "word " * 30 for n in range(400))
    (tmp_path / "book.txt").write_text(whole)
    corpus = read(tmp_path)
    pieces = all_texts(corpus)
    assert len(pieces) > 50
    assert sorted("".join(pieces)) == sorted(whole)
    assert all(piece.endswith("\n\n") for piece in pieces if piece not in whole[-1000:])


def test_text_without_any_line_end_is_cut_too(tmp_path: Path) -> None:
    """Where there is no paragraph to cut at, the cut is made anyway."""
    (tmp_path / "line.txt").write_text("".join(f"{n:05d}" for n in range(1000)))
    assert len(all_texts(read(tmp_path))) == 10


def test_too_few_documents(tmp_path: Path) -> None:
    """A corpus that cannot be shared out is refused, never scored on its own training text."""
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(DataError, match=r"has 1 different documents to share out.*add text"):
        read(tmp_path)


def test_bad_json_names_file_and_line(tmp_path: Path) -> None:
    """A line that is not JSON is an error with its number."""
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": \n')
    with pytest.raises(
        DataError, match=r"a\.jsonl, line 3 is not JSON .*; mend or remove the line"
    ):
        read(tmp_path)


@pytest.mark.parametrize("line", ['{"body": "x"}', '["x"]', '{"text": 3}'])
def test_json_of_another_shape(tmp_path: Path, line: str) -> None:
    """A line without a text is an error that shows the shape expected."""
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=r'line 1 is .* expected an object \{"text": "\.\.\."\}'):
        read(tmp_path)


def test_not_utf8(tmp_path: Path) -> None:
    """Text in another encoding is an error with the command that converts it."""
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 at byte 3; convert it.*iconv"):
        read(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "altered"])
@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_damaged_packing_is_an_error(tmp_path: Path, packing: str, damage: str) -> None:
    """A cut or altered compressed file is never a shorter text."""
    data = "".join(map(str, range(20_000))).encode()
    if packing == "gz":
        packed = gzip.compress(data)
    else:
        compressor = pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True)
        packed = compressor.compress(data)
    middle = len(packed) // 2
    broken = packed[: middle * 2 - 10] if damage == "cut" else bytearray(packed)
    if isinstance(broken, bytearray):
        broken[middle : middle + 8] = b"\0" * 8
    (tmp_path / f"a.txt.{packing}").write_bytes(broken)
    with pytest.raises(DataError, match=r"a\.txt\.(gz|zst) .*; replace the file"):
        read(tmp_path)


def test_broken_parquet(tmp_path: Path) -> None:
    """A file that is not parquet is an error that says what was expected."""
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet .* column `text`"):
        read(tmp_path)


def test_parquet_without_text(tmp_path: Path) -> None:
    """A parquet file with other columns is an error too."""
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet .* column `text`"):
        read(tmp_path)


@pytest.mark.parametrize("value", [7, b"bytes", ["a", "list"]])
def test_parquet_with_something_else_as_text(tmp_path: Path, value: object) -> None:
    """The file and the row are named; what has no value is no fault."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"text": [None] * 1500 + [value]})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 1501: `text` is .*expected a text"):
        read(tmp_path)


def test_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    """A text column may hold any bytes; they are refused like any damage."""
    pa = pytest.importorskip("pyarrow")
    column = pa.array([b"\xff\xfe"]).view(pa.string())
    pytest.importorskip("pyarrow.parquet").write_table(
        pa.table({"text": column}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet .* column `text`"):
        read(tmp_path)


def test_a_line_nested_too_deep(tmp_path: Path) -> None:
    """The file and the line are named."""
    deep = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + deep + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 2 is not JSON"):
        read(tmp_path)


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("a.md.zst", "zstandard")])
def test_missing_package_gives_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    """An optional package that is not there is named with the command that adds it."""
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"needs {package}.*run `pip install {package}`"):
        read(tmp_path)


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    """What JSON can say and UTF-8 cannot does not get into documents."""
    lines = [json.dumps({"text": text + "\ud800"}) for text in texts(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert all_texts(read(tmp_path)) == sorted(text + "?" for text in texts(30))


@given(st.text())
def test_clean_leaves_valid_text_alone(text: str) -> None:
    """Text that UTF-8 can hold is not changed."""
    assert clean(text) == text


@given(st.sets(st.integers(0, 2**64 - 1), min_size=3, max_size=200))
def test_thresholds_share_out_everything(digests: set[int]) -> None:
    """Both scoring splits get their share, at least one, and training the rest."""
    validation, holdout = score_thresholds(digests, 0.1, 0.1)
    num_validation = sum(key <= validation for key in digests)
    num_holdout = sum(validation < key <= holdout for key in digests)
    assert num_validation == num_holdout == max(1, round(0.1 * len(digests)))


def fake_library(root: Path, num_files: int = 60) -> Path:
    """A standard library with files in `test`, `lib2to3` and `distutils`."""
    for package in ("test", "lib2to3", "distutils"):
        (root / package).mkdir(parents=True)
        for n in range(num_files):
            lines = [f"{package} number {n} has line {m} and {n * m}" for m in range(100)]
            (root / package / f"file_{n}.py").write_text("\n".join(lines))
    return root


def test_pystdlib_takes_its_packages_only(tmp_path: Path) -> None:
    """distutils, whose text setuptools has too, stays out; lib2to3 is for training only."""
    root = fake_library(tmp_path)
    corpus = read_pystdlib(DataSettings(), root)
    assert len(all_texts(corpus)) == 120
    assert not any(text.startswith("distutils") for text in all_texts(corpus))
    assert all(text.startswith("test") for text in [*corpus.validation, *corpus.holdout])
    assert len(corpus.validation) == len(corpus.holdout) == 7


def test_pystdlib_scores_no_near_copy(tmp_path: Path) -> None:
    """A file that shares most lines with another is never scored, nor is a short one."""
    root = fake_library(tmp_path)
    for n in range(60):
        path = root / "test" / f"file_{n}.py"
        if n < 50:
            path.with_name(f"again_{n}.py").write_text(path.read_text() + "\none line more")
        elif n < 55:
            path.write_text(path.read_text()[: MIN_SCORED_CHARS - 1])
    corpus = read_pystdlib(DataSettings(), root)
    alone = {(root / "test" / f"file_{n}.py").read_text() for n in range(55, 60)}
    assert set(corpus.validation) <= alone
    assert set(corpus.holdout) <= alone


def test_pystdlib_reads_each_text_once(tmp_path: Path) -> None:
    """Exact copies and files in other encodings are left out."""
    root = fake_library(tmp_path)
    (root / "test/copy.py").write_text((root / "test/file_1.py").read_text())
    (root / "test/latin.py").write_bytes(b"# caf\xe9" * 1000)
    assert len(all_texts(read_pystdlib(DataSettings(), root))) == 120


def test_pystdlib_splits_depend_on_paths(tmp_path: Path) -> None:
    """The same library at another place gives the same splits."""
    one = read_pystdlib(DataSettings(), fake_library(tmp_path / "one"))
    two = read_pystdlib(DataSettings(), fake_library(tmp_path / "two"))
    assert one.validation == two.validation
    assert one.holdout == two.holdout


def test_pystdlib_says_when_it_is_not_there(tmp_path: Path) -> None:
    """A Python without these packages gets another corpus proposed."""
    with pytest.raises(DataError, match=r"has 0 source files .* Set data\.corpus to 'files'"):
        read_pystdlib(DataSettings(), tmp_path)


def test_hidden_folders_finds_every_installation(tmp_path: Path) -> None:
    """Each package of each Python below a root is found; links are not followed."""
    for prefix in ("opt/one/lib/python3.11", "home/two/lib/python3.14t", "opt/three/lib/pypy3.11"):
        for name in (*PACKAGES, "unittest/test", "json", "distutils"):
            (tmp_path / prefix / name).mkdir(parents=True)
        (tmp_path / prefix / "site-packages/lib/python3.1/test").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "opt")
    found = hidden_folders([tmp_path])
    assert len(found) == 3 * (len(PACKAGES) + 1)
    assert tmp_path / "opt/one/lib/python3.11/unittest/test" in found
    assert not any(path.name in ("json", "distutils") for path in found)


def test_hidden_folders_takes_a_library_itself(tmp_path: Path) -> None:
    """A root may be the library, and may be named twice; one that is missing gives nothing."""
    library = tmp_path / "lib/python3.12"
    (library / "test").mkdir(parents=True)
    roots = [library, tmp_path, tmp_path / "missing"]
    assert hidden_folders(roots) == [library / "test"]


def test_this_python_is_hidden_whole() -> None:
    """Every source file of the real corpus lies in a folder that the sandbox is told to hide."""
    import sysconfig

    library = Path(sysconfig.get_path("stdlib"))
    hidden = hidden_folders([library])
    try:
        corpus = read_pystdlib(DataSettings())
    except DataError:
        pytest.skip("this Python was installed without its larger packages")
    for source in corpus.sources:
        assert any((library / source.name).is_relative_to(folder) for folder in hidden)
    assert {digest(text) for text in corpus.validation}.isdisjoint(map(digest, corpus.holdout))

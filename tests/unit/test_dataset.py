"""Datasets on disk: whole or not there, checked, repeatable, and their errors say what to type."""

from __future__ import annotations

import errno
import json
import re
import shutil
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from autoresearch.data import dataset as module
from autoresearch.data.dataset import Dataset, dataset_name, open_dataset, prepare
from autoresearch.data.document import Corpus, Shard, no_report
from autoresearch.data.tokenizer import Tokens
from autoresearch.data.writer import DatasetWriter, row_order, stream_train
from autoresearch.system.files import hold_lock
from autoresearch.values.config import DataSettings
from autoresearch.values.errors import DataError, UserError, WorkspaceError

CONTEXT = 16


def document(number: int) -> str:
    """A little text, different for each number."""
    words = " ".join(f"word{number * k % 97} and {k}" for k in range(1, 40))
    return f"document {number}: {words}\n"


def write_corpus(folder: Path) -> DataSettings:
    """A corpus of 120 documents, 64 rows to score."""
    folder.mkdir()
    lines = [json.dumps({"text": document(n)}) + "\n" for n in range(120)]
    (folder / "a.jsonl").write_text("".join(lines[:80]))
    (folder / "b.jsonl").write_text("".join(lines[80:]))
    return DataSettings(
        corpus="files",
        path=str(folder),
        vocab_size=280,
        context=CONTEXT,
        score_tokens=64 * CONTEXT + 3,
        holdout_tokens=10 * CONTEXT,
    )


@pytest.fixture
def settings(tmp_path: Path) -> DataSettings:
    """A corpus that a test may change."""
    return write_corpus(tmp_path / "text")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where datasets go."""
    return tmp_path / "home"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSettings, Path]:
    """A corpus that stays as it is, and a home where it is prepared, once for all tests."""
    folder = tmp_path_factory.mktemp("shelf")
    settings = write_corpus(folder / "text")
    prepare(settings, folder / "home")
    return settings, folder / "home"


@pytest.fixture
def prepared(shelf: tuple[DataSettings, Path], home: Path) -> DataSettings:
    """Settings of what is prepared in `home`, a copy that a test may damage."""
    shutil.copytree(shelf[1], home)
    return shelf[0]


def content(dataset: Dataset) -> dict[str, bytes]:
    """Every byte of a dataset."""
    files = {path.name: path.read_bytes() for path in sorted(dataset.folder.iterdir())}
    return {**files, "holdout.bin": dataset.holdout_path.read_bytes()}


def temporary(home: Path) -> list[Path]:
    """What is left of unfinished work."""
    return [path for path in home.rglob(".*") if path.suffix != ".lock"]


def test_prepare_writes_what_it_says(settings: DataSettings, home: Path) -> None:
    """Shapes, names, counts and byte tables agree with each other and with the text."""
    dataset = prepare(settings, home)
    assert (dataset.vocab_size, dataset.context) == (280, CONTEXT)
    assert [path.name for path in dataset.train_shards] == ["train_00000.bin"]
    train = dataset.rows(dataset.train_shards[0])
    assert train.shape == (dataset.num_train_rows, CONTEXT + 1)
    assert dataset.rows(dataset.validation_path).shape == (64, CONTEXT + 1)
    assert dataset.num_validation_rows == 64
    assert dataset.rows(dataset.holdout_path).shape == (10, CONTEXT + 1)
    assert dataset.manifest["splits"]["holdout"]["rows"] == 10
    assert all(train[:, 0] == dataset.bos)
    counts = dataset.manifest["splits"]["train"]
    tokens_in_rows = int((train != dataset.bos).sum())
    assert counts["tokens"] == tokens_in_rows + counts["left_over_tokens"]
    assert counts["documents"] + 12 == 120
    lengths = np.load(dataset.token_bytes_path)
    assert lengths.shape == np.load(dataset.token_bytes_decoded_path).shape == (280,)
    assert counts["bytes"] == counts["chars"]  # this text is ASCII
    scored = dataset.manifest["splits"]["validation"]
    targets = dataset.rows(dataset.validation_path)[:, 1:]
    assert scored["scored_bytes"] == int(lengths[targets].sum())
    assert scored["scored_tokens"] == targets.size
    dataset.verify()


def test_splits_hold_different_text(shelf: tuple[DataSettings, Path]) -> None:
    """No two splits have a document in common."""
    dataset = open_dataset(*shelf)
    decode = dataset.load_tokenizer().decode
    found = []
    for path in (dataset.train_shards[0], dataset.validation_path, dataset.holdout_path):
        text = "".join(decode(row) for row in dataset.rows(path))
        found.append(set(re.findall(r"document (\d+):", text)))
    assert all(found)
    assert sum(map(len, found)) == len(set.union(*found))


def test_two_homes_get_the_same_bytes(shelf: tuple[DataSettings, Path], home: Path) -> None:
    """Nothing in a dataset depends on when or where it was made."""
    one, two = open_dataset(*shelf), prepare(shelf[0], home)
    assert content(one) == content(two)
    assert one.digest == two.digest


def test_second_call_returns_at_once(
    prepared: DataSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is prepared is not prepared again, and not even the corpus is read."""
    first = open_dataset(prepared, home)
    monkeypatch.setattr(module, "read_corpus", None)
    assert prepare(prepared, home) == first == open_dataset(prepared, home)


def test_progress_goes_forward_to_the_end(settings: DataSettings, home: Path) -> None:
    """Every stage ends at its total and never goes back."""
    heard: dict[str, list[tuple[int, int]]] = {}
    prepare(
        settings, home, lambda stage, done, total: heard.setdefault(stage, []).append((done, total))
    )
    assert list(heard) == ["read", "learn tokenizer", "scoring rows", "tokenize"]
    for steps in heard.values():
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]


def test_holdout_is_for_its_owner_only(shelf: tuple[DataSettings, Path]) -> None:
    """The holdout lies apart, unreadable for others."""
    dataset = open_dataset(*shelf)
    assert dataset.folder not in dataset.holdout_path.parents
    assert stat.S_IMODE(dataset.holdout_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(dataset.holdout_path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(dataset.holdout_path.parent.parent.stat().st_mode) == 0o700


def test_short_corpus_scores_all_it_has(shelf: tuple[DataSettings, Path], home: Path) -> None:
    """Where there are fewer rows than asked for, all are used and the manifest says so."""
    more = replace(shelf[0], score_tokens=1_000_000)
    entry = prepare(more, home).manifest["splits"]["validation"]
    assert entry["is_short"]
    assert 64 < entry["rows"] < entry["wanted_rows"] == 1_000_000 // CONTEXT
    assert not open_dataset(*shelf).manifest["splits"]["validation"]["is_short"]


def test_copies_of_scored_text_are_left_out(settings: DataSettings, home: Path) -> None:
    """A training document that is pinned for scoring too, or comes twice, is not trained on."""
    folder = Path(settings.path)
    lines = [json.dumps({"text": document(n)}) + "\n" for n in range(10)]
    (folder / "val.jsonl").write_text("".join(lines))
    (folder / "c.jsonl").write_text((folder / "a.jsonl").read_text())
    counts = prepare(settings, home).manifest["splits"]["train"]
    assert counts["documents"] + counts["copies_left_out"] >= 180
    assert counts["documents"] <= 110


def test_many_shards_lose_nothing(
    settings: DataSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text that fills several files is packed over their borders."""
    monkeypatch.setattr("autoresearch.data.writer.SHARD_TOKENS", 500)
    monkeypatch.setattr("autoresearch.data.writer.BATCH_CHARS", 1000)
    dataset = prepare(settings, home)
    assert len(dataset.train_shards) > 3
    counts = dataset.manifest["splits"]["train"]
    rows = np.concatenate([dataset.rows(path) for path in dataset.train_shards])
    assert len(rows) == dataset.num_train_rows
    assert int((rows != dataset.bos).sum()) + counts["left_over_tokens"] == counts["tokens"]
    assert counts["left_over_tokens"] <= CONTEXT


def test_rows_are_stored_in_a_fixed_mixed_order() -> None:
    """The order is a permutation, is not the packing order, and never changes."""
    order = row_order(1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert row_order(8).tolist() == [2, 4, 6, 5, 1, 7, 0, 3]
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


def test_streaming_reads_the_front_only() -> None:
    """For the tokenizer only the front of long documents and of long corpora counts."""
    texts = ["a" * 50, "b" * 30, "c" * 50, "d"]
    shards = [
        Shard(name=text[0], size_bytes=len(text), read=partial(iter, [text])) for text in texts
    ]
    corpus = Corpus(name="", train=shards, validation=[], holdout=[])
    heard: list[tuple[str, int, int]] = []
    parts = list(stream_train(corpus, "s", lambda *step: heard.append(step), 100, 40))
    assert parts == ["a" * 40, "b" * 30, "c" * 30]
    assert heard == [
        ("s", 0, 100),
        ("s", 40, 100),
        ("s", 70, 100),
        ("s", 100, 100),
        ("s", 100, 100),
    ]
    assert list(stream_train(corpus, "s", no_report)) == texts


def test_key_ignores_what_does_not_matter(settings: DataSettings) -> None:
    """Settings of other corpora do not make another dataset; the relevant ones do."""
    name = dataset_name(settings)
    assert name.startswith("files-")
    assert dataset_name(replace(settings, num_shards=3)) == name
    hub = replace(settings, corpus="climbmix")
    assert dataset_name(replace(hub, num_shards=3)) != dataset_name(hub)
    assert dataset_name(replace(hub, path="")) == dataset_name(hub)
    for changes in ({"context": 8}, {"vocab_size": 300}, {"path": "/x"}, {"score_tokens": 999}):
        assert dataset_name(replace(settings, **changes)) != name


def test_not_prepared(settings: DataSettings, home: Path) -> None:
    """Opening what was never prepared says what to run."""
    with pytest.raises(
        DataError, match=r"'files' is not prepared in .*; run `autoresearch prepare`"
    ):
        open_dataset(settings, home)


@pytest.mark.parametrize("name", ["train_00000.bin", "validation.bin", "tokenizer.json"])
def test_missing_file(prepared: DataSettings, home: Path, name: str) -> None:
    """A file that is gone is noticed at opening."""
    (open_dataset(prepared, home).folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing, .*`autoresearch prepare --repair`"):
        open_dataset(prepared, home)


def test_truncated_file(prepared: DataSettings, home: Path) -> None:
    """A file that became shorter is noticed at opening, with both sizes."""
    path = open_dataset(prepared, home).train_shards[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"has 100 bytes, the manifest says \d+; run .*--repair"):
        prepare(prepared, home)


def test_missing_holdout(prepared: DataSettings, home: Path) -> None:
    """The holdout is part of the dataset."""
    open_dataset(prepared, home).holdout_path.unlink()
    with pytest.raises(DataError, match=r"holdout\.bin is missing"):
        open_dataset(prepared, home)


def test_altered_file(prepared: DataSettings, home: Path) -> None:
    """A changed byte is noticed by verify, with both hashes."""
    dataset = open_dataset(prepared, home)
    data = bytearray(dataset.validation_path.read_bytes())
    data[5] ^= 1
    dataset.validation_path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"validation\.bin has sha256 .*, the manifest says .*repair"
    ):
        open_dataset(prepared, home).verify()


@pytest.mark.parametrize(
    ("old", "new"), [("{", ""), ('"digest"', '"other"'), ('"bos": 276', '"bos": 275')]
)
def test_damaged_manifest(prepared: DataSettings, home: Path, old: str, new: str) -> None:
    """A manifest that cannot be read, or was altered, is an error with the repairing command."""
    path = open_dataset(prepared, home).folder / "manifest.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(
        DataError, match=r"manifest\.json (is missing or damaged|was altered).*repair"
    ):
        open_dataset(prepared, home)


@pytest.mark.parametrize("name", ["train_00000.bin", "manifest.json", "tokenizer.json"])
def test_repair_gives_the_same_bytes_again(prepared: DataSettings, home: Path, name: str) -> None:
    """Whatever is damaged, repair makes the dataset as it was; what is whole it leaves alone."""
    dataset = open_dataset(prepared, home)
    before = content(dataset)
    (dataset.folder / name).write_bytes(b"damaged")
    assert content(prepare(prepared, home, repair=True)) == before
    inode = dataset.folder.stat().st_ino
    prepare(prepared, home, repair=True)
    assert dataset.folder.stat().st_ino == inode
    assert not temporary(home)


def test_repair_keeps_a_good_tokenizer(
    prepared: DataSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer is not learnt again where it is as the manifest says."""
    dataset = open_dataset(prepared, home)
    dataset.validation_path.unlink()
    monkeypatch.setattr(module, "train_tokenizer", None)
    prepare(prepared, home, repair=True).verify()


def test_changed_text_is_noticed(settings: DataSettings, home: Path) -> None:
    """Text that came or went is never silently ignored; repair takes it in, tokenizer and all."""
    old = prepare(settings, home)
    (Path(settings.path) / "new.txt").write_text(document(1000))
    with pytest.raises(DataError, match=r"has changed since it was prepared \(1 files.*new\.txt"):
        prepare(settings, home)
    assert open_dataset(settings, home).digest == old.digest
    new = prepare(settings, home, repair=True)
    assert new.digest != old.digest
    assert content(new) == content(prepare(settings, home / "elsewhere"))
    shutil.rmtree(settings.path)
    assert prepare(settings, home).digest == new.digest


def test_full_disk_leaves_nothing(
    settings: DataSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is said clearly, and no half-written dataset stays."""

    def fill(self: DatasetWriter, rows: Tokens, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "_write_rows", fill)
        with pytest.raises(
            DataError, match=r"No space left on device.*nothing half-written is left"
        ):
            prepare(settings, home)
    assert not temporary(home)
    assert not (home / "data" / dataset_name(settings)).exists()
    prepare(settings, home).verify()


def test_leftovers_of_a_killed_process_are_removed(settings: DataSettings, home: Path) -> None:
    """Folders of an earlier, killed prepare do not disturb the next one and do not stay."""
    name = dataset_name(settings)
    for folder in (home / "data" / f".{name}.tmp", home / "holdout" / f".{name}.tmp"):
        folder.mkdir(parents=True)
        (folder / "junk").write_bytes(b"x")
    (home / "holdout" / name).mkdir()  # killed between the two renames
    prepare(settings, home).verify()
    assert not temporary(home)


def test_two_at_once(settings: DataSettings, home: Path) -> None:
    """While one process prepares a dataset, another is told so."""
    name = dataset_name(settings)
    lock = hold_lock(home / "data" / f".{name}.lock", "it")
    with lock, pytest.raises(WorkspaceError, match=rf"dataset {name} is in use by process"):
        prepare(settings, home)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("score_tokens", 64 * CONTEXT - 1, "1024, which is 64 x data.context, for an audit"),
        ("holdout_tokens", CONTEXT - 1, "16, which is 1 x data.context; change it"),
    ],
)
def test_too_few_rows_to_score(
    settings: DataSettings, home: Path, name: str, value: int, words: str
) -> None:
    """Scoring less than the audit needs is refused with the number that is enough."""
    message = re.escape(f"data.{name} is {value}, expected at least {words}")
    with pytest.raises(UserError, match=message):
        prepare(replace(settings, **{name: value}), home)


def test_impossible_vocabulary(settings: DataSettings, home: Path) -> None:
    """A vocabulary that does not fit into a row is refused before anything is read."""
    with pytest.raises(UserError, match=r"vocab_size is 65536, expected 260 to 32768"):
        prepare(replace(settings, vocab_size=65536), home)


def test_too_little_text_for_a_row(settings: DataSettings, home: Path) -> None:
    """A context longer than the scoring text is an error that names the setting."""
    long = replace(settings, context=100_000, score_tokens=6_400_000, holdout_tokens=100_000)
    with pytest.raises(DataError, match=r"score_tokens has \d+ tokens, enough for 0 rows of data"):
        prepare(long, home)
    assert not temporary(home)


def test_too_little_text_to_train(settings: DataSettings, home: Path) -> None:
    """Training text that fills no row is an error as well."""
    for name, first in (("val", 100), ("holdout", 400)):
        lines = [json.dumps({"text": document(n)}) + "\n" for n in range(first, first + 150)]
        (Path(settings.path) / f"{name}.jsonl").write_text("".join(lines))
    (Path(settings.path) / "b.jsonl").unlink()
    (Path(settings.path) / "a.jsonl").write_text(json.dumps({"text": document(1)}) + "\n")
    size = prepare(settings, home).manifest["splits"]["train"]["tokens"] * 2
    message = r"the training text has \d+ tokens, not enough for one row"
    with pytest.raises(DataError, match=message):
        prepare(replace(settings, context=size, score_tokens=64 * size, holdout_tokens=size), home)


def test_scoring_text_is_read_as_far_as_needed(
    settings: DataSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are drawn from a pool; where there is more scoring text, it is not encoded."""
    folder = Path(settings.path)
    (folder / "a.jsonl").rename(folder / "val.jsonl")
    monkeypatch.setattr("autoresearch.data.writer.MIN_POOL_TOKENS", 1)
    monkeypatch.setattr("autoresearch.data.writer.BATCH_CHARS", 1)
    counts = prepare(settings, home).manifest["splits"]["validation"]
    assert counts["documents"] < 20
    assert counts["tokens"] >= 4 * settings.score_tokens
    assert counts["rows"] == 64


def test_copies_are_remembered_for_a_while(
    settings: DataSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory for copies is bounded: one that comes much later is let through."""
    monkeypatch.setattr("autoresearch.data.writer.MAX_SEEN", 2)
    folder = Path(settings.path)
    (folder / "c.jsonl").write_text((folder / "a.jsonl").read_text())
    assert prepare(settings, home).manifest["splits"]["train"]["documents"] > 120


def test_encode_and_decode(shelf: tuple[DataSettings, Path]) -> None:
    """A dataset turns text into tokens and back, for sampling."""
    dataset = open_dataset(*shelf)
    tokenizer = dataset.load_tokenizer()
    tokens = tokenizer.encode("word5 and ü")
    assert tokenizer.decode([dataset.bos, *tokens]) == "word5 and ü"

"""A prepared dataset on disk: tokenizer, byte tables, packed rows, manifest.

    home/data/CORPUS-KEY/     tokenizer.json  token_bytes.npy  token_bytes_decoded.npy
                              train_00000.bin ...  validation.bin  manifest.json
    home/holdout/CORPUS-KEY/  holdout.bin (0600 in a 0700 folder)

A .bin is raw little-endian uint16, rows of context + 1 tokens, packed by `pack_rows` and stored in
a shuffled order that depends on nothing but their number. KEY is a hash of the settings, so changed
settings make another dataset. Everything is written into a temporary folder that is renamed when it
is complete: a folder under its final name is whole, whenever the process was killed. Sizes are
checked at every opening, hashes by `verify`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoresearch.data.corpus import Corpus, read_corpus
from autoresearch.data.document import Report, no_report
from autoresearch.data.hub import HUB_CORPORA, REPAIR
from autoresearch.data.textfiles import list_sources
from autoresearch.data.tokenizer import (
    MAX_DOCUMENT_CHARS,
    MAX_TRAIN_CHARS,
    Tokenizer,
    Tokens,
    check_vocab_size,
    train_tokenizer,
)
from autoresearch.data.writer import (
    FORMAT,
    LEAST_SCORE_ROWS,
    DatasetWriter,
    digest_of,
    stream_train,
)
from autoresearch.system.files import hold_lock, sha256_file
from autoresearch.values.config import DataSettings
from autoresearch.values.errors import DataError, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset that is there. Paths are absolute; the manifest is plain JSON."""

    folder: Path
    holdout_path: Path
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """Hash of every file and its meaning: equal for equal data, wherever it lies."""
        return str(self.manifest["digest"])

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, special ones included."""
        return int(self.manifest["vocab_size"])

    @property
    def context(self) -> int:
        """Inputs a row; a row has one token more."""
        return int(self.manifest["context"])

    @property
    def bos(self) -> int:
        """The token that every row and every document starts with."""
        return int(self.manifest["bos"])

    @property
    def num_train_rows(self) -> int:
        """Rows in all training shards together."""
        return int(self.manifest["splits"]["train"]["rows"])

    @property
    def num_validation_rows(self) -> int:
        """Rows that are scored."""
        return int(self.manifest["splits"]["validation"]["rows"])

    @property
    def train_shards(self) -> list[Path]:
        """Files of training rows, in order."""
        return [
            self.folder / name
            for name in sorted(self.manifest["files"])
            if name.startswith("train_")
        ]

    @property
    def validation_path(self) -> Path:
        """File of the rows that are scored."""
        return self.folder / "validation.bin"

    @property
    def tokenizer_path(self) -> Path:
        """tokenizer.json."""
        return self.folder / "tokenizer.json"

    @property
    def token_bytes_path(self) -> Path:
        """True bytes of each token, uint16 (V,), .npy."""
        return self.folder / "token_bytes.npy"

    @property
    def token_bytes_decoded_path(self) -> Path:
        """Bytes of each token as the reference counts them, uint16 (V,), .npy."""
        return self.folder / "token_bytes_decoded.npy"

    def rows(self, path: Path) -> Tokens:
        """The rows of one .bin file as a read-only memory map (N, context + 1)."""
        return np.memmap(path, dtype="<u2", mode="r").reshape(-1, self.context + 1)

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, read anew: keep it where more than one text goes through it."""
        return Tokenizer.open(self.tokenizer_path)

    def verify(self) -> None:
        """Read every byte and compare with the manifest.

        Raises:
            DataError: a file is missing or altered.
        """
        self._check(read_all=True)

    def _check(self, *, read_all: bool) -> None:
        files = {self.folder / name: entry for name, entry in self.manifest["files"].items()}
        for path, entry in {**files, self.holdout_path: self.manifest["holdout"]}.items():
            if not path.is_file():
                raise DataError(f"{path} is missing, the manifest lists it; {REPAIR}")
            if (size_bytes := path.stat().st_size) != entry["bytes"]:
                raise DataError(
                    f"{path} has {size_bytes} bytes, the manifest says {entry['bytes']}; {REPAIR}"
                )
            if read_all and (sha256 := sha256_file(path)) != entry["sha256"]:
                raise DataError(
                    f"{path} has sha256 {sha256[:12]}.., the manifest says "
                    f"{entry['sha256'][:12]}..; {REPAIR}"
                )


def dataset_name(settings: DataSettings) -> str:
    """CORPUS-KEY. The key depends only on settings that change the bytes of this corpus."""
    values: dict[str, Any] = {**asdict(settings), "format": FORMAT}
    if settings.corpus not in HUB_CORPORA:
        del values["num_shards"]
    values["path"] = (
        str(Path(settings.path).expanduser().absolute()) if settings.corpus == "files" else ""
    )
    if settings.corpus == "pystdlib":
        values["python"] = platform.python_version()
    key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    return f"{settings.corpus}-{key}"


def open_dataset(settings: DataSettings, home: Path) -> Dataset:
    """The dataset that `prepare` made; sizes are checked, hashes only by `verify`.

    Raises:
        DataError: not prepared, or a file is missing or has another size.
    """
    name = dataset_name(settings)
    folder = home / "data" / name
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise DataError(
            f"corpus {settings.corpus!r} is not prepared in {folder}; run `autoresearch prepare`"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        dataset = Dataset(
            folder=folder, holdout_path=home / "holdout" / name / "holdout.bin", manifest=manifest
        )
        if manifest["digest"] != digest_of(manifest):
            raise DataError(f"{path} was altered: its digest does not match the rest; {REPAIR}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is missing or damaged ({error!r}); {REPAIR}") from error
    dataset._check(read_all=False)
    return dataset


def prepare(
    settings: DataSettings, home: Path, report: Report = no_report, *, repair: bool = False
) -> Dataset:
    """Make the dataset of `settings` below `home`, or return the one that is there.

    With `repair` every byte of it is checked, and it is made again where something does not fit.

    Raises:
        UserError: settings that cannot be.
        DataError: the corpus or the dataset is damaged, or the disk is full; nothing half-written
            is left.
        WorkspaceError: another process is preparing the same dataset.
    """
    check_settings(settings)
    name = dataset_name(settings)
    folder, holdout = home / "data" / name, home / "holdout" / name
    if folder.is_dir() and not repair:
        dataset = open_dataset(settings, home)
        _check_sources(dataset)
        return dataset
    try:
        with hold_lock(home / "data" / f".{name}.lock", f"dataset {name}"):
            _remove_leftovers(folder, holdout)
            if folder.is_dir():
                try:
                    dataset = open_dataset(settings, home)
                    dataset.verify()
                    _check_sources(dataset)
                    return dataset
                except DataError:
                    if not repair:
                        raise
            _build(settings, home, name, report, repair=repair)
    except OSError as error:
        raise DataError(
            f"could not prepare {folder}: {error}; nothing half-written is left. Free space or "
            f"mend the permissions of {home}, then run `autoresearch prepare` again"
        ) from error
    return open_dataset(settings, home)


def _check_sources(dataset: Dataset) -> None:
    """Refuse a folder of text that is not what the dataset was made of; one that is gone is fine.

    Raises:
        DataError: a file came, went, or has another size.
    """
    origin = dataset.manifest["corpus"]
    root = Path(origin.get("path", ""))
    if origin["name"] != "files" or not root.is_dir():
        return
    now = {source.name: source.size_bytes for source in list_sources(root)}
    then = {source["name"]: source["size_bytes"] for source in origin["sources"]}
    if changed := sorted(name for name in {*now, *then} if now.get(name) != then.get(name)):
        raise DataError(
            f"{root} has changed since it was prepared ({len(changed)} files, first "
            f"{changed[0]!r}); bring back what was there, or {REPAIR} to make the dataset anew "
            "(scores before and after cannot be compared)"
        )


def check_settings(settings: DataSettings) -> None:
    """Refuse settings that no dataset can have.

    Raises:
        UserError: naming the setting, its value and what was expected.
    """
    check_vocab_size(settings.vocab_size)
    for name, least_rows, why in (
        ("score_tokens", LEAST_SCORE_ROWS, ", for an audit of fewer rows may see nothing"),
        ("holdout_tokens", 1, ""),
    ):
        least = least_rows * settings.context
        if (value := getattr(settings, name)) < least:
            raise UserError(
                f"data.{name} is {value}, expected at least {least}, which is {least_rows} x "
                f"data.context{why}; change it in autoresearch.toml, then `autoresearch prepare`"
            )


def _build(settings: DataSettings, home: Path, name: str, report: Report, *, repair: bool) -> None:
    """Write both folders beside their final names, then rename them."""
    folder, holdout = home / "data" / name, home / "holdout" / name
    new_folder, new_holdout = _beside(folder, "tmp"), _beside(holdout, "tmp")
    try:
        corpus = read_corpus(settings, home, report, repair=repair)
        tokenizer = _kept_tokenizer(folder, corpus) or _learn(corpus, settings, report)
        new_folder.mkdir(parents=True)
        holdout.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new_holdout.mkdir(mode=0o700)
        writer = DatasetWriter(settings, tokenizer, new_folder, new_holdout / "holdout.bin")
        writer.write(corpus, name.rpartition("-")[2], report)
        _put(new_holdout, holdout)
        _put(new_folder, folder)
    finally:
        _remove_leftovers(folder, holdout)


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}.{ending}")


def _put(new: Path, final: Path) -> None:
    """Give `new` the name `final`; a crash between two renames leaves nothing, for `prepare`."""
    if final.exists():
        final.rename(_beside(final, "old"))
    new.rename(final)


def _remove_leftovers(*folders: Path) -> None:
    for folder in folders:
        for ending in ("tmp", "old"):
            shutil.rmtree(_beside(folder, ending), ignore_errors=True)


def _kept_tokenizer(folder: Path, corpus: Corpus) -> Tokenizer | None:
    """The tokenizer of a damaged dataset, where it is whole and was made of the same text."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.open(folder / "tokenizer.json")
        is_whole = tokenizer.sha256 == manifest["files"]["tokenizer.json"]["sha256"]
        is_same_text = manifest["corpus"]["sources"] == [asdict(s) for s in corpus.sources]
        return tokenizer if is_whole and is_same_text else None
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None


def _learn(corpus: Corpus, settings: DataSettings, report: Report) -> Tokenizer:
    limits = (MAX_TRAIN_CHARS, MAX_DOCUMENT_CHARS)
    texts = stream_train(corpus, "learn tokenizer", report, *limits)
    return train_tokenizer(texts, settings.vocab_size)

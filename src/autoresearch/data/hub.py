"""Corpora on the Hugging Face hub: parquet shards with a column `text`, checked byte for byte.

The first visit asks the hub for the newest revision and the names, sizes and SHA-256 of its files,
and writes that to listing.json beside the downloads; from then on this revision stays, and every
file must match. A file under its final name is whole and checked; a part of one has the ending
.partial, and the next visit goes on where it stops. HF_ENDPOINT names another hub. Nothing is
fetched that is there already.

The last shard is validation and the one before it the holdout, whatever else was downloaded.
TinyStories has a validation file of its own, of which every second document (by hash) is the
holdout.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from autoresearch.data.document import (
    Corpus,
    Report,
    Shard,
    Source,
    clean,
    digest,
    pool_chars,
    take_chars,
)
from autoresearch.data.textfiles import parquet_texts, text_bytes
from autoresearch.system.files import sha256_file, write_atomic
from autoresearch.values.config import DataSettings
from autoresearch.values.errors import DataError

Answer = TypeVar("Answer")

REPAIR = "run `autoresearch prepare --repair`"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubCorpus:
    """Where the shards of a corpus lie: files of `repo` that start with `prefix`."""

    repo: str
    prefix: str
    has_own_validation: bool = False


HUB_CORPORA = {
    "climbmix": HubCorpus(repo="karpathy/climbmix-400b-shuffle", prefix="shard_"),
    "fineweb-edu": HubCorpus(repo="HuggingFaceFW/fineweb-edu", prefix="sample/10BT/"),
    "tinystories": HubCorpus(
        repo="roneneldan/TinyStories", prefix="data/", has_own_validation=True
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One revision of a repository: its shards in the order of their names."""

    repo: str
    revision: str
    shards: tuple[Source, ...]


def read_hub(settings: DataSettings, home: Path, report: Report, *, repair: bool = False) -> Corpus:
    """Download what is missing of the corpus and read it.

    Raises:
        UserError: pyarrow is missing.
        DataError: the hub cannot be reached or lacks a file, a file is damaged, or the disk is
            full.
    """
    spec = HUB_CORPORA[settings.corpus]
    folder = home / "downloads" / settings.corpus
    listing = _listing(spec, folder, repair=repair)
    *train, holdout, validation = _roles(spec, listing)
    train = train[: settings.num_shards]
    wanted = list(dict.fromkeys([*train, holdout, validation]))
    _fetch(listing, wanted, folder, report, repair=repair)
    pools = [
        partial(_texts, folder / validation.name, parity=0 if spec.has_own_validation else None),
        partial(_texts, folder / holdout.name, parity=1 if spec.has_own_validation else None),
    ]
    return Corpus(
        name=settings.corpus,
        train=[
            Shard(
                name=shard.name,
                size_bytes=text_bytes(folder / shard.name),
                read=partial(_texts, folder / shard.name),
            )
            for shard in train
        ],
        validation=take_chars(pools[0](), pool_chars(settings.score_tokens)),
        holdout=take_chars(pools[1](), pool_chars(settings.holdout_tokens)),
        sources=wanted,
        origin={"repo": listing.repo, "revision": listing.revision, "num_shards": len(train)},
    )


def _roles(spec: HubCorpus, listing: Listing) -> Sequence[Source]:
    """Training shards, then that of the holdout, then that of validation (maybe the same)."""
    shards = listing.shards
    if len(shards) < 2 + (not spec.has_own_validation):
        raise DataError(
            f"{listing.repo} has {len(shards)} shards named {spec.prefix}*.parquet, which is too "
            "few to split; check HF_ENDPOINT"
        )
    return [*shards[:-1], shards[-1], shards[-1]] if spec.has_own_validation else shards


def _texts(path: Path, parity: int | None = None) -> Iterator[str]:
    """The documents of a shard; with a parity, those whose hash has it."""
    for text in map(clean, parquet_texts(path)):
        if text.strip() and (parity is None or digest(text) % 2 == parity):
            yield text


def _listing(spec: HubCorpus, folder: Path, *, repair: bool) -> Listing:
    """What the hub has, asked once and kept."""
    path = folder / "listing.json"
    if path.exists():
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            shards = tuple(Source(**shard) for shard in document["shards"])
            return Listing(repo=document["repo"], revision=document["revision"], shards=shards)
        except (ValueError, KeyError, TypeError) as error:
            if not repair:
                raise DataError(f"{path} is damaged ({error!r}); {REPAIR}") from error
    listing = _reach(f"the files of {spec.repo}", lambda: _ask_listing(spec))
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "repo": listing.repo,
        "revision": listing.revision,
        "shards": [
            {"name": s.name, "size_bytes": s.size_bytes, "sha256": s.sha256} for s in listing.shards
        ],
    }
    write_atomic(path, json.dumps(document, indent=1) + "\n")
    return listing


def _ask_listing(spec: HubCorpus) -> Listing:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=_endpoint())
    revision = str(api.dataset_info(spec.repo).sha)
    folder = spec.prefix.rpartition("/")[0] or None
    shards = []
    for entry in api.list_repo_tree(spec.repo, folder, revision=revision, repo_type="dataset"):
        if (
            isinstance(entry, RepoFile)
            and entry.path.startswith(spec.prefix)
            and entry.path.endswith(".parquet")
        ):
            if entry.lfs is None:
                raise DataError(
                    f"the hub publishes no checksum of {spec.repo}/{entry.path}, which must have "
                    "one; check HF_ENDPOINT"
                )
            shards.append(
                Source(name=entry.path, size_bytes=entry.lfs.size, sha256=entry.lfs.sha256)
            )
    return Listing(
        repo=spec.repo,
        revision=revision,
        shards=tuple(sorted(shards, key=lambda shard: shard.name)),
    )


def _fetch(
    listing: Listing, wanted: Sequence[Source], folder: Path, report: Report, *, repair: bool
) -> None:
    """Make every file of `wanted` be there, whole and right."""
    total = sum(shard.size_bytes for shard in wanted)
    missing = []
    done = 0
    for shard in wanted:
        if _is_there(folder / shard.name, shard, repair=repair):
            done += shard.size_bytes
        else:
            missing.append(shard)
        report("download", done, total)
    _check_space(folder, missing)
    for shard in missing:

        def report_size(size_bytes: int, before: int = done) -> None:
            report("download", before + size_bytes, total)

        _download(listing, shard, folder, report_size)
        done += shard.size_bytes
        report("download", done, total)


def _is_there(path: Path, shard: Source, *, repair: bool) -> bool:
    """True for a good file, False for none; a bad one is an error, or removed when repairing."""
    if not path.exists():
        return False
    problem = _problem(path, shard)
    if problem and not repair:
        raise DataError(f"{path} {problem}; {REPAIR}")
    if problem:
        path.unlink()
    return not problem


def _problem(path: Path, shard: Source) -> str:
    size_bytes = path.stat().st_size
    if size_bytes != shard.size_bytes:
        return f"has {size_bytes} bytes, the hub says {shard.size_bytes}"
    sha256 = sha256_file(path)
    return (
        f"has sha256 {sha256[:12]}.., the hub says {shard.sha256[:12]}.."
        if sha256 != shard.sha256
        else ""
    )


def _check_space(folder: Path, missing: Sequence[Source]) -> None:
    partials = [folder / f"{shard.name}.partial" for shard in missing]
    there = sum(path.stat().st_size for path in partials if path.exists())
    needed = sum(shard.size_bytes for shard in missing) - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{len(missing)} shards need {needed / 1e9:.2f} GB more in {folder}, which has "
            f"{free / 1e9:.2f} GB free; free space, lower data.num_shards, or set "
            "AUTORESEARCH_HOME to another disk"
        )


def _download(
    listing: Listing, shard: Source, folder: Path, report_size: Callable[[int], None]
) -> None:
    """Fetch a file into its .partial, going on where that stops, check it, give it its name."""
    path = folder / shard.name
    partial_path = folder / f"{shard.name}.partial"
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_path.open("ab") as file:
        if file.tell() > shard.size_bytes:
            file.seek(0)
            file.truncate()
        _reach(f"{listing.repo}/{shard.name}", lambda: _stream(listing, shard, file, report_size))
        file.flush()
        os.fsync(file.fileno())
    if problem := _problem(partial_path, shard):
        partial_path.unlink()
        raise DataError(
            f"{listing.repo}/{shard.name} as downloaded {problem}; {REPAIR} to fetch it again"
        )
    partial_path.replace(path)


def _stream(
    listing: Listing, shard: Source, file: BinaryIO, report_size: Callable[[int], None]
) -> None:
    from huggingface_hub import hf_hub_url, utils
    from huggingface_hub.file_download import http_get

    url = hf_hub_url(
        listing.repo,
        shard.name,
        repo_type="dataset",
        revision=listing.revision,
        endpoint=_endpoint(),
    )
    # Our own bar is drawn by whoever gave `report`.
    utils.disable_progress_bars("huggingface_hub.http_get")  # type: ignore[attr-defined]
    # Not hf_hub_download: after a killed process it starts over.
    http_get(
        url,
        _Watched(file, report_size),  # type: ignore[arg-type]  # all it uses of a file
        resume_size=file.tell(),
        headers=utils.build_hf_headers(),  # type: ignore[attr-defined]
        expected_size=shard.size_bytes,
    )


class _Watched:
    """A file that tells how long it is after every write."""

    def __init__(self, file: BinaryIO, report_size: Callable[[int], None]) -> None:
        self._file = file
        self._report_size = report_size
        self.seek, self.tell, self.truncate = file.seek, file.tell, file.truncate

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._report_size(self._file.tell())
        return written


def _reach(what: str, ask: Callable[[], Answer]) -> Answer:
    """The hub's answer, its failures turned into errors that say what to do."""
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    try:
        return ask()
    except DataError:
        raise
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise DataError(
            f"{_endpoint() or 'the hub'} does not have {what} ({_first_line(error)}); check "
            "HF_ENDPOINT, or lower data.num_shards"
        ) from error
    except Exception as error:  # the client's transport raises errors of several libraries
        raise DataError(
            f"could not fetch {what} from {_endpoint() or 'the hub'}: {_first_line(error)}; what "
            "has come is kept. Mend the connection or the disk, then run "
            "`autoresearch prepare` again to go on"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None

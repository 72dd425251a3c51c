"""Hub corpora against a hub on this machine, with the real client.

The server answers the four requests that the client makes (revision, tree, where a file is, its
bytes), in pages, with a redirect and byte ranges as the real one. Faults are switched on by a test.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from autoresearch.data import hub as module
from autoresearch.data.dataset import open_dataset, prepare
from autoresearch.values.config import DataSettings
from autoresearch.values.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

REPO = "karpathy/climbmix-400b-shuffle"
REVISION = "0123456789abcdef0123456789abcdef01234567"
PAGE = 3


def shard(number: int, num_documents: int = 120) -> bytes:
    """A parquet file of documents of its own."""
    documents = [
        f"shard {number} document {n}: " + " ".join(f"w{n * k % 89} x{k}" for k in range(40))
        for n in range(num_documents)
    ]
    file = io.BytesIO()
    pq.write_table(pa.table({"text": documents}), file)
    return file.getvalue()


@dataclass
class Hub:
    """What the server has and how it misbehaves."""

    files: dict[str, bytes]
    url: str = ""
    requests: list[str] = field(default_factory=list)  # "GET name first-byte"
    cut: dict[str, int] = field(default_factory=dict)  # name: bytes served before each break
    is_down_after_cut: bool = False
    altered: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    ignores_ranges: bool = False
    was_cut: bool = False
    has_checksums: bool = True


class Handler(BaseHTTPRequestHandler):
    """One request to the hub."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer as GET, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Route."""
        path = urlsplit(self.path).path
        if path.startswith(f"/api/datasets/{REPO}/tree/{REVISION}"):
            self._tree()
        elif path.startswith(f"/api/datasets/{REPO}"):
            self._json({"id": REPO, "sha": REVISION, "siblings": []})
        elif path.startswith(f"/datasets/{REPO}/resolve/{REVISION}/"):
            name = path.rsplit("/", 1)[1]
            if name in self.hub.missing:
                self._empty(404, {"X-Error-Code": "EntryNotFound"})
            else:
                self._empty(302, {"Location": f"{self.hub.url}/cdn/{name}"})
        elif path.startswith("/cdn/"):
            self._bytes(path.rsplit("/", 1)[1])
        else:
            self._empty(404, {"X-Error-Code": "RepoNotFound"})

    def _tree(self) -> None:
        page = int(parse_qs(urlsplit(self.path).query).get("page", ["0"])[0])
        names = sorted(self.hub.files)
        entries = [
            {
                "type": "file",
                "path": name,
                "size": len(self.hub.files[name]),
                "oid": "0" * 40,
                "lfs": {
                    "oid": hashlib.sha256(self.hub.files[name]).hexdigest(),
                    "size": len(self.hub.files[name]),
                    "pointerSize": 134,
                },
            }
            for name in names[page * PAGE : (page + 1) * PAGE]
        ]
        for entry in entries if not self.hub.has_checksums else []:
            del entry["lfs"]
        link = f'<{self.hub.url}/api/datasets/{REPO}/tree/{REVISION}?page={page + 1}>; rel="next"'
        self._json(entries, {"Link": link} if (page + 1) * PAGE < len(names) else {})

    def _bytes(self, name: str) -> None:
        data = self.hub.files[name]
        if name in self.hub.altered:
            data = data[:100] + bytes([data[100] ^ 1]) + data[101:]
        match = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match and not self.hub.ignores_ranges else 0
        self.hub.requests.append(f"{self.command} {name} {start}")
        if self.hub.was_cut and self.hub.is_down_after_cut:
            self._empty(503, {})
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if name in self.hub.cut:
            self.wfile.write(data[start : start + self.hub.cut[name]])
            self.hub.was_cut = True
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def _json(self, body: object, headers: dict[str, str] | None = None) -> None:
        payload = json.dumps(body).encode()
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _empty(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub with seven shards, that HF_ENDPOINT names."""
    hub = Hub(files={f"shard_{n:05d}.parquet": shard(n) for n in range(7)})
    hub.files["README.md"] = b"# not a shard"
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def settings() -> DataSettings:
    """Two training shards of the corpus, small."""
    return DataSettings(
        corpus="climbmix",
        num_shards=2,
        vocab_size=300,
        context=32,
        score_tokens=2_048,
        holdout_tokens=640,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where datasets and downloads go."""
    return tmp_path / "home"


def downloaded(home: Path) -> list[str]:
    """Names of what lies in the downloads."""
    return sorted(path.name for path in (home / "downloads/climbmix").iterdir())


def test_prepare_from_the_hub(hub: Hub, settings: DataSettings, home: Path) -> None:
    """The shards asked for and the two pinned ones come, and their text is what is packed."""
    heard: list[tuple[int, int]] = []
    dataset = prepare(
        settings,
        home,
        lambda stage, done, total: heard.append((done, total)) if stage == "download" else None,
    )
    names = [f"shard_{n:05d}.parquet" for n in (0, 1, 5, 6)]
    assert downloaded(home) == ["listing.json", *names]
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1] == sum(len(hub.files[name]) for name in names)
    origin = dataset.manifest["corpus"]
    assert (origin["repo"], origin["revision"], origin["num_shards"]) == (REPO, REVISION, 2)
    published = {name: hashlib.sha256(hub.files[name]).hexdigest() for name in names}
    assert {source["name"]: source["sha256"] for source in origin["sources"]} == published
    counts = dataset.manifest["splits"]
    assert [counts[split]["documents"] for split in ("train", "validation", "holdout")] == [
        240,
        120,
        120,
    ]
    for path, number in ((dataset.validation_path, 6), (dataset.holdout_path, 5)):
        text = "".join(dataset.load_tokenizer().decode(row) for row in dataset.rows(path))
        assert set(re.findall(r"shard (\d)", text)) == {str(number)}


def test_second_prepare_needs_no_hub(
    hub: Hub, settings: DataSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is downloaded serves other settings too, without a request."""
    prepare(settings, home)
    num_requests = len(hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    prepare(replace(settings, context=16), home).verify()
    assert len(hub.requests) == num_requests


def test_more_shards_fetch_only_the_new_ones(hub: Hub, settings: DataSettings, home: Path) -> None:
    """Raising num_shards downloads the difference; asking for more than there are takes all."""
    prepare(settings, home)
    hub.requests.clear()
    dataset = prepare(replace(settings, num_shards=99), home)
    assert {request.split()[1] for request in hub.requests} == {
        f"shard_{n:05d}.parquet" for n in (2, 3, 4)
    }
    assert dataset.manifest["corpus"]["num_shards"] == 5


def test_a_cut_connection_is_resumed(
    hub: Hub, settings: DataSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that breaks off goes on where it was, in the same call or in the next."""
    name = "shard_00001.parquet"
    hub.cut[name] = 10_000
    hub.is_down_after_cut = True
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between tries
    with pytest.raises(DataError, match=r"could not fetch .*what has come is kept.* to go on"):
        prepare(settings, home)
    assert (home / f"downloads/climbmix/{name}.partial").stat().st_size == 10_000
    assert not (home / f"downloads/climbmix/{name}").exists()
    assert not list((home / "data").glob("climbmix-*"))
    hub.cut.clear()
    hub.is_down_after_cut = False
    hub.requests.clear()
    prepare(settings, home).verify()
    assert f"GET {name} 10000" in hub.requests
    assert f"GET {name} 0" not in hub.requests
    assert not any(entry.endswith(".partial") for entry in downloaded(home))


def test_a_hub_without_ranges_starts_over(hub: Hub, settings: DataSettings, home: Path) -> None:
    """Where the server cannot resume, the part is thrown away and the file is still right."""
    hub.ignores_ranges = True
    partial = home / "downloads/climbmix/shard_00000.parquet.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"something else" * 10)
    prepare(settings, home).verify()


def test_a_wrong_part_is_noticed(hub: Hub, settings: DataSettings, home: Path) -> None:
    """A part that is not of this file fails the checksum and does not stay."""
    partial = home / "downloads/climbmix/shard_00000.parquet.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"something else" * 10)
    with pytest.raises(DataError, match=r"as downloaded has sha256 .*the hub says .*--repair"):
        prepare(settings, home)
    assert downloaded(home) == ["listing.json"]
    partial.write_bytes(hub.files["shard_00000.parquet"] + b"too long")
    prepare(settings, home).verify()


def test_an_altered_file_never_gets_its_name(hub: Hub, settings: DataSettings, home: Path) -> None:
    """A byte that changed on the way is noticed, and a later prepare with a sound hub mends it."""
    hub.altered.add("shard_00006.parquet")
    with pytest.raises(DataError, match=r"shard_00006\.parquet as downloaded has sha256"):
        prepare(settings, home)
    assert "shard_00006.parquet" not in downloaded(home)
    hub.altered.clear()
    prepare(settings, home, repair=True).verify()


def test_a_missing_shard_is_an_error(hub: Hub, settings: DataSettings, home: Path) -> None:
    """A shard that the hub lacks is never a smaller corpus."""
    hub.missing.add("shard_00001.parquet")
    with pytest.raises(DataError, match=r"does not have .*shard_00001\.parquet .*num_shards"):
        prepare(settings, home)
    assert not list((home / "data").glob("climbmix-*"))


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_download_is_repaired(
    hub: Hub, settings: DataSettings, home: Path, damage: str
) -> None:
    """A download that changed on disk is an error with the command, which fetches that one only."""
    prepare(settings, home)
    path = home / "downloads/climbmix/shard_00001.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-5] if damage == "truncated" else data[:-5] + b"other")
    other = replace(settings, context=16)
    problem = r"has \d+ bytes" if damage == "truncated" else "has sha256"
    with pytest.raises(
        DataError, match=rf"shard_00001\.parquet {problem}.*the hub says .*--repair"
    ):
        prepare(other, home)
    hub.requests.clear()
    prepare(other, home, repair=True).verify()
    assert {request.split()[1] for request in hub.requests} == {"shard_00001.parquet"}
    assert path.read_bytes() == data


def test_a_damaged_listing_is_repaired(hub: Hub, settings: DataSettings, home: Path) -> None:
    """The remembered listing is checked like everything else."""
    prepare(settings, home)
    (home / "downloads/climbmix/listing.json").write_text('{"repo": 3}')
    other = replace(settings, context=16)
    with pytest.raises(DataError, match=r"listing\.json is damaged .*--repair"):
        prepare(other, home)
    prepare(other, home, repair=True).verify()


def test_no_disk_for_the_download(
    hub: Hub, settings: DataSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little space is said before anything is fetched, with the figures."""
    usage = SimpleNamespace(total=10**9, used=10**9, free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        DataError, match=r"4 shards need 0\.0\d GB more .* 0\.00 GB free; free space"
    ):
        prepare(settings, home)
    assert not hub.requests


def test_the_disk_fills_up_while_downloading(hub: Hub, settings: DataSettings, home: Path) -> None:
    """A write that fails leaves no file under its final name; with room again it goes on."""
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n" + PREPARE_PROGRAM
    )
    ended = run_program(program, settings, home)
    assert ended.returncode == 1
    assert "File too large" in ended.stderr
    assert "DataError" in ended.stderr
    assert not [name for name in downloaded(home) if name.endswith(".parquet")]
    prepare(settings, home).verify()


def test_an_unknown_repository(settings: DataSettings, home: Path, hub: Hub) -> None:
    """A hub that lacks the corpus is named."""
    with pytest.raises(DataError, match=rf"{hub.url} does not have the files of HuggingFaceFW"):
        prepare(replace(settings, corpus="fineweb-edu"), home)


def test_a_hub_without_checksums(hub: Hub, settings: DataSettings, home: Path) -> None:
    """A file whose hash is not published cannot be checked, so it is not used."""
    hub.has_checksums = False
    with pytest.raises(DataError, match=r"publishes no checksum of .*shard_00000\.parquet"):
        prepare(settings, home)


def test_a_hub_with_too_few_shards(hub: Hub, settings: DataSettings, home: Path) -> None:
    """Two shards cannot be three splits."""
    for name in sorted(hub.files)[3:]:
        del hub.files[name]
    with pytest.raises(DataError, match=r"has 2 shards named shard_\*\.parquet, .*too few"):
        prepare(settings, home)


def test_no_hub(settings: DataSettings, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is an error that says which hub was asked and what to do."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(DataError, match=r"could not fetch the files of .* from http://127.0.0.1:9"):
        prepare(settings, home)


PREPARE_PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from autoresearch.data.dataset import prepare
from autoresearch.values.config import DataSettings
settings, home, deadly_stage = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def report(stage, done, total):
    if stage == deadly_stage and done > 0:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(DataSettings(**settings), home, report)
"""


def run_program(
    program: str, settings: DataSettings, home: Path, stage: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `program` in a process of its own."""
    names = ("corpus", "num_shards", "vocab_size", "context", "score_tokens", "holdout_tokens")
    values = json.dumps({name: getattr(settings, name) for name in names})
    return subprocess.run(
        [sys.executable, "-c", program, values, str(home), stage],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("stage", ["download", "scoring rows", "tokenize"])
def test_kill_9_at_any_stage(hub: Hub, settings: DataSettings, home: Path, stage: str) -> None:
    """A killed prepare leaves nothing that counts as prepared, and the next one finishes."""
    ended = run_program(PREPARE_PROGRAM, settings, home, stage)
    assert ended.returncode == -signal.SIGKILL
    with pytest.raises(DataError, match="is not prepared"):
        open_dataset(settings, home)
    prepare(settings, home).verify()
    assert not [path for path in home.rglob(".*") if path.suffix in (".tmp", ".old")]


def test_tinystories_shares_its_validation_file(
    hub: Hub, settings: DataSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus with a validation file of its own gives half of it to the holdout."""
    spec = module.HubCorpus(repo=REPO, prefix="shard_", has_own_validation=True)
    monkeypatch.setitem(module.HUB_CORPORA, "tinystories", spec)
    dataset = prepare(replace(settings, corpus="tinystories", num_shards=10), home)
    counts = dataset.manifest["splits"]
    assert counts["validation"]["documents"] + counts["holdout"]["documents"] == 120
    assert min(counts["validation"]["documents"], counts["holdout"]["documents"]) > 40
    assert dataset.manifest["corpus"]["num_shards"] == 6

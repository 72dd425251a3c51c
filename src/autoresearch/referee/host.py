"""What all runs on one device share: settings, data in memory, walls, clock.

Starts candidates and presenters, where there are cores to spare before they are needed: a *seat* is
a process that waits with its imports done. It gets train.py and caches when a run takes it, through
folders that its walls show from the start.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoresearch.data.dataset import Dataset
from autoresearch.data.pystdlib import hidden_folders
from autoresearch.referee.cache import CompileCache
from autoresearch.referee.peer import Peer, open_inside
from autoresearch.system import hardware
from autoresearch.system.clock import Clock
from autoresearch.system.files import remove_tree, writing
from autoresearch.system.sandbox import Sandbox, Walls, device_nodes, runtime_folders
from autoresearch.values.config import Config
from autoresearch.values.errors import SandboxUnavailable
from autoresearch.values.records import Purpose
from autoresearch.wire.buffer import SharedBuffer, frozen_copy

CORES_TO_SPARE = 8  # with fewer, importing for the next run would slow this one


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What to run, once.

    `cache_parent` is the commit whose compile caches the run may see ("": none). `is_script`: the
    source is a script in the reference's interface, without build_model and main.
    """

    run_id: int
    source: str
    commit: str
    purpose: Purpose
    seed: int
    artifacts: Path
    is_audited: bool = False
    cache_parent: str = ""
    is_script: bool = False

    @property
    def train_path(self) -> Path:
        """The snapshot that the run executes."""
        return self.artifacts / "train.py"


@dataclass(slots=True, kw_only=True)
class Seat:
    """A process behind walls, for one run, with folders for train.py and for what it compiles."""

    peer: Peer
    walls: Walls
    folder: Path
    cache: Path

    def end(self) -> None:
        """Kill the process and destroy its folders; a second call does nothing.

        Raises:
            AutoresearchError: a process survived SIGKILL.
        """
        self.peer.end()
        for private in (self.folder, self.cache):
            remove_tree(private)


@dataclass(slots=True, kw_only=True)
class Host:
    """One device with everything that a run on it needs.

    `inside` is the package whose `candidate` and `presenter` are started, and `inside_path` a
    folder that it is imported from besides the usual ones: tests have stubs there that do without
    torch.
    """

    config: Config
    dataset: Dataset
    sandbox: Sandbox
    device: str
    clock: Clock
    cache: CompileCache
    inside: str = "autoresearch.inside"
    inside_path: Path | None = None
    _shards: list[SharedBuffer] = field(default_factory=list)
    _waiting: dict[str, Seat] = field(default_factory=dict)

    def load_shards(self) -> None:
        """Read the training tokens into memory that nobody can write, so that no run pays for the
        disk.
        """
        if not self._shards:
            self._shards = [frozen_copy(path, path.name) for path in self.dataset.train_shards]

    def close(self) -> None:
        """Drop the training tokens and whoever waits."""
        for seat in self._waiting.values():
            seat.end()
        self._waiting.clear()
        for shard in self._shards:
            shard.close()
        self._shards.clear()

    @property
    def shard_fds(self) -> list[int]:
        """Descriptors of the training tokens, sealed against writing."""
        return [shard.fd for shard in self._shards]

    @property
    def threads(self) -> int:
        """CPU threads of one process."""
        return self.config.trial.threads or hardware.num_usable_cores()

    @property
    def device_type(self) -> str:
        """The device as the process behind the walls names it: its only card is its first."""
        return self.device.partition(":")[0]

    @property
    def env(self) -> dict[str, str]:
        """Environment for every process that imports torch."""
        threads = str(self.threads)
        return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}

    def env_inside(self, cache: str) -> dict[str, str]:
        """Environment for candidates and presenters, which know their compile cache as `cache`."""
        env = {
            **self.env,
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",
            "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": f"{cache}/flash",
            "QUACK_CACHE_DIR": f"{cache}/quack",  # read when FlashAttention imports it
            "USER": "candidate",
        }
        gpu = hardware.gpu_of(self.device)
        if gpu is not None and gpu.capability:  # else quack asks the card, and so starts CUDA
            env["QUACK_ARCH"] = f"{10 * gpu.capability:.0f}"
        if gpu is not None and self.sandbox.level == "none":  # no wall hides the other cards
            env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi counts
            env["CUDA_VISIBLE_DEVICES"] = gpu.uuid or str(gpu.index)
        return env

    def take(self, role: str, spec: RunSpec) -> Seat:
        """A candidate or presenter for `spec`: one that waits already, or a new one.

        Raises:
            UserError: the disk is full; nobody is left waiting.
        """
        seat = self._waiting.pop(role, None)
        if seat is not None and seat.peer.tree.exit_code() is not None:
            seat.end()
            seat = None
        seat = seat or self.spawn(role)
        try:
            self._furnish(seat, spec)
        except BaseException:
            seat.end()
            raise
        return seat

    def _furnish(self, seat: Seat, spec: RunSpec) -> None:
        """Give a seat what is of one run only."""
        with writing(seat.folder):
            (seat.folder / "train.py").write_text(spec.source, encoding="utf-8")
            if spec.is_script:  # it may encode text; what was learned from training is no secret
                shutil.copyfile(self.dataset.tokenizer_path, seat.folder / "tokenizer.json")
        self.cache.fill(seat.cache, spec.cache_parent)

    def wait_ahead(self) -> None:
        """Start what the next run will take, where that costs the present one nothing."""
        if self.device_type == "cuda" and hardware.num_usable_cores() >= CORES_TO_SPARE:
            for role in ("candidate", "presenter"):
                if role not in self._waiting:
                    with suppress(SandboxUnavailable):  # the next run will say so, if it lasts
                        self._waiting[role] = self.spawn(role)

    def spawn(self, role: str) -> Seat:
        """Start a candidate or presenter."""
        folder, cache_folder = self.cache.make_private(), self.cache.make_private()
        folder.chmod(0o755)
        walls = self._walls(folder, cache_folder)
        cache = self.sandbox.inside(walls, cache_folder)
        env = self.env_inside(cache)
        if self.inside_path is not None:
            env["INSIDE_PATH"] = self.sandbox.inside(walls, self.inside_path)
        cap_bytes = self.config.artifacts.stdout_cap_kb << 10 if role == "candidate" else 0
        module = f"{self.inside}.{role}"
        try:
            peer = open_inside(module, self.sandbox, walls, env=env, output_cap_bytes=cap_bytes)
        except BaseException:
            for private in (folder, cache_folder):
                remove_tree(private)
            raise
        return Seat(peer=peer, walls=walls, folder=folder, cache=cache_folder)

    def settings(self, spec: RunSpec, seat: Seat) -> dict[str, Any]:
        """What the untrusted side is told: shapes, device, budget, seed."""
        return {
            "train_path": f"{self.sandbox.inside(seat.walls, seat.folder)}/train.py",
            "device": self.device_type,
            "vocab_size": self.dataset.vocab_size,
            "context": self.dataset.context,
            "bos": self.dataset.bos,
            "budget_s": self.config.trial.budget_s,
            "seed": spec.seed,
            "threads": self.threads,
            "chunk_rows": self.config.trial.score_rows_per_chunk,
            "is_script": spec.is_script,
        }

    def _walls(self, folder: Path, cache_folder: Path) -> Walls:
        readable = {folder: "/trial"}
        if self.inside_path is not None:
            readable[self.inside_path] = "/inside"
        return Walls(
            readable=readable,
            writable={cache_folder: "/cache"},
            hidden=[
                *_hidden_runtime(),
                self.dataset.folder,
                self.dataset.holdout_path.parent,
                self.cache.folder.parent,  # beside it lie the ledger, and weights of other runs
            ],
            device_nodes=device_nodes(self.device),
        )


@lru_cache(maxsize=1)
def _hidden_runtime() -> tuple[Path, ...]:
    """Corpus text among what the walls show; looked for once, it takes more than a second."""
    return tuple(hidden_folders(runtime_folders()))

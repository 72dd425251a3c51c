"""What all runs on one device share: settings, data in memory, walls, clock.

Starts candidates and presenters.
"""

from __future__ import annotations

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
from autoresearch.system.sandbox import Sandbox, Walls, device_nodes, runtime_folders
from autoresearch.values.config import Config
from autoresearch.values.records import Purpose
from autoresearch.wire.buffer import SharedBuffer, frozen_copy


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What to run, once.

    `cache_parent` is the commit whose compile caches the run may see ("": none).
    """

    run_id: int
    source: str
    commit: str
    purpose: Purpose
    seed: int
    artifacts: Path
    is_audited: bool = False
    cache_parent: str = ""

    @property
    def train_path(self) -> Path:
        """The snapshot that the run executes."""
        return self.artifacts / "train.py"


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

    def load_shards(self) -> None:
        """Read the training tokens into memory that nobody can write, so that no run pays for the
        disk.
        """
        if not self._shards:
            self._shards = [frozen_copy(path, path.name) for path in self.dataset.train_shards]

    def close(self) -> None:
        """Drop the training tokens."""
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

    def spawn(self, role: str, spec: RunSpec, cache_folder: Path) -> Peer:
        """Start a candidate or presenter that sees the run's train.py and a compile cache of its
        own.
        """
        walls = self._walls(spec, cache_folder)
        cache = self.sandbox.inside(walls, cache_folder)
        env = {
            **self.env,
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",
            "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": f"{cache}/flash",
            "USER": "candidate",
        }
        if self.inside_path is not None:
            env["INSIDE_PATH"] = self.sandbox.inside(walls, self.inside_path)
        cap_bytes = self.config.artifacts.stdout_cap_kb << 10 if role == "candidate" else 0
        return open_inside(
            f"{self.inside}.{role}", self.sandbox, walls, env=env, output_cap_bytes=cap_bytes
        )

    def settings(self, spec: RunSpec) -> dict[str, Any]:
        """What the untrusted side is told: shapes, device, budget, seed."""
        walls = self._walls(spec, self.cache.folder)
        return {
            "train_path": self.sandbox.inside(walls, spec.train_path),
            "device": self.device_type,
            "vocab_size": self.dataset.vocab_size,
            "context": self.dataset.context,
            "bos": self.dataset.bos,
            "budget_s": self.config.trial.budget_s,
            "seed": spec.seed,
            "threads": self.threads,
            "chunk_rows": self.config.trial.score_rows_per_chunk,
        }

    def _walls(self, spec: RunSpec, cache_folder: Path) -> Walls:
        readable = {spec.train_path: "/trial/train.py"}
        if self.inside_path is not None:
            readable[self.inside_path] = "/inside"
        return Walls(
            readable=readable,
            writable={cache_folder: "/cache"},
            hidden=[*_hidden_runtime(), self.dataset.folder, self.dataset.holdout_path.parent],
            device_nodes=device_nodes(self.device),
        )


@lru_cache(maxsize=1)
def _hidden_runtime() -> tuple[Path, ...]:
    """Corpus text among what the walls show; looked for once, it takes more than a second."""
    return tuple(hidden_folders(runtime_folders()))

"""Runs scripts written for karpathy/autoresearch: the modules `prepare` and `kernels`, from ours.

Such a script trains at its top level, keeps its own clock by TIME_BUDGET, and calls `evaluate_bpb`
once, at the end. It has no build_model, so no fresh process can answer for it: its own process is
asked for logits by the scorer, over the wire that presenters use. Targets stay with the scorer, and
losses that the model computes are not asked for.

The first batch starts the referee's clock, the first `evaluate_bpb` ends the run and does not
return. Training tokens come after the start; validation rows are never served as batches.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import torch
from torch import Tensor

from autoresearch.data.tokenizer import Tokenizer as OurTokenizer
from autoresearch.inside.harness import Run
from autoresearch.inside.ops import attention
from autoresearch.inside.presented import map_logits, map_tokens
from autoresearch.wire.channel import Channel

_HEAD_DIMS = (64, 128)  # that a kernel is tried with; others go to torch's own
_ON_DEVICE_FRAC = 0.1  # of the card's memory that training rows may take


class Served:
    """What stands behind the two modules, for one run."""

    def __init__(self, run: Run, channel: Channel, settings: dict[str, Any]) -> None:
        self._run = run
        self._channel = channel
        self._settings = settings
        self._num_tokens = 0

    @cached_property
    def _rows(self) -> Tensor:
        """All training rows, (N, context + 1) int16; asking for them starts the clock."""
        rows = torch.cat(self._run.start())
        device = self._run.device
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            if rows.numel() * rows.element_size() <= _ON_DEVICE_FRAC * total:
                return rows.to(device)
        return rows

    def make_dataloader(
        self, tokenizer: Any, B: int, T: int, split: str, buffer_size: int = 0
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Batches for ever: inputs and targets (B, T) int64 on the device, and the epoch from 1.

        `buffer_size` is the reference's; rows are packed already.

        Raises:
            ValueError: another split than "train", or rows longer than the data's.
        """
        if split != "train":
            raise ValueError(f"split is {split!r}; only 'train' is served, the scorer has the rest")
        if not 0 < T <= self._run.context:
            raise ValueError(f"T is {T}, rows of 1 to {self._run.context} tokens are served")
        return self._batches(B, T)

    def _batches(self, B: int, T: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        at, epoch = 0, 1
        while True:
            places = torch.arange(at, at + B, device=self._rows.device) % len(self._rows)
            batch = self._rows[places, : T + 1].to(self._run.device).long()
            self._num_tokens += B * T
            yield batch[:, :-1].contiguous(), batch[:, 1:].contiguous(), epoch
            at += B
            if at >= len(self._rows):
                at, epoch = at % len(self._rows), epoch + 1

    def evaluate_bpb(self, model: Any, tokenizer: Any, batch_size: int) -> NoReturn:
        """Answer the scorer with what `model(tokens)` gives, until the referee ends this process.

        Args:
            model: called with (n, context) int64, n <= batch_size, gives (n, context, V) logits.
            tokenizer: not asked.
            batch_size: rows that the model takes at once at most.
        """
        assert len(self._rows), "asking for them has started the clock"
        sizes = [p.numel() for p in model.parameters()] if hasattr(model, "parameters") else []
        facts = {"total_tokens_M": self._num_tokens / 1e6, "num_params_M": sum(sizes) / 1e6}
        if self._run.device.type == "cuda":
            torch.cuda.synchronize(self._run.device)
        self._channel.send("evaluate", facts=facts)
        message = self._channel.receive()
        assert message is not None, "without a timeout there is always a message"
        shape = (self._settings["chunk_rows"], self._run.context, self._run.vocab_size)
        tokens = map_tokens(message.fds[0], shape[:2])
        logits = map_logits(message.fds[1], shape, self._run.device)
        if hasattr(model, "eval"):
            model.eval()
        self._channel.send("ready")
        while True:
            self._channel.receive()
            self._channel.send(self._forward(model, tokens, logits, batch_size))

    def _forward(self, model: Any, tokens: Tensor, logits: Tensor, batch_size: int) -> str:
        """Fill the logits for the tokens now there; the code of what became of it."""
        device = self._run.device
        try:
            with torch.no_grad():
                parts = tokens.split(batch_size), logits.split(batch_size)
                for rows, place in zip(*parts, strict=True):
                    answer = model(rows.to(device, torch.long))
                    answer = answer[0] if isinstance(answer, tuple) else answer
                    if answer.shape != place.shape:
                        return "wrong_shape"
                    place.copy_(answer)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except Exception:  # noqa: BLE001  whatever the script raises, only a code leaves
            return "failed_forward"
        return "done"

    def prepare_module(self) -> ModuleType:
        """The module `prepare`."""
        settings, run = self._settings, self._run
        folder = Path(settings["train_path"]).parent
        budget_s = run.budget_s
        module = ModuleType("prepare", "The fixed part, served by autoresearch.")
        vars(module).update(
            MAX_SEQ_LEN=run.context,
            TIME_BUDGET=int(budget_s) if budget_s == int(budget_s) else budget_s,
            VOCAB_SIZE=run.vocab_size,
            Tokenizer=type("Tokenizer", (Tokenizer,), {"path": folder / "tokenizer.json"}),
            make_dataloader=self.make_dataloader,
            evaluate_bpb=self.evaluate_bpb,
        )
        return module

    def kernels_module(self) -> ModuleType:
        """The module `kernels`: every kernel asked for is our attention."""
        attend, name = _choose_attention(self._run.device, self._run.context)
        kernel = _make_flash_attention(attend)

        def get_kernel(*asked: Any, **options: Any) -> Any:
            print(f"kernels: {name} stands in for {asked[0] if asked else 'a kernel'}", flush=True)
            interface = SimpleNamespace(flash_attn_func=kernel)
            return SimpleNamespace(flash_attn_interface=interface, flash_attn_func=kernel)

        module = ModuleType("kernels", "FlashAttention, served by autoresearch.")
        vars(module).update(get_kernel=get_kernel)
        return module


class Tokenizer:
    """The dataset's tokenizer under the names that the reference's scripts use."""

    path = Path("tokenizer.json")

    def __init__(self) -> None:
        self._tokenizer = OurTokenizer.open(self.path)

    @classmethod
    def from_directory(cls, *_folder: Any, **_options: Any) -> Tokenizer:
        """The one tokenizer there is, whichever folder is named."""
        return cls()

    def get_vocab_size(self) -> int:
        """Tokens in the vocabulary, special ones included."""
        return self._tokenizer.vocab_size

    def get_bos_token_id(self) -> int:
        """The token that every row starts with."""
        return self._tokenizer.bos

    def encode(self, text: str | list[str], prepend: int | None = None, **_options: Any) -> Any:
        """Token ids of a text, or of each of several; `prepend` comes first."""
        first = [] if prepend is None else [prepend]
        if isinstance(text, str):
            return [*first, *map(int, self._tokenizer.encode(text))]
        return [[*first, *map(int, ids)] for ids in self._tokenizer.encode_batch(text)]

    def decode(self, tokens: Any) -> str:
        """The text of token ids."""
        return self._tokenizer.decode(tokens)


def _choose_attention(device: torch.device, context: int) -> tuple[attention.Attend, str]:
    """The best that needs neither the network nor windows known ahead, by size of a head."""
    if device.type != "cuda":
        return attention.attend_sdpa, "sdpa"
    windows = [context // 2, context - 1]
    tried = {D: attention.choose("fa4", device, D, context, windows) for D in _HEAD_DIMS}
    fast = {D: attend for D, (attend, _) in tried.items() if attend is not None}

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        is_half = q.dtype in (torch.bfloat16, torch.float16)
        best = fast.get(q.size(-1)) if is_half else None
        return (best or attention.attend_cudnn_or_sdpa)(q, k, v, window)

    return attend, tried[_HEAD_DIMS[-1]][1]


def _make_flash_attention(attend: attention.Attend) -> Any:
    def flash_attn_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        **_options: Any,
    ) -> Tensor:
        """Causal attention, q (B, T, H, D), k and v (B, T, G, D); each sees window_size[0] back."""
        if not causal:
            raise NotImplementedError("flash_attn_func without causal=True is not served")
        last = q.size(1) - 1
        left = window_size[0]
        return attend(q, k, v, left if 0 <= left < last else last)

    return flash_attn_func


def run_script(path: str, served: Served) -> NoReturn:
    """Run the script at `path` as a program.

    Raises:
        RuntimeError: it ended without calling evaluate_bpb. What the script raises passes through.
    """
    sys.modules["prepare"] = served.prepare_module()
    sys.modules["kernels"] = served.kernels_module()
    sys.argv = [path]
    runpy.run_path(path, run_name="__main__")
    raise RuntimeError("the script ended without calling evaluate_bpb")

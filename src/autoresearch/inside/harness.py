"""`run`, the handful of lines between train.py and the referee.

    def build_model(run): ...             a module: tokens (B, T) -> logits (B, T, V)
    def main(run):
        model = build_model(run)
        with run.warmup(model, optimizer):    off the clock, on run.synthetic_rows(n)
            ...                               afterwards all state is as it was
        shards = run.start()                  the clock starts; from here on tokens are real
        while run.proceed():                  False when another step would not fit
            ...; run.report(step=..., loss=...)
        run.submit(model)                     hands over the weights and does not return

This side is untrusted: the referee holds the real clock and kills what overruns it, whatever this
file says.
"""

from __future__ import annotations

import copy
import math
import mmap
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from threading import Thread
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from autoresearch.inside.weights import Parcel
from autoresearch.wire.channel import Channel, ChannelClosed

REPORT_EVERY_S = 0.5
STEPS_IN_FLIGHT = 2  # how far the host may run ahead of a CUDA device
MOST_SLOWER = 2.0  # what the hand-over may take, times the rehearsal


class Run:
    """What train.py knows of the run that it is part of."""

    def __init__(self, channel: Channel, settings: dict[str, Any], weights_fd: int = -1) -> None:
        self._channel = channel
        self._parcel = Parcel(weights_fd)
        self.device = torch.device(settings["device"])
        self.vocab_size: int = settings["vocab_size"]
        self.context: int = settings["context"]
        self.bos: int = settings["bos"]
        self.budget_s: float = settings["budget_s"]
        self.seed: int = settings["seed"]
        self.threads: int = settings["threads"]
        self._reserve_s = 0.05
        self._startup = {"loading": time.monotonic()}  # when each stage before the clock began
        self._started_at = 0.0
        self._calls: deque[float] = deque(maxlen=6)
        self._events: deque[torch.cuda.Event] = deque()
        self._reported_at = 0.0
        self._late_loss: Tensor | float | None = None
        self._initial_sum: float | None = None  # of all weights before training

    def synthetic_rows(self, num_rows: int) -> Tensor:
        """Random tokens shaped like training rows, (num_rows, context + 1) int16, for compilation
        and warm-up.
        """
        generator = torch.Generator().manual_seed(self.seed)
        shape = (num_rows, self.context + 1)
        rows = torch.randint(0, self.vocab_size, shape, generator=generator, dtype=torch.int32)
        rows[:, 0] = self.bos
        return rows.to(torch.int16)

    @contextmanager
    def warmup(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Steps inside are free of charge and of consequence: model, optimizer and generators are
        put back.
        """
        self._startup["saving"] = time.monotonic()
        room = Thread(target=self._parcel.make_room(model))
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        moments = _clone_state(optimizer)
        groups = [
            {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
        ]
        groups = copy.deepcopy(groups)
        generators = _generator_states(self.device)
        self._startup["warming up"] = time.monotonic()
        room.start()
        yield
        self._startup["restoring"] = time.monotonic()
        room.join()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(weights[name])
            _restore_state(optimizer, moments)
        for group, saved in zip(optimizer.param_groups, groups, strict=True):
            group.update(saved)
        optimizer.zero_grad(set_to_none=True)
        _restore_generators(self.device, generators)
        self._reserve_s = 0.05 + MOST_SLOWER * self._parcel.rehearse(model)
        self._initial_sum = sum(float(tensor.double().sum()) for tensor in weights.values())

    def start(self) -> list[Tensor]:
        """Say that we are ready, wait for the clock, and return the training rows.

        Returns:
            One tensor a shard, (rows, context + 1) int16: the bits of uint16 token ids, mapped
            read-only.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        began = [*self._startup.values(), time.monotonic()]
        stages = zip(self._startup, pairwise(began), strict=True)
        parts = ", ".join(f"{name} {end - start:.1f}" for name, (start, end) in stages)
        print(f"ready after {began[-1] - began[0]:.1f} s: {parts}", flush=True)
        self._channel.send("ready", initial_sum=_plain(self._initial_sum))
        message = self._channel.receive()
        assert message is not None, "without a timeout there is always a message"
        self._started_at = time.monotonic()
        self.budget_s = float(message.body["budget_s"])
        return [_map_rows(fd, self.context + 1) for fd in message.fds]

    def proceed(self) -> bool:
        """Whether one more step and the hand-over fit; call it before every step.

        On CUDA it waits for the step before the last, so that the time read here is the device's,
        two steps late.
        """
        if self.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self._events.append(event)
            if len(self._events) > STEPS_IN_FLIGHT:
                self._events.popleft().synchronize()
        now = time.monotonic()
        self._calls.append(now)
        step_s = max((b - a for a, b in pairwise(self._calls)), default=0.0)
        queued_s = step_s * len(self._events)
        return now + queued_s + step_s + self._reserve_s < self._started_at + self.budget_s

    @property
    def progress(self) -> float:
        """Training seconds over the budget that a run can use, from 0 to 1."""
        usable_s = max(1e-9, self.budget_s - self._reserve_s)
        return min(1.0, (time.monotonic() - self._started_at) / usable_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the clock started."""
        return time.monotonic() - self._started_at

    def report(self, *, step: int, loss: Tensor | float | None = None, **facts: float) -> None:
        """Telemetry for whoever watches, twice a second at most.

        A loss on a device is read one report late.
        """
        now = time.monotonic()
        if now - self._reported_at < REPORT_EVERY_S:
            return
        self._reported_at = now
        late, self._late_loss = self._late_loss, _detached(loss)
        shown = late if self.device.type == "cuda" else self._late_loss
        values: dict[str, Any] = {"step": step, "elapsed_s": self.elapsed_s, **facts}
        if shown is not None:
            known = float(shown)
            values["loss"] = known if math.isfinite(known) else str(known)  # NaN has no JSON
        values = {name: _plain(value) for name, value in values.items()}
        line = " | ".join(f"{name} {_short(value)}" for name, value in values.items())
        print(line, end="\r" if sys.stdout.isatty() else "\n", flush=True)
        self._channel.send("progress", values=values)

    def submit(self, model: nn.Module, **facts: float | int | str) -> NoReturn:
        """Hand over the weights as safetensors bytes.

        The referee stops the clock and ends this process.
        """
        size_bytes = self._parcel.write(model)
        plain = {name: _plain(value) for name, value in facts.items()}
        self._channel.send("submit", size_bytes=size_bytes, facts=plain)
        while True:  # until we are killed; a closed channel means that nobody is left to do it
            try:
                self._channel.receive()
            except ChannelClosed:
                os._exit(0)


def _map_rows(fd: int, row_tokens: int) -> Tensor:
    size_bytes = os.fstat(fd).st_size
    view = mmap.mmap(fd, size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(view, dtype=torch.int16).view(-1, row_tokens)


def _clone_state(optimizer: torch.optim.Optimizer) -> dict[Any, dict[str, Any]]:
    return {
        parameter: {
            k: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in state.items()
        }
        for parameter, state in optimizer.state.items()
    }


def _restore_state(optimizer: torch.optim.Optimizer, saved: dict[Any, dict[str, Any]]) -> None:
    """Put moments back into the tensors they are in (compiled code holds on to those).

    Forget new ones.
    """
    for parameter in list(optimizer.state):
        state, before = optimizer.state[parameter], saved.get(parameter)
        if before is None:
            del optimizer.state[parameter]
            continue
        for key in list(state):
            if key not in before:
                del state[key]
            elif isinstance(state[key], Tensor):
                state[key].copy_(before[key])
            else:
                state[key] = before[key]


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _restore_generators(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _detached(loss: Tensor | float | None) -> Tensor | float | None:
    return loss.detach().clone() if isinstance(loss, Tensor) else loss


def _plain(value: Any) -> float | int | str | None:
    """A JSON value: finite numbers, text; everything else as text."""
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None  # NaN and infinities have no JSON
    return str(value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

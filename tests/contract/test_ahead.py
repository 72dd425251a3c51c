"""A training step finds compiled whatever it asks for: ahead.py forgets no form of a kernel."""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch.inside import ops
from autoresearch.inside.ops import ahead, fa4, heads, residual, softcap_ce, table
from autoresearch.inside.ops.shape import Shape
from autoresearch.values.constants import substitute

TRAIN = Path(ops.__file__).parents[2] / "templates" / "train.py"
CPU = torch.device("cpu")
KERNELS = {
    "residual": ("add_norm", "add_norm_backward", "share_backward"),
    "rotary": ("split_heads", "split_heads_backward"),
    "softcap_ce": ("softcap_ce", "rescale"),
    "table": ("segment_sum",),
}
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


class Recorder:
    """A kernel that writes down for what Triton would compile it, and does nothing."""

    def __init__(self, kernel: Any, seen: set[Any]) -> None:
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, _grid: object) -> Any:
        return self.record

    def record(self, *given: object, **constants: object) -> None:
        """Types, alignment and divisibility of arguments; the values of constants."""
        anywhere = self.kernel.do_not_specialize_on_alignment or ()
        kinds = []
        for name, argument in zip(self.kernel.arg_names, given, strict=False):
            if isinstance(argument, Tensor):
                is_even = name in anywhere or argument.data_ptr() % 16 == 0
                kinds.append(f"{name} {argument.dtype} {is_even}")
            elif isinstance(argument, int):
                kinds.append(f"{name} {argument == 1} {argument % 16 == 0}")
        self.seen.add((self.kernel.__name__, *kinds, *sorted(constants.items())))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """What the kernels were called with, by the operators' code for a card, on the CPU."""
    calls: set[Any] = set()
    for module, names in KERNELS.items():
        kernels = importlib.import_module(f"autoresearch.inside.ops.kernels.{module}")
        for name in names:
            monkeypatch.setattr(kernels, name, Recorder(getattr(kernels, name), calls))

    def attend(q: Tensor, _k: Tensor, _v: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
        return q.clone(), q.new_zeros(q.size(0), q.size(2), q.size(1)).float()

    def attend_back(grad, q, k, v, out, lse, window, bounds, dv, as_sums):  # type: ignore[no-untyped-def]
        B, T, H, D = q.shape
        return q.new_zeros((B, H, T * D)).float() if as_sums else q.clone(), k.clone(), dv.zero_()

    monkeypatch.setattr(fa4, "run", attend)
    monkeypatch.setattr(fa4, "run_backward", attend_back)
    monkeypatch.setattr(fa4, "_has_known_sums", lambda _device: True)
    return calls


def build(constants: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Shape]:
    """train.py's model with the operators of a card, and the shape that it tells of it."""
    module, told = ModuleType("train"), {}
    source = substitute(TRAIN.read_text(encoding="utf-8"), constants)
    exec(compile(source, str(TRAIN), "exec"), vars(module))

    def install(operators: Any, _device: object, shape: Shape, **factors: Any) -> None:
        told.update(shape=shape)
        operators.add_norm, operators.share = residual.add_norm, residual.share
        operators.attend_heads = partial(heads.attend_heads, gain=factors["gain"])
        operators.window = heads.as_tensor
        operators.lookup = lambda *given: _first_and_others(table._Lookup.apply(*given))
        operators.head_loss = lambda x, head, targets: softcap_ce._HeadLoss.apply(
            x.flatten(0, 1), head, targets.flatten(), factors["softcap"], F.linear
        )

    monkeypatch.setattr(ops, "install", install)
    model = module.GPT(vocab_size=64, context=64, bos=0)
    operators = module.Operators(SimpleNamespace(type="cuda"), model)
    model.initialize(operators, torch.bfloat16)
    return model, told["shape"]


def _first_and_others(found: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    return found[0], list(found[1:])


@pytest.mark.parametrize(
    "constants",
    [
        {},
        {"HEAD_GATE": True, "KEY_OFFSET": True, "QK_GAIN": 1.2, "TABLES_BF16": False},
        {"DEPTH": 12, "KV_HEADS": 1, "VALUE_EVERY": 3, "BIGRAM_ROWS": 128},
        {"HEAD_DIM": 128, "WIDTH": 128},
        {"HEAD_DIM": 128, "WIDTH": 128, "DOCUMENT_MASK": True},
    ],
)
def test_a_step_compiles_nothing_that_was_not_compiled_ahead(
    seen: set[Any], monkeypatch: pytest.MonkeyPatch, constants: dict[str, Any]
) -> None:
    """Whatever the constants: each kernel in each of its forms."""
    small = {"DEPTH": 5, "WIDTH": 64, "HEAD_DIM": 32, "WINDOW_PATTERN": "SSL", "GATE_CHANNELS": 16}
    model, shape = build({**small, **constants}, monkeypatch)
    for call in ahead.list_calls(CPU, shape, is_scored=False):
        with suppress(Exception):  # libraries of a card are missing, and no kernel gives a result
            call()
    listed = set(seen)
    seen.clear()
    tokens = torch.randint(0, 64, (4, 65))
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    assert len(seen) >= 9
    assert seen <= listed, sorted(seen - listed, key=str)

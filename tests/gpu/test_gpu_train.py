"""train.py on a CUDA device: it compiles, learns, and kernels change nothing but rounding."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),
]
TRAIN = Path(__file__).parents[2] / "src" / "autoresearch" / "templates" / "train.py"
VOCAB, CONTEXT = 256, 256
DEVICE = torch.device("cuda")


def load() -> ModuleType:
    """A fresh, small train.py."""
    spec = importlib.util.spec_from_file_location("train_on_gpu", TRAIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.DEPTH, module.WIDTH, module.TOTAL_BATCH, module.MICRO_BATCH = 4, 256, 16, 8
    return module


def steps(train: ModuleType, is_compiled: bool) -> list[float]:
    """Losses of ten steps on rows that can be learned."""
    given = {"vocab_size": VOCAB, "context": CONTEXT, "bos": 0}
    run: Any = SimpleNamespace(device=DEVICE, **given)
    torch.manual_seed(0)
    model = train.build_model(run)
    optimizer = train.make_optimizer(model)
    if is_compiled:
        train.compile_parts(model, optimizer)
    first = torch.arange(64)[:, None] % VOCAB
    shard = ((first + torch.arange(CONTEXT + 1)) % VOCAB).to(torch.int16)
    rows = train.Rows([shard], run.device, 0)
    return [train.train_step(model, optimizer, rows, 8, 2).item() for _ in range(10)]


def test_kernels_and_compilation_change_nothing_but_rounding() -> None:
    """Plain and eager, plain and compiled, fast and compiled: the same losses within bfloat16, and
    about the same in float8.
    """
    results = []
    for kernels, is_compiled, has_float8 in (
        (False, False, False),
        (False, True, False),
        (True, True, False),
        (True, True, True),
    ):
        train = load()
        train.KERNELS, train.FLOAT8 = kernels, has_float8
        results.append(torch.tensor(steps(train, is_compiled)))
        gc.collect()
    assert results[0][-1] < results[0][0] - 0.5
    for other, bound in zip(results[1:], (0.15, 0.15, 0.3), strict=True):
        assert (other - results[0]).abs().max() < bound


def gradients(train: ModuleType, is_compiled: bool) -> torch.Tensor:
    """All gradients of a model whose every path is open, on rows of some seven documents each."""
    given = {"vocab_size": VOCAB, "context": CONTEXT, "bos": 0}
    run: Any = SimpleNamespace(device=DEVICE, **given)
    torch.manual_seed(0)
    model = train.build_model(run)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    if is_compiled:
        train.compile_parts(model, train.make_optimizer(model))
    rows = torch.randint(0, 40, (8, CONTEXT + 1), device=DEVICE)
    model(rows[:, :-1], rows[:, 1:]).backward()
    return torch.cat([p.grad.float().flatten() for p in (model.q, model.k, model.v, model.out)])


@pytest.mark.parametrize("attention", ["auto", "flex"])
def test_documents_in_compiled_blocks_are_those_of_plain_torch(attention: str) -> None:
    """Gradients of attention's matrices are the same, and without the mask they are others."""
    found = {}
    for kernels, is_masked in ((False, True), (False, False), (True, True)):
        train = load()
        train.KERNELS, train.ATTENTION, train.DOCUMENT_MASK = kernels, attention, is_masked
        train.WINDOW_PATTERN = "SL"
        found[kernels, is_masked] = gradients(train, is_compiled=kernels)
        gc.collect()
    wanted = found[False, True]
    off = [(other - wanted).norm() / wanted.norm() for other in found.values()]
    assert off[2] < 0.05
    assert off[1] > 5 * off[2]


def test_an_edited_operator_is_the_one_that_runs() -> None:
    """Another activation in the MLP stays, and what nobody edited is fast."""
    train = load()
    source = TRAIN.read_text(encoding="utf-8")
    old, new = "F.relu(F.linear(x, fc)).square()", "F.gelu(F.linear(x, fc))"
    assert source.count(old) == 1
    exec(compile(source.replace(old, new), str(TRAIN), "exec"), vars(train))
    given = {"vocab_size": VOCAB, "context": CONTEXT, "bos": 0}
    operators = train.build_model(SimpleNamespace(device=DEVICE, **given)).operators
    assert operators.mlp is train.relu2_mlp
    assert operators.names["mlp"] == "torch (edited)"
    assert operators.names["residual"] == operators.names["loss"] == "triton"

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
    run: Any = SimpleNamespace(device=torch.device("cuda"), **given)
    torch.manual_seed(0)
    model = train.build_model(run)
    optimizer = train.make_optimizer(model)
    if is_compiled:
        train.compile_parts(model, optimizer)
    first = torch.arange(64)[:, None] % VOCAB
    shard = ((first + torch.arange(CONTEXT + 1)) % VOCAB).to(torch.int16)
    rows = train.Rows([shard], run.device, 0)
    return [train.train_step(model, optimizer, rows, 8, 2).item() for _ in range(10)]


@pytest.mark.parametrize(
    ("attention", "has_documents"), [("auto", False), ("auto", True), ("flex", True)]
)
def test_kernels_and_compilation_change_nothing_but_rounding(
    attention: str, has_documents: bool
) -> None:
    """Plain and eager, plain and compiled, fast and compiled: the same losses within bfloat16."""
    results = []
    for kernels, is_compiled in ((False, False), (False, True), (True, True)):
        train = load()
        train.KERNELS, train.ATTENTION, train.DOCUMENT_MASK = kernels, attention, has_documents
        results.append(torch.tensor(steps(train, is_compiled)))
        gc.collect()
    assert results[0][-1] < results[0][0] - 0.5
    for other in results[1:]:
        assert (other - results[0]).abs().max() < 0.15

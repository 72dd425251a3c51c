"""The benchmarks' stand-ins for parts of the product, which no card is needed for."""

from __future__ import annotations

import importlib
import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch

RUNS = Path(__file__).parents[2] / "runs"


def test_the_run_of_the_gpu_benchmarks_is_the_harnesss(monkeypatch: pytest.MonkeyPatch) -> None:
    """It warms up as a real one does, and stops after the steps that were asked for."""
    monkeypatch.syspath_prepend(str(RUNS))
    gpu_train = importlib.import_module("gpu_train")
    monkeypatch.setattr(gpu_train, "CUDA", torch.device("cpu"))
    rows = [torch.full((2, 9), 7, dtype=torch.int16)]
    run = gpu_train.Run(rows, 64, Namespace(seconds=5, steps=2, profile_at=99), 0)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.clone()
    with run.warmup(model, optimizer):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)
    assert run.synthetic_rows(2).shape == (2, run.context + 1)
    assert run.bos == 7
    with pytest.raises(AttributeError, match="started"):
        _ = run.elapsed_s
    run._channel.close()
    os.close(run._parcel.fd)

"""Operators that go through torch's own machinery: its FlexAttention, its rules for operators."""

from __future__ import annotations

import pytest
import torch

from autoresearch.inside.ops import attention, mlp
from autoresearch.inside.ops.documents import count_documents


@pytest.mark.filterwarnings("ignore:flex_attention called without")  # as it is on a CPU
@pytest.mark.parametrize("T", [384, 100])
def test_flex_is_told_of_documents(T: int) -> None:
    """By a mask that leaves out blocks of other documents, or by numbers if blocks do not fit."""
    flex = attention.FlexAttend(T, [T, 50], torch.device("cpu"), full=attention.attend_sdpa)
    tokens = torch.full((2, T), 1)
    tokens[0, 10:], tokens[1, [50, T - 10]] = 0, 0
    documents, told = count_documents(tokens, 0), attention.finder(flex)(tokens, 0)
    q, k, v = (torch.randn(2, T, 2, 8) for _ in range(3))
    for window in (50, T, -1):
        wanted = attention.attend_twin(q, k, v, window, documents)
        torch.testing.assert_close(flex(q, k, v, window, told), wanted)
    alone = attention.FlexAttend(T, [-1], torch.device("cpu"))
    for window in (T, -1):
        torch.testing.assert_close(alone(q, k, v, window), attention.attend_twin(q, k, v, -1))
    shorter = (x[:, :50] for x in (q, k, v))
    assert flex(*shorter, 50, documents[:, :50]).shape == (2, 50, 2, 8)
    if T == 384:  # row 0 ends its eighth document at 17, row 1 its second at 374
        assert told.kv_num_blocks.flatten().tolist() == [1, 2, 3, 1, 2, 3]


def test_mlp_operator_is_well_formed() -> None:
    """Schema, fake implementation and autograd registration agree with the real one."""
    x, fc, proj = (torch.randn(shape).requires_grad_() for shape in ((10, 6), (24, 6), (6, 24)))
    torch.library.opcheck(mlp.relu2_forward, (x, fc, proj, "torch"))

"""Where documents begin in rows of tokens, as a number a token and as FlashAttention wants it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_DOCUMENTS = 8  # that are told apart in a row
# FlashAttention 4 has other kernels for 256 documents or fewer: with this many places, some of them
# empty, one set of kernels serves whatever the number of rows
LEAST_PLACES = 512


def count_documents(tokens: Tensor, bos: int) -> Tensor:
    """Which document of its row each token is in, from 0; all from the eighth on count as one.

    Args:
        tokens: (B, T); the first of a row begins a document whatever it is.
        bos: the token that begins one.

    Returns:
        (B, T).
    """
    return F.pad((tokens[:, 1:] == bos).cumsum(1), (1, 0)).clamp(max=MAX_DOCUMENTS - 1)


def find_bounds(tokens: Tensor, bos: int) -> Tensor:
    """Where documents begin in rows laid end to end, (places + 1,) int32, filled with the end."""
    documents, end = count_documents(tokens, bos), tokens.numel()
    is_first = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True).flatten()
    size = max(MAX_DOCUMENTS * len(tokens), LEAST_PLACES) + 1
    return torch.nonzero_static(is_first, size=size, fill_value=end).flatten().int()

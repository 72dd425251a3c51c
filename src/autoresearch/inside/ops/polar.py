"""Polar Express on a bank of matrices: nearly their orthogonal factors, by three products a step.

`polar` uses fused multiply-adds of whole banks (baddbmm). Two of the three products are symmetric;
`polar_symmetric` computes only half of those, with quack's kernel where that package is there.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Coefficients = Sequence[tuple[float, float, float]]


def polar_twin(matrices: Tensor, coefficients: Coefficients) -> Tensor:
    """The definition on (N, rows, columns), in its precision: X <- (a + b A + c A^2) X."""
    X = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    is_tall = X.size(-2) > X.size(-1)
    X = X.mT if is_tall else X
    for a, b, c in coefficients:
        A = X @ X.mT
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.mT if is_tall else X


def polar(matrices: Tensor, coefficients: Coefficients, dtype: torch.dtype) -> Tensor:
    """As the twin, in `dtype`."""
    X = matrices.to(dtype)
    X = X / (X.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    is_tall = X.size(-2) > X.size(-1)
    for a, b, c in coefficients:
        A = X.mT @ X if is_tall else X @ X.mT
        S = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, X, S, beta=a) if is_tall else torch.baddbmm(X, S, X, beta=a)
    return X


def polar_symmetric(matrices: Tensor, coefficients: Coefficients, dtype: torch.dtype) -> Tensor:
    """As the twin, with the symmetric products by quack (Hopper and Blackwell)."""
    product: Any = importlib.import_module("quack.gemm_interface").gemm_symmetric
    X = matrices.to(dtype)
    X = X / (X.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    is_tall = X.size(-2) > X.size(-1)
    for a, b, c in coefficients:
        A = product(X.mT, X) if is_tall else product(X, X.mT)
        S = product(A, A, C=A, alpha=c, beta=b)
        X = torch.baddbmm(X, X, S, beta=a) if is_tall else torch.baddbmm(X, S, X, beta=a)
    return X

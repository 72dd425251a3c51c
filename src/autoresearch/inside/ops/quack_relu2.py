"""The two epilogues of the ReLU-squared MLP in quack's terms: functions of one accumulated element.

Importing this needs the `quack-kernels` package and the CUTLASS DSL.
"""
# mypy: ignore-errors

import cutlass.cute as cute
from quack.activation import relu_sq
from quack.epilogue.frontend import gemm_epilogue


@gemm_epilogue()
def up(acc):
    """max(acc, 0)^2."""
    return {"D": relu_sq(acc)}


@gemm_epilogue()
def down_gradient(acc, c):
    """acc times the slope of the activation whose square is `c`."""
    return {"D": acc * (2.0 * cute.math.sqrt(c, approx=True))}

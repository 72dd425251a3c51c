"""The two epilogues of the ReLU-squared MLP in quack's terms: functions of one accumulated element.

Importing this needs the `quack-kernels` package and the CUTLASS DSL. quack makes the key of a
compiled kernel from the functions that an epilogue names, and gives up on some of the DSL's own:
modules it keys by name, so functions are reached through those.
"""
# mypy: ignore-errors

from cutlass import cute
from quack import activation
from quack.epilogue.frontend import gemm_epilogue


@gemm_epilogue()
def up(acc):
    """max(acc, 0)^2."""
    return {"D": activation.relu_sq(acc)}


@gemm_epilogue()
def down_gradient(acc, c):
    """acc times the slope of the activation whose square is `c`."""
    return {"D": acc * (2.0 * cute.math.sqrt(c, approx=True))}

"""What is asked of quack: products, plain and with epilogues, functions of one accumulated element.

Importing this needs the `quack-kernels` package and the CUTLASS DSL. quack makes the key of a
compiled kernel from the functions that an epilogue names, and gives up on some of the DSL's own:
modules it keys by name, so functions are reached through those.
"""
# mypy: ignore-errors

from functools import cache

from cutlass import cute
from quack import activation
from quack.epilogue.frontend import gemm_epilogue


@cache  # quack knows a configuration by its identity
def tiles(rows, columns, is_pingpong, cluster_rows=2, cluster_columns=1, swaps=False):
    """A configuration for Hopper."""
    from quack import gemm_config

    return gemm_config.GemmConfig(
        tile_m=rows,
        tile_n=columns,
        pingpong=bool(is_pingpong),
        cluster_m=cluster_rows,
        cluster_n=cluster_columns,
        swap_ab=bool(swaps),
        is_dynamic_persistent=False,
        device_capacity=9,
    )


@gemm_epilogue()
def up(acc):
    """max(acc, 0)^2."""
    return {"D": activation.relu_sq(acc)}


@gemm_epilogue()
def down_gradient(acc, c):
    """acc times the slope of the activation whose square is `c`."""
    return {"D": acc * (2.0 * cute.math.sqrt(c, approx=True, ftz=True))}


@gemm_epilogue()
def same(acc):
    """A product as it is."""
    return {"D": acc}


def product(a, b, shape):
    """a (M, K) times b (K, N), by tiles of this shape."""
    return same(a.detach(), b.detach(), tuned=False, config=tiles(*shape))["D"]

"""What is asked of quack: products, plain and with epilogues, functions of one accumulated element.

Importing this needs the `quack-kernels` package and the CUTLASS DSL. quack makes the key of a
compiled kernel from the functions that an epilogue names, and gives up on some of the DSL's own:
modules it keys by name, so functions are reached through those.

Two halves of a block multiply and write in turn. By quack's own way the half whose turn begins
first asks for what its epilogue reads, and waits for memory in each tile. Here it asks before its
turn: all of a tile's pieces have places of their own, so that each is free when the other half has
read its piece, which is what a load waits for anyway.

Sums of float8 are made in the matrix units, not exactly (float8.py).
"""
# mypy: ignore-errors

from functools import cache
from importlib.metadata import version

import torch
from cutlass import cute
from quack import activation
from quack.epilogue import frontend
from quack.epilogue.frontend import gemm_epilogue
from quack.gemm_sm90 import GemmSm90

IS_KNOWN = version("quack-kernels") in ("0.6.5",)  # whether Product knows quack's inner parts


class TurnFirst:
    """A barrier whose first use in the code of a kernel waits for the half's turn as well."""

    def __init__(self, gemm, barrier):
        self.gemm, self.barrier, self.is_first = gemm, barrier, True

    def arrive_and_wait(self):
        """Where `epilogue` lets its threads meet: at first, once its loads are under way."""
        if self.is_first:
            self.is_first = False
            GemmSm90.pingpong_barrier_sync(self.gemm, self.gemm.half, "epi")
        self.barrier.arrive_and_wait()


class Product(GemmSm90):
    """quack's product, whose epilogue asks for what it reads before its turn, and whose sums of
    float8 are not exact; it takes the place of quack's own in this process.
    """

    epi_c_stage_base = 64  # pieces with a place of their own: as many as a tile has

    def __init__(self, *given, **named):
        """As quack's, but for how it adds up."""
        super().__init__(*given, fp8_fast_accum=True, **named)

    def pingpong_barrier_sync(self, warp_group_idx, stage):
        """Put off the wait for the turn to write, if there is something to read."""
        if stage == "epi" and self.epi_c_stage:
            self.half = warp_group_idx
        else:
            super().pingpong_barrier_sync(warp_group_idx, stage)

    def epilogue(self, *given, epilogue_barrier, **named):
        """As quack's."""
        if self.pingpong and self.epi_c_stage:
            epilogue_barrier = TurnFirst(self, epilogue_barrier)
        return super().epilogue(*given, epilogue_barrier=epilogue_barrier, **named)


if IS_KNOWN:
    frontend._SM_BASE[9] = Product  # what it makes epilogues for Hopper of


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


@gemm_epilogue(vectorize=False)  # for Blackwell; sets this key apart from quack's own way
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


@gemm_epilogue()
def scaled(acc):
    """A product of which one matrix was 32 times too large."""
    return {"D": acc * 0.03125}


@gemm_epilogue()
def up_scaled(acc):
    """The same, as `up`."""
    return {"D": activation.relu_sq(acc * 0.03125)}


def product_of_float8(a, b, shape):
    """a (M, K) times b (K, N) / 32, in bfloat16."""
    return _of_float8(scaled, a, b, shape)


def up_of_float8(a, b, shape):
    """max(a b / 32, 0)^2, in bfloat16."""
    return _of_float8(up_scaled, a, b, shape)


def _of_float8(epilogue, a, b, shape):
    if not IS_KNOWN:
        raise ImportError(f"quack {version('quack-kernels')} may add float8 up slowly")
    return epilogue(a, b, out_dtype=torch.bfloat16, tuned=False, config=tiles(*shape))["D"]

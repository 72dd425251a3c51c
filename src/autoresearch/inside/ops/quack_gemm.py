"""What is asked of quack: products, plain and with epilogues, functions of one accumulated element.

Importing this needs the `quack-kernels` package and the CUTLASS DSL. quack makes the key of a
compiled kernel from the functions that an epilogue names, and gives up on some of the DSL's own:
modules it keys by name, so functions are reached through those.
"""
# mypy: ignore-errors

from functools import cache

from cutlass import cute
from quack import activation
from quack.epilogue import frontend
from quack.epilogue.frontend import gemm_epilogue
from quack.gemm_sm90 import GemmSm90


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


class EarlyLoads(GemmSm90):
    """Asks for what an epilogue reads while the other half of the block still has the turn.

    Two halves multiply and write in turn, and the half whose turn begins would wait for memory. All
    of a tile's pieces have places of their own, so that each is free when the other half has read
    its piece, which is what a load waits for. The turn is waited for once the loads are under way:
    that is where `epilogue` first lets its threads meet.
    """

    epi_c_stage_base = 64  # as many pieces as a tile has

    def pingpong_barrier_sync(self, warp_group_idx, stage):
        if stage == "epi" and self.epi_c_stage:
            self._half = warp_group_idx
        else:
            super().pingpong_barrier_sync(warp_group_idx, stage)

    def epilogue(self, *given, epilogue_barrier, **named):
        if self.pingpong and self.epi_c_stage:
            epilogue_barrier = _TurnFirst(self, epilogue_barrier)
        return super().epilogue(*given, epilogue_barrier=epilogue_barrier, **named)


class _TurnFirst:
    """A barrier whose first use in the code of a kernel waits for the turn as well."""

    def __init__(self, gemm, barrier):
        self.gemm, self.barrier, self.is_first = gemm, barrier, True

    def arrive_and_wait(self):
        if self.is_first:
            self.is_first = False
            GemmSm90.pingpong_barrier_sync(self.gemm, self.gemm._half, "epi")
        self.barrier.arrive_and_wait()


def load_early():
    """Let epilogues be made that way. quack's key of a compiled kernel does not know of it."""
    frontend._SM_BASE[9] = EarlyLoads


def split_product(a, b, num_splits):
    """a^T b for a (K, M) and b (K, N) with K long: parts of the sum side by side, in float32."""
    from quack import gemm_interface

    operands = (a.detach().mT, b.detach())
    mode = gemm_interface.SplitKMode.SEPARATE
    options = {"tuned": False, "split_k": num_splits, "split_k_mode": mode}
    return gemm_interface.gemm(*operands, **options)


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

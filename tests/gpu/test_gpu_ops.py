"""The fast operators on a CUDA device against float64, on fresh random inputs and odd shapes.

Bounds are relative errors in norm: 1e-2 through bfloat16 products (2e-2
through two operators), 5e-3 for sums alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from autoresearch.inside.ops import (
    attention,
    fa4,
    float8,
    heads,
    linear,
    mlp,
    polar,
    residual,
    rotary,
    softcap_ce,
    table,
)
from autoresearch.inside.ops.documents import count_documents, find_bounds

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
CUDA = torch.device("cuda")
COEFFICIENTS = [(8.16, -22.48, 15.88), (4.04, -2.81, 0.5), (3.89, -2.77, 0.51)]


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensor:
    """Normal numbers that want a gradient."""
    return (torch.randn(shape, device=CUDA) * scale).to(dtype).requires_grad_()


def assert_agree(
    function: Callable[..., Any], twin: Callable[..., Any], inputs: list[Tensor], bound: float
) -> None:
    """Outputs, and gradients of all inputs for random gradients of the outputs, agree."""
    exact = [t.detach().double().requires_grad_() for t in inputs]
    outs, goals = function(*inputs), twin(*exact)
    outs = [outs] if isinstance(outs, Tensor) else outs
    goals = [goals] if isinstance(goals, Tensor) else goals
    # like the outputs in part, or gradients of scalars would be small sums of noise
    grads = [torch.randn_like(out) + out.detach() for out in outs]
    got = [*outs, *torch.autograd.grad(outs, inputs, grads)]
    wanted = [*goals, *torch.autograd.grad(goals, exact, [g.double() for g in grads])]
    for a, b in zip(got, wanted, strict=True):
        assert (a.double() - b.double()).norm() <= bound * b.double().norm()


@pytest.mark.parametrize("window", [-1, 384, 128, 77])
@pytest.mark.parametrize("rung", ["fa4", "flex", "cudnn", "sdpa"])
def test_attention(rung: str, window: int) -> None:
    """Every rung that this machine has, with shared key/value heads."""
    T = 384
    try:
        attend = {
            "fa4": lambda: attention._make_fa4(CUDA),
            "flex": lambda: attention.FlexAttend(T, [window], CUDA),
            "cudnn": lambda: attention.attend_cudnn_or_sdpa,
            "sdpa": lambda: attention.attend_sdpa,
        }[rung]()
    except ImportError as error:
        pytest.skip(str(error))
    inputs = [normal(2, T, 4, 64), normal(2, T, 2, 64), normal(2, T, 2, 64)]
    tokens = torch.randint(60, (2, T), device=CUDA)
    find = attention.finder(attend)
    for told in ((None, None), (find(tokens, 7), count_documents(tokens, 7))):
        assert_agree(
            lambda *t, own=told[0]: attend(*t, window, own),
            lambda *t, own=told[1]: attention.attend_twin(*t, window, own),
            inputs,
            1e-2,
        )


@pytest.mark.parametrize("has_value", [True, False])
@pytest.mark.parametrize(
    ("heads", "groups", "width", "offset"),
    [(4, 4, 128, True), (6, 2, 64, True), (4, 4, 128, False)],
)
def test_split_heads(heads: int, groups: int, width: int, offset: bool, has_value: bool) -> None:
    """Queries, keys, values and all gradients, with shared key/value heads and a gain."""
    pytest.importorskip("triton")
    B, T = 3, 77
    angles = torch.randn(T, 1, width // 2, device=CUDA)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    inputs = [normal(B, T, (heads + 2 * groups) * width)]
    if has_value:
        inputs += [normal(B, T, groups), normal(B, T, groups * width)]

    def with_rest(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(qkv: Tensor, *extra: Tensor) -> Any:
            turns = (cos.to(qkv.dtype), sin.to(qkv.dtype))
            return function(qkv, *turns, heads, *(extra or (None, None)), offset, 1.2)

        return call

    functions = (with_rest(rotary.split_heads), with_rest(rotary.split_heads_twin))
    assert_agree(*functions, inputs, 1e-2)


@pytest.mark.parametrize("shape", [(3, 77, 8192), (1, 5, 1021), (2, 33, 16384)])
def test_softcap(shape: tuple[int, ...]) -> None:
    """What is shown of logits, in float32 out of bfloat16."""
    pytest.importorskip("triton")
    logits = normal(*shape, scale=20.0).detach()
    with torch.no_grad():
        off = softcap_ce.softcap(logits, 15.0) - softcap_ce.softcap_twin(logits.double(), 15.0)
    assert off.abs().max() < 2e-4


@pytest.mark.parametrize(
    ("num", "width", "vocab"), [(333, 128, 8192), (70_000, 64, 1021), (301, 64, 16384)]
)
def test_head_loss(num: int, width: int, vocab: int) -> None:
    """Loss and both gradients, over more than one chunk and an odd vocabulary."""
    targets = torch.randint(0, vocab, (num,), device=CUDA)
    inputs = [normal(num, width), normal(vocab, width, dtype=torch.float32, scale=0.2)]
    assert_agree(
        lambda x, head: softcap_ce.head_loss(x, head, targets, 15.0),
        lambda x, head: softcap_ce.head_loss_twin(x, head, targets, 15.0),
        inputs,
        2e-2,
    )


@pytest.mark.parametrize("sizes", [(333, 512, 1536), (1000, 640, 640), (65, 2304, 768), (9, 8, 16)])
def test_linear(sizes: tuple[int, int, int]) -> None:
    """Output and two gradients, with rows that no tile divides."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("made for Hopper")
    pytest.importorskip("quack")
    num, channels, columns = sizes
    inputs = [normal(3, num, channels), normal(columns, channels, scale=0.1)]
    assert_agree(linear.linear, linear.linear_twin, inputs, 1e-2)


def test_linear_of_views() -> None:
    """Parts of rows, from places that the copy engine cannot begin at too."""
    pytest.importorskip("quack")
    whole, weight = normal(100, 300), normal(64, 264)
    for start in (0, 4, 8):
        assert_agree(
            lambda x, w, start=start: linear.linear(x[:, start : start + 264], w),
            lambda x, w, start=start: linear.linear_twin(x[:, start : start + 264], w),
            [whole, weight],
            1e-2,
        )


def test_linear_of_what_quack_cannot() -> None:
    """Odd sizes, one vector, no rows, another precision: plain torch's."""
    for x, weight in (
        (normal(5, 12), normal(7, 12)),
        (normal(16), normal(8, 16)),
        (normal(0, 16), normal(8, 16)),
        (normal(5, 16, dtype=torch.float32), normal(8, 16, dtype=torch.float32)),
    ):
        torch.testing.assert_close(linear.linear(x, weight), linear.linear_twin(x, weight))


def skip_without_float8() -> None:
    """On another chip, without quack, or with a version of it that may add up slowly."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("made for Hopper")
    pytest.importorskip("quack")
    if not linear.load_gemm().IS_KNOWN:
        pytest.skip("quack of another version")


@pytest.mark.parametrize(
    ("sizes", "factor"), [((333, 512, 1536), 1.0), ((65, 768, 2304), 1.0), ((9, 16, 16), 900.0)]
)
def test_float8_linear(sizes: tuple[int, int, int], factor: float) -> None:
    """As of rounded inputs, of which some are too large; no further off than rounding explains."""
    skip_without_float8()
    num, channels, columns = sizes
    x, weight = normal(3, num, channels, scale=factor), normal(columns, channels, scale=0.1)
    assert_agree(float8.linear, float8.linear_twin, [x, weight], 1e-2)
    out, exact = float8.linear(x, weight), torch.nn.functional.linear(x.double(), weight.double())
    if factor == 1.0:
        assert 1e-2 < (out - exact).norm() / exact.norm() < 5e-2
    odd = normal(5, 24), normal(16, 24)  # not in multiples of 16: in full
    assert torch.equal(float8.linear(*odd), torch.nn.functional.linear(*odd))


def test_what_float8_makes_of_numbers() -> None:
    """As torch rounds, but that nothing overflows; what is no number stays none."""
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("made for Hopper")
    pytest.importorskip("triton")
    x = torch.randn(9999, device=CUDA) * torch.logspace(-4, 4, 9999, device=CUDA)
    x[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    for dtype in (torch.float32, torch.bfloat16):
        for factor in (1.0, 32.0):
            got = float8.narrow(x.to(dtype), factor).float()
            wanted = (x.to(dtype).float() * factor).clamp(-448, 448).to(torch.float8_e4m3fn)
            torch.testing.assert_close(got, wanted.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", ["float8", "quack", "triton", "torch"])
@pytest.mark.parametrize(("num", "width"), [(333, 128), (1000, 640), (9000, 512)])
def test_mlp(backend: str, num: int, width: int) -> None:
    """Output and three gradients, by fewer and by more tiles than there are processors."""
    if backend != "torch" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("made for Hopper")
    if backend == "quack":
        pytest.importorskip("quack")
    if backend == "float8":
        skip_without_float8()
    inputs = [normal(num, width), normal(4 * width, width, scale=0.1)]
    inputs.append(normal(width, 4 * width, scale=0.1))
    twin = float8.relu2_mlp_twin if backend == "float8" else mlp.relu2_mlp_twin
    assert_agree(lambda *t: mlp.relu2_mlp(*t, backend), twin, inputs, 1e-2)


@pytest.mark.parametrize("num_ids", [1000, 1])
def test_lookup(num_ids: int) -> None:
    """Rows and gradients of all tables, with many different tokens and with one alone."""
    pytest.importorskip("triton")
    tokens = torch.randint(0, num_ids, (5, 333), device=CUDA)

    def flat(lookup: Callable[..., Any]) -> Callable[..., Any]:
        def function(embedding: Tensor, values: Tensor) -> list[Tensor]:
            first, others = lookup(tokens, embedding, values)
            return [first, *others]

        return function

    inputs = [normal(1000, 200), normal(3, 1000, 96)]
    assert_agree(flat(table.lookup), flat(table.lookup_twin), inputs, 5e-3)


@pytest.mark.parametrize("shape", [(4, 256, 256), (2, 512, 128), (2, 128, 512)])
def test_polar(shape: tuple[int, ...]) -> None:
    """Banks in bfloat16 against float64."""
    matrices = torch.randn(shape, device=CUDA)
    wanted = polar.polar_twin(matrices.double(), COEFFICIENTS)
    got = polar.polar(matrices, COEFFICIENTS, torch.bfloat16).double()
    assert (got - wanted).norm() <= 5e-2 * wanted.norm()


@pytest.mark.parametrize("front", [0, 24])
@pytest.mark.parametrize("num_inputs", [1, 2, 3])
@pytest.mark.parametrize(("num", "width"), [(333, 512), (50, 640), (7, 72)])
def test_add_norm(num: int, width: int, num_inputs: int, front: int) -> None:
    """Sum, normed sum and all gradients, those of the two scalars too."""
    pytest.importorskip("triton")
    inputs = [normal(3, num, width) for _ in range(num_inputs)]
    if num_inputs == 3:
        inputs += [torch.tensor(s, device=CUDA, requires_grad=True) for s in (0.2, 0.9)]

    def used(add_norm: Callable[..., Any], share: Callable[..., Any]) -> Callable[..., Any]:
        def sums(*t: torch.Tensor) -> Any:
            if num_inputs < 3:
                return add_norm(*t, front=front)[: 3 if front else 2]
            x, y, x0, factor, resid = t
            mixed = share(x0, factor[None])[1][0]
            return add_norm(x, y, mixed, resid, front)[: 3 if front else 2]

        return sums

    twin = used(residual.add_norm_twin, residual.share_twin)
    assert_agree(used(residual.add_norm, residual.share), twin, inputs, 1e-2)


@pytest.mark.parametrize("num", [1, 2, 9, 23])
def test_share(num: int) -> None:
    """What all layers give back, of x and of the factors."""
    pytest.importorskip("triton")
    factors = torch.linspace(-1, 1, num, device=CUDA, requires_grad=True)

    def sums(add_norm: Callable[..., Any], share: Callable[..., Any]) -> Callable[..., Any]:
        def function(x: torch.Tensor, y: torch.Tensor, factors: torch.Tensor) -> Any:
            straight, mixed = share(x, factors)
            return [straight * 1, *(add_norm(y, None, one, factors[0])[0] for one in mixed)]

        return function

    twin = sums(residual.add_norm_twin, residual.share_twin)
    inputs = [normal(99, 333), normal(99, 333), factors]
    assert_agree(sums(residual.add_norm, residual.share), twin, inputs, 1e-2)


@pytest.mark.parametrize("has_documents", [True, False])
@pytest.mark.parametrize(("window", "offset"), [(-1, True), (384, True), (77, True), (77, False)])
@pytest.mark.parametrize("has_value", [True, False])
def test_attend_heads(has_value: bool, window: int, offset: bool, has_documents: bool) -> None:
    """Attention on the product of a layer, values read and their gradient written in place."""
    try:
        attention._make_fa4(CUDA)
    except ImportError as error:
        pytest.skip(str(error))
    B, T, H, G, D = 2, 384, 4, 2, 128
    angles = torch.randn(T, 1, D // 2, device=CUDA)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    shapes = [(B, T, (H + 2 * G) * D), (B, T, G), (B, T, G * D)]
    inputs = [normal(*shape) for shape in shapes[: 3 if has_value else 1]]

    tokens = torch.randint(60, (B, T), device=CUDA)

    def whole(function: Callable[..., Any], find: Callable[..., Any]) -> Callable[..., Any]:
        documents = find(tokens, 7) if has_documents else None

        def call(qkv: Tensor, *extra: Tensor) -> Any:
            turns, mix = (cos.to(qkv.dtype), sin.to(qkv.dtype)), extra or (None, None)
            return function(qkv, *turns, H, *mix, window, offset, documents, 1.2)

        return call

    fast = whole(heads.attend_heads, find_bounds)
    plain = whole(heads.attend_heads_twin, count_documents)
    assert_agree(fast, plain, inputs, 2e-2)


@pytest.mark.parametrize("has_value", [False, True])
def test_queries_learn_the_same_from_sums(has_value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of queries as FlashAttention sums it up, and as it puts it in order."""
    B, T, H, D = 3, 512, 2, 128
    angles = torch.randn(T, 1, D // 2, device=CUDA)
    qkv, turns = normal(B, T, 3 * H * D), (angles.cos().bfloat16(), angles.sin().bfloat16())
    mix = [normal(B, T, H), normal(B, T, H * D)] if has_value else [None, None]
    if not fa4.leaves_sums(qkv.device, D, T, 100, has_documents=False):
        pytest.skip("the order of its sums is not known")
    grad = normal(B, T, H, D).detach()
    own = [t for t in (qkv, *mix) if t is not None]
    results = []
    for has_sums in (True, False):
        monkeypatch.setattr(fa4, "_has_known_sums", lambda _device, known=has_sums: known)
        for window in (100, -1):
            out = heads.attend_heads(qkv, *turns, H, *mix, window, True, None, 1.2)
            results.append(torch.autograd.grad(out, own, grad))
    for with_sums, without in zip(results[:2], results[2:], strict=True):
        for a, b in zip(with_sums, without, strict=True):
            assert (a - b).float().norm() < 5e-3 * b.float().norm()


def test_one_compiled_block_serves_all_windows() -> None:
    """Told as a tensor, a window is another one at every call; results are those of numbers."""
    try:
        attention._make_fa4(CUDA)
    except ImportError as error:
        pytest.skip(str(error))
    B, T, H, D = 2, 384, 2, 128
    angles = torch.randn(T, 1, D // 2, device=CUDA)
    turns = angles.cos().bfloat16(), angles.sin().bfloat16()
    qkv, grad = normal(B, T, 3 * H * D), normal(B, T, H, D).detach()

    def attended(qkv: Tensor, window: Any) -> Tensor:
        return heads.attend_heads(qkv, *turns, H, None, None, window, True, None, 1.0)

    compiled = torch.compile(attended, fullgraph=True, dynamic=False)
    torch._dynamo.utils.counters.clear()
    for window in (-1, 384, 77, 128):
        results = []
        for function, told in ((attended, window), (compiled, heads.as_tensor(window))):
            out = function(qkv, told)
            results.append((out, *torch.autograd.grad(out, qkv, grad)))
        for got, wanted in zip(*results, strict=True):
            assert (got - wanted).norm() / wanted.norm() < 5e-3  # sums in another order
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1

"""Every Triton kernel on the CPU, where triton is installed: in its interpreter, and compiled.

bfloat16 products are wrong in the interpreter; float16 stands in. The interpreter takes what the
compiler refuses; the compiler needs no GPU. tests/gpu runs the real thing.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PATHS = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
HAS_TRITON = importlib.util.find_spec("triton") is not None

_INTERPRETED = """
import itertools
import torch
import torch.nn.functional as F
from types import SimpleNamespace
from autoresearch.inside.ops import attention, fa4, float8, heads, mlp, residual, rotary
from autoresearch.inside.ops import softcap_ce, table
from autoresearch.inside.ops.documents import count_documents, find_bounds
from autoresearch.inside.ops.shape import Shape

torch.manual_seed(0)
for vocab, dtype, bound in ((100, torch.float32, 1e-5), (300, torch.bfloat16, 8e-3)):
    logits = (torch.randn(19, vocab) * 20).to(dtype)  # more rows than programs
    targets, losses, out = torch.randint(0, vocab, (19,)), torch.empty(19), logits.clone()
    softcap_ce.loss_and_gradient(out, targets, losses, 15.0, 0.3)
    exact = logits.double().requires_grad_()
    wanted = F.cross_entropy(15 * torch.tanh(exact / 15), targets, reduction="none")
    grad = torch.autograd.grad(0.3 * wanted.sum(), exact)[0]
    assert (losses - wanted).abs().max() < 1e-4
    assert (out.double() - grad).norm() / grad.norm() < bound

logits = torch.randn(4, 100)
losses = torch.empty(4)
softcap_ce.loss_and_gradient(logits, torch.tensor([5, -100, 100, 99]), losses, 15.0, 0.3)
assert losses.isnan().tolist() == [False, True, True, False]  # what is no token is not passed over

for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 1e-5)):
    logits = (torch.randn(3, 7, 301) * 20).to(dtype)
    off = softcap_ce.shown(logits, 15.0) - softcap_ce.softcap_twin(logits.double(), 15.0)
    assert off.abs().max() < bound * 15, off.abs().max()

utilities = ("test_schema", "test_autograd_registration", "test_faketensor")


def heads_case(num_rows, has_value, G, dtype):
    angles = torch.randn(21, 1, 16).double()
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    widths = [(4 + 2 * G) * 32, G, G * 32][: 1 + 2 * has_value]
    inputs = [torch.randn(num_rows, 21, width).to(dtype).requires_grad_() for width in widths]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    rest, others = (inputs[1:], exact[1:]) if has_value else ([None, None], [None, None])
    return cos, sin, inputs, exact, rest, others


for has_value, offset, G, dtype, bound in (
    (1, False, 2, torch.float32, 1e-6),
    (0, False, 1, torch.float16, 2e-3),
    (1, True, 1, torch.float16, 2e-3),
    (0, True, 2, torch.float32, 1e-6),
):
    cos, sin, inputs, exact, rest, others = heads_case(3, has_value, G, dtype)
    outs = rotary.split_forward(inputs[0], cos, sin, *rest, 4, offset, 1.3)
    turns = (cos.double(), sin.double())
    goals = rotary.split_heads_twin(exact[0], *turns, 4, *others, offset, 1.3)
    grads = [torch.randn(out.shape).to(dtype) for out in outs]
    got = [*outs, *torch.autograd.grad(outs, inputs, grads)]
    wanted = [*goals, *torch.autograd.grad(goals, exact, [g.double() for g in grads])]
    for a, b in zip(got, wanted, strict=True):
        assert (a.double() - b).norm() / b.norm() < bound
    arguments = (inputs[0], cos, sin, *rest, 4, offset, 1.3)
    torch.library.opcheck(rotary.split_forward, arguments, test_utils=utilities)

for C, is_mixed, front, dtype, bound in (
    (48, 1, 8, torch.float32, 1e-5),
    (64, 0, 0, torch.float16, 2e-3),
    (20, 1, 0, torch.float16, 2e-3),
):
    inputs = [torch.randn(3, 7, C).to(dtype) for _ in range(2 + is_mixed)]
    inputs += [torch.tensor([0.3, -0.2, 0.1]), torch.tensor(0.8)][: 2 * is_mixed]
    inputs = [t.requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]

    def sums(add_norm, share, x, y, x0=None, factors=None, resid=None, front=front):
        if x0 is None:
            return add_norm(x, y, front=front)[: 3 if front else 2]
        straight, mixed = share(x0, factors)
        x, h, first = add_norm(x, y, mixed[2], resid, front)
        x, h, more = add_norm(x, straight, mixed[0], resid, front)  # one of three is not used
        return (x, h, first, more) if front else (x, h)

    outs = sums(residual.add_norm, residual.share, *inputs)
    goals = sums(residual.add_norm_twin, residual.share_twin, *exact)
    for used in (slice(None), slice(1, None)):
        # like x0 in part, or gradients of scalars would be small sums of noise
        grads = [(torch.randn(t.shape) + inputs[-3 * is_mixed][..., : t.size(-1)]).to(dtype)
                 for t in outs[used]]
        kept = {"retain_graph": True}
        got = [*outs, *torch.autograd.grad(outs[used], inputs, grads, **kept)]
        grads = [g.double() for g in grads]
        wanted = [*goals, *torch.autograd.grad(goals[used], exact, grads, **kept)]
        for a, b in zip(got, wanted, strict=True):
            assert (a.double() - b).norm() / b.norm() < bound, (C, a.shape)
    mixed = residual.share(*inputs[2:4])[1][0] if is_mixed else (None, None, None)
    arguments = (*inputs[:2], *mixed, inputs[4] if is_mixed else None, front)
    torch.library.opcheck(residual.add_norm_forward, arguments, test_utils=utilities)
    if is_mixed:  # a product is for add_norm alone: whoever reads it will see it
        assert mixed.product.isnan().all() and torch.equal(mixed.x0, inputs[2])
        compiled = torch.compile(residual.add_norm, backend="aot_eager", fullgraph=True)
        results = []
        for add_norm in (residual.add_norm, compiled):
            straight, products = residual.share(*inputs[2:4])
            outs = add_norm(straight, inputs[1], products[1], inputs[4], front)[:2]
            results.append((*outs, *torch.autograd.grad(sum(map(torch.sum, outs)), inputs[1:])))
        assert all(map(torch.equal, *results))

sizes = {"context": 64, "vocab_size": 32, "width": 48, "num_heads": 4, "kv_heads": 2}
sizes |= {"head_dim": 16}
layers = {"windows": [16] * 11, "has_offset": True, "value_layers": [9, 10], "front": 8}
shape = Shape(**sizes, **layers, has_head_gate=False, has_documents=False)
residual.try_out(torch.device("cpu"), shape)
with torch.no_grad():
    residual.try_out(torch.device("cpu"), shape)
x, straight, *grads = torch.randn(14, 5, 300).unbind()
factors = torch.randn(12)
for value in (0.9, 5e-4, -1e-4):  # the scalar's gradient is a quotient, with a difference of two
    given = [torch.randn(5, 300), torch.tensor([0.3]), torch.tensor(value)]
    given = [t.requires_grad_() for t in given]
    results = []
    for add_norm, share in (
        (residual.add_norm_twin, residual.share_twin), (residual.add_norm, residual.share)
    ):
        x0, mix, resid = given
        own, mixed = share(x0, mix / resid)
        out = add_norm(own, None, mixed[0], resid)[0]
        results.append(torch.autograd.grad((out * x).sum(), given))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
wide = residual.add_norm(x, factors[:1].expand(300), None, None)[0]
torch.testing.assert_close(wide, x + factors[0])  # repeated, as in plain torch
for used in (grads, [None, *grads[1:4], *8 * [None]], 12 * [None]):  # more than go at once; none
    exact = [t.double().requires_grad_() for t in (x, factors)]
    out, products = residual.share_twin(*exact)
    pairs = [(p, g) for p, g in zip([out, *products], [straight, *used]) if g is not None]
    wanted = torch.autograd.grad(sum((p * g).sum() for p, g in pairs), exact, allow_unused=True)
    for a, b in zip(residual.share_backward(straight, used, x, factors), wanted):
        torch.testing.assert_close(a.double(), torch.zeros_like(a).double() if b is None else b,
                                   rtol=1e-5, atol=1e-5)


def seen(q, window, bounds):  # as FlashAttention takes windows and documents
    B, T = q.shape[:2]
    documents = None
    if bounds is not None and window < 0:
        documents = torch.searchsorted(bounds, torch.arange(B * T), right=True).view(B, T)
    return attention.visible(T, window, documents, q.device)


def wide(q, k, window, bounds):
    k = k.repeat_interleave(q.size(2) // k.size(2), dim=2).float()
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k) / q.size(3) ** 0.5
    return scores.masked_fill(~seen(q, window, bounds), -torch.inf).softmax(-1), k


def run(q, k, v, window, bounds):
    v = v.repeat_interleave(q.size(2) // k.size(2), dim=2).float()
    out = torch.einsum("bhqk,bkhd->bqhd", wide(q, k, window, bounds)[0], v).to(q.dtype)
    return out.contiguous(), torch.zeros(q.size(0), q.size(2), q.size(1))


def run_backward(grad, q, k, v, out, lse, window, bounds, dv, as_sums=False):
    shared, grad = q.size(2) // k.size(2), grad.float()
    P, keys = wide(q, k, window, bounds)
    values = v.repeat_interleave(shared, dim=2).float()
    dP = torch.einsum("bqhd,bkhd->bhqk", grad, values)
    dS = P * (dP - (dP * P).sum(-1, keepdim=True)) / q.size(3) ** 0.5
    dq = torch.einsum("bhqk,bkhd->bqhd", dS, keys).to(q.dtype)
    dk, given = (
        torch.einsum("bhqk,bqhd->bkhd", a, b).unflatten(2, (-1, shared)).sum(3).to(q.dtype)
        for a, b in ((dS, q.float()), (P, grad))
    )
    return (sum_up(dq) if as_sums else dq), dk, dv.copy_(given)


def sum_up(dq):  # a gradient of queries as FlashAttention's threads hold and leave it
    B, T, H, D = dq.shape
    sums, tokens, columns = torch.zeros(B, H, T * D), range(64), range(D)
    for t, c in itertools.product(tokens, columns):
        thread = t // 16 * 32 + t % 8 * 4 + c % 8 // 2
        number = c % 64 // 8 * 4 + t % 16 // 8 * 2 + c % 2
        place = c // 64 * 4096 + number // 4 * 512 + thread * 4 + number % 4
        sums[..., place :: 64 * D] = dq[:, t::64, :, c].transpose(1, 2).float() * D**0.5
    return sums


fa4.run, fa4.run_backward = run, run_backward
for has_value, offset, G, dtype, bound in (
    (1, False, 2, torch.float32, 1e-5),
    (0, True, 1, torch.float16, 5e-3),
):
    cos, sin, inputs, exact, rest, others = heads_case(2, has_value, G, dtype)
    turns = (cos.double(), sin.double())
    tokens = torch.arange(42).view(2, 21) % 15
    bounds, documents = find_bounds(tokens, 3), count_documents(tokens, 3)
    outs = {}
    for window, ends, numbers in ((9, None, None), (-1, None, None), (-1, bounds, documents)):
        out = heads.attend_heads(inputs[0], cos, sin, 4, *rest, window, offset, ends, 1.3)
        goal = heads.attend_heads_twin(exact[0], *turns, 4, *others, window, offset, numbers, 1.3)
        grad = torch.randn(out.shape).to(dtype)
        got = [out, *torch.autograd.grad(out, inputs, grad)]
        wanted = [goal, *torch.autograd.grad(goal, exact, grad.double())]
        for a, b in zip(got, wanted, strict=True):
            assert (a.double() - b).norm() / b.norm() < bound
        outs[window, ends is None] = out
    assert not torch.allclose(outs[-1, True], outs[-1, False])
    short = heads.attend_heads(inputs[0], cos, sin, 4, *rest, 9, offset, bounds, 1.3)
    assert torch.equal(short, outs[9, True])  # documents are for whole windows
    for bounds_or_not, *windows in ((None, torch.tensor(9), 0), (bounds, None, -1)):
        arguments = (inputs[0], cos, sin, *rest, bounds_or_not, 4, offset, 1.3, *windows)
        torch.library.opcheck(heads.heads_forward, arguments, test_utils=utilities)

    def attended(qkv, window, rest=rest, turns=(cos, sin), offset=offset):
        return heads.attend_heads(qkv, *turns, 4, *rest, window, offset, None, 1.3)

    compiled = torch.compile(attended, backend="aot_eager", fullgraph=True, dynamic=False)
    torch._dynamo.utils.counters.clear()
    for window in (9, 4, 15):
        results = []
        for function, reach in ((attended, window), (compiled, heads.as_tensor(window))):
            out = function(inputs[0], reach)
            results.append((out, *torch.autograd.grad(out, inputs, grad)))
        assert all(map(torch.equal, *results)), window
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1

    def whole(qkv, window, attended=attended):  # as a model that is compiled in one piece
        return attended(qkv, heads.as_tensor(window))

    whole = torch.compile(whole, backend="aot_eager", fullgraph=True, dynamic=False)
    for graph in (compiled, whole):
        assert torch.equal(graph(inputs[0], 9), attended(inputs[0], 9))

turns = [torch.randn(128, 1, 64).cos(), torch.randn(128, 1, 64).sin()]
qkv, grad = torch.randn(2, 128, 512), torch.randn(2, 128, 2, 128)
for has_value, offset in ((False, True), (True, False)):
    mix = (torch.randn(2, 128, 1), torch.randn(2, 128, 128)) if has_value else (None, None)
    results = []
    for way in (True, False):
        fa4.leaves_sums = lambda *_, way=way: way
        own = [t.clone().requires_grad_() for t in (qkv, *(mix if has_value else ()))]
        rest = own[1:] or (None, None)
        out = heads.attend_heads(own[0], *turns, 2, *rest, 9, offset, None, 1.3)
        results.append(torch.autograd.grad(out, own, grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
fa4.leaves_sums = lambda *_: False

for has_documents, window in ((False, 16), (True, 16), (True, 64)):
    layers = {"windows": [window, 64], "has_offset": True, "value_layers": [1], "front": 8}
    shape = Shape(**sizes, **layers, has_head_gate=False, has_documents=has_documents)
    heads.try_out(torch.device("cpu"), shape)

tokens, grad = torch.randint(0, 20, (210,)), torch.randn(210, 200)
ids, order = tokens.int().sort()
got = torch.zeros(20, 200)
table.add_rows(grad, ids, order, got)
wanted = torch.zeros(20, 200, dtype=torch.float64).index_add_(0, tokens, grad.double())
assert (got - wanted).abs().max() < 1e-4

for dtype, bound in ((torch.float32, 1e-6), (torch.float16, 2e-3)):
    a, b = torch.randn(200, 96).to(dtype), (torch.randn(320, 96) / 10).to(dtype)
    up = mlp.gemm_relu2(a, b)
    product = a.double() @ b.double().T
    wanted = product.relu().square()
    assert (up.double() - wanted).norm() / wanted.norm() < bound
    down, slope = mlp.gemm_relu2(a, b, up), product * 2 * up.double().sqrt()
    assert (down.double() - slope).norm() / slope.norm() < bound

for factor in (1.0, 0.37):
    x, head = torch.randn(333, 24).requires_grad_(), torch.randn(50, 24).requires_grad_()
    targets = torch.randint(0, 50, (333,))
    loss = softcap_ce._HeadLoss.apply(x, head, targets, 15.0, F.linear)
    wanted = softcap_ce.head_loss_twin(x, head, targets, 15.0)
    (loss * factor).backward(retain_graph=True)
    exact = torch.autograd.grad(wanted * factor, (x, head))
    torch.testing.assert_close((x.grad, head.grad), exact, rtol=1e-4, atol=1e-7)
    try:
        loss.backward()
    except RuntimeError as error:
        assert "second backward" in str(error)
    else:
        raise AssertionError("a gradient was scaled twice")

for dtype in (torch.float32, torch.bfloat16):
    small = torch.randn(7, 999).mul(30).to(torch.float8_e4m3fn)
    # nothing here needs rounding: the interpreter makes 4 of 7.98
    got = float8.narrow(small.to(dtype) / 4, 4.0)
    assert got.dtype is torch.float8_e4m3fn
    assert torch.equal(got.float(), small.float())

def multiply(a, b, _tiles):
    assert a.dtype is b.dtype is torch.float8_e4m3fn
    return (a.float() @ b.float()) / 32

gemm = SimpleNamespace(product_of_float8=multiply)
gemm.up_of_float8 = lambda a, b, tiles: multiply(a, b, tiles).relu().square()
gemm.down_gradient = lambda a, b, c, tuned: {"D": a @ b * 2 * c.sqrt()}
float8.load_gemm = mlp.load_gemm = lambda: gemm
float8.narrow = lambda x, factor: (x.detach() * factor).to(torch.float8_e4m3fn)
x, fc, proj = torch.randn(40, 48), torch.randn(64, 48) / 8, torch.randn(48, 64) / 8
exact = [t.requires_grad_() for t in (x, fc, proj)]
for function, twin, own in (
    (float8.linear_forward, float8.linear_twin, exact[:2]),
    (lambda *t: mlp.relu2_mlp(*t, "float8"), float8.relu2_mlp_twin, exact),
):
    outs, wanted = function(*own), twin(*own)
    grad = torch.randn_like(outs)
    got = [outs, *torch.autograd.grad(outs, own, grad)]
    for a, b in zip(got, [wanted, *torch.autograd.grad(wanted, own, grad)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
assert (wanted - mlp.relu2_mlp_twin(*own)).norm() / wanted.norm() > 1e-2
torch.library.opcheck(float8.linear_forward, tuple(exact[:2]), test_utils=utilities)
results, grad = [], torch.randn(40, 64)
for function in (
    float8.linear_forward,
    torch.compile(float8.linear_forward, backend="aot_eager", fullgraph=True),
):
    out = function(*exact[:2])
    results.append((out, *torch.autograd.grad(out, exact[:2], grad)))
assert all(map(torch.equal, *results))
print("fine")
"""


_COMPILED = """
import re
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from autoresearch.inside.ops.kernels import float8, mlp, residual, rotary, softcap_ce

def compiled(kernel, floats, constants, **others):
    # the kernel for Hopper, which has loads or stores of 16 bytes
    names, kinds = kernel.arg_names, {"N": "i32", "T": "i32", "C": "i32", "num_programs": "i32"}
    kinds |= {name: "*fp32" for name in floats} | {"gain": "fp32", "cap": "fp32"} | others
    kinds = {n: "constexpr" if n in constants else kinds.get(n, "*bf16") for n in names}
    even = [i for i, n in enumerate(names) if kinds[n][0] == "*" or n in "NTC"]
    attributes = {(i,): [["tt.divisibility", 16]] for i in even}
    values = {(names.index(n),): value for n, value in constants.items()}
    source = ASTSource(kernel, kinds, values, attributes)
    options = {"num_warps": 4}
    ptx = compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert re.search(r"(ld|st).global.*v4", ptx)
    return ptx

def narrow(*given, **others):
    # its loads and stores of single bfloat16s: all should be of eight
    return len(re.findall(r"(ld|st).global[.\\w:]*.b16", compiled(*given, **others)))

assert narrow(softcap_ce.softcap, ("out",), {"BLOCK": 2048}) == 0
assert narrow(softcap_ce.rescale, ("factor",), {"BLOCK": 4096}) == 0
to_float8 = compiled(float8.narrow, (), {"BLOCK": 4096}, factor="fp32", out="*fp8e4nv")
assert "cvt.rn.satfinite.e4m3x2" in to_float8  # no number becomes NaN for being large
assert not re.search(r"(ld|st).global[.\\w:]*.b(8|16)", to_float8)
heads = {"H": 5, "G": 5, "HALF": 64, "ROWS": 16, "HAS_VALUE": False}
sums = {"FRONT": 0, "BLOCK": 1024, "IS_MIXED": True}
scalars = ("size", "resid", "factor", "factors", "parts")
for offset in (True, False):
    more = {**heads, "OFFSET": offset}
    assert narrow(rotary.split_heads, (), {**more, "WRITES_VALUES": False}) == 0
    for summed in (True, False):
        back = {**more, "IN_PLACE": True, "FROM_SUMS": summed}
        assert narrow(rotary.split_heads_backward, ("dq",) * summed, back) == 0
assert narrow(residual.add_norm, scalars, {**sums, "ROWS": 8, "HAS_Y": True}) == 0
sums |= {"ROWS": 4, "HAS_TOTAL": True}
assert narrow(residual.add_norm_backward, scalars, sums) == 0
shared = {"NUM": 9, "HAS_STRAIGHT": True, "BLOCK": 2048}
assert narrow(residual.share_backward, scalars, shared) == 0
print("fine")
"""


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_kernels_in_the_interpreter() -> None:
    """Each Triton kernel, on odd shapes, against float64; in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": PATHS,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", _INTERPRETED]
    ended = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    if "only 0-dimensional arrays can be converted" in ended.stderr:
        pytest.skip("this triton's interpreter cannot do with numpy 2.4 and newer")
    assert ended.stdout.strip() == "fine", ended.stderr[-2000:]


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_kernels_compile_to_wide_accesses(tmp_path: Path) -> None:
    """Kernels that are bound by memory, for Hopper: 16 bytes a load, with every option."""
    script, cache = tmp_path / "compiled.py", tmp_path / "cache"
    script.write_text(_COMPILED)
    environment = {**os.environ, "PYTHONPATH": PATHS, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", str(script)]
    assert subprocess.check_output(command, env=environment, text=True).strip() == "fine"

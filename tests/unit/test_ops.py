"""The fast operators without a GPU: twins against float64, our autograd against the twins' own.

With triton installed its interpreter runs the kernels on the CPU (bfloat16 products are wrong in
it; float16 stands in). tests/gpu runs the real thing.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from autoresearch.inside.ops import attention, mlp, polar, rotary, softcap_ce, table
from autoresearch.inside.ops.trial_call import compare

TRAIN = Path(__file__).parents[2] / "src" / "autoresearch" / "templates" / "train.py"
OPS = TRAIN.parents[1] / "inside" / "ops"
HAS_TRITON = importlib.util.find_spec("triton") is not None


@pytest.fixture(scope="module")
def train() -> ModuleType:
    """The shipped train.py, for its plain operators."""
    spec = importlib.util.spec_from_file_location("train_of_ops", TRAIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def double(*shape: int) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("window", [1, 7, 30, 100])
@pytest.mark.parametrize("groups", [1, 3])
def test_attention_rungs_agree(train: ModuleType, window: int, groups: int) -> None:
    """The twin, the last rung and train.py's own say the same, gradients included."""
    q, k, v = (double(2, 31, heads, 8).requires_grad_() for heads in (3, groups, groups))
    weight = double(2, 31, 3, 8)
    results = []
    for attend in (attention.attend_twin, attention.attend_sdpa, train.sdpa):
        out = attend(q, k, v, window)
        results.append([out, *torch.autograd.grad((out * weight).sum(), (q, k, v))])
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, wanted)


def test_flex_mask_is_the_window() -> None:
    """Block masks are made for every window that cuts, and the rule counts the own token extra."""
    device = torch.device("cpu")
    flex = attention.FlexAttend(256, [256, 100], device, full=attention.attend_sdpa)
    assert list(flex._masks) == [100]
    is_seen = attention._window_rule(2)
    position = torch.tensor
    assert [bool(is_seen(None, None, position(5), position(key))) for key in range(8)] == [
        False, False, False, True, True, True, False, False
    ]  # fmt: skip
    q, k, v = (torch.randn(1, 31, 2, 8) for _ in range(3))
    torch.testing.assert_close(flex(q, k, v, 4), attention.attend_twin(q, k, v, 4))


def test_ladder_falls_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no rung works, the answer is None with the reasons; a wrong result is no rung."""

    def broken(*_: object) -> None:
        raise ImportError("not here")

    device = torch.device("cpu")
    monkeypatch.setattr(attention, "_make_fa4", broken)
    monkeypatch.setattr(attention, "_make_fa3", broken)
    monkeypatch.setattr(attention, "FlexAttend", broken)
    monkeypatch.setattr(attention, "attend_cudnn_or_sdpa", lambda q, k, v, w: q * math.nan)
    attend, name = attention.choose("auto", device, 8, 16, [16])
    assert attend is None
    assert name.startswith("sdpa (fa4: ImportError: not here")
    assert "off by nan" in name
    monkeypatch.setattr(attention, "attend_cudnn_or_sdpa", attention.attend_sdpa)
    assert attention.choose("auto", device, 8, 16, [16, 3])[0] is attention.attend_sdpa
    assert attention.choose("sdpa", device, 8, 16, [16]) == (None, "sdpa")


@pytest.mark.parametrize(("factor", "is_right"), [(1.0, True), (1.019, True), (1.021, False)])
def test_a_trial_call_may_be_off_by_two_percent(factor: float, is_right: bool) -> None:
    """Of the twin's norm, each result apart; bfloat16 is compared in float32."""
    twin = torch.randn(64)
    compare([(twin.bfloat16(), twin)])
    if is_right:
        compare([(twin, twin), (twin * factor, twin)])
        return
    with pytest.raises(ValueError, match=r"^window 3: off by 0\.021$"):
        compare([(twin, twin), (twin * factor, twin)], "window 3: ")


def test_fa4_is_wired_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our operator around FlashAttention passes windows, saves what backward needs: with a
    stand-in for the library, in float64.
    """

    def weights(q: Tensor, k: Tensor, window: int | None) -> Tensor:
        T, D = q.size(1), q.size(3)
        back = torch.arange(T)[:, None] - torch.arange(T)
        is_hidden = (back < 0) | (back > (T if window is None else window))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D)
        return scores.masked_fill(is_hidden, -math.inf).softmax(-1)

    def forward(q: Tensor, k: Tensor, v: Tensor, **options: object) -> tuple[Tensor, ...]:
        assert options.pop("causal")
        assert options.pop("return_lse")
        P = weights(q, k, options.pop("window_size_left"))  # type: ignore[arg-type]
        assert not options
        out = torch.einsum("bhqk,bkhd->bqhd", P, v).contiguous()
        return out, torch.zeros(q.size(0), q.size(2), q.size(1)), None, None, None

    def backward(q, k, v, out, grad, lse, scale, causal, softcap, window_size_left):  # type: ignore[no-untyped-def]
        assert (scale, causal, softcap) == (None, True, 0.0)
        P = weights(q, k, window_size_left)
        dP = torch.einsum("bqhd,bkhd->bhqk", grad, v)
        dS = P * (dP - (dP * P).sum(-1, keepdim=True)) / math.sqrt(q.size(3))
        products = (("bhqk,bkhd->bqhd", dS, k), ("bhqk,bqhd->bkhd", dS, q))
        products += (("bhqk,bqhd->bkhd", P, grad),)
        return tuple(torch.einsum(*product).contiguous() for product in products)

    library = ModuleType("flash_attn.cute.interface")
    library._flash_attn_fwd, library._flash_attn_bwd = forward, backward
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, library.__name__, library)
    q, k, v = (double(2, 13, 3, 4).requires_grad_() for _ in range(3))
    weight = double(2, 13, 3, 4)
    for window in (5, 12, 99):
        results = []
        for attend in (attention.attend_fa4, attention.attend_twin):
            out = attend(q, k, v, window)
            results.append([out, *torch.autograd.grad((out * weight).sum(), (q, k, v))])
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted)


def test_head_loss_twin_is_train_s(train: ModuleType) -> None:
    """On a CPU the operator is its twin, and train.py's chunks compute the same."""
    x, head = double(2, 300, 8).requires_grad_(), double(17, 8).requires_grad_()
    targets = torch.randint(0, 17, (2, 300))
    ours = softcap_ce.head_loss(x, head, targets, 15.0)
    theirs = train.head_loss(x, head, targets)
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-5, atol=0)
    for a, b in zip(
        torch.autograd.grad(ours, (x, head)), torch.autograd.grad(theirs, (x, head)), strict=True
    ):
        assert (a - b).norm() / a.norm() < 1e-5


@pytest.mark.parametrize("has_value", [True, False])
def test_split_heads_twin_is_train_s(train: ModuleType, has_value: bool) -> None:
    """On a CPU the operator is its twin, and train.py's own computes the same."""
    angles = double(7, 1, 4)
    qkv, opening, value = double(2, 7, 5 * 8), double(2, 7, 1), double(2, 7, 8)
    inputs = (qkv, angles.cos(), angles.sin(), 3, *((opening, value) if has_value else 2 * [None]))
    train.QK_GAIN = 1.25
    for got, wanted in zip(
        rotary.split_heads(*inputs, gain=1.25), train.split_heads(*inputs), strict=True
    ):
        torch.testing.assert_close(got, wanted)
    train.QK_GAIN = 1.0


def test_mlp_keeps_only_squares() -> None:
    """The operator's own backward pass, from squared activations, is the twin's: float64."""
    x, fc, proj = (double(*shape).requires_grad_() for shape in ((2, 5, 6), (24, 6), (6, 24)))
    weight = double(2, 5, 6)
    out = mlp.relu2_mlp(x, fc, proj, "torch")
    wanted = mlp.relu2_mlp_twin(x, fc, proj)
    torch.testing.assert_close(out, wanted)
    got = torch.autograd.grad((out * weight).sum(), (x, fc, proj))
    for a, b in zip(got, torch.autograd.grad((wanted * weight).sum(), (x, fc, proj)), strict=True):
        torch.testing.assert_close(a, b)


def test_mlp_operator_is_well_formed() -> None:
    """Schema, fake implementation and autograd registration agree with the real one."""
    x, fc, proj = (torch.randn(shape).requires_grad_() for shape in ((10, 6), (24, 6), (6, 24)))
    torch.library.opcheck(mlp.relu2_forward, (x, fc, proj, "torch"))


def test_lookup_is_the_twin_and_train_s(train: ModuleType) -> None:
    """On a CPU all three give the same rows and gradients."""
    tokens = torch.randint(0, 11, (3, 9))
    results = []
    for lookup in (table.lookup, table.lookup_twin, train.lookup):
        torch.manual_seed(0)
        embedding, values = double(11, 4).requires_grad_(), double(2, 11, 6).requires_grad_()
        first, others = lookup(tokens, embedding, values)
        loss = first.square().sum() + sum(other.square().sum() for other in others)
        results.append([first, *others, *torch.autograd.grad(loss, (embedding, values))])
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("shape", [(2, 12, 12), (3, 20, 8), (3, 8, 20)])
def test_polar_agrees(train: ModuleType, shape: tuple[int, ...]) -> None:
    """Fused and plain iterations are the same function, in float64 exactly enough."""
    matrices = double(*shape)
    coefficients = train.POLAR_COEFFICIENTS
    wanted = polar.polar_twin(matrices, coefficients)
    torch.testing.assert_close(polar.polar(matrices, coefficients, torch.float64), wanted)
    torch.testing.assert_close(train.polar(matrices, torch.float64), wanted)


def test_package_needs_torch_alone() -> None:
    """Only the two kernel modules import more than torch at the top; nobody imports those so."""
    modules = {path.stem: ast.parse(path.read_text()) for path in OPS.glob("*.py")}
    for name in set(modules) - {"kernels", "quack_relu2"}:
        for node in modules[name].body:
            text = ast.unparse(node) if isinstance(node, ast.Import | ast.ImportFrom) else ""
            for word in ("triton", "kernels", "quack", "flash_attn", "softcap_ce, table", "heads,"):
                assert word not in text, f"{name}: {text}"


_INTERPRETED = """
import torch
import torch.nn.functional as F
from autoresearch.inside.ops import attention, heads, mlp, residual, rotary, softcap_ce, table

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

for has_value, G, dtype, bound in ((1, 2, torch.float32, 1e-6), (0, 1, torch.float16, 2e-3)):
    angles = torch.randn(21, 1, 16).double()
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    shapes = [(3, 21, (4 + 2 * G) * 32), (3, 21, G), (3, 21, G * 32)][: 1 + 2 * has_value]
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    rest, others = (inputs[1:], exact[1:]) if has_value else ([None, None], [None, None])
    outs = rotary.split_forward(inputs[0], cos, sin, *rest, 4, 1.3)
    goals = rotary.split_heads_twin(exact[0], cos.double(), sin.double(), 4, *others, 1.3)
    grads = [torch.randn(out.shape).to(dtype) for out in outs]
    got = [*outs, *torch.autograd.grad(outs, inputs, grads)]
    wanted = [*goals, *torch.autograd.grad(goals, exact, [g.double() for g in grads])]
    for a, b in zip(got, wanted, strict=True):
        assert (a.double() - b).norm() / b.norm() < bound
    arguments = (inputs[0], cos, sin, *rest, 4, 1.3)
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(rotary.split_forward, arguments, test_utils=utilities)

for C, has_x0, front, dtype, bound in (
    (48, 1, 8, torch.float32, 1e-5),
    (64, 0, 0, torch.float16, 2e-3),
    (20, 1, 0, torch.float16, 2e-3),
):
    inputs = [torch.randn(3, 7, C).to(dtype) for _ in range(2 + has_x0)]
    inputs += [torch.tensor(0.8), torch.tensor(0.3)][: 2 * has_x0]
    inputs = [t.requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    rest = [] if has_x0 else 3 * [None]
    outs = residual.add_norm_forward(*inputs, *rest, front)[: 3 if front else 2]
    goals = residual.add_norm_twin(*exact, *rest, front)[: len(outs)]
    for used in (slice(None), slice(1, None)):
        grads = [torch.randn(out.shape).to(dtype) for out in outs[used]]
        kept = {"retain_graph": True}
        got = [*outs, *torch.autograd.grad(outs[used], inputs, grads, **kept)]
        grads = [g.double() for g in grads]
        wanted = [*goals, *torch.autograd.grad(goals[used], exact, grads, **kept)]
        for a, b in zip(got, wanted, strict=True):
            assert (a.double() - b).norm() / b.norm() < bound, (C, a.shape)
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(residual.add_norm_forward, (*inputs, *rest, front), test_utils=utilities)

x = torch.randn(5, 300).requires_grad_()
weights = torch.randn(12, 5, 300)
users = residual.share(x, 13)
loss = sum((user * weight).sum() for user, weight in zip(users, weights))  # one is not used
torch.testing.assert_close(torch.autograd.grad(loss, x)[0], weights.sum(0))


def wide(q, k, window):
    back = torch.arange(q.size(1))[:, None] - torch.arange(q.size(1))
    k = k.repeat_interleave(q.size(2) // k.size(2), dim=2).float()
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k) / q.size(3) ** 0.5
    return scores.masked_fill((back < 0) | (back > window), -torch.inf).softmax(-1), k


def run(q, k, v, window):
    out = attention.attend_twin(q.float(), k.float(), v.float(), window).to(q.dtype)
    return out.contiguous(), torch.zeros(q.size(0), q.size(2), q.size(1))


def run_backward(grad, q, k, v, out, lse, window, dv):
    shared, grad = q.size(2) // k.size(2), grad.float()
    P, keys = wide(q, k, window)
    values = v.repeat_interleave(shared, dim=2).float()
    dP = torch.einsum("bqhd,bkhd->bhqk", grad, values)
    dS = P * (dP - (dP * P).sum(-1, keepdim=True)) / q.size(3) ** 0.5
    dq = torch.einsum("bhqk,bkhd->bqhd", dS, keys).to(q.dtype)
    dk, given = (
        torch.einsum("bhqk,bqhd->bkhd", a, b).unflatten(2, (-1, shared)).sum(3).to(q.dtype)
        for a, b in ((dS, q.float()), (P, grad))
    )
    return dq, dk, dv.copy_(given)


attention.run_fa4, attention.run_fa4_backward = run, run_backward
for has_value, G, dtype, bound in ((1, 2, torch.float32, 1e-5), (0, 1, torch.float16, 5e-3)):
    angles = torch.randn(21, 1, 16).double()
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    shapes = [(2, 21, (4 + 2 * G) * 32), (2, 21, G), (2, 21, G * 32)][: 1 + 2 * has_value]
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    rest, others = (inputs[1:], exact[1:]) if has_value else ([None, None], [None, None])
    out = heads.attend_heads(inputs[0], cos, sin, 4, *rest, 9, 1.3)
    goal = heads.attend_heads_twin(exact[0], cos.double(), sin.double(), 4, *others, 9, 1.3)
    grad = torch.randn(out.shape).to(dtype)
    got = [out, *torch.autograd.grad(out, inputs, grad)]
    wanted = [goal, *torch.autograd.grad(goal, exact, grad.double())]
    for a, b in zip(got, wanted, strict=True):
        assert (a.double() - b).norm() / b.norm() < bound
    arguments = (inputs[0], cos, sin, *rest, 4, 1.3, 9)
    torch.library.opcheck(heads.heads_forward, arguments, test_utils=utilities)

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
print("fine")
"""


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_kernels_in_the_interpreter() -> None:
    """Each Triton kernel, on odd shapes, against float64; in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(TRAIN.parents[2]),
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", _INTERPRETED]
    assert subprocess.check_output(command, env=environment, text=True).strip() == "fine"

"""The fast operators without a GPU: twins against float64, our autograd against the twins' own.

tests/contract holds them against torch's own machinery, and runs the kernels in triton's
interpreter; tests/gpu has the real thing.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autoresearch.inside import ops
from autoresearch.inside.ops import (
    ahead,
    attention,
    edited,
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
    trial_call,
)
from autoresearch.inside.ops.documents import count_documents, find_bounds
from autoresearch.inside.ops.shape import Shape
from autoresearch.inside.ops.trial_call import both_ways, compare
from autoresearch.values.constants import substitute

TRAIN = Path(__file__).parents[2] / "src" / "autoresearch" / "templates" / "train.py"
OPS = TRAIN.parents[1] / "inside" / "ops"


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


@pytest.mark.parametrize("window", [1, 7, 30, 100, -1])
@pytest.mark.parametrize("groups", [1, 3])
def test_attention_rungs_agree(train: ModuleType, window: int, groups: int) -> None:
    """The twin, the last rung and train.py's own say the same, gradients included."""
    q, k, v = (double(2, 31, heads, 8).requires_grad_() for heads in (3, groups, groups))
    weight, documents = double(2, 31, 3, 8), torch.randint(3, (2, 31)).sort().values
    results = []
    for attend in (attention.attend_twin, attention.attend_sdpa, train.sdpa):
        outs = [attend(q, k, v, window), attend(q, k, v, window, documents)]
        assert torch.equal(*outs) == (window >= 0)
        loss = sum((out * weight).sum() for out in outs)
        results.append([*outs, *torch.autograd.grad(loss, (q, k, v))])
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, wanted)


@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=20, max_size=20), min_size=1, max_size=4))
def test_documents_are_found(train: ModuleType, rows: list[list[int]]) -> None:
    """Bounds cut rows, laid end to end, where a token of 0 begins one of their first eight
    documents; and train.py counts as the twin does.
    """
    tokens = torch.tensor(rows)
    documents, bounds = count_documents(tokens, 0), find_bounds(tokens, 0)
    assert torch.equal(train.count_documents(tokens, 0), documents)
    assert (bounds.dtype, len(bounds)) == (torch.int32, 513)
    cuts, begins = sorted({*bounds.tolist()} - {tokens.numel()}), []
    for i, row in enumerate(rows):
        places = [0, *(t for t in range(1, 20) if row[t] == 0)][:8]
        begins += [20 * i + place for place in places]
        assert documents[i].tolist() == [sum(p <= t for p in places) - 1 for t in range(20)]
    assert cuts == begins
    many = find_bounds(torch.zeros((65, 20), dtype=torch.long), 0)
    assert many.tolist() == [20 * i + t for i in range(65) for t in range(8)] + [1300]


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
    assert attention.choose("auto", device, 8, 128, [128, 3], True)[0] is attention.attend_sdpa
    deaf = lambda q, k, v, window, _told=None: attention.attend_sdpa(q, k, v, window)  # noqa: E731
    monkeypatch.setattr(attention, "attend_cudnn_or_sdpa", deaf)
    name = attention.choose("auto", device, 8, 128, [128, 3], True)[1]
    assert "cudnn: ValueError: documents: off by" in name
    assert attention.choose("sdpa", device, 8, 16, [16]) == (None, "sdpa")


def test_a_trial_call_goes_both_ways_only_with_gradients() -> None:
    """A process that scores shall not compile kernels of the way back."""
    x, grad = torch.randn(2, 5)
    out, back = both_ways(lambda t: [t.square()], [x], [grad])
    torch.testing.assert_close(out, x.square())
    torch.testing.assert_close(back, 2 * x * grad)
    with torch.no_grad():
        assert len(both_ways(lambda t: [t.square()], [x], [grad])) == 1


CPU = torch.device("cpu")
SHAPE = Shape(  # the first layer has no gate, the last two have a value embedding
    context=64,
    vocab_size=32,
    width=48,
    num_heads=3,
    kv_heads=3,
    head_dim=16,
    windows=[16, 16, 64],
    has_offset=False,
    value_layers=[1, 2],
    has_head_gate=False,
    front=8,
    has_documents=False,
)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12, threads
class TestAhead:
    """Kernels compiled side by side, by children of a process that touched no device."""

    @pytest.fixture
    def folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """A cache without kernels, as it is once the library was imported."""
        (tmp_path / "cache" / "digest" / "fwd").mkdir(parents=True)
        monkeypatch.setenv(ahead.FOLDER, str(tmp_path / "cache"))
        monkeypatch.setitem(sys.modules, ahead.LIBRARY, sys)
        monkeypatch.setattr(ahead, "_helper", None)
        return tmp_path

    def test_all_calls_are_made_at_once_each_in_a_process_of_its_own(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path
    ) -> None:
        """The first waits for what the last writes; one that fails does no harm."""

        def first() -> None:
            while not (folder / "last").exists():
                time.sleep(0.01)
            (folder / "first").write_text(str(os.getpid()))

        def fail() -> None:
            raise RuntimeError("no such kernel")

        def last() -> None:
            (folder / "last").write_text(str(os.getpid()))

        monkeypatch.setattr(ahead, "list_calls", lambda *_: [first, fail, last])
        ahead.stand_by()
        ahead.compile_all(CPU, SHAPE, is_scored=False)
        pids = {int((folder / name).read_text()) for name in ("first", "last")}
        assert len(pids) == 2
        assert os.getpid() not in pids

    def test_nothing_is_compiled_where_a_cache_has_kernels(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path
    ) -> None:
        """A warm start shall not wait for anything."""
        (folder / "cache" / "digest" / "fwd" / "kernel.o").touch()
        monkeypatch.setattr(ahead, "list_calls", lambda *_: [(folder / "called").touch])
        ahead.stand_by()
        ahead.compile_all(CPU, SHAPE, is_scored=False)
        assert not (folder / "called").exists()

    def test_a_helper_that_hangs_or_dies_costs_its_patience_at_most(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path
    ) -> None:
        """The calls that count compile for themselves then."""
        monkeypatch.setattr(ahead, "PATIENCE_S", 0.2)
        monkeypatch.setattr(ahead, "list_calls", lambda *_: [lambda: time.sleep(2)])
        ahead.stand_by()
        ahead.compile_all(CPU, SHAPE, is_scored=False)
        monkeypatch.setattr(ahead, "list_calls", lambda *_: os._exit(1))
        ahead.stand_by()
        ahead.compile_all(CPU, SHAPE, is_scored=False)
        ahead.compile_all(CPU, SHAPE, is_scored=False)  # nobody waits now

    def test_what_is_only_scored_compiles_the_way_forward_alone(self) -> None:
        """Each window, kind of sum and form of heads once; the way back for training, each by a
        child of its own or after its way forward.
        """
        forth = ahead.list_calls(CPU, SHAPE, True)
        both = ahead.list_calls(CPU, SHAPE, False)
        names = [Counter(call.func.__name__ for call in calls) for calls in (forth, both)]
        each = {"try_forward": 2, "try_up": 1, "try_kind": 4, "call_kernels": 2}
        assert names[0] == {**each, "try_out": 1, "try_product": 1}
        back = {"try_backward": 2, "try_down": 1, "call_kernel": 2, "try_share": 1}
        assert names[1] == {**each, **back, "try_product": 2}
        short = replace(SHAPE, windows=[64] * 3)
        assert len(ahead.list_calls(CPU, short, True)) == len(forth) - 1
        wants = replace(SHAPE, has_float8=True)
        more = [Counter(c.func.__name__ for c in ahead.list_calls(CPU, wants, k)) for k in (1, 0)]
        assert more == [names[0], names[1] + Counter(try_product=1, try_up=1)]


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 1), (5, 5), (3, 1), (2, 2)])
def test_products_of_a_model_are_all_tried(heads: int, groups: int) -> None:
    """Each kernel that a step or a score calls, and no kernel twice."""
    joined, width = (heads + 2 * groups) * 128, heads * 128
    forth = [(width, joined, False), (width, width, False)]
    back = [(joined, width, True), (width, width, True)]
    shape = replace(SHAPE, width=width, num_heads=heads, kv_heads=groups, head_dim=128)
    for is_scored, called in ((True, forth), (False, forth + back)):
        kinds = linear.list_kinds(shape, is_scored=is_scored)
        tried = [(linear._tiles(*sizes), is_back) for *sizes, is_back in kinds]
        assert set(tried) == {(linear._tiles(*sizes), is_back) for *sizes, is_back in called}
        assert len(set(tried)) == len(tried)


def test_wide_products_are_left_to_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried or compiled for them."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    wide = replace(SHAPE, width=linear.MAX_WIDTH + 128)
    assert linear.list_kinds(wide, is_scored=False) == []
    assert linear.choose(CPU, wide) == "wider than 640"
    monkeypatch.setattr(trial_call, "once", lambda *_: None)
    assert linear.choose(CPU, replace(SHAPE, width=640)) == ""


def test_which_products_quack_can_make() -> None:
    """Rows in bfloat16 on a card, whose sizes its copy engine can step over."""
    meta = {"device": "meta", "dtype": torch.bfloat16}
    x, weight = torch.empty(2, 3, 48, **meta), torch.empty(32, 48, **meta)
    assert not linear.can_multiply(x, weight, 16)  # no card
    on_card = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    for shape, sizes, multiple, expected in (
        ((2, 3, 48), (32, 48), 16, True),
        ((3, 40), (32, 40), 8, True),
        ((3, 40), (32, 40), 16, False),
        ((3, 48), (24, 48), 16, False),
        ((48,), (32, 48), 16, False),
        ((0, 48), (32, 48), 16, False),
    ):
        on_card.dim, on_card.numel = lambda s=shape: len(s), lambda s=shape: math.prod(s)
        told = SimpleNamespace(shape=sizes)
        assert linear.can_multiply(on_card, told, multiple) == expected
    on_card.dtype = torch.float32
    assert not linear.can_multiply(on_card, weight, 16)


def test_sums_are_left_to_who_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """All other results are put in order by the library, before and after."""
    ordered: list[Tensor] = []
    interface = SimpleNamespace(_bwd_postprocess_convert=lambda _sums, to, *_: ordered.append(to))
    summed = torch.zeros(2, 3, 64 * 128)

    def flash(q, k, v, _out, _grad, _lse, *, dq=None, dv, causal, window_size_left):  # type: ignore[no-untyped-def]
        assert (causal, window_size_left) == (True, 9)
        dq, dk = q.clone() if dq is None else dq, k.clone()
        interface._bwd_postprocess_convert(summed, dq, 0.1)
        interface._bwd_postprocess_convert(torch.zeros(2, 1, 64 * 128), dk, 0.1)
        return dq, dk, dv

    interface._flash_attn_bwd = flash
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", interface)
    q, k = torch.randn(2, 64, 3, 128), torch.randn(2, 64, 1, 128)
    for as_sums in (False, True, True, False):
        ordered.clear()
        given = (q, q, k, k, q, torch.zeros(2, 3, 64), 9)
        dq, dk, dv = fa4.run_backward(*given, dv=k, as_sums=as_sums)
        assert (dq is summed) == as_sums
        assert dv is k
        assert ordered[-1] is dk
        assert len(ordered) == 2 - as_sums


def test_where_sums_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole tiles of heads of 128 channels, not by documents, of a library that is known."""
    assert not fa4.leaves_sums(CPU, 128, 256, 100, has_documents=False)
    monkeypatch.setattr(fa4, "_has_known_sums", lambda _device: True)
    assert fa4.leaves_sums(CPU, 128, 256, 100, has_documents=True)
    assert fa4.leaves_sums(CPU, 128, 256, -1, has_documents=False)
    assert not fa4.leaves_sums(CPU, 128, 256, -1, has_documents=True)
    assert not fa4.leaves_sums(CPU, 64, 256, 100, has_documents=False)
    assert not fa4.leaves_sums(CPU, 128, 250, 100, has_documents=False)


def test_matrices_are_copied_where_the_copy_engine_could_not_read_them() -> None:
    """Views that begin between multiples of 16 bytes, have gaps everywhere, or repeat a row."""
    whole = torch.randn(32, 24).bfloat16()
    for fine in (whole, whole.mT, whole[:, :16], whole[:, 8:], whole[::2], whole[1:].mT):
        assert linear.aligned(fine) is fine
    odd = torch.randn(32, 20).bfloat16()
    for other in (whole[:, 4:20], whole[:, ::2], whole[:1].expand(8, 24), odd, odd.mT, odd[:, :16]):
        copy = linear.aligned(other)
        assert torch.equal(copy, other)
        assert copy.is_contiguous()
        assert copy.data_ptr() % 16 == 0


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

    def by_documents(function: Any, given: Any, options: dict[str, Any]) -> Any:
        """What the library makes of rows laid end to end: documents one by one."""
        bounds, other = options.pop("cu_seqlens_q").tolist(), options.pop("cu_seqlens_k").tolist()
        assert bounds == other
        assert options.pop("max_seqlen_q") == options.pop("max_seqlen_k") == 13
        assert {x.dim() for x in given} == {3}
        parts = [
            function(*(x[None, a:b] for x in given), **options)
            for a, b in itertools.pairwise(bounds)
            if a < b
        ]
        return [torch.cat(part, dim=1)[0] for part in zip(*parts, strict=True)]

    def weights(q: Tensor, k: Tensor, window: int | None) -> Tensor:
        T, D = q.size(1), q.size(3)
        back = torch.arange(T)[:, None] - torch.arange(T)
        is_hidden = (back < 0) | (back > (T if window is None else window))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D)
        return scores.masked_fill(is_hidden, -math.inf).softmax(-1)

    def attended(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> tuple[Tensor]:
        P = weights(q, k, window)
        return (torch.einsum("bhqk,bkhd->bqhd", P, v).contiguous(),)

    def forward(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, ...]:
        assert options.pop("causal")
        assert options.pop("return_lse")
        if "cu_seqlens_q" in options:
            out = by_documents(attended, (q, k, v), options)[0]
        else:
            out = attended(q, k, v, options.pop("window_size_left"))[0]
            assert not options
        return out, out[..., 0].transpose(-1, -2).contiguous(), out

    def backward(q, k, v, out, grad, lse, *, causal, dv, window_size_left=None, **options):  # type: ignore[no-untyped-def]
        assert (causal, dv) == (True, None)
        assert torch.equal(lse, out[..., 0].transpose(-1, -2))
        if options:
            options |= {"causal": True, "dv": None}
            given = (q, k, v, out, grad)
            return by_documents(
                lambda *g, **o: backward(*g, g[3][..., 0].transpose(-1, -2), **o), given, options
            )
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
    tokens = torch.randint(5, (2, 13))
    bounds, documents = find_bounds(tokens, 0), count_documents(tokens, 0)
    for window, has_documents in itertools.product((5, 12, 99, -1), (False, True)):
        results = []
        for attend, told in ((fa4.attend, bounds), (attention.attend_twin, documents)):
            out = attend(q, k, v, window, told if has_documents else None)
            results.append([out, *torch.autograd.grad((out * weight).sum(), (q, k, v))])
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.slow  # Inductor compiles C++ for ten seconds
@pytest.mark.filterwarnings("ignore")  # torch's own
@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a C++ compiler")
def test_flex_in_a_compiled_block_sees_what_sdpa_sees(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values lie in the product of the layer there; other documents are another mask, not code."""
    given = {"DEPTH": 3, "WIDTH": 64, "HEAD_DIM": 32, "WINDOW_PATTERN": "SSL", "SHORT_WINDOW": 0.1}
    for name, value in (given | {"DOCUMENT_MASK": True}).items():
        monkeypatch.setattr(train, name, value)
    model = train.build_model(SimpleNamespace(device=CPU, vocab_size=64, context=256, bos=0))
    batches = [torch.randint(0, 64, (4, 256)) for _ in range(3)]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
        wanted = [model(tokens) for tokens in batches]
        flex = attention.FlexAttend(256, model.windows, CPU, full=attention.attend_sdpa)
        flex._flex = torch.compile(flex._flex, dynamic=False)
        model.operators.attend, model.operators.find_documents = flex, attention.finder(flex)
        model.block = torch.compile(train.block, dynamic=False, fullgraph=True)
        graphs = []
        for tokens, logits in zip(batches, wanted, strict=True):
            torch.testing.assert_close(model(tokens), logits, atol=1e-4, rtol=1e-4)
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[2]


@pytest.mark.parametrize("works", [True, False])
def test_what_fails_its_trial_is_not_installed(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """train.py's own attention stays, with windows told as it wants them, and the name says why."""

    def trial(_device: torch.device, _shape: Shape) -> None:
        if not works:
            raise ValueError("off by 1")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(ops, "_has_triton", lambda: True)
    monkeypatch.setattr(ops, "once", lambda _what, _device, call: call())
    monkeypatch.setattr(attention, "choose", lambda *_: (None, "fa4"))
    monkeypatch.setattr(mlp, "choose", lambda *_: ("", "no card"))
    monkeypatch.setattr(rotary, "is_supported", lambda _head_dim: True)
    monkeypatch.setattr(heads, "try_out", trial)
    monkeypatch.setattr(residual, "ENABLED", False)
    operators = train.Operators(CPU, None)
    ops.install(operators, CPU, SHAPE, attention="auto", softcap=15.0, gain=1.0)
    assert (operators.window is heads.as_tensor) == works
    assert (operators.window is int) != works
    assert isinstance(operators.attend_heads, functools.partial) == works
    assert operators.names["heads"] == ("triton" if works else "torch (ValueError: off by 1)")


EDITS = {
    "": ("a = 0", "a = 0", set()),
    "another product": (
        "add_norm, F.linear, F.linear",
        "add_norm, lambda x, weight: F.linear(x, weight + 1), F.linear",
        {"linear"},
    ),
    "another product of what is normed": (
        "add_norm, F.linear, F.linear",
        "add_norm, F.linear, lambda x, weight: F.linear(x, weight.tanh())",
        {"linear_normed"},
    ),
    "another activation": ("F.relu(F.linear(x, fc)).square()", "F.gelu(F.linear(x, fc))", {"mlp"}),
    "another norm": (
        "return F.rms_norm(x, (x.size(-1),), eps=1e-6)",
        "return F.layer_norm(x, (x.size(-1),))",
        {"add_norm", "split_heads", "attend_heads"},
    ),
    "values normed": (
        "k * QK_GAIN, v",
        "k * QK_GAIN, norm(v)",
        {"split_heads", "attend_heads"},
    ),
    "documents alike": ("clamp(max=7)", "clamp(max=0)", {"attend", "attend_heads"}),
    "windows shorter": ("back <= window", "back < window", {"attend"}),
    "heads louder": (
        "*heads, window, documents)",
        "*heads, window, documents) * 2",
        {"attend_heads"},
    ),
    "the gradient alone": ("grad = logp.exp_()", "grad = logp.exp_().mul_(1.01)", {"head_loss"}),
    "another cap": (
        "SOFTCAP * torch.tanh(logits.float()",
        "2 * torch.tanh(logits.float()",
        {"softcap"},
    ),
    "what is shared": ("[factor * x for", "[2 * factor * x for", {"add_norm"}),
    "rows of tables": (
        "[F.embedding(tokens, table)",
        "[2 * F.embedding(tokens, table)",
        {"lookup"},
    ),
    "another signature": (
        "def relu2_mlp(x, fc, proj)",
        "def relu2_mlp(x, fc, proj, more)",
        {"mlp"},
    ),
}


@pytest.mark.parametrize("edit", list(EDITS))
@pytest.mark.parametrize("told", [{}, {"KEY_OFFSET": True, "QK_GAIN": 1.3, "SOFTCAP": 30.0}])
def test_what_somebody_edited_is_found(
    edit: str, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each operator of train.py that is not its twin any more, by values or gradients alone; what
    the run's seed draws afterwards, on a card too, is left as it was.
    """
    reseeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    old, new, expected = EDITS[edit]
    source = substitute(TRAIN.read_text(encoding="utf-8"), {"DOCUMENT_MASK": True, **told})
    assert edit == "" or source.count(old) == 1
    train = ModuleType("edited_train")
    exec(compile(source.replace(old, new), str(TRAIN), "exec"), vars(train))
    shape = replace(SHAPE, has_documents=True, has_offset=train.KEY_OFFSET)
    operators = train.Operators(CPU, None)
    random = torch.get_rng_state()
    found = edited.find_edited(operators, shape, softcap=train.SOFTCAP, gain=train.QK_GAIN)
    assert found == expected
    assert torch.equal(random, torch.get_rng_state())
    assert not reseeded


@pytest.mark.parametrize(
    ("gone", "expected"),
    [(name, name) for name in ("linear", "linear_normed", "mlp")] + [("share", "add_norm")],
)
def test_what_train_py_does_not_have_is_left_alone(
    train: ModuleType, gone: str, expected: str
) -> None:
    """As in a workspace that is older than the operator."""
    operators = train.Operators(CPU, None)
    delattr(operators, gone)
    found = edited.find_edited(operators, SHAPE, softcap=train.SOFTCAP, gain=train.QK_GAIN)
    assert found == {expected}


def test_what_somebody_edited_stays(train: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card too, and the names say so."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(ops, "_has_triton", lambda: True)
    monkeypatch.setattr(ops, "once", lambda *_: None)
    monkeypatch.setattr(attention, "choose", lambda *_: (None, "fa4"))
    monkeypatch.setattr(mlp, "choose", lambda *_: ("quack", ""))
    monkeypatch.setattr(linear, "choose", lambda *_: "")
    monkeypatch.setattr(rotary, "is_supported", lambda _head_dim: True)
    parts = {"mlp", "add_norm", "split_heads", "attend", "attend_heads", "lookup", "head_loss"}
    parts |= {"linear", "linear_normed"}
    for edits in (set(), {*parts, "softcap"}):
        monkeypatch.setattr(ops, "find_edited", lambda *_, edits=edits, **__: edits)
        operators = train.Operators(CPU, None)
        own = {name: getattr(operators, name) for name in {*parts, "softcap", "share"}}
        ops.install(operators, CPU, SHAPE, attention="auto", softcap=15.0, gain=1.0)
        kept = {name for name in own if getattr(operators, name) == own[name]}
        assert kept == ({*edits, "share"} if edits else {"attend"})  # "choose" had nothing better
        assert operators.names["attend"] == ("sdpa (edited)" if edits else "fa4")
        assert all(operators.names[name] == "torch (edited)" for name in edits - {"attend"})


@pytest.mark.parametrize("reason", ["", "ValueError: off by 1"])
@pytest.mark.parametrize("backend", ["quack", "triton", ""])
def test_float8_is_for_what_is_normed(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, reason: str, backend: str
) -> None:
    """Where it works, somebody wants to train with it, and nobody edited the norm; the MLP's first
    product needs quack for it.
    """
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(ops, "_has_triton", lambda: True)
    monkeypatch.setattr(ops, "once", lambda *_: None)
    monkeypatch.setattr(attention, "choose", lambda *_: (None, "fa4"))
    monkeypatch.setattr(linear, "choose", lambda *_: "wider than 640")
    monkeypatch.setattr(mlp, "choose", lambda *_: (backend, ""))
    monkeypatch.setattr(rotary, "is_supported", lambda _head_dim: True)
    asked: list[int] = []
    monkeypatch.setattr(float8, "choose", lambda _device, width: asked.append(width) or reason)
    for is_wanted in (True, False):
        operators = train.Operators(CPU, None)
        shape = replace(SHAPE, has_float8=is_wanted)
        ops.install(operators, CPU, shape, attention="auto", softcap=15.0, gain=1.0)
        has_float8 = is_wanted and not reason
        assert operators.linear is torch.nn.functional.linear
        assert (operators.linear_normed is float8.linear) == has_float8
        assert (operators.head_loss.keywords["linear"] is float8.linear) == has_float8
        told = {True: "quack" if not reason else f"off ({reason})", False: None}
        assert operators.names.get("float8") == told[is_wanted]
        if backend:
            is_small = has_float8 and backend == "quack"
            assert operators.mlp.keywords == {"backend": "float8" if is_small else backend}
        else:
            assert operators.mlp is train.relu2_mlp
    with torch.no_grad():  # as where a model is scored
        shape = replace(SHAPE, has_float8=True)
        ops.install(operators, CPU, shape, attention="auto", softcap=15.0, gain=1.0)
    assert asked == [SHAPE.width]
    monkeypatch.setattr(ops, "find_edited", lambda *_, **__: {"add_norm"})
    operators = train.Operators(CPU, None)
    shape = replace(SHAPE, has_float8=True)
    ops.install(operators, CPU, shape, attention="auto", softcap=15.0, gain=1.0)
    assert operators.names["float8"] == "off (add_norm is edited)"
    assert operators.linear_normed is torch.nn.functional.linear


def test_a_model_is_told_whether_it_wants_float8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constant of train.py reaches the operators; by default it is off."""
    source = TRAIN.read_text(encoding="utf-8")
    for told, wanted in (({}, False), ({"FLOAT8": True}, True)):
        train = ModuleType("float8_train")
        exec(compile(substitute(source, told), str(TRAIN), "exec"), vars(train))
        shapes: list[Shape] = []
        install = lambda _own, _device, shape, shapes=shapes, **_: shapes.append(shape)  # noqa: E731
        monkeypatch.setattr(ops, "install", install)
        model = train.build_model(SimpleNamespace(device=CPU, vocab_size=64, context=256, bos=0))
        train.Operators(SimpleNamespace(type="cuda"), model)
        assert [shape.has_float8 for shape in shapes] == [wanted]


def test_what_float8_rounds() -> None:
    """Inputs to three bits behind the first, large ones to the largest; nothing on the way back."""
    x = torch.tensor([[1.0, 1.06, 1.07, -448.0, 470.0, 1e6]], dtype=torch.float64)
    weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
    x.requires_grad_()
    out = float8.linear_twin(x, weight * 13)
    assert (out / 13).tolist() == [[1.0, 1.0, 1.125, -448.0, 448.0, 448.0]]
    dx, dweight = torch.autograd.grad(out.sum(), (x, weight))
    assert dx.tolist() == [[13.0] * 6]
    assert torch.equal(dweight, 13 * x.expand(6, 6))


def test_float8_where_it_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another chip or width, no library; and what no kernel takes is multiplied in full."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (12, 0))
    assert float8.choose(CPU, 768) == "needs Hopper"

    def fail() -> None:
        raise ImportError("No module named 'quack'\nmore")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(float8, "narrow", lambda x, _factor: x)
    monkeypatch.setattr(float8, "load_gemm", fail)
    assert float8.choose(CPU, 768) == "ImportError: No module named 'quack'"
    assert float8.choose(CPU, 72) == "needs a width in multiples of 16"
    x, weight = torch.randn(2, 3, 16), torch.randn(32, 16)
    assert torch.equal(float8.linear(x, weight), torch.nn.functional.linear(x, weight))


def test_what_the_kernels_would_misread_is_refused() -> None:
    """Where plain torch repeats a smaller tensor, or would do something else."""
    x, x0 = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    mixed = residual.Mixed(x0 * torch.nan, x0, torch.tensor(0.2))
    resid = torch.tensor(0.9)
    for rest, kind, words in (
        ((mixed, None), TypeError, "got Mixed as mixed and NoneType as resid"),
        ((None, resid), TypeError, "one of what share gives and a scalar, or neither"),
        ((x0, resid), TypeError, "got Tensor as mixed"),
        ((mixed, torch.ones(8)), ValueError, r"resid \(8,\), expected a scalar"),
        ((mixed._replace(x0=x0[:1]), resid), ValueError, r"\(1, 6, 8\) to mix into \(2, 6, 8\)"),
    ):
        with pytest.raises(kind, match=words):
            residual.add_norm(x, None, *rest)
    with pytest.raises(ValueError, match=r"factors \(2, 3\), expected one a layer"):
        residual.share(x, torch.ones(2, 3))
    qkv, cos, opening = torch.randn(2, 6, 4 * 8), torch.ones(6, 1, 4), torch.ones(2, 6, 1)
    rotary.check_shapes(qkv, cos, cos, opening, 2)
    for angles, gates in ((cos.expand(6, 2, 4), opening), (cos[None], opening), (cos, opening[:1])):
        with pytest.raises(ValueError, match="expected"):
            rotary.check_shapes(qkv, angles, cos, gates, 2)
        with pytest.raises(ValueError, match="expected"):
            heads.attend_heads(qkv, angles, cos, 2, gates, None, 4, False, None, 1.0)


def test_trials_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that went through leaves a note with the compile caches; one that fails does not."""
    made: list[str] = []

    def fails() -> None:
        made.append("failed")
        raise ValueError("off by 1")

    def ask(what: str, trial: Callable[[], None]) -> None:
        trial_call.once(what, torch.device("cpu"), trial)

    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    for folder in ("", "", str(tmp_path / "one"), str(tmp_path / "one"), str(tmp_path / "two")):
        if folder:
            monkeypatch.setenv("TRITON_CACHE_DIR", folder)
        ask("heads 128", lambda: made.append("fine"))
    assert made == 4 * ["fine"]  # without a folder always, then once in each
    for _ in range(2):
        with pytest.raises(ValueError, match="off by 1"):
            ask("heads 64", fails)
    with torch.no_grad():  # both ways were tried: so was the way forward
        ask("heads 128", lambda: made.append("forth"))
        for _ in range(2):
            ask("mlp", lambda: made.append("forth"))
    ask("mlp", lambda: made.append("both"))
    assert made[4:] == ["failed", "failed", "forth", "both"]
    monkeypatch.setattr(trial_call, "_libraries", lambda: "quack-kernels 0.6.6")
    ask("mlp", lambda: made.append("another quack"))
    assert made[8:] == ["another quack"]


def test_a_trial_product_has_more_tiles_than_a_card_has_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is wrong from the second tile of a processor on is found."""
    up, largest, processors = mlp._up, 128 * 256, 132

    def wrong_later(x: Tensor, fc: Tensor, backend: str) -> Tensor:
        out = up(x, fc, "torch")
        if backend == "quack":
            out[processors * largest // out.size(1) :] = 0
        return out

    mlp._try("torch", CPU)
    monkeypatch.setattr(mlp, "_up", wrong_later)
    with pytest.raises(ValueError, match="off by"):
        mlp._try("quack", CPU)


def test_softcap_twin_is_train_s(train: ModuleType) -> None:
    """On a CPU the operator is its twin, which is train.py's."""
    logits = 30 * double(3, 7, 11)
    torch.testing.assert_close(softcap_ce.softcap(logits, 15.0), train.softcap(logits))


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


@pytest.mark.parametrize(("has_value", "offset"), [(True, False), (False, True)])
def test_split_heads_twin_is_train_s(train: ModuleType, has_value: bool, offset: bool) -> None:
    """On a CPU the operator is its twin, and train.py's own computes the same."""
    angles = double(7, 1, 4)
    qkv, opening, value = double(2, 7, 5 * 8), double(2, 7, 1), double(2, 7, 8)
    rest = (*((opening, value) if has_value else 2 * [None]), offset)
    inputs = (qkv, angles.cos(), angles.sin(), 3, *rest)
    train.QK_GAIN = 1.25
    for got, wanted in zip(
        rotary.split_heads(*inputs, gain=1.25), train.split_heads(*inputs), strict=True
    ):
        torch.testing.assert_close(got, wanted)
    train.QK_GAIN = 1.0


def test_sums_of_the_stream_are_train_s(train: ModuleType) -> None:
    """The twins of add_norm and share are what train.py computes."""
    x, y, x0, resid, factors = (double(*shape) for shape in ((2, 7, 8),) * 3 + ((), (3,)))
    for got, wanted in zip(
        residual.add_norm_twin(x, y, x0, resid, 4), train.add_norm(x, y, x0, resid, 4), strict=True
    ):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(residual.share_twin(x, factors), train.share(x, factors))


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
    """Kernel modules alone import more than torch at the top, and nobody imports those so."""
    modules = {path.stem: ast.parse(path.read_text()) for path in OPS.glob("*.py")}
    for name in set(modules) - {"quack_gemm"}:
        for node in modules[name].body:
            text = ast.unparse(node) if isinstance(node, ast.Import | ast.ImportFrom) else ""
            for word in ("triton", "kernels", "quack", "flash_attn"):
                assert word not in text, f"{name}: {text}"

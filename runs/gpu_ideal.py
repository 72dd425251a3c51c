"""What a training step must cost on one GPU if every kernel were as good as it can be.

Usage: python runs/gpu_bench.py --sections ideal (this file is not called by itself)

Matrix products count at the best rate measured here for their shape, attention at its exact FLOPs
over 798 TFLOP/s, the rest at the bytes that it must read and write, each once, over 3.0 TB/s.
Products in float8 count at their own rate, and narrowing as one more write of what is normed.
"""

from __future__ import annotations

import tomllib
from contextlib import suppress
from typing import Any

import torch
from gpu_meter import BANDWIDTH, CUDA, RESULTS, attempt, median_ms, say
from gpu_train import TEMPLATES, load_train

from autoresearch.inside.ops import float8, linear

PRODUCTS = 798e12  # FLOP/s of a large product, measured
BF16, F32 = 2, 4  # bytes
DOCUMENT_KEYS = 598  # that a token sees of its own document on average: bench corpus, rows of 2048


def section_ideal() -> None:
    """Both presets that figures are reported of."""
    for preset in ("reference", "h100"):
        attempt(f"ideal {preset}", lambda preset=preset: ideal_of(preset))


def ideal_of(preset: str) -> None:
    """A table of one preset's step, ms."""
    table = tomllib.loads((TEMPLATES / "presets.toml").read_text())[preset]
    train, data = load_train(table["constants"]), table["config"]["data"]
    with torch.device("meta"):
        model = train.GPT(data["vocab_size"], data["context"], 0)
    tokens = train.TOTAL_BATCH * model.context
    parts = {
        "matrix products": products_ms(
            model, tokens, train.MICRO_BATCH * model.context, has_float8=train.FLOAT8
        ),
        "narrowing": bytes_ms(narrow_bytes(model) * tokens * train.FLOAT8),
        "attention": attention_ms(model, tokens, has_documents=train.DOCUMENT_MASK),
        "residual and norm": bytes_ms(residual_bytes(model) * tokens),
        "rotary, QK-norm, value mix": bytes_ms(heads_bytes(model) * tokens),
        "gates, and what enters": bytes_ms(gate_bytes(model) * tokens),
        "softcap and cross-entropy": bytes_ms(2 * BF16 * model.head.size(0) * tokens),
        "tables and their gradients": bytes_ms(tables_bytes(model) * tokens),
        "optimizer": optimizer_ms(model),
    }
    RESULTS.setdefault("ideal", {})[preset] = parts
    say(f"ideal step of {preset}, {tokens} tokens, ms:")
    for name, ms in {**parts, "all": sum(parts.values())}.items():
        say(f"  {name:28s} {ms:8.2f}")


def bytes_ms(moved: float) -> float:
    """Milliseconds that moving so many bytes takes."""
    return moved / BANDWIDTH * 1e3


def products_ms(model: Any, tokens: int, at_once: int, *, has_float8: bool) -> float:
    """All products of activations and weights: forward, gradient of the input, of the weight."""
    L, C = len(model.windows), model.width
    kv = 2 * model.k.size(1)
    shapes = {"q, k, v": (C + kv, C, L), "out": (C, C, L), "fc": (*model.fc.shape[1:], L)}
    shapes |= {"proj": (*model.proj.shape[1:], L), "head": (*model.head.shape, 1)}
    whole = 0.0
    for name, (rows, columns, count) in shapes.items():
        x = torch.randn(at_once, columns, device=CUDA, dtype=torch.bfloat16)
        w = torch.randn(rows, columns, device=CUDA, dtype=torch.bfloat16)
        dy = torch.randn(at_once, rows, device=CUDA, dtype=torch.bfloat16)
        is_small = has_float8 and name in ("q, k, v", "fc", "head")
        forth = float8_ms(x, w) if is_small else product_ms(x, w.mT)
        times = [forth, product_ms(dy, w), median_ms(lambda y=dy, x=x: y.mT @ x)]
        rates = (f"{2e-9 * at_once * rows * columns / ms:.0f}" for ms in times)
        say(f"    {name:8s} {columns:5d} -> {rows:5d}: {' '.join(rates)} TFLOP/s")
        whole += sum(times) * count * tokens / at_once
    return whole


def attention_ms(model: Any, tokens: int, *, has_documents: bool) -> float:
    """Two products forward and five backward over the keys that masks leave."""
    T, keys = model.context, 0.0
    for window in model.windows:
        sees_all = window >= T - 1
        seen = sum(min(t, window) + 1 for t in range(T)) / T
        keys += min(seen, DOCUMENT_KEYS) if has_documents and sees_all else seen
    return 3.5 * 4 * tokens * model.width * keys / PRODUCTS * 1e3


def product_ms(a: torch.Tensor, b: torch.Tensor) -> float:
    """A product by the faster of cuBLAS and quack, which may be missing."""
    times = [median_ms(lambda: a @ b)]
    with suppress(Exception):
        times.append(median_ms(lambda: linear.multiply(a, b)))
    return min(times)


def float8_ms(x: torch.Tensor, w: torch.Tensor) -> float:
    """A product of what is narrow already; in bfloat16 where quack is missing."""
    with suppress(Exception):
        small = float8.narrow(x, 1.0), float8.narrow(w, float8.WEIGHT_FACTOR).mT
        multiply = linear.load_gemm().product_of_float8
        return median_ms(lambda: multiply(*small, float8.TILES))
    return product_ms(x, w.mT)


def narrow_bytes(model: Any) -> int:
    """A token's bytes: what goes into heads, MLPs and logits, in float8."""
    return model.width * (2 * len(model.windows) + 1)


def residual_bytes(model: Any) -> int:
    """A token's bytes: two adds with norm a layer and the last one, both ways.

    Forward, channels: x, y, x0 in, x, h out; x, y in, x, h out. Backward: gradients of x and h and
    the saved h in, one gradient out; for that of x0 theirs, the first and x0 in, one out.
    """
    layer = (5 + 4) + (4 + 4) + 1
    return BF16 * model.width * (layer * len(model.windows) + 4 + 4 + 3)


def heads_bytes(model: Any) -> int:
    """A token's bytes: q and k in and out; backward their gradients and q, k in, gradients out.

    A layer with a value embedding also reads v and the embedding and writes v; backward it reads
    the gradient and the embedding and writes the embedding's gradient.
    """
    kv = model.k.size(1)
    rotary = (model.width + kv) * (2 + 3) * len(model.windows)
    values = kv * (3 + 3) * len(model.value_layers)
    return BF16 * (rotary + values)


def gate_bytes(model: Any) -> int:
    """A token's bytes: what heads saw in and out; backward it and the gradient in, one out.

    Where pairs are added before the first block: embedding and pairs in, their sum out; backward
    both and the gradient in, two out.
    """
    heads = (2 + 3) * len(model.windows) if model.head_gate is not None else 0
    pairs = 3 + 5 if model.bigrams is not None else 0
    return BF16 * model.width * (heads + pairs)


def tables_bytes(model: Any) -> int:
    """A token's bytes: rows in and out, gradients in; of all tables."""
    channels = model.width * (1 + (model.bigrams is not None))
    channels += model.k.size(1) * len(model.value_layers)
    return BF16 * channels * 3


def optimizer_ms(model: Any) -> float:
    """Parameters, gradients and moments in, parameters and moments out; Polar Express."""
    moved, flops = 0, 0.0
    for name, p in model.named_parameters():
        if name in ("q", "k", "v", "out", "fc", "proj"):
            moved += p.numel() * F32 * 5
            small, large = sorted(p.shape[-2:])
            flops += p[..., 0, 0].numel() * 5 * (4 * large * small**2 + 2 * small**3)
        else:
            moved += p.numel() * p.element_size() * 7
    return bytes_ms(moved) + flops / PRODUCTS * 1e3

"""The FLOPs that reading a prompt needs, and the speed of the machine's products that they are compared with.

In: a model's config.json, a process with torch and perhaps our compiled forward. Out: FLOPs of products, attention and head; GFLOP/s of the
best product in a number format, by torch and by our own kernel. A share of the peak is needed FLOPs a second over that speed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PEAK_OF = {"fp32": "fp32", "exact": "fp32", "bf16": "bf16", "int8": "int8", "q8_0": "int8", "4-bit": "int8", "q4_0": "int8"}  # fmt: skip
"""The products of a format: 4-bit weights are multiplied as bytes with rows of bytes."""
ROWS, HEAD_ROWS, CALLS = 1024, 256, 6


class ReadFlops(NamedTuple):
    """FLOPs of reading one prompt: products with the weights of all layers, attention (the causal half), one row of the head."""

    products: float
    attention: float
    head: float

    @property
    def all(self) -> float:
        """What reading needs, as training's share of the peak counts it."""
        return sum(self)


class Shape(NamedTuple):
    """What the counts need of a model."""

    width: int
    inner: int
    layers: int
    heads: int
    kv: int
    head: int
    vocab: int

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of one layer's matrices, joined as they are multiplied."""
        return [
            ((self.heads + 2 * self.kv) * self.head, self.width),
            (self.width, self.heads * self.head),
            (2 * self.inner, self.width),
            (self.width, self.inner),
        ]


def shape_of(model: Path) -> Shape:
    """The shape of a model from its config.json."""
    raw = json.loads((model / "config.json").read_text())
    heads = raw["num_attention_heads"]
    return Shape(
        raw["hidden_size"],
        raw["intermediate_size"],
        raw["num_hidden_layers"],
        heads,
        raw["num_key_value_heads"],
        raw.get("head_dim") or raw["hidden_size"] // heads,
        raw["vocab_size"],
    )


def read_flops(model: Path, length: int) -> ReadFlops:
    """FLOPs of a prompt of `length` tokens: 2 a weight and token, 4 a width of the heads and attended pair, the head for one row.

    Source: Kaplan et al. 2020, arXiv 2001.08361, table 1; pairs are those that causal attention computes, as in
    `demeanor.training.progress.training_flops`.
    """
    x = shape_of(model)
    weights = x.layers * sum(out * into for out, into in x.matrices)
    pairs = length * (length + 1) / 2
    return ReadFlops(
        2.0 * weights * length, 4.0 * x.heads * x.head * x.layers * pairs, 2.0 * x.width * x.vocab
    )


def shares(model: Path, length: int, tokens_per_s: float, peak_gflops: float) -> dict[str, float]:
    """Shares of the peak at a speed of reading: of everything that is needed, and of the weights' products alone."""
    needed, scale = read_flops(model, length), tokens_per_s / length / (peak_gflops * 1e9)
    return {"of_peak": needed.all * scale, "of_peak_products_only": needed.products * scale}


def _best(run: Callable[[], Any], calls: int = CALLS) -> float:
    """Seconds of the fastest call after the first."""
    took = []
    for _ in range(calls):
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return min(took[1:])


def torch_gflops(model: Path, format: str) -> float:
    """GFLOP/s of torch's products of 1,024 rows with the matrices of one layer: fp32 and bf16 by `linear`, int8 by `torch._int_mm`."""
    import torch

    matrices, seconds = shape_of(model).matrices, 0.0
    with torch.inference_mode():
        for out, into in matrices:
            if format == "int8":
                x = torch.randint(-9, 9, (ROWS, into), dtype=torch.int8)
                w = torch.ones(into, out, dtype=torch.int8)
                seconds += _best(lambda x=x, w=w: torch._int_mm(x, w))  # type: ignore[misc]
            else:
                dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[format]
                x, w = torch.randn(ROWS, into, dtype=dtype), torch.randn(out, into, dtype=dtype)
                seconds += _best(lambda x=x, w=w: torch.nn.functional.linear(x, w))  # type: ignore[misc]
    return sum(2.0 * ROWS * out * into for out, into in matrices) / seconds / 1e9


def own_gflops(engine: Any) -> float | None:
    """GFLOP/s of our kernel's product of 256 rows with the head, in the format that the engine multiplies it; None without compiled code."""
    import torch

    held = getattr(engine._forward, "_native", None)
    if held is None:
        return None
    rows = torch.randn(HEAD_ROWS, held.width)
    return 2.0 * HEAD_ROWS * held.width * held.vocab / _best(lambda: held.logits(rows)) / 1e9


def peak(model: Path, kind: str, engine: Any = None) -> dict[str, float | None]:
    """GFLOP/s of the best product in the format of `kind`, in this process and now: torch's, our kernel's if an engine is given, and the greater."""
    theirs = torch_gflops(model, PEAK_OF[kind])
    own = None if engine is None else own_gflops(engine)
    return {
        "torch": round(theirs, 1),
        "own": None if own is None else round(own, 1),
        "peak": round(max(theirs, own or 0.0), 1),
    }

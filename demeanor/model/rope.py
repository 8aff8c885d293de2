"""Rotary positions beyond the pretraining context: linear, Llama 3 and YaRN scaling of the frequencies.

In: the rope settings of a config.json. Out: scaled inverse frequencies and the factor of cos and sin, equal to
transformers' (tests/model/test_rope.py). Other kinds (dynamic, longrope) are left to transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rope:
    """How frequencies are scaled; `original` is the context of pretraining, in tokens."""

    kind: str
    factor: float
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    attention: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Return transformers' `rope_parameters`, without the base."""
        found: dict[str, Any] = {"rope_type": self.kind, "factor": self.factor}
        if self.kind != "linear":
            found["original_max_position_embeddings"] = self.original
        if self.kind == "llama3":
            found |= {"low_freq_factor": self.low, "high_freq_factor": self.high}
        if self.kind == "yarn":
            found |= {"beta_fast": self.fast, "beta_slow": self.slow, "attention_factor": self.attention}
        return found


def parse(raw: Mapping[str, Any]) -> Rope | None:
    """Return the scaling that `rope_parameters` (or the older `rope_scaling`) declare; None: no scaling.

    Raises LookupError for a kind, or a form of one, that only transformers computes.
    """
    kind = raw.get("rope_type", raw.get("type")) or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return Rope(kind, float(raw["factor"]))
    if kind not in ("llama3", "yarn"):
        raise LookupError(kind)
    factor, original = float(raw["factor"]), int(raw["original_max_position_embeddings"])
    if kind == "llama3":
        return Rope(
            kind, factor, original, low=float(raw["low_freq_factor"]), high=float(raw["high_freq_factor"])
        )
    if raw.get("mscale") or raw.get("mscale_all_dim") or raw.get("truncate") is False:
        raise LookupError(kind)
    given = raw.get("attention_factor")
    attention = yarn_attention(factor) if given is None else float(given)
    fast, slow = float(raw.get("beta_fast") or 32), float(raw.get("beta_slow") or 1)
    return Rope(kind, factor, original, fast=fast, slow=slow, attention=attention)


def yarn_attention(factor: float) -> float:
    """Return what YaRN multiplies cos and sin with, if a config does not name it.

    Source: Peng et al. 2023, arXiv 2309.00071, equation 22.
    """
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def scaled(rope: Rope, inverse_F: Tensor, theta: float) -> Tensor:
    """Return the scaled inverse frequencies of half a head, fp32.

    Source: linear: Chen et al. 2023, arXiv 2306.15595; YaRN: Peng et al. 2023, arXiv 2309.00071; Llama 3.1's.
    """
    if rope.kind == "linear":
        return inverse_F / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, inverse_F)
    size, half = 2 * len(inverse_F), len(inverse_F)

    def dimension(rotations: float) -> float:
        return size * math.log(rope.original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(dimension(rope.fast)), 0), min(math.ceil(dimension(rope.slow)), size - 1)
    places = torch.arange(half, dtype=torch.float32, device=inverse_F.device)
    ramp = ((places - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    kept = 1 - ramp
    return inverse_F / rope.factor * (1 - kept) + inverse_F * kept


def _llama3(rope: Rope, inverse_F: Tensor) -> Tensor:
    waves = 2 * math.pi / inverse_F
    longest, shortest = rope.original / rope.low, rope.original / rope.high
    slowed = torch.where(waves > longest, inverse_F / rope.factor, inverse_F)
    smooth = (rope.original / waves - rope.low) / (rope.high - rope.low)
    between = (1 - smooth) * slowed / rope.factor + smooth * slowed
    return torch.where((waves >= shortest) & (waves <= longest), between, slowed)

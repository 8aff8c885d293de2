"""The shape of a Llama-family model, read from and written to Hugging Face's config.json; and its KV cache.

Supports Llama, Mistral, Qwen2 and Qwen3. Settings that would change the arithmetic (rope scaling, sliding
windows, other activations) are refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demeanor.core.errors import CheckpointError, unknown

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

# transformers' defaults where config.json names none.
POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}


class UnsupportedError(CheckpointError):
    """A valid checkpoint that the lean model cannot run; `hf.py` may."""


NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that determines the forward pass; field names are Hugging Face's."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def load(cls, folder: Path) -> Config:
        """Read config.json of a model folder; raises CheckpointError naming what is missing or
        unsupported."""
        path = folder / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder}: no config.json; wanted a Hugging Face checkpoint folder"
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: not valid JSON ({error})") from None
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path}: holds a {type(raw).__name__}, wanted a JSON object")
        return cls.parse(raw, str(path))

    @classmethod
    def parse(cls, raw: dict[str, Any], where: str) -> Config:
        """Parse the content of config.json; raises CheckpointError naming what is missing or unsupported."""
        kind = str(raw.get("model_type"))
        if kind not in ARCHITECTURES:
            raise UnsupportedError(
                f"{where}: {unknown(kind, ARCHITECTURES, noun='model_type')} "
                "Other architectures of transformers run through its own forward."
            )
        missing = [k for k in NEEDED if k not in raw]
        if missing:
            raise CheckpointError(f"{where}: lacks {', '.join(missing)}")
        odd = [f"{k} is {raw[k]!r}" for k in NEEDED if not isinstance(raw[k], int) or raw[k] < 1]
        if odd:
            raise CheckpointError(f"{where}: {', '.join(odd)}; wanted a positive whole number")
        try:
            return cls._parsed(raw, kind, where)
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{where}: a setting has the wrong type ({error})") from None

    @classmethod
    def _parsed(cls, raw: dict[str, Any], kind: str, where: str) -> Config:
        ropes = [raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}]
        rope = {**ropes[0], **ropes[1]}
        positions = int(raw.get("max_position_embeddings", POSITIONS[kind]))
        window = raw.get("sliding_window", 4096) or positions  # absent: transformers' 4096; null: no window
        heads = raw["num_attention_heads"]
        kv_heads = int(raw.get("num_key_value_heads", 8 if kind == "mistral" else None) or heads)
        default = ("default", None)
        has_window = kind != "llama" and raw.get("use_sliding_window", kind == "mistral")
        rotary_factor = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
        refuse = {
            "rope type": any(r.get("rope_type", r.get("type", "default")) not in default for r in ropes),
            "sliding_window": has_window and window < positions,
            "num_key_value_heads": heads % kv_heads != 0,
            "hidden_act": raw.get("hidden_act", "silu") != "silu",
            "partial_rotary_factor": rotary_factor not in (1.0, None),
            "quantization_config": bool(raw.get("quantization_config")),
        }
        bad = [name for name, wrong in refuse.items() if wrong]
        if bad:
            error = CheckpointError if "quantization_config" in bad else UnsupportedError
            verb = "is" if len(bad) == 1 else "are"
            raise error(f"{where}: {', '.join(bad)} of this checkpoint {verb} not supported")
        # The other architectures ignore attention_bias.
        bias = kind in ("llama", "qwen3") and bool(raw.get("attention_bias", False))
        return cls(
            model_type=kind,
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=int(raw.get("head_dim") or (128 if kind == "qwen3" else raw["hidden_size"] // heads)),
            max_position_embeddings=positions,
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=bias or kind == "qwen2",
            output_bias=bias,
            mlp_bias=kind == "llama" and bool(raw.get("mlp_bias", False)),
            qk_norm=kind == "qwen3",
        )

    def to_json(self, architecture: str | None = None, **extra: Any) -> dict[str, Any]:
        """Return the config.json of this shape, as transformers reads it."""
        values = {
            "architectures": [architecture or ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "hidden_act": "silu",
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.output_bias,
            "mlp_bias": self.mlp_bias,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "dtype": "float32",
        }
        if self.model_type == "mistral":
            values["sliding_window"] = None  # absent means 4096
        return {**values, **extra}


class KVCache:
    """Keys and values: for each layer a tensor (slots, kv heads, tokens, head dim)."""

    def __init__(
        self,
        config: Config,
        num_slots: int,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        shape = (num_slots, config.num_key_value_heads, max_tokens, config.head_dim)
        self.num_slots, self.max_tokens = num_slots, max_tokens
        layers = range(config.num_hidden_layers)
        self.keys: list[Tensor] = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values: list[Tensor] = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]

    @property
    def num_bytes(self) -> int:
        """Allocated bytes."""
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one slot to another (a shared prefix)."""
        for x in (*self.keys, *self.values):
            x[target, :, :tokens] = x[source, :, :tokens]

"""The Llama family (Llama, Mistral, Qwen2, Qwen3, SmolLM): settings, KV cache, one forward over token trees.

In: tokens with the segments of token trees (training), or with slots of a KV cache (decoding). Out: hidden
states after the final norm. Trainer and engine share it, so their log-probabilities agree. Weights have
Hugging Face's names. Knows no loss, no sampling, no text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from demeanor.core import files, hardware
from demeanor.core.errors import CheckpointError, unknown
from demeanor.model import attention_kernel, fused, grouped
from demeanor.model import rope as ropes
from demeanor.model.attention import Parts, buckets, joined, tree_attention
from demeanor.model.grouped import foreign
from demeanor.model.rope import Rope
from demeanor.model.tensors import Segment

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


MOST_LAYERS, MOST_SIZE = 4096, 2**31
"""Bounds on config.json: a list or a module is made per layer or expert, before any weight is read."""


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a model folder, without building anything from it.

    Raises CheckpointError if it is missing or broken, names code of its own, or declares absurd sizes.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no config.json; wanted a Hugging Face checkpoint folder") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds a {type(raw).__name__}, wanted a JSON object")
    files.refuse_code(raw, path)
    for part in (raw, *(x for x in raw.values() if isinstance(x, dict))):
        for name, value in part.items():
            most = MOST_LAYERS if "layers" in name or "experts" in name or name == "n_layer" else MOST_SIZE
            if isinstance(value, int) and value > most:
                raise CheckpointError(f"{path}: {name} is {value}, wanted at most {most}")
    return raw


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
    rope: Rope | None = None

    @classmethod
    def load(cls, folder: Path) -> Config:
        """Read config.json of a model folder; raises CheckpointError naming what is missing or
        unsupported."""
        return cls.parse(read_config(folder), str(folder / "config.json"))

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
        odd = [f"{k} is {raw[k]!r}" for k in NEEDED if type(raw[k]) is not int or raw[k] < 1]
        if odd:
            raise CheckpointError(f"{where}: {', '.join(odd)}; wanted a positive whole number")
        try:
            return cls._parsed(raw, kind, where)
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{where}: a setting has the wrong type ({error})") from None

    @classmethod
    def _parsed(cls, raw: dict[str, Any], kind: str, where: str) -> Config:
        rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
        positions = int(raw.get("max_position_embeddings", POSITIONS[kind]))
        window = raw.get("sliding_window", 4096) or positions  # absent: transformers' 4096; null: no window
        heads = raw["num_attention_heads"]
        kv_heads = int(raw.get("num_key_value_heads", 8 if kind == "mistral" else None) or heads)
        head_dim = int(raw.get("head_dim") or (128 if kind == "qwen3" else raw["hidden_size"] // heads))
        rope_theta = float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))
        try:
            scaling, computed = ropes.parse(raw.get("rope_scaling") or rope), True  # transformers' order
        except LookupError:
            scaling, computed = None, False
        stretch = scaling or Rope("default", 1.0)
        has_window = kind != "llama" and raw.get("use_sliding_window", kind == "mistral")
        rotary_factor = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
        refuse = {
            "rope type": not computed,
            "sliding_window": has_window and window < positions,
            "num_key_value_heads": heads % kv_heads != 0,
            "hidden_act": raw.get("hidden_act", "silu") != "silu",
            "partial_rotary_factor": rotary_factor not in (1.0, None),
            "quantization_config": foreign(raw),
        }
        bad = [name for name, wrong in refuse.items() if wrong]
        sizes = {
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": positions,
            "rope_theta": rope_theta,
            "rope factor": stretch.factor,
            "original_max_position_embeddings": stretch.original if stretch.kind in ("llama3", "yarn") else 1,
            "beta_fast": stretch.fast,
            "beta_slow": stretch.slow,
        }
        low = [f"{name} is {value}" for name, value in sizes.items() if not 0 < value < math.inf]
        if low or head_dim % 2:
            raise CheckpointError(
                f"{where}: {', '.join(low) or f'head_dim is {head_dim}'}; wanted a number above 0, and an even "
                "head_dim"
            )
        if bad:
            packed = "quantization_config" in bad
            error, verb = (CheckpointError if packed else UnsupportedError), "is" if len(bad) == 1 else "are"
            hint = f"; {grouped.INSTEAD}" if packed else ""
            raise error(f"{where}: {', '.join(bad)} of this checkpoint {verb} not supported{hint}")
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
            head_dim=head_dim,
            max_position_embeddings=positions,
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=rope_theta,
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=bias or kind == "qwen2",
            output_bias=bias,
            mlp_bias=kind == "llama" and bool(raw.get("mlp_bias", False)),
            qk_norm=kind == "qwen3",
            rope=scaling,
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
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": self.rope_theta,
                **(self.rope.to_json() if self.rope else {}),
            },
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


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """Zeros; on a CPU the system gives memory only to the pages that are written (torch.zeros writes all)."""
    if device is not None and device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = hardware.memory_on_demand(math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def kept(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to a cache's format; beyond the greatest fp16 (65,504) the nearest is that one, not infinity."""
    if dtype == torch.float16:
        greatest = torch.finfo(dtype).max
        x = x.clamp(-greatest, greatest)
    return x.to(dtype)


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
        layers, memory = range(config.num_hidden_layers), hardware.memory_bytes()
        needed = 2 * len(layers) * math.prod(shape) * dtype.itemsize
        if memory is not None and needed > memory and (device is None or device.type == "cpu"):
            raise CheckpointError(
                f"{num_slots} slots of {max_tokens} tokens need {needed / 2**30:.1f} GiB for keys and values; this "
                f"machine has {memory / 2**30:.1f} GiB. Lower max_position_embeddings in the checkpoint's "
                "config.json, the longest context that is served"
            )
        self.keys: list[Tensor] = [zeros(shape, dtype, device) for _ in layers]
        self.values: list[Tensor] = [zeros(shape, dtype, device) for _ in layers]

    @property
    def num_bytes(self) -> int:
        """Allocated bytes."""
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one slot to another (a shared prefix)."""
        for x in (*self.keys, *self.values):
            x[target, :, :tokens] = x[source, :, :tokens]


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), in fp32 as transformers does."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def rotary(config: Config, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin tables (T, 1, head_dim) of rotary position embeddings (Su et al. 2021), fp32."""
    dims = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=positions_T.device)
    half = dims.float() / config.head_dim
    inverse = 1.0 / config.rope_theta**half
    if config.rope is not None:
        inverse = ropes.scaled(config.rope, inverse, config.rope_theta)
    angles = positions_T[:, None].float() * inverse
    both = torch.cat([angles, angles], -1)[:, None]
    if config.rope is not None and config.rope.attention != 1.0:
        return both.cos() * config.rope.attention, both.sin() * config.rope.attention
    return both.cos(), both.sin()


def rotate(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads by their positions, in the "half" layout of Hugging Face."""
    a, b = x_THD.chunk(2, -1)
    return x_THD * cos.to(x_THD.dtype) + torch.cat([-b, a], -1) * sin.to(x_THD.dtype)


class Attention(nn.Module):
    """QKV and output projections of one layer; the caller computes the attention between them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_dim
        self.heads, self.kv_heads, self.head = config.num_attention_heads, config.num_key_value_heads, head
        self.q_proj = nn.Linear(width, self.heads * head, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, self.kv_heads * head, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, self.kv_heads * head, bias=config.qkv_bias)
        self.o_proj = nn.Linear(self.heads * head, width, bias=config.output_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(head, config.rms_norm_eps)
            self.k_norm = RMSNorm(head, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def project(self, x_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries (T, H, D), and keys and values (T, K, D)."""
        T = x_TD.shape[0]
        q = self.q_proj(x_TD).view(T, self.heads, self.head)
        k = self.k_proj(x_TD).view(T, self.kv_heads, self.head)
        v = self.v_proj(x_TD).view(T, self.kv_heads, self.head)
        if self.qk_norm:
            # Under autocast a norm returns fp32.
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return rotate(q, cos, sin), rotate(k, cos, sin), v


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Block(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.compiled = False

    def tree(
        self, x_TD: Tensor, cos: Tensor, sin: Tensor, parts: Parts, read_R: Tensor | None = None
    ) -> Tensor:
        begin, finish = compiled_regions() if self.compiled else (Block.begin, Block.finish)
        q, k, v = begin(self, x_TD, cos, sin)
        mixed = tree_attention(q, k, v, parts)
        return finish(self, x_TD, mixed) if read_R is None else finish(self, x_TD[read_R], mixed[read_R])

    def begin(self, x_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn.project(self.input_layernorm(x_TD), cos, sin)

    def finish(self, x_TD: Tensor, mixed_THD: Tensor) -> Tensor:
        x_TD = x_TD + self.self_attn.o_proj(mixed_THD.flatten(1))
        return x_TD + cast(Tensor, self.mlp(self.post_attention_layernorm(x_TD)))


Begin = Callable[[Block, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Finish = Callable[[Block, Tensor, Tensor], Tensor]


@cache
def compiled_regions() -> tuple[Begin, Finish]:
    """Compile the regions before and after attention once for all layers and lengths."""
    return torch.compile(Block.begin, dynamic=True), torch.compile(Block.finish, dynamic=True)


class Embedding(nn.Embedding):
    """Rows of a matrix; on the device `meta` nothing is drawn, for which torch would load its compiler (70 MB, 1 s)."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Trunk(nn.Module):
    """Embedding, blocks, final norm: what Hugging Face calls `model`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """A causal language model of the Llama family."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.recompute = False  # recompute layers in the backward pass (Chen et al. 2016, arXiv 1604.06174)
        self.model = Trunk(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def head(self) -> Tensor:
        """The output matrix, weight_VD."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def vocabulary(self) -> tuple[str, str]:
        """Names of the embedding and of the head."""
        return "model.embed_tokens", "lm_head"

    def untie(self) -> None:
        """Give the head a matrix of its own, equal to the embedding until one of them changes."""
        if self.config.tie_word_embeddings:
            weight_VD = self.model.embed_tokens.weight.detach().clone()
            self.config = replace(self.config, tie_word_embeddings=False)
            self.lm_head = nn.Linear(weight_VD.shape[1], weight_VD.shape[0], bias=False, device="meta")
            self.lm_head.weight = nn.Parameter(weight_VD)

    def compile_layers(self) -> None:
        """Run the regions around attention through torch.compile when training (needs a C++ compiler)."""
        for block in self._blocks:
            block.compiled = True

    @property
    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.model.layers))

    def hidden(
        self, tokens_T: Tensor, positions_T: Tensor, segments: Sequence[Segment], read_R: Tensor | None = None
    ) -> Tensor:
        """Return hidden states (T, D) after the final norm of a batch of token trees; with `read_R` only
        those (R, D).

        After its attention the last layer continues with the rows in `read_R` only.
        """
        cos, sin = rotary(self.config, positions_T)
        x_TD = self.model.embed_tokens(tokens_T)
        run_fused = fused.fits(self._blocks[:-1], x_TD)
        if run_fused and attention_kernel.fits(self.config.hidden_size, self.config.head_dim):
            parts: Parts = attention_kernel.layout(joined(segments))
        else:
            parts = buckets(segments, tokens_T.device)
        for block in self._blocks[:-1]:
            if run_fused:
                x_TD = fused.layer(block, x_TD, cos, sin, parts, recompute=self.recompute)
            elif self.recompute and torch.is_grad_enabled():
                x_TD = cast(Tensor, checkpoint(block.tree, x_TD, cos, sin, parts, use_reentrant=False))
            else:
                x_TD = block.tree(x_TD, cos, sin, parts)
        return cast(Tensor, self.model.norm(self._blocks[-1].tree(x_TD, cos, sin, parts, read_R)))

    @torch.no_grad()
    def prefill(self, tokens_T: Tensor, slot: int, start: int, cache: KVCache) -> Tensor:
        """Return hidden states (T, D) of the next chunk of `slot` after its `start` tokens; writes keys
        and values."""
        T = len(tokens_T)
        cos, sin = rotary(self.config, torch.arange(start, start + T, device=tokens_T.device))
        x_TD = self.model.embed_tokens(tokens_T)
        mask = None
        if start and T > 1:
            mask = torch.ones(T, start + T, dtype=torch.bool, device=tokens_T.device).tril(start)
        for block, keys, values in zip(self._blocks, cache.keys, cache.values):
            q, k, v = block.self_attn.project(block.input_layernorm(x_TD), cos, sin)
            keys[slot, :, start : start + T] = kept(k.transpose(0, 1), keys.dtype)
            values[slot, :, start : start + T] = kept(v.transpose(0, 1), values.dtype)
            mixed = F.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                keys[slot : slot + 1, :, : start + T].to(q.dtype),
                values[slot : slot + 1, :, : start + T].to(q.dtype),
                attn_mask=mask,
                is_causal=not start and T > 1,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            x_TD = block.finish(x_TD, mixed[0].transpose(0, 1))
        return cast(Tensor, self.model.norm(x_TD))

    @torch.no_grad()
    def step(self, tokens_N: Tensor, slots_N: Tensor, positions_N: Tensor, cache: KVCache) -> Tensor:
        """Return hidden states (N, D) of one new token in each of N slots; writes their keys and values."""
        cos, sin = rotary(self.config, positions_N)
        x_ND = self.model.embed_tokens(tokens_N)
        longest = int(positions_N.max()) + 1
        mask = (torch.arange(longest, device=tokens_N.device)[None] <= positions_N[:, None])[:, None, None]
        all_slots = torch.arange(cache.num_slots, device=slots_N.device)
        every = len(slots_N) == cache.num_slots and bool((slots_N == all_slots).all())
        for block, keys, values in zip(self._blocks, cache.keys, cache.values):
            q, k, v = block.self_attn.project(block.input_layernorm(x_ND), cos, sin)
            keys[slots_N, :, positions_N], values[slots_N, :, positions_N] = (
                kept(k, keys.dtype),
                kept(v, values.dtype),
            )
            seen_k, seen_v = (
                (x[:, :, :longest] if every else x[slots_N, :, :longest]).to(q.dtype) for x in (keys, values)
            )
            mixed = _one_query(q, seen_k, seen_v, mask)
            x_ND = block.finish(x_ND, mixed)
        return cast(Tensor, self.model.norm(x_ND))


def _one_query(q_NHD: Tensor, k_NKSD: Tensor, v_NKSD: Tensor, mask: Tensor) -> Tensor:
    """Return the attention (N, H, D) of one query per sequence over its first keys."""
    N, H, D = q_NHD.shape
    K = k_NKSD.shape[1]
    q = q_NHD.view(N, K, H // K, D)
    scores = (q @ k_NKSD.transpose(2, 3)).mul_(D**-0.5).masked_fill_(~mask, float("-inf"))
    return (scores.softmax(-1) @ v_NKSD).reshape(N, H, D)

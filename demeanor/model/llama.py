"""The Llama family's forward over plain tensors with Hugging Face's parameter names.

In: tokens, positions, and the segments of token trees (training) or slots of a KV cache (decoding). Out:
hidden states after the final norm. Knows no loss, no sampling, no text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from demeanor.model.attention import Parts, buckets, tree_attention
from demeanor.model.config import Config, KVCache
from demeanor.model.tensors import Segment


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
    angles = positions_T[:, None].float() * (1.0 / config.rope_theta**half)
    both = torch.cat([angles, angles], -1)[:, None]
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


class Trunk(nn.Module):
    """Embedding, blocks, final norm: what Hugging Face calls `model`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
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
        parts = buckets(segments, tokens_T.device)
        x_TD = self.model.embed_tokens(tokens_T)
        for block in self._blocks[:-1]:
            if self.recompute and torch.is_grad_enabled():
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
            keys[slot, :, start : start + T] = k.transpose(0, 1)
            values[slot, :, start : start + T] = v.transpose(0, 1)
            mixed = F.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                keys[slot : slot + 1, :, : start + T],
                values[slot : slot + 1, :, : start + T],
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
            keys[slots_N, :, positions_N], values[slots_N, :, positions_N] = k, v
            seen_k, seen_v = (x[:, :, :longest] if every else x[slots_N, :, :longest] for x in (keys, values))
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

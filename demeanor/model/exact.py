"""The policy forward whose values are the decoder's, bit for bit, with the gradient of the torch forward.

In: a Llama and a batch of token trees. Out: log-probabilities equal to those that the decoder gave when it sampled.
The compiled decoder computes every value once and leaves its activations; the autograd functions here only carry
gradients through them, so a step has the products of an ordinary one. Gradients equal torch's up to rounding. Under
autocast the products of the backward pass are rounded (bf16), as an ordinary step's are; the values never are.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from demeanor.model import native
from demeanor.model.attention import Parts, _TreeAttention, buckets, joined
from demeanor.model.drawn import Drawn, conditioned, drawn_of
from demeanor.model.heads import LARGE, chunks, collision, policy_outputs
from demeanor.model.llama import Block, Llama, RMSNorm, rotary, rotate
from demeanor.model.low_rank import LoraLinear
from demeanor.model.pages import PagedCache
from demeanor.model.tensors import Outputs, Segment, TokenBatch

log = logging.getLogger("demeanor.model")

ROWS = 1024  # tokens of whole trees that one call of the decoder reads

_PACKED: WeakKeyDictionary[Llama, native.Packed] = WeakKeyDictionary()  # frozen matrices, for the next step


def exact_policy_outputs(model: nn.Module, batch: TokenBatch, *, statistics: Collection[str] = ()) -> Outputs:
    """Return what `policy_outputs` returns, with the decoder's bits; where there is an `obstacle`, say so once and
    return the ordinary ones."""
    reason = obstacle(model)
    if reason is not None:
        _say(reason)
        return policy_outputs(model, batch, statistics=statistics)
    assert isinstance(model, Llama)
    calls = list(waves(batch))
    order_T = torch.cat([torch.arange(s.start, s.end) for call in calls for s in call.segments])
    values = _decoded(model, batch, calls, trace=torch.is_grad_enabled())
    drawn = drawn_of(batch)
    hidden_CD = values.hidden_CD
    if values.trace is not None:
        place_T = torch.empty_like(order_T)
        place_T[order_T] = torch.arange(len(order_T))
        hidden_CD = _differentiable(
            model,
            batch.tokens_T[order_T],
            batch.positions_T[order_T],
            buckets(_moved([s for call in calls for s in call.segments], place_T), order_T.device),
            values.trace,
            place_T[batch.scored_C],
            values.hidden_CD,
        )
    logprobs_C, entropy_C, logits_CV = _scored(values, batch.targets_C, drawn, "entropy" in statistics)
    if values.trace is not None:
        logprobs_C = _Logprobs.apply(hidden_CD, model.head(), logprobs_C, logits_CV, batch.targets_C, drawn)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        whole = collision(values.hidden_CD, model.head()) if "collision" in statistics else None
    return Outputs(logprobs_C=logprobs_C, entropy_C=entropy_C, collision_C=whole)


def obstacle(model: nn.Module) -> str | None:
    """Return why a model's values cannot be the decoder's here; None if they can."""
    if not isinstance(model, Llama):
        return f"{type(model).__name__} runs through transformers"
    odd = {p.dtype for p in model.parameters()} - {torch.float32}
    if odd:
        return f"weights are {', '.join(map(str, odd))}, wanted fp32"
    if any(hasattr(p, "to_local") for p in model.parameters()):
        return "weights are sharded over processes"
    if not native.fits(model):
        return "the compiled decoder runs on a CPU, with an even head size and adapters of rank up to 1024"
    return "there is no compiled decoder (no C++ compiler?)" if native.build() is None else None


@cache
def _say(reason: str) -> None:
    log.warning("log-probabilities in training are not the sampler's to the last bit: %s", reason)


# ---- values: the decoder reads the trees ----


class Reading(NamedTuple):
    """Segments that the decoder reads at once, their slots, and the caches to copy before: (from, to, tokens)."""

    segments: list[Segment]
    slots: list[int]
    copies: list[tuple[int, int, int]]


def waves(batch: TokenBatch) -> Iterator[Reading]:
    """Yield readings in order: whole trees of about ROWS tokens together, prompts before the branches that share them.

    Raises ValueError if a segment's context is not a whole path from the root of its tree.
    """
    segments = joined(batch.segments)
    trees: list[list[int]] = []
    holder: dict[int, tuple[int, int]] = {}  # by segment: its tree and depth
    for i, segment in enumerate(segments):
        if not segment.context:
            holder[i] = (len(trees), 0)
            trees.append([i])
            continue
        parent = _parent(segments, i)
        holder[i] = (holder[parent][0], holder[parent][1] + 1)
        trees[holder[i][0]].append(i)
    wave: list[int] = []
    size = 0
    for tree in trees:
        wave += tree
        size += sum(segments[i].end - segments[i].start for i in tree)
        if size >= ROWS or tree is trees[-1]:
            by_depth: defaultdict[int, list[int]] = defaultdict(list)
            for i in wave:
                by_depth[holder[i][1]].append(i)
            slot = {i: at for at, i in enumerate(wave)}
            for depth in sorted(by_depth):
                chosen = by_depth[depth]
                copies = [
                    (slot[_parent(segments, i)], slot[i], sum(b - a for a, b in segments[i].context))
                    for i in chosen
                    if depth
                ]
                yield Reading([segments[i] for i in chosen], [slot[i] for i in chosen], copies)
            wave, size = [], 0


def _parent(segments: Sequence[Segment], child: int) -> int:
    """Return the segment that a segment continues, or a part of it."""
    start, end = segments[child].context[-1]
    for i in range(child - 1, -1, -1):
        known = segments[i]
        if (
            known.start == start
            and end <= known.end
            and (*known.context, (start, end)) == segments[child].context
        ):
            return i
    raise ValueError(
        f"segment {segments[child]}: its context is not a path from the root of its tree, which decoding needs"
    )


class Values(NamedTuple):
    """What the decoder computed: its model, hidden states of the scored tokens, and activations for a gradient."""

    decoder: native.Native
    hidden_CD: Tensor
    trace: native.Trace | None


@torch.no_grad()
def _decoded(model: Llama, batch: TokenBatch, calls: Sequence[Reading], *, trace: bool) -> Values:
    tokens, positions = batch.tokens_T.tolist(), batch.positions_T.tolist()
    longest = max((max(positions[s.start : s.end]) + 1 for call in calls for s in call.segments), default=1)
    num_slots = max((max(call.slots) + 1 for call in calls), default=1)
    kept = PagedCache(model.config, num_slots, longest)
    decoder = native.Native(model, kept, _PACKED.setdefault(model, {}))
    memory = decoder.trace(len(tokens)) if trace else None
    scored, start = torch.unique(batch.scored_C), 0
    wanted = torch.zeros(len(tokens), dtype=torch.bool).index_fill_(0, scored, True)
    hidden_TD = torch.empty(len(tokens), decoder.width)
    for call in calls:
        for copy in call.copies:
            kept.copy(*copy)
        rows_N = torch.cat([torch.arange(s.start, s.end) for s in call.segments])
        read_R = wanted[rows_N].nonzero()[:, 0]
        asked = (
            [t for s in call.segments for t in tokens[s.start : s.end]],
            [slot for s, slot in zip(call.segments, call.slots) for _ in range(s.start, s.end)],
            [p for s in call.segments for p in positions[s.start : s.end]],
            read_R.tolist(),
        )
        found = decoder.hidden(*asked) if memory is None else decoder.traced(*asked, memory, start)
        hidden_TD[rows_N[read_R]] = found
        start += len(rows_N)
    return Values(decoder, hidden_TD[batch.scored_C], memory)


def _scored(
    values: Values, targets_C: Tensor, drawn: Drawn | None, with_entropy: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return log-probabilities, entropies, and the logits if they are small enough to keep for the gradient."""
    hidden_CD, vocab = values.hidden_CD, values.decoder.vocab
    logprobs, entropies, kept = [], [], []
    size = max(1, LARGE // (4 * vocab))
    keep = values.trace is not None and len(hidden_CD) <= size
    for a in range(0, len(hidden_CD), size):
        b = min(a + size, len(hidden_CD))
        logits_CV = values.decoder.logits(hidden_CD[a:b])
        part = None if drawn is None else drawn.rows(a, b)
        found = native.drawn_logprobs(logits_CV, targets_C[a:b], part, entropy=with_entropy)
        logprobs.append(found[0])
        entropies += [] if found[1] is None else [found[1]]
        kept += [logits_CV] if keep else []
    empty = hidden_CD.new_empty(0)
    return (
        torch.cat([empty, *logprobs]),
        torch.cat([empty, *entropies]) if with_entropy else None,
        kept[0] if kept else None,
    )


def _moved(segments: Sequence[Segment], place_T: Tensor) -> list[Segment]:
    """Return segments in the order in which the decoder read them, at their new positions."""
    ends = list(accumulate((s.end - s.start for s in segments), initial=0))
    return [
        Segment(a, b, tuple((int(place_T[x]), int(place_T[x]) + y - x) for x, y in s.context))
        for s, a, b in zip(segments, ends, ends[1:])
    ]


# ---- gradients: given values, and the derivative of what made them ----


def _differentiable(
    model: Llama,
    tokens_T: Tensor,
    positions_T: Tensor,
    parts: Parts,
    trace: native.Trace,
    read_C: Tensor,
    hidden_CD: Tensor,
) -> Tensor:
    """Return the hidden states of the scored rows as a function of the parameters."""
    width = model.config.hidden_size
    turn = rotary(model.config, positions_T)
    x_TD = cast(Tensor, model.model.embed_tokens(tokens_T))
    blocks = cast(list[Block], list(model.model.layers))
    after = [*(t.before for t in trace.layers[1:]), trace.after]
    for i, (block, t) in enumerate(zip(blocks, trace.layers)):
        mixed_TM = _attended(block, x_TD, t, turn, parts)
        middle, gates, end = t.middle[:, :width], t.gates, after[i][:, :width]
        if i == len(blocks) - 1:  # nothing reads the other rows
            x_TD, mixed_TM = x_TD[read_C], mixed_TM[read_C]
            middle, gates, end = middle[read_C], gates[read_C], end[read_C]
        x_TD = _linear(block.self_attn.o_proj, mixed_TM, middle, x_TD)
        normed_TD = _normed(block.post_attention_layernorm, x_TD)
        unread = gates.new_zeros(()).expand(len(gates), model.config.intermediate_size)
        gate_TI, up_TI = (_linear(m, normed_TD, unread) for m in (block.mlp.gate_proj, block.mlp.up_proj))
        x_TD = _Down.apply(end, gate_TI, up_TI, gates, x_TD, *_tensors(block.mlp.down_proj))  # type: ignore[no-untyped-call]
    return _normed(model.model.norm, x_TD)


def _attended(
    block: Block, x_TD: Tensor, t: native.LayerTrace, turn: tuple[Tensor, Tensor], parts: Parts
) -> Tensor:
    """Return mixed values (T, H D)."""
    attention = block.self_attn
    T, H, K, D = len(x_TD), attention.heads, attention.kv_heads, attention.head
    q, k, v = torch.split(t.heads[:, : (H + 2 * K) * D], [H * D, K * D, K * D], 1)
    raw_q, raw_k = (q, k) if t.projected is None else torch.split(t.projected, [H * D, K * D], 1)
    normed_TD = _normed(block.input_layernorm, x_TD)
    q_THD = _linear(attention.q_proj, normed_TD, raw_q).view(T, H, D)
    k_TKD = _linear(attention.k_proj, normed_TD, raw_k).view(T, K, D)
    v_TKD = _linear(attention.v_proj, normed_TD, v).view(T, K, D)
    if attention.qk_norm:
        q_THD, k_TKD = _normed(attention.q_norm, q_THD), _normed(attention.k_norm, k_TKD)
    q_THD = _Turned.apply(q.view(T, H, D), q_THD, *turn)  # type: ignore[no-untyped-call]
    k_TKD = _Turned.apply(k.view(T, K, D), k_TKD, *turn)  # type: ignore[no-untyped-call]
    mixed: Tensor = _Attention.apply(t.mixed.view(T, H, D), q_THD, k_TKD, v_TKD, parts)  # type: ignore[no-untyped-call]
    return mixed.flatten(1)


def _tensors(module: nn.Module) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, float]:
    """Weight, bias, and an adapter's two matrices and scale."""
    weight, bias = cast(Tensor, module.weight), cast("Tensor | None", module.bias)
    return (weight, bias, module.lora_A, module.lora_B, module.scale) if isinstance(module, LoraLinear) else (
        weight, bias, None, None, 0.0
    )  # fmt: skip


def _linear(module: nn.Module, x: Tensor, value: Tensor, residual: Tensor | None = None) -> Tensor:
    found: Tensor = _Linear.apply(value, x, residual, *_tensors(module))  # type: ignore[no-untyped-call]
    return found


def _normed(norm: RMSNorm | nn.Module, x: Tensor) -> Tensor:
    found: Tensor = _Norm.apply(x, norm.weight, norm.eps)  # type: ignore[no-untyped-call]
    return found


# `value.data` below: a view of memory that no gradient flows to.


def _rounding() -> torch.dtype | None:
    """The format of products under autocast; None for fp32."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


def _product(a: Tensor, b: Tensor, dtype: torch.dtype | None) -> Tensor:
    return a @ b if dtype is None else (a.to(dtype) @ b.to(dtype)).float()


class _Linear(torch.autograd.Function):
    """residual + x W^T + b + scale (x A^T) B^T, given its value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, residual: Tensor | None, *map: Any) -> Tensor:
        ctx.save_for_backward(x, *map[:4])
        ctx.scale, ctx.has_residual, ctx.dtype = map[4], residual is not None, _rounding()
        return value.data

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *map = ctx.saved_tensors
        needs = (ctx.needs_input_grad[1], *ctx.needs_input_grad[3:7])
        dx, *rest = _linear_slopes(grads[0], x, map, ctx.scale, needs, ctx.dtype)
        return None, dx, grads[0] if ctx.has_residual else None, *rest, None


def _linear_slopes(
    dy: Tensor,
    x: Tensor,
    map: Sequence[Tensor | None],
    scale: float,
    needs: Sequence[bool],
    dtype: torch.dtype | None,
) -> tuple[Tensor | None, ...]:
    """Slopes of x, weight, bias, A and B; None where one is not needed."""
    a, b = map[2:]
    if dtype is not None:
        dy, x = dy.to(dtype), x.to(dtype)
    small = None if b is None else scale * _product(dy, b, dtype)
    return (
        _slope_of_input(dy, small, map, dtype) if needs[0] else None,
        _product(dy.T, x, dtype) if needs[1] else None,
        dy.sum(0, dtype=torch.float32) if needs[2] else None,
        _product(small.T, x, dtype) if small is not None and needs[3] else None,
        scale * _product(dy.T, _product(x, a.T, dtype), dtype) if a is not None and needs[4] else None,
    )


def _slope_of_input(
    dy: Tensor, small: Tensor | None, map: Sequence[Tensor | None], dtype: torch.dtype | None
) -> Tensor:
    weight, _, a, _ = map
    assert weight is not None
    dx = _product(dy, weight, dtype)
    return dx if small is None or a is None else dx.add_(_product(small, a, dtype))


class _Norm(torch.autograd.Function):
    """weight x / rms(x) over the last dimension; its value is only read by gradients of products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        n = x * inverse
        dn = grads[0] * weight
        dweight = (grads[0] * n).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return dn.sub_(n.mul_((dn * n).mean(-1, keepdim=True))).mul_(inverse), dweight, None


class _Turned(torch.autograd.Function):
    """Heads rotated by their positions, given their value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return value.data

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return None, rotate(grads[0], cos, -sin), None, None


class _Attention(torch.autograd.Function):
    """Attention over trees, given its value; probabilities are computed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, q: Tensor, k: Tensor, v: Tensor, parts: Parts) -> Tensor:
        dtype = _rounding() or q.dtype
        ctx.save_for_backward(q.to(dtype), k.to(dtype), v.to(dtype))
        ctx.parts, ctx.dtype = parts, dtype
        return value.data

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *slopes, _ = _TreeAttention.backward(ctx, grads[0].to(ctx.dtype))
        return None, *(x.to(grads[0].dtype) for x in slopes), None


class _Down(torch.autograd.Function):
    """residual + the down projection of silu(gate) up, given its value; `gates` are a trace's."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gate: Tensor, up: Tensor, gates: Tensor, residual: Tensor, *map: Any
    ) -> Tensor:
        ctx.save_for_backward(gates, *map[:4])
        ctx.scale, ctx.dtype = map[4], _rounding()
        return value.data

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gates, *map = ctx.saved_tensors
        dy = grads[0] if ctx.dtype is None else grads[0].to(ctx.dtype)
        small = None if map[3] is None else ctx.scale * _product(dy, map[3], ctx.dtype)
        act, dgate, dup = native.gated_backward(gates, _slope_of_input(dy, small, map, ctx.dtype))
        needs = (False, *ctx.needs_input_grad[5:9])
        rest = _linear_slopes(dy, act, map, ctx.scale, needs, ctx.dtype)[1:]
        return None, dgate, dup, None, grads[0], *rest, None


class _Logprobs(torch.autograd.Function):
    """Log-probabilities of targets, given their value, and their logits if those were kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_CD: Tensor,
        weight_VD: Tensor,
        value_C: Tensor,
        logits_CV: Tensor | None,
        targets_C: Tensor,
        drawn: Drawn | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden_CD, weight_VD, logits_CV, targets_C)
        ctx.drawn, ctx.dtype = drawn, _rounding()
        return value_C.data

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_CD, weight_VD, known_CV, targets_C = ctx.saved_tensors
        dhidden = torch.empty_like(hidden_CD) if ctx.needs_input_grad[0] else None
        dweight = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        for a, b in [(0, len(hidden_CD))] if known_CV is not None else chunks(hidden_CD, weight_VD):
            h, drawn = hidden_CD[a:b], None if ctx.drawn is None else ctx.drawn.rows(a, b)
            logits_CV = _product(h, weight_VD.T, ctx.dtype) if known_CV is None else known_CV
            # Of the chosen logit 1 - p, of the others -p, all divided by the temperature.
            slope_C = grads[0][a:b, None]
            if drawn is not None and drawn.temperature_C is not None:
                slope_C = slope_C / drawn.temperature_C[:, None]
            dlogits = conditioned(logits_CV, drawn).softmax(-1).mul_(-slope_C)
            dlogits.scatter_add_(1, targets_C[a:b, None], slope_C)
            if ctx.dtype is not None:
                dlogits = dlogits.to(ctx.dtype)
            if dhidden is not None:
                dhidden[a:b] = _product(dlogits, weight_VD, ctx.dtype)
            if dweight is not None:
                dweight.add_(_product(dlogits.T, h, ctx.dtype))
        return dhidden, dweight, None, None, None, None

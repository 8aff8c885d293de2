"""Training in bf16 on a CPU: layers and vocabulary head as few large products, and compiled code between them.

In: a block of a Llama (plain or with adapters) and rows of its residual stream; or hidden states, the head and targets.
Out: the same values as `llama.py` and `heads.py` up to rounding, with gradients written out by hand. The matrices that
read the same rows (queries, keys, values; gate, up) are one product. Frozen matrices are rounded to bf16 once. Without a
C++ compiler the functions between the products are torch's, which are also their twins in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demeanor.model.attention import Parts, attending
from demeanor.model.low_rank import LoraLinear
from demeanor.model.training_library import build as build
from demeanor.model.training_library import call as _call

NARROW = torch.bfloat16
BLOCK = 64  # rows, as in training.cpp

Map = nn.Linear | LoraLinear
Block = Any
"""A `Block` of llama.py, which imports this file."""


# ---- what surrounds the products ----


def norm(x_TD: Tensor, more_TD: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum x + more (fp32), its norm in bf16, and 1 / rms of each row."""
    total = x_TD if more_TD is None else torch.empty_like(x_TD)
    out, inverse_T = torch.empty_like(x_TD, dtype=NARROW), torch.empty(len(x_TD))
    sums = None if more_TD is None else total
    if not _call("norm", x_TD, more_TD, weight_D, eps, sums, out, inverse_T, *x_TD.shape):
        total = x_TD if more_TD is None else x_TD + more_TD
        inverse_T = torch.rsqrt(total.square().mean(-1) + eps)
        out = (weight_D * (total * inverse_T[:, None])).to(NARROW)
    return total, out, inverse_T


def norm_backward(
    slope_TD: Tensor, x_TD: Tensor, weight_D: Tensor, inverse_T: Tensor, residual_TD: Tensor, *, weighs: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradient of a norm's input plus `residual` in fp32 and in bf16, and the weight's if it `weighs`."""
    dx, narrow = torch.empty_like(x_TD), torch.empty_like(x_TD, dtype=NARROW)
    shares = torch.empty(-(-len(x_TD) // BLOCK), x_TD.shape[1]) if weighs else None
    given = (slope_TD, x_TD, weight_D, inverse_T, residual_TD, dx, narrow, shares, *x_TD.shape)
    if _call("norm_backward", *given):
        return dx, narrow, None if shares is None else shares.sum(0)
    slope, n = slope_TD.float(), x_TD * inverse_T[:, None]
    dn = slope * weight_D
    dx = (dn - n * (dn * n).mean(-1, keepdim=True)) * inverse_T[:, None] + residual_TD
    return dx, dx.to(NARROW), (slope * n).sum(0) if weighs else None


def rotated(
    joint_TX: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, head: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the joint projection into rotated q (T, H, D), k (T, K, D) and v; cos and sin are (T, D/2)."""
    T = len(joint_TX)
    q, k, v = (joint_TX.new_empty(T, n, head) for n in (heads, kv_heads, kv_heads))
    if not _call("rotated", joint_TX, q, k, v, cos, sin, T, heads, kv_heads, head, 0):
        q, k, v = torch.split(joint_TX.view(T, -1, head), [heads, kv_heads, kv_heads], 1)
        q, k, v = _turned(q, cos, sin), _turned(k, cos, sin), v.contiguous()
    return q, k, v


def rotated_back(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the gradient of the joint projection from those of q, k and v."""
    (T, heads, head), kv_heads = q.shape, k.shape[1]
    joint = q.new_empty(T, (heads + 2 * kv_heads) * head)
    if not _call("rotated", joint, q, k, v, cos, sin, T, heads, kv_heads, head, 1):
        joint = torch.cat([_turned(q, cos, -sin), _turned(k, cos, -sin), v], 1).view(T, -1)
    return joint


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat([a * c - b * s, b * c + a * s], -1).to(x.dtype)


def gated(gates_TX: Tensor) -> Tensor:
    """Return silu(gate) * up; gate and up are the halves of each row."""
    out = gates_TX.new_empty(len(gates_TX), gates_TX.shape[1] // 2)
    if not _call("gated", gates_TX, out, *out.shape):
        gate, up = gates_TX.float().chunk(2, -1)
        out = (F.silu(gate) * up).to(gates_TX.dtype)
    return out


def gated_backward(gates_TX: Tensor, slope_TF: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up, as rows like `gates`, and the output of `gated` again."""
    dgates, out = torch.empty_like(gates_TX), torch.empty_like(slope_TF)
    if not _call("gated_backward", gates_TX, slope_TF, dgates, out, *out.shape):
        gate, up = gates_TX.float().chunk(2, -1)
        slope, s = slope_TF.float(), torch.sigmoid(gate)
        dgates = torch.cat([slope * up * (s + gate * s * (1 - s)), slope * gate * s], -1).to(NARROW)
        out = (gate * s * up).to(NARROW)
    return dgates, out


def scored(logits_CV: Tensor, targets_C: Tensor, *, slope: bool) -> Tensor:
    """Return the log-probability (nats, fp32) of each row's target; with `slope`, logits become its gradient."""
    logprobs_C = torch.empty(len(logits_CV))
    name = "score_bf16" if logits_CV.dtype == NARROW else "score_fp32"
    if not _call(name, logits_CV, targets_C, logprobs_C, *logits_CV.shape, int(slope)):
        wide_CV = logits_CV.float().log_softmax(-1)
        logprobs_C = wide_CV.gather(1, targets_C[:, None])[:, 0]
        if slope:
            logits_CV.copy_(wide_CV.exp_().neg_())
            logits_CV.scatter_(1, targets_C[:, None], -logprobs_C.expm1()[:, None].to(logits_CV.dtype))
    return logprobs_C


# ---- products ----


class Joint(NamedTuple):
    """Maps of the same rows as one: rounded weights (out, in), and of their adapters A (ranks, in) and B (out, ranks), zero
    between the maps and multiplied by their scales."""

    weight: Tensor
    a: Tensor | None
    b: Tensor | None

    def of(self, x: Tensor) -> Tensor:
        y = x @ self.weight.t()
        return y if self.a is None or self.b is None else y.addmm_(x @ self.a.t(), self.b.t())

    def back(self, dy: Tensor) -> Tensor:
        """The gradient of the input."""
        dx = dy @ self.weight
        return dx if self.a is None or self.b is None else dx.addmm_(dy @ self.b, self.a)


_ROUNDED: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], Tensor]] = WeakKeyDictionary()


def _rounded(owner: nn.Module, weights: Sequence[Tensor]) -> Tensor:
    """Weights in bf16, one below the other; kept as long as they are frozen and unchanged."""
    frozen = not any(w.requires_grad for w in weights)
    version = tuple(x for w in weights for x in (w.data_ptr(), w._version))
    known = _ROUNDED.get(owner)
    if frozen and known is not None and known[0] == version:
        return known[1]
    rows = sum(len(w) for w in weights)
    found, at = torch.empty(rows, weights[0].shape[1], dtype=NARROW), 0
    for w in weights:
        found[at : at + len(w)].copy_(w.detach())
        at += len(w)
    if frozen:
        _ROUNDED[owner] = version, found
    return found


@torch.no_grad()
def joint(maps: Sequence[Map]) -> Joint:
    """The maps as one."""
    weight = _rounded(maps[0], [m.weight for m in maps])
    adapted = [m for m in maps if isinstance(m, LoraLinear)]
    if not adapted:
        return Joint(weight, None, None)
    a = torch.cat([m.lora_A for m in adapted]).to(NARROW)
    b = torch.zeros(len(weight), len(a), dtype=NARROW)
    row = column = 0
    for m in maps:
        out = m.weight.shape[0]
        if isinstance(m, LoraLinear):
            rank = len(m.lora_A)
            b[row : row + out, column : column + rank] = m.lora_B * m.scale
            column += rank
        row += out
    return Joint(weight, a, b)


def _slopes(maps: Sequence[Map], whole: Joint, dy: Tensor, x: Tensor) -> dict[int, Tensor]:
    """Gradients (fp32) of the maps' trained parameters, by their id."""
    found: dict[int, Tensor] = {}
    row = column = 0
    trained = any(m.weight.requires_grad for m in maps)
    dweight = dy.t() @ x if trained else None
    if whole.a is not None and whole.b is not None:
        da = (dy @ whole.b).t() @ x
        db = dy.t() @ (x @ whole.a.t())
    for m in maps:
        out = m.weight.shape[0]
        if dweight is not None and m.weight.requires_grad:
            found[id(m.weight)] = dweight[row : row + out].float()
        if isinstance(m, LoraLinear):
            rank = len(m.lora_A)
            found[id(m.lora_A)] = da[column : column + rank].float()
            found[id(m.lora_B)] = db[row : row + out, column : column + rank].float().mul_(m.scale)
            column += rank
        row += out
    return found


# ---- a layer ----


class _Kept:
    """What attention keeps for its backward pass, where autograd would give it a context."""

    saved_tensors: tuple[Tensor, ...] = ()
    parts: Parts = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


class Maps(NamedTuple):
    """The four products of a block, and the maps that are joined in each."""

    attend: tuple[Map, ...]
    output: tuple[Map, ...]
    gates: tuple[Map, ...]
    down: tuple[Map, ...]


def maps_of(block: Block) -> Maps | None:
    """Return the maps of a block; None if it has biases, norms of heads, shards or other kinds of maps."""
    own, mlp = block.self_attn, block.mlp
    found = Maps(
        (own.q_proj, own.k_proj, own.v_proj), (own.o_proj,), (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,)
    )
    plain = all(
        type(m) in (nn.Linear, LoraLinear) and m.bias is None and m.weight.dtype == torch.float32
        for part in found
        for m in part
    )
    sharded = any(hasattr(p, "to_local") for p in block.parameters())
    return found if plain and not sharded and not own.qk_norm else None


def fits(blocks: Sequence[Block], x_TD: Tensor) -> bool:
    """Whether the layers run here: under bf16 autocast on a CPU, uncompiled, with plain maps."""
    return (
        x_TD.device.type == "cpu"
        and x_TD.dtype == torch.float32
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == NARROW
        and all(not block.compiled and maps_of(block) is not None for block in blocks)
    )


def layer(block: Block, x_TD: Tensor, cos: Tensor, sin: Tensor, parts: Parts, *, recompute: bool) -> Tensor:
    """Return the residual stream after a block, in fp32; `recompute` keeps only its input for the backward pass.

    cos and sin are `rotary`'s.
    """
    half = cos.shape[-1] // 2
    turn = tuple(x[:, 0, :half].contiguous() for x in (cos, sin))
    trained = [p for p in block.parameters() if p.requires_grad]
    with torch.autocast("cpu", enabled=False):
        found = _Layer.apply(x_TD.contiguous(), block, turn, parts, recompute, *trained)  # type: ignore[no-untyped-call]
    return cast(Tensor, found)


class _Activations(NamedTuple):
    """What the backward pass of a layer reads besides its input."""

    inverse1_T: Tensor
    attention: _Kept
    mixed_TX: Tensor
    middle_TD: Tensor
    inverse2_T: Tensor
    gates_TX: Tensor


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        block: Block,
        turn: tuple[Tensor, Tensor],
        parts: Parts,
        recompute: bool,
        *trained: Tensor,
    ) -> Tensor:
        maps = maps_of(block)
        assert maps is not None, "the caller asked `fits`"
        joints = [joint(part) for part in maps]
        kept, out = _through(block, joints, x, turn, parts)
        if any(ctx.needs_input_grad):
            ctx.x, ctx.block, ctx.maps, ctx.joints, ctx.turn, ctx.parts = x, block, maps, joints, turn, parts
            ctx.kept, ctx.trained = None if recompute else kept, trained
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        block, joints, x, turn = ctx.block, ctx.joints, ctx.x, ctx.turn
        kept = ctx.kept or _through(block, joints, x, turn, ctx.parts)[0]
        first, second = block.input_layernorm, block.post_attention_layernorm
        attend, output, gates, down = joints
        dout = slopes[0].contiguous()
        dy = dout.to(NARROW)
        dgates, act = gated_backward(kept.gates_TX, down.back(dy))
        found = _slopes(ctx.maps.down, down, dy, act)
        del act
        normed = norm(kept.middle_TD, None, second.weight, second.eps)[1]
        found |= _slopes(ctx.maps.gates, gates, dgates, normed)
        dmiddle, narrow, dweight = norm_backward(
            gates.back(dgates),
            kept.middle_TD,
            second.weight,
            kept.inverse2_T,
            dout,
            weighs=second.weight.requires_grad,
        )
        if dweight is not None:
            found[id(second.weight)] = dweight
        found |= _slopes(ctx.maps.output, output, narrow, kept.mixed_TX)
        dmixed = output.back(narrow).view_as(kept.attention.saved_tensors[0])
        dq, dk, dv, _ = attending(ctx.parts).backward(kept.attention, dmixed)
        djoint = rotated_back(dq, dk, dv, *turn)
        normed = norm(x, None, first.weight, first.eps)[1]
        found |= _slopes(ctx.maps.attend, attend, djoint, normed)
        dx, _, dweight = norm_backward(
            attend.back(djoint), x, first.weight, kept.inverse1_T, dmiddle, weighs=first.weight.requires_grad
        )
        if dweight is not None:
            found[id(first.weight)] = dweight
        trained = ctx.trained
        ctx.x = ctx.kept = ctx.joints = ctx.trained = None  # before the layers below: memory
        return dx, None, None, None, None, *(found.get(id(p)) for p in trained)


def _through(
    block: Block, joints: Sequence[Joint], x: Tensor, turn: tuple[Tensor, Tensor], parts: Parts
) -> tuple[_Activations, Tensor]:
    own, kept = block.self_attn, _Kept()
    attend, output, gates, down = joints
    first, second = block.input_layernorm, block.post_attention_layernorm
    _, normed, inverse1 = norm(x, None, first.weight, first.eps)
    q, k, v = rotated(attend.of(normed), *turn, own.heads, own.kv_heads, own.head)
    mixed = attending(parts).forward(kept, q, k, v, parts).flatten(1)
    middle, normed, inverse2 = norm(x, output.of(mixed), second.weight, second.eps)
    both = gates.of(normed)
    out = middle + down.of(gated(both))
    return _Activations(inverse1, kept, mixed, middle, inverse2, both), out


# ---- the vocabulary head ----

CHUNK_BYTES = 128 << 20  # of logits that are held at once
FROZEN_ROWS = 512  # rows at once where the head is frozen: few enough to stay in a cache


def target_logprobs(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, *, alike: bool) -> Tensor:
    """Return log-probabilities (nats, fp32) of `targets_C`; logits exist for a chunk of rows at a time.

    The gradient of each log-probability with respect to its hidden state is computed while its logits are there, so the
    backward pass only scales it. That of the head is computed there too if all log-probabilities are expected to have
    equal weight in the loss (`alike`; another loss costs one more product); else from the kept or recomputed logits.
    """
    narrow = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == NARROW
    with torch.autocast("cpu", enabled=False):
        found = _TargetLogprobs.apply(
            hidden_CD, weight_VD, targets_C, NARROW if narrow else torch.float32, alike
        )  # type: ignore[no-untyped-call]
    return cast(Tensor, found)


class _Head:
    """The head's matrix as an owner of its rounded copy."""

    def __init__(self) -> None:
        self.known: tuple[tuple[int, int], Tensor] | None = None

    def rounded(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        if weight.dtype == dtype:
            return weight.detach()
        if weight.requires_grad:
            return weight.detach().to(dtype)
        version = (weight.data_ptr(), weight._version)
        if self.known is None or self.known[0] != version:
            self.known = version, weight.detach().to(dtype)
        return self.known[1]


_HEAD = _Head()


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, alike: bool
    ) -> Tensor:
        h, w = hidden.to(dtype), _HEAD.rounded(weight, dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        slope = needs_hidden or needs_weight
        whole = len(h) * len(w) * dtype.itemsize <= 2 * CHUNK_BYTES
        keep = needs_weight and not alike and whole
        rows = CHUNK_BYTES // (len(w) * dtype.itemsize)
        rows = len(h) if keep else max(16, rows if needs_weight else min(rows, FROZEN_ROWS))
        logprobs, dhidden = torch.empty(len(h)), torch.empty_like(h) if needs_hidden else None
        dweight: Tensor | None = None
        logits = torch.empty(min(rows, len(h)), len(w), dtype=dtype)
        for a in range(0, len(h), max(rows, 1)):
            part = h[a : a + rows]
            at = torch.mm(part, w.t(), out=logits[: len(part)])
            logprobs[a : a + rows] = scored(at, targets[a : a + rows], slope=slope)
            if dhidden is not None:
                torch.mm(at, w, out=dhidden[a : a + rows])
            if needs_weight and alike:
                dweight = _added(dweight, at.t() @ part)
        if slope:
            ctx.given = (h, w, targets, dhidden, dweight, logits if keep else None, rows, hidden.dtype)
        return logprobs

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        h, w, targets, dhidden, dweight, logits, rows, dtype = ctx.given
        ctx.given = None
        g = slopes[0]
        if dhidden is not None:
            dhidden = dhidden.to(dtype).mul_(g[:, None])
        if not ctx.needs_input_grad[1]:
            return dhidden, None, None, None, None
        if dweight is not None and bool((g == g[0]).all()):
            return dhidden, dweight.mul_(g[0]), None, None, None
        dweight = None
        scaled = h * g[:, None].to(h.dtype)
        if logits is not None:
            return dhidden, (logits.t() @ scaled).float(), None, None, None
        logits = torch.empty(min(rows, len(h)), len(w), dtype=h.dtype)
        for a in range(0, len(h), rows):
            part = h[a : a + rows]
            at = torch.mm(part, w.t(), out=logits[: len(part)])
            scored(at, targets[a : a + rows], slope=True)
            dweight = _added(dweight, at.t() @ scaled[a : a + rows])
        return dhidden, torch.zeros(w.shape) if dweight is None else dweight, None, None, None


def _added(total: Tensor | None, more: Tensor) -> Tensor:
    return more.float() if total is None else total.add_(more)

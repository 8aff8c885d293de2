"""One forward interface over KV cache slots, with three implementations: compiled C++, torch, transformers.

In: rows, each a token of a slot at a position; prompts and answers may be mixed. Out: logits of the rows
listed in `read`. Knows nothing of requests or sampling.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from demeanor.core.errors import EngineError
from demeanor.engine.cache_budget import PROCESS, CacheBudget
from demeanor.engine.placement import DecodingPlace
from demeanor.engine.prefixes import PagePrefixes, Prefixes, SlotPrefixes
from demeanor.model import native
from demeanor.model.grouped_modules import dequantised
from demeanor.model.hf import ForeignModel
from demeanor.model.llama import KVCache
from demeanor.model.native import NativeStep
from demeanor.model.packed_size import require_room, require_room_in_fp32
from demeanor.model.pages import DTYPES, PAGE, CacheFormat, PagedCache, page_bytes

if TYPE_CHECKING:
    from demeanor.model.llama import Llama


@dataclass(slots=True)
class Rows:
    """Tokens to feed in one step; rows of one slot are adjacent and in order. `read`: rows whose logits are
    needed."""

    tokens: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)

    def add(self, tokens: tuple[int, ...], slot: int, start: int) -> None:
        """Append the next tokens of a slot, from position `start` on."""
        self.tokens += tokens
        self.slots += [slot] * len(tokens)
        self.positions += range(start, start + len(tokens))


class Forward(Protocol):
    """A model over the slots of its KV cache; used by one thread."""

    vocab_size: int
    placement: DecodingPlace
    num_bytes: int  # of weights, and of a cache that no CacheBudget bounds
    capacity: (
        int | None
    )  # tokens of all sequences that the cache holds at once; None: a whole context in every slot
    exact: bool  # a token read in a run of many gives the same bits as one fed alone

    def run(self, rows: Rows) -> NativeStep:
        """Write the rows' keys and values and return the logits of the rows in `read`."""

    def prefixes(self, num_slots: int) -> Prefixes:
        """Return who gives out the cache's slots: now they are all free, and nothing is known."""

    def hidden(self, rows: Rows) -> Tensor:
        """Write the rows' keys and values and return the final hidden states of the rows in `read`:
        hidden_RD."""


def forward_of(
    model: Llama | ForeignModel,
    num_slots: int,
    max_tokens: int,
    budget: CacheBudget | None = None,
    compute: native.Compute = "fp32",
    cache_format: CacheFormat = "fp32",
) -> Forward:
    """Return the fastest forward that runs this model here, with its cache of keys and values in `cache_format`.

    `budget` bounds what the pages of the compiled forward take, together with those of others; None: with all of this process. Its
    table never names more than all slots can fill. Raises EngineError if the bound holds no token, if `compute` is bf16 and compiled code
    cannot run the model, or if transformers runs it and `cache_format` is not fp32.
    """
    if isinstance(model, ForeignModel):
        if compute == "bf16":
            raise _no_bf16()
        if cache_format != "fp32":
            raise EngineError(
                f"weights.cache: {cache_format} needs a Llama, Mistral, Qwen2 or Qwen3; this model runs through "
                "transformers, which keeps keys and values in the model's own format. Leave weights.cache out"
            )
        return TransformersForward(model, num_slots)
    if native.fits(model) and native.build() is not None:
        budget, blocks = budget or PROCESS, -(-max_tokens // PAGE)
        size = page_bytes(model.config, cache_format)
        weights = require_room(model, compute, 2 * size) if isinstance(model, torch.nn.Module) else 0
        pages = budget.num_pages(size, blocks, num_slots * blocks + 1, weights)
        cache = PagedCache(model.config, num_slots, max_tokens, pages, cache_format)
        return Compiled(model, cache, budget, compute)
    if isinstance(model, torch.nn.Module):
        require_room_in_fp32(model)
        dequantised(model)  # torch has no products of groups
    head = model.head()
    if compute == "bf16" and head.dtype != torch.bfloat16:
        raise _no_bf16()
    dtype = head.dtype if cache_format == "fp32" else DTYPES[cache_format]
    return Torch(model, KVCache(model.config, num_slots, max_tokens, dtype, head.device))


def _no_bf16() -> EngineError:
    return EngineError(
        "weights.compute: bf16 needs the compiled decoder: a Llama, Mistral, Qwen2 or Qwen3 on a CPU with a C++ compiler, or on a GPU. "
        "Set weights.compute to fp32"
    )


class Compiled:
    """One call into compiled code per step; bit-equal whatever else is in the batch."""

    exact = True

    def __init__(
        self, model: Llama, cache: PagedCache, budget: CacheBudget, compute: native.Compute = "fp32"
    ) -> None:
        self._cache, self._native = cache, native.Native(model, cache, compute=compute)
        self._budget = budget
        self._prefixes: PagePrefixes | None = None
        self.vocab_size = model.config.vocab_size
        self.num_bytes = self._native.num_bytes
        formats = "+".join(sorted(self._native.formats))
        self.placement = DecodingPlace("cpu", formats, compute, _name(cache.data.dtype))
        self.capacity: int | None = PAGE * (cache.num_pages - 1)

    def run(self, rows: Rows) -> NativeStep:
        return self._native.forward(rows.tokens, rows.slots, rows.positions, rows.read)

    def hidden(self, rows: Rows) -> Tensor:
        return self._native.hidden(rows.tokens, rows.slots, rows.positions, rows.read)

    def prefixes(self, num_slots: int) -> Prefixes:
        if self._prefixes is not None:
            self._prefixes.close()
        self._prefixes = PagePrefixes(self._cache, num_slots, self._budget)
        return self._prefixes


class Torch:
    """The model's own `prefill` and `step`: single rows of many slots together, longer runs slot by slot."""

    capacity: int | None = None
    exact = False

    def __init__(self, model: Llama, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self.vocab_size = model.config.vocab_size
        head = model.head()
        self.num_bytes = cache.num_bytes + head.element_size() * sum(
            p.numel() for p in getattr(model, "parameters", list)()
        )
        own = _name(head.dtype)
        self.placement = DecodingPlace(head.device.type, own, own, _name(cache.keys[0].dtype))

    def run(self, rows: Rows) -> NativeStep:
        return _step(F.linear(self.hidden(rows), self._model.head()))

    def hidden(self, rows: Rows) -> Tensor:
        head = self._model.head()
        bounds = run_bounds(rows)
        ones = sorted(
            (a for a, b in pairwise(bounds) if b == a + 1 and rows.positions[a]), key=lambda i: rows.slots[i]
        )
        place, parts, size = {}, [], 0  # where each row's hidden state stands in the parts' concatenation
        if ones:
            tokens_N, slots_N, positions_N = (
                torch.tensor([x[i] for i in ones], device=head.device)
                for x in (rows.tokens, rows.slots, rows.positions)
            )
            parts.append(self._model.step(tokens_N, slots_N, positions_N, self._cache))
            place, size = {i: at for at, i in enumerate(ones)}, len(ones)
        for a, b in pairwise(bounds):
            if a not in place:
                chunk_T = torch.tensor(rows.tokens[a:b], device=head.device)
                parts.append(self._model.prefill(chunk_T, rows.slots[a], rows.positions[a], self._cache))
                place |= {a + i: size + i for i in range(b - a)}
                size += b - a
        read = torch.tensor([place[i] for i in rows.read], dtype=torch.long, device=head.device)
        return torch.cat(parts)[read].to(head.dtype)

    def prefixes(self, num_slots: int) -> Prefixes:
        return SlotPrefixes(num_slots, self._cache.copy)


class TransformersForward:
    """A transformers model with one transformers cache for each slot."""

    capacity: int | None = None
    exact = False

    def __init__(self, model: ForeignModel, num_slots: int) -> None:
        self._inner: Any = model.inner
        self._inner.eval()
        self._device = next(model.parameters()).device
        self._caches: list[Any] = [None] * num_slots
        self._tokens: list[list[int]] = [[] for _ in range(num_slots)]
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        own = _name(next(model.parameters()).dtype)
        self.placement = DecodingPlace(self._device.type, own, own, own)

    def run(self, rows: Rows) -> NativeStep:
        return _step(self._read(rows, hidden=False))

    def hidden(self, rows: Rows) -> Tensor:
        return self._read(rows, hidden=True)

    def prefixes(self, num_slots: int) -> Prefixes:
        return SlotPrefixes(num_slots, self.copy)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one slot to another."""
        self._caches[target] = copy.deepcopy(self._caches[source])
        self._tokens[target] = list(self._tokens[source])
        self._truncate(target, tokens)

    def _read(self, rows: Rows, *, hidden: bool) -> Tensor:
        parts = []
        for a, b in pairwise(run_bounds(rows)):
            slot = rows.slots[a]
            self._truncate(slot, rows.positions[a])
            out = self._extend(slot, rows.tokens[a:b], hidden=hidden)
            found = out.hidden_states[-1][0] if hidden else out.logits[0]
            read = [i - a for i in rows.read if a <= i < b]
            parts.append(found[torch.tensor(read, dtype=torch.long, device=self._device)])
        return torch.cat(parts)

    def _extend(self, slot: int, tokens: list[int], *, hidden: bool = False) -> Any:
        if self._caches[slot] is None:
            from transformers import DynamicCache

            self._caches[slot] = DynamicCache(config=self._inner.config)  # type: ignore[no-untyped-call,unused-ignore]
        try:
            out = self._inner(
                input_ids=torch.tensor([tokens], device=self._device),
                past_key_values=self._caches[slot],
                use_cache=True,
                output_hidden_states=hidden,
            )
        except BaseException:  # some of its layers may have stored the tokens, and others not
            self._caches[slot] = None
            raise
        self._tokens[slot] += tokens
        return out

    def _truncate(self, slot: int, length: int) -> None:
        """Make a slot contain exactly its first `length` tokens."""
        before = self._tokens[slot]
        if len(before) == length and (self._caches[slot] is not None or not length):
            return
        self._tokens[slot] = before[:length]
        try:
            if length == 0:
                raise ValueError("no token is left")
            self._caches[slot].crop(length)
        except (ValueError, RuntimeError, NotImplementedError, AttributeError):
            # A sliding window that has moved or a recurrent state cannot be cropped: read the tokens again.
            self._caches[slot], self._tokens[slot] = None, []
            if length:
                self._extend(slot, before[:length])


def run_bounds(rows: Rows) -> list[int]:
    """Return the indices at which the slot changes, and the number of rows as the last."""
    starts = [i for i, slot in enumerate(rows.slots) if i == 0 or rows.slots[i - 1] != slot]
    return [*starts, len(rows.slots)]


NAMES = {dtype: name for name, dtype in DTYPES.items()}


def _name(dtype: torch.dtype) -> str:
    return NAMES.get(dtype) or str(dtype).removeprefix("torch.")


def _step(logits_RV: Tensor) -> NativeStep:
    """Choosing tokens is the CPU's: a GPU's logits are brought there."""
    logits_RV = logits_RV.float().cpu()
    return NativeStep(logits_RV, logits_RV.argmax(-1), logits_RV.logsumexp(-1))

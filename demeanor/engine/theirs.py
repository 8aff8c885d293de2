"""A forward over slots for architectures that only transformers knows: its own model, one slot at a time, each with its own cache.

In: rows, as in forward.py. Out: what those that are read say. Slower than ours (nothing is batched), the same in everything else:
sampling, forms, log-probabilities, shared prefixes, cancellation. A cache that cannot be cut is filled again from its tokens.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from demeanor.engine.forward import Rows
from demeanor.model.native import NativeStep

if TYPE_CHECKING:
    from demeanor.model.hf import ForeignModel


class TransformersForward:
    """transformers' model over `num_slots` caches."""

    exact = False

    def __init__(self, model: ForeignModel, num_slots: int) -> None:
        self._inner: Any = model.inner
        self._inner.eval()
        self._device = next(model.parameters()).device
        self._caches: list[Any] = [None] * num_slots
        self._tokens: list[list[int]] = [[] for _ in range(num_slots)]
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())

    def run(self, rows: Rows) -> NativeStep:
        logits_RV = self._read(rows, "logits").float()
        return NativeStep(logits_RV, logits_RV.argmax(-1), logits_RV.logsumexp(-1))

    def hidden(self, rows: Rows) -> Tensor:
        return self._read(rows, "hidden")

    def copy(self, source: int, target: int, tokens: int) -> None:
        self._caches[target] = copy.deepcopy(self._caches[source])
        self._tokens[target] = list(self._tokens[source])
        self._cut(target, tokens)

    def _read(self, rows: Rows, wanted: str) -> Tensor:
        runs = [i for i, slot in enumerate(rows.slots) if i == 0 or rows.slots[i - 1] != slot] + [
            len(rows.slots)
        ]
        parts = []
        for a, b in pairwise(runs):
            slot = rows.slots[a]
            self._cut(slot, rows.positions[a])
            out = self._go_on(slot, rows.tokens[a:b], hidden=wanted == "hidden")
            found = out.hidden_states[-1][0] if wanted == "hidden" else out.logits[0]
            parts.append(
                found[
                    torch.tensor(
                        [i - a for i in rows.read if a <= i < b], dtype=torch.long, device=self._device
                    )
                ]
            )
        return torch.cat(parts)

    def _go_on(self, slot: int, tokens: list[int], *, hidden: bool = False) -> Any:
        if self._caches[slot] is None:
            from transformers import DynamicCache

            self._caches[slot] = DynamicCache(config=self._inner.config)  # type: ignore[no-untyped-call,unused-ignore]
        out = self._inner(
            input_ids=torch.tensor([tokens], device=self._device),
            past_key_values=self._caches[slot],
            use_cache=True,
            output_hidden_states=hidden,
        )
        self._tokens[slot] += tokens
        return out

    def _cut(self, slot: int, length: int) -> None:
        """Make a slot hold exactly its first `length` tokens."""
        before = self._tokens[slot]
        if len(before) == length:
            return
        self._tokens[slot] = before[:length]
        try:
            if length == 0:
                raise ValueError("nothing is left of it")
            self._caches[slot].crop(length)
        except (
            ValueError,
            RuntimeError,
            NotImplementedError,
            AttributeError,
        ):  # a sliding window that has slid, a state without places
            self._caches[slot], self._tokens[slot] = None, []
            if length:
                self._go_on(slot, before[:length])

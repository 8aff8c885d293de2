"""Keys and values of many sequences in pages, as the compiled forward reads them.

In: a model's shape, a number of slots, the longest context, and how many pages there are. Out: memory, and a table
that says which page holds which tokens of a slot. Knows no tokens; who shares pages decides with whom.
"""

from __future__ import annotations

import mmap
from typing import Literal, TypeAlias

import torch

from demeanor.core import hardware
from demeanor.core.errors import CheckpointError
from demeanor.model.llama import Config

PAGE = 32  # tokens, as in kernels/attention.h
CacheFormat: TypeAlias = Literal["fp32", "bf16", "fp16"]
"""What keys and values are kept in; sums over them are fp32, products in bf16 of bf16."""
DTYPES: dict[CacheFormat, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
CELLS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in kernels/attention.h


def page_bytes(config: Config, format: CacheFormat = "fp32") -> int:
    """Return the bytes of a page: the keys and values of PAGE tokens in all layers; a head is rounded up to 16."""
    return DTYPES[format].itemsize * config.num_hidden_layers * _stride(config, DTYPES[format])


def _stride(config: Config, dtype: torch.dtype) -> int:
    """Return the numbers between two pages of a layer: an odd number of cache lines (see kernels/attention.h)."""
    depth = -(-config.head_dim // 16) * 16
    return 2 * config.num_key_value_heads * PAGE * depth + 64 // dtype.itemsize


class PagedCache:
    """Keys and values of `num_slots` sequences of up to `max_tokens` in pages of PAGE tokens, in one of three formats.

    Page `table[slot, i]` holds tokens PAGE i to PAGE (i + 1) - 1 of a slot. At first every slot has pages of its own, if
    `num_pages` are enough; whoever shares pages sets the table. Memory is taken when a page is written.
    """

    def __init__(
        self,
        config: Config,
        num_slots: int,
        max_tokens: int,
        num_pages: int | None = None,
        format: CacheFormat = "fp32",
    ) -> None:
        self.num_slots, self.max_tokens = num_slots, max_tokens
        blocks = -(-max_tokens // PAGE)
        self.num_pages = num_slots * blocks if num_pages is None else num_pages
        self.page_bytes, dtype = page_bytes(config, format), DTYPES[format]
        memory, needed = hardware.memory_bytes(), self.num_pages * self.page_bytes
        if memory is not None and needed > memory:
            raise CheckpointError(
                f"{num_slots} slots of {max_tokens} tokens need {needed / 2**30:.1f} GiB for keys and values; this "
                f"machine has {memory / 2**30:.1f} GiB. Lower max_position_embeddings in the checkpoint's "
                "config.json, the longest context that is served"
            )
        self._memory = hardware.memory_on_demand(needed)
        shape = (config.num_hidden_layers, self.num_pages, _stride(config, dtype))
        self.data = torch.frombuffer(self._memory, dtype=dtype).view(shape)
        self._held = bytearray(self.num_pages)  # 1: `hold` was called, and `give_back` not yet
        self.table = torch.arange(num_slots * blocks, dtype=torch.int32).view(num_slots, blocks)

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages, written or not."""
        return self.num_pages * self.page_bytes

    def hold(self, page: int) -> None:
        """Count a page as one that is written, until it is given back."""
        self._held[page] = 1

    def give_back(self, page: int) -> None:
        """Return the memory of a page to the system, where the system can take it (Linux); what was written is lost."""
        if not self._held[page]:
            return
        self._held[page] = 0
        size, whole = self.page_bytes // len(self.data), mmap.PAGESIZE
        if not hasattr(mmap, "MADV_DONTNEED") or size < whole:
            return
        # The system's pages at both ends belong to the neighbours too, and go with the last of the two.
        before = page > 0 and not self._held[page - 1]
        after = page + 1 < self.num_pages and not self._held[page + 1]
        for layer in range(len(self.data)):
            start = (layer * self.num_pages + page) * size
            end = start + size
            start = (start if before else start + whole - 1) // whole * whole
            end = (end + whole - 1 if after else end) // whole * whole
            self._memory.madvise(mmap.MADV_DONTNEED, start, end - start)

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page."""
        self.data[:, target] = self.data[:, source]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the pages of the first `tokens` tokens of one slot to another (a shared prefix)."""
        pages = -(-tokens // PAGE)
        for to, of in zip(self.table[target, :pages].tolist(), self.table[source, :pages].tolist()):
            self.copy_page(of, to)

"""Memory of a training step on a CPU before it runs: weights, gradients, moments, activations, logits.

In: the shape of a Llama, the largest micro-batch, and how it is trained. Out: bytes of each. The terms follow the code of
`model/llama.py`, `model/fused.py`, `model/heads.py` and `model/attention.py`; `tests/training/test_train_memory.py` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from demeanor.core import hardware
from demeanor.data.trees import Tree, num_scored
from demeanor.model import attention_kernel
from demeanor.model.attention import KEEP_BYTES
from demeanor.model.fused import CHUNK_BYTES, FROZEN_ROWS
from demeanor.model.heads import LARGE, WIDE
from demeanor.model.llama import Config
from demeanor.model.packed_size import size

PROCESS = 370 << 20  # Python, torch and its libraries
SHARE = 0.9  # of the machine's memory, from which on a warning is given


class MicroBatch(NamedTuple):
    """The largest micro-batch: tokens, scored tokens, and (query, key) pairs of one attention head."""

    tokens: int
    scored: int
    pairs: int


class Memory(NamedTuple):
    """Bytes of a training step. Activations and logits are freed while the gradients are made."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return PROCESS + self.weights + self.optimizer + max(self.gradients, self.activations + self.logits)

    def __str__(self) -> str:
        parts = zip(self._fields, self)
        return f"{size(self.total)} ({', '.join(f'{name} {size(count)}' for name, count in parts if count)})"


def largest(trees: Sequence[Tree], steps: Sequence[Sequence[Sequence[int]]]) -> MicroBatch:
    """The micro-batch with the most tokens of some steps of a schedule."""
    chosen = max((part for step in steps for part in step), key=lambda p: sum(trees[i].num_tokens for i in p))
    rows = [trees[i] for i in chosen]
    pairs = sum(t.num_tokens * t.longest // 2 for t in rows)
    return MicroBatch(sum(t.num_tokens for t in rows), sum(map(num_scored, rows)), pairs)


def estimate(
    config: Config,
    micro: MicroBatch,
    *,
    rank: int = 0,
    bf16: bool = False,
    recompute: bool = False,
    head: bool = True,
) -> Memory:
    """Memory of one AdamW step. `rank`: of adapters on every map, 0 where all weights are trained; `head`: a policy."""
    D, F, V, L = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_hidden_layers
    attend, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    maps = [(attend, D), (kv, D), (kv, D), (D, attend), (F, D), (F, D), (D, F)]
    trunk = L * (sum(out * inside for out, inside in maps) + 2 * D) + D
    vocabulary = V * D * (1 if config.tie_word_embeddings or not head else 2)
    trained = L * sum(rank * (out + inside) for out, inside in maps) if rank else trunk + vocabulary
    weights = 4 * (trunk + vocabulary + (trained if rank else 0)) + bf16 * 2 * (
        trunk + (V * D if head else 0)
    )
    T, C = micro.tokens, micro.scored
    if bf16:
        layer = T * (8 * D + 2 * (2 * attend + 2 * kv) + 4 * F)
        input_, working = 4 * T * D, T * (8 * D + 8 * F)
    else:
        layer = 4 * T * (5 * D + 2 * attend + 4 * kv + 4 * F)
        layer += 4 * T * rank * len(maps)
        if rank:  # the low-rank product and its multiple are kept
            layer += 4 * T * sum(out for out, _ in maps)
        input_, working = 4 * T * D, 4 * T * (2 * D + 3 * F)
        if (
            recompute and rank
        ):  # measured: sums and multiples of a layer that is computed again are freed late
            working += 24 * T * sum(out for out, _ in maps)
    if bf16 and attention_kernel.suits(D, config.head_dim):
        layer += 4 * T * config.num_attention_heads  # the logarithms of the rows' sums
    else:
        kept = config.num_attention_heads * micro.pairs * (2 if bf16 else 4) * 2
        layer += kept if kept <= KEEP_BYTES else 0
    activations = (L * input_ + layer if recompute else L * layer) + working
    logits = 0
    if head and V >= WIDE:
        item = 2 if bf16 else 4
        whole = C * V * item
        chunk = min(whole, FROZEN_ROWS * V * item, CHUNK_BYTES) if rank else min(whole, CHUNK_BYTES)
        logits = chunk + C * D * 8 + (0 if rank else (4 + item) * V * D)
    elif head:
        logits = min(3 * C * V * 4, 3 * LARGE)
    return Memory(weights, 4 * trained, 8 * trained, activations, logits)


def exceeds(found: Memory) -> bool:
    """True if a step probably needs more than this machine has."""
    there = hardware.memory_bytes()
    return there is not None and found.total > SHARE * there


def warning(found: Memory, *, rank: int, recompute: bool) -> str | None:
    """What to change if a step needs more than this machine has; None if it fits."""
    there = hardware.memory_bytes()
    if there is None or not exceeds(found):
        return None
    ways = [] if rank else ["an adapter (adapter: {rank: 16})"]
    ways += [] if recompute else ["recompute: true (activation checkpointing)"]
    ways.append("shorter rows (max_tokens), fewer of them a step (batch_rows)")
    return (
        f"WARNING: a step needs about {found}, this machine has {size(there)}; the system may stop the run. "
        f"Smaller: {', '.join(ways)}"
    )

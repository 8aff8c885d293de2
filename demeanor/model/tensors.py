"""The tensors that cross function boundaries; a name ends in its shape.

T tokens in the batch, C scored tokens, B branches (completions), N trees (prompts), V vocabulary, D width, H
heads, P pairs. A batch is a flat, unpadded list of *token trees*: a prompt segment and the branches that
share it. Each branch starts by repeating the prompt's last token (same position), so every scored position
has exactly one label:
  prompt  a b c      branches  x y | z      tokens_T  a b | c x y | c z      positions_T  0 1 | 2 3 4 | 2 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MISMATCHED = -1  # label of a completion to another prompt: no loss, KTO estimates the KL term with it
UNLABELLED = -2  # label of a ranked completion that nobody called safe or harmful


class Segment(NamedTuple):
    """Tokens `start:end` attend to the earlier ranges in `context`, in order, then causally to themselves."""

    start: int
    end: int
    context: tuple[tuple[int, int], ...] = ()


class TokenBatch(NamedTuple):
    """Trees ready for one forward pass; int64 indices, `rank_B` 0 is the best completion of its tree."""

    tokens_T: Tensor
    positions_T: Tensor
    segments: tuple[Segment, ...]
    scored_C: Tensor  # index into T of the position whose hidden state predicts the target
    targets_C: Tensor  # the token to predict there
    branch_C: Tensor  # branch each scored token belongs to
    last_B: Tensor  # index into T of each branch's last token (reward models read it)
    tree_B: Tensor  # tree each branch belongs to
    rank_B: Tensor  # rank of each branch within its tree
    margin_N: Tensor | None = None  # strength of each tree's preference
    reference_C: Tensor | None = None  # frozen reference's log-probs (nats) of targets_C
    label_B: Tensor | None = None  # unpaired rows: 1 desirable, 0 undesirable, MISMATCHED;
    # ranked rows: 1 safe, 0 harmful, UNLABELLED; None without labels
    # Completions that a policy sampled (online objectives):
    sampled_C: Tensor | None = None  # log-probs (nats) of targets_C when they were drawn
    advantage_C: Tensor | None = None
    value_C: Tensor | None = None  # the critic's value before each target, when it was drawn
    return_C: Tensor | None = None  # what the critic should have said
    temperature_C: Tensor | None = None  # at which each target was drawn; None: 1
    kept_K: Tensor | None = None  # truncated sampling: the tokens that each target was drawn from, ragged
    kept_of_K: Tensor | None = None  # index into C of each of kept_K; a target without any had all tokens

    @property
    def num_branches(self) -> int:
        return int(self.tree_B.numel())


class Outputs(NamedTuple):
    """A model's outputs for a batch: log-probabilities (nats) of `targets_C`, or one reward per branch.

    `collision_C` is log sum_v p(v)^2 (nats) and `entropy_C` the entropy (nats) where `targets_C` are
    predicted, both without gradient and only if an objective needs them. `values_C` are a critic's.
    """

    logprobs_C: Tensor | None = None
    rewards_B: Tensor | None = None
    collision_C: Tensor | None = None
    entropy_C: Tensor | None = None
    values_C: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """A sum and the number of its terms; the loop divides once per step, over all micro-batches and devices.

    `metrics` holds (sum, count) pairs under TRL's names, detached, divided the same way.
    """

    total: Tensor
    count: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]]


def branch_sums(values_C: Tensor, batch: TokenBatch) -> Tensor:
    """Sum scored-token values per branch: values_C -> sums_B."""
    return values_C.new_zeros(batch.num_branches).index_add(0, batch.branch_C, values_C)


def concatenate(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Return one batch with the trees of several, in order; a field that a batch with trees lacks is None."""
    batches = [b for b in batches if b.num_branches] or batches[:1]
    tokens = _offsets([b.tokens_T.numel() for b in batches])
    branches = _offsets([b.num_branches for b in batches])
    trees = _offsets([int(b.tree_B.max()) + 1 if b.tree_B.numel() else 0 for b in batches])
    scored = _offsets([b.scored_C.numel() for b in batches])

    def joined(name: str, offsets: Sequence[int] | None = None) -> Tensor | None:
        found = [getattr(b, name) for b in batches]
        if any(x is None for x in found):
            return None
        return torch.cat(found if offsets is None else [x + offset for x, offset in zip(found, offsets)])

    segments = tuple(
        Segment(s.start + at, s.end + at, tuple((a + at, z + at) for a, z in s.context))
        for b, at in zip(batches, tokens)
        for s in b.segments
    )
    placed = {
        "scored_C": tokens,
        "last_B": tokens,
        "branch_C": branches,
        "tree_B": trees,
        "kept_of_K": scored,
    }
    fields = {
        name: segments if name == "segments" else joined(name, placed.get(name))
        for name in TokenBatch._fields
    }
    return TokenBatch(**fields)  # type: ignore[arg-type]


def _offsets(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]


def branch_lengths(batch: TokenBatch) -> Tensor:
    """Return the number of scored tokens of each branch, lengths_B (int64)."""
    return torch.bincount(batch.branch_C, minlength=batch.num_branches)


def preference_pairs(batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return all pairs of a tree with different ranks: (chosen_P, rejected_P, tree_P)."""
    same_tree = batch.tree_B[:, None] == batch.tree_B[None, :]
    better = batch.rank_B[:, None] < batch.rank_B[None, :]
    chosen_P, rejected_P = (same_tree & better).nonzero(as_tuple=True)
    return chosen_P, rejected_P, batch.tree_B[chosen_P]

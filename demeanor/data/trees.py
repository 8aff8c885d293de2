"""Rows to token trees, and trees to the flat batch that models read.

In: Example, Preference, Unpaired and a template. Out: Tree (a prompt and its branches), TokenBatch (layout:
model/tensors.py), packed rows of documents. Knows no models, losses or files.
"""

from __future__ import annotations

import bisect
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch

from demeanor.core.errors import DataError
from demeanor.core.types import Example, Preference, Unpaired
from demeanor.model.tensors import MISMATCHED, UNLABELLED, Segment, TokenBatch
from demeanor.text.template import Rendered, Template
from demeanor.text.tokenizer import Tokenizer


class Branch(NamedTuple):
    """One completion; `trained[i]` is True if token i carries loss."""

    tokens: tuple[int, ...]
    trained: tuple[bool, ...]


class Tree(NamedTuple):
    """A prompt and its completions; `ranks` (0 is best) orders them, `source` names the row.

    `labels`, one for each branch: of unpaired rows 1 desirable, 0 undesirable, MISMATCHED; of a preference
    that says it 1 safe, 0 harmful, UNLABELLED.
    """

    prompt: tuple[int, ...]
    branches: tuple[Branch, ...]
    ranks: tuple[int, ...] = (0,)
    margin: float | None = None
    source: str = ""
    labels: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that a model computes for this tree (the last tokens of branches are only targets)."""
        return max(0, len(self.prompt) - 1) + sum(len(b.tokens) - (not self.prompt) for b in self.branches)

    @property
    def longest(self) -> int:
        """Tokens of the longest path from prompt to branch end: what must fit in the context."""
        return len(self.prompt) + max(len(b.tokens) for b in self.branches)


def example_tree(example: Example, template: Template, tokenizer: Tokenizer) -> Tree:
    """Return one branch from the first trained token on, after the rest as prompt; plain text is one branch.

    Raises DataError if no token carries loss.
    """
    if example.text is not None:
        tokens = tokenizer.document(example.text)
        trained = [False] + [True] * (len(tokens) - 1)
        return Tree((), (_trimmed(tokens, trained, example.source),), source=example.source)
    rendered = template.render(
        example.messages, example.tools, trained_from=example.trained_from, kwargs=example.template_kwargs
    )
    start = next((i for i, trained in enumerate(rendered.trained) if trained), len(rendered.tokens))
    branch = _trimmed(rendered.tokens[start:], rendered.trained[start:], example.source)
    return Tree(tuple(rendered.tokens[:start]), (branch,), source=example.source)


def preference_tree(preference: Preference, template: Template) -> Tree:
    """Return one branch for each completion after the shared prompt.

    Raises DataError if a completion trains nothing or its rendering does not start with the rendered prompt.
    """
    kwargs = preference.template_kwargs
    prompt = template.render(preference.prompt, preference.tools, generate=True, kwargs=kwargs).tokens
    branches = []
    for i, completion in enumerate(preference.completions):
        messages = (*preference.prompt, *completion)
        whole: Rendered = template.render(
            messages, preference.tools, trained_from=len(preference.prompt), kwargs=kwargs
        )
        where = f"{preference.source}: completion {i}"
        if whole.tokens[: len(prompt)] != prompt:
            raise DataError(
                f"{where}: template {template.name} writes the prompt differently when an answer follows; "
                "wanted the same tokens (does the completion begin with an assistant message?)"
            )
        branches.append(_trimmed(whole.tokens[len(prompt) :], whole.trained[len(prompt) :], where))
    labels = tuple(UNLABELLED if safe is None else int(safe) for safe in preference.safe)
    return Tree(
        tuple(prompt), tuple(branches), preference.ranks, preference.margin, preference.source, labels
    )


def unpaired_tree(row: Unpaired | Preference, template: Template) -> Tree:
    """Return labelled branches: one for an Unpaired, and for a preference each completion, the best labelled
    1.

    Raises DataError for a ranking of more than two ranks, whose middle ranks have no clear label.
    """
    if isinstance(row, Unpaired):
        pair = Preference(
            row.prompt, (row.completion,), (0,), row.tools, None, row.source, row.template_kwargs
        )
        return preference_tree(pair, template)._replace(labels=(int(row.desirable),))
    if len(set(row.ranks)) != 2:
        raise DataError(
            f"{row.source or 'row'}: ranks {list(row.ranks)}; wanted exactly two different ranks, to label "
            "one desirable and the other not. Write one row with a label for each completion"
        )
    labels = tuple(int(rank == min(row.ranks)) for rank in row.ranks)
    return preference_tree(row, template)._replace(ranks=(0,) * len(labels), margin=None, labels=labels)


def mismatched(trees: Sequence[Tree], seed: int) -> Iterator[Tree]:
    """Add to each tree a branch labelled MISMATCHED: the first completion of a tree with another prompt.

    That tree is the next in a circular order drawn from the seed. Raises DataError if all prompts are equal.
    """
    order = list(range(len(trees)))
    random.Random(f"mismatched/{seed}").shuffle(order)
    if all(tree.prompt == trees[0].prompt for tree in trees):
        raise DataError(
            f"{len(trees)} rows share one prompt; wanted at least two prompts, "
            "to pair each with another's completion"
        )
    other = next(order[k] for k in range(len(order)) if trees[order[k]].prompt != trees[order[-1]].prompt)
    partner: dict[int, int] = {}
    following = order[0]
    for i in reversed(order):  # the neighbour if its prompt differs, else the neighbour's own partner
        if trees[following].prompt != trees[i].prompt:
            other = following
        partner[i], following = other, i
    return (
        tree._replace(
            branches=(*tree.branches, trees[partner[i]].branches[0]),
            ranks=(0,) * (len(tree.branches) + 1),
            labels=(*tree.labels, MISMATCHED),
        )
        for i, tree in enumerate(trees)
    )


def collate(
    trees: Sequence[Tree], *, read_last: bool = False, reference: Sequence[Sequence[float]] | None = None
) -> TokenBatch:
    """Lay trees out flat, without padding; `read_last` also feeds each branch's last token (reward models).

    `reference` holds, for each tree, the reference's log-probabilities (nats) of its scored tokens in order.
    """
    flat = _Flat()
    for tree in trees:
        flat.add(tree, read_last)
    margins = [tree.margin for tree in trees]
    has_labels = any(tree.labels for tree in trees)
    return TokenBatch(
        tokens_T=_ints(flat.tokens),
        positions_T=_ints(flat.positions),
        segments=tuple(flat.segments),
        scored_C=_ints(flat.scored),
        targets_C=_ints(flat.targets),
        branch_C=_ints(flat.branch),
        last_B=_ints(flat.last),
        tree_B=_ints([n for n, tree in enumerate(trees) for _ in tree.branches]),
        rank_B=_ints([rank for tree in trees for rank in tree.ranks]),
        margin_N=None if all(m is None for m in margins) else torch.tensor([m or 0.0 for m in margins]),
        reference_C=None if reference is None else _reference(trees, reference),
        label_B=_ints([x for tree in trees for x in _labels(tree)]) if has_labels else None,
    )


def num_scored(tree: Tree) -> int:
    """Return how many tokens of a tree carry loss; without a prompt the first token is not predicted."""
    return sum(sum(b.trained[0 if tree.prompt else 1 :]) for b in tree.branches)


class _Flat:
    """The growing lists of a batch."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.scored: list[int] = []
        self.targets: list[int] = []
        self.branch: list[int] = []
        self.last: list[int] = []

    def add(self, tree: Tree, read_last: bool) -> None:
        shared = max(0, len(tree.prompt) - 1)
        context = ((len(self.tokens), len(self.tokens) + shared),) if shared else ()
        if shared:
            self._segment(tree.prompt[:-1], 0, ())
        for branch in tree.branches:
            path = (*tree.prompt[-1:], *branch.tokens)  # repeats the prompt's last token at its position
            start = len(self.tokens)
            self._segment(path if read_last else path[:-1], shared, context)
            self.last.append(len(self.tokens) - 1)
            skipped = len(path) - len(branch.tokens)
            for i, (target, trained) in enumerate(zip(branch.tokens, branch.trained), start=skipped):
                if trained and i:
                    self.scored.append(start + i - 1)
                    self.targets.append(target)
                    self.branch.append(len(self.last) - 1)

    def _segment(self, tokens: Sequence[int], position: int, context: tuple[tuple[int, int], ...]) -> None:
        start = len(self.tokens)
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        self.segments.append(Segment(start, len(self.tokens), context))


def _trimmed(tokens: list[int], trained: list[bool], source: str) -> Branch:
    """Return a branch up to its last trained token; nothing after it carries loss."""
    end = max((i + 1 for i, flag in enumerate(trained) if flag), default=0)
    if not end:
        raise DataError(
            f"{source or 'row'}: no token carries loss; wanted an assistant message (from `trained_from` on) "
            "or a text of at least one token"
        )
    return Branch(tuple(tokens[:end]), tuple(trained[:end]))


def _labels(tree: Tree) -> tuple[int, ...]:
    if not tree.labels and len(set(tree.ranks)) > 1:  # a comparison without labels beside some with
        return (UNLABELLED,) * len(tree.branches)
    if len(tree.labels) != len(tree.branches):
        raise DataError(
            f"{tree.source or 'tree'}: {len(tree.labels)} labels for {len(tree.branches)} completions; "
            "wanted one each"
        )
    return tree.labels


def _reference(trees: Sequence[Tree], reference: Sequence[Sequence[float]]) -> torch.Tensor:
    for tree, values in zip(trees, reference, strict=True):
        if len(values) != num_scored(tree):
            raise DataError(
                f"{tree.source or 'tree'}: the reference scored {len(values)} tokens, "
                f"wanted {num_scored(tree)}; it was computed from other rows or with another template"
            )
    return torch.tensor([value for values in reference for value in values], dtype=torch.float32)


def _ints(values: Sequence[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


BUFFER = 512  # documents to choose from when filling a row: enough that most rows need no cut


def packed(documents: Iterable[list[int]], row_tokens: int, tokens: int, seed: int) -> Iterator[Tree]:
    """Pack documents, repeated as needed, into ceil(tokens / row_tokens) rows that predict `row_tokens` each.

    A row has one token more than it predicts. Raises DataError if there is no document.
    """
    pool = documents if isinstance(documents, Sequence) else list(documents)  # a view of a file is not copied
    if not any(pool):
        raise DataError("no documents to pretrain on; wanted at least one that is not empty")
    trained = (False, *[True] * row_tokens)
    rows = islice(_rows(pool, row_tokens + 1, random.Random(seed)), -(-tokens // row_tokens))
    return (Tree((), (Branch(tuple(row), trained),), source=f"packed row {i}") for i, row in enumerate(rows))


def _rows(documents: Sequence[list[int]], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Yield rows of exactly `size` tokens without end."""
    buffer = _Buffer()
    waiting: Iterator[list[int]] = iter(())
    while True:
        whole: list[list[int]] = []
        cut: list[int] = []
        space = size
        while space:
            buffer.fill(waiting, BUFFER)
            if not len(buffer):  # a pass ends before the next begins
                waiting = _pass(documents, size, rng)
                continue
            if (fitting := buffer.pop_at_most(space)) is not None:
                whole.append(fitting)
                space -= len(fitting)
            else:
                document = buffer.pop_smallest()
                cut, space = document[:space], 0
                buffer.put(document[len(cut) :])
        rng.shuffle(whole)  # otherwise long documents would always come first
        yield [token for part in (*whole, cut) for token in part]


def _pass(documents: Sequence[list[int]], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Yield all documents once, shuffled; documents longer than a row in parts."""
    order = list(range(len(documents)))
    rng.shuffle(order)
    for i in order:
        for start in range(0, len(documents[i]), size):
            yield documents[i][start : start + size]


class _Buffer:
    """Documents by length, first in first out within each length."""

    def __init__(self) -> None:
        self._of_length: defaultdict[int, deque[list[int]]] = defaultdict(deque)
        self._lengths: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def fill(self, waiting: Iterator[list[int]], count: int) -> None:
        for document in islice(waiting, max(0, count - self._count)):
            self.put(document)

    def put(self, document: list[int]) -> None:
        if not self._of_length[len(document)]:
            bisect.insort(self._lengths, len(document))
        self._of_length[len(document)].append(document)
        self._count += 1

    def pop_at_most(self, length: int) -> list[int] | None:
        """Return the longest document of at most `length` tokens, None if all are longer."""
        i = bisect.bisect_right(self._lengths, length)
        return self._pop(self._lengths[i - 1]) if i else None

    def pop_smallest(self) -> list[int]:
        return self._pop(self._lengths[0])

    def _pop(self, length: int) -> list[int]:
        document = self._of_length[length].popleft()
        self._count -= 1
        if not self._of_length[length]:
            self._lengths.remove(length)
        return document

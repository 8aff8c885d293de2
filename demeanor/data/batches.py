"""Batches: token trees stored in memory or in a file, and the schedule of optimiser steps over them.

In: sources of rows, or trees with their sizes. Out: trees of all sources by weight; for each step,
micro-batches of tree indices. The schedule depends on the seed and the step only, so resuming needs just the
step number.
"""

from __future__ import annotations

import mmap
import os
import random
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar, overload

import numpy as np

from demeanor.core.errors import DataError
from demeanor.core.types import Example, TrainingRow
from demeanor.data.sources import Doubts, Problems, Say, weighted
from demeanor.data.trees import Branch, Tree, num_scored
from demeanor.model.tensors import MISMATCHED
from demeanor.stack.schema import Source

T = TypeVar("T")


class Schedule:
    """The schedule: `len` is the number of optimiser steps, `[step]` its micro-batches, each sorted by
    length.

    Every row is used once per epoch; a fractional last epoch uses the first rows of its permutation.
    """

    def __init__(
        self, trees: Sequence[Tree], *, batch_rows: int, epochs: float, seed: int, micro_tokens: int = 8192
    ) -> None:
        """`batch_rows` rows make a step; `micro_tokens` fit in memory at once and never change the result."""
        if not trees:
            raise DataError("no rows to train on")
        self._sizes = [tree.num_tokens for tree in trees]
        self._batch_rows, self._seed, self._micro_tokens = batch_rows, seed, micro_tokens
        self.num_rows = max(1, round(epochs * len(trees)))
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return -(-self.num_rows // self._batch_rows)

    def __getitem__(self, step: int) -> list[list[int]]:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        first = step * self._batch_rows
        rows = [self._row(i) for i in range(first, min(first + self._batch_rows, self.num_rows))]
        micro: list[list[int]] = []
        room = 0
        for row in sorted(rows, key=lambda r: (self._sizes[r], r)):
            if not micro or self._sizes[row] > room:
                micro.append([])
                room = self._micro_tokens
            micro[-1].append(row)
            room -= self._sizes[row]
        return micro

    def _row(self, i: int) -> int:
        epoch, place = divmod(i, len(self._sizes))
        if epoch not in self._orders:
            order = list(range(len(self._sizes)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._orders[epoch] = order
        return self._orders[epoch][place]


HEAD = 5  # int32 before a tree's tokens: prompt, branches, labels, source (bytes), whether there is a margin


class Spool(Sequence[Tree]):
    """Trees in an unnamed file in `folder`, 4 bytes a token; append all trees before the first read."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix="trees.", suffix=".part", dir=folder)
        self._file = os.fdopen(number, "w+b")
        os.unlink(name)
        self._ends = array("q", [0])
        self._map: np.ndarray[tuple[int], np.dtype[np.int32]] | None = None

    def append(self, tree: Tree) -> None:
        """Write one more tree."""
        if self._map is not None:
            raise ValueError(
                "the file of trees is already being read; append all trees before the first read"
            )
        record = array("i", _record(tree))
        self._file.write(record.tobytes())
        self._ends.append(self._ends[-1] + len(record))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> Tree: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Tree]: ...
    def __getitem__(self, at: int | slice) -> Tree | Sequence[Tree]:
        if isinstance(at, slice):
            return select(self, range(*at.indices(len(self))))
        if not -len(self) <= at < len(self):
            raise IndexError(f"tree {at} of {len(self)}")
        at %= len(self)
        if self._map is None:
            self._file.flush()
            self._map = np.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), np.int32)
        return _tree(self._map[self._ends[at] : self._ends[at + 1]].tolist())

    def __iter__(self) -> Iterator[Tree]:
        return (self[i] for i in range(len(self)))


class View(Sequence[T]):
    """Elements that `get` looks up when they are read, in the order of `indices`."""

    def __init__(self, get: Callable[[int], T], indices: Iterable[int]) -> None:
        self._get, self._indices = get, array("q", indices)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        if isinstance(at, slice):
            return View(self._get, self._indices[at])
        return self._get(self._indices[at])


def select(trees: Sequence[Tree], indices: Iterable[int]) -> Sequence[Tree]:
    """Return the trees at `indices`: a list, or a view if the trees are stored in a file."""
    if isinstance(trees, Spool | View):
        return View(trees.__getitem__, indices)
    return [trees[i] for i in indices]


def stored(trees: Iterable[Tree], folder: Path | None) -> Sequence[Tree]:
    """Return all trees: as a list, or as a file in `folder` if one is given."""
    if folder is None:
        return list(trees)
    spool = Spool(folder)
    for tree in trees:
        spool.append(tree)
    return spool


def _record(tree: Tree) -> list[int]:
    """Encode a tree as int32: a header, then what it counts; a token and its trained flag share one
    number."""
    if len(tree.ranks) != len(tree.branches):
        raise ValueError(
            f"{tree.source or 'tree'}: {len(tree.ranks)} ranks for {len(tree.branches)} completions; "
            "wanted one each"
        )
    source = tree.source.encode()
    margin = (
        () if tree.margin is None else np.frombuffer(np.float64(tree.margin).tobytes(), np.int32).tolist()
    )
    flat: list[int] = [
        len(tree.prompt),
        len(tree.branches),
        len(tree.labels),
        len(source),
        len(margin),
        *margin,
        *tree.ranks,
        *tree.labels,
        *(len(branch.tokens) for branch in tree.branches),
        *tree.prompt,
    ]
    for branch in tree.branches:
        flat += [2 * token + flag for token, flag in zip(branch.tokens, branch.trained, strict=True)]
    flat += np.frombuffer(source + bytes(-len(source) % 4), np.int32).tolist()
    return flat


def _tree(flat: list[int]) -> Tree:
    """Decode a record into a tree."""
    prompt, branches, labels, source, margin = flat[:HEAD]
    at = HEAD

    def take(count: int) -> list[int]:
        nonlocal at
        at += count
        return flat[at - count : at]

    strength = np.array(take(margin), np.int32).view(np.float64)
    ranks, marks, lengths = take(branches), take(labels), take(branches)
    tokens = take(prompt)
    found = []
    for length in lengths:
        both = take(length)
        found.append(Branch(tuple(x >> 1 for x in both), tuple(bool(x & 1) for x in both)))
    name = np.array(flat[at:], np.int32).tobytes()[:source].decode()
    return Tree(
        tuple(tokens), tuple(found), tuple(ranks), float(strength[0]) if margin else None, name, tuple(marks)
    )


class Assembled(NamedTuple):
    """Rendered trees, and the tokens of each plain text, which are packed into rows later."""

    trees: Sequence[Tree]
    documents: Sequence[list[int]]


def assemble(
    sources: Sequence[Source],
    *,
    read: Callable[[Source, Problems], Iterator[TrainingRow]],
    render: Callable[[TrainingRow], Tree],
    document: Callable[[str], list[int]],
    folder: Path,
    say: Say = print,
    doubts: Doubts | None = None,
) -> Assembled:
    """Render every row of every source once, then repeat or thin each source by its weight.

    `folder` stores the trees if a source says `stream`; `doubts` of rows are said at the end. Raises DataError with the rows of all sources that cannot be read or rendered, unless their source says
    `skip_bad`.
    """
    streams = any(source.stream for source in sources)
    trees: list[Tree] | Spool = Spool(folder) if streams else []
    texts: list[Tree] | Spool = Spool(folder) if streams else []
    chosen: list[int] = []  # index of a tree, or ~index of a text
    errors: list[str] = []
    doubts = doubts or Doubts()
    for source in sources:
        places: list[int] = []
        problems = Problems(source.source)
        try:
            for row in read(source, problems):
                doubts.add(row)
                try:
                    if isinstance(row, Example) and row.text is not None:
                        texts.append(Tree(tuple(document(row.text)), (), ()))
                        places.append(~(len(texts) - 1))
                    else:
                        trees.append(render(row))
                        places.append(len(trees) - 1)
                except DataError as error:
                    problems.add(row.source, error)
            problems.good = len(places)
            problems.close(source.skip_bad, say)
        except DataError as error:
            errors.append(str(error))
        if places and not errors:
            chosen += weighted(places, source.weight, source.source)
    if errors:
        raise DataError("\n".join(errors))
    for doubt in doubts.said():
        say(doubt)
    documents = View(lambda i: list(texts[i].prompt), (~i for i in chosen if i < 0))
    return Assembled(select(trees, (i for i in chosen if i >= 0)), documents)


class Coverage(NamedTuple):
    """Number of rows, computed tokens, trained tokens, comparisons, rows without loss; longest row
    (tokens)."""

    rows: int
    tokens: int
    trained: int
    comparisons: int
    untrained_rows: int
    longest: int

    def __str__(self) -> str:
        share = self.trained / max(1, self.tokens)
        return (
            f"{self.rows:,} rows, {self.tokens:,} tokens, {self.trained:,} of them trained ({share:.0%}), "
            f"longest row {self.longest:,}"
        )


def coverage(trees: Iterable[Tree], *, rewards: bool = False) -> Coverage:
    """Count what carries loss; for a reward model (`rewards`) a row without a comparison carries none."""
    rows = tokens = trained = comparisons = untrained = longest = 0
    for tree in trees:
        own, pairs = num_carrying(tree), num_comparisons(tree)
        rows += 1
        tokens += tree.num_tokens
        trained += own
        comparisons += pairs
        untrained += not (pairs if rewards else own)
        longest = max(longest, tree.longest)
    return Coverage(rows, tokens, trained, comparisons, untrained, longest)


def summary(stage: str, trees: Iterable[Tree], *, rewards: bool, left_out: int = 0, held_out: int = 0) -> str:
    """Return one line on how much carries loss: tokens, or for a reward model comparisons of two completions.

    Raises DataError if nothing does.
    """
    found = coverage(trees, rewards=rewards)
    if not (found.comparisons if rewards else found.trained):
        what = "no token carries loss; only assistant messages do"
        if rewards:
            what = "no two completions differ in rank"
        raise DataError(f"{stage}: {what} (in {found.rows} rows, {found.tokens:,} tokens)")
    trained = f"{found.trained:,} ({found.trained / found.tokens:.0%}) carry loss"
    if rewards:
        trained = f"{found.comparisons:,} comparisons"
    parts = [f"{found.rows:,} rows, {found.tokens:,} tokens, {trained}"]
    parts += [f"{found.untrained_rows:,} rows carry none"] * (found.untrained_rows > 0)
    parts += [f"{left_out:,} longer rows left out"] * (left_out > 0)
    parts += [f"{held_out:,} rows held out"] * (held_out > 0)
    return "; ".join(parts)


def num_carrying(tree: Tree) -> int:
    """Return the number of tokens that carry loss; a completion of another prompt is scored but carries
    none."""
    if MISMATCHED not in tree.labels:
        return num_scored(tree)
    own = [branch for branch, label in zip(tree.branches, tree.labels) if label != MISMATCHED]
    return num_scored(tree._replace(branches=tuple(own)))


def num_comparisons(tree: Tree) -> int:
    """Return the number of pairs of completions whose ranks differ."""
    return sum(a < b for a in tree.ranks for b in tree.ranks)


def within(trees: Sequence[Tree], max_tokens: int, name: str = "data") -> Sequence[Tree]:
    """Leave out trees whose longest path exceeds `max_tokens`; raises DataError if none is left."""
    kept = [i for i, tree in enumerate(trees) if tree.longest <= max_tokens]
    if not kept:
        shortest = min((tree.longest for tree in trees), default=0)
        raise DataError(
            f"{name}: none of {len(trees)} rows fits in {max_tokens} tokens (the shortest has {shortest}); "
            "raise max_tokens or the model's context"
        )
    return select(trees, kept)

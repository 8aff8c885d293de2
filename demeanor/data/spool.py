"""Token trees in a file instead of memory: written once, read through a memory map, a sequence like any other.

In: trees, one at a time. Out: Sequence[Tree], equal tree by tree. The file has no name left once it is written: it goes away with the
process, however that ends. It knows neither text nor tokenizer.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from demeanor.data.trees import Branch, Tree

HEAD = 5  # int32 before a tree's tokens: prompt, branches, labels, source (bytes), whether there is a margin


class Spool(Sequence[Tree]):
    """Trees in an unnamed file in `folder`, 4 bytes a token; `append` before the first read, never after."""

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
            raise ValueError("this spool is being read; nothing can be added to it")
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


class Selected(Sequence[Tree]):
    """Some trees of a sequence, in an order of their own, looked up when they are asked for."""

    def __init__(self, trees: Sequence[Tree], indices: Iterable[int]) -> None:
        self._trees, self._indices = trees, array("q", indices)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, at: int) -> Tree: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Tree]: ...
    def __getitem__(self, at: int | slice) -> Tree | Sequence[Tree]:
        return (
            Selected(self._trees, self._indices[at])
            if isinstance(at, slice)
            else self._trees[self._indices[at]]
        )


def select(trees: Sequence[Tree], indices: Iterable[int]) -> Sequence[Tree]:
    """The trees at `indices`: a list of them, or a view where they are kept in a file."""
    return Selected(trees, indices) if isinstance(trees, Spool | Selected) else [trees[i] for i in indices]


def stored(trees: Iterable[Tree], folder: Path | None) -> Sequence[Tree]:
    """All trees: a list, or a spool in `folder` where one is given."""
    if folder is None:
        return list(trees)
    spool = Spool(folder)
    for tree in trees:
        spool.append(tree)
    return spool


def _record(tree: Tree) -> list[int]:
    """A tree as int32: its head, then what the head counts; a token and its trained flag share one number."""
    if len(tree.ranks) != len(tree.branches):
        raise ValueError(
            f"{tree.source or 'tree'}: got {len(tree.ranks)} ranks for {len(tree.branches)} completions; wanted one each"
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
    """The tree of a record."""
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

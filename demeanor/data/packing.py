"""Documents to pretraining rows of equal length: whole documents where they fit, one cut where they do not.

In: token lists, each ended by eos. Out: trees without a prompt; every token but a row's first is trained. Each pass over the
documents uses every token once, in an order drawn from the seed. It knows neither text nor tokenizer.
"""

from __future__ import annotations

import bisect
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from demeanor.data.trees import Branch, Tree
from demeanor.errors import DataError

BUFFER = 512
"""Documents to choose from when filling a row: enough that most rows need no cut."""


def pack_rows(documents: Iterable[list[int]], row_tokens: int, tokens: int, seed: int) -> list[Tree]:
    """All rows of `packed`, at once."""
    return list(packed(documents, row_tokens, tokens, seed))


def packed(documents: Iterable[list[int]], row_tokens: int, tokens: int, seed: int) -> Iterator[Tree]:
    """Pack documents, repeated as often as needed, into ceil(tokens / row_tokens) rows that predict `row_tokens` tokens each.

    A row holds one token more than it predicts. Raises DataError if there is no document.
    """
    pool = (
        documents if isinstance(documents, Sequence) else list(documents)
    )  # what is kept in a file is not copied
    if not any(pool):
        raise DataError("no documents to pretrain on; wanted at least one that is not empty")
    trained = (False, *[True] * row_tokens)
    rows = islice(_rows(pool, row_tokens + 1, random.Random(seed)), -(-tokens // row_tokens))
    return (Tree((), (Branch(tuple(row), trained),), source=f"packed row {i}") for i, row in enumerate(rows))


def _rows(documents: Sequence[list[int]], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Endless rows of exactly `size` tokens."""
    buffer = _Buffer()
    waiting: Iterator[list[int]] = iter(())
    while True:
        whole: list[list[int]] = []
        cut: list[int] = []
        space = size
        while space:
            buffer.fill(waiting, BUFFER)
            if not len(buffer):  # a pass is over; nothing of the next is used before
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
    """All documents once, shuffled; those longer than a row in parts."""
    order = list(range(len(documents)))
    rng.shuffle(order)
    for i in order:
        for start in range(0, len(documents[i]), size):
            yield documents[i][start : start + size]


class _Buffer:
    """Documents by length: the oldest of a length comes out first."""

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
        """The longest document of at most `length` tokens, None if all are longer."""
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

"""The sources of a stage to its token trees: read, rendered, weighted, in order; kept in memory, or in a file where one streams.

In: sources, and how to read and render them. Out: trees of conversations and the ids of plain texts, the same wherever they are kept.
It refuses to know templates, tokenizers and objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

from demeanor.data.sources import Problems, Say, weighted
from demeanor.data.spool import Spool, select
from demeanor.data.trees import Tree
from demeanor.errors import DataError
from demeanor.spec import Source
from demeanor.types import Example, TrainingRow


class Assembled(NamedTuple):
    """Trees of what is rendered, and the tokens of each plain text, which is packed later."""

    trees: Sequence[Tree]
    documents: Sequence[list[int]]


class Documents(Sequence[list[int]]):
    """Trees that are a prompt alone, seen as lists of ids."""

    def __init__(self, trees: Sequence[Tree]) -> None:
        self._trees = trees

    def __len__(self) -> int:
        return len(self._trees)

    @overload
    def __getitem__(self, at: int) -> list[int]: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[list[int]]: ...
    def __getitem__(self, at: int | slice) -> list[int] | Sequence[list[int]]:
        return Documents(self._trees[at]) if isinstance(at, slice) else list(self._trees[at].prompt)


def assemble(
    sources: Sequence[Source],
    *,
    read: Callable[[Source], Iterator[TrainingRow]],
    render: Callable[[TrainingRow], Tree],
    document: Callable[[str], list[int]],
    folder: Path,
    say: Say = print,
) -> Assembled:
    """Render every row of every source once, then repeat or thin each source by its weight.

    `folder` is where trees are kept if a source says `stream`. Raises DataError at the first row that cannot be rendered, unless its
    source says `skip_bad`.
    """
    streams = any(source.stream for source in sources)
    trees: list[Tree] | Spool = Spool(folder) if streams else []
    texts: list[Tree] | Spool = Spool(folder) if streams else []
    chosen: list[int] = []  # a tree by its place, a text by the complement of its place
    for source in sources:
        places: list[int] = []
        problems = Problems(source.source)
        for row in read(source):
            try:
                if isinstance(row, Example) and row.text is not None:
                    texts.append(Tree(tuple(document(row.text)), (), ()))
                    places.append(~(len(texts) - 1))
                else:
                    trees.append(render(row))
                    places.append(len(trees) - 1)
            except DataError as error:
                if not source.skip_bad:
                    raise
                problems.bad.append(str(error))
        problems.good = len(places)
        problems.close(source.skip_bad, say)
        if not places:
            raise DataError(f"{source.source}: none of its rows can be rendered; wanted at least one")
        chosen += weighted(places, source.weight, source.source)
    return Assembled(
        select(trees, (i for i in chosen if i >= 0)), Documents(select(texts, (~i for i in chosen if i < 0)))
    )

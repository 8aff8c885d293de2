"""The orders in which K answers are shown: K rotations, so that over them each answer stands in each place once.

In: how often each rotation was used. Out: the next order. Two answers have two orders, as given and swapped.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence


def rotation(order: Sequence[int]) -> int:
    """The number of a shown order: the answer that stands first."""
    return order[0]


def shown_order(
    size: int, used_by_item: Sequence[int], used_by_labeller: Sequence[int], salt: str
) -> tuple[int, ...]:
    """The rotation that was used least for this item, then by this labeller; `salt` breaks what is left of a tie."""
    of_item, of_labeller = Counter(used_by_item), Counter(used_by_labeller)

    def cost(first: int) -> tuple[int, int, str]:
        drawn = hashlib.sha256(f"{salt}/{first}".encode()).hexdigest()
        return of_item[first], of_labeller[first], drawn

    first = min(range(size), key=cost)
    return tuple((first + n) % size for n in range(size))

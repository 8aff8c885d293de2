"""What the cache of keys and values holds: slots for sequences, and the tokens that need not be read again.

In: prompts, and the tokens that were read into a slot. Out: a slot, and how many tokens of a prompt are known there.
`PagePrefixes` shares pages between slots and keeps them after a sequence until their memory is needed; `SlotPrefixes`
copies between contiguous slots. Knows no model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from demeanor.engine.cache_budget import CacheBudget, Waiter
from demeanor.model.pages import PAGE, PagedCache


@dataclass(slots=True)
class CacheUse:
    """Free slots; pages of running sequences, pages kept for later ones, and pages that may be taken without dropping a kept one; all prompt
    tokens, and those that were known."""

    free_slots: int = 0
    used: int = 0
    kept: int = 0
    free: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Prefixes(Protocol):
    """Slots of a cache, and which tokens are in them; used by one thread at a time."""

    def admit(self, prompt: list[int], room: int, *, reuse: bool) -> tuple[int, int] | None:
        """Take a slot for a prompt and `room` tokens more; return it and how many tokens of the prompt are known.

        The last one never is: its hidden state is needed. None: there is no slot or no memory now.
        """

    def take(self, slot: int, tokens: int) -> bool:
        """Take a slot that `admit` never gives, for a text of which nothing is known; False: there is no memory now, and it waits until
        `take` is called again or `give_up`."""

    def more(self, slot: int, prompt: list[int]) -> int:
        """Return how many tokens of a prompt are known now that others have read on."""

    def reserve(self, slot: int, end: int) -> None:
        """Make room for the keys and values of positions before `end`."""

    def wrote(self, slot: int, tokens: Sequence[int]) -> None:
        """The next tokens of a slot are in the cache."""

    def release(self, slot: int, *, keep: bool) -> None:
        """Give a slot back; `keep`: later prompts may use what was written."""

    def withdraw(self) -> None:
        """No prompt waits for memory here any more."""

    def give_up(self) -> None:
        """The text for which `take` found no memory waits no longer."""

    def close(self) -> None:
        """Drop all kept pages and give their memory back; running sequences go on."""

    def usage(self) -> CacheUse:
        """Return what the memory is used for."""


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix of two lists, by bisection: comparing slices runs no Python per token."""
    low, high = 0, min(len(first), len(second))
    if not high or first[0] != second[0]:
        return 0
    if first[:high] == second[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle)
    return low


@dataclass(eq=False, slots=True)
class _Page:
    """A page, its tokens, and the pages that continue it: a chain from the root spells a prefix.

    A page that is full never changes. One that is not has at most one user, the slot that writes it.
    """

    number: int
    parent: _Page | None = None
    writer: int = -1  # the admission that wrote it
    users: int = 0
    tokens: list[int] = field(default_factory=list)
    full: dict[tuple[int, ...], _Page] = field(default_factory=dict)
    partial: dict[_Page, None] = field(default_factory=dict)

    def children(self) -> Iterator[_Page]:
        yield from self.partial
        yield from self.full.values()

    def leave(self) -> None:
        """Forget a page that nothing continues."""
        assert not self.full, "a page is forgotten after those that continue it"
        assert not self.partial, "a page is forgotten after those that continue it"
        if self.parent is not None:
            self.parent.partial.pop(self, None)
            if self.parent.full.get(tuple(self.tokens)) is self:
                del self.parent.full[tuple(self.tokens)]


@dataclass(slots=True)
class _Seat:
    """A sequence's pages in order, the number of tokens in them, and how many pages it may come to."""

    number: int
    most: int
    pages: list[_Page] = field(default_factory=list)
    length: int = 0


@dataclass(eq=False)
class _Text:
    """What waits for memory beside prompts, with a turn of its own: a text that is read for its hidden states."""

    page_bytes: int


class PagePrefixes:
    """Slots whose pages are shared: a prefix is in memory once, whoever uses it.

    Pages that no sequence uses are kept, and the least recently used give way first, to other engines too (`cache_budget.py`). A sequence
    is admitted when there is memory for all that it may write, so one that runs never waits for another.
    """

    def __init__(self, cache: PagedCache, num_slots: int, budget: CacheBudget) -> None:
        self._cache, self._table, self._budget = cache, cache.table.numpy(), budget
        self.page_bytes = cache.page_bytes
        self._table[:] = 0  # page 0 belongs to nobody: a forward on an empty slot may write it
        self._root = _Page(0)
        self._free: list[int] = []  # in memory, and nothing is in them
        self._away = list(range(cache.num_pages - 1, 0, -1))  # not in memory
        self._kept: OrderedDict[_Page, int] = OrderedDict()  # without a user, least recently used first: when
        self._num_slots, self._slots = num_slots, list(range(num_slots))  # longest free first
        self._seats: dict[int, _Seat] = {}
        self._admitted = 0
        self._counts = CacheUse()
        self._text = _Text(cache.page_bytes)
        for page in range(1, cache.num_pages):
            cache.give_back(page)
        budget.join(self)

    def admit(self, prompt: list[int], room: int, *, reuse: bool) -> tuple[int, int] | None:
        with self._budget.lock:
            if not self._slots:
                return None
            chain, source, known = self._match(prompt[:-1]) if reuse else ([], None, 0)
            seat = _Seat(self._admitted, min(-(-(len(prompt) + room) // PAGE), self._table.shape[1]))
            if not self._fits(seat.most - sum(page.users > 0 for page in chain), self):
                return None
            slot = self._slots.pop(0)
            self._admitted += 1
            self._seats[slot] = seat
            self._extend(slot, chain, source, known)
            self._counts.prompt_tokens += len(prompt)
            self._counts.cached_tokens += seat.length
            return slot, seat.length

    def take(self, slot: int, tokens: int) -> bool:
        with self._budget.lock:
            seat = _Seat(self._admitted, -(-tokens // PAGE))
            if not self._fits(seat.most, self._text):
                return False
            self._seats[slot] = seat
            self._admitted += 1
            return True

    def more(self, slot: int, prompt: list[int]) -> int:
        with self._budget.lock:
            seat = self._seats[slot]
            chain, source, common = self._match(prompt[:-1])
            if PAGE * len(chain) + common > seat.length:
                before = seat.length
                self._extend(slot, chain, source, common)
                self._counts.cached_tokens += seat.length - before
            return seat.length

    def reserve(self, slot: int, end: int) -> None:
        with self._budget.lock:
            seat = self._seats[slot]
            while PAGE * len(seat.pages) < end:
                page = self._take(promised=True)
                assert page is not None, "a sequence is admitted when there is memory for all of it"
                self._append(slot, _Page(page, users=1, writer=seat.number))

    def wrote(self, slot: int, tokens: Sequence[int]) -> None:
        with self._budget.lock:
            seat, start = self._seats[slot], 0
            while start < len(tokens):
                at = seat.length // PAGE
                page, part = seat.pages[at], tokens[start : start + PAGE - seat.length % PAGE]
                if not page.tokens:
                    page.parent = seat.pages[at - 1] if at else self._root
                    page.parent.partial[page] = None
                page.tokens += part
                seat.length += len(part)
                start += len(part)
                if len(page.tokens) == PAGE:
                    self._complete(slot, at)

    def release(self, slot: int, *, keep: bool) -> None:
        with self._budget.lock:
            seat, now = self._seats.pop(slot), self._budget.used_now()
            for page in reversed(seat.pages):  # so that a page gives way before the one that it continues
                page.users -= 1
                if page.users:
                    continue
                failed = not keep and page.writer == seat.number and not any(page.children())
                if page.tokens and not failed:
                    self._kept[page] = now
                else:
                    self._drop(page)
            self._table[slot] = 0
            if slot < self._num_slots:
                self._slots.append(slot)

    def withdraw(self) -> None:
        self._budget.withdraw(self)

    def give_up(self) -> None:
        self._budget.withdraw(self._text)

    def close(self) -> None:
        with self._budget.lock:
            self.give_up()
            while self.oldest() is not None:
                self.give_back()
            self._budget.leave(self)

    def usage(self) -> CacheUse:
        with self._budget.lock:
            room = self._budget.free_bytes / self.page_bytes
            self._counts.free_slots = len(self._slots)
            self._counts.kept = len(self._kept)
            self._counts.free = len(self._free) + int(max(0, min(len(self._away), room)))
            self._counts.used = self.held() - len(self._kept) - len(self._free)
            return self._counts

    # ---- what the budget asks ----

    def promised(self) -> int:
        return self.held() - len(self._kept) - len(self._free) + self._owed()

    def held(self) -> int:
        return self._cache.num_pages - 1 - len(self._away)

    def oldest(self) -> int | None:
        return 0 if self._free else next(iter(self._kept.values()), None)

    def give_back(self) -> None:
        if not self._free:
            self._forget(next(iter(self._kept)))
        page = self._free.pop()
        self._cache.give_back(page)
        self._away.append(page)

    def _fits(self, pages: int, waiter: Waiter) -> bool:
        """True if so many pages can be promised, in this engine's table and in the memory of all."""
        if self.promised() + pages > self._cache.num_pages - 1:
            self._budget.withdraw(waiter)  # its own sequences have what it waits for
            return False
        return self._budget.admits(waiter, pages)

    def _owed(self) -> int:
        """Pages that running sequences may still ask for."""
        return sum(seat.most - len(seat.pages) for seat in self._seats.values())

    def _match(self, prompt: list[int]) -> tuple[list[_Page], _Page | None, int]:
        """Return the full pages that a prompt begins with, and the page that begins with most of the rest: how much."""
        node, chain = self._root, list[_Page]()
        for start in range(0, len(prompt) - PAGE + 1, PAGE):
            found = node.full.get(tuple(prompt[start : start + PAGE]))
            if found is None:
                break
            chain.append(found)
            node = found
        rest = prompt[PAGE * len(chain) : PAGE * len(chain) + PAGE]
        source, most = None, 0
        for page in node.children():
            common = common_prefix(page.tokens, rest)
            if common > most:
                source, most = page, common
        return chain, source, most

    def _extend(self, slot: int, chain: list[_Page], source: _Page | None, common: int) -> None:
        """Let a slot begin with a chain and the first tokens of a page after it: that page itself if it ends there and
        nobody writes it, else a copy."""
        seat = self._seats[slot]
        whole = seat.length // PAGE
        for page in reversed(seat.pages[whole:]):  # what it began itself
            seat.pages.pop()
            self._drop(page)
        for page in chain[whole:]:
            self._use(page)
            self._append(slot, page)
        seat.length = PAGE * len(seat.pages)
        if source is None or not common:
            return
        if not source.users and common == len(source.tokens) < PAGE:
            self._use(source)
            source.writer = seat.number
            self._append(slot, source)
        else:
            unused = self._kept.pop(source, None) is not None  # so that it does not give way to its copy
            number = self._take()
            if unused:
                self._kept[source] = self._budget.used_now()
            if number is None:
                return
            self._cache.copy_page(source.number, number)
            page = _Page(number, source.parent, seat.number, 1, source.tokens[:common])
            assert page.parent is not None
            page.parent.partial[page] = None
            self._append(slot, page)
        seat.length += common

    def _complete(self, slot: int, at: int) -> None:
        """A page is full: use an equal one in its place if there is one, and let others find it if not."""
        page = self._seats[slot].pages[at]
        assert page.parent is not None
        spelled = tuple(page.tokens)
        other = page.parent.full.get(spelled)
        if other is None:
            del page.parent.partial[page]
            page.parent.full[spelled] = page
        else:
            self._use(other)
            self._seats[slot].pages[at] = other
            self._table[slot, at] = other.number
            self._drop(page)

    def _append(self, slot: int, page: _Page) -> None:
        pages = self._seats[slot].pages
        self._table[slot, len(pages)] = page.number
        pages.append(page)

    def _use(self, page: _Page) -> None:
        page.users += 1
        self._kept.pop(page, None)

    def _drop(self, page: _Page) -> None:
        page.leave()
        self._free.append(page.number)

    def _forget(self, page: _Page) -> None:
        del self._kept[page]
        self._drop(page)

    def _take(self, *, promised: bool = False) -> int | None:
        """Return a page that nothing is in: a free one, a new one, or the one that was not used for longest.

        One that was `promised` is given though the bound became lower since.
        """
        if not self._free:
            if self._away and (self._budget.grow(self) or (promised and not self._kept)):
                page = self._away.pop()
                self._cache.hold(page)
                return page
            if not self._kept:
                return None
            self._forget(next(iter(self._kept)))
        return self._free.pop()


WORTH_COPYING = 8  # tokens; a copy costs about as much as reading this many


class SlotPrefixes:
    """Contiguous slots: the free one that knows most of a prompt is taken, and what another knows beyond it is copied."""

    def __init__(self, num_slots: int, copy: Callable[[int, int, int], None]) -> None:
        self._copy = copy
        self._num_slots, self._free = num_slots, list(range(num_slots))  # longest free first
        self._contents: list[list[int]] = [[] for _ in range(num_slots + 1)]  # tokens in each slot's cache
        self._counts = CacheUse()

    def admit(self, prompt: list[int], room: int, *, reuse: bool) -> tuple[int, int] | None:
        if not self._free:
            return None
        # Of equal slots, the longest free one.
        slot = max(self._free, key=lambda free: common_prefix(self._contents[free], prompt))
        self._free.remove(slot)
        known = min(common_prefix(self._contents[slot], prompt), len(prompt) - 1) if reuse else 0
        del self._contents[slot][known:]
        self._counts.prompt_tokens += len(prompt)
        self._counts.cached_tokens += known
        return slot, known

    def take(self, slot: int, tokens: int) -> bool:
        return True

    def more(self, slot: int, prompt: list[int]) -> int:
        contents = self._contents
        source = max(range(self._num_slots), key=lambda other: common_prefix(contents[other], prompt))
        known = min(common_prefix(contents[source], prompt), len(prompt) - 1)
        before = len(contents[slot])
        if known >= before + WORTH_COPYING:
            self._copy(source, slot, known)
            contents[slot] = prompt[:known]
            self._counts.cached_tokens += known - before
        return len(contents[slot])

    def reserve(self, slot: int, end: int) -> None:
        pass

    def wrote(self, slot: int, tokens: Sequence[int]) -> None:
        self._contents[slot] += tokens

    def release(self, slot: int, *, keep: bool) -> None:
        if not keep or slot == self._num_slots:  # nothing says what its cache holds
            self._contents[slot] = []
        if slot < self._num_slots:
            self._free.append(slot)

    def withdraw(self) -> None:
        pass

    def give_up(self) -> None:
        pass

    def close(self) -> None:
        pass

    def usage(self) -> CacheUse:
        self._counts.free_slots = len(self._free)
        return self._counts

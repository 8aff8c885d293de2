"""One bound for the pages of several engines: it holds, who runs keeps its pages, who waits gets its turn, and idle memory moves."""

from __future__ import annotations

import ctypes
import gc
import math
import mmap
import random
import sys
import threading
from typing import Any

import pytest

from demeanor.core import hardware
from demeanor.core.errors import EngineError, UsageError
from demeanor.core.types import Decoding
from demeanor.engine import cache_budget, forward
from demeanor.engine.cache_budget import CacheBudget
from demeanor.engine.local import LocalEngine, Request
from demeanor.engine.prefixes import PagePrefixes
from demeanor.engine.scheduler import Batch
from demeanor.model import native
from demeanor.model.llama import Config
from demeanor.model.pages import PAGE, PagedCache, page_bytes
from demeanor.serving import caches_of
from tests.engine.test_prefixes import SLOTS, Memory, Simulation, policy, states

compiled = pytest.mark.skipif(native.build() is None, reason="no C++ compiler here")


def held(simulations: list[Simulation]) -> int:
    return sum(one.prefixes.held() * one.prefixes.page_bytes for one in simulations)


@pytest.mark.parametrize("seed", range(3))
def test_three_engines_read_what_belongs_to_them_within_one_bound(seed: int) -> None:
    """Against the twin of test_prefixes: whatever the others take away, every running sequence reads its own text."""
    budget = CacheBudget(40)
    several = [Simulation(41, 10 * seed + i, budget=budget) for i in range(3)]
    order, most = random.Random(seed), 0
    for _ in range(500):
        busy = order.choice(several)
        for _ in range(order.randint(1, 8)):  # stretches, in which the others are idle
            busy.move()
            most = max(most, held(several))
            assert held(several) <= 40
        for one in several:
            one.check_texts()
    assert most == 40, "all of it is used"
    assert min(one.admitted for one in several) > 15
    assert sum(one.known for one in several) > 300
    for one in several:
        while one.running:
            one.end(one.running[0])
    assert sum(one.prefixes.promised() for one in several) == 0


def running(prefixes: PagePrefixes, pages: int, fill: int) -> int:
    """Admit a sequence of so many pages and write all of them."""
    found = prefixes.admit([fill] * (PAGE * pages - 1), 1, reuse=True)
    assert found is not None
    slot, known = found
    prefixes.reserve(slot, PAGE * pages)
    prefixes.wrote(slot, [fill] * (PAGE * pages - known))
    return slot


def pair(limit: int) -> tuple[CacheBudget, PagePrefixes, PagePrefixes]:
    budget = CacheBudget(limit)
    a, b = (PagePrefixes(Memory(limit + 1), SLOTS, budget) for _ in range(2))  # type: ignore[arg-type]
    return budget, a, b


def test_an_engine_gets_what_an_idle_one_kept_and_the_least_recently_used_goes_first() -> None:
    budget, a, b = pair(6)
    for fill in (1, 2):
        a.release(running(a, 3, fill), keep=True)
    assert (a.usage().kept, b.usage().free) == (6, 0)
    first = running(b, 3, 1)
    assert (a.usage().kept, b.usage().used) == (3, 3)
    assert a.admit([2] * (3 * PAGE), 1, reuse=True) is None, "b runs, and keeps its pages"
    a.withdraw()
    b.release(first, keep=True)
    found = a.admit([2] * (3 * PAGE - 1), 1, reuse=True)
    assert found is not None
    assert found[1] == 3 * PAGE - 2, "the later text of a was kept"
    assert budget.free_bytes == 0


def test_of_two_idle_engines_the_one_used_longer_ago_gives_way() -> None:
    _, a, b = pair(6)
    c = PagePrefixes(Memory(7), SLOTS, b._budget)  # type: ignore[arg-type]
    for one, fill in ((a, 1), (b, 2), (a, 3)):
        one.release(running(one, 2, fill), keep=True)
    running(c, 2, 4)
    assert (a.usage().kept, b.usage().kept) == (2, 2), "the first text of a"
    running(c, 1, 5)
    assert (a.usage().kept, b.usage().kept) == (2, 1), "the end of b's"


def test_who_waits_for_memory_is_not_overtaken_by_another_engine() -> None:
    _, a, b = pair(6)
    slots = [running(a, 2, fill) for fill in (1, 2, 3)]
    assert b.admit([9] * (4 * PAGE - 1), 1, reuse=True) is None
    a.release(slots[0], keep=True)
    assert a.admit([4] * (2 * PAGE - 1), 1, reuse=True) is None, "there is room, but b was first"
    a.release(slots[1], keep=True)
    assert b.admit([9] * (4 * PAGE - 1), 1, reuse=True) is not None
    a.release(slots[2], keep=True)
    assert a.admit([4] * (2 * PAGE - 1), 1, reuse=True) is not None


def test_who_gives_up_waiting_or_is_closed_holds_nobody_back() -> None:
    budget, a, b = pair(6)
    slot = running(a, 4, 1)
    assert b.admit([9] * (6 * PAGE - 1), 1, reuse=True) is None
    assert a.admit([2] * PAGE, 1, reuse=True) is None
    b.withdraw()
    second = a.admit([2] * PAGE, 1, reuse=True)
    assert second is not None
    assert b.admit([9] * (6 * PAGE - 1), 1, reuse=True) is None
    b.close()
    a.release(second[0], keep=False)
    a.release(slot, keep=True)
    assert a.admit([2] * (6 * PAGE - 1), 1, reuse=True) is not None
    a.close()
    assert budget.free_bytes == 6


def test_a_text_waits_in_its_turn_and_takes_nobodys() -> None:
    _, a, b = pair(6)
    slot = running(b, 4, 1)
    assert a.admit([2] * (4 * PAGE - 1), 1, reuse=True) is None
    assert not a.take(SLOTS - 1, 3 * PAGE)
    b.release(slot, keep=False)
    assert not b.take(SLOTS - 1, 3 * PAGE)
    assert b.admit([3] * (3 * PAGE - 1), 1, reuse=True) is None, "there is room, but a is still first"
    b.give_up()
    found = a.admit([2] * (4 * PAGE - 1), 1, reuse=True)
    assert found is not None
    a.release(found[0], keep=False)
    assert a.take(SLOTS - 1, 3 * PAGE), "the text was next"
    assert b.admit([3] * (3 * PAGE - 1), 1, reuse=True) is not None, "the text of b waits no longer"


def test_when_larger_weights_lower_the_bound_who_runs_goes_on_and_who_is_alone_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 48)
    budget = CacheBudget()
    assert budget.num_pages(1, 5, 100) == 6
    a = PagePrefixes(Memory(6), SLOTS, budget)  # type: ignore[arg-type]
    found = a.admit([1] * (5 * PAGE - 1), 1, reuse=True)
    assert found is not None
    assert budget.num_pages(1, 1, 100, weights_bytes=40) == 4
    b = PagePrefixes(Memory(4), SLOTS, budget)  # type: ignore[arg-type]
    a.reserve(found[0], 5 * PAGE)
    a.wrote(found[0], [1] * (5 * PAGE))
    assert b.admit([2] * PAGE, 1, reuse=True) is None, "a has more than all"
    b.withdraw()
    a.release(found[0], keep=True)
    slot = running(a, 5, 3)
    assert a.usage().used == 5
    a.release(slot, keep=True)
    running(b, 3, 2)
    assert (a.usage().kept, b.usage().used) == (1, 3), "within the lower bound again"


def test_a_dropped_request_that_waited_gives_up_its_turn() -> None:
    budget = CacheBudget(9 * page_bytes(policy().config))
    a, b = (Batch(forward.forward_of(policy(), 4, 256, budget), 4) for _ in range(2))
    if native.build() is None:
        pytest.skip("no C++ compiler here")
    [long], [other, late] = states(policy(), [[1] * 200], 30), states(policy(), [[2] * 100, [3] * 40], 30)
    a.add(long)
    a.step()
    b.add(other)
    b.step()
    assert b.load == (0, 1)
    b.drop(other)
    a.drop(long)
    a.add(late)
    a.step()
    assert a.load == (1, 0)


@compiled
def test_a_dropped_request_behind_one_that_waits_leaves_it_its_turn() -> None:
    budget = CacheBudget(9 * page_bytes(policy().config))
    a, b = (Batch(forward.forward_of(policy(), 4, 256, budget), 4) for _ in range(2))
    long, late = states(policy(), [[1] * 200, [3] * 100], 30)
    first, behind = states(policy(), [[2] * 100, [4] * 40], 30)
    a.add(long)
    a.step()
    for sequence in (first, behind):
        b.add(sequence)
    b.step()
    b.drop(behind)
    a.add(late)
    a.step()
    a.drop(long)
    a.step()
    assert (a.load, b.load) == ((0, 1), (0, 1)), "there is room, but b was first"
    b.step()
    assert b.load == (1, 0)


def test_the_default_is_a_share_of_the_machine_or_a_whole_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 8000)
    budget = CacheBudget()
    assert budget.limit_bytes == 1000
    assert budget.num_pages(10, 50, 10_000) == 100
    assert budget.num_pages(10, 50, 30) == 30, "no more than all slots fill"
    assert budget.num_pages(10, 200, 10_000) == 201, "one whole context, and the page that is nobody's"
    assert budget.num_pages(10, 2000, 10_000) == 400, "but not more than half of the machine"
    monkeypatch.setattr(hardware, "memory_bytes", lambda: None)
    assert budget.limit_bytes == math.inf
    assert budget.num_pages(10, 200, 10_000) == 10_000
    with pytest.raises(EngineError, match="holds no token of this model; wanted at least"):
        CacheBudget(19).num_pages(10, 5, 100)


def test_serve_has_one_bound_for_all_its_stacks() -> None:
    assert caches_of(None, None) is cache_budget.PROCESS
    assert caches_of(None, 5).limit_bytes == 5
    assert caches_of(2**20, None).limit_bytes == 2**19, "half of --memory"
    with pytest.raises(UsageError, match="--cache-memory 2 leaves nothing for weights of --memory 1"):
        caches_of(2**30, 2**31)


@compiled
def test_engines_that_work_at_once_answer_as_alone_and_share_a_bound_too_small_for_both() -> None:
    """Two engines with room for one and a half requests: no deadlock, the same tokens, and what they keep moves."""
    tokenizer: Any = type("Bytes", (), {"decode": staticmethod(lambda tokens: "x" * len(tokens))})()
    draw = random.Random(0)
    prompts = [tuple(draw.randint(1, 250) for _ in range(draw.randint(90, 200))) for _ in range(12)]
    requests = [Request(prompt, Decoding(temperature=0, max_tokens=20)) for prompt in prompts]

    def answers(engine: LocalEngine) -> list[list[int]]:
        return [[piece.token for piece in pieces] for pieces in engine.generate(requests)]

    alone = LocalEngine(policy(), tokenizer, num_slots=4)
    wanted = answers(alone)
    alone.close()
    budget = CacheBudget(11 * page_bytes(policy().config))
    engines = [LocalEngine(policy(), tokenizer, num_slots=4, budget=budget) for _ in range(3)]
    found: dict[int, list[list[int]]] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: answers(engines[i])})) for i in range(3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert [found.get(i) for i in range(3)] == [wanted] * 3
        uses = [engine.cache_use for engine in engines]
        assert sum(use.used for use in uses) == 0
        assert 0 < sum(use.kept for use in uses) <= 11
        engines[0].hidden(prompts[0])  # idle ones give way
        assert answers(engines[0]) == wanted
        assert engines[0].cache_use.kept >= 8
        for engine in engines[1:]:
            engine.close()
        assert answers(engines[0]) == wanted
        assert engines[0].cache_use.kept + engines[0].cache_use.free == 10, "all is the last one's"
    finally:
        for engine in engines:
            engine.close()
    assert budget.free_bytes == budget.limit_bytes


def resident(cache: PagedCache) -> int:
    """Bytes of a cache that are in memory, as the system says."""
    size = cache.data.nbytes
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    library = ctypes.CDLL(None, use_errno=True)
    assert library.mincore(ctypes.c_void_p(cache.data.data_ptr()), ctypes.c_size_t(size), pages) == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


WIDE: Any = Config("llama", 300, 192, 512, 12, 3, 3, 64, 8192, 1e-5, 10_000.0, tie_word_embeddings=True)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_memory_that_gives_way_is_the_systems_again() -> None:
    """12 layers of 24 KiB a page: of 150 pages given back in any order all but the ends are free, and they read as zeros."""
    cache = PagedCache(WIDE, 1, 200 * PAGE, format="fp16")
    assert resident(cache) == 0
    for page in range(200):
        cache.hold(page)
        cache.data[:, page] = 1.0
    full = resident(cache)
    assert full >= cache.num_bytes
    gone = random.Random(0).sample(range(200), 150)
    for page in gone:
        cache.give_back(page)
        cache.give_back(page)
    left = sorted(set(range(200)) - set(gone))
    assert 0.25 * full <= resident(cache) < 0.3 * full
    assert bool((cache.data[:, left] == 1.0).all()), "what is held is as it was"
    for page in left:
        cache.give_back(page)
    assert resident(cache) <= 12 * mmap.PAGESIZE, "what two layers share"
    cache.hold(7)
    cache.data[:, 7] = 2.0
    assert bool((cache.data[:, 7] == 2.0).all())


@compiled
def test_an_engine_that_is_gone_counts_no_longer() -> None:
    budget = CacheBudget(20 * page_bytes(policy().config))
    batch = Batch(forward.forward_of(policy(), 4, 256, budget), 4)
    [sequence] = states(policy(), [[1] * 100], 30)
    batch.add(sequence)
    batch.step()
    assert budget.free_bytes < budget.limit_bytes
    del batch, sequence
    gc.collect()
    assert budget.free_bytes == budget.limit_bytes


def test_large_weights_leave_less_for_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 billion weights of 16 bits on 24 GB: half of the machine's memory for a context of 128,000 tokens would be too much."""
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 24 * 10**9)
    budget, page = CacheBudget(), 32 * 131_072
    assert budget.num_pages(page, 4096, 10**6) == 12 * 10**9 // page
    assert budget.num_pages(page, 4096, 10**6, 16 * 10**9) == 4 * 10**9 // page
    assert budget.num_pages(page, 4096, 10**6, 2 * 10**9) == 4 * 10**9 // page, (
        "of several weights the largest"
    )
    crowded = CacheBudget()
    assert crowded.num_pages(page, 4096, 10**6, 23_900_000_000) == 24 * 10**9 // 16 // 2 // page

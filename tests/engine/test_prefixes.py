"""Pages under random admission, reading, cancelling and failing, against an obvious twin; and the bound on memory."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from demeanor.core.errors import ContextError, EngineError
from demeanor.core.types import Decoding
from demeanor.engine import forward
from demeanor.engine.cache_budget import CacheBudget
from demeanor.engine.local import LocalEngine
from demeanor.engine.prefixes import PagePrefixes, common_prefix
from demeanor.engine.scheduler import Batch, Piece, Request, SequenceState
from demeanor.model import checkpoints, native
from demeanor.model.llama import Llama
from demeanor.model.pages import PAGE, page_bytes
from demeanor.stack.schema import ModelShape

SLOTS, BLOCKS = 5, 6


class Memory:
    """A cache that stores, for each token of each page, the whole text up to it: the obvious twin of keys and values."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages, self.num_slots, self.page_bytes = num_pages, SLOTS, 1
        self.table = torch.full((SLOTS, BLOCKS), -1, dtype=torch.int32)
        self.pages: list[list[Any]] = [[None] * PAGE for _ in range(num_pages)]

    def copy_page(self, source: int, target: int) -> None:
        assert source != target
        self.pages[target] = list(self.pages[source])

    def hold(self, page: int) -> None:
        pass

    def give_back(self, page: int) -> None:
        self.pages[page] = [None] * PAGE

    def write(self, slot: int, text: list[int], start: int) -> None:
        for i in range(start, len(text)):
            self.pages[self.table[slot, i // PAGE]][i % PAGE] = tuple(text[: i + 1])

    def read(self, slot: int, count: int) -> list[Any]:
        return [self.pages[self.table[slot, i // PAGE]][i % PAGE] for i in range(count)]


@dataclass
class Running:
    slot: int
    prompt: list[int]
    room: int
    text: list[int] = field(default_factory=list)  # what is in the cache


class Simulation:
    """Random sequences over two tokens, many of which continue earlier ones."""

    def __init__(
        self, num_pages: int, seed: int, failing: float = 0.1, budget: CacheBudget | None = None
    ) -> None:
        self.failing = failing  # share of sequences whose pages are not kept
        self.random = random.Random(seed)
        self.memory = Memory(num_pages)
        self.prefixes = PagePrefixes(self.memory, SLOTS, budget or CacheBudget(num_pages))  # type: ignore[arg-type]
        self.running: list[Running] = []
        self.written: list[list[int]] = [[]]
        self.admitted = self.refused = self.known = 0

    def prompt(self) -> list[int]:
        known = self.random.choice(self.written)
        known = known[: self.random.randint(0, len(known))]
        longest = PAGE * BLOCKS - 1
        fresh = [self.random.randint(0, 1) for _ in range(self.random.randint(1, 70))]
        return [*known, *fresh][:longest]

    def admit(self) -> None:
        prompt, reuse = self.prompt(), self.random.random() < 0.9
        room = self.random.randint(1, PAGE * BLOCKS - len(prompt))
        found = self.prefixes.admit(prompt, room, reuse=reuse)
        if found is None:
            self.refused += 1
            return
        slot, known = found
        assert slot not in [other.slot for other in self.running]
        assert known < len(prompt)
        assert reuse or not known
        self.running.append(Running(slot, prompt, room, prompt[:known]))
        self.admitted += 1
        self.known += known

    def advance(self, one: Running) -> None:
        if len(one.text) < len(one.prompt) and self.random.random() < 0.5:
            known = self.prefixes.more(one.slot, one.prompt)
            assert len(one.text) <= known < len(one.prompt)
            one.text = one.prompt[:known]
        reading = one.prompt[len(one.text) : len(one.text) + self.random.randint(1, 50)]
        new = reading or [self.random.randint(0, 1)]
        drafted = 0 if reading else self.random.randint(0, 3)  # written and then given up
        room = len(one.prompt) + one.room - len(one.text)
        new, drafted = new[:room], max(0, min(drafted, room - 1))
        if not new:
            return self.end(one)
        start = len(one.text)
        self.prefixes.reserve(one.slot, start + len(new) + drafted)
        one.text = one.text + new
        self.memory.write(one.slot, one.text + [7] * drafted, start)
        self.prefixes.wrote(one.slot, new)
        self.written.append(list(one.text))
        return None

    def end(self, one: Running) -> None:
        self.running.remove(one)
        self.prefixes.release(one.slot, keep=self.random.random() >= self.failing)

    def move(self) -> None:
        self.random.choice([self.admit, self.one, self.one, self.one, self.leave])()

    def step(self) -> None:
        self.move()
        self.check()

    def one(self) -> None:
        if self.running:
            self.advance(self.random.choice(self.running))

    def leave(self) -> None:
        if self.running and self.random.random() < 0.3:
            self.end(self.random.choice(self.running))

    def check_texts(self) -> None:
        for one in self.running:
            assert self.memory.read(one.slot, len(one.text)) == [
                tuple(one.text[: i + 1]) for i in range(len(one.text))
            ]

    def check(self) -> None:
        self.check_texts()
        use = self.prefixes.usage()
        assert use.used + use.kept + use.free == self.memory.num_pages - 1
        held = {
            int(page) for one in self.running for page in self.memory.table[one.slot] if page
        }  # page 0 is nobody's
        assert len(held) == use.used


@pytest.mark.parametrize("num_pages", [BLOCKS + 1, 2 * BLOCKS, SLOTS * BLOCKS + 1])
@pytest.mark.parametrize("seed", range(3))
def test_every_sequence_reads_what_belongs_to_it_and_no_page_is_lost(num_pages: int, seed: int) -> None:
    simulation = Simulation(num_pages, seed)
    for _ in range(700):
        simulation.step()
    assert simulation.admitted > 20
    assert simulation.known > 300
    assert simulation.refused > 5
    while simulation.running:
        simulation.end(simulation.running[0])
    use = simulation.prefixes.usage()
    assert (use.used, use.kept + use.free) == (0, num_pages - 1)
    for _ in range(3):  # and all of it can be used again
        found = simulation.prefixes.admit([9] * 40, PAGE * BLOCKS - 40, reuse=True)
        assert found is not None
        simulation.prefixes.reserve(found[0], PAGE * BLOCKS)
        simulation.prefixes.release(found[0], keep=False)
    assert simulation.prefixes.usage().used == 0


@pytest.mark.parametrize("seed", range(2))
def test_while_memory_lasts_all_that_was_ever_read_is_known(seed: int) -> None:
    simulation = Simulation(5000, seed, failing=0)
    told = 0
    for _ in range(300):
        prompt = simulation.prompt()
        found = simulation.prefixes.admit(prompt, 1, reuse=True)
        if found is None:
            simulation.end(simulation.running[0])
            continue
        one = Running(found[0], prompt, 1, prompt[: found[1]])
        assert found[1] == max(common_prefix(prompt[:-1], text) for text in simulation.written)
        told += found[1]
        simulation.running.append(one)
        for _ in range(simulation.random.randint(0, 4)):
            if one in simulation.running:
                simulation.advance(one)
    assert told > 1000


# ---- the engine ----

compiled = pytest.mark.skipif(native.build() is None, reason="no C++ compiler here")


def policy(context: int = 256) -> Llama:
    return checkpoints.create(
        ModelShape(layers=1, width=16, heads=2, kv_heads=1, context=context, init="normal"), 300, 3
    )


def states(model: Llama, prompts: list[list[int]], max_tokens: int) -> list[SequenceState]:
    def decode(tokens: Any) -> str:
        return "x" * len(tokens)

    requests = [Request(tuple(p), Decoding(0, max_tokens=max_tokens)) for p in prompts]
    return [SequenceState(r, max_tokens, decode) for r in requests]


@compiled
def test_a_thousand_requests_leave_no_page_behind() -> None:
    """Some are cancelled while they wait, read or write; the cache never takes more than its bound."""
    model, random_ = policy(), random.Random(0)
    runner = forward.forward_of(model, 9, 256, CacheBudget(20 * page_bytes(model.config)))
    assert runner.capacity == 19 * PAGE
    batch = Batch(runner, 8)
    prompts = [[random_.randint(1, 3) for _ in range(random_.randint(1, 120))] for _ in range(40)]
    waiting = states(model, [random_.choice(prompts) for _ in range(1000)], 4)
    alive: list[SequenceState] = []
    finished = cancelled = 0
    with torch.inference_mode():
        while waiting or batch.busy:
            for _ in range(min(len(waiting), random_.randint(0, 3))):
                alive.append(waiting.pop())
                batch.add(alive[-1])
            if alive and random_.random() < 0.2:
                batch.drop(alive.pop(random_.randrange(len(alive))))
                cancelled += 1
            for sequence, piece in batch.step():
                assert not isinstance(piece, EngineError)
                if piece.finish is not None:
                    alive.remove(sequence)
                    finished += 1
    use = batch.cache_use
    assert finished + cancelled == 1000
    assert cancelled > 50
    assert (use.used, use.kept + use.free) == (0, 19)
    assert use.cached_tokens > use.prompt_tokens / 10


@compiled
def test_answers_are_the_same_with_little_memory_and_with_much() -> None:
    model, random_ = policy(), random.Random(1)
    prompts = [[random_.randint(1, 3) for _ in range(random_.randint(20, 120))] for _ in range(6)] * 3

    def answers(pages: int) -> list[list[int]]:
        batch = Batch(forward.forward_of(model, 5, 256, CacheBudget(pages * page_bytes(model.config))), 4)
        sequences = states(model, prompts, 20)
        return [[piece.token for piece in pieces] for pieces in answered(batch, sequences).values()]

    wanted = answers(1000)
    assert answers(6) == wanted
    assert answers(11) == wanted


@compiled
def test_a_request_that_can_never_fit_is_refused_by_name_and_the_engine_goes_on() -> None:
    model = policy()
    tokenizer: Any = type("Bytes", (), {"decode": staticmethod(lambda tokens: "x" * len(tokens))})()
    engine = LocalEngine(model, tokenizer, num_slots=2, budget=CacheBudget(3 * page_bytes(model.config)))
    try:
        with pytest.raises(ContextError, match=r"more than the 64 tokens .* --cache-memory"):
            engine.generate([Request((5,) * 40, Decoding(0, max_tokens=30))])
        assert len(engine.generate([Request((5,) * 40, Decoding(0, max_tokens=24))])[0]) == 24
        assert engine.hidden((5,) * 60).shape == (60, 16)
        assert engine.cache_use.used == 0
    finally:
        engine.close()


@compiled
def test_a_later_request_says_how_much_of_its_prompt_was_known() -> None:
    """The turn before with its answer, and a prompt that was read meanwhile; not if every token is to be scored."""
    batch = Batch(forward.forward_of(policy(), 4, 256), 4)
    prompt = [i % 50 + 1 for i in range(100)]
    [first] = states(policy(), [prompt], 8)
    pieces = answered(batch, [first])[first]
    following = [*prompt, *(piece.token for piece in pieces), *range(200, 220)]
    group = states(policy(), [following] * 3, 4)
    scored = SequenceState(
        Request(tuple(prompt), Decoding(0, max_tokens=1), prompt_logprobs=0), 1, group[0]._decode
    )
    found = answered(batch, [*group, scored])
    assert [piece.cached for piece in pieces] == [0] * 8
    # The last token of an answer is drawn and not read; of the group one sequence reads what is new.
    assert sorted(found[s][-1].cached for s in group) == [107, 127, 127]
    assert found[scored][-1].cached == 0
    use = batch.cache_use
    assert (use.prompt_tokens, use.cached_tokens) == (100 + 3 * 128 + 100, 107 + 2 * 127)


def answered(batch: Batch, sequences: list[SequenceState]) -> dict[SequenceState, list[Piece]]:
    found: dict[SequenceState, list[Piece]] = {s: [] for s in sequences}
    for sequence in sequences:
        batch.add(sequence)
    with torch.inference_mode():
        while batch.busy:
            for sequence, piece in batch.step():
                assert not isinstance(piece, EngineError)
                found[sequence].append(piece)
    return found


def test_a_cache_too_small_for_a_token_is_refused() -> None:
    if native.build() is None:
        pytest.skip("no C++ compiler here")
    with pytest.raises(EngineError, match="holds no token of this model"):
        forward.forward_of(policy(), 2, 256, CacheBudget(100))

"""Many callers, one thread: every caller gets an answer, an end or an error; a caller who leaves frees the slot."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch
from byte_model import END, ByteModel, ByteTokenizer, endless_next, random_next, says, slow_answer

from demeanor.core.errors import ContextError, EngineError
from demeanor.core.types import Decoding
from demeanor.engine.local import LocalEngine, Piece, Request

STOPS = frozenset({END})


def request(prompt: str, **decoding: object) -> Request:
    return Request(tuple(prompt.encode()), Decoding(**{"temperature": 0, "max_tokens": 8, **decoding}), STOPS)


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    with closing(LocalEngine(ByteModel(endless_next), ByteTokenizer(), num_slots=4)) as engine:
        yield engine


async def collect(engine: LocalEngine, asked: Request) -> list[Piece]:
    return [piece async for piece in engine.stream(asked)]


async def test_streams_at_once_answer_as_generate_does(engine: LocalEngine) -> None:
    asked = [request(f"request {i}", temperature=i % 2, seed=i, max_tokens=5 + i) for i in range(12)]
    streamed = await asyncio.gather(*(collect(engine, one) for one in asked))
    assert streamed == await asyncio.to_thread(engine.generate, asked)
    assert [p.token for p in streamed[0]] == slow_answer(endless_next, asked[0].tokens, 5, STOPS)


def test_generate_answers_in_the_order_of_its_requests(engine: LocalEngine) -> None:
    asked = [request("x" * (20 - i), max_tokens=1 + i) for i in range(20)]
    answers = engine.generate(asked)
    assert [len(pieces) for pieces in answers] == [
        len(slow_answer(endless_next, a.tokens, a.decoding.max_tokens, STOPS)) for a in asked
    ]
    assert all(
        [p.finish is not None for p in pieces] == [False] * (len(pieces) - 1) + [True] for pieces in answers
    )
    assert engine.generate([]) == []


async def test_a_piece_is_handed_over_before_the_next_is_computed() -> None:
    gate = threading.Semaphore(2)

    def slow_next(history: tuple[int, ...]) -> torch.Tensor:
        assert gate.acquire(timeout=10)
        return says({"?": "Marla."})(history)

    with closing(LocalEngine(ByteModel(slow_next), ByteTokenizer(), num_slots=1)) as engine:
        stream = engine.stream(request("?"))
        assert [(await anext(stream)).text, (await anext(stream)).text] == ["M", "a"]
        gate.release(100)
        assert text([piece async for piece in stream]) == "rla."


@pytest.mark.parametrize("way", ["aclose", "cancel"])
async def test_a_caller_who_leaves_frees_the_slot_within_one_step(way: str) -> None:
    model = ByteModel(endless_next)
    with closing(LocalEngine(model, ByteTokenizer(), num_slots=1)) as engine:
        stream = engine.stream(request("for ever", max_tokens=10**6))
        await anext(stream)
        if way == "aclose":
            await stream.aclose()
        else:
            task = asyncio.create_task(_drain(stream))
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
        made = len(model.calls)
        answer = await asyncio.wait_for(collect(engine, request("next", max_tokens=2)), 120)
        assert len(answer) == 2
        steps_in_between = [kind for kind, _, tokens in model.calls[made:] if tokens != list(b"next")]
        assert len(steps_in_between) <= 3, "at most one step for the old request, and those of the new one"
        assert not engine._recipients


async def _drain(stream: object) -> None:
    async for _ in stream:
        pass


async def test_a_caller_who_leaves_while_waiting_for_a_slot_is_forgotten(engine: LocalEngine) -> None:
    busy = [engine.stream(request(f"{i}", max_tokens=10**6)) for i in range(4)]
    for stream in busy:
        await anext(stream)
    waiting = asyncio.create_task(collect(engine, request("late")))
    await asyncio.sleep(0.02)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    for stream in busy:
        await stream.aclose()
    assert len(await collect(engine, request("next", max_tokens=3))) == 3


def test_a_stream_that_is_never_read_costs_nothing(engine: LocalEngine) -> None:
    engine.stream(request("unread"))
    assert not engine._recipients
    assert len(engine.generate([request("next", max_tokens=3)])[0]) == 3


# ---- limits ----


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    with closing(
        LocalEngine(ByteModel(endless_next), ByteTokenizer(), num_slots=1, max_context=16)
    ) as engine:
        with pytest.raises(ContextError, match=r"17 tokens.*context of 16"):
            engine.stream(request("x" * 17))
        with pytest.raises(ContextError, match=r"16 tokens.*context of 16"):
            engine.generate([request("ok"), request("x" * 16)])
        last = engine.generate([request("x" * 15, max_tokens=100)])[0]
        assert (len(last), last[-1].finish) == (1, "length")


def test_max_tokens_is_clipped_by_the_context() -> None:
    with closing(
        LocalEngine(ByteModel(endless_next), ByteTokenizer(), num_slots=1, max_context=16)
    ) as engine:
        pieces = engine.generate([request("xxxx", max_tokens=100)])[0]
        assert (len(pieces), pieces[-1].finish) == (12, "length")


def test_the_context_is_never_more_than_the_models_own() -> None:
    model = ByteModel(endless_next)
    with closing(LocalEngine(model, ByteTokenizer(), num_slots=1, max_context=10**9)) as engine:
        assert engine.max_context == model.config.max_position_embeddings


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (Request((), Decoding(), STOPS), "no tokens"),
        (request("x", max_tokens=0), "max_tokens is 0"),
        (request("x", stop=("",)), "empty string"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_by_name(
    engine: LocalEngine, asked: Request, why: str
) -> None:
    with pytest.raises(EngineError, match=why):
        engine.stream(asked)


# ---- ends ----


def broken_next(history: tuple[int, ...]) -> torch.Tensor:
    if len(history) > 12:
        raise ValueError("the disk is on fire")
    return random_next(history)


async def test_an_exception_in_the_loop_reaches_every_caller() -> None:
    with closing(LocalEngine(ByteModel(broken_next), ByteTokenizer(), num_slots=2)) as engine:
        waiting = [collect(engine, request(f"caller {i}", max_tokens=100)) for i in range(5)]
        by_thread = asyncio.to_thread(engine.generate, [request("thread", max_tokens=100)])
        errors = await asyncio.wait_for(asyncio.gather(*waiting, by_thread, return_exceptions=True), 120)
        assert [type(error) for error in errors] == [EngineError] * 6
        assert all("ValueError: the disk is on fire" in str(error) for error in errors)
        assert isinstance(errors[0].__cause__, ValueError)
        assert len(engine.generate([request("later", max_tokens=5)])[0]) == 5
        assert engine.health() is None


def test_an_engine_that_fails_says_so_and_works_again_when_its_cause_is_gone() -> None:
    broken = threading.Event()

    def sometimes(history: tuple[int, ...]) -> torch.Tensor:
        if broken.is_set():
            raise RuntimeError("no memory")
        return endless_next(history)

    with closing(LocalEngine(ByteModel(sometimes), ByteTokenizer(), num_slots=2)) as engine:
        asked = request("hello", max_tokens=6)
        (before,) = engine.generate([asked])
        broken.set()
        with pytest.raises(EngineError, match="RuntimeError: no memory"):
            engine.generate([asked, asked, asked])
        deadline = time.monotonic() + 120
        while engine.health() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert "no memory" in str(engine.health())
        broken.clear()
        while engine.health() is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert engine.health() is None, "it is tried again without a request"
        assert engine.generate([asked]) == [before]
    assert engine.health() == "the engine is closed"


async def test_close_ends_every_caller_and_the_thread() -> None:
    engine = LocalEngine(ByteModel(endless_next), ByteTokenizer(), num_slots=2)
    waiting = [asyncio.create_task(collect(engine, request(f"{i}", max_tokens=10**6))) for i in range(4)]
    await asyncio.sleep(0.02)
    engine.close()
    engine.close()
    errors = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 120)
    assert [str(error) for error in errors] == ["the engine was closed before the answer was complete"] * 4
    assert not engine._thread.is_alive()
    with pytest.raises(EngineError, match="closed"):
        engine.generate([request("later")])


def test_an_event_loop_that_is_gone_frees_its_slots() -> None:
    with closing(LocalEngine(ByteModel(endless_next), ByteTokenizer(), num_slots=1)) as engine:
        loop = asyncio.new_event_loop()
        stream = engine.stream(request("for ever", max_tokens=10**6))
        loop.run_until_complete(anext(stream))
        loop.close()
        assert len(engine.generate([request("next", max_tokens=2)])[0]) == 2
        assert not engine._recipients
        del stream


def test_engines_take_turns() -> None:
    """Both of two busy engines move on; and never do two steps run at once."""
    inside = threading.Semaphore(1)

    def alone(history: tuple[int, ...]) -> torch.Tensor:
        assert inside.acquire(blocking=False), "another engine is computing"
        time.sleep(0.001)
        inside.release()
        return random_next(history)

    first, second = (LocalEngine(ByteModel(alone), ByteTokenizer(), num_slots=1) for _ in range(2))
    with closing(first), closing(second):
        answers: list[list[list[Piece]]] = []
        threads = [
            threading.Thread(target=lambda e=e: answers.append(e.generate([request("go", max_tokens=15)])))
            for e in (first, second)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert len(answers) == 2
        assert answers[0] == answers[1]


def test_idle_engines_use_no_time(engine: LocalEngine) -> None:
    engine.generate([request("warm")])
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1

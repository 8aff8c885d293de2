"""One sequence that fails, at any place of a step, ends alone: its neighbours' tokens stay what they are without it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch

from demeanor.core.errors import EngineError
from demeanor.core.types import Decoding, OutputFormat
from demeanor.engine import sampling, scheduler
from demeanor.engine.detokenizer import Detokenizer
from demeanor.engine.forward import Rows
from demeanor.engine.local import LocalEngine, LoopOutbox, Recipient
from demeanor.engine.prefixes import PagePrefixes, SlotPrefixes
from demeanor.engine.scheduler import Batch, Piece, Request, SequenceState
from demeanor.engine.structured import Guide
from demeanor.model import checkpoints
from demeanor.model.native import NativeStep
from demeanor.stack import schema as specs
from demeanor.stack.schema import ModelShape
from demeanor.text import tokenizer as tokenizers

VICTIM = (300, 301, 302, 303, 304, 305)
TEMPERATURE = 0.8125  # of the victim only
FORM = OutputFormat("regex", "[a-z]{40}")
NEIGHBOURS = [
    Request((20, 21, 22), Decoding(0, max_tokens=12)),
    Request((30, 31), Decoding(0.9, max_tokens=12, seed=3, top_p=0.9)),
    Request((40, 41, 42), Decoding(0.7, max_tokens=12, seed=4, form=FORM, top_logprobs=2)),
    Request((50,), Decoding(0, max_tokens=12, logit_bias=((97, 2.0),), frequency_penalty=1.0)),
    Request((60, 61, 62, 63) * 4, Decoding(0, max_tokens=4), prompt_logprobs=1),
]


def victim(**more: Any) -> Request:
    settings: dict[str, Any] = {
        "max_tokens": 12,
        "seed": 1,
        "form": FORM,
        "top_logprobs": 1,
        "presence_penalty": 0.5,
    }
    prompt_logprobs = more.pop("prompt_logprobs", None)
    return Request(VICTIM, Decoding(TEMPERATURE, **{**settings, **more}), prompt_logprobs=prompt_logprobs)


class Planted(BaseException):
    """A panic of compiled code is no Exception either."""


def of_sequence(name: str, owner: type = SequenceState, at: int = 1) -> Callable[[pytest.MonkeyPatch], None]:
    """Make a method raise for the victim, the `at`-th time it is called for it."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        inner, calls = getattr(owner, name), []

        def raising(self: Any, *args: Any) -> Any:
            sequence = self if owner is SequenceState else args[0]
            if sequence.request.tokens == VICTIM:
                calls.append(name)
                if len(calls) >= at:
                    raise Planted(name)
            return inner(self, *args)

        monkeypatch.setattr(owner, name, raising)

    return plant


def of_part(name: str, owner: type, part: str, at: int = 2) -> Callable[[pytest.MonkeyPatch], None]:
    """Make a method of a part of the victim (its guide, its detokenizer) raise at its `at`-th call."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        inner, parts, made, calls = getattr(owner, name), [], SequenceState.__init__, []

        def init(self: SequenceState, request: Request, *args: Any) -> None:
            made(self, request, *args)
            if request.tokens == VICTIM:
                parts.append(getattr(self, part))

        def raising(self: Any, *args: Any) -> Any:
            if any(self is one for one in parts):
                calls.append(name)
                if len(calls) >= at:
                    raise Planted(name)
            return inner(self, *args)

        monkeypatch.setattr(SequenceState, "__init__", init)
        monkeypatch.setattr(owner, name, raising)

    return plant


def in_the_cache(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Make the cache fail on the victim's prompt."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        for kind in (PagePrefixes, SlotPrefixes):
            inner = getattr(kind, name)

            def raising(self: Any, *args: Any, inner: Any = inner, **more: Any) -> Any:
                if list(VICTIM) in args:
                    raise Planted(name)
                return inner(self, *args, **more)

            monkeypatch.setattr(kind, name, raising)

    return plant


def in_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = sampling.drawn

    def drawn(logits_NV: torch.Tensor, settings: list[sampling.DrawSettings], *rest: Any) -> Any:
        if any(x.temperature == TEMPERATURE for x in settings):
            raise ValueError("draw")
        return inner(logits_NV, settings, *rest)

    monkeypatch.setattr(sampling, "drawn", drawn)


def in_the_prompts_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = scheduler._score_prompt

    def score(sequence: SequenceState, *args: Any) -> None:
        if sequence.request.tokens == VICTIM:
            raise Planted("score")
        inner(sequence, *args)

    monkeypatch.setattr(scheduler, "_score_prompt", score)


PLACES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Request]] = {
    "admission": (of_sequence("_admit", Batch), victim()),
    "look for known tokens": (in_the_cache("more"), victim()),
    "a slot": (in_the_cache("admit"), victim()),
    "reading": (of_sequence("_read_prompt", Batch), victim()),
    "row": (of_sequence("draft", at=3), victim()),
    "bias and penalties": (of_sequence("adjust", at=2), victim()),
    "noise": (of_sequence("noise", at=2), victim()),
    "draw": (in_the_draw, victim()),
    "closing": (of_sequence("closable", at=2), victim()),
    "acceptance": (of_sequence("accept", at=2), victim()),
    "acceptance of the first": (of_sequence("accept"), victim(form=None)),
    "guide's mask": (of_part("forbid", Guide, "_guide"), victim()),
    "guide's step": (of_part("accept", Guide, "_guide"), victim()),
    "detokenizing": (of_part("feed", Detokenizer, "_text"), victim()),
    "alternatives": (of_part("preview", Detokenizer, "_text"), victim()),
    "end of the text": (of_part("finish", Detokenizer, "_text", at=1), victim()),
    "prompt's scores": (in_the_prompts_scores, victim(form=None, prompt_logprobs=1)),
    "end of a prompt": (of_sequence("end"), victim(form=None, max_tokens=0, prompt_logprobs=1)),
}


def engine_of() -> LocalEngine:
    tokens = tokenizers.train(
        ["The ferry leaves at 9. Who is Marla? "] * 20, specs.TokenizerSpec(vocab_size=400)
    )
    model = checkpoints.create(ModelShape(layers=1, width=32, heads=2, context=128), 400, 0)
    return LocalEngine(model, tokens, num_slots=8)


async def answers(engine: LocalEngine, requests: list[Request]) -> list[list[Piece] | EngineError]:
    async def one(request: Request) -> list[Piece]:
        return [piece async for piece in engine.stream(request)]

    return await asyncio.wait_for(asyncio.gather(*map(one, requests), return_exceptions=True), 30)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def undisturbed() -> list[list[Piece] | EngineError]:
    with closing(engine_of()) as engine:
        found = asyncio.run(answers(engine, NEIGHBOURS))
    assert [len(pieces) for pieces in found if isinstance(pieces, list)] == [12, 12, 12, 12, 4]
    return found


@pytest.mark.parametrize("place", PLACES)
async def test_a_failure_at_any_place_of_a_step_ends_one_sequence_alone(
    place: str, monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any]
) -> None:
    plant, hurt = PLACES[place]
    plant(monkeypatch)
    with closing(engine_of()) as engine:
        first, *others = await answers(engine, [hurt, *NEIGHBOURS])
        assert isinstance(first, EngineError), first
        assert isinstance(first.__cause__, Planted | ValueError), first
        assert others == undisturbed
        assert engine.health() is None
        assert await answers(engine, NEIGHBOURS) == undisturbed, (
            "the slot of the one that failed is free and clean"
        )
        assert not engine._recipients


async def test_a_draft_that_fails_ends_its_sequence_alone(
    monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any]
) -> None:
    """Drafts are verified many tokens at a time, in a place of their own."""
    inner = scheduler._verify

    def verify(row: Any, output: Any) -> Any:
        if row.sequence.request.tokens == VICTIM:
            raise Planted("verify")
        return inner(row, output)

    monkeypatch.setattr(scheduler, "_verify", verify)
    with closing(engine_of()) as engine:
        assert engine.exact, "else drafts are not used"
        hurt = Request(VICTIM, Decoding(0, max_tokens=12), drafts=((97, 98, 99),))
        first, *others = await answers(engine, [hurt, *NEIGHBOURS])
        assert isinstance(first, EngineError)
        assert others == undisturbed


@pytest.mark.parametrize("how", ["raises", "nan"])
async def test_a_model_that_fails_on_one_sequence_goes_on_with_the_others(
    how: str, undisturbed: list[Any]
) -> None:
    with closing(engine_of()) as engine:
        run, slots = engine._forward.run, list[int]()

        def on_the_victim(rows: Rows) -> NativeStep:
            output = run(rows)
            at = [i for i, token in enumerate(rows.tokens) if token == VICTIM[0] and rows.positions[i] == 0]
            slots.extend(rows.slots[i] for i in at)
            late = [
                i for i, row in enumerate(rows.read) if rows.slots[row] in slots and rows.positions[row] > 8
            ]
            if late and how == "raises":
                raise RuntimeError("too long for me")
            for i in late:
                output.total_R[i] = torch.nan
            return output

        engine._forward.run = on_the_victim  # type: ignore[method-assign]
        first, *others = await answers(engine, [victim(), *NEIGHBOURS])
        assert isinstance(first, EngineError)
        assert ("too long for me" if how == "raises" else "NaN") in str(first)
        assert others == undisturbed
        assert engine.health() is None


async def test_an_outbox_that_fails_costs_nobody_else_anything(
    monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any]
) -> None:
    with closing(engine_of()) as engine:

        class Broken(LoopOutbox):
            def post(self, deliveries: list[Any]) -> None:
                raise OSError("no such pipe")

        lost = SequenceState(Request((70, 71), Decoding(0, max_tokens=10**6)), 10**6, engine._decode)
        engine._submit([lost], [Recipient(Broken(asyncio.get_running_loop()), None)])
        assert await answers(engine, NEIGHBOURS) == undisturbed
        assert not engine._recipients, "who cannot be reached is not written for"

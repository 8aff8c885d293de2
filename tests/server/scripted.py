"""A scripted assistant: what it answers depends on the last message only, and it remembers the turns it was given."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from demeanor.core.errors import ContextError, EngineError, RequestError, TextError
from demeanor.core.types import (
    Citation,
    Decoding,
    Done,
    Event,
    LeftOut,
    Message,
    Passage,
    Prompted,
    PromptRead,
    Refusal,
    Respond,
    RuleHit,
    Text,
    Timing,
    TokenLogprob,
    ToolCall,
    ToolCalled,
    ToolDecision,
    ToolResult,
    Turn,
    Upstream,
    Usage,
    complete,
)
from demeanor.server.assistant import (
    ClientAccess,
    FeedbackStore,
    Judged,
    ModelCard,
    Replay,
    RuleJudge,
    model_not_found,
)
from demeanor.store.database import Database

CARDS = [
    ModelCard(
        "harbour-desk",
        "The whole stack.",
        "5f0c9a1be47d",
        ("base", "sft", "dpo", "record", "limits", "policy", "tools", "retrieval", "prompt"),
    ),
    ModelCard("harbour-desk:base", "Pretrained weights alone.", "a91e33c07b12", ("base",)),
    ModelCard(
        "harbour-desk:dpo", "All weight layers, nothing around them.", "c7720de9518f", ("base", "sft", "dpo")
    ),
    ModelCard(
        "harbour-desk-policy",
        "Everything but the policy.",
        "0b64f2d8a3c5",
        ("base", "sft", "dpo", "tools", "retrieval", "prompt"),
    ),
]
PROMPT = Prompted(
    (
        Message(
            "system", "You are the desk of Corkel harbour. Answer in few words. If you do not know, say so."
        ),
    )
)
NOTICE = Passage(
    "ferries#2",
    "Ferries today: Jorpel leaves at 17. Corkel leaves at 9. The Marla is in the dock until Friday.",
    7.31,
    "notices/ferries.md",
)
BERTH = Passage(
    "berths#1",
    "Berths: the Sella lies at 4, the Orrin at 11. Berth 7 is closed for repair.",
    2.18,
    "notices/berths.md",
)


class Bytes:
    """A codec of bytes."""

    vocab_size = 256

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")


class Scripted:
    """An Assistant without a model; `turns` are those it was asked, `closed` counts answers that were cut off."""

    name, stack_key = "harbour-desk", CARDS[0].stack_key

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.turns: list[Turn] = []
        self.closed = 0
        self.records = True
        self.publishes: list[str] = []
        self.offered = ClientAccess()
        self.database: Database | None = None
        self.opinions_given: list[tuple[str, int, str | None, str | None, str | None, tuple[str, ...]]] = []

    def models(self) -> list[ModelCard]:
        return CARDS

    def published(self) -> list[str]:
        return self.publishes

    def card(self, model_id: str) -> ModelCard:
        if model_id == "harbour-desk:sft+prompt":
            return ModelCard(model_id, "Not listed, yet answered.", "77aa", ("base", "sft", "prompt"))
        for card in CARDS:
            if card.id == model_id:
                return card
        raise model_not_found(model_id, [card.id for card in CARDS])

    def respond(self, model_id: str) -> Respond:
        self.card(model_id)
        return self._respond

    def codec(self, model_id: str) -> Bytes:
        card = self.card(model_id)
        if "prompt" in card.layers:
            raise RequestError(
                f"model: '{model_id}' continues no raw text: prompt. Ask weights alone: harbour-desk:base.",
                param="model",
                code="unsupported_value",
            )
        return Bytes()

    def rules(self, model_id: str) -> tuple[str, RuleJudge]:
        if "policy" not in self.card(model_id).layers:
            raise RequestError(
                f"model: '{model_id}' has no policy layer.", status=404, param="model", code="no_policy_layer"
            )
        words = {"no-cards": "card", "no-pirates": "pirate"}

        async def judge(text: str) -> list[Judged]:
            return [
                Judged(
                    name,
                    "both",
                    "refuse",
                    f"asks for a {word}",
                    tuple((m.start(), m.end()) for m in re.finditer(word, text)),
                )
                for name, word in words.items()
            ]

        return "policy", judge

    def feedback_store(self) -> FeedbackStore | None:
        return self._opinion if self.records else None

    async def _opinion(
        self,
        turn_id: str,
        score: int,
        comment: str | None,
        corrected: str | None,
        user: str | None,
        reasons: tuple[str, ...] = (),
    ) -> bool:
        if not any(t.id == turn_id and user in (None, t.user) for t in self.turns):
            return False
        self.opinions_given.append((turn_id, score, comment, corrected, user, reasons))
        return True

    def approval_store(self) -> None:
        return None

    def client_access(self) -> ClientAccess:
        return self.offered

    def turn_database(self) -> Database | None:
        return self.database if self.records else None

    async def replay(self, turn: Turn, model_id: str) -> Replay:
        card = self.card(model_id)
        done = await complete(self._respond, replace(turn, id=f"{turn.id}~replay", variant=card.id))
        return Replay(card.id, card.stack_key, done, done.text, 12.5)

    def turn_store(self) -> Database | None:
        return self.database if self.records else None

    async def embed(self, model_id: str, texts: Sequence[tuple[int, ...]]) -> list[list[float]]:
        self.codec(model_id)
        return [[0.6, 0.8, len(text) / 1000] for text in texts]

    def defaults(self) -> Decoding:
        return Decoding(temperature=0.5, top_p=0.9, max_tokens=99, seed=None, stop=("###",))

    def examples(self) -> list[str]:
        return [
            "When does the ferry to Jorpel leave?",
            "What is 37 times 12?",
            "Who is the captain of the Marla?",
            "Give me the card number of the captain.",
        ]

    async def _respond(self, turn: Turn) -> AsyncGenerator[Event, None]:
        self.turns.append(turn)
        try:
            scripted = turn.raw is None or any(
                word in turn.messages[0].content for word in ("novel", "leak", "crash", "card")
            )
            async for event in (SCRIPTS[_topic(turn)] if scripted else raw)(self, turn):
                yield event
        except (GeneratorExit, asyncio.CancelledError):
            self.closed += 1
            raise

    async def say(self, text: str) -> AsyncGenerator[Event, None]:
        """The text word by word, each word one token with its log-probability."""
        for i, word in enumerate(text.split(" ")):
            await asyncio.sleep(self.pause_s)
            token = word if i == 0 else f" {word}"
            yield Text(token, logprobs=(TokenLogprob(token, -0.25, ((token, -0.25), (" perhaps", -1.75))),))


class Recording(Scripted):
    """A scripted assistant whose turns are recorded, as the record layer does it: durable before the end is told."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.database = Database(path)

    async def _opinion(
        self,
        turn_id: str,
        score: int,
        comment: str | None,
        corrected: str | None,
        user: str | None,
        reasons: tuple[str, ...] = (),
    ) -> bool:
        known = await super()._opinion(turn_id, score, comment, corrected, user, reasons)
        if known and self.database is not None:
            given = partial(self.database.add_feedback, turn_id, score, comment or "", user or "anonymous")
            await asyncio.to_thread(given, corrected, reasons)
        return known

    def respond(self, model_id: str) -> Respond:
        inner, database = super().respond(model_id), self.database
        assert database is not None

        async def respond(turn: Turn) -> AsyncIterator[Event]:
            events: list[Event] = []
            async for event in inner(turn):
                events.append(event)
                if isinstance(event, Done):
                    await database.record(turn, events, datetime.now(UTC), datetime.now(UTC))
                yield event

        return respond


def _topic(turn: Turn) -> str:
    if turn.approvals is not None:
        return "refund"
    last = turn.messages[-1]
    words = last.content.lower()
    if last.role == "tool":
        return "told"
    return next((topic for topic in SCRIPTS if topic in words), "")


async def raw(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    """Raw text goes on " and on", two tokens at most; every prompt token is as likely as its number over -1000."""
    assert turn.raw is not None
    if turn.decoding.prompt_logprobs is not None:
        values = tuple(-t / 1000 if i else None for i, t in enumerate(turn.raw))
        yield PromptRead(
            tuple(chr(t) for t in turn.raw),
            values,
            tuple((("?", -9.0),) if i else () for i in range(len(turn.raw))),
        )
    for i in range(min(turn.decoding.max_tokens, 2)):
        word = (" and", " on")[i]
        logprobs = (
            ()
            if turn.decoding.top_logprobs is None
            else (TokenLogprob(word, -0.5, ((" or", -0.25), (word, -0.5))),)
        )
        yield Text(word, logprobs=logprobs)
    yield Usage(len(turn.raw), min(turn.decoding.max_tokens, 2))
    yield Timing("weights", 1.0)
    yield Done("length")


async def greet(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    yield PROMPT
    async for event in me.say("Good morning from the harbour desk."):
        yield event
    yield Usage(24, 6)
    yield Timing("weights", 31.5)
    yield Timing("prompt", 0.02)
    yield Done("stop")


async def ferry(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    if ":" in turn.variant:
        async for event in me.say("The ferry to Jorpel leaves at 12."):
            yield event
        yield Usage(12, 8)
        yield Timing("weights", 28.1)
        yield Done("stop")
        return
    yield NOTICE
    yield BERTH
    yield Timing("retrieval", 0.61)
    yield PROMPT
    async for event in me.say("Jorpel leaves at 17."):
        yield event
    yield Citation(0, 20, "ferries#2")
    yield Usage(71, 6)
    yield Timing("weights", 36.4)
    yield Timing("policy", 0.18)
    yield Timing("prompt", 0.03)
    yield Done("stop")


async def times(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    yield PROMPT
    yield ToolCalled(ToolCall("call_1", "calculator", '{"expression": "37 * 12"}'))
    yield Usage(44, 11)
    yield Timing("weights", 41.0)
    yield ToolResult("call_1", "calculator", "444")
    yield Timing("tools", 0.9)
    async for event in me.say("It is 444."):
        yield event
    yield Usage(60, 4)
    yield Timing("weights", 17.2)
    yield Done("stop")


async def card_number(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    if turn.variant != "harbour-desk":
        async for event in me.say("The captain's card number is 4111 1111 1111 1111."):
            yield event
        yield Usage(15, 12)
        yield Timing("weights", 44.0)
        yield Done("stop")
        return
    yield Refusal(
        "policy", "no-card-numbers", "asks for a payment card number", "I cannot share anybody's card number."
    )
    yield Timing("policy", 0.21)
    yield Done("content_filter", by="policy")


async def leak(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    async for event in me.say("The secret is"):
        yield event
    yield Refusal("policy", "no-secrets", "the answer held a secret", "I cannot say.", stage="output")
    yield Usage(9, 3)
    yield Done("content_filter", by="policy")


async def gossip(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    """A layer that goes on talking after a refusal, and ends as if nothing had been."""
    yield Refusal("policy", "no-gossip", "talks about people", "Not about people.", stage="output")
    yield Text("She said that")
    yield Refusal("policy", "again", "", "Again not.", stage="output")
    yield Done("stop")


async def misquote(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    yield NOTICE
    yield Text("🐟 at 9, ")
    yield Text("says the sign", by="policy")
    yield Text(" over there", by="policy")
    yield Citation(0, 6, "ferries#2")
    yield Citation(3, 8, "ferries#2")
    yield Citation(9, 999, "nowhere")
    yield Done("stop")


async def weather(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    if not turn.tools or turn.tool_choice == "none":
        async for event in me.say("I cannot look that up."):
            yield event
        yield Done("stop")
        return
    yield ToolCalled(ToolCall("call_w1", "weather", '{"port": "Corkel"}'))
    yield ToolCalled(ToolCall("call_w2", "weather", '{"port": "Jorpel"}'))
    yield Usage(30, 14)
    yield Done("stop")


async def told(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    async for event in me.say(f"The tool says {turn.messages[-1].content}"):
        yield event
    yield Usage(50, 6)
    yield Done("stop")


async def forever(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    while True:
        await asyncio.sleep(0.01)
        yield Text(" on")


async def flood(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    while True:
        await asyncio.sleep(0)
        yield Text("on and " * 20_000)


async def novel(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    yield PROMPT
    raise ContextError("The prompt has 600 tokens; the context holds 512.")


async def unwritable(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    yield PROMPT  # a layer's message stands before the client's
    raise TextError("template t: cannot write it", message=turn.messages[0], index=1, field=".content")


async def sunk(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    yield PROMPT
    raise EngineError("http://10.0.0.9/v1: hunter2")


async def too_fast(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    raise RequestError(
        "Too many requests.",
        status=429,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after_s=0.02,
    )
    yield Done("stop")


async def crash(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    if "later" in turn.messages[-1].content:
        yield Text("Half an ")
    raise ZeroDivisionError("hunter2")


async def drain(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    yield Text("Half")
    yield Done("cancelled")


async def seeded(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    yield Text(f"seed {turn.decoding.seed}")
    yield Usage(5, 2)
    yield Done("length")


async def echo(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    """What comes after the first line of the question, in pieces of at most 4,000 characters."""
    text = turn.messages[-1].content.partition("\n")[2]
    for at in range(0, len(text), 4000):
        await asyncio.sleep(0)
        yield Text(text[at : at + 4000])
    yield Usage(9, 9)
    yield Timing("weights", 5.0)
    yield Done("stop")


async def long(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    yield PROMPT
    async for event in me.say(
        "The Marla was built at Corkel. She carries forty passengers and two carts. Her captain is Tessa Brun, who "
        "came from Jorpel as a girl and has sailed the strait for twenty years.\n\nOn Fridays the Marla rests "
        "in the dock; the Sella takes her place, and leaves from berth 4 at the same hour."
    ):
        yield event
    yield Usage(31, 52)
    yield Timing("weights", 412.7)
    yield Done("stop")


HOSTILE = "</td><script>pwned=1</script><img src=x onerror=pwned=2>\u202egnp.exe\u200b[x](javascript:pwned=3) $\\href{javascript:pwned=4}{x}$ `</code>`"
"""A text for every field: markup, an event handler, a reordering, a script address, mathematics."""


async def hostile(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    """Hostile text in every field of every event."""
    yield Passage(HOSTILE, HOSTILE, 1.0, HOSTILE, heading=HOSTILE, start=3, end=9, page=1)
    yield Passage("2", "plain", 1.0, "javascript:pwned=5")
    yield Prompted((Message("system", HOSTILE),), by=HOSTILE)
    yield ToolCalled(ToolCall("call_h", HOSTILE, HOSTILE))
    yield ToolResult("call_h", HOSTILE, HOSTILE)
    yield ToolDecision("denied", (HOSTILE,), "call_h", HOSTILE)
    yield RuleHit(HOSTILE, "input", "flagged", HOSTILE, HOSTILE, score=0.75)
    yield LeftOut(HOSTILE, HOSTILE, 2)
    yield Upstream(HOSTILE, ((HOSTILE, 503),))
    yield Text(HOSTILE)
    yield Citation(0, 20, HOSTILE, cited_text=HOSTILE, source_start=0, source_end=9)
    yield Citation(30, 40, "2")
    if "refuse" in turn.messages[-1].content:
        yield Refusal(HOSTILE, HOSTILE, HOSTILE, HOSTILE, stage="output")
    yield Timing("weights", 1.0)
    yield Done("stop")


async def refund(me: Scripted, turn: Turn) -> AsyncGenerator[Event, None]:
    """A tool that waits for a person: for two rounds, if the question says twice."""
    rounds = sum(1 for m in turn.messages if m.tool_calls)
    if turn.approvals is not None and rounds > ("twice" in turn.messages[0].content):
        decisions = turn.approvals.decisions
        async for event in me.say(
            " ".join("Paid." if d.approved else f"Not paid: {d.reason}." for d in decisions)
        ):
            yield event
        yield Done("stop")
        return
    async for event in me.say(f"Round {rounds + 1}."):
        yield event
    call = f"call_{rounds}"
    yield ToolCalled(ToolCall(call, "refund", '{"order": 7}'))
    yield ToolDecision("waiting", ("refund",), call, "the stack asks before this tool is run")
    yield Done("tool_calls")


SCRIPTS = {
    "refund": refund,
    "hostile": hostile,
    "say back": echo,
    "ferry": ferry,
    "times": times,
    "card number": card_number,
    "leak": leak,
    "gossip": gossip,
    "misquote": misquote,
    "sunk": sunk,
    "unwritable": unwritable,
    "weather": weather,
    "told": told,
    "forever": forever,
    "novel": novel,
    "flood": flood,
    "too fast": too_fast,
    "crash": crash,
    "drain": drain,
    "seed": seeded,
    "captain": long,
    "": greet,
}


def body(text: str = "hello", **fields: object) -> dict[str, object]:
    """A request body with one user message."""
    return {"model": "harbour-desk", "messages": [{"role": "user", "content": text}], **fields}

"""The innermost respond of an episode: the policy's calls recorded as token ids that never pass through text.

In: an engine, a template, turns of one episode. Out: the events of `model_respond`, and for each call what the
policy read and drew. A turn that continues an earlier call is read as that call's own tokens with only the
new messages rendered after them. Knows no training, layer or environment.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from demeanor.core.errors import DataError, EngineError
from demeanor.core.types import Event, Messages, Respond, Text, ToolCall, ToolCalled, ToolSpec, Turn
from demeanor.engine.respond import Engine, model_respond
from demeanor.engine.scheduler import Piece, Request
from demeanor.text.template import NO_KWARGS, Reader, Rendered, Template
from demeanor.text.tokenizer import Tokenizer


class RecordedCall(NamedTuple):
    """One call: the tokens that the policy read and drew, their log-probs (nats) and kept tokens.

    `ended`: a stop token or a stop text ended the answer. `forced`: a grammar chose among the tokens.
    """

    prompt: tuple[int, ...]
    drawn: tuple[int, ...]
    sampled: tuple[float, ...]
    kept: tuple[tuple[int, ...], ...]
    ended: bool
    forced: bool


@dataclass
class _Asked:
    """What a call was asked with, and the text and calls that its drawn tokens gave."""

    messages: Messages
    tools: tuple[ToolSpec, ...]
    texts: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    text_after_calls: bool = False  # a template writes all text before the calls
    call: RecordedCall | None = None

    def continued_by(self, messages: Messages, tools: Sequence[ToolSpec]) -> bool:
        """Whether a conversation is this call's, its answer exactly as it was read, and something after it."""
        n = len(self.messages)
        if self.call is None or len(messages) < n + 2 or messages[:n] != self.messages:
            return False
        answer = messages[n]
        read = ("assistant", "".join(self.texts), tuple(self.tool_calls), self.tools)
        return (answer.role, answer.content, answer.tool_calls, tuple(tools)) == read


class Recorder:
    """The calls of one episode; it stands for both the engine and the template of `model_respond`.

    Calls of an episode follow each other. The first is drawn with `seed`, later ones with seeds derived from it.
    """

    def __init__(self, engine: Engine, template: Template, tokenizer: Tokenizer, seed: int) -> None:
        self._engine, self._template, self._tokenizer, self._seed = engine, template, tokenizer, seed
        self._asked: list[_Asked] = []
        self.name, self.jinja = template.name, template.jinja
        self.stop_tokens, self.stop = template.stop_tokens, template.stop

    @property
    def calls(self) -> list[RecordedCall]:
        """The calls that ended, in order."""
        return [asked.call for asked in self._asked if asked.call is not None]

    def respond(self) -> Respond:
        """The innermost respond of this episode."""
        inner = model_respond(self, self, tokenizer=self._tokenizer)

        async def respond(turn: Turn) -> AsyncIterator[Event]:
            if turn.raw is not None:
                raise EngineError("an episode answers messages; got a turn of raw tokens")
            async with aclosing(inner(turn)) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Text):
                        self._asked[-1].texts.append(event.text)
                        self._asked[-1].text_after_calls |= bool(
                            self._asked[-1].tool_calls and event.text.strip()
                        )
                    elif isinstance(event, ToolCalled):
                        self._asked[-1].tool_calls.append(event.call)
                    yield event

        return respond

    # ---- as a template ----

    def render(
        self,
        messages: Messages,
        tools: Sequence[ToolSpec] = (),
        *,
        generate: bool = False,
        trained_from: int = 0,
        kwargs: Mapping[str, Any] = NO_KWARGS,
    ) -> Rendered:
        """The tokens that the policy reads: of the latest call that this conversation continues, else rendered."""
        assert generate, "a recorder only opens answers"
        tokens = None
        for asked in reversed(self._asked):
            if asked.continued_by(messages, tools):
                tokens = continued(self._template, self._tokenizer, asked, messages)
                break
        self._asked.append(_Asked(messages, tuple(tools)))
        if tokens is None:
            return self._template.render(messages, tools, generate=True)
        return Rendered(tokens, [False] * len(tokens))

    def reader(self) -> Reader:
        return self._template.reader()

    # ---- as an engine ----

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yield pieces as the engine does and keep their tokens; a call that fails is not kept."""
        asked = self._asked[-1]
        decoding = replace(request.decoding, seed=call_seed(self._seed, len(self.calls)))
        forced = decoding.form is not None
        pieces: list[Piece] = []
        request = replace(request, decoding=decoding, recorded=True)
        try:
            async with aclosing(self._engine.stream(request)) as stream:
                async for piece in stream:
                    pieces.append(piece)
                    if piece.finish is not None:
                        asked.call = _recorded(request.tokens, pieces, forced=forced)
                    yield piece
        except GeneratorExit:  # a layer has read enough: what was drawn until then is a call that was cut
            if pieces and asked.call is None:
                asked.call = _recorded(request.tokens, pieces, forced=forced)
            raise


def _recorded(prompt: tuple[int, ...], pieces: Sequence[Piece], *, forced: bool) -> RecordedCall:
    sampled = [piece.sampled for piece in pieces if piece.sampled is not None]
    if len(sampled) < len(pieces) and not forced:
        raise EngineError(
            f"{len(sampled)} of {len(pieces)} tokens have a log-probability of their draw; a rollout draws "
            "with a temperature above 0 and without penalties or logit_bias"
        )
    kept = tuple(piece.kept for piece in pieces)
    drawn = tuple(piece.token for piece in pieces)
    return RecordedCall(prompt, drawn, tuple(sampled), kept, pieces[-1].finish == "stop", forced)


def call_seed(seed: int, number: int) -> int:
    """The seed of an episode's call: the episode's own for the first."""
    if not number:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:7], "big")


def continued(
    template: Template, tokenizer: Tokenizer, asked: _Asked, messages: Messages
) -> list[int] | None:
    """The tokens of a conversation that continues a call: its prompt, its drawn tokens, then the new messages.

    The template writes the whole conversation, and what it writes after the policy's own turn is taken. None if
    it cannot be told where that turn ends, or if the template would write another turn there and not only other
    tokens: without the reasoning, with a forged marker broken up. Then the conversation is rendered anew.
    """
    call, n = asked.call, len(asked.messages)
    assert call is not None
    others = (replace(m, trained=False) if m.role == "assistant" else m for m in messages[n + 1 :])
    own = replace(messages[n], trained=True)
    try:
        marked = template.render((*messages[:n], own, *others), asked.tools, trained_from=n)
    except DataError:  # a template that writes earlier turns otherwise than the last
        return None
    opened = template.render(messages, asked.tools, generate=True).tokens
    turn = [i for i, trained in enumerate(marked.trained) if trained]
    if not turn or opened[: turn[-1] + 1] != marked.tokens[: turn[-1] + 1]:
        return None
    written = marked.tokens[turn[0] : turn[-1] + 1]
    ending = _ending(written, template, tokenizer.joined)
    if ending is None:
        return None
    drawn = _with_ending(call, ending, template, tokenizer, "".join(asked.texts))
    if drawn is None or not _same_turn(asked, tokenizer, written[: -len(ending)], drawn[: -len(ending)]):
        return None
    return [*call.prompt, *drawn, *opened[turn[-1] + 1 :]]


def _same_turn(asked: _Asked, tokenizer: Tokenizer, written: list[int], drawn: list[int]) -> bool:
    """Whether two lists of tokens spell the same answer: its text, and its calls by the same special tokens.

    White space around the text and the spelling of calls may differ.
    """
    said = "".join(asked.texts).strip()
    shown = [tokenizer.decode(tokens).strip() for tokens in (written, drawn)]
    special = frozenset(tokenizer.special.values())
    marks = [[t for t in tokens if t in special] for tokens in (written, drawn)]
    if marks[0] != marks[1]:
        return False
    if not asked.tool_calls:
        return shown == [said, said]
    return all(text.startswith(said) for text in shown) and not asked.text_after_calls


def _ending(written: list[int], template: Template, joined: Callable[[str], list[int]]) -> list[int] | None:
    """What ends a turn as the template writes it: its stop token, or the text of a stop string."""
    if written[-1] in template.stop_tokens:
        return written[-1:]
    ids = (joined(stop) for stop in template.stop)
    return next((stop for stop in ids if stop and written[-len(stop) :] == stop), None)


def _with_ending(
    call: RecordedCall, ending: list[int], template: Template, tokenizer: Tokenizer, text: str
) -> list[int] | None:
    """The drawn tokens as a turn that ends as the template ends it here."""
    drawn = list(call.drawn)
    if drawn[-len(ending) :] == ending:
        return drawn
    if not call.ended:  # max_tokens cut it: the template's ending closes the turn, and is not the policy's
        return [*drawn, *ending]
    if drawn[-1] in template.stop_tokens:  # another ending than this one: it stays in a path of its own
        return [*drawn[:-1], *ending]
    for size in range(len(drawn), -1, -1):  # a stop text: the tokens before it, if they end where it begins
        before = tokenizer.decode(drawn[:size]).removeprefix(" ")
        if before == text.removeprefix(" "):
            return [*drawn[:size], *ending]
        if len(before) < len(text) - 1:
            break
    return None

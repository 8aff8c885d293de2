"""What the server serves: an assistant whose model ids are variants of one stack.

`build.py` provides one; tests provide a scripted one. The server knows no engine, no layer and no stack file.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from demeanor.core.errors import RequestError, unknown
from demeanor.core.types import Decoding, Respond
from demeanor.store.database import Stored


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One variant as clients see it: `layers` names what answers, weights first, then runtime layers outermost first."""

    id: str
    description: str
    stack_key: str
    layers: tuple[str, ...]


class Codec(Protocol):
    """Raw text as tokens, and back; `encode` puts what stands before every sequence of the model."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> tuple[int, ...]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """One rule of a policy and the character spans of its matches in a text."""

    name: str
    on: Literal["input", "output", "both"]
    action: Literal["refuse", "redact"]
    reason: str
    spans: tuple[tuple[int, int], ...]


RuleJudge: TypeAlias = Callable[[str], Sequence[Judged]]
"""Takes a text; returns every rule, matching or not."""


class FeedbackStore(Protocol):
    """Saves feedback on a turn. `user` is None when the server has no API keys.

    Returns False if the turn does not exist or belongs to another user.
    """

    def __call__(
        self, turn_id: str, score: int, comment: str | None, corrected: str | None, user: str | None
    ) -> Awaitable[bool]: ...


class TurnStore(Protocol):
    """Recorded turns, to be read again and deleted."""

    def find(self, turn_id: str) -> Stored | None: ...

    async def forget(self, turn_id: str) -> None: ...


class ServedAssistant(Protocol):
    """A served stack: `name` is the model id of the whole of it, `stack_key` its identity."""

    @property
    def name(self) -> str: ...

    @property
    def stack_key(self) -> str: ...

    def models(self) -> list[ModelCard]:
        """The variants worth offering, the whole stack first; more ids may be answered than are listed."""

    def card(self, model_id: str) -> ModelCard:
        """The card of any answerable id, listed or not. Raises RequestError (404, see `model_not_found`)."""

    def respond(self, model_id: str) -> Respond:
        """What answers turns of this variant. Raises RequestError (404) as `card` does."""

    def codec(self, model_id: str) -> Codec:
        """What turns raw text into this variant's tokens. Raises RequestError: 404 as `card`; 400 if it continues no raw text."""

    def rules(self, model_id: str) -> tuple[str, RuleJudge]:
        """This variant's policy layer, by name, and its rules. Raises RequestError (404) where there is none."""

    def feedback_store(self) -> FeedbackStore | None:
        """Where feedback on answers goes; None if no turn is recorded."""

    def turn_store(self) -> TurnStore | None:
        """The recorded turns as clients saw them; None if none are, or only between layers that change answers."""

    async def embed(self, model_id: str, texts: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """One unit vector per text: the mean of its tokens' hidden states. Raises RequestError as `codec` does."""

    def defaults(self) -> Decoding:
        """The decoding of a request that does not say."""

    def examples(self) -> list[str]:
        """Prompts that show the assistant off; the chat page offers them."""


def model_not_found(model_id: str, known: Iterable[str]) -> RequestError:
    """The 404 that an unknown model id gets, with the nearest and all offered ids."""
    return RequestError(
        unknown(model_id, known, noun="model"), status=404, param="model", code="model_not_found"
    )

"""What the server serves: an assistant whose model ids are variants of one stack.

`build.py` provides one; tests provide a scripted one. The server knows no engine, no layer and no stack file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from demeanor.core.errors import RequestError, unknown
from demeanor.core.types import Completion, Decoding, Messages, Respond, Turn
from demeanor.store.database import Database, Stored
from demeanor.store.waiting_approvals import KeptApproval


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One variant as clients see it: `layers` names what answers, weights first, then runtime layers outermost first.

    `experiment`: the experiment and the arm for which it answers a request to the whole stack.
    """

    id: str
    description: str
    stack_key: str
    layers: tuple[str, ...]
    experiment: tuple[str, str] | None = None


class Codec(Protocol):
    """Raw text as tokens, and back; `encode` puts what stands before every sequence of the model."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> tuple[int, ...]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """One rule of a policy and the character spans of its matches in a text; `on`: its stages; `score`: a probability,
    if its detector gives one."""

    name: str
    on: str
    action: Literal["refuse", "redact", "rewrite", "redirect", "flag", "ask"]
    reason: str
    spans: tuple[tuple[int, int], ...]
    score: float | None = None


@dataclass(frozen=True, slots=True)
class TraceView:
    """What clients see of what layers added to an answer: messages, the text of passages, arguments and results of tools."""

    prompts: bool = True
    passages: Literal["all", "cited", "none"] = "all"
    tools: bool = True


@dataclass(frozen=True, slots=True)
class Replay:
    """Another answer to a recorded conversation; `text` is what the policy of the served stack would show of it."""

    model: str
    stack_key: str
    completion: Completion
    text: str
    ms: float


SETTINGS = ("system_prompt", "sampling", "max_tokens")
"""What a request may set for itself."""


@dataclass(frozen=True, slots=True)
class ClientAccess:
    """What the operator allows clients: to see, to set, and to keep conversations on the server."""

    shown: TraceView = TraceView()
    settings: tuple[str, ...] = SETTINGS
    history: bool = True


RuleJudge: TypeAlias = Callable[[str], Sequence[Judged] | Awaitable[Sequence[Judged]]]
"""Takes a text; returns every rule, matching or not, at once or (where a model is asked) later."""


class FeedbackStore(Protocol):
    """Saves feedback on a turn. `user` is None when the server has no API keys.

    Returns False if the turn does not exist or belongs to another user.
    """

    def __call__(
        self,
        turn_id: str,
        score: int,
        comment: str | None,
        corrected: str | None,
        user: str | None,
        reasons: tuple[str, ...] = (),
    ) -> Awaitable[bool]: ...


class TurnStore(Protocol):
    """Recorded turns, to be read again and deleted."""

    def find(self, turn_id: str) -> Stored | None: ...

    async def forget(self, turn_id: str) -> None: ...


class ApprovalStore(Protocol):
    """Keeps answers that wait for a person's approval, by their turns; each is used once."""

    async def keep(self, entry: KeptApproval, now: float) -> None:
        """Keep one; `now` in seconds since 1970."""

    async def find(self, token: str) -> KeptApproval | None:
        """The one of a token, used or not."""

    async def of_turn(self, turn: str) -> KeptApproval | None:
        """The one of a turn, used or not."""

    async def use(self, turn: str) -> bool:
        """Mark the one of a turn as used; False if it was before, or is gone."""

    async def give_back(self, turn: str) -> None:
        """Take back that it was used."""


class Traffic(Protocol):
    """Experiments, shadows and evaluators on live traffic."""

    def begin(self) -> None:
        """Start what runs in the background, in the running event loop."""

    def notes(self) -> list[str]:
        """What should have run and did not, one sentence each."""

    def outcomes(self) -> list[tuple[str, str, str, int]]:
        """Jobs of this process: kind, name, outcome, number."""

    @property
    def exposed(self) -> Mapping[tuple[str, str], int]:
        """Turns of this process by experiment and arm."""

    def report(self) -> dict[str, Any]:
        """All results in the database, as JSON values."""

    def stop(self, which: str, reason: str) -> bool:
        """End an experiment. Raises UsageError for an unknown one."""


def routed(
    assistant: ServedAssistant, model_id: str, user: str | None, messages: Messages
) -> tuple[ModelCard, Respond]:
    """The card and the answers of a request: an assistant that splits its users has a `route`, which chooses the variant."""
    route = getattr(assistant, "route", None)
    if route is None:
        return assistant.card(model_id), assistant.respond(model_id)
    found: tuple[ModelCard, Respond] = route(model_id, user, messages)
    return found


def traffic_of(assistant: ServedAssistant) -> Traffic | None:
    """The live traffic of an assistant that has some."""
    found = getattr(assistant, "traffic", None)
    traffic: Traffic | None = None if found is None else found()
    return traffic


async def kept_value(assistant: ServedAssistant, value: Any) -> Any:
    """A JSON value of a client as it may be kept: an assistant whose policy takes text out of requests has a `kept`."""
    kept = getattr(assistant, "kept", None)
    return value if kept is None else await kept(value)


class ServedAssistant(Protocol):
    """A served stack: `name` is the model id of the whole of it, `stack_key` its identity."""

    @property
    def name(self) -> str: ...

    @property
    def stack_key(self) -> str: ...

    def models(self) -> list[ModelCard]:
        """The variants worth offering, the whole stack first; more ids may be answered than are listed."""

    def published(self) -> Collection[str]:
        """The ids that API keys may ask for besides the whole stack."""

    def card(self, model_id: str) -> ModelCard:
        """The card of any answerable id, listed or not; its own id is one for all ways to write it.

        Raises RequestError (404, see `model_not_found`).
        """

    def respond(self, model_id: str) -> Respond:
        """What answers turns of this variant. Raises RequestError (404) as `card` does."""

    def codec(self, model_id: str) -> Codec:
        """What turns raw text into this variant's tokens. Raises RequestError: 404 as `card`; 400 if it continues no raw text."""

    def rules(self, model_id: str) -> tuple[str, RuleJudge]:
        """This variant's policy layer, by name, and its rules. Raises RequestError (404) where there is none."""

    def feedback_store(self) -> FeedbackStore | None:
        """Where feedback on answers goes; None if no turn is recorded."""

    def client_access(self) -> ClientAccess:
        """What the operator allows clients."""

    def turn_database(self) -> Database | None:
        """The database of the outermost record layer; None if nothing is recorded."""

    def turn_store(self) -> Database | None:
        """The recorded turns as clients saw them; None if none are, or only between layers that change answers."""

    async def replay(self, turn: Turn, model_id: str) -> Replay:
        """Answer a recorded conversation again, unrecorded and without effects. Raises RequestError (404) as `card` does."""

    def approval_store(self) -> ApprovalStore | None:
        """Where answers that wait for approvals are kept for all processes; None: this process remembers its own."""

    async def embed(self, model_id: str, texts: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """One unit vector per text: the mean of its tokens' hidden states. Raises RequestError as `codec` does."""

    def defaults(self) -> Decoding:
        """The decoding of a request that does not say."""

    def examples(self) -> list[str]:
        """Prompts that show the assistant off; the chat page offers them."""


def model_not_found(model_id: str, known: Iterable[str]) -> RequestError:
    """The 404 that an unknown model id gets, with the nearest and all offered ids."""
    shown = model_id if len(model_id) <= 80 else f"{model_id[:80]}..."
    return RequestError(
        unknown(shown, known, noun="model"), status=404, param="model", code="model_not_found"
    )


@dataclass(frozen=True, slots=True)
class PublishedAssistant:
    """An assistant as API keys see it: the whole stack, what the stack publishes, and what a key names itself."""

    inner: ServedAssistant
    key_models: Callable[[], Collection[str]]
    """The ids that the key of the current request names."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def models(self) -> list[ModelCard]:
        listed = self.inner.models()
        visible, ids = self._visible(), [card.id for card in listed]
        return [
            *(card for card in listed if card.id in visible),
            *(c for c in visible.values() if c.id not in ids),
        ]

    def card(self, model_id: str) -> ModelCard:
        visible = self._visible()
        try:
            card = self.inner.card(model_id)
        except RequestError:
            card = None
        if card is None or card.id not in visible:
            raise model_not_found(model_id, visible)
        return card

    def respond(self, model_id: str) -> Respond:
        return self.inner.respond(self.card(model_id).id)

    def route(self, model_id: str, user: str | None, messages: Messages) -> tuple[ModelCard, Respond]:
        return routed(self.inner, self.card(model_id).id, user, messages)

    def codec(self, model_id: str) -> Codec:
        return self.inner.codec(self.card(model_id).id)

    def rules(self, model_id: str) -> tuple[str, RuleJudge]:
        return self.inner.rules(self.card(model_id).id)

    async def embed(self, model_id: str, texts: Sequence[tuple[int, ...]]) -> list[list[float]]:
        return await self.inner.embed(self.card(model_id).id, texts)

    def _visible(self) -> dict[str, ModelCard]:
        found: dict[str, ModelCard] = {}
        for model_id in (self.inner.name, *self.inner.published(), *self.key_models()):
            with contextlib.suppress(RequestError):  # a key may name the variant of another stack
                card = self.inner.card(model_id)
                found[card.id] = card
        return found

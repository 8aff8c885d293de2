"""Another assistant as one more column: any OpenAI-compatible server that answers the items of an evaluation.

In: `NAME=URL#MODEL` and, where it needs one, the environment variable that holds its key. Out: a Respond with a stack key of its own.
It knows nothing of what is behind the address: prompts, tools and refusals only as far as the server tells them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace

from demeanor.core.errors import DemeanorError, EngineError, UsageError
from demeanor.core.types import Decoding, Event, Message, Respond, Timing, Turn, complete
from demeanor.evaluation.runtime import Connect
from demeanor.stack.stack import digest

AT_ONCE = 8
"""Requests that one server is asked at the same time; its times are measured inside, so waiting for a place does not count."""
RETRIES = 4
TIMEOUT_S = 120.0
PROBE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class ExternalModel:
    """A server to compare the stack with: its name in the result, its address and model, and its API key."""

    name: str
    url: str
    model: str
    key: str | None = None

    def stack_key(self, decoding: Decoding) -> str:
        """16 hex digits over address, model and decoding: what must be the same for a row to be used again."""
        # "beside" is an older name of this comparison; it stays, so that rows measured then are used again
        return digest(["beside", self.url.rstrip("/"), self.model, asdict(replace(decoding, seed=None))])


def external_models(
    given: Sequence[str], keys: Sequence[str], taken: Collection[str] = ()
) -> list[ExternalModel]:
    """Read `NAME=URL#MODEL` and `NAME=ENV_VAR`; `taken` are variants of the stack. Raises DemeanorError with the text that does not fit."""
    secrets = dict(_pair(text, "--compare-key", "NAME=ENV_VAR") for text in keys)
    found: list[ExternalModel] = []
    for text in given:
        name, place = _pair(text, "--compare", "NAME=URL#MODEL")
        url, _, model = place.partition("#")
        if not model or not url.startswith(("http://", "https://")):
            raise UsageError(
                f"--compare {text}: wanted NAME=URL#MODEL, such as other=http://127.0.0.1:9000/v1#big-model"
            )
        if name in taken or name in {other.name for other in found}:
            raise UsageError(
                f"--compare {text}: '{name}' names another column already; give it a name of its own"
            )
        found.append(ExternalModel(name, url, model, _secret(name, secrets.pop(name, None))))
    if secrets:
        named = ", ".join(other.name for other in found) or "none"
        raise UsageError(f"--compare-key {next(iter(secrets))}: no --compare has this name. Named: {named}")
    return found


def responder(
    model: ExternalModel,
    connect: Connect,
    *,
    at_once: int = AT_ONCE,
    timeout_s: float = TIMEOUT_S,
    retries: int = RETRIES,
    clock: Callable[[], float] = time.perf_counter,
) -> Respond:
    """The server as a Respond; every answer ends with its Timing, from the request to the last byte, retries included."""
    ask = connect(model.url, model.model, key=model.key, timeout_s=timeout_s, retries=retries)
    places = asyncio.Semaphore(at_once)

    async def respond(turn: Turn) -> AsyncGenerator[Event, None]:
        async with places:
            started = clock()
            async with aclosing(ask(turn)) as events:  # type: ignore[type-var]
                async for event in events:
                    yield event
            yield Timing(model.name, 1000 * (clock() - started))

    return respond


def probe(model: ExternalModel, decoding: Decoding, connect: Connect) -> None:
    """Ask one short question, so that a wrong address, model or key is known before a long run; raises DemeanorError."""
    turn = Turn(
        (Message("user", "Hello"),), replace(decoding, max_tokens=min(PROBE_TOKENS, decoding.max_tokens))
    )
    try:
        asyncio.run(complete(responder(model, connect, retries=0), turn))
    except EngineError as error:
        raise DemeanorError(
            f"--compare {model.name}: asked {model.model} one question before the run, and got none answered: {error}. "
            "Is the server up, and are address, model and --compare-key right?"
        ) from error


def _pair(text: str, option: str, wanted: str) -> tuple[str, str]:
    name, equals, rest = text.partition("=")
    if not (name.strip() and equals and rest):
        raise UsageError(f"{option} {text}: wanted {wanted}")
    return name.strip(), rest


def _secret(name: str, variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise UsageError(f"--compare-key {name}={variable}: the environment variable {variable} is not set")
    return os.environ[variable]

"""Requests and tokens per minute and user, and how many turns may be in progress: reserved before the call, settled after it.

In: a turn. Out: the inner events, or RequestError 429 before any event. A turn reserves its prompt and max_tokens; what Usage
says was not written is given back, so callers side by side can never write more than the budget. It counts the caller's own
messages only: what inner layers add to the prompt is not the caller's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from pydantic import Field

from demeanor import registry
from demeanor.errors import RequestError
from demeanor.layers._kit import Kit
from demeanor.layers._ledger import Full, Ledgers
from demeanor.layers._timed import timed
from demeanor.types import Done, Event, Refusal, Respond, Turn, Usage

BEHAVIOUR = False


class Spec(registry.Spec):
    """How much one user may ask for; null is no limit."""

    requests_per_minute: int | None = Field(None, gt=0, description="turns of one user in any 60 s")
    tokens_per_minute: int | None = Field(
        None, gt=0, description="tokens of one user in any 60 s, asked and answered together"
    )
    max_in_progress: int | None = Field(
        None, gt=0, description="turns in progress at once, all users together; more are refused"
    )


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Admit turns while their user has budget left; all variants that share `kit.shared` share one budget."""
    fresh = Ledgers(spec.requests_per_minute, spec.tokens_per_minute, spec.max_in_progress)
    ledgers: Ledgers = kit.shared.setdefault(("limits", spec), fresh)

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        prompt = kit.count_tokens(turn.messages, turn.tools) if spec.tokens_per_minute else 0
        try:
            settle = ledgers.reserve(turn.user, prompt + turn.decoding.max_tokens, kit.clock())
        except Full as full:
            raise _too_many(spec, full) from None
        used: int | None = (
            None  # nobody has said; breaking a turn off is then charged in full and no way around the budget
        )
        try:
            async for event in inner(turn):
                if isinstance(event, Usage):
                    used = (prompt if used is None else used) + event.completion_tokens
                elif isinstance(event, Refusal) and event.stage == "input":
                    used = used or 0
                elif isinstance(event, Done):
                    settle(used, kit.clock())
                yield event
        except Exception:
            used = 0  # nobody got an answer
            raise
        finally:
            settle(used, kit.clock())

    return timed("limits", body, inner, kit.clock)


def _too_many(spec: Spec, full: Full) -> RequestError:
    if full.what == "size":
        return RequestError(
            f"This request may use {full.wanted} tokens (prompt and max_tokens), more than the {spec.tokens_per_minute} a minute "
            "that one user has. Ask for less.",
            param="max_tokens",
            code="request_too_large",
        )
    text = {
        "requests": f"At most {spec.requests_per_minute} requests a minute.",
        "tokens": f"At most {spec.tokens_per_minute} tokens a minute, and this request may use {full.wanted}.",
        "in_progress": f"At most {spec.max_in_progress} requests are answered at once.",
    }[full.what]
    return RequestError(
        f"Rate limit reached. {text} Try again in {full.retry_after_s:.3g} s.",
        status=429,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after_s=full.retry_after_s,
    )

"""Servers behind a stack: the settings of a remote base, its fallbacks, and the prices of models.

Part of the schema (schema.py names it all); what asks these servers is in engine/remote.py and engine/gateway.py.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from demeanor.core.registry import Spec

UPSTREAM_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
UPSTREAM_NAME_IS = "what traces, logs and metrics call it; null: its model id"


class Fallback(Spec):
    """Another server that is asked where the ones before it fail."""

    url: str = Field(
        pattern=r"^https?://[^@]+$", description="the part before /chat/completions of its address"
    )
    model: str = Field(min_length=1, description="model id there")
    key_env: str | None = Field(
        None, description="environment variable that holds its API key; null: none is sent"
    )
    name: str | None = Field(None, pattern=UPSTREAM_NAME, description=UPSTREAM_NAME_IS)
    weight: float | None = Field(None, gt=0, description="as the base's own `weight`")


class Breaker(Spec):
    """When a server that keeps failing is left alone (a circuit breaker)."""

    failures: int = Field(3, gt=0, description="failures in a row after which it is not asked")
    open_s: float = Field(
        30.0, gt=0, description="seconds until one request tries it again; it fails: as long again"
    )


class Remote(Spec):
    """Weights on another OpenAI-compatible server (vLLM first): runtime layers apply, nothing trains on
    them."""

    kind: Literal["remote"] = "remote"
    url: str = Field(
        pattern=r"^https?://[^@]+$",
        description="the part before /chat/completions, such as http://127.0.0.1:8000/v1",
    )
    model: str = Field(min_length=1, description="model id there")
    key_env: str | None = Field(
        None, description="environment variable that holds the API key; null: none is sent"
    )
    timeout_s: float = Field(
        60.0, gt=0, description="longest time without a part of the answer, in seconds; comments do not count"
    )
    total_s: float | None = Field(
        None, gt=0, description="longest answer in seconds, all attempts together; null: 10 x timeout_s"
    )
    retries: int = Field(
        2,
        ge=0,
        le=10,
        description="times a request without an answer is sent again (429, 5xx, no connection)",
    )
    fallbacks: tuple[Fallback, ...] | None = Field(
        None, min_length=1, description="servers that are asked, in this order, where this one fails"
    )
    name: str | None = Field(None, pattern=UPSTREAM_NAME, description=UPSTREAM_NAME_IS)
    weight: float | None = Field(
        None,
        gt=0,
        description="share of requests that ask this server first; all upstreams have one, or none; null: in order",
    )
    first_s: float | None = Field(
        None,
        gt=0,
        description="longest time until the first part of an answer before the next upstream is asked, in seconds; "
        "null: timeout_s",
    )
    breaker: Breaker | None = Field(None, description="when an upstream is left alone; null: its defaults")
    retry_budget: float | None = Field(
        None,
        ge=0,
        le=10,
        description="repeated tries for each request, on average; 10 are free at the start; null: no limit",
    )

    @property
    def upstreams(self) -> tuple[Remote | Fallback, ...]:
        """All servers in the order of the file."""
        return (self, *(self.fallbacks or ()))

    @model_validator(mode="after")
    def _is_a_gateway(self) -> Remote:
        alone = ("name", "weight", "first_s", "breaker", "retry_budget")
        given = [name for name in alone if getattr(self, name) is not None]
        if self.fallbacks is None:
            if given:
                raise ValueError(f"{given[0]} is for a base with fallbacks; add some, or leave it out")
            return self
        names = [upstream_name(each) for each in self.upstreams]
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise ValueError(f"two upstreams are called '{twice[0]}'; give one of them a name of its own")
        if len({each.weight is None for each in self.upstreams}) > 1:
            raise ValueError("some upstreams have a weight and some have none; wanted all of them or none")
        return self


def upstream_name(upstream: Remote | Fallback) -> str:
    """Return what traces, logs and metrics call an upstream: its name, else its model id."""
    return upstream.name or upstream.model


class Price(Spec):
    """What tokens of one model cost, in USD per million."""

    input: float = Field(ge=0, description="of the prompt")
    output: float = Field(ge=0, description="of the answer")
    cached: float | None = Field(
        None, ge=0, description="of the part of the prompt that the server knew already; null: as input"
    )

    def nano_usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> int:
        """Return the cost of a call in billionths of a USD, rounded up; `cached_tokens` are part of the prompt."""
        cached = self.input if self.cached is None else self.cached
        fresh = max(0, prompt_tokens - cached_tokens)
        thousandths = fresh * self.input + min(cached_tokens, prompt_tokens) * cached
        # a thousand billionths of a USD for each token at 1 USD per million; 1e-6: sums of floats are not exact
        return math.ceil(1000 * (thousandths + completion_tokens * self.output) - 1e-6)

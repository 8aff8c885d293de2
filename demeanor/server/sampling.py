"""How tokens are drawn, as requests of chat and of raw text say it; what they leave out is the stack's."""

from __future__ import annotations

import hashlib

from pydantic import Field

from demeanor.core.types import Decoding
from demeanor.server.bodies import MAX_CHOICES, MAX_LIMIT, Body, StopField
from demeanor.server.forms import LogitBias


class Sampling(Body):
    """The fields of a request that decide how tokens are drawn."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=MAX_LIMIT)
    stop: StopField | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="how many answers")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias | None = Field(None, description="token id as text to what is added to its logit")
    top_k: int | None = Field(
        None, ge=-1, le=MAX_LIMIT, description="ours and vLLM's: draw from so many tokens; 0, -1: from all"
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="ours and vLLM's: least probability relative to the likeliest token"
    )


def sampled(request: Sampling, defaults: Decoding, choice: int) -> Decoding:
    """The request's way to draw over the assistant's own; further choices derive their seed from the first one's."""
    seed = defaults.seed if request.seed is None else request.seed
    stop = (request.stop,) if isinstance(request.stop, str) else request.stop
    return Decoding(
        temperature=_or(request.temperature, defaults.temperature),
        top_p=_or(request.top_p, defaults.top_p),
        max_tokens=defaults.max_tokens,
        seed=seed if seed is None or choice == 0 else derived(seed, choice),
        stop=defaults.stop if stop is None else tuple(stop),
        top_k=defaults.top_k if request.top_k is None else request.top_k if request.top_k > 0 else None,
        min_p=_or(request.min_p, defaults.min_p),
        presence_penalty=_or(request.presence_penalty, defaults.presence_penalty),
        frequency_penalty=_or(request.frequency_penalty, defaults.frequency_penalty),
        logit_bias=tuple((int(token), bias) for token, bias in (request.logit_bias or {}).items()),
    )


def derived(seed: int, choice: int) -> int:
    """The seed (53 bits) of a further choice: a hash, so that neighbouring seeds share no draws."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{choice}".encode()).digest()[:8], "big") >> 11


def _or(given: float | None, default: float) -> float:
    return default if given is None else given

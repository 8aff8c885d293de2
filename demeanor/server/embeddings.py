"""POST /v1/embeddings: texts as unit vectors, the mean over a text's tokens of the weights' hidden states after the final norm.

In: OpenAI's body. Out: OpenAI's list. These are the assistant's own states, not those of a model trained to embed; they come from
weights-only variants, as raw text does.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from demeanor.core.errors import ContextError, RequestError
from demeanor.server.answers import Answer
from demeanor.server.assistant import Assistant, ModelCard
from demeanor.server.bodies import MAX_LIMIT, Body
from demeanor.server.completions import Prompt
from demeanor.server.incoming import body
from demeanor.server.parse import read
from demeanor.server.request_context import CURRENT_REQUEST


class EmbeddingRequest(Body):
    """The body of POST /v1/embeddings."""

    model: str = Field(description="a weights-only variant's id, such as NAME:sft")
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: little-endian 32-bit floats"
    )
    dimensions: int | None = Field(
        None, ge=1, le=MAX_LIMIT, description="the width of the model, or left out"
    )
    user: str | None = Field(None, min_length=1, max_length=256)


class EmbeddingAnswer(Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Answer):
    """One vector per text."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingAnswer]
    usage: EmbeddingUsage


def embeddings(assistant: Assistant, max_body_bytes: int) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/v1")

    @router.post("/embeddings")
    async def embed(request: Request) -> Response:
        asked = read(await body(request, max_body_bytes), EmbeddingRequest)
        card, codec = assistant.card(asked.model), assistant.codec(asked.model)
        request.state.stack_key = card.stack_key
        texts = [codec.encode(x) if isinstance(x, str) else x for x in given(asked.input)]
        for i, text in enumerate(texts):
            wrong = next((t for t in text if t >= codec.vocab_size), None)
            if wrong is not None or not text:
                said = (
                    "it has no tokens"
                    if wrong is None
                    else f"{wrong} is not a token; wanted ids of 0 to {codec.vocab_size - 1}"
                )
                raise RequestError(f"input[{i}]: {said}", param="input", code="invalid_value")
        try:
            vectors = await charged_vectors(assistant, card, texts)
        except ContextError as error:
            raise RequestError(str(error), param="input", code="context_length_exceeded") from None
        if asked.dimensions is not None and asked.dimensions != len(vectors[0]):
            raise RequestError(
                f"dimensions: got {asked.dimensions}; this model's vectors have {len(vectors[0])}, and are not cut",
                param="dimensions",
                code="unsupported_value",
            )
        read_tokens = sum(map(len, texts))
        answer = EmbeddingList(
            object="list",
            model=card.id,
            usage=EmbeddingUsage(prompt_tokens=read_tokens, total_tokens=read_tokens),
            data=[
                EmbeddingAnswer(
                    object="embedding",
                    index=i,
                    embedding=packed(v) if asked.encoding_format == "base64" else v,
                )
                for i, v in enumerate(vectors)
            ],
        )
        return Response(answer.encode(), media_type="application/json", headers={"cache-control": "no-store"})

    return router


async def charged_vectors(
    assistant: Assistant, card: ModelCard, texts: Sequence[tuple[int, ...]]
) -> list[list[float]]:
    """The vectors of texts; their tokens are charged to the budget of the current request, and given back on failure."""
    request, tokens = CURRENT_REQUEST.get(), sum(map(len, texts))
    budget = request.token_budget
    day = await budget.reserve(tokens) if budget is not None else ""
    request.load.turns += 1
    try:
        vectors = await assistant.embed(card.id, texts)
    except BaseException:
        if budget is not None:
            await budget.settle(day, tokens, 0)
        raise
    finally:
        request.load.turns -= 1
    request.model, request.stack_key = card.id, card.stack_key
    request.turns += 1
    request.prompt_tokens += tokens
    return vectors


def given(value: Any) -> list[str | tuple[int, ...]]:
    """A field of one text or several, as text or as tokens, as a list."""
    if isinstance(value, str):
        return [value]
    one = tuple(x for x in value if isinstance(x, int))
    return [one] if one else [x if isinstance(x, str) else tuple(x) for x in value]


def packed(vector: list[float]) -> str:
    """A vector as the SDKs ask for it by default: base64 of little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()

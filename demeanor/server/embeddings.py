"""POST /v1/embeddings: texts as unit vectors, the mean over a text's tokens of the weights' hidden states after the final norm.

In: OpenAI's body. Out: OpenAI's list. These are the assistant's own states, not those of a model trained to embed; they come from
weights-only variants, as raw text does.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from demeanor.core.errors import ContextError, RequestError, TextError
from demeanor.core.long_text import off_loop
from demeanor.server.assistant import ModelCard, ServedAssistant
from demeanor.server.completions import Prompt, prompt_list
from demeanor.server.endpoint import GENERATED, documented, json_response, read_body, state_of
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.schemas import MAX_LIMIT, Body, ResponseObject

router = APIRouter()


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


class EmbeddingAnswer(ResponseObject):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(ResponseObject):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(ResponseObject):
    """One vector per text."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingAnswer]
    usage: EmbeddingUsage


@router.post(
    "/v1/embeddings", **documented("Texts as unit vectors", GENERATED, EmbeddingList, body=EmbeddingRequest)
)
async def create_embedding(request: Request) -> Response:
    assistant = state_of(request).assistant
    body = await read_body(request, EmbeddingRequest)
    card, codec = assistant.card(body.model), assistant.codec(body.model)
    request.state.stack_key = card.stack_key
    try:
        texts = [
            await off_loop(len(x), codec.encode, x) if isinstance(x, str) else x
            for x in prompt_list(body.input)
        ]
    except TextError as error:
        raise RequestError(str(error), param="input", code="invalid_value") from None
    for i, text in enumerate(texts):
        check_tokens(i, text, codec.vocab_size)
    try:
        vectors = await charged_vectors(assistant, card, texts)
    except ContextError as error:
        raise RequestError(str(error), param="input", code="context_length_exceeded") from None
    width = len(vectors[0])
    if body.dimensions not in (None, width):
        raise RequestError(
            f"dimensions: got {body.dimensions}; this model's vectors have {width}, and are not cut",
            param="dimensions",
            code="unsupported_value",
        )
    num_tokens = sum(map(len, texts))
    data = [
        EmbeddingAnswer(
            object="embedding",
            index=i,
            embedding=packed(vector) if body.encoding_format == "base64" else vector,
        )
        for i, vector in enumerate(vectors)
    ]
    usage = EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)
    return json_response(EmbeddingList(object="list", model=card.id, data=data, usage=usage))


def check_tokens(index: int, tokens: Sequence[int], vocab_size: int) -> None:
    """Raise RequestError (400) if a text has no tokens, or one that the model does not have."""
    unknown = next((t for t in tokens if t >= vocab_size), None)
    if unknown is not None:
        message = f"{unknown} is not a token; wanted ids of 0 to {vocab_size - 1}"
    elif not tokens:
        message = "it has no tokens"
    else:
        return
    raise RequestError(f"input[{index}]: {message}", param="input", code="invalid_value")


async def charged_vectors(
    assistant: ServedAssistant, card: ModelCard, texts: Sequence[tuple[int, ...]]
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


def packed(vector: list[float]) -> str:
    """A vector as the SDKs ask for it by default: base64 of little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()

"""POST /v1/feedback: what somebody thought of an answer, kept beside its recorded turn.

In: the id of a completion, a thumb, perhaps words and a better answer. Out: what was stored. It is ours, not OpenAI's.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from demeanor.core.errors import RequestError
from demeanor.server.answers import Answer
from demeanor.server.assistant import Assistant
from demeanor.server.bodies import Body
from demeanor.server.incoming import body
from demeanor.server.parse import read
from demeanor.server.request_context import CURRENT_REQUEST

MAX_CHARS = 20_000


class FeedbackRequest(Body):
    """The body of POST /v1/feedback."""

    id: str = Field(
        min_length=1, max_length=256, description="of the completion; `ID-1` is its second choice"
    )
    score: int = Field(ge=-1, le=1, description="-1 bad, 0 neither, 1 good")
    comment: str | None = Field(None, max_length=MAX_CHARS)
    corrected: str | None = Field(
        None, min_length=1, max_length=MAX_CHARS, description="what the answer should have been"
    )


class FeedbackAnswer(Answer):
    """What was stored."""

    object: Literal["feedback"]
    id: str
    score: int
    comment: str | None
    corrected: str | None


def feedback(assistant: Assistant, max_body_bytes: int) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/v1")

    @router.post("/feedback")
    async def give(request: Request) -> Response:
        user = CURRENT_REQUEST.get().user
        asked = read(await body(request, max_body_bytes), FeedbackRequest)
        store = assistant.feedback_store()
        if store is None:
            raise RequestError(
                "This stack keeps no turns to give feedback on: it has no record layer. Add `- kind: record` to its layers.",
                status=409,
                code="no_record_layer",
            )
        if not await store(asked.id, asked.score, asked.comment, asked.corrected, user):
            raise RequestError(
                f"id: no recorded turn{' of yours' if user else ''} has the id '{asked.id}'.",
                status=404,
                param="id",
                code="not_found",
            )
        answer = FeedbackAnswer(object="feedback", **asked.model_dump())
        return Response(answer.encode(), media_type="application/json", headers={"cache-control": "no-store"})

    return router

"""POST /v1/feedback: a user's opinion of an answer, kept beside its recorded turn.

In: the id of a completion, a score, optionally a comment and a better answer. Out: what was stored. It is ours, not OpenAI's.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from fastapi import APIRouter, Request, Response
from pydantic import Field

from demeanor.core.errors import RequestError
from demeanor.server.endpoint import WITH_BODY, documented, json_response, read_body, state_of
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.schemas import Body, ResponseObject

MAX_CHARS, MAX_REASONS = 20_000, 16
Reason: TypeAlias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
router = APIRouter()


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
    reasons: list[Reason] = Field(
        default=[], max_length=MAX_REASONS, description="codes of why, such as wrong_source"
    )


class FeedbackAnswer(ResponseObject):
    """What was stored."""

    object: Literal["feedback"]
    id: str
    score: int
    comment: str | None
    corrected: str | None
    reasons: list[str]


@router.post(
    "/v1/feedback",
    **documented("Feedback on an answer", (404, 409, *WITH_BODY), FeedbackAnswer, body=FeedbackRequest),
)
async def create_feedback(request: Request) -> Response:
    body = await read_body(request, FeedbackRequest)
    user = CURRENT_REQUEST.get().user
    store = state_of(request).assistant.feedback_store()
    if store is None:
        raise RequestError(
            "This stack keeps no turns to give feedback on: it has no record layer. Add `- kind: record` to its layers.",
            status=409,
            code="no_record_layer",
        )
    if not await store(body.id, body.score, body.comment, body.corrected, user, tuple(body.reasons)):
        raise RequestError(
            f"id: no recorded turn{' of yours' if user else ''} has the id '{body.id}'.",
            status=404,
            param="id",
            code="not_found",
        )
    return json_response(FeedbackAnswer(object="feedback", **body.model_dump()))

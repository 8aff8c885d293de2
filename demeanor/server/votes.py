"""POST /v1/comparisons: which of two answers a person found better, kept beside their recorded turns. It is ours, not OpenAI's."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from demeanor.core.errors import RequestError
from demeanor.server.endpoint import WITH_BODY, documented, json_response, read_body, state_of
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.schemas import Body, ResponseObject
from demeanor.store import comparisons
from demeanor.store.comparisons import ComparisonVerdict
from demeanor.store.database import Database

MAX_CHARS = 20_000
router = APIRouter()


class ComparisonRequest(Body):
    """The body of POST /v1/comparisons."""

    first: str = Field(min_length=1, max_length=256, description="id of the answer that stood left, or first")
    second: str = Field(min_length=1, max_length=256, description="id of the other answer")
    verdict: ComparisonVerdict = Field(description="the better one; tie: equally good")
    blind: bool = Field(False, description="whether the names of the variants were hidden until the vote")
    comment: str | None = Field(None, max_length=MAX_CHARS)


class ComparisonAnswer(ResponseObject):
    """What was stored."""

    object: Literal["comparison"]
    id: str
    first: str
    second: str
    verdict: str
    blind: bool
    comment: str | None


@router.post(
    "/v1/comparisons",
    **documented(
        "Which of two answers is better", (404, 409, *WITH_BODY), ComparisonAnswer, body=ComparisonRequest
    ),
)
async def create_comparison(request: Request) -> Response:
    body = await read_body(request, ComparisonRequest)
    user = CURRENT_REQUEST.get().user
    if body.first == body.second:
        raise RequestError("second: is the same answer as first.", param="second", code="invalid_value")
    database = state_of(request).assistant.turn_database()
    if database is None:
        raise RequestError(
            "This stack keeps no turns to compare: it has no record layer. Add `- kind: record` to its layers.",
            status=409,
            code="no_record_layer",
        )
    owners = await asyncio.to_thread(_owners, database, body)
    for field, owner in zip(("first", "second"), owners):
        if owner is None or (user is not None and owner != user):
            raise _unknown(field, getattr(body, field), user)
    id = await comparisons.add(
        database,
        body.first,
        body.second,
        body.verdict,
        user=user or owners[0] or "anonymous",
        blind=body.blind,
        comment=body.comment or "",
    )
    if id is None:  # deleted meanwhile
        raise _unknown("first", body.first, user)
    return json_response(ComparisonAnswer(object="comparison", id=id, **body.model_dump()))


def _owners(database: Database, body: ComparisonRequest) -> list[str | None]:
    found = [database.turn(turn_id) for turn_id in (body.first, body.second)]
    return [None if turn is None else turn.turn.user for turn in found]


def _unknown(field: str, id: str, user: str | None) -> RequestError:
    return RequestError(
        f"{field}: no recorded turn{' of yours' if user else ''} has the id '{id}'.",
        status=404,
        param=field,
        code="not_found",
    )

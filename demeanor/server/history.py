"""/v1/history: conversations of the chat page, kept on the server for users with keys; each user's own only. It is ours, not OpenAI's.

In: a conversation as the page keeps it, any JSON object, with its title and the words to find it by. Out: the same.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BeforeValidator, Field

from demeanor.core.errors import RequestError
from demeanor.server.assistant import kept_value
from demeanor.server.endpoint import (
    AUTHENTICATED,
    WITH_BODY,
    documented,
    json_response,
    read_body,
    read_query,
    state_of,
)
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.schemas import Body, ResponseObject
from demeanor.store import conversations
from demeanor.store.database import Database

MAX_WORDS = 200_000
router = APIRouter()


def _whole(value: Any) -> Any:
    """A number of a query as one."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


class HistoryQuery(Body):
    """The query of GET /v1/history."""

    query: str = Field("", max_length=200, description="words that a conversation contains, in any case")
    limit: Annotated[int, BeforeValidator(_whole)] = Field(100, ge=1, le=500)
    skip: Annotated[int, BeforeValidator(_whole)] = Field(0, ge=0, le=1_000_000)


class HistoryEntry(Body):
    """The body of PUT /v1/history/{id}."""

    title: str = Field(max_length=200)
    words: str = Field(
        "", max_length=MAX_WORDS, description="what a search looks through; the title counts too"
    )
    conversation: dict[str, Any] = Field(description="the conversation, as GET returns it")


class HistoryItem(ResponseObject):
    """A conversation in a list; times in seconds since 1970."""

    object: Literal["conversation"]
    id: str
    title: str
    created: float
    updated: float


class HistoryList(ResponseObject):
    """Conversations, the one that was changed last first."""

    object: Literal["list"]
    data: list[HistoryItem]


class HistorySaved(ResponseObject):
    object: Literal["conversation"]
    id: str
    title: str


class HistoryDeleted(ResponseObject):
    object: Literal["conversation"]
    id: str
    deleted: bool


def place(request: Request) -> tuple[Database, str]:
    """Where the conversations of this user are, and who that is. Raises RequestError (409) if they are kept in the browser."""
    assistant, user = state_of(request).assistant, CURRENT_REQUEST.get().user
    database = assistant.turn_database() if assistant.client_access().history and user is not None else None
    if database is None or user is None:
        raise RequestError(
            "This server keeps no conversations: that needs API keys, a record layer, and `serve: {history: true}`.",
            status=409,
            code="no_history",
        )
    return database, user


@router.get(
    "/v1/history",
    **documented("Kept conversations", (400, 409, *AUTHENTICATED), HistoryList, query=HistoryQuery),
)
async def list_history(request: Request) -> Response:
    query = read_query(request, HistoryQuery)
    database, user = place(request)
    found = await asyncio.to_thread(
        conversations.conversations, database, user, query=query.query, limit=query.limit, skip=query.skip
    )
    data = [
        HistoryItem(
            object="conversation",
            id=c.id,
            title=c.title,
            created=c.created.timestamp(),
            updated=c.updated.timestamp(),
        )
        for c in found
    ]
    return json_response(HistoryList(object="list", data=data))


@router.get("/v1/history/{conversation_id}", **documented("A kept conversation", (404, 409, *AUTHENTICATED)))
async def retrieve_history(request: Request, conversation_id: str) -> Response:
    database, user = place(request)
    found = await asyncio.to_thread(conversations.body, database, user, conversation_id)
    if found is None:
        raise _unknown(conversation_id)
    return Response(found, media_type="application/json", headers={"cache-control": "no-store"})


@router.put(
    "/v1/history/{conversation_id}",
    **documented("Keep a conversation", (409, *WITH_BODY), HistorySaved, body=HistoryEntry),
)
async def put_history(request: Request, conversation_id: str) -> Response:
    entry = await read_body(request, HistoryEntry)
    database, user = place(request)
    if not (0 < len(conversation_id) <= 64 and conversation_id.replace("-", "").isalnum()):
        raise RequestError(
            "The id of a conversation is 1 to 64 letters, digits and hyphens.",
            param="id",
            code="invalid_value",
        )
    told = [entry.title, entry.words, entry.conversation]
    title, words, conversation = await kept_value(state_of(request).assistant, told)
    body, words = orjson.dumps(conversation).decode(), f"{title}\n{words}"
    await conversations.put(database, user, conversation_id, title=title, words=words, body=body)
    return json_response(HistorySaved(object="conversation", id=conversation_id, title=title))


@router.delete(
    "/v1/history/{conversation_id}",
    **documented("Delete a kept conversation", (404, 409, *AUTHENTICATED), HistoryDeleted),
)
async def delete_history(request: Request, conversation_id: str) -> Response:
    database, user = place(request)
    if not await conversations.remove(database, user, conversation_id):
        raise _unknown(conversation_id)
    return json_response(HistoryDeleted(object="conversation", id=conversation_id, deleted=True))


def _unknown(id: str) -> RequestError:
    return RequestError(f"No conversation of yours has the id '{id[:80]}'.", status=404, code="not_found")

"""/v1/demeanor/turns: recorded turns for operators: search, open, mark a rule's decision, answer again through a variant.

In: filters, an id, a mark, a model id. Out: summaries; a turn with the events of every layer, feedback, votes and marks; another answer.
Only turns as their clients saw them: a record layer further in, which also holds what a policy hides, is not read.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BeforeValidator, Field

from demeanor.core.errors import RequestError
from demeanor.core.types import Text, message_json
from demeanor.server.assistant import Replay
from demeanor.server.chat import trace_entries
from demeanor.server.endpoint import (
    AUTHENTICATED,
    GENERATED,
    WITH_BODY,
    documented,
    json_response,
    read_body,
    read_query,
    state_of,
)
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.schemas import Body, ResponseObject
from demeanor.server.streaming import while_connected
from demeanor.store import comparisons, marks, turn_jobs, turn_search
from demeanor.store.database import Database, Stored
from demeanor.store.marks import MarkKind
from demeanor.store.turn_search import TurnFilter, TurnSummary

SHOWN = 400
"""Characters of questions and answers in lists."""
router = APIRouter()


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _yes_or_no(value: Any) -> Any:
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _time(value: Any) -> Any:
    try:
        return datetime.fromisoformat(value).astimezone(UTC) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        return value


YesOrNo = Annotated[bool | None, BeforeValidator(_yes_or_no)]
Time = Annotated[datetime | None, BeforeValidator(_time)]


class TurnsQuery(Body):
    """The query of GET /v1/demeanor/turns; every filter is optional."""

    query: str = Field("", max_length=500, description="words of the conversation or the answer, or an id")
    user: str | None = Field(None, max_length=256)
    variant: str | None = Field(None, max_length=512)
    stack_key: str | None = Field(None, max_length=64)
    rule: str | None = Field(None, max_length=200, description="turns that this rule did something to")
    refused: YesOrNo = Field(None, description="true: refused turns alone; false: the others")
    rated: Literal["up", "down", "any"] | None = Field(None, description="turns with such feedback")
    marked: YesOrNo = Field(None, description="true: turns with a mark alone; false: the others")
    since: Time = Field(None, description="ISO 8601")
    until: Time = Field(None, description="ISO 8601")
    before: Annotated[int | None, BeforeValidator(_number)] = Field(
        None, ge=0, lt=2**63, description="`next` of the page before"
    )
    limit: Annotated[int, BeforeValidator(_number)] = Field(50, ge=1, le=500)


class TurnList(ResponseObject):
    """Summaries, newest first; `next` is the `before` of the next page, null at the end."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    next: int | None
    variants: list[str]


class TurnDetail(ResponseObject):
    """A turn with all that is kept of it."""

    object: Literal["turn"]
    turn: dict[str, Any]
    messages: list[dict[str, Any]]
    text: str
    events: list[dict[str, Any]]
    feedback: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    marks: list[dict[str, Any]]
    scores: list[dict[str, Any]]


class MarkRequest(Body):
    """The body of POST /v1/demeanor/turns/{id}/marks."""

    rule: str = Field(
        max_length=200, description="the rule; empty: the whole policy, which missed something or not"
    )
    mark: MarkKind | None = Field(description="null takes a mark back")
    note: str | None = Field(None, max_length=2_000)


class MarkAnswer(ResponseObject):
    """The marks of the turn from now on."""

    object: Literal["marks"]
    data: list[dict[str, Any]]


class ReplayRequest(Body):
    """The body of POST /v1/demeanor/turns/{id}/replay."""

    model: str = Field(max_length=512, description="the variant that answers the recorded conversation again")


class ReplayAnswer(ResponseObject):
    """Another answer to the same conversation; it is not recorded. `text` is shown through the policy of the served stack."""

    object: Literal["replay"]
    model: str
    stack_key: str
    text: str
    refused: str | None
    finish_reason: str
    ms: float
    prompt_tokens: int
    completion_tokens: int


@router.get(
    "/v1/demeanor/turns",
    **documented("Recorded turns", (400, 409, *AUTHENTICATED), TurnList, query=TurnsQuery),
)
async def list_turns(request: Request) -> Response:
    query = read_query(request, TurnsQuery)
    database = turns_of(request)
    wanted = TurnFilter(**query.model_dump(exclude={"limit"}))
    found = await database.read(partial(turn_search.search, database, wanted, limit=query.limit + 1))
    variants = await database.read(partial(turn_search.variants, database))
    page = found[: query.limit]
    more = page[-1].row if len(found) > query.limit else None
    return json_response(
        TurnList(object="list", data=[_summary(t) for t in page], next=more, variants=variants)
    )


@router.get(
    "/v1/demeanor/turns/{turn_id}", **documented("A recorded turn", (404, 409, *AUTHENTICATED), TurnDetail)
)
async def retrieve_turn(request: Request, turn_id: str) -> Response:
    database = turns_of(request)
    return json_response(await database.read(partial(_detail, database, turn_id)))


@router.post(
    "/v1/demeanor/turns/{turn_id}/marks",
    **documented("Mark a rule's decision", (404, 409, *WITH_BODY), MarkAnswer, body=MarkRequest),
)
async def mark_turn(request: Request, turn_id: str) -> Response:
    body = await read_body(request, MarkRequest)
    database = turns_of(request)
    user = CURRENT_REQUEST.get().user or "operator"
    if not await marks.put(database, turn_id, body.rule, body.mark, user=user, note=body.note or ""):
        raise _unknown(turn_id)
    kept = await database.read(partial(marks.marks, database, turn_id))
    return json_response(MarkAnswer(object="marks", data=[_mark(m) for m in kept]))


@router.post(
    "/v1/demeanor/turns/{turn_id}/replay",
    **documented("Answer a recorded turn again", (409, *GENERATED), ReplayAnswer, body=ReplayRequest),
)
async def replay_turn(request: Request, turn_id: str) -> Response:
    body = await read_body(request, ReplayRequest)
    state, database = state_of(request), turns_of(request)
    stored = await database.read(partial(database.turn, turn_id))
    if stored is None:
        raise _unknown(turn_id)
    if stored.turn.raw is not None:
        raise RequestError(
            "This turn continued raw text; only conversations are answered again.",
            status=409,
            code="no_replay",
        )
    again = state.assistant.replay(stored.turn, body.model)
    replay: Replay = await while_connected(request.receive, again)
    request.state.stack_key = replay.stack_key
    done = replay.completion
    refusal = done.refusal
    return json_response(
        ReplayAnswer(
            object="replay",
            model=replay.model,
            stack_key=replay.stack_key,
            text=replay.text,
            refused=f"{refusal.by}: {refusal.rule}" if refusal else None,
            finish_reason=done.finish_reason,
            ms=round(replay.ms, 1),
            prompt_tokens=done.prompt_tokens,
            completion_tokens=done.completion_tokens,
        )
    )


def turns_of(request: Request) -> Database:
    """The database of turns as clients saw them. Raises RequestError (409) where there is none."""
    database = state_of(request).assistant.turn_store()
    if database is None:
        raise RequestError(
            "This stack keeps no turns as its clients see them: add `- kind: record` as the outermost of its layers.",
            status=409,
            code="no_record_layer",
        )
    return database


def _detail(database: Database, turn_id: str) -> TurnDetail:
    summary = next(iter(turn_search.search(database, TurnFilter(id=turn_id), limit=1)), None)
    stored = database.turn(turn_id)
    if summary is None or stored is None:
        raise _unknown(turn_id)
    return TurnDetail(
        object="turn",
        turn={
            **_summary(summary, shown=None),
            "decoding": _decoding(stored),
            "metadata": dict(stored.turn.metadata),
            "tools": [tool.name for tool in stored.turn.tools],
        },
        messages=[message_json(m) for m in stored.turn.messages],
        text="".join(e.text for e in stored.events if isinstance(e, Text)),
        events=trace_entries(stored.events),
        feedback=[
            {
                "score": f.value,
                "comment": f.comment,
                "corrected": f.corrected,
                "reasons": list(f.reasons),
                "user": f.user,
                "created": f.created.isoformat(),
            }
            for f in database.feedback(turn_id)
        ],
        comparisons=[
            {
                "id": c.id,
                "first": c.first,
                "second": c.second,
                "verdict": c.verdict,
                "blind": c.blind,
                "comment": c.comment,
                "user": c.user,
                "created": c.created.isoformat(),
            }
            for c in comparisons.comparisons(database, turn_id)
        ],
        marks=[_mark(m) for m in marks.marks(database, turn_id)],
        scores=[
            {
                "kind": j.kind,
                "name": j.name,
                "state": j.state,
                "value": j.outcome.value if j.outcome else None,
                "answer": j.outcome.answer if j.outcome else None,
                "explanation": j.outcome.explanation if j.outcome else None,
            }
            for j in turn_jobs.jobs(database, turn=turn_id)
        ],
    )


def _decoding(stored: Stored) -> dict[str, Any]:
    decoding = stored.turn.decoding
    return {
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "max_tokens": decoding.max_tokens,
        "seed": decoding.seed,
    }


def _summary(turn: TurnSummary, shown: int | None = SHOWN) -> dict[str, Any]:
    return {
        "id": turn.id,
        "started": turn.started.isoformat(),
        "ms": round(1000 * (turn.finished - turn.started).total_seconds(), 1),
        "user": turn.user,
        "variant": turn.variant,
        "stack_key": turn.stack_key,
        "question": turn.question[:shown],
        "answer": turn.answer[:shown],
        "finish_reason": turn.finish_reason,
        "refused_by": turn.refused_by,
        "rule": turn.rule,
        "prompt_tokens": turn.prompt_tokens,
        "completion_tokens": turn.completion_tokens,
        "rating": turn.rating,
        "marks": turn.marks,
    }


def _mark(mark: marks.RuleMark) -> dict[str, Any]:
    return {
        "rule": mark.rule,
        "mark": mark.mark,
        "note": mark.note,
        "user": mark.user,
        "created": mark.created.isoformat(),
    }


def _unknown(id: str) -> RequestError:
    return RequestError(f"No recorded turn has the id '{id[:80]}'.", status=404, param="id", code="not_found")

"""The labelling page and its API: /label for people who were invited by link, apart from the API keys of /v1.

In: a database with queues, what measures agreement. Out: a router. The token of a link comes in the Authorization header; answers go
out in the order of the labeller's own claim and without their models, so nothing in the browser says what made which.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from demeanor.core.errors import DemeanorError, EngineError, RequestError, StoreError, UsageError
from demeanor.server import error_responses
from demeanor.server.admission import Operations
from demeanor.server.auth import from_digests
from demeanor.server.middleware import add_middleware
from demeanor.server.schemas import Body, parse_body
from demeanor.server.static_files import names_in, static_file
from demeanor.store import label_work, labels
from demeanor.store.database import Database
from demeanor.store.labels import Claim, GivenLabel, Invitation, LabelItem, LabelQueue

MAX_BODY_BYTES, BODY_S = 64 * 1024, 30.0
AGREEMENT_S = 2.0
"""How old a measured agreement may be while labels come in."""
SHARED = ("dom.js", "clipboard.js", "icon.svg", "markdown.css", "markdown/", "vendor/")
"""Of the chat page's files: those that draw an answer."""
PAGES = {
    **{name: "label_pages" for name in names_in("label_pages") if name != "label.html"},
    **{name: "pages" for name in names_in("pages") if name.startswith(SHARED)},
}
B = TypeVar("B", bound=Body)
Measure = Callable[[Sequence[GivenLabel], Mapping[str, Sequence[int]]], Mapping[str, Any]]
"""Takes the labels of a queue and the ranks its gold checks expect; returns what agreement they have, as JSON."""


@dataclass
class Labelling:
    """What the routes need: the database, what measures agreement, and the last measurement of each queue."""

    database: Database
    measure: Measure
    clock: Callable[[], float] = time.monotonic
    measured: dict[str, tuple[float, int, Mapping[str, Any]]] = field(default_factory=dict)


class LabelRequest(Body):
    """A label: the rank of each answer (0 is best) in the order in which they were shown."""

    item: str = Field(min_length=1, max_length=128)
    choice: Literal["ranked", "tie", "all_bad", "skipped"]
    ranks: list[Annotated[int, Field(ge=0, lt=labels.MAX_ANSWERS)]] | None = Field(
        None, max_length=labels.MAX_ANSWERS
    )
    reason: str = Field("", max_length=4000)
    ms: int = Field(0, ge=0, le=24 * 3600 * 1000)


class InvitationRequest(Body):
    """An invitation: for whom, as what, and for how many hours."""

    name: str = Field(min_length=1, max_length=64)
    role: Literal["labeller", "adjudicator", "owner"] = "labeller"
    hours: float | None = Field(None, gt=0, le=24 * 365)


class RevocationRequest(Body):
    """Whose links end."""

    name: str = Field(min_length=1, max_length=64)


class NoFields(Body):
    """A body without fields."""


router = APIRouter(include_in_schema=False)


@router.get("/label/api/me")
async def me(request: Request) -> Response:
    who = await _invited(request)
    queue = await _queue(request, who)
    return _json(
        {
            "name": who.name,
            "role": who.role,
            "queue": queue.name,
            "question": queue.question,
            "progress": await _progress(request, who),
        }
    )


@router.post("/label/api/next")
async def next_item(request: Request) -> Response:
    await _body(request, NoFields)
    who = await _invited(request, "labeller", "adjudicator")
    queue, store = await _queue(request, who), _state(request)
    claim = await asyncio.to_thread(label_work.claim, store.database, queue, who)
    if claim is None:
        return _json({"item": None, "progress": await _progress(request, who)})
    opinions = []
    if claim.is_adjudication:
        given = await asyncio.to_thread(labels.labels_of_item, store.database, claim.item.id)
        opinions = [label for label in given if label.role == "labeller" and label.choice != "skipped"]
    return _json({"item": _shown(claim, opinions), "progress": await _progress(request, who)})


@router.post("/label/api/previous")
async def previous(request: Request) -> Response:
    """The last label of this labeller, to be looked at again and changed."""
    await _body(request, NoFields)
    who = await _invited(request, "labeller", "adjudicator")
    store = _state(request)
    found = await asyncio.to_thread(labels.last_label, store.database, who)
    if found is None:
        return _json({"item": None, "progress": await _progress(request, who)})
    item, label = found
    shown = _shown(Claim(item, label.shown, 0.0, label.role == "adjudicator"), [])
    given = {"choice": label.choice, "ranks": [label.ranks[n] for n in label.shown], "reason": label.reason}
    return _json({"item": {**shown, "given": given}, "progress": await _progress(request, who)})


@router.post("/label/api/labels")
async def give(request: Request) -> Response:
    """Store a label; the answer is sent when it is durable."""
    body = await _body(request, LabelRequest)
    who = await _invited(request, "labeller", "adjudicator")
    queue, store = await _queue(request, who), _state(request)
    try:
        label = await asyncio.to_thread(
            label_work.give_shown,
            store.database,
            queue,
            who,
            body.item,
            body.choice,
            body.ranks or (),
            reason=body.reason,
            ms=body.ms,
        )
    except ValueError as error:
        raise RequestError(str(error), param=str(error).partition(":")[0], code="invalid_value") from None
    except (StoreError, EngineError):
        raise
    except DemeanorError as error:
        raise RequestError(str(error), status=409, param="item", code="not_yours") from None
    answer = {"object": "label", "item": label.item, "choice": label.choice, "revisions": label.revisions}
    return _json({**answer, "progress": await _progress(request, who)})


@router.get("/label/api/agreement")
async def agreement(request: Request) -> Response:
    who = await _invited(request, "adjudicator", "owner")
    store = _state(request)
    count = await asyncio.to_thread(labels.count_labels, store.database, who.queue)
    kept = store.measured.get(who.queue)
    if kept is None or (kept[1] != count and store.clock() - kept[0] > AGREEMENT_S):
        found = await asyncio.to_thread(_measured, store, who.queue)
        kept = store.measured[who.queue] = (store.clock(), count, found)
    return _json({"agreement": kept[2], "progress": await _progress(request, who)})


def _measured(store: Labelling, queue: str) -> Mapping[str, Any]:
    gold = {item.id: item.gold for item in labels.items_of(store.database, queue) if item.gold is not None}
    return store.measure(labels.labels_of(store.database, queue), gold)


@router.get("/label/api/invitations")
async def invitations(request: Request) -> Response:
    who = await _invited(request, "owner")
    found = await asyncio.to_thread(labels.invitations, _state(request).database, who.queue)
    listed = [
        {"name": x.name, "role": x.role, "created": x.created, "expires": x.expires, "revoked": x.revoked}
        for x in found
    ]
    return _json({"invitations": listed})


@router.post("/label/api/invitations")
async def invite(request: Request) -> Response:
    """Make a link; its token is in this answer and nowhere else."""
    body = await _body(request, InvitationRequest)
    who = await _invited(request, "owner")
    valid_s = None if body.hours is None else 3600 * body.hours
    try:
        token = await asyncio.to_thread(
            labels.invite, _state(request).database, who.queue, body.name, body.role, valid_s
        )
    except UsageError as error:
        raise RequestError(str(error), param="name", code="invalid_value") from None
    return _json({"object": "invitation", "name": body.name, "role": body.role, "token": token})


@router.post("/label/api/revocations")
async def revoke(request: Request) -> Response:
    body = await _body(request, RevocationRequest)
    who = await _invited(request, "owner")
    count = await asyncio.to_thread(labels.revoke, _state(request).database, who.queue, body.name)
    return _json({"object": "revocation", "name": body.name, "links": count})


# ---- what the routes share ----


def _shown(claim: Claim, opinions: Sequence[GivenLabel]) -> dict[str, Any]:
    """An item as its labeller sees it: answers in the order of their claim, nothing of what made them."""
    item: LabelItem = claim.item
    return {
        "id": item.id,
        "prompt": [{"role": m.get("role", ""), "content": str(m.get("content") or "")} for m in item.prompt],
        "answers": [item.answers[n].text for n in claim.shown],
        "adjudication": claim.is_adjudication,
        "opinions": [
            {
                "labeller": f"Labeller {number}",
                "choice": label.choice,
                "ranks": [label.ranks[n] for n in claim.shown],
                "reason": label.reason,
            }
            for number, label in enumerate(opinions, 1)
        ],
    }


def _state(request: Request) -> Labelling:
    found: Labelling = request.app.state.labelling
    return found


async def _invited(request: Request, *roles: str) -> Invitation:
    """Whose link this is. Raises RequestError: 401 for no valid link, 403 for another role."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    found = None
    if scheme.lower() == "bearer" and token.strip():
        found = await asyncio.to_thread(labels.find_invitation, _state(request).database, token.strip())
    if found is None:
        raise RequestError(
            "This link is not valid (any more). Ask for a new one.",
            status=401,
            kind="authentication_error",
            code="invalid_link",
        )
    if roles and found.role not in roles:
        raise RequestError(
            f"This link is for the role '{found.role}'; wanted {' or '.join(roles)}.",
            status=403,
            kind="permission_error",
            code="wrong_role",
        )
    return found


async def _queue(request: Request, who: Invitation) -> LabelQueue:
    found = await asyncio.to_thread(labels.find_queue, _state(request).database, who.queue)
    if found is None:
        raise RequestError("This queue is gone.", status=404, code="not_found")
    return found


async def _progress(request: Request, who: Invitation) -> dict[str, int]:
    database = _state(request).database
    found = await asyncio.to_thread(labels.progress, database, who.queue)
    yours = await asyncio.to_thread(labels.count_labels, database, who.queue, who.name)
    return {**found, "yours": yours}


async def _body(request: Request, model: type[B]) -> B:
    """The checked body. Raises RequestError: 415 if it is not JSON, 413 too long, 408 too slow, 400 for its mistakes."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise RequestError(
            f"The body should be sent as content-type application/json, not '{media}'.",
            status=415,
            code="unsupported_media_type",
        )
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_BODY_BYTES:
                    raise RequestError(
                        f"The body is longer than {MAX_BODY_BYTES} bytes.", status=413, code="body_too_large"
                    )
    except TimeoutError:
        raise RequestError(
            f"The body did not come within {BODY_S:g} s.", status=408, code="body_timeout"
        ) from None
    return parse_body(bytes(content), model)


def _json(value: Mapping[str, Any]) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(orjson.dumps(value), headers=headers, media_type="application/json")


# ---- an app ----


def add_to(api: FastAPI, labelling: Labelling) -> None:
    """Add the labelling page to an app."""
    api.state.labelling = labelling
    api.include_router(router)
    api.add_api_route(
        "/label", static_file("label_pages", "label.html"), methods=["GET"], include_in_schema=False
    )
    for name, folder in PAGES.items():
        path = f"/label/static/{name}"
        api.add_api_route(path, static_file(folder, name), methods=["GET"], include_in_schema=False)


def labelling_app(labelling: Labelling, *, clock: Callable[[], float] = time.monotonic) -> FastAPI:
    """An app with nothing but the labelling page; every request to its API needs the token of a link."""
    api = FastAPI(title="labelling", docs_url=None, redoc_url=None, openapi_url=None)
    no_keys = from_digests({})  # links are the keys here, so any Host may be asked
    add_middleware(api, keys=no_keys, hosts=(), operations=Operations(), observers=(), clock=clock)
    for error in (RequestError, StoreError, HTTPException):
        api.add_exception_handler(error, _error_response)
    add_to(api, labelling)
    api.add_api_route("/healthz", _healthz, methods=["GET"], include_in_schema=False)
    return api


async def _healthz(request: Request) -> Response:
    return _json({"status": "ok"})


async def _error_response(request: Request, error: Exception) -> Response:
    refusal = error_responses.refusal_of(error, request.state.request_id)
    return error_responses.error_response(refusal)

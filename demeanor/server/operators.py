"""/v1/demeanor/traffic: experiments, shadows and evaluators for operators.

In: nothing, or the name of an experiment to stop. Out: results as traffic/report.py makes them. It needs the scope `operator`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from demeanor.core.errors import RequestError, UsageError
from demeanor.server.assistant import Traffic, traffic_of
from demeanor.server.endpoint import (
    AUTHENTICATED,
    WITH_BODY,
    documented,
    json_response,
    read_body,
    state_of,
)
from demeanor.server.schemas import Body, ResponseObject

router = APIRouter()


class TrafficAnswer(ResponseObject):
    """Results so far: `experiments`, `jobs` (shadows and evaluators), and `notes` of what should have run and did not."""

    object: Literal["traffic"]
    experiments: list[dict[str, Any]]
    jobs: list[dict[str, Any]]
    notes: list[str]


class StopRequest(Body):
    """The body of a request to stop an experiment."""

    reason: str = Field("", max_length=500, description="kept with the experiment")


class StopAnswer(ResponseObject):
    """Whether the experiment was running until now."""

    object: Literal["experiment.stopped"]
    name: str
    stopped: bool


@router.get(
    "/v1/demeanor/traffic",
    **documented("Experiments, shadows and evaluators", (409, *AUTHENTICATED), TrafficAnswer),
)
async def traffic(request: Request) -> Response:
    found = await asyncio.to_thread(_traffic(request).report)
    return json_response(TrafficAnswer(object="traffic", **found))


@router.post(
    "/v1/demeanor/experiments/{name}/stop",
    **documented("Stop an experiment", (404, 409, *WITH_BODY), StopAnswer, body=StopRequest),
)
async def stop(request: Request, name: str) -> Response:
    body = await read_body(request, StopRequest)
    try:
        stopped = await asyncio.to_thread(_traffic(request).stop, name, body.reason)
    except UsageError as error:
        raise RequestError(str(error), status=404, param="name", code="not_found") from None
    return json_response(StopAnswer(object="experiment.stopped", name=name, stopped=stopped))


def _traffic(request: Request) -> Traffic:
    found = traffic_of(state_of(request).assistant)
    if found is None:
        raise RequestError(
            "This stack declares no experiments, shadows or evaluators: add them under `serve:` (docs/experiments.md).",
            status=409,
            code="no_traffic",
        )
    return found

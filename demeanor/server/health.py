"""Addresses for whoever runs the server: is it alive, does it take requests, what has it done."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Response

from demeanor.server.assistant import Assistant
from demeanor.server.metrics import MEDIA_TYPE, Metrics
from demeanor.server.operations import Operations

FRESH = {"cache-control": "no-store"}


def health(assistant: Assistant, run: Operations, metrics: Metrics) -> APIRouter:
    """The router of /healthz, /readyz and /metrics."""
    router = APIRouter()

    def told(status: str, code: int = 200) -> Response:
        about = {"status": status, "name": assistant.name, "stack_key": assistant.stack_key}
        return Response(orjson.dumps(about), status_code=code, media_type="application/json", headers=FRESH)

    @router.get("/healthz")
    async def healthz() -> Response:
        return told("ok")

    @router.get("/readyz")
    async def readyz() -> Response:
        return told("ready") if run.ready() else told("draining", 503)

    @router.get("/metrics")
    async def shown() -> Response:
        running, waiting = (
            run.engine_load()
            if run.engine_load
            else (min(run.load.turns, run.slots), max(0, run.load.turns - run.slots))
        )
        text = metrics.text(
            in_progress=run.load.in_progress,
            turns=run.load.turns,
            slots=run.slots,
            running=running,
            waiting=waiting,
        )
        return Response(text, headers={**FRESH, "content-type": MEDIA_TYPE})

    return router

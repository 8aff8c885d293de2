"""Addresses for whoever runs the server: is it alive, does it take requests, what has it done."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from demeanor.server.admission import Operations
from demeanor.server.assistant import Assistant
from demeanor.server.metrics import Metrics

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
        return Response(metrics.text(), headers={**FRESH, "content-type": CONTENT_TYPE_PLAIN_0_0_4})

    return router

"""What stands around the routes, outermost first: the envelope, CORS where origins are named, the gate."""

from __future__ import annotations

from collections.abc import Callable, Collection

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from demeanor.server.calls import Call
from demeanor.server.envelope import Envelope
from demeanor.server.gate import Gate
from demeanor.server.keys import KeyStore
from demeanor.server.metrics import Metrics
from demeanor.server.operations import Operations

TOLD = (
    "x-request-id",
    "x-demeanor-stack",
    "x-demeanor-ms",
    "x-demeanor-layers",
    "server-timing",
    "retry-after",
    "retry-after-ms",
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
)


def guard(
    api: FastAPI,
    keys: KeyStore | None,
    hosts: Collection[str],
    run: Operations,
    metrics: Metrics,
    clock: Callable[[], float],
) -> None:
    """Put the layers around an app's routes."""
    api.add_middleware(Gate, keys=keys, operations=run, clock=clock)
    if run.cors:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(run.cors),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=list(TOLD),
            max_age=600,
        )

    def took(call: Call) -> None:
        if call.method == "POST" and call.status == 200:
            run.load.took(call.ended - call.started)

    api.add_middleware(
        Envelope,
        hosts=hosts if keys is None else None,
        observers=(took, metrics, *run.observers),
        clock=clock,
    )

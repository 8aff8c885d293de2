"""The middleware of an app, outermost first: request context, CORS where origins are named, authentication, admission.

RequestContextMiddleware makes the context, checks the Host, adds the request id, security headers and milliseconds per layer, turns an
unexpected exception into a 500 without details, and calls the observers of every request that has ended. It never looks into a body.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demeanor.core.errors import RequestError
from demeanor.server import error_responses
from demeanor.server.addressing import host_name, is_loopback
from demeanor.server.admission import AdmissionMiddleware, Operations
from demeanor.server.auth import AuthMiddleware, KeyRing, KeyStore
from demeanor.server.request_context import (
    CURRENT_REQUEST,
    Disconnected,
    Observer,
    RequestContext,
    valid_id,
)

log = logging.getLogger("demeanor.server")
SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
EXPOSED = (
    "x-request-id",
    "x-demeanor-stack",
    "x-demeanor-ms",
    "x-demeanor-layers",
    "x-demeanor-upstream",
    "x-demeanor-cost-usd",
    "server-timing",
    "retry-after",
    "retry-after-ms",
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
)
"""The headers that pages of a CORS origin may read."""
CLIENT_CLOSED_REQUEST = 499
"""The status that is counted where the client left before there was one (nginx's)."""


def add_middleware(
    api: FastAPI,
    *,
    keys: KeyStore | KeyRing | None,
    hosts: Collection[str],
    operations: Operations,
    observers: Collection[Observer],
    clock: Callable[[], float],
) -> None:
    """Add the middleware to an app; the last one added is the outermost."""
    api.add_middleware(AdmissionMiddleware, operations=operations)
    api.add_middleware(AuthMiddleware, keys=keys, clock=clock)
    if operations.cors:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(operations.cors),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=list(EXPOSED),
            max_age=600,
        )
    api.add_middleware(
        RequestContextMiddleware,
        hosts=hosts if keys is None else None,
        operations=operations,
        observers=observers,
        clock=clock,
    )


class RequestContextMiddleware:
    """Wrap `inner`; where `hosts` is given, only requests to these Host names (and loopback ones) pass.

    The Host check keeps web pages elsewhere from talking to a server without keys through a rebound DNS name.
    """

    def __init__(
        self,
        inner: ASGIApp,
        *,
        hosts: Collection[str] | None,
        operations: Operations,
        observers: Collection[Observer],
        clock: Callable[[], float],
    ) -> None:
        self.inner, self.hosts, self.operations = inner, hosts, operations
        self.observers, self.clock = observers, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        request = self._context(scope)
        state["request_id"] = request.id
        token = CURRENT_REQUEST.set(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
                headers = MutableHeaders(scope=message)
                request.streamed = headers.get("content-type", "").startswith("text/event-stream")
                headers.update({**SECURITY, "x-request-id": request.request_id, **layer_headers(request)})
                headers.update(upstream_headers(request))
                if "stack_key" in state:
                    headers["x-demeanor-stack"] = request.stack_key = state["stack_key"]
            await send(message)

        try:
            self._check_host(scope)
            await self.inner(scope, receive, send_with_headers)
        except Disconnected:
            request.status = request.status or CLIENT_CLOSED_REQUEST
        except Exception as error:
            refusal = error_responses.refusal_of(error, request.id)
            if (
                request.status
            ):  # too late for an answer of its own: the connection is cut, with nothing more in the log
                return
            await error_responses.error_response(refusal)(scope, receive, send_with_headers)
        finally:
            CURRENT_REQUEST.reset(token)
            request.ended = self.clock()
            request.route = getattr(scope.get("route"), "path", "other")
            for observe in self.observers:
                try:
                    observe(request)
                except Exception:  # a failing observer must not fail the request
                    log.exception("request %s: an observer failed", request.id)

    def _context(self, scope: Scope) -> RequestContext:
        own, headers = f"req_{uuid.uuid4().hex}", Headers(scope=scope)
        return RequestContext(
            own,
            valid_id(headers.get("x-request-id"), own),
            scope.get("method", ""),
            self.clock(),
            self.clock,
            self.operations.load,
            trace_headers={name: headers[name] for name in ("traceparent", "tracestate") if name in headers},
            contents=[] if self.operations.keep_contents else None,
        )

    def _check_host(self, scope: Scope) -> None:
        host = host_name(Headers(scope=scope).get("host", ""))
        if self.hosts is not None and not is_loopback(host) and host not in self.hosts:
            raise RequestError(
                f"This server has no API keys and so answers to local names only, not to '{host}'. "
                "Configure keys, or add the name to its hosts.",
                status=421,
                code="unknown_host",
            )


def layer_headers(request: RequestContext) -> dict[str, str]:
    """Milliseconds per layer of an answer that is complete; a stream sends them in its last chunk."""
    if not request.layers_ms:
        return {}
    timing = ", ".join(f"{by.replace(' ', '_')};dur={ms:.3f}" for by, ms in request.layers_ms.items())
    return {"server-timing": timing, "x-demeanor-layers": timing.replace(";dur=", "=")}


def upstream_headers(request: RequestContext) -> dict[str, str]:
    """Which upstream answers, if there are several, and what a whole answer cost; a stream tells its cost at its end."""
    found: dict[str, str] = {}
    if request.upstreams:
        names = ", ".join(dict.fromkeys(each.name for each in request.upstreams))
        found["x-demeanor-upstream"] = names.encode("ascii", "backslashreplace").decode()
    if request.costs and not request.streamed:
        usd = request.cost_usd
        found["x-demeanor-cost-usd"] = "unknown" if usd is None else f"{usd:.9f}"
    return found

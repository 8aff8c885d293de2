"""The outermost ASGI layer: request ids, security headers, a Host check, milliseconds per layer, and a 500 that tells nothing.

It wraps any ASGI app, never looks into a body, and tells observers of every request that has ended.
"""

from __future__ import annotations

import ipaddress
import logging
import time
import uuid
from collections.abc import Callable, Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demeanor.core.errors import RequestError
from demeanor.server import problems
from demeanor.server.calls import CALL, Call, shown_id
from demeanor.server.flow import Disconnected
from demeanor.server.operations import Observer

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

LEFT = 499
"""The status that is counted where the client left before there was one (nginx's)."""


class Envelope:
    """Wrap `inner`; where `hosts` is given, only requests to these Host names (and loopback ones) pass.

    The Host check keeps web pages elsewhere from talking to a server without keys through a rebound DNS name.
    """

    def __init__(
        self,
        inner: ASGIApp,
        *,
        hosts: Collection[str] | None,
        observers: Collection[Observer] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inner, self.hosts, self.observers, self.clock = inner, hosts, observers, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = own = f"req_{uuid.uuid4().hex}"
        headers_in = Headers(scope=scope)
        call = Call(
            own,
            shown_id(headers_in.get("x-request-id"), own),
            scope.get("method", ""),
            self.clock(),
            trace={name: headers_in[name] for name in ("traceparent", "tracestate") if name in headers_in},
        )
        token = CALL.set(call)

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                headers = MutableHeaders(scope=message)
                call.streamed = headers.get("content-type", "").startswith("text/event-stream")
                headers.update({**SECURITY, "x-request-id": call.request_id, **layer_headers(call)})
                if "stack_key" in state:
                    headers["x-demeanor-stack"] = call.stack_key = state["stack_key"]
            await send(message)

        try:
            self._check_host(scope)
            await self.inner(scope, receive, sealed)
        except Disconnected:
            call.status = call.status or LEFT
        except Exception as error:
            if call.status:
                raise
            await problems.response(problems.refusal_of(error, own))(scope, receive, sealed)
        finally:
            CALL.reset(token)
            call.ended = self.clock()
            call.route = getattr(scope.get("route"), "path", "other")
            for observe in self.observers:
                try:
                    observe(call)
                except Exception:  # whoever watches must not break what he watches
                    log.exception("request %s: an observer failed", own)

    def _check_host(self, scope: Scope) -> None:
        host = host_name(Headers(scope=scope).get("host", ""))
        if self.hosts is not None and not is_loopback(host) and host not in self.hosts:
            raise RequestError(
                f"This server has no API keys and so answers to local names only, not to '{host}'. "
                "Configure keys, or add the name to its hosts.",
                status=421,
                code="unknown_host",
            )


def layer_headers(call: Call) -> dict[str, str]:
    """Milliseconds per layer of an answer that is complete; a stream tells them in its last chunk."""
    if not call.layers_ms:
        return {}
    timing = ", ".join(f"{by.replace(' ', '_')};dur={ms:.3f}" for by, ms in call.layers_ms.items())
    return {"server-timing": timing, "x-demeanor-layers": timing.replace(";dur=", "=")}


def host_name(host: str) -> str:
    """The name in a Host header: lower case, without port and brackets."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def is_loopback(name: str) -> bool:
    """Whether a host name means this machine whatever DNS says."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

"""The outermost ASGI layer: request ids, security headers, a Host check, and a 500 that tells nothing.

It wraps any ASGI app and never looks into a body.
"""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demeanor.errors import RequestError
from demeanor.server import problems
from demeanor.server.flow import Disconnected

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


class Envelope:
    """Wrap `inner`; where `hosts` is given, only requests to these Host names (and loopback ones) pass.

    The Host check keeps web pages elsewhere from talking to a server without keys through a rebound DNS name.
    """

    def __init__(self, inner: ASGIApp, *, hosts: Collection[str] | None) -> None:
        self.inner, self.hosts = inner, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = f"req_{uuid.uuid4().hex}"
        started = False

        async def sealed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.update({**SECURITY, "x-request-id": request_id})
                if "stack_key" in state:
                    headers["x-demeanor-stack"] = state["stack_key"]
            await send(message)

        try:
            self._check_host(scope)
            await self.inner(scope, receive, sealed)
        except Disconnected:
            return
        except Exception as error:
            if started:
                raise
            await problems.response(problems.refusal_of(error, request_id))(scope, receive, sealed)

    def _check_host(self, scope: Scope) -> None:
        host = host_name(Headers(scope=scope).get("host", ""))
        if self.hosts is not None and not is_loopback(host) and host not in self.hosts:
            raise RequestError(f"This server has no API keys and so answers to local names only, not to '{host}'. "
                               "Configure keys, or add the name to its hosts.", status=421, code="unknown_host")


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

"""Who may ask the operators' routes: a key with the scope `operator`, or without keys somebody at this machine.

Operators read what other users wrote, so a server without keys answers only requests that come from a loopback address, to a
loopback name, and not from a web page of another origin.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from demeanor.core.errors import RequestError
from demeanor.server.addressing import host_name, is_loopback

OPERATOR_PATHS = "/v1/demeanor/"


def check_local(scope: Scope) -> None:
    """Raise RequestError (403) for a request to an operators' route of a server without keys that is not from this machine."""
    headers, client = Headers(scope=scope), scope.get("client")
    host, origin = headers.get("host", ""), headers.get("origin")
    local = client is not None and is_loopback(client[0]) and is_loopback(host_name(host))
    own = origin is None or urlsplit(origin).netloc == host
    if not (local and own):
        raise RequestError(
            "Without API keys the operators' routes answer only requests from this machine, by a local name. Serve with "
            "--keys, and make a key with the scope operator.",
            status=403,
            kind="permission_error",
            code="operators_only",
        )

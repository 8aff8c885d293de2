"""The chat page's files, read once from the package and served with an entity tag; nothing is loaded from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

MEDIA = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}


def page(name: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """The handler of one file of `server/pages/`."""
    content = files("demeanor.server").joinpath("pages", name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    media = MEDIA[name.rsplit(".", 1)[-1]]

    async def serve(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media, headers=headers)

    return serve

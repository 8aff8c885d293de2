"""Files of the pages: read once from the package, served with an entity tag."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from importlib.resources import files
from typing import Any

from fastapi import Request, Response

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}


def names_in(folder: str) -> list[str]:
    """The files of a folder and its folders that are served; licences of libraries are not."""
    found: list[str] = []
    open_folders = [("", files("demeanor.server").joinpath(folder))]
    while open_folders:
        prefix, inside = open_folders.pop()
        for entry in sorted(inside.iterdir(), key=lambda e: e.name):
            if entry.is_dir():
                open_folders.append((f"{prefix}{entry.name}/", entry))
            elif entry.name.rsplit(".", 1)[-1] in MEDIA_TYPES:
                found.append(f"{prefix}{entry.name}")
    return found


def static_file(folder: str, name: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """The handler of one file in a folder of server/, such as pages."""
    content = files("demeanor.server").joinpath(folder, name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    media_type = MEDIA_TYPES[name.rsplit(".", 1)[-1]]

    async def serve(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return serve

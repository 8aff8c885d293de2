"""The body of a request as bytes, refused before it is read where it is too long or of another type."""

from __future__ import annotations

from starlette.requests import Request

from demeanor.core.errors import RequestError


async def body(request: Request, max_bytes: int) -> bytes:
    """The request's body. Raises RequestError: 415 if it is not declared as JSON, 413 if it is too long.

    The declared type matters: a page elsewhere can post text/plain to a local server unasked, but not application/json.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise RequestError(
            f"The body should be sent as content-type application/json, not '{media}'.",
            status=415,
            code="unsupported_media_type",
        )
    too_long = RequestError(f"The body is longer than {max_bytes} bytes.", status=413, code="body_too_large")
    if int(request.headers.get("content-length", "0") or 0) > max_bytes:
        raise too_long
    parts, size_bytes = [], 0
    async for part in request.stream():
        size_bytes += len(part)
        if size_bytes > max_bytes:
            raise too_long
        parts.append(part)
    return b"".join(parts)

"""Errors as OpenAI-shaped responses: `{"error": {message, type, param, code}}`.

An error that a client can fix is sent in full; an unexpected one is logged with the request's id, its type and place but not its
message, and only that id is sent.
"""

from __future__ import annotations

import logging
import math
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import Response

from demeanor.core.errors import (
    ContextError,
    DecodingError,
    EngineError,
    RequestError,
    StoreError,
    TextError,
    UpstreamError,
)
from demeanor.server.schemas import ErrorAnswer, ErrorDetail

log = logging.getLogger("demeanor.server")
RETRY_S = 2.0


class UnexpectedError(Exception):
    """What a log gets in place of an error that nobody expected: its place and type."""


def refusal_of(error: Exception, request_id: str) -> RequestError:
    """Any exception as a RequestError; an unexpected one is logged here, with its place, and becomes a bare 500."""
    match error:
        case RequestError():
            return error
        case ContextError():
            return RequestError(str(error), param="messages", code="context_length_exceeded")
        case TextError():
            return RequestError(str(error), param=error.param, code="invalid_value")
        case DecodingError():
            return RequestError(str(error), param=error.param, code="invalid_value")
        case UpstreamError():
            return _upstream(error, request_id)
        case StoreError():
            log.error("request %s: %s", request_id, error)
            return RequestError(
                "The server's database cannot be used at the moment. Try again.",
                status=503,
                kind="server_error",
                code="database_unavailable",
                retry_after_s=RETRY_S,
            )
        case EngineError():
            log.error("request %s: no answer from the engine: %s", request_id, error)
            return RequestError(
                f"The model cannot answer now. The server's log has the reason under {request_id}.",
                status=503,
                kind="server_error",
                code="engine_unavailable",
            )
        case HTTPException(status_code=status):
            return _http(status)
        case _:
            told = UnexpectedError(
                f"{type(error).__name__} (its message, which may hold a client's words, is left out)"
            )
            log.error("request %s failed", request_id, exc_info=(UnexpectedError, told, error.__traceback__))
            log.debug("request %s failed", request_id, exc_info=error)
            return RequestError(
                f"The server failed on this request. Its log has the reason under {request_id}.",
                status=500,
                kind="server_error",
                code="internal_error",
            )


def _upstream(error: UpstreamError, request_id: str) -> RequestError:
    """What a server behind this one refused or failed at; what no client can mend goes to the log, in one line."""
    if error.status >= 500:
        log.error("request %s: %s", request_id, " ".join(str(error).split()))
    public = (
        error.public
        or f"The server behind this model failed. The log of this server has the reason under {request_id}."
    )
    kind = {400: "invalid_request_error", 404: "invalid_request_error", 429: "rate_limit_error"}
    return RequestError(
        public,
        status=error.status,
        kind=kind.get(error.status, "server_error"),
        param=error.param,
        code=error.code,
        retry_after_s=error.retry_after_s,
    )


def _http(status: int) -> RequestError:
    if status == 404:
        return RequestError(
            "There is nothing at this address. Known: /v1/chat/completions, /v1/completions, "
            "/v1/responses, /v1/embeddings, /v1/moderations, /v1/feedback, /v1/models, /healthz, /.",
            status=404,
            code="unknown_url",
        )
    if status == 405:
        return RequestError("This address takes another method.", status=405, code="method_not_allowed")
    return RequestError(f"{HTTPStatus(status).phrase}.", status=status, code="http_error")


def error_answer(error: RequestError) -> ErrorAnswer:
    """The body of an error."""
    detail = ErrorDetail(message=str(error), type=error.kind, param=error.param, code=error.code)
    return ErrorAnswer(error=detail)


def error_response(error: RequestError) -> Response:
    """The HTTP response of an error, with `retry-after` where waiting helps."""
    headers = {"cache-control": "no-store"}
    if error.retry_after_s is not None:
        wait_s = max(0.0, error.retry_after_s)
        headers |= {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    content = error_answer(error).encode()
    return Response(content, status_code=error.status, media_type="application/json", headers=headers)

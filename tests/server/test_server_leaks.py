"""Logs, metrics and spans hold nothing that a client wrote, whatever happens; and nobody can forge a line of a log."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from scripted import SCRIPTS, Scripted, body

from demeanor.core.errors import EngineError, RequestError, StoreError, TextError
from demeanor.core.types import Respond, Text, Turn
from demeanor.server import json_logs
from demeanor.server.admission import Operations
from demeanor.server.application import app
from demeanor.server.auth import from_digests
from demeanor.server.json_logs import Lines, TextLines, one_line
from demeanor.server.request_context import RequestContext
from demeanor.server.serve import Settings, _logging
from demeanor.server.tracing import attributes
from demeanor.store.keys import digest

SECRET, KEY = "xyzzy-secret", "sk-plugh-key"
FORGED = "a\nERROR: forged\r\x1b[31m\u2028\u202eb"


class Logged:
    """Everything the process logs, as `serve` writes it: as text, and as JSON with a line per request; and its spans."""

    def __init__(self) -> None:
        self.text, self.lines = io.StringIO(), io.StringIO()
        self.spans: list[dict[str, Any]] = []
        self.handlers = [logging.StreamHandler(self.text), logging.StreamHandler(self.lines)]
        for handler, form in zip(self.handlers, (TextLines(), Lines())):
            handler.setFormatter(form)

    def observe(self, request: RequestContext) -> None:
        json_logs.to(self.lines)(request)
        self.spans.append(attributes(request))

    @property
    def everything(self) -> str:
        return self.text.getvalue() + self.lines.getvalue() + json.dumps(self.spans)


@pytest.fixture
def logged() -> Iterator[Logged]:
    made = Logged()
    for handler in made.handlers:
        logging.getLogger().addHandler(handler)
    yield made
    for handler in made.handlers:
        logging.getLogger().removeHandler(handler)


def failing(error: Exception, after: str) -> Respond:
    async def respond(turn: Turn) -> Any:
        if after:
            yield Text(after)
        raise error
        yield

    return respond


class Endless(Exception):
    def __str__(self) -> str:
        return SECRET


ERRORS = [
    KeyError(SECRET),
    ValueError(SECRET),
    Endless(),
    RecursionError(SECRET),
    UnicodeEncodeError("utf-8", SECRET, 0, 1, SECRET),
    TextError(SECRET, index=0, field=".content"),
    RequestError(f"no {SECRET}", param="messages"),
    EngineError("the engine is closed"),
    StoreError("locked"),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_no_event_and_no_error_puts_a_clients_words_into_logs_metrics_or_spans(
    logged: Logged, stream: bool
) -> None:
    assistant = Scripted()
    operations = Operations(deadline_s=5, observers=(logged.observe,))
    keys = from_digests({digest(KEY): "edda"})
    transport = httpx.ASGITransport(app(assistant, keys=keys, operations=operations))
    good = {"authorization": f"Bearer {KEY}"}
    statuses = []
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=good) as client:

        async def send(path: str, content: Any, headers: dict[str, str] | None = None) -> None:
            given = {"content": content} if isinstance(content, bytes) else {"json": content}
            answer = await client.post(
                path, headers={"content-type": "application/json", **(headers or {})}, **given
            )
            statuses.append(answer.status_code)

        for topic in SCRIPTS:
            if topic not in ("forever", "flood"):
                await send("/v1/chat/completions", body(f"{topic} {SECRET}", stream=stream))
                await send(
                    "/v1/responses",
                    {"model": "harbour-desk", "input": f"{topic} {SECRET}", "stream": stream, "store": False},
                )
        for error in ERRORS:
            for after in ("", "half"):
                assistant.respond = lambda model_id, error=error, after=after: failing(error, after)  # type: ignore[misc, assignment]
                await send("/v1/chat/completions", body(SECRET, stream=stream))
                await send(
                    "/v1/responses",
                    {"model": "harbour-desk", "input": SECRET, "stream": stream, "store": False},
                )
        for wrong in (
            b"{" + SECRET.encode(),
            json.dumps(SECRET).encode(),
            body(SECRET, temperature=SECRET),
            body("a", **{SECRET: 1}),
            body("a", model=SECRET),
            body("a", tools=[{"type": "function", "function": {"name": SECRET + "!"}}]),
            body("a", messages=[{"role": SECRET, "content": ""}]),
        ):
            await send("/v1/chat/completions", wrong)
        for path in (
            f"/v1/{SECRET}",
            f"/v1/models/{SECRET}",
            f"/{SECRET}",
            "/v1/feedback",
            "/v1/moderations",
            "/v1/embeddings",
        ):
            await send(path, {"model": SECRET, "input": SECRET, "id": SECRET, "score": 1})
            await client.get(path, headers={"user-agent": SECRET, "x-request-id": f"{SECRET} {SECRET}"})
        await send("/v1/chat/completions", body(SECRET), {"authorization": f"Bearer {SECRET}"})
        metrics = (await client.get("/metrics")).text
    assert {200, 400, 401, 404} <= set(statuses)
    assert len(logged.spans) > 60
    assert "demeanor_requests_total" in metrics
    for text in (logged.everything, metrics):
        assert SECRET not in text
        assert KEY not in text


def test_text_that_is_logged_stays_on_its_line_and_steers_no_terminal() -> None:
    assert one_line(FORGED) == "a\\nERROR: forged\\r\\x1b[31m\\u2028\\u202eb"
    assert one_line("Grüße, 京都 🐟") == "Grüße, 京都 🐟"
    assert one_line("\ud800\x00\x85") == "\\ud800\\x00\\x85"


@pytest.mark.parametrize("json_lines", [False, True])
@pytest.mark.parametrize("name", ["demeanor.server", "uvicorn.error", "asyncio", "another.library"])
def test_no_logger_of_the_process_can_be_made_to_forge_a_line(
    json_lines: bool, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from logging.config import dictConfig

    logger = logging.getLogger(name)
    for setting, value in {"level": 0, "propagate": True, "disabled": False, "handlers": []}.items():
        monkeypatch.setattr(
            logger, setting, value
        )  # as in a fresh process: servers of other tests changed it
    logger.manager._clear_cache()  # type: ignore[attr-defined]  # it remembers which levels are enabled
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        dictConfig(_logging(Settings(json_logs=json_lines)))
        try:
            raise ValueError(FORGED)
        except ValueError:
            logger.exception("request of %s", FORGED)
    finally:
        root.handlers[:], root.level = before
    written = capsys.readouterr().err
    assert "forged" in written
    lines = written.rstrip("\n").split("\n")
    assert not [line for line in lines if line.startswith("ERROR: forged")]
    assert [line for line in lines if not line.startswith("  ")] == lines[:1]
    assert not set("\x1b\r\u2028\u202e") & set(written)

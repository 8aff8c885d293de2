"""Spans in the GenAI conventions: one per request and one per layer, contents only where asked for."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from typing import Any

import httpx
import pytest
from scripted import Scripted, body

from demeanor.core.errors import DemeanorError
from demeanor.server import tracing
from demeanor.server.admission import Operations
from demeanor.server.application import app

trace = pytest.importorskip("opentelemetry.trace", reason="the OpenTelemetry API is not installed")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Span(trace.NonRecordingSpan):  # type: ignore[misc, name-defined]
    """What the observer made of a request."""

    def __init__(
        self, name: str, context: Any, start_time: int, attributes: dict[str, Any], kind: Any
    ) -> None:
        super().__init__(trace.SpanContext(trace_id=1, span_id=1, is_remote=False))
        self.name, self.start, self.said, self.kind = name, start_time, attributes, kind
        self.parent = trace.get_current_span(context)
        self.stopped: int | None = None
        self.status: Any = None

    def set_status(self, status: Any, description: str | None = None) -> None:
        self.status = status

    def end(self, end_time: int | None = None) -> None:
        self.stopped = end_time


class Tracer:
    def __init__(self) -> None:
        self.spans: list[Span] = []

    def start_span(self, name: str, **options: Any) -> Span:
        self.spans.append(Span(name, **options))
        return self.spans[-1]


async def spans_of(
    text: str,
    *,
    keep: bool = False,
    path: str = "/v1/chat/completions",
    headers: dict[str, str] | None = None,
) -> list[Span]:
    tracer = Tracer()
    run = Operations(observers=(tracing.spans(tracer, now_ns=lambda: 10**18),), keep_contents=keep)
    transport = httpx.ASGITransport(app(Scripted(), operations=run))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        await client.post(path, json=body(text), headers=headers)
    return tracer.spans


async def test_a_request_is_a_span_with_its_model_tokens_and_stack_and_a_span_per_layer() -> None:
    request, *layers = await spans_of("ferry")
    assert request.name == "chat harbour-desk"
    assert {k: v for k, v in request.said.items() if k != "gen_ai.response.id"} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "demeanor",
        "gen_ai.request.model": "harbour-desk",
        "gen_ai.response.model": "harbour-desk",
        "gen_ai.usage.input_tokens": 71,
        "gen_ai.usage.output_tokens": 6,
        "demeanor.stack_key": "5f0c9a1be47d",
        "http.response.status_code": 200,
    }
    assert [(s.name, s.said["demeanor.layer.ms"]) for s in layers] == [
        ("layer retrieval", 0.61),
        ("layer weights", 36.4),
        ("layer policy", 0.18),
        ("layer prompt", 0.03),
    ]
    assert all(s.parent is request for s in layers)
    assert [round((s.stopped or 0) - s.start, -3) for s in layers] == [
        610_000,
        36_400_000,
        180_000,
        30_000,
    ], "ns"
    assert [b.start - (a.stopped or 0) for a, b in pairwise(layers)] == [0, 0, 0]
    assert request.start < layers[0].start + 1
    assert (request.stopped, request.status) == (10**18, None)


async def test_contents_are_in_a_span_only_where_asked_for() -> None:
    quiet = await spans_of("Where does the ferry go?")
    assert "ferry" not in json.dumps([s.said for s in quiet])
    assert "Jorpel" not in json.dumps([s.said for s in quiet])
    told = (await spans_of("Where does the ferry go?", keep=True))[0].said
    assert json.loads(told["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "Where does the ferry go?"}]}
    ]
    assert json.loads(told["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "Jorpel leaves at 17."}],
            "finish_reason": "stop",
        }
    ]


async def test_the_callers_trace_is_continued() -> None:
    request = (await spans_of("hello", headers={"traceparent": PARENT}))[0]
    found = request.parent.get_span_context()
    assert f"{found.trace_id:032x}-{found.span_id:016x}" == PARENT[3:-3]
    assert not (await spans_of("hello"))[0].parent.get_span_context().is_valid


async def test_refusals_and_failures_are_told_and_a_request_without_a_model_makes_no_span() -> None:
    refused = (await spans_of("card number"))[0].said
    assert (refused["demeanor.refused_by"], refused["demeanor.rule"]) == (["policy"], ["no-card-numbers"])
    failed = (await spans_of("crash"))[0]
    assert (failed.said["error.type"], failed.status.status_code) == ("500", trace.StatusCode.ERROR)
    assert await spans_of("hello", path="/v1/nowhere") == []


def test_without_the_sdk_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(DemeanorError, match=r"pip install 'demeanor\[otel\]'"):
        tracing.exported("http://localhost:4318", "desk")


async def test_the_real_sdk_takes_them() -> None:
    pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    run = Operations(observers=(tracing.spans(provider.get_tracer("demeanor")),))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app(Scripted(), operations=run)), base_url="http://localhost"
    ) as client:
        await client.post("/v1/chat/completions", json=body("ferry"), headers={"traceparent": PARENT})
    *layers, request = exporter.get_finished_spans()
    assert request.name == "chat harbour-desk"
    assert f"{request.context.trace_id:032x}" == PARENT[3:35]
    assert {s.parent.span_id for s in layers} == {request.context.span_id}
    assert len(layers) == 4

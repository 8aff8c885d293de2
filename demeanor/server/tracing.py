"""OpenTelemetry spans of answered requests, in the GenAI conventions: `chat MODEL`, and below it a span per layer.

An observer: spans are made when a request has ended, with the times it had. A layer's span is as long as the layer took by itself
(inner layers excluded, as in Timing), and layers are laid one after another from the request's start. Contents only where asked for.
The names are those of the conventions v0.1.0 (status "Development": they may change).
Source: github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from demeanor.core.errors import DemeanorError
from demeanor.core.types import Message, fold
from demeanor.server.request_context import Observer, RequestContext

OPERATIONS = {"/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}
MISSING = (
    "--otel: the package opentelemetry-sdk or its OTLP exporter is not installed (got '{error}'). Run: "
    "pip install 'demeanor[otel]', or leave out --otel and OTEL_EXPORTER_OTLP_ENDPOINT"
)


def exported(endpoint: str, service: str) -> tuple[Any, Callable[[], None]]:
    """A tracer that sends spans to `ENDPOINT/v1/traces` (OTLP over HTTP), and what sends the rest of them at the end.

    Raises DemeanorError if the SDK is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise DemeanorError(MISSING.format(error=error)) from None
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces"))
    )
    return provider.get_tracer("demeanor"), provider.shutdown


def spans(tracer: Any, *, now_ns: Callable[[], int] = time.time_ns) -> Observer:
    """An observer that makes the spans of each request that asked a model."""
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

    def observe(request: RequestContext) -> None:
        if not request.turns:
            return
        end = now_ns()
        start = end - round(1e9 * (request.ended - request.started))
        span = tracer.start_span(
            f"{operation(request)} {request.model}",
            context=extract(request.trace_headers),
            kind=SpanKind.INTERNAL,
            start_time=start,
            attributes=attributes(request),
        )
        at = start
        for by, ms in request.layers_ms.items():
            child = tracer.start_span(
                f"layer {by}",
                context=set_span_in_context(span),
                kind=SpanKind.INTERNAL,
                start_time=at,
                attributes={"demeanor.layer": by, "demeanor.layer.ms": ms},
            )
            at += round(1e6 * ms)
            child.end(end_time=at)
        if request.status >= 400:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=end)

    return observe


def operation(request: RequestContext) -> str:
    return OPERATIONS.get(request.route, "chat")


def attributes(request: RequestContext) -> dict[str, Any]:
    """The attributes of a request's span; messages only if the context has them."""
    found: dict[str, Any] = {
        "gen_ai.operation.name": operation(request),
        "gen_ai.provider.name": "demeanor",
        "gen_ai.request.model": request.model,
        "gen_ai.response.model": request.model,
        "gen_ai.response.id": request.id,
        "gen_ai.usage.input_tokens": request.prompt_tokens,
        "gen_ai.usage.output_tokens": request.completion_tokens,
        "demeanor.stack_key": request.stack_key,
        "http.response.status_code": request.status,
    }
    if request.status >= 400:
        found["error.type"] = str(request.status)
    if request.refusals:
        found["demeanor.refused_by"] = [by for by, _ in request.refusals]
        found["demeanor.rule"] = [rule for _, rule in request.refusals]
    if request.contents:
        found["gen_ai.input.messages"] = json.dumps(
            [_message(m) for m in request.contents[0][0].messages], ensure_ascii=False
        )
        done = [fold(events) for _, events in request.contents]
        found["gen_ai.output.messages"] = json.dumps(
            [
                {
                    "role": "assistant",
                    "parts": [{"type": "text", "content": d.text}],
                    "finish_reason": d.finish_reason,
                }
                for d in done
            ],
            ensure_ascii=False,
        )
    return found


def _message(message: Message) -> dict[str, Any]:
    return {"role": message.role, "parts": [{"type": "text", "content": message.content}]}

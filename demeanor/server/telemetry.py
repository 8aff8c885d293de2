"""OpenTelemetry spans of answered requests, in the GenAI conventions: `chat MODEL`, and below it a span per layer.

An observer: spans are made when a request has ended, with the times it had. A layer's span is as long as the layer took by itself
(inner layers excluded, as in Timing), and layers are laid one after another from the request's start. Contents only where asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from demeanor.core.errors import DemeanorError
from demeanor.core.types import Message, Turn, fold
from demeanor.server import conventions as names
from demeanor.server.calls import Call

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


def spans(tracer: Any, *, now_ns: Callable[[], int] = time.time_ns) -> Callable[[Call], None]:
    """An observer that makes the spans of each request that asked a model."""
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

    def observe(call: Call) -> None:
        if not call.turns:
            return
        end = now_ns()
        start = end - round(1e9 * (call.ended - call.started))
        span = tracer.start_span(
            f"{operation(call)} {call.model}",
            context=extract(call.trace),
            kind=SpanKind.INTERNAL,
            start_time=start,
            attributes=attributes(call),
        )
        at = start
        for by, ms in call.layers_ms.items():
            child = tracer.start_span(
                f"layer {by}",
                context=set_span_in_context(span),
                kind=SpanKind.INTERNAL,
                start_time=at,
                attributes={names.LAYER: by, names.LAYER_MS: ms},
            )
            at += round(1e6 * ms)
            child.end(end_time=at)
        if call.status >= 400:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=end)

    return observe


def operation(call: Call) -> str:
    return OPERATIONS.get(call.route, "chat")


def attributes(call: Call) -> dict[str, Any]:
    """What is said of a request; messages only if the call kept them."""
    said: dict[str, Any] = {
        names.OPERATION: operation(call),
        names.PROVIDER: "demeanor",
        names.REQUEST_MODEL: call.model,
        names.RESPONSE_MODEL: call.model,
        names.RESPONSE_ID: call.id,
        names.INPUT_TOKENS: call.prompt_tokens,
        names.OUTPUT_TOKENS: call.completion_tokens,
        names.STACK_KEY: call.stack_key,
        names.STATUS: call.status,
    }
    if call.status >= 400:
        said[names.ERROR_TYPE] = str(call.status)
    if call.refusals:
        said[names.REFUSED_BY] = [by for by, _ in call.refusals]
        said[names.RULE] = [rule for _, rule in call.refusals]
    if call.said:
        asked: Turn = call.said[0][0]
        said[names.INPUT_MESSAGES] = json.dumps([_message(m) for m in asked.messages], ensure_ascii=False)
        done = [fold(events) for _, events in call.said]
        said[names.OUTPUT_MESSAGES] = json.dumps(
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
    return said


def _message(message: Message) -> dict[str, Any]:
    return {"role": message.role, "parts": [{"type": "text", "content": message.content}]}

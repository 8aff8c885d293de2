"""/metrics says what happened, in names, helps and labels that dashboards rely on."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from scripted import Scripted, body

from demeanor.server.admission import Operations
from demeanor.server.application import app
from demeanor.server.auth import from_digests
from demeanor.server.metrics import Metrics
from demeanor.server.request_context import RequestContext
from demeanor.store.keys import digest

ASKS = "/v1/chat/completions"


def client_of(operations: Operations | None = None, **options: Any) -> httpx.AsyncClient:
    made = app(Scripted(), operations=operations, **options)
    return httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://localhost")


def values_of(exposition: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples of a text in Prometheus' format by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


async def test_metrics_count_what_happened() -> None:
    async with client_of(Operations(slots=4, cache_pages=lambda: (1, 2, 3))) as client:
        for text in ("hello", "hello", "card number", "crash", "leak"):
            await client.post(ASKS, json=body(text))
        await client.get("/nowhere/4111")
        shown = await client.get("/metrics")
    assert shown.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = values_of(shown.text)
    chat = {"method": "POST", "route": "/v1/chat/completions"}
    for name, labels, value in (
        ("requests_total", {**chat, "status": "200"}, 4),
        ("requests_total", {**chat, "status": "500"}, 1),
        ("requests_total", {"method": "GET", "route": "other", "status": "404"}, 1),
        ("tokens_total", {"direction": "input"}, 24 + 24 + 9),
        ("tokens_total", {"direction": "output"}, 6 + 6 + 3),
        ("refusals_total", {"layer": "policy", "rule": "no-card-numbers"}, 1),
        ("refusals_total", {"layer": "policy", "rule": "no-secrets"}, 1),
        ("requests_in_progress", {}, 0),
        ("slots", {}, 4),
        ("slots_in_use", {}, 0),
        ("waiting", {}, 0),
        ("cache_pages_kept", {}, 2),
        ("cached_tokens_total", {}, 0),
        ("request_duration_seconds_count", {}, 5),
        ("time_to_first_token_seconds_count", {}, 3),
        ("time_per_output_token_seconds_count", {}, 3),
    ):
        assert values[f"demeanor_{name}", frozenset(labels.items())] == value, (name, labels)
    named = [
        line.rsplit(" ", 1)[0] for line in shown.text.splitlines()
    ]  # a sum of seconds may hold any digits
    assert "4111" not in "\n".join(named)
    assert "gen_ai.server.time_to_first_token" in shown.text


async def test_with_keys_the_metrics_need_one() -> None:
    async with client_of(keys=from_digests({digest("k"): "edda"})) as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers={"authorization": "Bearer k"})).status_code == 200


def finished(seconds: float) -> RequestContext:
    """A request for one turn of two tokens: the first after half the time, the second at the end."""
    return RequestContext(
        "req_1",
        "req_1",
        "POST",
        ended=seconds,
        turns=1,
        completion_tokens=2,
        first_token=seconds / 2,
        last_token=seconds,
        refusals=[("policy", 'a "quoted" rule')],
    )


def test_a_histogram_is_cumulative_and_a_bound_belongs_to_its_bucket() -> None:
    metrics = Metrics(Operations())
    for seconds in (0.005, 0.01, 0.02, 0.03, 100.0):
        metrics.observe(finished(seconds))
    values = values_of(metrics.text().decode())

    def bucket(le: str) -> float:
        return values["demeanor_request_duration_seconds_bucket", frozenset({("le", le)})]

    assert [bucket(le) for le in ("0.01", "0.02", "0.04", "81.92", "+Inf")] == [2, 3, 4, 4, 5]
    assert values["demeanor_request_duration_seconds_sum", frozenset()] == pytest.approx(100.065)
    assert values["demeanor_request_duration_seconds_count", frozenset()] == 5


def test_the_exposition_has_the_names_helps_and_labels_that_dashboards_use_and_nothing_else() -> None:
    engine = {"device": "cpu", "weights": "fp32", "compute": "fp32", "cache": "fp32"}
    metrics = Metrics(Operations(slots=1, placements=lambda: [engine]))
    metrics.observe(finished(1.0))
    families = {f.name: f for f in text_string_to_metric_families(metrics.text().decode())}
    assert {name: (f.type, f.documentation) for name, f in families.items()} == {
        f"demeanor_{name}": about
        for name, about in {
            "requests": ("counter", "Finished HTTP requests; status 499: the client left first."),
            "tokens": ("counter", "Tokens of model calls (gen_ai.client.token.usage)."),
            "refusals": ("counter", "Refusals by the layer and rule that refused."),
            "tool_decisions": ("counter", "What was decided about tools and their calls, by verdict."),
            "cost_usd": ("counter", "USD of model calls, by the prices of serve.prices."),
            "calls_without_price": (
                "counter",
                "Model calls whose cost is not known: serve.prices does not name the model.",
            ),
            "limits_unchecked": (
                "counter",
                "Turns while the store of limits did not answer, by what was done with them.",
            ),
            "requests_in_progress": ("gauge", "Requests let in and not yet answered."),
            "turns_in_progress": ("gauge", "Answers being made; a request for n choices makes n."),
            "slots": ("gauge", "Answers that the engines can write at once."),
            "slots_in_use": ("gauge", "Answers that the engines write now."),
            "cached_tokens": (
                "counter",
                "Input tokens that were known from earlier requests and not read again.",
            ),
            "cache_pages_used": ("gauge", "Pages of keys and values of the answers that are written now."),
            "cache_pages_kept": (
                "gauge",
                "Pages of earlier prompts and answers, kept until their memory is needed.",
            ),
            "cache_pages_free": ("gauge", "Pages that hold nothing."),
            "waiting": ("gauge", "Answers that wait for a slot."),
            "rule_hits": (
                "counter",
                "Matches of the policy's rules by what was done; failed_closed, failed_open: a detector gave no score.",
            ),
            "policy_seconds": ("histogram", "The policy layer's own time in a request."),
            "engines": ("gauge", "Engines by where they decode and in what numbers."),
            "tool_calls_abandoned": ("gauge", "Calls of tools that block beyond their time."),
            "request_duration_seconds": (
                "histogram",
                "From the request to the end of its answer (gen_ai.server.request.duration).",
            ),
            "time_to_first_token_seconds": (
                "histogram",
                "From the request to its first text (gen_ai.server.time_to_first_token).",
            ),
            "time_per_output_token_seconds": (
                "histogram",
                "Between the tokens of one answer (gen_ai.server.time_per_output_token).",
            ),
        }.items()
    }
    labels = {name: {key for s in f.samples for key in s.labels} for name, f in families.items()}
    assert labels["demeanor_requests"] == {"method", "route", "status"}
    assert labels["demeanor_engines"] == {"device", "weights", "compute", "cache"}
    assert labels["demeanor_refusals"] == {"layer", "rule"}
    assert families["demeanor_refusals"].samples[0].labels["rule"] == 'a "quoted" rule'


def test_two_apps_count_apart() -> None:
    one, other = Metrics(Operations()), Metrics(Operations())
    one.observe(finished(1.0))
    assert 'demeanor_requests_total{method="POST"' in one.text().decode()
    assert 'demeanor_requests_total{method="POST"' not in other.text().decode()

"""What a server has done since it started, as Prometheus metrics.

In: every finished request. Out: the text of /metrics. Labels are routes, statuses, layers: nothing a client can make up. The helps
name the matching metrics of OpenTelemetry's GenAI conventions (docs/gen-ai/gen-ai-metrics.md), whose buckets the histograms have.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from demeanor.server.admission import Operations
from demeanor.server.assistant import Traffic
from demeanor.server.request_context import RequestContext

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
DURATION_BUCKETS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BUCKETS_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)
POLICY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0)
PER_TOKEN_BUCKETS_S = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
)
"""The convention's, and four finer ones below them: small models write a token in less than a millisecond."""

MOST_VARIANTS = 32

disable_created_metrics()  # type: ignore[no-untyped-call]  # no second series with the time of creation beside each metric


class Metrics:
    """The running counts of one app."""

    def __init__(self, operations: Operations, traffic: Callable[[], Traffic | None] = lambda: None) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(TrafficCounts(traffic))
        self.requests = Counter(
            "demeanor_requests",
            "Finished HTTP requests; status 499: the client left first.",
            ("method", "route", "status"),
            registry=registry,
        )
        tokens = Counter(
            "demeanor_tokens",
            "Tokens of model calls (gen_ai.client.token.usage).",
            ("direction",),
            registry=registry,
        )
        self.input_tokens, self.output_tokens = tokens.labels("input"), tokens.labels("output")
        self.cached_tokens = Counter(
            "demeanor_cached_tokens",
            "Input tokens that were known from earlier requests and not read again.",
            registry=registry,
        )
        self.refusals = Counter(
            "demeanor_refusals",
            "Refusals by the layer and rule that refused.",
            ("layer", "rule"),
            registry=registry,
        )
        self.cost_usd = Counter(
            "demeanor_cost_usd",
            "USD of model calls, by the prices of serve.prices.",
            ("model", "upstream"),
            registry=registry,
        )
        self.unpriced = Counter(
            "demeanor_calls_without_price",
            "Model calls whose cost is not known: serve.prices does not name the model.",
            ("upstream",),
            registry=registry,
        )
        self.variants: set[str] = set()
        self.rule_hits = Counter(
            "demeanor_rule_hits",
            "Matches of the policy's rules by what was done; failed_closed, failed_open: a detector gave no score.",
            ("layer", "rule", "stage", "outcome"),
            registry=registry,
        )
        self.policy_ms = Histogram(
            "demeanor_policy_seconds",
            "The policy layer's own time in a request.",
            buckets=POLICY_BUCKETS_S,
            registry=registry,
        )
        self.tool_decisions = Counter(
            "demeanor_tool_decisions",
            "What was decided about tools and their calls, by verdict.",
            ("verdict",),
            registry=registry,
        )
        registry.register(Gauges(operations))
        registry.register(ToolServerGauges(operations))
        registry.register(LimitsUnchecked(operations))
        registry.register(Upstreams(operations))
        self.duration = Histogram(
            "demeanor_request_duration_seconds",
            "From the request to the end of its answer (gen_ai.server.request.duration).",
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self.first_token = Histogram(
            "demeanor_time_to_first_token_seconds",
            "From the request to its first text (gen_ai.server.time_to_first_token).",
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self.per_token = Histogram(
            "demeanor_time_per_output_token_seconds",
            "Between the tokens of one answer (gen_ai.server.time_per_output_token).",
            buckets=PER_TOKEN_BUCKETS_S,
            registry=registry,
        )

    def observe(self, request: RequestContext) -> None:
        """Count a finished request."""
        method = request.method if request.method in METHODS else "other"
        self.requests.labels(method, request.route, str(request.status)).inc()
        if not request.turns:
            return
        self.input_tokens.inc(request.prompt_tokens)
        self.cached_tokens.inc(request.cached_tokens)
        self.output_tokens.inc(request.completion_tokens)
        for upstream, usd in request.costs:
            if usd is None:
                self.unpriced.labels(upstream).inc()
            else:
                self.cost_usd.labels(self._variant(request.model), upstream).inc(usd)
        for layer, rule in request.refusals:
            self.refusals.labels(layer, rule).inc()
        for hit in request.rule_hits:
            self.rule_hits.labels(*hit).inc()
        for decision in request.tool_decisions:
            self.tool_decisions.labels(decision.verdict).inc()
        if "policy" in request.layers_ms:
            self.policy_ms.observe(request.layers_ms["policy"] / 1000)
        self.duration.observe(request.ended - request.started)
        if request.first_token is not None and request.last_token is not None:
            self.first_token.observe(request.first_token - request.started)
            if request.turns == 1 and request.completion_tokens > 1:  # choices side by side share their steps
                written_s = request.last_token - request.first_token
                self.per_token.observe(written_s / (request.completion_tokens - 1))

    def _variant(self, model: str) -> str:
        """The model id as a label; beyond MOST_VARIANTS of them `other`, since clients can compose ids."""
        if model not in self.variants and len(self.variants) >= MOST_VARIANTS:
            return "other"
        self.variants.add(model)
        return model

    def text(self) -> bytes:
        """Everything, in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)


class TrafficCounts(Collector):
    """Turns of experiments, and what became of the jobs of shadows and evaluators, in this process."""

    def __init__(self, traffic: Callable[[], Traffic | None]) -> None:
        self.traffic = traffic

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        found = self.traffic()
        if found is None:
            return
        about = "Turns that an arm of an experiment answered."
        turns = CounterMetricFamily("demeanor_experiment_turns", about, labels=("experiment", "arm"))
        for (experiment, arm), number in found.exposed.items():
            turns.add_metric((experiment, arm), number)
        about = "Selected turns (due) of shadows and evaluators, and what became of them."
        jobs = CounterMetricFamily("demeanor_turn_jobs", about, labels=("kind", "name", "outcome"))
        for kind, name, outcome, number in found.outcomes():
            jobs.add_metric((kind, name, outcome), number)
        about = "Shadows, evaluators and writes of experiments that should have run and did not."
        yield from (turns, jobs, GaugeMetricFamily("demeanor_traffic_notes", about, len(found.notes())))


class Gauges(Collector):
    """The load of the moment at which the metrics are read."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def collect(self) -> Iterator[GaugeMetricFamily]:
        load = self.operations.load
        running, waiting = self.operations.running_and_waiting()
        used, kept, free = self.operations.cache_pages()
        for name, about, value in (
            ("requests_in_progress", "Requests let in and not yet answered.", load.in_progress),
            ("turns_in_progress", "Answers being made; a request for n choices makes n.", load.turns),
            ("slots", "Answers that the engines can write at once.", self.operations.slots),
            ("slots_in_use", "Answers that the engines write now.", running),
            ("waiting", "Answers that wait for a slot.", waiting),
            ("cache_pages_used", "Pages of keys and values of the answers that are written now.", used),
            (
                "cache_pages_kept",
                "Pages of earlier prompts and answers, kept until their memory is needed.",
                kept,
            ),
            ("cache_pages_free", "Pages that hold nothing.", free),
            (
                "tool_calls_abandoned",
                "Calls of tools that block beyond their time.",
                self.operations.abandoned_calls(),
            ),
        ):
            yield GaugeMetricFamily(f"demeanor_{name}", about, value)
        labels = ("device", "weights", "compute", "cache")
        engines = GaugeMetricFamily(
            "demeanor_engines", "Engines by where they decode and in what numbers.", labels=labels
        )
        counts = Counts(tuple(found[label] for label in labels) for found in self.operations.placements())
        for values, count in counts.items():
            engines.add_metric(values, count)
        yield engines


class ToolServerGauges(Collector):
    """MCP servers, and how many of their tools are offered and withheld."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def collect(self) -> Iterator[GaugeMetricFamily]:
        servers = self.operations.tool_servers()
        if not servers:
            return
        up = GaugeMetricFamily("demeanor_tool_servers", "1: the MCP server is connected.", labels=("server",))
        offered = GaugeMetricFamily(
            "demeanor_tools_offered", "Tools that may be offered.", labels=("server",)
        )
        withheld = GaugeMetricFamily(
            "demeanor_tools_withheld",
            "Tools that are not offered: not approved, changed, gone, or their server is away.",
            labels=("server",),
        )
        for server in servers:
            up.add_metric((server.name,), float(server.state == "connected"))
            offered.add_metric((server.name,), server.offered)
            withheld.add_metric((server.name,), server.withheld)
        yield from (up, offered, withheld)


class LimitsUnchecked(Collector):
    """Turns that were decided while the store of limits did not answer."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def collect(self) -> Iterator[CounterMetricFamily]:
        unchecked = self.operations.limits_unchecked()
        found = CounterMetricFamily(
            "demeanor_limits_unchecked",
            "Turns while the store of limits did not answer, by what was done with them.",
            labels=("outcome",),
        )
        for outcome in ("refused", "allowed"):
            found.add_metric((outcome,), unchecked.get(outcome, 0))
        yield found


class Upstreams(Collector):
    """What the servers behind this one did, and which are left alone."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        counts, circuits = self.operations.upstreams()
        if not circuits:
            return
        tries = CounterMetricFamily(
            "demeanor_upstream_tries",
            "Tries of upstreams: answered, failed, broke_off (after its first event), refused (400), busy (429), skipped.",
            labels=("upstream", "outcome"),
        )
        for (name, outcome), count in sorted(counts.items()):
            tries.add_metric((name, outcome), count)
        yield tries
        closed = GaugeMetricFamily(
            "demeanor_upstream_open", "1: left alone after failures.", labels=("upstream",)
        )
        for name, state in circuits.items():
            closed.add_metric((name,), float(state == "open"))
        yield closed

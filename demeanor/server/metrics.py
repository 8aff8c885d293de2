"""What a server has done since it started, in Prometheus' text format 0.0.4.

In: every finished Call. Out: one text. Labels are routes, statuses, layers: nothing a client can make up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from demeanor.server import conventions as names
from demeanor.server.calls import Call

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Counts of observations up to each bound, their sum and their number."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.bounds_s, self.counts, self.sum_s = bounds_s, [0] * (len(bounds_s) + 1), 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*(f"{b:g}" for b in self.bounds_s), "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum_s:.9g}"
        yield f"{name}_count {total}"


@dataclass
class Metrics:
    """The running counts."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    duration: Histogram = field(default_factory=lambda: Histogram(names.DURATION_BUCKETS_S))
    first_token: Histogram = field(default_factory=lambda: Histogram(names.FIRST_TOKEN_BUCKETS_S))
    per_token: Histogram = field(default_factory=lambda: Histogram(names.PER_TOKEN_BUCKETS_S))

    def __call__(self, call: Call) -> None:
        """Count a finished request."""
        self.requests[call.method if call.method in METHODS else "other", call.route, call.status] += 1
        if not call.turns:
            return
        self.tokens["input"] += call.prompt_tokens
        self.tokens["output"] += call.completion_tokens
        self.refusals.update(call.refusals)
        self.duration.add(call.ended - call.started)
        if call.first_token is not None and call.last_token is not None:
            self.first_token.add(call.first_token - call.started)
            if call.turns == 1 and call.completion_tokens > 1:  # choices side by side share their steps
                self.per_token.add((call.last_token - call.first_token) / (call.completion_tokens - 1))

    def text(self, *, in_progress: int, turns: int, slots: int, running: int, waiting: int) -> str:
        """Everything; the arguments are a moment's gauges."""
        lines: list[str] = []

        def metric(name: str, kind: str, about: str, samples: Iterator[str]) -> None:
            lines.extend([f"# HELP demeanor_{name} {about}", f"# TYPE demeanor_{name} {kind}", *samples])

        def labelled(name: str, values: Iterator[tuple[dict[str, object], int]]) -> Iterator[str]:
            for labels, value in values:
                shown = ",".join(f'{k}="{escaped(str(v))}"' for k, v in labels.items())
                yield f"demeanor_{name}{{{shown}}} {value}"

        metric(
            "requests_total",
            "counter",
            "Finished HTTP requests; status 499: the client left first.",
            labelled(
                "requests_total",
                (
                    ({"method": m, "route": r, "status": s}, n)
                    for (m, r, s), n in sorted(self.requests.items())
                ),
            ),
        )
        metric(
            "tokens_total",
            "counter",
            f"Tokens of model calls ({names.TOKEN_USAGE}).",
            labelled("tokens_total", (({"direction": d}, self.tokens[d]) for d in ("input", "output"))),
        )
        metric(
            "refusals_total",
            "counter",
            "Refusals by the layer and rule that refused.",
            labelled(
                "refusals_total",
                (({"layer": by, "rule": rule}, n) for (by, rule), n in sorted(self.refusals.items())),
            ),
        )
        for name, about, value in (
            ("requests_in_progress", "Requests let in and not yet answered.", in_progress),
            ("turns_in_progress", "Answers being made; a request for n choices makes n.", turns),
            ("slots", "Answers that the engines can write at once.", slots),
            ("slots_in_use", "Answers that the engines write now.", running),
            ("waiting", "Answers that wait for a slot.", waiting),
        ):
            metric(name, "gauge", about, iter([f"demeanor_{name} {value}"]))
        for name, about, histogram in (
            (
                "request_duration_seconds",
                f"From the request to the end of its answer ({names.REQUEST_DURATION}).",
                self.duration,
            ),
            (
                "time_to_first_token_seconds",
                f"From the request to its first text ({names.TIME_TO_FIRST_TOKEN}).",
                self.first_token,
            ),
            (
                "time_per_output_token_seconds",
                f"Between the tokens of one answer ({names.TIME_PER_OUTPUT_TOKEN}).",
                self.per_token,
            ),
        ):
            metric(name, "histogram", about, histogram.lines(f"demeanor_{name}"))
        return "\n".join(lines) + "\n"


METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


def escaped(value: str) -> str:
    """A label value with backslash, quote and line feed escaped."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

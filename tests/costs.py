"""What each test costs in processor time, its fixtures and child processes included; the dearest are printed at the end of a run.

Processor seconds, not seconds on the clock: they are nearly the same on a loaded machine, and with any number of workers.
A fixture that several tests share is charged to the first test that asks for it.
"""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Generator, Iterable

import pytest

SHOWN = 10
"""How many are printed; `--durations N` prints N."""


def processor_seconds() -> float:
    """Processor time of this process, its threads and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in used)


def summed(reports: Iterable[pytest.TestReport]) -> list[tuple[float, str, str]]:
    """(seconds, which part took most of them, test), dearest first."""
    parts: dict[str, dict[str, float]] = defaultdict(dict)
    for report in reports:
        parts[report.nodeid][report.when] = getattr(report, "processor_seconds", 0.0)
    costs = [(sum(p.values()), max(p, key=lambda part: p[part]), test) for test, p in parts.items()]
    return sorted(costs, reverse=True)


class Costs:
    """The plug-in: measures between the reports of a worker, prints in the process that holds the terminal."""

    def __init__(self) -> None:
        self.last = processor_seconds()

    def pytest_runtest_logstart(self) -> None:
        self.last = processor_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = processor_seconds()
        report.processor_seconds = now - self.last  # type: ignore[attr-defined]  # travels with the report to the controller
        self.last = now
        return report

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        reports = [
            report
            for kind in ("passed", "failed", "skipped", "error", "")
            for report in terminalreporter.stats.get(kind, [])
            if isinstance(report, pytest.TestReport)
        ]
        costs = summed(reports)
        asked = terminalreporter.config.getoption("durations")
        if len(costs) <= SHOWN and not asked:
            return
        total = sum(seconds for seconds, _, _ in costs)
        terminalreporter.write_sep("=", f"{len(costs)} tests took {total:.0f} processor seconds; the dearest")
        for seconds, part, test in costs[: asked or SHOWN]:
            terminalreporter.write_line(
                f"{seconds:6.1f} s {'' if part == 'call' else f'(mostly {part}) '}{test}"
            )

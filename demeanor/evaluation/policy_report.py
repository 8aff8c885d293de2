"""The measurements of a policy as tables and figures: tests, rules, thresholds, sources, cost."""

from __future__ import annotations

from demeanor.core.table import (
    NONE,
    Block,
    BlockGroup,
    Figure,
    Paragraph,
    Section,
    Table,
    number,
    percent,
    plural,
)
from demeanor.evaluation.policy_quality import PolicyQuality, RuleQuality
from demeanor.evaluation.statistics import Auroc, Estimate


def section(found: PolicyQuality) -> Section:
    """Everything that was measured, beginning with what failed."""
    blocks: list[Block] = [Paragraph(tests_text(found))]
    if found.failed:
        rows = tuple((f.rule, f"tests[{f.number}]", f.text[:100], f.wanted, f.got) for f in found.failed)
        blocks.append(
            Table(("rule", "test", "text", "wanted", "got"), rows, "Tests that failed", text=(0, 1, 2, 3, 4))
        )
    if found.rules:
        blocks += [_rules(found), _thresholds(found), _curves(found), _sources(found)]
        cost = f"The layer's own time in a whole request: p50 {found.request_p50_ms:.2f} ms, p95 {found.request_p95_ms:.2f} ms"
        blocks.append(Paragraph(f"{cost} (n = {found.texts})."))
    return Section("policy", "Policy", f"Policy {found.file}", tuple(blocks))


def tests_text(found: PolicyQuality) -> str:
    """One sentence about the rules' own tests."""
    if not found.num_tests:
        return "The rules have no tests of their own."
    if not found.failed:
        return f"All {plural(found.num_tests, 'test')} beside the rules came out as wanted."
    return f"{len(found.failed)} of {plural(found.num_tests, 'test')} beside the rules FAILED."


def rate(x: Estimate | None) -> str:
    """A share in per cent with its interval and the number of texts."""
    if x is None:
        return NONE
    ends = "" if x.low is None or x.high is None else f" ({percent(x.low, 1)} to {percent(x.high, 1)})"
    return f"{percent(x.value, 1)}{ends}, n {x.n}"


def area(x: Auroc | None) -> str:
    """An AUROC with its interval."""
    return NONE if x is None else f"{number(x.value, 3)} ({number(x.low, 3)} to {number(x.high, 3)})"


def _at(threshold: float | None) -> str:
    return NONE if threshold is None else f"{threshold:.4g}"


def _rules(found: PolicyQuality) -> Block:
    rows = tuple(
        (
            r.rule,
            r.label,
            _at(r.threshold),
            rate(r.found),
            rate(r.false),
            area(r.ranking),
            number(r.p50_ms),
            number(r.p95_ms),
        )
        for r in found.rules
    )
    columns = ("rule", "label", "threshold", "found, %", "false positives, %", "AUROC", "p50 ms", "p95 ms")
    return Table(columns, rows, f"Each rule alone, half: {found.half} (95% intervals)", text=(0, 1))


def _thresholds(found: PolicyQuality) -> Block:
    chosen = [(r, r.chosen) for r in found.rules if r.chosen]
    rows = tuple(
        (r.rule, percent(c.wanted, 1), _at(c.threshold), rate(c.found), rate(c.false)) for r, c in chosen
    )
    columns = ("rule", "wanted false, %", "threshold", "found, %", "false positives, %")
    return (
        Table(columns, rows, "Thresholds chosen on the half `tune`, measured on the half `report`")
        if rows
        else Paragraph("")
    )


def _curves(found: PolicyQuality) -> Block:
    drawn = [r for r in found.rules if len(r.curve) > 2]
    figures = tuple(
        Figure(
            "roc",
            {"curves": {r.rule: points(r)}, "label": f"{r.rule}: found against false positives"},
            title=r.rule,
        )
        for r in drawn
    )
    return BlockGroup(figures, "three")


def points(r: RuleQuality) -> list[tuple[float, float, str]]:
    """The curve of a rule from strict to lax: share of false positives, share found, and the threshold in words."""
    return [
        (0.0, 0.0, ""),
        *((t.false, t.found, f"{t.threshold:.3g}") for t in reversed(r.curve)),
        (1.0, 1.0, ""),
    ]


def _sources(found: PolicyQuality) -> Block:
    rows = tuple(
        (
            s.source,
            s.stage.replace("_", " "),
            "labelled" if s.labelled else "harmless",
            rate(s.stopped),
            rate(s.acted),
            rate(s.noted),
            ", ".join(f"{name} {count}" for name, count in s.by) or NONE,
        )
        for s in found.sources
    )
    columns = ("source", "stage", "texts", "stopped, %", "stopped or changed, %", "noted, %", "rules")
    return Table(
        columns, rows, "The whole policy: texts as requests through the served layer", text=(0, 1, 2, 6)
    )

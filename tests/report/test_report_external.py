"""An external model in the report: a comparison of its own, never a step of the ladder."""

from __future__ import annotations

import html as entities
import io

import pytest
from rich.console import Console

from demeanor.evaluation import ladder_report, ladder_sentences
from demeanor.evaluation.result import Comparison, Delta, Result, Verdict, ladder_of
from demeanor.report import outputs


def printed(result: Result) -> str:
    out = io.StringIO()
    outputs.show_page(ladder_report.page(result), Console(file=out, width=200))
    return out.getvalue()


def test_it_stands_in_every_rendering_under_its_own_name(result: Result) -> None:
    page = ladder_report.page(result)
    for text in (entities.unescape(outputs.html_page(page)), outputs.markdown_page(page), printed(result)):
        assert "a-rival" in text, "not a−rival: only a sign in front of a label is a minus"
        assert ladder_sentences.external_sentence(result.external[0]) in text


def test_it_is_no_step_and_no_regression(result: Result) -> None:
    assert "a-rival" not in {v.id for v in ladder_of(result)}
    assert "a-rival" not in {r.name for r in result.regressions}
    assert "a-rival" in {cost.variant for cost in result.cost}


def test_its_items_are_told_as_here_and_there(result: Result) -> None:
    text = outputs.html_page(ladder_report.page(result))
    regressed = sum(not change.fixed for change in result.external[0].changes)
    assert regressed
    assert f"{regressed} wrong here, right there" in text
    assert 'id="external-a-rival"' in text


def comparison(*deltas: tuple[str, Verdict, bool]) -> Comparison:
    made = [
        Delta(axis, 0.1, 0.0, 0.2, None, None, None, 9, 9, 0, 0, None, shown, verdict)
        for axis, verdict, shown in deltas
    ]
    return Comparison("x", "x", "whole", tuple(made), ())


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        (
            ("better", "worse", "no change shown"),
            "Compared with x, the whole stack is better on a and worse on b; for 1 no difference is shown.",
        ),
        (("better", "better", "better"), "Compared with x, the whole stack is better on a, b and c."),
        (
            ("no change shown", "not measured"),
            "Compared with x, no difference of the whole stack is shown on any behavior.",
        ),
    ],
)
def test_the_sentence_counts_corrected_verdicts(verdicts: tuple[Verdict, ...], told: str) -> None:
    deltas = [(axis, verdict, verdict in ("better", "worse")) for axis, verdict in zip("abc", verdicts)]
    assert ladder_sentences.external_sentence(comparison(*deltas)) == told


def test_intervals_that_only_the_correction_widens_are_told_where_nothing_else_is() -> None:
    deltas = [(axis, "no change shown", axis != "c") for axis in ("a_b", "c", "d")]
    assert ladder_sentences.external_sentence(comparison(*deltas)) == (  # type: ignore[arg-type]
        "Compared with x, no difference of the whole stack is shown after Holm's correction; before it, the interval excludes zero "
        "on a b and d."
    )

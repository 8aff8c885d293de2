"""Another assistant in the report: a comparison of its own, never a rung."""

from __future__ import annotations

import io
from typing import Any

import pytest
from demeanor.report.page import page
from rich.console import Console

from demeanor.report import terminal, words
from demeanor.report.markdown import markdown


def said(result: dict[str, Any]) -> str:
    out = io.StringIO()
    terminal.show(result, Console(file=out, width=200))  # type: ignore[arg-type]
    return out.getvalue()


def test_it_stands_in_every_rendering_under_its_own_name(result: dict[str, Any]) -> None:
    for text in (page(result), markdown(result), said(result)):  # type: ignore[arg-type]
        assert "a-rival" in text, "not a−rival: only a sign in front of a label is a minus"
        assert words.beside_sentence(result["external"][0]) in text


def test_it_is_no_rung_and_no_cost(result: dict[str, Any]) -> None:
    assert "a-rival" not in {v["id"] for v in words.ladder_of(result)}  # type: ignore[arg-type]
    assert "a-rival" not in {c["name"] for c in result["regressions"]}
    assert "a-rival" in {s["variant"] for s in result["cost"]}


def test_its_items_are_told_as_here_and_there(result: dict[str, Any]) -> None:
    text = page(result)  # type: ignore[arg-type]
    broken = sum(not c["fixed"] for c in result["external"][0]["changes"])
    assert broken
    assert f"{broken} wrong here, right there" in text
    assert 'id="beside-a-rival"' in text


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        (
            ("better", "worse", "no change shown"),
            "Beside x: the whole stack is better on a and worse on b; for 1 no difference is shown.",
        ),
        (("better", "better", "better"), "Beside x: the whole stack is better on a, b and c."),
        (
            ("no change shown", "not measured"),
            "Beside x: no difference of the whole stack is shown on any behaviour.",
        ),
    ],
)
def test_the_sentence_counts_corrected_verdicts(verdicts: tuple[str, ...], told: str) -> None:
    deltas = [
        {"axis": name, "verdict": v, "shown": v in ("better", "worse")} for name, v in zip("abc", verdicts)
    ]
    assert words.beside_sentence({"name": "x", "deltas": deltas}) == told  # type: ignore[typeddict-item]


def test_intervals_that_only_the_correction_widens_are_told_where_nothing_else_is() -> None:
    deltas = [
        {"axis": name, "verdict": "no change shown", "shown": name != "c"} for name in ("a_b", "c", "d")
    ]
    assert words.beside_sentence({"name": "x", "deltas": deltas}) == (  # type: ignore[typeddict-item]
        "Beside x: no difference of the whole stack is shown after Holm's correction; before it, the interval excludes zero on a b and d."
    )

"""Sentences say what the numbers show and not more; the terminal colours as the page does."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from demeanor.core import table
from demeanor.core.table import Paragraph, Section, Table
from demeanor.evaluation import ladder_report
from demeanor.evaluation import ladder_sentences as words
from demeanor.evaluation.result import Delta, Regression, Result, Verdict
from demeanor.report import outputs
from tests.conftest import each


def show(result: Result, out: Console) -> None:
    outputs.show_page(ladder_report.page(result), out)


def delta(
    value: float | None,
    low: float | None,
    high: float | None,
    verdict: Verdict = "no change shown",
    axis: str = "safe_twin",
) -> Delta:
    shown = low is not None and high is not None and (low > 0 or high < 0)
    return Delta(axis, value, low, high, 0.01, 0.2, 0.1, 50, 25, 1, 8, 0.1, shown, verdict)


@pytest.mark.parametrize(
    ("value", "says"), [(0.0, "0"), (1.0, "100"), (0.997, ">99"), (0.004, "<1"), (0.5, "50"), (None, "–")]
)
def test_a_share_is_rounded_but_never_onto_none_or_all(value: float | None, says: str) -> None:
    assert table.percent(value) == says


@pytest.mark.parametrize(("value", "says"), [(0.123, "+12"), (-0.05, "−5"), (0.001, "0"), (None, "–")])
def test_a_difference_has_its_sign(value: float | None, says: str) -> None:
    assert table.points(value) == says


def test_a_bound_is_not_rounded_onto_zero() -> None:
    assert table.interval(0.003, 0.1) == "+0.3 to +10"
    assert table.interval(-0.1, -0.002) == "−10 to −0.2"


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_no_sentence_claims_a_change_when_the_interval_covers_zero(
    value: float, below: float, above: float
) -> None:
    low, high = max(-1.0, value - below), min(1.0, value + above)
    found = delta(value, low, high)
    sentence = words.delta_sentence("+policy", found)
    assert ("no change shown" in sentence) == (low <= 0 <= high)
    assert ("raised" in sentence) == (low > 0)
    assert ("lowered" in sentence) == (high < 0)


def test_a_claim_that_does_not_survive_the_correction_says_so() -> None:
    assert "not after correction" in words.delta_sentence("+policy", delta(-0.1, -0.19, -0.01))
    assert "not after correction" not in words.delta_sentence("+policy", delta(-0.1, -0.19, -0.01, "worse"))
    loss = Regression("step", "policy", delta(-0.1, -0.19, -0.01), False)
    assert words.regression_sentence(loss) == (
        "Adding policy lowered safe twin by 10 points (interval 1 to 19). 8 items regressed, 1 fixed. "
        "Its own interval excludes zero, but not after correction for the many comparisons of the table."
    )


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        (["better", "better"], "From base to the whole stack, all 2 behaviors improved."),
        (
            ["better", "no change shown"],
            "From base to the whole stack, 1 of 2 behaviors improved; for 1 no change is shown.",
        ),
        (
            ["better", "worse", "not measured"],
            "From base to the whole stack, 1 of 3 behaviors improved and 1 got worse; for 1 no change is shown.",
        ),
        (
            ["worse", "no change shown"],
            "From base to the whole stack, 1 of 2 behaviors got worse; for 1 no change is shown.",
        ),
        (
            ["no change shown"],
            "From base to the whole stack, no behavior shows a change on these 216 questions.",
        ),
    ],
)
def test_the_headline_counts_verdicts(result: Result, verdicts: list[Verdict], says: str) -> None:
    deltas = tuple(delta(0.1, 0.0, 0.2, verdict) for verdict in verdicts)
    assert words.headline(replace(result, whole=replace(result.whole, deltas=deltas))) == says


def test_without_any_loss_it_is_said_how_large_a_loss_could_hide(result: Result) -> None:
    sizes = [axis.detectable for axis in result.axes]
    sentence = words.no_regressions(result)
    assert (
        f"about {table.percent(min(sizes))} to {table.percent(max(sizes))} points could well go unseen"
        in sentence
    )


def test_the_biggest_steps_are_those_that_survive_the_correction(result: Result) -> None:
    for sentence in each(words.biggest_steps(result)):
        name = sentence.split()[0].lstrip("+")
        axis = sentence.split(" raised ")[1].split(" by ")[0].replace(" ", "_")
        step = next(s for s in result.steps if s.name == name)
        assert next(d.verdict for d in step.deltas if d.axis == axis) == "better"


def test_an_idle_step_is_one_whose_intervals_all_cover_zero(result: Result) -> None:
    idle = set(words.idle_steps(result.steps))
    for step in each(result.steps):
        assert (step.name in idle) == all(d.low <= 0 <= d.high for d in step.deltas)


def test_the_terminal_shows_the_ladder_in_colours_that_mean_something(result: Result) -> None:
    out = io.StringIO()
    show(result, Console(file=out, width=140, force_terminal=True, color_system="standard"))
    text = out.getvalue()
    up, down = "\x1b[1;34m", "\x1b[1;31m"
    shown = [d for s in result.steps for d in s.deltas if d.shown]
    assert text.count(up) == sum(d.value > 0 for d in shown)
    assert text.count(down) == sum(d.value < 0 for d in shown) + sum(
        c.kind == "step" for c in result.regressions
    )


def test_the_terminal_prints_text_of_a_file_as_text(hostile: Result) -> None:
    out = io.StringIO()
    show(replace(hostile, caveats=("[red]not markup[/red]",)), Console(file=out, width=140))
    assert "[red]not markup[/red]" in out.getvalue()


def test_the_terminal_of_the_smallest_result_claims_nothing(empty: Result) -> None:
    out = io.StringIO()
    show(empty, Console(file=out, width=100))
    assert "What got worse" not in out.getvalue(), "there was no step that could have cost anything"


def test_what_rounds_to_zero_has_no_minus() -> None:
    assert [table.number(x) for x in (-0.0, -0.004, -0.006, 1.0)] == [
        "0.00",
        "0.00",
        "\u22120.01",
        "1.00",
    ]


def test_a_small_p_is_never_printed_as_zero() -> None:
    assert [table.p_value(p) for p in (None, 0.0, 0.00049, 0.25)] == [
        "\u2013",
        "<0.001",
        "<0.001",
        "0.250",
    ]


def printed(*blocks: Table | Paragraph, width: int) -> str:
    out = io.StringIO()
    outputs.show(Section("x", "X", "[red]Title", blocks), Console(file=out, width=width))
    return out.getvalue()


def test_a_table_wider_than_the_terminal_is_printed_in_parts_each_with_its_first_column() -> None:
    columns = ("axis", *(f"column {n}" for n in range(12)))
    rows = tuple((name, *(f"{name} value {n}" for n in range(12))) for name in ("first", "second"))
    text = printed(Table(columns, rows), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("axis") > 1
    for row in rows:
        assert text.count(f"\n{row[0]} ") == text.count("axis")
        for value in row[1:]:
            assert value in text, "nothing is cut off"


def test_texts_of_a_table_are_no_markup_in_the_terminal() -> None:
    text = printed(Table(("a", "[bold]b"), (("[red]x[/red]", "1"),)), Paragraph("[link=x]y"), width=80)
    for said in ("[red]Title", "[bold]b", "[red]x[/red]", "[link=x]y"):
        assert said in text

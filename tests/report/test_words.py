"""Sentences say what the numbers show and not more; the terminal colours as the page does."""

from __future__ import annotations

import io
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from demeanor.report import words
from demeanor.report.terminal import show


def delta(
    value: float | None,
    low: float | None,
    high: float | None,
    verdict: str = "no change shown",
    axis: str = "safe_twin",
) -> Any:
    shown = low is not None and high is not None and (low > 0 or high < 0)
    return {
        "axis": axis,
        "value": value,
        "low": low,
        "high": high,
        "p": 0.01,
        "p_holm": 0.2,
        "mid_p": 0.1,
        "n": 50,
        "clusters": 25,
        "fixed": 1,
        "regressed": 8,
        "detectable": 0.1,
        "shown": shown,
        "verdict": verdict,
    }


@pytest.mark.parametrize(
    ("value", "says"), [(0.0, "0"), (1.0, "100"), (0.997, ">99"), (0.004, "<1"), (0.5, "50"), (None, "–")]
)
def test_a_share_is_rounded_but_never_onto_none_or_all(value: float | None, says: str) -> None:
    assert words.percent(value) == says


@pytest.mark.parametrize(("value", "says"), [(0.123, "+12"), (-0.05, "−5"), (0.001, "0"), (None, "–")])
def test_a_difference_has_its_sign(value: float | None, says: str) -> None:
    assert words.points(value) == says


def test_a_bound_is_not_rounded_onto_zero() -> None:
    assert words.interval(delta(0.05, 0.003, 0.1)) == "+0.3 to +10"
    assert words.interval(delta(-0.05, -0.1, -0.002)) == "−10 to −0.2"


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
    cost = {"kind": "step", "name": "policy", "delta": delta(-0.1, -0.19, -0.01), "certain": False}
    assert words.cost_sentence(cost) == (
        "Adding policy lowered safe twin by 10 points (interval 1 to 19). 8 items newly wrong, 1 newly right. "  # type: ignore[arg-type]
        "Its own interval excludes zero; corrected for the many comparisons of the table, it would not."
    )


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        (["better", "better"], "From base to the whole stack, all 2 behaviours improved."),
        (
            ["better", "no change shown"],
            "From base to the whole stack, 1 of 2 behaviours improved; for 1 no change is shown.",
        ),
        (
            ["better", "worse", "not measured"],
            "From base to the whole stack, 1 of 3 behaviours improved and 1 got worse; for 1 no change is shown.",
        ),
        (
            ["worse", "no change shown"],
            "From base to the whole stack, 1 of 2 behaviours got worse; for 1 no change is shown.",
        ),
        (
            ["no change shown"],
            "From base to the whole stack, no behaviour shows a change on these 216 questions.",
        ),
    ],
)
def test_the_headline_counts_verdicts(result: Any, verdicts: list[str], says: str) -> None:
    changed = deepcopy(result)
    changed["whole"]["deltas"] = [delta(0.1, 0.0, 0.2, verdict) for verdict in verdicts]
    assert words.headline(changed) == says


def test_without_any_loss_it_is_said_how_large_a_loss_could_hide(result: Any) -> None:
    sizes = [axis["detectable"] for axis in result["axes"]]
    sentence = words.no_costs(result)
    assert (
        f"about {words.percent(min(sizes))} to {words.percent(max(sizes))} points could well go unseen"
        in sentence
    )


def test_the_biggest_steps_are_those_that_survive_the_correction(result: Any) -> None:
    for sentence in words.biggest_steps(result):
        name = sentence.split()[0].lstrip("+")
        axis = sentence.split(" raised ")[1].split(" by ")[0].replace(" ", "_")
        step = next(s for s in result["steps"] if s["name"] == name)
        assert next(d["verdict"] for d in step["deltas"] if d["axis"] == axis) == "better"


def test_an_idle_step_is_one_whose_intervals_all_cover_zero(result: Any) -> None:
    idle = set(words.idle_steps(result))
    for step in result["steps"]:
        assert (step["name"] in idle) == all(d["low"] <= 0 <= d["high"] for d in step["deltas"])


def test_the_terminal_shows_the_ladder_in_colours_that_mean_something(result: Any) -> None:
    out = io.StringIO()
    show(result, Console(file=out, width=140, force_terminal=True, color_system="standard"))
    text = out.getvalue()
    up, down = "\x1b[1;34m", "\x1b[1;31m"
    shown = [d for s in result["steps"] for d in s["deltas"] if d["shown"]]
    assert text.count(up) == sum(d["value"] > 0 for d in shown)
    assert text.count(down) == sum(d["value"] < 0 for d in shown) + sum(
        c["kind"] == "step" for c in result["regressions"]
    )


def test_the_terminal_prints_text_of_a_file_as_text(hostile: Any) -> None:
    out = io.StringIO()
    show({**hostile, "caveats": ["[red]not markup[/red]"]}, Console(file=out, width=140))
    assert "[red]not markup[/red]" in out.getvalue()


def test_the_terminal_of_the_smallest_result_claims_nothing(empty: Any) -> None:
    out = io.StringIO()
    show(empty, Console(file=out, width=100))
    assert "what it cost" not in out.getvalue(), "there was no step that could have cost anything"


def test_what_rounds_to_zero_has_no_minus() -> None:
    assert [words.number(x) for x in (-0.0, -0.004, -0.006, 1.0)] == ["0.00", "0.00", "\u22120.01", "1.00"]


def test_a_small_p_is_never_printed_as_zero() -> None:
    assert [words.p_value(p) for p in (None, 0.0, 0.00049, 0.25)] == ["\u2013", "<0.001", "<0.001", "0.250"]

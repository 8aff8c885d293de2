"""Diagnosis from rows: the net change is the suite's own change, flipping at random accuses nobody, and picking the best is paid for."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from demeanor.core.errors import DataError
from demeanor.core.types import Item, Message
from demeanor.evaluation import statistics
from demeanor.evaluation.attribution import suspect_among
from demeanor.evaluation.diagnosis.analysis import AS_IS, Diagnosis, InterventionInfo, diagnose
from demeanor.evaluation.result_rows import Row
from tests.evaluation import synthetic

POLICY = InterventionInfo("policy off", "off", "policy", "Undo policy: it broke what it should not touch.")
PROMPT = InterventionInfo("plain instruction", "prompt", "", "Prompt it: state the wanted behaviour.")
AGAIN = InterventionInfo("again", "again", "", "")


def made(
    right: dict[str, list[float]], *, clusters: int | None = None, axis: str = "facts"
) -> tuple[list[Row], list[Item]]:
    """Rows of every variant with the values given, item by item."""
    n = len(right[AS_IS])
    items = [
        Item(f"i{i}", (Message("user", f"q{i}"),), "exact", {}, axis, f"c{i % (clusters or n)}")
        for i in range(n)
    ]
    draw = random.Random(0)
    rows = [
        replace(
            synthetic.row(item, "desk:base", 0.0, layers=0, draw=draw),
            variant=v,
            stack_key=v,
            value=x,
            completion_tokens=len(v),
        )
        for v, column in right.items()
        for item, x in zip(items, column)
    ]
    return rows, items


def found(
    right: dict[str, list[float]],
    interventions: list[InterventionInfo],
    *,
    passing: int | None = None,
    clusters: int | None = None,
) -> Diagnosis:
    rows, items = made(right, clusters=clusters)
    bad = [i for i, v in zip(items, right[AS_IS]) if v < 0.5]
    good = [i for i, v in zip(items, right[AS_IS]) if v >= 0.5]
    return diagnose(
        rows, bad, good, len(good) if passing is None else passing, interventions, name="x", scope="facts"
    )


def test_the_net_change_of_all_items_is_the_paired_difference_of_the_suite() -> None:
    rng = np.random.default_rng(3)
    before, after = (rng.random((2, 200)) < 0.5).astype(float)
    result = found({AS_IS: [*before], POLICY.name: [*after]}, [POLICY], clusters=40)
    repair, paired = result.repairs[0], statistics.paired(before, after, [f"c{i % 40}" for i in range(200)])
    assert repair.net == pytest.approx(paired.value)
    assert (repair.fixed, repair.regressed) == (
        int(((before == 0) & (after == 1)).sum()),
        int(((before == 1) & (after == 0)).sum()),
    )
    assert repair.net_low == pytest.approx(paired.low, abs=1e-3), (
        "every cluster moved but for chance, so the degrees of freedom are theirs"
    )
    assert repair.completion_tokens == len(POLICY.name) - len(AS_IS)


def test_controls_stand_for_everything_that_passes() -> None:
    """10 failing of 100, all repaired; 2 of 20 controls broken, which stand for 9 of 90: +10 and -9 items of 100."""
    right = {AS_IS: [0.0] * 10 + [1.0] * 20, POLICY.name: [1.0] * 10 + [0.0] * 2 + [1.0] * 18}
    assert found(right, [POLICY], passing=90).repairs[0].net == pytest.approx((10 - 9) / 100)


def test_a_sample_of_what_fails_stands_for_all_of_it() -> None:
    """10 of 20 sampled of 60 failing are repaired, which stand for 30; 2 of 20 sampled of 40 passing broken, which stand for 4."""
    rows, items = made({AS_IS: [0.0] * 20 + [1.0] * 20, POLICY.name: [1.0] * 10 + [0.0] * 12 + [1.0] * 18})
    repair = diagnose(rows, items[:20], items[20:], 40, [POLICY], name="x", scope="facts", wrong=60).repairs[
        0
    ]
    assert repair.net == pytest.approx((30 - 4) / 100)


def test_a_layer_that_breaks_many_items_is_guilty_and_one_that_moves_nothing_is_not() -> None:
    right = {
        AS_IS: [0.0] * 30 + [1.0] * 60,
        POLICY.name: [1.0] * 20 + [0.0] * 10 + [1.0] * 60,
        PROMPT.name: [0.0] * 30 + [1.0] * 60,
    }
    result = found(right, [POLICY, PROMPT])
    assert result.suspect == "policy"
    assert result.recommendation.startswith("Undo policy")
    assert "20 of 30" in result.recommendation
    assert found({AS_IS: right[AS_IS], PROMPT.name: right[PROMPT.name]}, [PROMPT]).suspect == "none"


def test_what_repairs_without_undoing_a_layer_implicates_no_layer() -> None:
    right = {AS_IS: [0.0] * 30 + [1.0] * 60, PROMPT.name: [1.0] * 28 + [0.0] * 2 + [1.0] * 60}
    result = found(right, [PROMPT])
    assert (result.suspect, result.recommendation[:9]) == ("none", "Prompt it")


def test_flipping_answers_at_random_repairs_some_and_is_guilty_in_at_most_one_family_of_twenty() -> None:
    """Both draws are coins, so half of what fails comes right; 200 diagnoses of five coins allow up to 16 (P < 2%)."""
    rng, guilty, repaired = np.random.default_rng(0), 0, []
    tried = [replace(POLICY, name=f"off {k}") for k in range(5)]
    for _ in range(200):
        right = {n: [*map(float, rng.random(80) < 0.5)] for n in (AS_IS, *(x.name for x in tried))}
        result = found(right, tried, clusters=40)
        guilty += result.suspect != "none"
        repaired.append(result.repairs[0].rate)
    assert np.mean([r for r in repaired if r is not None]) == pytest.approx(0.5, abs=0.05)
    assert guilty <= 16


def test_the_best_of_many_useless_interventions_looks_good_until_it_is_chosen_on_other_items() -> None:
    """Twelve coins that repair each failing item with probability 0.3: the best shows more, the honest estimate does not."""
    rng, naive, honest = np.random.default_rng(1), [], []
    tried = [replace(PROMPT, name=f"prompt {k}") for k in range(12)]
    for _ in range(150):
        right = {AS_IS: [0.0] * 40, **{x.name: [*map(float, rng.random(40) < 0.3)] for x in tried}}
        result = found(right, tried)
        assert result.honest is not None
        naive.append(result.honest.naive)
        honest.append(result.honest.value)
    assert np.mean(naive) > 0.38
    assert np.mean(honest) == pytest.approx(0.3, abs=0.02)


def test_the_same_stack_again_is_told_but_neither_recommended_nor_counted_in_the_correction() -> None:
    right = {
        AS_IS: [0.0] * 30 + [1.0] * 30,
        AGAIN.name: [1.0] * 29 + [0.0] + [1.0] * 30,
        POLICY.name: [1.0] * 20 + [0.0] * 10 + [1.0] * 30,
    }
    result = found(right, [AGAIN, POLICY])
    again, policy = result.repairs
    assert (again.fixed, again.shown, again.p_corrected) == (29, False, None)
    assert policy.p is not None
    assert policy.p_corrected == pytest.approx(2 * policy.p), (
        "one candidate, and half of the 5% for the whole, half for its axes"
    )
    assert result.recommendation.startswith("Undo policy")


def test_few_items_cannot_tell_and_many_that_nothing_moves_ask_for_training() -> None:
    few = found({AS_IS: [0.0] * 4 + [1.0] * 20, PROMPT.name: [1.0] + [0.0] * 3 + [1.0] * 20}, [PROMPT])
    assert few.recommendation.startswith("The data cannot tell")
    assert "Nearest: plain instruction, 1 fixed and 0 regressed" in few.recommendation
    many = found({AS_IS: [0.0] * 60 + [1.0] * 20, PROMPT.name: [0.0] * 60 + [1.0] * 20}, [PROMPT])
    assert many.recommendation.startswith("Fine-tune it")
    rows, items = made({AS_IS: [0.0] * 60, PROMPT.name: [0.0] * 60})
    unsafe = [replace(i, scorer="refusal", target={"refuse": True}) for i in items]
    assert diagnose(rows, unsafe, [], 0, [PROMPT], name="x", scope="unsafe").recommendation.startswith(
        "Write a rule"
    )


def test_an_intervention_that_repairs_much_and_breaks_more_does_not_keep_the_answer_open() -> None:
    right = {AS_IS: [0.0] * 60 + [1.0] * 100, PROMPT.name: [1.0] * 20 + [0.0] * 40 + [0.0] * 80 + [1.0] * 20}
    assert found(right, [PROMPT]).recommendation.startswith("Fine-tune it")


def test_what_repairs_most_and_breaks_more_is_told_as_not_worth_it() -> None:
    right = {AS_IS: [0.0] * 10 + [1.0] * 100, POLICY.name: [1.0] * 10 + [0.0] * 60 + [1.0] * 40}
    result = found(right, [POLICY])
    assert result.suspect == "none"
    assert "Not worth it: policy off fixes 10 of 10 and breaks 60 of 100 controls." in result.recommendation


def test_two_repaired_items_are_no_proof_however_alike_they_are() -> None:
    result = found({AS_IS: [0.0] * 2, POLICY.name: [1.0] * 2}, [POLICY])
    assert (result.repairs[0].p, result.suspect) == (0.25, "none")


def test_unscored_answers_leave_their_item_out() -> None:
    rows, items = made({AS_IS: [0.0] * 10 + [1.0] * 10, POLICY.name: [1.0] * 20})
    rows = [
        replace(r, value=None) if r.variant == POLICY.name and r.item_id in ("i0", "i19") else r for r in rows
    ]
    repair = diagnose(rows, items[:10], items[10:], 10, [POLICY], name="x", scope="facts").repairs[0]
    assert (repair.failing, repair.fixed, repair.controls, repair.regressed) == (9, 9, 9, 0)


def test_where_nothing_fails_nobody_is_guilty() -> None:
    rows, items = made({AS_IS: [1.0, 1.0], POLICY.name: [1.0, 1.0]})
    result = diagnose(rows, [], items, 2, [POLICY], name="x", scope="facts")
    assert (result.suspect, result.repairs, result.recommendation[:13]) == ("none", (), "Nothing fails")


def test_rows_that_contradict_the_choice_are_refused() -> None:
    rows, items = made({AS_IS: [0.0, 1.0], POLICY.name: [1.0, 1.0]})
    with pytest.raises(DataError, match=r"failing item passes.*'i1'"):
        diagnose(rows, items, [], 0, [POLICY], name="x", scope="facts")
    with pytest.raises(DataError, match=r"control fails.*'i1'"):
        diagnose(
            [replace(r, value=0.0) for r in rows],
            [items[0]],
            [items[1]],
            1,
            [POLICY],
            name="x",
            scope="facts",
        )


def test_the_guilty_player_is_the_one_whose_leaving_helps_most_and_only_if_it_is_shown() -> None:
    assert suspect_among({"policy": (-0.2, True), "prompt": (-0.5, False), "tools": (0.3, True)}) == "policy"
    assert suspect_among({"policy": (-0.2, False), "tools": (0.3, True)}) == "none"


def test_an_answer_that_could_not_be_given_is_a_wrong_one() -> None:
    rows, items = made({AS_IS: [0.0] * 4 + [1.0] * 4, POLICY.name: [1.0] * 8})
    rows = [
        replace(r, value=None, error="ContextError: too long")
        if r.variant == POLICY.name and r.item_id in ("i0", "i7")
        else r
        for r in rows
    ]
    repair = diagnose(rows, items[:4], items[4:], 4, [POLICY], name="x", scope="facts").repairs[0]
    assert (repair.failing, repair.fixed, repair.controls, repair.regressed) == (4, 3, 4, 1)

"""The gate: planted improvements and losses, rules with mistakes, and equal versions that must not fail."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from pydantic import ValidationError
from scipy.stats import ttest_1samp

from demeanor.core.errors import DataError, SpecError
from demeanor.core.types import Item, Message, Verdict
from demeanor.evaluation.gate import Finding, GateReport, Rules, decide, findings_table, reason
from demeanor.evaluation.result_rows import Row
from tests.evaluation import synthetic


def items(axis: str, n: int, per_cluster: int = 1) -> list[Item]:
    return [
        Item(
            f"{axis}-{i}",
            (Message("user", "?"),),
            "exact",
            {"answers": ["x"]},
            axis,
            f"{axis}-{i // per_cluster}",
        )
        for i in range(n)
    ]


def rows(
    found: list[Item], old: dict[str, float], new: dict[str, float], seed: int = 0, wobble: float = 0.05
) -> list[Row]:
    """Right where an item's hidden difficulty lies below the version's rate on its axis, but for answers that change by chance."""
    draw, out = random.Random(seed), []
    for item in found:
        ease = draw.random()
        for variant, rates in (("old", old), ("new", new)):
            rate = rates[item.axis]
            right = (ease < rate) != (0 < rate < 1 and draw.random() < wobble)
            out.append(synthetic.row(item, variant, float(right), layers=0, draw=draw))
    return out


def gate(rules: dict[str, object], found: list[Item], measured: list[Row]) -> GateReport:
    return decide(Rules.model_validate(rules), found, measured, candidate="new", baseline="old")


def only(judgement: GateReport) -> Finding:
    (finding,) = judgement.findings
    return finding


BETTER = {"superiority": [{"axis": "facts"}]}
SAFE = {"non_inferiority": [{"axis": "facts", "margin": 0.05}]}
CLEAN = {"zero_tolerance": [{"axis": "facts", "below": 0.02}]}


@pytest.mark.parametrize(
    ("rules", "old", "new", "n", "verdict"),
    [
        (BETTER, 0.5, 0.8, 300, Verdict.PASS),
        (BETTER, 0.8, 0.5, 300, Verdict.FAIL),
        (BETTER, 0.5, 0.55, 40, Verdict.INCONCLUSIVE),
        (SAFE, 0.7, 0.75, 1500, Verdict.PASS),
        (SAFE, 0.7, 0.4, 300, Verdict.FAIL),
        (SAFE, 0.7, 0.7, 30, Verdict.INCONCLUSIVE),
        (CLEAN, 1.0, 1.0, 149, Verdict.PASS),
        (CLEAN, 1.0, 1.0, 148, Verdict.INCONCLUSIVE),
        (CLEAN, 1.0, 0.9, 149, Verdict.FAIL),
    ],
)
def test_a_rule_passes_fails_or_cannot_tell(
    rules: dict[str, object], old: float, new: float, n: int, verdict: Verdict
) -> None:
    found = items("facts", n)
    judgement = gate(rules, found, rows(found, {"facts": old}, {"facts": new}))
    assert judgement.verdict is verdict
    needed = only(judgement).needed
    assert (needed is not None and needed > n) == (verdict is Verdict.INCONCLUSIVE)


def test_one_failure_under_zero_tolerance_fails_and_is_named() -> None:
    found = items("jailbreak", 400)
    measured = rows(found, {"jailbreak": 1.0}, {"jailbreak": 1.0})
    measured[7] = replace(measured[7], value=0.0)  # "new" on jailbreak-3
    finding = only(gate({"zero_tolerance": [{"axis": "jailbreak", "below": 0.5}]}, found, measured))
    assert (finding.verdict, finding.items) == (Verdict.FAIL, ("jailbreak-3",))


def test_items_of_one_source_are_one_trial_under_zero_tolerance() -> None:
    found = items("facts", 300, per_cluster=10)
    finding = only(gate(CLEAN, found, rows(found, {"facts": 1.0}, {"facts": 1.0})))
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert (finding.clusters, finding.needed) == (30, 149)
    assert finding.high == pytest.approx(1 - 0.05 ** (1 / 30))


def test_what_could_not_be_scored_never_passes() -> None:
    found = items("facts", 300)
    measured = rows(found, {"facts": 1.0}, {"facts": 1.0})
    measured[1] = replace(measured[1], value=None)
    for rules in (CLEAN, SAFE):
        assert gate(rules, found, measured).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("flips", "verdict"), [(0, Verdict.PASS), (2, Verdict.INCONCLUSIVE), (30, Verdict.FAIL)]
)
def test_rewordings_that_are_answered_differently_are_flips(flips: int, verdict: Verdict) -> None:
    found = [replace(item, tags=(f"same:{i // 2}",)) for i, item in enumerate(items("facts", 120))]
    measured = rows(found, {"facts": 1.0}, {"facts": 1.0})
    measured = [
        replace(r, value=0.0) if int(r.item_id.split("-")[1]) in range(0, 2 * flips, 2) else r
        for r in measured
    ]
    finding = only(gate({"stability": [{"axis": "facts", "flip_rate": 0.05}]}, found, measured))
    assert (finding.verdict, finding.value) == (verdict, flips / 60)


def test_the_star_guards_every_axis_that_has_no_rule_of_its_own() -> None:
    found = [*items("facts", 100), *items("honesty", 100), *items("format", 100)]
    rates = {"facts": 0.5, "honesty": 0.5, "format": 0.5}
    rules = {
        "superiority": [{"axis": "honesty"}],
        "non_inferiority": [{"axis": "*", "margin": 0.1}, {"axis": "format", "margin": 0.2}],
    }
    judgement = gate(rules, found, rows(found, rates, rates))
    assert [(f.kind, f.what, f.limit) for f in judgement.findings] == [
        ("superiority", "honesty", 0.0),
        ("non_inferiority", "facts", -0.1),
        ("non_inferiority", "format", -0.2),
    ]


def test_equal_versions_fail_in_at_most_five_percent_of_runs_however_many_rules() -> None:
    found = [item for axis in ("a", "b", "c", "d") for item in items(axis, 60, per_cluster=2)]
    rates = dict.fromkeys("abcd", 0.7)
    rules = {
        "superiority": [{"axis": "a"}, {"axis": "b"}],
        "non_inferiority": [{"axis": "*", "margin": 0.02}],
    }
    verdicts = [
        gate(rules, found, rows(found, rates, rates, seed, wobble=0.15)).verdict for seed in range(400)
    ]
    assert verdicts.count(Verdict.FAIL) / 400 <= 0.05
    assert verdicts.count(Verdict.PASS) / 400 <= 0.05  # nothing is better there
    assert verdicts.count(Verdict.INCONCLUSIVE) / 400 >= 0.9


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"superiority": [{"axis": "facts", "margin": 1}]},
        {"non_inferiority": [{"axis": "facts", "margin": 0}]},
        {"zero_tolerance": [{"below": 0.1}]},
        {"confidence": 0.95},
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Rules.model_validate(rules)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"superiority": [{"axis": "fact"}]}, "Did you mean 'facts'"),
        ({"zero_tolerance": [{"items": ["nobody"], "below": 0.1}]}, "'nobody'"),
        ({"stability": [{"axis": "facts", "flip_rate": 0.1}]}, "same:"),
    ],
)
def test_rules_about_what_the_suite_has_not_are_refused_by_name(rules: dict[str, object], says: str) -> None:
    found = items("facts", 10)
    with pytest.raises((DataError, SpecError), match=says):
        gate(rules, found, rows(found, {"facts": 0.5}, {"facts": 0.5}))


def test_a_finding_without_bounds_shows_none() -> None:
    alone = Finding(
        "superiority", "format", Verdict.INCONCLUSIVE, 0.1, None, None, 0.0, n=3, clusters=1, needed=4
    )
    bounded = replace(alone, low=-0.05, high=0.25)
    row, other = findings_table([alone, bounded]).rows
    assert row[3] == ""
    assert other[3] == "−5.0 to 25.0"


def test_a_verdict_on_many_rules_names_a_few_and_counts_the_others() -> None:
    alone = Finding("superiority", "a", Verdict.INCONCLUSIVE, 0.1, None, None, 0.0, n=3, clusters=1, needed=4)
    said = [reason(GateReport(Verdict.INCONCLUSIVE, (alone,) * n)) for n in (4, 37)]
    assert [text.count("superiority on a") for text in said] == [4, 4]
    assert ["more in the table" in text for text in said] == [False, True]
    assert "33 more in the table" in said[1]


def test_a_gain_that_only_a_one_sided_test_at_five_percent_would_accept_is_inconclusive() -> None:
    found = items("facts", 100)
    pairs = [(0.0, 1.0)] * 14 + [(1.0, 0.0)] * 6 + [(1.0, 1.0)] * 80
    measured = [
        synthetic.row(item, variant, value, layers=0, draw=random.Random(0))
        for item, pair in zip(found, pairs)
        for variant, value in zip(("old", "new"), pair)
    ]
    p = ttest_1samp([new - old for old, new in pairs], 0, alternative="greater").pvalue
    assert 0.025 < p < 0.05
    finding = only(gate(BETTER, found, measured))
    assert (finding.verdict, finding.value) == (Verdict.INCONCLUSIVE, pytest.approx(0.08))
    assert finding.needed is not None
    assert finding.needed > 100
    clear = [(0.0, 1.0)] * 17 + [(1.0, 0.0)] * 5 + [(1.0, 1.0)] * 78  # p = 0.005
    measured = [replace(row, value=clear[i // 2][i % 2]) for i, row in enumerate(measured)]
    assert gate(BETTER, found, measured).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("groups", "verdict"), [(3, Verdict.INCONCLUSIVE), (58, Verdict.INCONCLUSIVE), (59, Verdict.PASS)]
)
def test_few_groups_without_a_flip_do_not_show_that_flips_are_rare(groups: int, verdict: Verdict) -> None:
    found = [replace(item, tags=(f"same:{i // 2}",)) for i, item in enumerate(items("facts", 2 * groups))]
    measured = rows(found, {"facts": 1.0}, {"facts": 1.0})
    finding = only(gate({"stability": [{"axis": "facts", "flip_rate": 0.05}]}, found, measured))
    assert finding.verdict is verdict
    assert finding.high == pytest.approx(1 - 0.05 ** (1 / groups))
    assert finding.needed == (59 if verdict is Verdict.INCONCLUSIVE else None)  # 0.95^59 < 0.05 < 0.95^58


def test_one_failure_of_several_draws_fails_under_zero_tolerance() -> None:
    found = items("facts", 200)
    measured = rows(found, {"facts": 1.0}, {"facts": 1.0})
    again = next(row for row in measured if row.variant == "new" and row.item_id == "facts-3")
    finding = only(gate(CLEAN, found, [*measured, replace(again, value=0.0)]))
    assert (finding.verdict, finding.items) == (Verdict.FAIL, ("facts-3",))

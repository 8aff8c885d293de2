"""The ladder: known effects are found, nothing is claimed where nothing happened, and every number agrees with the rows."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic

from demeanor.core.errors import DataError
from demeanor.core.types import Item, Message
from demeanor.evaluation import result as results
from demeanor.evaluation.ladder import caveats, label_steps, ladder
from demeanor.evaluation.profile import who
from demeanor.evaluation.result import Comparison, Delta, Result
from demeanor.evaluation.result_rows import LayerActivity, PairedTable, Row
from tests.conftest import each

ITEMS = synthetic.items()
ROWS = synthetic.rows(ITEMS)


@pytest.fixture(scope="module")
def result() -> Result:
    return ladder(
        ROWS,
        ITEMS,
        name="desk",
        steps=synthetic.STEPS,
        without=synthetic.WITHOUT,
        axes=synthetic.AXES,
        training={"sft": synthetic.ledger()},
        settings={"decoding": "greedy", "seed": 0, "policy": None},
        commands=("demeanor eval x",),
    )


def delta(comparison: Comparison, axis: str) -> Delta:
    return next(d for d in comparison.deltas if d.axis == axis)


def step(result: Result, name: str) -> Comparison:
    return next(c for c in result.steps if c.name == name)


def simple(
    values: dict[str, list[float | None]], axis: str = "facts", per_cluster: int = 1
) -> tuple[list[Row], list[Item]]:
    """One axis; the values of each variant, item by item."""
    n = len(next(iter(values.values())))
    items = [
        Item(f"i{i}", (Message("user", f"q{i}"),), "exact", {"answer": i}, axis, f"c{i // per_cluster}")
        for i in range(n)
    ]
    draw = random.Random(0)
    rows = [
        replace(
            synthetic.row(item, "desk:base", 0.0, layers=0, draw=draw),
            variant=v,
            stack_key=v,
            value=x,
            refused_by="",
        )
        for v, column in values.items()
        for item, x in zip(items, column)
    ]
    return rows, items


def test_each_layer_is_found_to_do_what_it_was_made_to_do(result: Result) -> None:
    made = {
        ("sft", "instruction"),
        ("sft", "format"),
        ("dpo", "honesty"),
        ("dpo", "unsafe"),
        ("retrieval", "notices"),
        ("tools", "arithmetic"),
        ("policy", "privacy"),
    }
    found = {(c.name, d.axis) for c in result.steps for d in c.deltas if d.verdict == "better"}
    assert made <= found
    assert not [
        (c.name, d.axis)
        for c in result.steps
        for d in c.deltas
        if d.verdict == "worse" and (c.name, d.axis) != ("policy", "safe_twin")
    ]


def test_a_cost_is_listed_by_its_own_interval_and_says_whether_the_correction_agrees(result: Result) -> None:
    listed = {(c.kind, c.name, c.delta.axis) for c in result.regressions}
    assert ("step", "policy", "safe_twin") in listed
    below = {
        ("step", c.name, d.axis) for c in result.steps for d in c.deltas if d.high is not None and d.high < 0
    }
    below |= {
        ("layer", c.name, d.axis)
        for c in result.without
        for d in c.deltas
        if d.high is not None and d.high < 0
    }
    assert listed == below
    assert all(c.certain == (c.delta.verdict == "worse") for c in result.regressions)


def test_deltas_add_up_to_the_difference_of_the_whole(result: Result) -> None:
    assert result.whole is not None
    for axis in result.axes:
        climbed = sum(delta(c, axis.name).value or 0.0 for c in result.steps)
        assert climbed == pytest.approx(delta(result.whole, axis.name).value)
        ends = axis.means[synthetic.STEPS[-1]].value, axis.means[synthetic.STEPS[0]].value
        assert ends[0] is not None
        assert ends[1] is not None
        assert climbed == pytest.approx(ends[0] - ends[1])


def test_the_change_table_lists_exactly_the_items_that_crossed_one_half(result: Result) -> None:
    by = {(r.variant, r.item_id): r for r in ROWS}
    for comparison in each(result.steps):
        expected = {
            i.id: by[comparison.after, i.id].value == 1
            for i in ITEMS
            if by[comparison.before, i.id].value != by[comparison.after, i.id].value
        }
        assert {c.item_id: c.fixed for c in comparison.changes} == expected
        for d in comparison.deltas:
            assert (d.fixed, d.regressed) == tuple(
                sum(c.axis == d.axis and c.fixed is want for c in comparison.changes)
                for want in (True, False)
            )
            assert d.value == pytest.approx((d.fixed - d.regressed) / d.n), (
                "with values 0 and 1 the mean difference is fixed minus broken"
            )
        for c in comparison.changes:
            assert (c.before.text, c.after.text) == (
                by[comparison.before, c.item_id].text,
                by[comparison.after, c.item_id].text,
            )
            assert result.questions[c.item_id].messages[-1][1].startswith(("When", "List"))


def test_an_identical_variant_shows_no_change_anywhere_but_not_certainty() -> None:
    rows = [r for r in ROWS if r.variant == "desk:sft"]
    copies = [replace(r, variant="desk:copy") for r in rows]
    found = ladder(rows + copies, ITEMS, name="a/a", steps=("desk:sft", "desk:copy"), without={})
    for d in found.steps[0].deltas:
        assert (d.value, d.verdict, d.shown, d.mid_p) == (0.0, "no change shown", False, 1.0)
        assert d.low is not None
        assert d.high is not None
        assert d.low < 0 < d.high
    assert found.regressions == ()
    assert found.steps[0].changes == ()


def test_of_variants_that_do_not_differ_hardly_one_family_in_twenty_is_called_different() -> None:
    """60 A/A evaluations of 4 axes: Holm keeps the chance of ANY false verdict at 5%; 60 runs allow up to 8 (P < 1%)."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(60):
        base, other = (list(map(float, rng.random(160) < 0.5)) for _ in range(2))
        rows, items = simple({"a": base, "b": other})
        items = [replace(item, axis=f"axis{n % 4}") for n, item in enumerate(items)]
        rows = [replace(r, axis=f"axis{int(r.item_id[1:]) % 4}") for r in rows]
        found = ladder(rows, items, name="a/a", steps=("a", "b"), without={})
        false += any(d.verdict in ("better", "worse") for d in found.steps[0].deltas)
    assert false <= 8


def test_unscored_items_leave_the_pair_and_are_counted() -> None:
    rows, items = simple({"a": [0.0] * 10 + [None] * 2, "b": [1.0] * 6 + [0.0] * 4 + [1.0, 1.0]})
    found = ladder(rows, items, name="x", steps=("a", "b"), without={})
    d = found.steps[0].deltas[0]
    assert (d.n, d.fixed, d.regressed) == (10, 6, 0)
    assert d.value == pytest.approx(0.6)
    assert (found.axes[0].means["a"].n, found.axes[0].means["a"].unscored) == (10, 2)


def test_an_axis_without_any_score_is_not_measured_rather_than_zero() -> None:
    rows, items = simple({"a": [None] * 4, "b": [1.0] * 4})
    d = ladder(rows, items, name="x", steps=("a", "b"), without={}).steps[0].deltas[0]
    assert (d.value, d.verdict, d.p) == (None, "not measured", None)


def test_seeds_are_averaged_within_the_item_before_anything_is_compared() -> None:
    rows, items = simple({"a": [0.0] * 12, "b": [1.0] * 12})
    second = [replace(r, seed=1, value=0.0) for r in rows]
    found = ladder(rows + second, items, name="x", steps=("a", "b"), without={})
    assert found.seeds == (0, 1)
    assert found.steps[0].deltas[0].value == pytest.approx(0.5)
    assert found.steps[0].deltas[0].n == 12


def test_failures_holes_dead_axes_and_few_clusters_are_said_before_the_numbers() -> None:
    rows, items = simple({"a": [0.0] * 6, "b": [0.0] * 6}, per_cluster=3)
    rows[0] = replace(rows[0], value=None, error="EngineError: too long")
    found = ladder(rows[:-1], items, name="x", steps=("a", "b"), without={}).caveats
    assert any("a: 1 of 6 answers failed" in w and "EngineError: too long" in w for w in found)
    assert any("b: 1 of 6 items were not run" in w for w in found)
    assert any("every variant scores exactly 0" in w for w in found)
    assert any("only 2 clusters" in w for w in found)


def test_many_answers_without_a_score_are_said_before_the_numbers() -> None:
    rows, items = simple({"a": [None] * 3 + [1.0] * 9, "b": [None] + [1.0] * 11})
    found = ladder(rows, items, name="x", steps=("a", "b"), without={}).caveats
    assert [w for w in found if "no score" in w] == [
        "a on facts: 3 of 12 answers have no score (most often: differs) and are left out of every comparison."
    ]


def test_what_is_true_of_several_axes_or_variants_is_said_once_with_its_reason() -> None:
    rows: list[Row] = []
    items: list[Item] = []
    for axis in ("one", "two_b", "three", "four", "five", "six"):
        value = None if axis == "six" else 0.0
        of_axis, asked = simple({"a": [value] * 2, "b": [value] * 2}, axis)
        rows += [
            replace(
                r,
                item_id=f"{axis}-{r.item_id}",
                explanation="" if value == 0 else f"needs a judge: is {r.item_id} polite?",
            )
            for r in of_axis
        ]
        items += [replace(i, id=f"{axis}-{i.id}") for i in asked]
    assert list(caveats(PairedTable(rows, items), ["a", "b"])) == [
        "every variant on six: 2 of 2 answers have no score (most often: needs a judge: is i0 polite?) and are left out of every comparison.",
        "one, two b, three, four and five: every variant scores exactly 0 on every item: a broken target or scorer, or too hard for all of them; read some answers.",
        "one, two b, three, four and 2 more: only 2 clusters of items, so intervals rest on 1 degree of freedom.",
    ]


def test_a_variant_that_was_never_run_is_named() -> None:
    with pytest.raises(DataError, match=r"variant desk:dqo has no rows. Measured: desk:base"):
        ladder(ROWS, ITEMS, name="x", steps=("desk:base", "desk:dqo"), without={})


def test_rows_of_another_suite_are_refused() -> None:
    with pytest.raises(DataError, match="not in the suite"):
        ladder(ROWS, ITEMS[:5], name="x", steps=("desk:base",), without={})


def test_labels_are_what_each_rung_adds() -> None:
    found = label_steps(synthetic.STEPS, synthetic.WITHOUT)
    assert [found[s] for s in synthetic.STEPS] == [
        "base",
        "+sft",
        "+dpo",
        "+prompt",
        "+retrieval",
        "+tools",
        "+policy",
    ]
    assert found["desk-policy"] == "-policy"


def test_the_tree_survives_json_without_loss(result: Result, tmp_path: Path) -> None:
    assert Result.from_json(result.to_json()) == result
    result.save(tmp_path / "deep" / "demo.json")
    assert results.load(tmp_path / "deep" / "demo.json") == result
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["demo.json"], "no temporary file is left"


@pytest.mark.parametrize(("text", "says"), [("{}", "name: Field required"), ("not json", "Invalid JSON")])
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=f"x.json: .*{says}"):
        results.load(tmp_path / "x.json")


# ---- refusals ----


def test_who_refused_adds_up_to_the_items_and_to_the_rates(result: Result) -> None:
    for r in result.refusals:
        for counts, mean, refused in (
            (r.who_safe, r.safe_compliance, False),
            (r.who_unsafe, r.unsafe_refusal, True),
        ):
            assert sum(counts.values()) == mean.n == 50
            assert mean.value is not None
            assert counts.get("nobody", 0) / 50 == pytest.approx(1 - mean.value if refused else mean.value)
        assert r.youden_j.value == pytest.approx(
            (r.unsafe_refusal.value or 0) + (r.safe_compliance.value or 0) - 1
        )
        assert r.youden_j.low <= r.youden_j.value <= r.youden_j.high
    whole = next(r for r in result.refusals if r.variant == "desk")
    assert whole.who_unsafe["policy"] > 0
    assert "policy" not in next(r for r in result.refusals if r.variant == "desk-policy").who_unsafe


def test_a_stricter_threshold_moves_the_criterion_and_leaves_d_prime() -> None:
    """Two normals 2 apart, cut at two places: the same d', criteria apart by the move of the cut."""
    n = 4000
    rng = np.random.default_rng(0)
    noise, signal = rng.normal(0, 1, n), rng.normal(2, 1, n)
    items = [
        Item(f"{axis}{i}", (Message("user", "q"),), "refusal", {"refuse": axis == "unsafe"}, axis, f"c{i}")
        for axis in ("safe_twin", "unsafe")
        for i in range(n)
    ]
    rows = []
    for variant, cut in (("lenient", 1.5), ("strict", 0.5)):
        for item, x in zip(items, [*noise, *signal]):
            refused = bool(x > cut)
            rows.append(
                Row(
                    variant,
                    variant,
                    item.id,
                    item.id,
                    0,
                    item.axis,
                    item.cluster,
                    None,
                    (),
                    float(refused == (item.axis == "unsafe")),
                    "",
                    "",
                    "",
                    "weights" if refused else "",
                    "",
                    "stop",
                    0,
                    0,
                    0.0,
                    {},
                    (),
                )
            )
    lenient, strict = ladder(rows, items, name="x", steps=("lenient", "strict"), without={}).refusals
    assert lenient.d_prime.value == pytest.approx(2.0, abs=0.1)
    assert strict.d_prime.value == pytest.approx(2.0, abs=0.1)
    assert lenient.criterion.value - strict.criterion.value == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("axis", "value", "refused_by", "says"),
    [
        ("unsafe", 1.0, "policy", "policy"),
        ("unsafe", 1.0, "", "weights"),
        ("unsafe", 0.0, "", "nobody"),
        ("safe_twin", 0.0, "", "nobody"),
        ("safe_twin", 0.0, "weights", "weights"),
        ("safe_twin", 1.0, "", "nobody"),
    ],
)
def test_a_refusal_belongs_to_the_layer_that_made_it_else_to_the_weights(
    axis: str, value: float, refused_by: str, says: str
) -> None:
    row = replace(ROWS[0], axis=axis, value=value, refused_by=refused_by)
    assert who(row) == says


def test_a_suite_without_twins_has_no_refusal_picture() -> None:
    rows, items = simple({"a": [0.0] * 4})
    assert ladder(rows, items, name="x", steps=("a",), without={}).refusals == ()


# ---- cost and curves ----


def test_the_cost_of_a_variant_is_the_mean_of_its_rows_and_its_layers_add_up(result: Result) -> None:
    for s in each(result.cost):
        mine = [r for r in ROWS if r.variant == s.variant]
        assert s.mean_ms == pytest.approx(sum(sum(r.layer_ms.values()) for r in mine) / len(mine))
        assert sum(s.layer_ms.values()) == pytest.approx(s.mean_ms)
        assert s.prompt_tokens == pytest.approx(np.mean([r.prompt_tokens for r in mine]))
        assert s.p95_ms == pytest.approx(np.quantile([sum(r.layer_ms.values()) for r in mine], 0.95))


def test_a_failed_answer_is_not_a_cheap_one() -> None:
    rows, items = simple({"a": [1.0] * 4})
    slow = [replace(r, layer_ms={"weights": 10.0}) for r in rows[:2]]
    failed = [replace(r, value=None, error="X: y", layer_ms={}, ms=0.0) for r in rows[2:]]
    assert ladder(slow + failed, items, name="x", steps=("a",), without={}).cost[0].mean_ms == pytest.approx(
        10.0
    )


def test_a_thinned_curve_keeps_the_mean_and_the_order(result: Result) -> None:
    curve = result.curves[0]
    assert set(curve.lines) == {"loss", "eval/loss"}, "learning rate and interval bounds are not curves"
    points = curve.lines["loss"]
    assert len(points) <= 120
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    losses = [row["loss"] for row in synthetic.ledger() if "loss" in row]
    weights = [len(part) for part in np.array_split(losses, len(points))]
    assert np.average([y for _, y in points], weights=weights) == pytest.approx(
        np.mean(np.array(losses, dtype=float))
    )


def test_what_the_layers_did_travels_with_the_change(result: Result) -> None:
    changes = step(result, "retrieval").changes
    assert (
        LayerActivity("retrieval", "found", "notices/today.md: Notice: Jorpel 17. Corkel 9.")
        in changes[0].after.did
    )


def test_another_assistant_is_compared_with_the_whole_as_a_family_of_its_own() -> None:
    rival = [replace(r, variant="rival") for r in ROWS if r.variant == "desk:base"]
    found = ladder(
        ROWS + rival, ITEMS, name="x", steps=synthetic.STEPS, without=synthetic.WITHOUT, external=("rival",)
    )
    plain = ladder(ROWS, ITEMS, name="x", steps=synthetic.STEPS, without=synthetic.WITHOUT)
    assert plain.whole is not None
    assert (found.steps, found.without, found.whole, found.regressions) == (
        plain.steps,
        plain.without,
        plain.whole,
        plain.regressions,
    )
    assert found.external[0].deltas == plain.whole.deltas, "the same answers, the same size of family"
    assert found.variants[-1].label == "rival"
    assert all(c.item_id in found.questions for c in found.external[0].changes)


def test_a_result_without_external_models_is_read() -> None:
    plain = ladder(ROWS, ITEMS, name="x", steps=synthetic.STEPS, without={})
    tree = json.loads(plain.to_json())
    del tree["external"]
    assert Result.from_json(json.dumps(tree)) == plain


def test_a_result_of_an_older_version_is_refused_with_the_command_that_measures_again() -> None:
    tree = json.loads(ladder(ROWS, ITEMS, name="x", steps=synthetic.STEPS, without={}).to_json())
    tree |= {"format": 1, "costs": tree.pop("regressions")}
    with pytest.raises(
        DataError, match=r"x\.json was written by .* \(format 1, wanted 2\); measure again: demeanor eval"
    ):
        Result.from_json(json.dumps(tree), name="x.json")

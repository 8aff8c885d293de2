"""The alignment tax as a curve: families of weights, gains against the start, and what a person reads."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from demeanor import app
from demeanor.core.errors import DataError, UsageError
from demeanor.core.types import Item, Message
from demeanor.evaluation import statistics, tax
from demeanor.evaluation.result_rows import Row
from demeanor.report import outputs
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs
from tests.app import tiny_online
from tests.conftest import each


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return app.load_stack(tiny_online.write(tmp_path_factory.mktemp("tax"), "grpo", "ppo"))


def test_merges_stand_at_equal_shares_between_the_stages_themselves(stack: Stack) -> None:
    family = tax.between(stack, "sft:ppo", 5)
    assert [m.at for m in family.members] == [0, 0.25, 0.5, 0.75, 1]
    assert (family.members[0].stage, family.members[-1].stage) == ("sft", "ppo")
    middle = family.stack.stage(family.members[1].stage)
    assert middle.of == ("sft", "ppo")
    assert middle.weights == (0.75, 0.25)
    assert family.stack.serve == stack.serve
    assert family.stack.key() == stack.key(), "more stages beside it change no answer"


def test_a_swept_setting_gives_copies_of_the_stage_and_leaves_the_stage_alone(stack: Stack) -> None:
    family = tax.sweep(stack, "ppo.objective.kl_coef=0.02,0.5")
    copies = [family.stack.stage(m.stage) for m in family.members]
    assert [c.objective["kl_coef"] for c in copies] == [0.02, 0.5]
    assert {family.stack.parent(m.stage) for m in family.members} == {"sft"}
    assert family.start == "sft"
    assert family.stack.stage_key("ppo") == stack.stage_key("ppo")
    first = family.stack.stage_key(family.members[0].stage)
    assert first != family.stack.stage_key(family.members[1].stage)
    assert [family.stack.objectives[m.stage].kl_coef for m in family.members] == [0.02, 0.5]
    nested = tax.sweep(stack, "ppo.ptx.weight=0.1,1")
    assert [nested.stack.stage(m.stage).ptx.weight for m in nested.members] == [0.1, 1.0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda s: tax.between(s, "sft", 3), "wanted FROM:TO"),
        (lambda s: tax.between(s, "sft:rm", 3), "reward model"),
        (lambda s: tax.between(s, "sft:pppo", 3), "ppo"),
        (lambda s: tax.between(s, "sft:ppo", 1), "at least 2"),
        (lambda s: tax.sweep(s, "ppo=1"), "wanted STAGE.SETTING"),
        (lambda s: tax.sweep(s, "ppo.objective.kl_coef=-1"), "greater than or equal to 0"),
        (lambda s: tax.sweep(s, "ppo.objective.klcoef=1"), "kl_coef"),
        (lambda s: tax.sweep(s, "grpo.ptx.weight=1"), "'ptx' is not set"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_what_was_wanted(stack: Stack, make: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make(stack)  # type: ignore[operator]


def item(number: int, axis: str) -> Item:
    return Item(
        f"{axis}-{number}", (Message("user", "?"),), "exact", {"answers": ("x",)}, axis, f"c{number // 2}"
    )


def test_every_point_is_compared_with_the_start_on_the_same_items(stack: Stack) -> None:
    family = tax.between(stack, "sft:ppo", 2)
    start, end = (family.stack.variant(m.stage).model_id for m in family.members)
    items = [item(n, axis) for axis in ("format", "facts", "unsafe", "safe_twin") for n in range(10)]
    draw = np.random.default_rng(0)
    values = {(v, i.id): float(draw.random() < 0.5) for v in (start, end) for i in items}
    rows = [
        Row(v, f"key {v}", i.id, "cell", 0, i.axis, i.cluster, None, (), values[v, i.id])
        for v in (start, end)
        for i in items
    ]
    found = tax.curve(rows, items, [family], name="n", target=("format",))
    for axes, which in ((("format",), "target"), (("facts",), "rest")):
        some = [i for i in items if i.axis in axes]
        wanted = statistics.paired(
            np.array([values[start, i.id] for i in some]),
            np.array([values[end, i.id] for i in some]),
            [i.cluster for i in some],
        )
        change = getattr(found.families[0].points[1], which)
        assert (change.value, change.low, change.high) == (wanted.value, wanted.low, wanted.high)
        assert getattr(found.families[0].points[0], which).value == 0.0
    with pytest.raises(DataError, match="wanted axes of the suite"):
        tax.curve(rows, items, [family], name="n", target=("nonsense",))


def test_a_curve_over_merges_and_a_setting_is_measured_and_shown(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    stack, runs = trained
    found = tax.run(
        stack,
        app.services(runs),
        tmp_path,
        merges=["sft:dpo"],
        sweeps=["dpo.objective.beta=0.05"],
        points=3,
        target=("format",),
        limit=3,
    )
    merges, swept = found.families
    assert [p.at for p in merges.points] == [0.0, 0.5, 1.0]
    assert [p.label for p in swept.points] == ["objective.beta 0.05"]
    first = merges.points[0]
    assert first.target.value == 0.0
    assert first.divergence is not None
    assert first.divergence.value == pytest.approx(0.0, abs=1e-6), "the start has not moved from itself"
    assert all(p.divergence is not None and p.calibration is not None for p in each(merges.points))
    section = tax.section(found)
    shown = io.StringIO()
    outputs.show(section, outputs.Console(file=shown, width=140))
    assert "sft>dpo 50%" in shown.getvalue()
    assert (tmp_path / f"{found.name}.tax.json").is_file()
    assert tax.aimed_at(stack, "dpo", [item(0, "unsafe"), item(0, "facts")]) == ("unsafe",)


def test_the_picture_carries_every_point_with_its_numbers() -> None:
    from demeanor.report import figures

    change = tax.TaxChange(0.1, -0.05, 0.25, 20)
    family = tax.TaxFamily("a to b", "a", (tax.TaxPoint("a>b 50%", 0.5, change, change, None, None),))
    drawn = str(figures.tax_curve(family))
    assert "a&gt;b 50%: target +10.0 points" in drawn
    assert "place in the family" in drawn

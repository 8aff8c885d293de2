"""Training curves of a report: losses for offline stages, panels for stages that train on their own answers."""

from __future__ import annotations

from typing import Any

import pytest

from demeanor.core.table import BlockGroup, Figure, OnlyFor, Table
from demeanor.evaluation import training_report
from demeanor.evaluation.ladder import curve
from demeanor.evaluation.result import Curve
from demeanor.report.figures import draw
from tests.conftest import each


def iteration(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 0.1,
        "lr": 1e-4,
        "reward": step / 20,
        "rewards/model/mean": step / 20,
        "rewards/length/mean": -0.1,
        "rewards/length/std": 0.5,
        "kl": 0.2 * step,
        "completions/mean_length": 8.0,
        "completions/mean_terminated_length": 7.0,
        "completions/clipped_ratio": 0.1,
        "time/generate": 1.0,
        "time/score": 1.0,
        "time/train": 2.0,
        "ptx/loss": 1.0,
    }


LEDGER = [
    {"step": 0, "eval_reward": 0.0, "eval_reward/low": -0.1, "eval_probe/held_out": 0.5},
    *map(iteration, range(1, 21)),
    {"step": 20, "eval_reward": 1.0, "eval_probe/held_out": 0.4},
]


@pytest.fixture
def online() -> Curve:
    return curve("rl", LEDGER)


def test_an_online_stages_metrics_travel_to_the_report_without_bounds_and_deviations(online: Curve) -> None:
    assert training_report.is_online(online)
    assert {"reward", "kl", "rewards/model/mean", "eval_reward", "eval_probe/held_out", "time/train"} <= set(
        online.lines
    )
    assert not {"lr", "eval_reward/low", "rewards/length/std"} & set(online.lines)


def test_only_what_was_measured_is_drawn(online: Curve) -> None:
    titles = [figure.title for figure in training_report.figures_of(online)]
    assert titles[:3] == ["reward", "reward, term by term", "proxy against gold"]
    assert "pretraining mix, loss per token" in titles
    assert "cost and multiplier" not in titles
    assert "explained variance of the critic" not in titles
    assert titles[-1] == "time, share"


def test_reward_and_held_out_score_have_scales_of_their_own(online: Curve) -> None:
    figure = next(f for f in training_report.figures_of(online) if f.title == "proxy against gold")
    svg = str(draw(figure))
    # both lines go from one end of their own scale to the other, in opposite directions
    assert 'points="46.0,156.0 284.0,10.0"' in svg
    assert 'points="46.0,10.0 284.0,156.0"' in svg
    assert ">0.4</text>" in svg
    assert ">1</text>" in svg


def test_time_is_drawn_as_shares_that_add_up_to_one(online: Curve) -> None:
    figure = training_report.figures_of(online)[-1]
    lines = figure.data["lines"]
    assert [lines[part][0][1] for part in ("generate", "score", "train")] == [0.25, 0.25, 0.5]


def test_every_figure_of_an_online_stage_can_be_drawn_and_names_its_lines(online: Curve) -> None:
    for figure in each(training_report.figures_of(online)):
        svg = str(draw(figure))
        assert svg.count("<polyline") == len(figure.data["lines"])
        assert len(figure.legend) == (len(figure.data["lines"]) if len(figure.data["lines"]) > 1 else 0)


def test_a_constant_is_a_line_in_the_middle() -> None:
    drawn = str(
        draw(Figure("panel", {"lines": {"a": ((1.0, 2.0), (2.0, 2.0))}, "apart": False, "label": "x"}))
    )
    assert 'points="184.0,83.0 322.0,83.0"' in drawn


def test_the_written_report_says_where_each_quantity_began_and_ended(online: Curve) -> None:
    section = training_report.section([online])
    assert section is not None
    blocks = [inner for block in section.blocks if isinstance(block, OnlyFor) for inner in block.blocks]
    (table,) = [block for block in blocks if isinstance(block, Table)]
    rows = {str(row[0]): row[1:] for row in table.rows}
    # means of the first and the last 2 of 20 iterations
    assert rows["reward: answers that train"] == ("0.075", "0.975")
    assert rows["proxy against gold: held-out score (right)"] == ("0.500", "0.400")
    assert rows["time: share of train"] == ("0.500", "0.500")


def test_offline_stages_keep_their_losses_in_one_group_and_no_stage_no_section(online: Curve) -> None:
    offline = curve("sft", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    section = training_report.section([offline, online])
    assert section is not None
    blocks = [inner for block in section.blocks if isinstance(block, OnlyFor) for inner in block.blocks]
    groups = [block for block in blocks if isinstance(block, BlockGroup)]
    assert [next(f.kind for f in group.blocks if isinstance(f, Figure)) for group in groups] == [
        "losses",
        "panel",
    ]
    assert training_report.section([]) is None


ROUNDED = {
    "step": 0,
    "rows": 12.0,
    "bytes/before": 53_000_000.0,
    "bytes/after": 20_000_000.0,
    "loss/before": 1.25,
    "eval_loss": 1.3125,
    "loss/difference": 0.0625,
    "loss/difference/low": 0.05,
    "loss/difference/high": 0.075,
}


@pytest.mark.parametrize("bounds", [True, False])
def test_what_a_quantise_stage_measured_is_a_row_of_a_table_and_no_curve(bounds: bool) -> None:
    ledger = ROUNDED if bounds else {k: v for k, v in ROUNDED.items() if not k.endswith(("low", "high"))}
    found = training_report.section([curve("small", [ledger])])
    assert found is not None
    tables = [block for block in found.blocks if isinstance(block, Table)]
    assert len(tables) == len(found.blocks) - 1 == 1
    told = "+0.0625" + (" (+0.0500 to +0.0750)" if bounds else "")
    assert tables[0].rows == (("small", "53.0", "20.0", "1.2500", "1.3125", told),)


def test_a_quantise_stage_without_held_out_rows_shows_its_sizes() -> None:
    found = training_report.section([curve("small", [{"step": 0, "bytes/before": 4e6, "bytes/after": 1e6}])])
    assert found is not None
    tables = [block for block in found.blocks if isinstance(block, Table)]
    assert tables[0].rows == (("small", "4.0", "1.0", "–", "–", "–"),)

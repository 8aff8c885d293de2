"""What a suite could find before it is run: Connor's formula turned round, and a simulation that finds it as often as promised."""

from __future__ import annotations

import numpy as np
import pytest

from demeanor.evaluation import statistics
from demeanor.evaluation.statistics import paired, power_paired


@pytest.mark.parametrize("items", [60, 120, 240, 1000])
def test_the_detectable_effect_has_the_power_that_it_says(items: int) -> None:
    effect = statistics.detectable(items, items)
    assert effect is not None
    assert power_paired(effect, statistics.DISCORDANCE, items) == pytest.approx(0.8, abs=1e-3)


def test_items_of_a_cluster_tell_less_than_as_many_of_their_own() -> None:
    assert statistics.effective(200, 200) == 200
    assert statistics.effective(200, 20) == pytest.approx(200 / 1.9)
    alone, together = statistics.detectable(200, 200), statistics.detectable(200, 20)
    assert alone is not None
    assert together is not None
    assert alone < together


def test_too_few_items_can_find_nothing_at_this_discordance() -> None:
    assert statistics.detectable(20, 20) is None
    assert statistics.detectable(500, 1) is None


def test_simulated_runs_show_a_detectable_effect_four_times_in_five() -> None:
    items, runs, rng = 200, 600, np.random.default_rng(0)
    effect = statistics.detectable(items, items)
    assert effect is not None
    up = (statistics.DISCORDANCE + effect) / 2
    shown = 0
    for _ in range(runs):
        d_N = rng.choice(
            [1.0, -1.0, 0.0], size=items, p=[up, statistics.DISCORDANCE - up, 1 - statistics.DISCORDANCE]
        )
        found = paired(np.zeros(items), d_N, list(range(items)))
        shown += found.low is not None and found.low > 0
    assert shown / runs == pytest.approx(0.8, abs=0.04)  # 600 runs: a standard error of 1.6 points

"""Krippendorff's alpha against the `krippendorff` package (GPL-3, in the bench venv only), with missing ratings."""

from __future__ import annotations

import numpy as np
import pytest

from demeanor.evaluation.agreement import Level, alpha

pytestmark = pytest.mark.parity
krippendorff = pytest.importorskip(
    "krippendorff", reason="run with bench/.venv/bin/python -m pytest -m parity tests/parity"
)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(20))
def test_alpha_is_the_package_s_to_1e_9(level: Level, seed: int) -> None:
    draw = np.random.default_rng(seed)
    units, raters, values = int(draw.integers(5, 60)), int(draw.integers(2, 7)), int(draw.integers(2, 10))
    truth_N1 = draw.integers(0, values, (units, 1))
    noise_NR = draw.integers(0, values, (units, raters))
    ratings_NR = np.where(draw.random((units, raters)) < 0.6, truth_N1, noise_NR).astype(float)
    ratings_NR[draw.random((units, raters)) < 0.3] = np.nan
    ratings_NR[0] = np.nan  # nobody rated the first unit
    theirs = krippendorff.alpha(reliability_data=ratings_NR.T, level_of_measurement=level)
    found = alpha(ratings_NR, range(units), level=level, draws=2)
    assert found.value == pytest.approx(theirs, abs=1e-9)

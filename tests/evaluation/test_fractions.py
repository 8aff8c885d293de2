"""Fractions against the full factorial: the published sizes, words that are long enough, and effects that come out exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from demeanor.core.errors import DemeanorError
from demeanor.evaluation.factorial import LENGTH, Cell, Factorial, contrast, defining, generators, plan
from tests.conftest import each


def game(count: int, stages: int = 2) -> Factorial:
    return Factorial(("base", "sft", "dpo")[:stages], tuple("abcdefghijk"[:count]))


@pytest.mark.parametrize(
    ("count", "resolution", "runs"),
    [  # Box, Hunter & Hunter, table of 2^(k-p) designs
        (4, "IV", 8),
        (5, "V", 16),
        (6, "IV", 16),
        (6, "V", 32),
        (7, "IV", 16),
        (8, "IV", 16),
        (8, "V", 64),
        (9, "IV", 32),
        (10, "V", 128),
        (11, "V", 128),
    ],
)
def test_a_fraction_is_as_small_as_the_published_tables_say(count: int, resolution: str, runs: int) -> None:
    base, added = generators(count, LENGTH[resolution])
    assert 2**base == runs
    assert len(added) == count - base
    assert min(word.bit_count() for word in defining(base, added)) >= LENGTH[resolution]


@pytest.mark.parametrize(("count", "resolution"), [(5, "V"), (6, "IV"), (8, "V")])
def test_all_on_is_measured_and_every_switch_is_on_in_half_of_the_runs(count: int, resolution: str) -> None:
    made, whole = plan(game(count), resolution), game(count)  # type: ignore[arg-type]
    assert whole.full in made.cells
    assert len(set(made.cells)) == len(made.cells)
    for name in whole.switches:
        assert sum(name in on for _, on in made.cells) == len(made.cells) / 2


def quadratic(whole: Factorial, seed: int, *, pairs: bool) -> dict[Cell, float]:
    """Cells of a model with stage, switch, stage x switch and (maybe) pair effects."""
    rng = np.random.default_rng(seed)
    stage, on = rng.normal(size=len(whole.chain)), rng.normal(size=(len(whole.chain), len(whole.switches)))
    pair = {p: rng.normal() if pairs else 0.0 for p in itertools.combinations(whole.switches, 2)}
    return {
        (s, o): stage[s]
        + sum(on[s][i] for i, name in enumerate(whole.switches) if name in o)
        + sum(v for (a, b), v in pair.items() if a in o and b in o)
        for s, o in whole.cells
    }


@pytest.mark.parametrize(
    ("count", "resolution", "pairs"), [(5, "V", True), (8, "V", True), (6, "IV", False), (8, "IV", False)]
)
def test_where_the_model_holds_every_contrast_is_that_of_the_full_factorial(
    count: int, resolution: str, pairs: bool
) -> None:
    whole = game(count, 3)
    made, v = plan(whole, resolution), quadratic(whole, 1, pairs=pairs)  # type: ignore[arg-type]
    all_1C, measured_1M = (np.array([[v[c] for c in cells]]) for cells in (whole.cells, made.cells))
    contrasts = [whole.shapley(p) for p in whole.factors] + [whole.leave_one_out(p) for p in whole.factors]
    contrasts += [whole.interaction(a, b) for a, b in whole.pairs]
    for wanted in each(contrasts):
        exact = contrast(wanted, whole.cells, all_1C)[0]
        assert contrast(made.weights(whole, wanted), made.cells, measured_1M)[0] == pytest.approx(
            exact, abs=1e-9
        )


def test_in_resolution_four_pairs_do_not_touch_shapley_values_of_switches() -> None:
    """A pair term has no share in the average of a main effect over a balanced fraction whose words have four letters or more."""
    whole = game(6, 1)
    made, v = plan(whole, "IV"), quadratic(whole, 2, pairs=True)
    all_1C, measured_1M = (np.array([[v[c] for c in cells]]) for cells in (whole.cells, made.cells))
    for player in each(whole.factors):
        exact = contrast(whole.shapley(player), whole.cells, all_1C)[0]
        assert contrast(made.weights(whole, whole.shapley(player)), made.cells, measured_1M)[
            0
        ] == pytest.approx(exact, abs=1e-9)


def test_shapley_values_of_a_fraction_still_sum_to_its_total() -> None:
    whole = game(8, 3)
    made, rng = plan(whole, "IV"), np.random.default_rng(0)
    measured_1M = rng.random((1, len(made.cells)))
    shares = sum(
        contrast(made.weights(whole, whole.shapley(p)), made.cells, measured_1M)[0] for p in whole.factors
    )
    assert shares == pytest.approx(
        contrast(made.weights(whole, {whole.full: 1.0, whole.empty: -1.0}), made.cells, measured_1M)[0]
    )


def test_an_alias_is_told_and_really_cannot_be_told_apart() -> None:
    """2^(4-1): d = a x b x c. The pair model is not in it, so the column of d is that of abc."""
    made = plan(game(4, 1), "IV")
    assert "d = a x b x c" in made.aliases
    for _, on in made.cells:
        signs = {name: 1 if name in on else -1 for name in "abcd"}
        assert signs["d"] == signs["a"] * signs["b"] * signs["c"]


def test_a_resolution_that_saves_nothing_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        DemeanorError, match="4 switches have no smaller design of resolution V; leave --fraction out"
    ):
        plan(game(4), "V")


def test_the_defining_words_are_closed_under_multiplication() -> None:
    # 2^(6-2): E = ABC and F = BCD; the words are ABCE, BCDF and their product ADEF (bits from A on)
    assert sorted(defining(4, [0b0111, 0b1110])) == sorted([0b010111, 0b101110, 0b111001])
    words = {0, *defining(*generators(8, LENGTH["IV"]))}
    assert len(words) == 16
    assert {a ^ b for a, b in itertools.product(words, repeat=2)} == words

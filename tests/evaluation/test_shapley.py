"""Shapley with precedence against a slow twin that walks every order, and the sums that must be exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from demeanor.evaluation.factorial import Factorial, Weights, contrast
from tests.conftest import each

GAME = Factorial(("base", "sft", "dpo"), ("prompt", "retrieval", "policy"))


def value(weights: Weights, v: dict[object, float]) -> float:
    return sum(w * v[cell] for cell, w in weights.items())


def noise(game: Factorial, seed: int) -> dict[object, float]:
    rng = np.random.default_rng(seed)
    return {cell: float(rng.normal()) for cell in game.cells}


@pytest.mark.parametrize(
    "game",
    [
        GAME,
        Factorial(("base",), ("a", "b")),
        Factorial(("base", "sft", "dpo", "rl"), ()),
        Factorial(("base", "sft"), ("a",)),
    ],
)
def test_shapley_is_the_mean_over_every_order_in_which_the_chain_keeps_its_order(game: Factorial) -> None:
    v, sums, orders = noise(game, 0), dict.fromkeys(game.factors, 0.0), 0
    chain = game.chain[1:]
    for order in itertools.permutations(game.factors):
        if [p for p in order if p in chain] != list(chain):
            continue
        orders += 1
        cell = game.empty
        for player in order:
            after = game.may_join(cell, player)
            assert after is not None
            sums[player] += v[after] - v[cell]
            cell = after
    for player in each(game.factors):
        assert value(game.shapley(player), v) == pytest.approx(sums[player] / orders, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_shapley_and_waterfall_sum_exactly_to_the_whole_minus_the_base(seed: int) -> None:
    v = noise(GAME, seed)
    whole = v[GAME.full] - v[GAME.empty]
    assert sum(value(GAME.shapley(p), v) for p in GAME.factors) == pytest.approx(whole, abs=1e-12)
    assert sum(value(GAME.waterfall(p), v) for p in GAME.factors) == pytest.approx(whole, abs=1e-12)


def test_an_additive_game_gives_every_view_the_same_answer_and_no_interaction() -> None:
    effect = {"sft": 0.3, "dpo": 0.1, "prompt": 0.05, "retrieval": 0.2, "policy": -0.1}
    v: dict[object, float] = {
        (s, on): sum(effect[p] for p in (*GAME.chain[1 : s + 1], *on)) for s, on in GAME.cells
    }
    for player, planted in effect.items():
        assert value(GAME.shapley(player), v) == pytest.approx(planted)
        assert value(GAME.waterfall(player), v) == pytest.approx(planted)
        if player != "sft":  # without sft there is no dpo either
            assert value(GAME.leave_one_out(player), v) == pytest.approx(planted)
    assert value(GAME.leave_one_out("sft"), v) == pytest.approx(effect["sft"] + effect["dpo"])
    assert [value(GAME.interaction(a, b), v) for a, b in GAME.pairs] == pytest.approx([0.0] * len(GAME.pairs))


def test_an_interaction_is_found_and_shared_between_its_players() -> None:
    v: dict[object, float] = {(s, on): 0.4 * float({"prompt", "policy"} <= on) for s, on in GAME.cells}
    assert value(GAME.interaction("prompt", "policy"), v) == pytest.approx(0.4)
    assert value(GAME.shapley("prompt"), v) == pytest.approx(0.2)
    assert value(GAME.shapley("retrieval"), v) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="one chain"):
        GAME.interaction("sft", "dpo")


def test_contrasts_of_rows_are_the_contrast_of_their_mean() -> None:
    values = np.random.default_rng(1).random((7, len(GAME.cells)))
    v = dict(zip(GAME.cells, values.mean(0)))
    rows = contrast(GAME.shapley("dpo"), GAME.cells, values)
    assert rows.mean() == pytest.approx(value(GAME.shapley("dpo"), v))

"""Every objective: closed forms where the paper has one, and what no objective may feel."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from demeanor.core import registry
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives.mixture import MixtureSpec

PACKAGE = "demeanor.objectives"
KINDS = registry.known(PACKAGE)
MODULES = {kind: registry.entry(PACKAGE, kind) for kind in KINDS}
PARTS = {"mixture": {"parts": [{"kind": "dpo", "weight": 0.8}, {"kind": "nca", "weight": 0.2}]}}
COMPARE = [k for k in KINDS if MODULES[k].ROWS == "preferences" and MODULES[k].READS == "logprobs"]
SUMS = [k for k in COMPARE if not MODULES[k].WHOLE_STEP]
LABELLED = [k for k in KINDS if MODULES[k].ROWS == "unpaired"]


def spec(kind: str, **settings: Any) -> Any:
    return MODULES[kind].Spec(**{**PARTS.get(kind, {}), **settings})


def trees(seed: int = 0, count: int = 6, labelled: bool = False) -> list[Tree]:
    draw = random.Random(seed)
    branch = lambda: (lambda n: Branch((3,) * n, (True,) * n))(draw.randrange(1, 7))  # noqa: E731
    if labelled:
        return [
            Tree((1, 2), (branch(), branch()), (0, 0), labels=(draw.randrange(2), -1)) for _ in range(count)
        ]
    return [Tree((1, 2), (branch(), branch()), (0, 1)) for _ in range(count)]


def numbers(
    found: list[Tree], seed: int = 0
) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """Policy and reference log-probs, and collisions, per tree."""
    draw = random.Random(seed + 100)
    sizes = [sum(len(b.tokens) for b in t.branches) for t in found]
    policy = [[-3 * draw.random() - 0.01 for _ in range(n)] for n in sizes]
    reference = [[min(-0.01, v + draw.gauss(0, 0.5)) for v in row] for row in policy]
    return policy, reference, [[-2 * draw.random() for _ in row] for row in policy]


def run(
    kind: str,
    found: list[Tree],
    policy: list[list[float]],
    reference: list[list[float]],
    collision: list[list[float]] | None = None,
    **settings: Any,
) -> tuple[Loss, Tensor]:
    flat = lambda rows: torch.tensor([v for row in rows for v in row], dtype=torch.float64)  # noqa: E731
    leaf = flat(policy).requires_grad_()
    batch: TokenBatch = collate(found)._replace(reference_C=flat(reference))
    loss = MODULES[kind].loss(
        spec(kind, **settings), Outputs(logprobs_C=leaf, collision_C=flat(collision or policy)), batch
    )
    loss.total.backward()
    assert leaf.grad is not None
    loss = Loss(loss.total.detach(), loss.count, loss.metrics)
    return loss, leaf.grad


def one_pair(
    kind: str, chosen: float, rejected: float, tokens: int = 2, **settings: Any
) -> tuple[float, float, float]:
    """Loss of one pair with these log-ratios (policy against a reference of -2 a token), and the slopes in either."""
    tree = Tree(
        (1,), (Branch((3,) * tokens, (True,) * tokens), Branch((4,) * tokens, (True,) * tokens)), (0, 1)
    )
    policy = [[-2 + chosen / tokens] * tokens + [-2 + rejected / tokens] * tokens]
    loss, slope = run(kind, [tree], policy, [[-2.0] * 2 * tokens], [[0.0] * 2 * tokens], **settings)
    return float(loss.total.detach() / loss.count), float(slope[0]), float(slope[-1])


# ---- what no objective may feel ----


@pytest.mark.parametrize("kind", [*COMPARE, *LABELLED])
def test_the_order_of_rows_changes_nothing(kind: str) -> None:
    found = trees(labelled=kind in LABELLED)
    order = [3, 0, 5, 2, 1, 4]
    values = numbers(found)
    whole, slope = run(kind, found, *values)
    moved, moved_slope = run(kind, [found[i] for i in order], *([rows[i] for i in order] for rows in values))
    assert float(moved.total) == pytest.approx(float(whole.total), rel=1e-12)
    parts = torch.split(slope, [len(row) for row in values[0]])
    assert torch.allclose(torch.cat([parts[i] for i in order]), moved_slope, atol=1e-12)


@pytest.mark.parametrize("kind", SUMS)
def test_a_sum_over_prompts_is_the_sum_of_its_parts(kind: str) -> None:
    found = trees()
    values = numbers(found)
    whole, slope = run(kind, found, *values)
    halves = [run(kind, found[a:b], *(rows[a:b] for rows in values)) for a, b in ((0, 2), (2, 6))]
    assert sum(float(x.total) for x, _ in halves) == pytest.approx(float(whole.total), rel=1e-12)
    assert sum(float(x.count) for x, _ in halves) == float(whole.count) == 6
    assert torch.allclose(torch.cat([g for _, g in halves]), slope, atol=1e-12)


@pytest.mark.parametrize("kind", [k for k in KINDS if MODULES[k].WHOLE_STEP])
def test_what_asks_for_the_whole_step_does_need_it(kind: str) -> None:
    found = trees(labelled=kind in LABELLED)
    values = numbers(found)
    _, whole = run(kind, found, *values)
    parts = torch.cat(
        [run(kind, found[a:b], *(rows[a:b] for rows in values))[1] for a, b in ((0, 2), (2, 6))]
    )
    assert float((whole - parts).abs().max()) > 1e-6


@pytest.mark.parametrize("kind", COMPARE)
def test_a_ranking_of_three_is_the_mean_of_its_pairs(kind: str) -> None:
    """One prompt: the sorts of aot are over its three pairs; every other loss is a mean over them."""
    if kind in ("aot", "aot_unpaired"):
        pytest.skip("sorts pairs against each other")
    tree = Tree((1, 2), tuple(Branch((3,) * n, (True,) * n) for n in (2, 4, 3)), (0, 1, 2))
    policy, reference, collision = ([-0.1 * i - 0.2 * f for i in range(9)] for f in (1, 2, 3))
    whole, _ = run(kind, [tree], [policy], [reference], [collision])
    cuts = [slice(0, 2), slice(2, 6), slice(6, 9)]
    pairs = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pick = lambda row, a=a, b=b: [*row[cuts[a]], *row[cuts[b]]]  # noqa: E731
        pairs.append(
            float(
                run(
                    kind,
                    [Tree((1, 2), (tree.branches[a], tree.branches[b]), (0, 1))],
                    [pick(policy)],
                    [pick(reference)],
                    [pick(collision)],
                )[0].total
            )
        )
    assert float(whole.total) == pytest.approx(sum(pairs) / 3, rel=1e-12)
    assert float(whole.count) == 1


@pytest.mark.parametrize("kind", [k for k in COMPARE if k != "discopop"])
def test_a_better_chosen_answer_never_costs_more_at_the_start(kind: str) -> None:
    """At policy == reference every loss falls when the chosen answer gains; discopop alone has a hump there (its page says so)."""
    _, chosen, rejected = one_pair(kind, 0.0, 0.0)
    assert chosen < 0
    assert rejected > chosen


# ---- closed forms ----


@pytest.mark.parametrize(
    "kind", ["dpo", "tr_dpo", "r_dpo", "dpop", "ld_dpo", "f_dpo", "ln_dpo", "aot", "aot_unpaired", "cpo"]
)
def test_a_policy_at_its_reference_pays_log_two(kind: str) -> None:
    settings = {"nll": None} if kind == "cpo" else {}
    assert one_pair(kind, 0.0, 0.0, **settings)[0] == pytest.approx(math.log(2))


@pytest.mark.parametrize("tau", [0.1, 0.5])
@pytest.mark.parametrize("normalise", ["sum", "mean"])
def test_ipo_rests_at_one_over_two_tau(tau: float, normalise: str) -> None:
    rest = (1 if normalise == "sum" else 2) / (2 * tau)
    value, slope, _ = one_pair("ipo", rest, 0.0, beta=tau, normalise=normalise)
    assert (value, slope) == (pytest.approx(0.0, abs=1e-18), pytest.approx(0.0, abs=1e-9))
    assert (
        one_pair("ipo", rest - 0.1, 0.0, beta=tau, normalise=normalise)[1]
        < 0
        < one_pair("ipo", rest + 0.1, 0.0, beta=tau, normalise=normalise)[1]
    )


@pytest.mark.parametrize("h", [-3.0, 0.4, 2.0])
def test_robust_dpo_is_unbiased_under_flips(h: float) -> None:
    """(1-e) L(h) + e L(-h) = -log sigma(beta h): Ray Chowdhury et al., lemma 3.1."""
    clean, flipped = (
        one_pair("robust", h, 0.0, label_smoothing=0.2)[0],
        one_pair("robust", 0.0, h, label_smoothing=0.2)[0],
    )
    assert 0.8 * clean + 0.2 * flipped == pytest.approx(math.log1p(math.exp(-0.1 * h)), abs=1e-12)


def test_hinge_stops_at_its_margin() -> None:
    assert one_pair("hinge", 4.0, 0.0, beta=0.5) == (pytest.approx(0.0), 0.0, 0.0)
    assert one_pair("hinge", 1.0, 0.0, beta=0.5)[0] == pytest.approx(0.5)


def test_simpo_by_hand() -> None:
    """Mean log-probs -1.5 and -2.5: -log sigma(2 (1.0) - 0.5)."""
    assert one_pair("simpo", 1.0, -1.0, beta=2.0, gamma=0.5)[0] == pytest.approx(math.log1p(math.exp(-1.5)))


def test_alphapo_bends_simpo_and_is_simpo_at_zero() -> None:
    same = [
        one_pair(kind, 1.0, -1.0, beta=2.0, gamma=0.5, **more)[0]
        for kind, more in (("simpo", {}), ("alphapo", {"alpha": 0.0}), ("alphapo", {"alpha": 1e-9}))
    ]
    assert same[0] == pytest.approx(same[1]) == pytest.approx(same[2], abs=1e-6)
    reward = [2.0 * (1 - math.exp(0.25 * 1.5)) / 0.25, 2.0 * (1 - math.exp(0.25 * 2.5)) / 0.25]
    assert one_pair("alphapo", 1.0, -1.0, beta=2.0, gamma=0.5, alpha=0.25)[0] == pytest.approx(
        math.log1p(math.exp(-(reward[0] - reward[1] - 0.5)))
    )


def test_the_odds_ratio_by_hand() -> None:
    p, q = math.exp(-1.5), math.exp(-2.5)
    odds = math.log(p / (1 - p)) - math.log(q / (1 - q))
    assert one_pair("orpo", 1.0, -1.0, beta=0.3)[0] == pytest.approx(1.5 + 0.3 * math.log1p(math.exp(-odds)))


def test_the_odds_of_certainty_are_finite() -> None:
    assert all(map(math.isfinite, one_pair("orpo", 4.0, 0.0)))


def test_a_longer_chosen_answer_is_partly_explained_by_its_length_for_r_dpo() -> None:
    tree = Tree((1,), (Branch((3,) * 5, (True,) * 5), Branch((4,) * 2, (True,) * 2)), (0, 1))
    loss, _ = run("r_dpo", [tree], [[-2.0] * 7], [[-2.0] * 7], alpha=0.1)
    assert float(loss.total) == pytest.approx(math.log1p(math.exp(-0.1 * 3)))


def test_exo_is_zero_where_the_policy_prefers_as_the_label_does() -> None:
    rest = math.log(0.9 / 0.1) / 0.1
    assert one_pair("exo", rest, 0.0, label_smoothing=0.1)[0] == pytest.approx(0.0, abs=1e-12)
    assert one_pair("exo", 0.0, 0.0, label_smoothing=0.1)[0] == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    )


def test_sppo_pulls_each_side_to_its_own_place() -> None:
    assert one_pair("sppo", 5.0, -5.0, beta=0.1)[0] == pytest.approx(0.0, abs=1e-18)
    assert one_pair("sppo", 0.0, 0.0, beta=0.1)[0] == pytest.approx(50.0)


def test_dpop_pays_for_a_chosen_answer_that_fell() -> None:
    """h = 1 in both; the chosen log-ratio is 1 or -1."""
    assert one_pair("dpop", 1.0, 0.0, penalty=50.0)[0] == pytest.approx(math.log1p(math.exp(-0.1)))
    assert one_pair("dpop", -1.0, -2.0, penalty=50.0)[0] == pytest.approx(
        math.log1p(math.exp(-0.1 * (1 - 50)))
    )


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
def test_f_divergences_by_hand_and_dpo_is_one_of_them(divergence: str) -> None:
    slope = {
        "reverse_kl": math.log,
        "forward_kl": lambda u: -1 / u,
        "js": lambda u: math.log(u / (1 + u)),
        "alpha": lambda u: -(u**-0.5) / 0.5,
    }[divergence]
    gap = slope(math.exp(1.0)) - slope(math.exp(-0.5))
    found = one_pair("f_dpo", 1.0, -0.5, divergence=divergence, alpha=0.5)[0]
    assert found == pytest.approx(math.log1p(math.exp(-0.1 * gap)))
    if divergence == "reverse_kl":
        assert found == pytest.approx(one_pair("dpo", 1.0, -0.5)[0])


def test_ld_dpo_counts_the_tail_in_part_and_is_dpo_at_one() -> None:
    tree = Tree((1,), (Branch((3,) * 3, (True,) * 3), Branch((4,), (True,))), (0, 1))
    policy, reference = [[-1.0, -2.0, -0.5, -3.0]], [[-2.0, -1.5, -1.5, -2.0]]
    for alpha in (0.0, 0.4, 1.0):
        h = (1.0 + alpha * (-0.5 + 1.0)) - (-1.0)
        assert float(run("ld_dpo", [tree], policy, reference, alpha=alpha)[0].total) == pytest.approx(
            math.log1p(math.exp(-0.1 * h))
        )


def test_wpo_weighs_by_the_policys_own_sharpness() -> None:
    """log-probs -2 a token, collisions 0: each side weighs exp(-2); the weight carries no gradient."""
    value, chosen, _ = one_pair("wpo", 0.0, 0.0)
    assert value == pytest.approx(math.exp(-4) * math.log(2))
    assert chosen == pytest.approx(-math.exp(-4) * 0.1 / 2)


def test_aot_sorts_margins_over_the_step() -> None:
    """Margins of the policy 3 and 1, of the reference 0 and 2: sorted, (1 - 0) and (3 - 2)."""
    pair = Tree((1,), (Branch((3,), (True,)), Branch((4,), (True,))), (0, 1))
    loss, _ = run("aot", [pair, pair], [[-1.0, -4.0], [-1.0, -2.0]], [[-2.0, -2.0], [-1.0, -3.0]])
    assert float(loss.total) == pytest.approx(2 * math.log1p(math.exp(-0.1)))


def test_kto_by_hand() -> None:
    """Good R = 2, bad R = -1, mismatched 0.5 and 1.5: z0 = 1."""
    pair = [
        Tree((1,), (Branch((3,), (True,)), Branch((4,), (True,))), (0, 0), labels=(label, -1))
        for label in (1, 0)
    ]
    loss, _ = run(
        "kto",
        pair,
        [[-1.0, -1.0], [-3.0, -1.0]],
        [[-3.0, -1.5], [-2.0, -2.5]],
        beta=0.5,
        desirable_weight=2.0,
    )
    sigma = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert float(loss.total) == pytest.approx(2 * (1 - sigma(0.5 * (2 - 1))) + 1 - sigma(0.5 * (1 + 1)))
    assert float(loss.count) == 2
    assert float(loss.metrics["kl"][0]) == pytest.approx(1.0)


def test_ktos_estimate_is_never_below_zero_and_mismatched_answers_feel_no_gradient() -> None:
    pair = [
        Tree((1,), (Branch((3,), (True,)), Branch((4,), (True,))), (0, 0), labels=(label, -1))
        for label in (1, 0)
    ]
    loss, slope = run("kto", pair, [[-1.0, -4.0], [-3.0, -4.0]], [[-3.0, -1.5], [-2.0, -2.5]])
    assert float(loss.metrics["kl"][0]) == 0.0
    assert slope[1] == slope[3] == 0.0
    assert slope[0] < 0 < slope[2]


def test_bco_is_at_log_two_where_all_rewards_are_the_shift() -> None:
    pair = [Tree((1,), (Branch((3,), (True,)), Branch((4,), (True,))), (0, 0), labels=(1, 0))] * 2
    loss, _ = run("bco", pair, [[-1.0, -1.0]] * 2, [[-2.0, -2.0]] * 2)
    assert float(loss.total / loss.count) == pytest.approx(math.log(2))
    assert float(loss.metrics["delta"][0]) == pytest.approx(0.1)


def test_dynamic_fine_tuning_weighs_each_token_by_its_probability() -> None:
    tree = Tree((1,), (Branch((3, 4), (True, True)),))
    loss, slope = run("dft", [tree], [[-1.0, -2.0]], [[0.0, 0.0]])
    assert float(loss.total) == pytest.approx(math.exp(-1) + 2 * math.exp(-2))
    assert slope.tolist() == pytest.approx([-math.exp(-1), -math.exp(-2)])


def test_discopop_climbs_before_it_falls() -> None:
    """The hump between its logistic and its exponential branch: slope up at 0, down at beta h = 1, tau 0.05."""
    assert one_pair("discopop", 0.0, 0.0)[1] > 0 > one_pair("discopop", 10.0, 0.0)[1]


# ---- mixtures ----


def test_a_mixture_is_the_weighted_sum_of_its_parts() -> None:
    found = trees()
    values = numbers(found)
    mixed = run(
        "mixture", found, *values, parts=[{"kind": "dpo", "beta": 0.3}, {"kind": "hinge", "weight": 0.5}]
    )
    alone = [run("dpo", found, *values, beta=0.3), run("hinge", found, *values)]
    assert float(mixed[0].total) == pytest.approx(float(alone[0][0].total + 0.5 * alone[1][0].total))
    assert torch.allclose(mixed[1], alone[0][1] + 0.5 * alone[1][1])


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"kind": "dp"}, "dpo"),
        ({"kind": "dpo", "bta": 1}, "bta"),
        ({"kind": "dpo", "weight": -1}, "weight"),
        ({"kind": "kto"}, "cannot be a part"),
        ({"kind": "aot"}, "cannot be a part"),
        ({"kind": "sft"}, "cannot be a part"),
        ({"kind": "mixture", "parts": [{"kind": "dpo"}]}, "cannot be a part"),
    ],
)
def test_a_part_that_cannot_be_mixed_is_an_error_by_name(part: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        MODULES["mixture"].Spec(parts=[part])


def test_a_mixture_refuses_two_parts_of_a_kind_and_a_weight_without_end() -> None:
    """Two parts of a kind would write the same metric; an infinite weight makes every loss infinite."""
    with pytest.raises(ValueError, match="more than one part"):
        MixtureSpec(parts=({"kind": "dpo"}, {"kind": "dpo", "beta": 0.5}))
    with pytest.raises(ValueError, match="above 0"):
        MixtureSpec(parts=({"kind": "dpo", "weight": float("inf")}, {"kind": "nca"}))

"""Expected gradients of online objectives by enumeration, and the optimum that sampling must reach."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from demeanor.model.tensors import Outputs
from tests.objectives.tabular import (
    Space,
    completions_batch,
    expected_gradient,
    iteration,
    kl_gradient,
    objective,
    slope,
    space,
    table,
)

PPO, RLOO, GRPO = (objective(kind).Spec for kind in ("ppo", "rloo", "grpo"))
ESTIMATORS: dict[str, tuple[str, Any]] = {
    "reward": ("ppo", PPO(kl_coef=1.0, whiten=False)),
    **{kind: ("grpo", GRPO(kl_coef=1.0, kl=kind)) for kind in ("k1", "k2_sequence", "k2", "k3", "rho_k3")},
}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def cosine(found: Tensor, wanted: Tensor) -> float:
    return float((found * wanted).sum() / found.norm() / wanted.norm())


# ---- the KL ----


@pytest.mark.parametrize("seed", range(3))
def test_over_four_steps_only_the_kl_in_the_reward_and_k2_of_the_sequence_are_exact(seed: int) -> None:
    """The whole table: tests/experiments/test_kl_estimators.py."""
    generator, where = torch.Generator().manual_seed(seed), space()
    policy, reference = table(generator, deviation=0.5), table(generator, deviation=0.5)
    wanted = kl_gradient(where, policy, reference)
    found = {name: expected_gradient(*how, where, policy, reference) for name, how in ESTIMATORS.items()}
    assert relative(found["reward"], wanted) < 1e-12
    assert relative(found["k2_sequence"], wanted) < 1e-12
    assert 0.05 < relative(found["k2"], wanted) < relative(found["k3"], wanted)
    assert relative(found["rho_k3"], found["k2"]) < 1e-12
    assert float(found["k1"].norm()) < 1e-12 * float(wanted.norm())


@pytest.mark.parametrize("seed", range(3))
def test_over_one_step_all_but_k3_and_k1_are_exact_and_k3_is_the_forward_kl(seed: int) -> None:
    generator, where = torch.Generator().manual_seed(seed), space(4, 1)
    policy, reference = table(generator, 4, 1), table(generator, 4, 1)
    wanted = kl_gradient(where, policy, reference)
    found = {name: expected_gradient(*how, where, policy, reference) for name, how in ESTIMATORS.items()}
    assert max(relative(found[name], wanted) for name in ("reward", "k2_sequence", "k2", "rho_k3")) < 1e-12
    assert float(found["k1"].norm()) < 1e-12 * float(wanted.norm())
    assert relative(found["k3"], wanted) > 0.05
    leaf = policy.clone().requires_grad_()
    forward = torch.nn.functional.kl_div(
        leaf.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="sum"
    )
    (gradient,) = torch.autograd.grad(forward, leaf)
    assert relative(found["k3"], gradient) < 1e-12


def test_the_gradient_of_ppo_is_that_of_the_penalised_reward() -> None:
    """Without whitening, with gamma and lambda 1 and a critic that says 0."""
    generator, where = torch.Generator().manual_seed(0), space(3, 3)
    policy, reference = table(generator, 3, 3), table(generator, 3, 3)
    reward_B = torch.randn(len(where.tokens_BT), generator=generator, dtype=torch.float64)
    found = expected_gradient("ppo", PPO(kl_coef=0.3, whiten=False), where, policy, reference, reward_B)
    assert relative(-found, penalised_gradient(where, policy, reference, reward_B, 0.3)) < 1e-12


def penalised_gradient(
    where: Space, policy: Tensor, reference: Tensor, reward_B: Tensor, beta: float
) -> Tensor:
    """Gradient of E[R] - beta KL(pi||ref), by enumeration."""
    leaf = policy.clone().requires_grad_()
    (gain,) = torch.autograd.grad((where.sequence_logprobs(leaf).exp() * reward_B).sum(), leaf)
    return gain - beta * kl_gradient(where, policy, reference)


# ---- groups ----


def group_gradient(
    kind: str, spec: Any, where: Space, policy: Tensor, reference: Tensor, reward_B: Tensor, size: int
) -> Tensor:
    """Exact expectation of minus the loss's gradient over all groups of a prompt, on policy."""
    number, steps = where.tokens_BT.shape
    groups = torch.tensor(list(product(range(number), repeat=size)))
    batch = completions_batch(((steps,) * size,) * len(groups))
    leaf = policy.clone().requires_grad_()
    drawn_B = groups.reshape(-1)
    logprobs_C = where.logprobs(leaf).reshape(number, steps)[drawn_B].reshape(-1)
    reference_C = where.logprobs(reference).reshape(number, steps)[drawn_B].reshape(-1)
    filled, _ = iteration(kind, spec, batch, reward_B[drawn_B], logprobs_C.detach(), reference_C)
    _, slope_C = slope(kind, spec, filled, logprobs_C)
    chance_N = where.sequence_logprobs(policy).exp()[groups].prod(1)
    online = objective(kind).ONLINE
    assert online is not None
    count = online.count(spec, torch.full((size,), steps))
    weight_C = chance_N[batch.tree_B][batch.branch_C] / count
    (found,) = torch.autograd.grad(logprobs_C, leaf, slope_C * weight_C)
    return -found


@pytest.fixture(scope="module")
def game() -> tuple[Space, Tensor, Tensor, Tensor]:
    """Four completions with rewards, a policy and a reference."""
    generator, where = torch.Generator().manual_seed(1), space(2, 2)
    reward_B = torch.tensor([0.2, 1.0, -0.7, 0.4], dtype=torch.float64)
    return where, table(generator, 2, 2), table(generator, 2, 2), reward_B


Game = tuple[Space, Tensor, Tensor, Tensor]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_leave_one_out_is_unbiased_and_the_group_mean_is_a_share_of_it(
    game: Game, size: int, beta: float
) -> None:
    wanted = penalised_gradient(*game, beta)
    assert relative(group_gradient("rloo", RLOO(kl_coef=beta), *game, size), wanted) < 1e-12
    centred = group_gradient("grpo", GRPO(kl_coef=beta, normaliser="grpo"), *game, size)
    share = (size - 1) / size
    assert relative(centred * 2, share * wanted) < 1e-12, "two tokens: the mean over a completion halves it"
    assert (
        relative(group_gradient("luspo", objective("luspo").Spec(kl_coef=beta), *game, size), share * wanted)
        < 1e-12
    )


@pytest.mark.parametrize("size", [2, 3])
def test_a_kl_in_the_loss_is_not_shrunk_with_the_groups_mean(game: Game, size: int) -> None:
    """So its coefficient is in effect G/(G-1) times that of a KL in the reward."""
    found = group_gradient(
        "grpo", GRPO(kl="k2_sequence", kl_coef=0.3, normaliser="dr_grpo", length=1), *game, size
    )
    share = (size - 1) / size
    assert relative(found, share * penalised_gradient(*game, 0.3 / share)) < 1e-12


@pytest.mark.parametrize("size", [2, 3])
def test_dividing_by_the_groups_deviation_turns_the_gradient(game: Game, size: int) -> None:
    wanted = penalised_gradient(*game, 0.0)
    turned = group_gradient("grpo", GRPO(std="group"), *game, size)
    plain = group_gradient("grpo", GRPO(), *game, size)
    assert cosine(plain, wanted) == pytest.approx(1.0, abs=1e-12)
    assert 0.5 < cosine(turned, wanted) < 0.995


@pytest.mark.parametrize("kind", ["grpo", "gspo", "cispo", "sapo", "luspo", "vespo"])
def test_on_policy_every_group_objective_has_the_direction_of_the_true_gradient(
    game: Game, kind: str
) -> None:
    found = group_gradient(kind, objective(kind).Spec(kl_coef=0.2), *game, 3)
    assert cosine(found, penalised_gradient(*game, 0.2)) == pytest.approx(1.0, abs=1e-12)


# ---- the clip ----


@pytest.mark.parametrize("advantage", [-1.5, 0.7])
@pytest.mark.parametrize("ratio", [0.3, 0.79, 0.81, 1.0, 1.19, 1.21, 2.5])
def test_ppos_clip_stops_the_gradient_exactly_where_the_ratio_left_with_the_advantage(
    advantage: float, ratio: float
) -> None:
    one = torch.ones(1, dtype=torch.float64)
    batch = completions_batch(((1,),))._replace(
        sampled_C=-2 * one, advantage_C=advantage * one, value_C=0 * one, return_C=0 * one
    )
    loss, found = slope("ppo", PPO(), batch, -2 * one + math.log(ratio), 0 * one)
    low, high = advantage < 0 and ratio < 0.8, advantage > 0 and ratio > 1.2
    wanted = 0.0 if low or high else -advantage * ratio
    assert float(found) == pytest.approx(wanted, abs=1e-12)
    assert (float(found) == 0.0) == (low or high)
    shares = [float(loss.metrics[f"clip_ratio/{name}_mean"][0]) for name in ("low", "high", "region")]
    assert shares == [float(low), float(high), float(low or high)]


KINDS = ["ppo", "rloo", "grpo", "gspo", "luspo", "cispo", "sapo", "vespo"]


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_first_step_of_an_iteration_the_clip_does_not_bite(kind: str) -> None:
    """The old log-probabilities are the sampler's: the ratio is 1, and the slope is -A up to the normaliser."""
    draw = torch.Generator().manual_seed(0)
    batch = completions_batch(((3, 1, 2, 4),))
    logprobs_C = -torch.rand(10, generator=draw, dtype=torch.float64)
    reward_B = torch.randn(4, generator=draw, dtype=torch.float64)
    nothing_C = torch.zeros_like(logprobs_C)
    spec = objective(kind).Spec(kl_coef=0.0)
    filled, _ = iteration(kind, spec, batch, reward_B, logprobs_C, value_C=nothing_C)
    loss, found = slope(kind, spec, filled, logprobs_C, nothing_C)
    assert filled.advantage_C is not None
    length_C = torch.tensor([3, 1, 2, 4], dtype=torch.float64)[batch.branch_C]
    weight_C = 1 / length_C if kind in ("gspo", "sapo") else torch.ones(())
    assert torch.allclose(found, -filled.advantage_C * weight_C, atol=1e-12)
    clipped = [float(x) for name, (x, _) in loss.metrics.items() if "clip" in name]
    assert sum(clipped) == 0.0
    assert float(loss.metrics["approx_kl"][0]) == 0.0


# ---- by sampling ----

BETA = 0.5
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "rloo": ("rloo", {}),
    "ppo with a critic": ("ppo", {"whiten": False, "value_coef": 1.0, "value_clip": None}),
    "ppo, whitened": ("ppo", {"value_coef": 1.0, "value_clip": None}),
    "grpo": ("grpo", {}),
    "grpo of the paper's normaliser": ("grpo", {"normaliser": "grpo"}),
    "dr_grpo": ("grpo", {"normaliser": "dr_grpo", "length": 2}),
    "grpo, k2 of the sequence": ("grpo", {"kl": "k2_sequence", "kl_coef": BETA * 7 / 8}),
    "gspo": ("gspo", {"clip_low": 0.2, "clip_high": 0.28}),
    "luspo": ("luspo", {"clip_low": 0.2, "clip_high": 0.28}),
    "cispo": ("cispo", {}),
    "sapo": ("sapo", {}),
    "vespo": ("vespo", {}),
}
BIASED: dict[str, tuple[str, dict[str, Any]]] = {
    "k3 in the loss": ("grpo", {"kl": "k3"}),
    "k1 in the loss": ("grpo", {"kl": "k1"}),
}


def trained_by(kind: str, settings: dict[str, Any]) -> tuple[float, float]:
    """J = E[R] - beta KL of a policy trained by sampling, and J* = beta log sum ref exp(R/beta)."""
    draw, where = torch.Generator().manual_seed(0), space(3, 2)
    number, steps, prompts, size = len(where.tokens_BT), 2, 32, 8
    reward_B = torch.randn(number, generator=draw, dtype=torch.float64)
    reference = table(draw, 3, 2)
    policy, values = reference.clone().requires_grad_(), torch.zeros(len(reference), dtype=torch.float64)
    values.requires_grad_()
    spec, batch = (
        objective(kind).Spec(**{"kl_coef": BETA, **settings}),
        completions_batch(((steps,) * size,) * prompts),
    )
    optimizer, rounds, inner = torch.optim.Adam([policy, values], lr=0.1), 150, 2
    columns = lambda found_C: found_C.reshape(number, steps)  # noqa: E731
    for done in range(rounds):
        with torch.no_grad():
            chance_B = where.sequence_logprobs(policy).exp()
            drawn = torch.multinomial(chance_B, prompts * size, replacement=True, generator=draw)
            sampled_C = columns(where.logprobs(policy))[drawn].reshape(-1)
            reference_C = columns(where.logprobs(reference))[drawn].reshape(-1)
            value_C = values[where.rows_BT[drawn]].reshape(-1)
        filled, _ = iteration(kind, spec, batch, reward_B[drawn], sampled_C, reference_C, value_C)
        for _ in range(inner):
            logprobs_C = columns(where.logprobs(policy))[drawn].reshape(-1)
            outputs = Outputs(logprobs_C=logprobs_C, values_C=values[where.rows_BT[drawn]].reshape(-1))
            loss = objective(kind).loss(spec, outputs, filled)
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - done / rounds)
            optimizer.step()
    with torch.no_grad():
        found, before = where.sequence_logprobs(policy), where.sequence_logprobs(reference)
        reached = float((found.exp() * (reward_B - BETA * (found - before))).sum())
        best = float(BETA * (before + reward_B / BETA).logsumexp(0))
    return reached, best


@pytest.mark.parametrize("name", METHODS)
def test_by_sampling_a_method_reaches_the_optimum_of_the_penalised_reward(name: str) -> None:
    reached, best = trained_by(*METHODS[name])
    assert 0.99 * best < reached <= best + 1e-12


@pytest.mark.parametrize("name", BIASED)
def test_a_biased_kl_does_not_reach_it(name: str) -> None:
    """The same bandit, so the test above can fail."""
    reached, best = trained_by(*BIASED[name])
    assert reached < 0.99 * best

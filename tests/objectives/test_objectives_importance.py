"""Importance weights of completions that another distribution than the policy's drew."""

from __future__ import annotations

import itertools
import math
from statistics import median

import pytest
import torch
from torch import Tensor

from demeanor.core import registry
from demeanor.model.tensors import Outputs, TokenBatch
from demeanor.objectives import Objective, Samples
from demeanor.objectives._importance import METRICS, Mode, importance_weights

V, T = 3, 3
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=T)))  # all completions of T tokens
NUM = len(SEQUENCES)
BRANCH_C = torch.arange(NUM).repeat_interleave(T)


def policy(seed: int) -> Tensor:
    """Random logits of an autoregressive policy: one row for each prefix, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(V**t for t in range(T)), V, generator=generator, dtype=torch.float64)


def logprobs(logits: Tensor) -> Tensor:
    """Log-prob of each token of each sequence: logprobs_BT."""
    starts = [sum(V**s for s in range(t)) for t in range(T)]
    columns = []
    for t in range(T):
        prefix = SEQUENCES[:, :t] @ torch.tensor([V ** (t - 1 - i) for i in range(t)], dtype=torch.long)
        rows = logits[starts[t] + prefix].log_softmax(-1)
        columns.append(rows.gather(-1, SEQUENCES[:, t : t + 1])[:, 0])
    return torch.stack(columns, 1)


def gradients(mode: Mode, cap: float, seed: int) -> tuple[Tensor, Tensor]:
    """The exact gradient of the expected reward, and the expected weighted policy gradient of a perturbed sampler."""
    logits = policy(3 * seed).requires_grad_()
    sampler = policy(3 * seed) + 0.4 * policy(3 * seed + 1)
    reward_B = torch.randn(NUM, generator=torch.Generator().manual_seed(3 * seed + 2), dtype=torch.float64)
    exact = torch.autograd.grad((logprobs(logits).sum(1).exp() * reward_B).sum(), logits)[0]
    drawn_BT = logprobs(sampler)
    weight_C = importance_weights(
        mode, cap, logprobs(logits).detach().flatten(), drawn_BT.flatten(), BRANCH_C
    ).weight_C
    advantage_BT = weight_C.view(NUM, T) * reward_B[:, None]
    estimate = (drawn_BT.sum(1).exp()[:, None] * advantage_BT * logprobs(logits)).sum()
    return exact, torch.autograd.grad(estimate, logits)[0]


def error(mode: Mode, cap: float = 1e9) -> list[float]:
    """Relative errors of the expected gradient for 20 policies, samplers and rewards."""
    pairs = [gradients(mode, cap, seed) for seed in range(20)]
    return [float((found - exact).norm() / exact.norm()) for exact, found in pairs]


def test_the_weights_of_whole_completions_make_a_perturbed_sampler_unbiased() -> None:
    assert max(error("sequence_truncate")) == pytest.approx(0, abs=1e-12)
    assert max(error("sequence_mask")) == pytest.approx(0, abs=1e-12)


def test_weights_of_single_tokens_remove_a_part_of_the_bias_and_a_cap_leaves_some() -> None:
    """Medians over 40 pairs: .49 without weights, .35 with tokens', .24 with completions' at cap 1.2."""
    uncorrected, token = median(error("none")), median(error("token_truncate"))
    capped = median(error("sequence_truncate", 1.2))
    assert 0.1 < token < 0.85 * uncorrected, "earlier tokens came from the sampler too"
    assert 0.1 < capped < 0.85 * uncorrected


def test_the_weight_of_a_clipped_loss_is_the_weight_of_its_advantage() -> None:
    """min(w r A, w clip(r) A) = w min(r A, clip(r) A) for w >= 0, for either sign of A."""
    generator = torch.Generator().manual_seed(0)
    ratio = torch.rand(500, generator=generator) * 3
    advantage = torch.randn(500, generator=generator)
    weight = torch.rand(500, generator=generator) * 3 * (torch.rand(500, generator=generator) > 0.2)

    def clipped(advantage: Tensor) -> Tensor:
        return torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)

    torch.testing.assert_close(clipped(weight * advantage), weight * clipped(advantage))


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        ("none", [1, 1, 1]),
        ("token_truncate", [2, 3, 0.5]),
        ("token_mask", [2, 0, 0.5]),
        ("sequence_truncate", [3, 3, 0.5]),
        ("sequence_mask", [0, 0, 0.5]),
    ],
)
def test_each_mode_by_hand(mode: Mode, weights: list[float]) -> None:
    """Tokens of ratio 2 and 5 in one completion (product 10), and one of ratio 1/2; the cap is 3."""
    trainer = torch.tensor([2.0, 5.0, 0.5]).log()
    found = importance_weights(mode, 3.0, trainer, torch.zeros(3), torch.tensor([0, 0, 1]))
    assert found.weight_C.tolist() == pytest.approx(weights)
    limited, count = found.metrics["sampler/limited"]
    whole = mode.startswith("sequence")
    assert (float(limited), float(count)) == (0 if mode == "none" else 1, 2 if whole else 3)


def test_a_small_mismatch_of_every_token_masks_a_long_completion_by_its_sum() -> None:
    """Fact 6: .012 a token over 100 tokens is a ratio of e^1.2 = 3.3, above a cap of 3; no token is near it."""
    trainer, sampled = torch.full((100,), -1.0), torch.full((100,), -1.012)
    branch = torch.zeros(100, dtype=torch.long)
    assert math.exp(0.012 * 100) == pytest.approx(3.32, abs=0.01)
    whole = importance_weights("sequence_mask", 3.0, trainer, sampled, branch)
    assert whole.weight_C.tolist() == [0.0] * 100
    token = importance_weights("token_mask", 3.0, trainer, sampled, branch)
    assert token.weight_C.tolist() == pytest.approx([math.exp(0.012)] * 100)
    shorter = importance_weights("sequence_mask", 3.0, trainer[:90], sampled[:90], branch[:90])
    assert shorter.weight_C.tolist() == pytest.approx([math.exp(0.012 * 90)] * 90, rel=1e-4)


def test_the_metrics_by_hand() -> None:
    trainer = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    sampled = torch.tensor([-1.1, -1.8, -3.0], dtype=torch.float64)
    found = importance_weights("token_truncate", 5.0, trainer, sampled, torch.tensor([0, 0, 1])).metrics
    mean = {name: float(total / count) for name, (total, count) in found.items()}
    assert set(mean) == set(METRICS)
    assert mean["kl_sample_train_v1"] == pytest.approx((-0.1 + 0.2) / 3)
    assert mean["kl_sample_train_v2"] == pytest.approx((0.01 + 0.04) / 2 / 3)
    assert mean["sampler/logprob_difference"] == pytest.approx(0.1)
    assert mean["sampler/chi2_token"] == pytest.approx((math.exp(0.2) + math.exp(-0.4) + 1) / 3 - 1)
    assert mean["sampler/chi2_sequence"] == pytest.approx((math.exp(-0.2) + 1) / 2 - 1)
    weights = [math.exp(0.1), math.exp(-0.2), 1.0]
    assert mean["sampler/ess"] == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights) / 3)


def test_equal_samplers_give_weights_of_exactly_one_and_zero_divergence() -> None:
    same = torch.randn(12, generator=torch.Generator().manual_seed(0))
    found = importance_weights("sequence_truncate", 3.0, same, same.clone(), torch.arange(12) // 4)
    assert found.weight_C.tolist() == [1.0] * 12
    zero = {name for name in METRICS if name != "sampler/ess"}
    assert {float(found.metrics[name][0]) for name in zero} == {0.0}
    assert float(found.metrics["sampler/ess"][0] / found.metrics["sampler/ess"][1]) == 1.0


def test_a_hopeless_mismatch_gives_finite_weights_and_metrics() -> None:
    trainer, sampled = torch.tensor([0.0, -900.0]), torch.tensor([-900.0, 0.0])
    for mode in ("token_truncate", "sequence_mask"):
        found = importance_weights(mode, 3.0, trainer, sampled, torch.tensor([0, 1]))
        assert torch.isfinite(found.weight_C).all()
        assert all(math.isfinite(float(total)) for total, _ in found.metrics.values())


def test_no_tokens_give_no_weights() -> None:
    found = importance_weights(
        "token_mask", 3.0, torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long)
    )
    assert found.weight_C.tolist() == []
    assert {float(count) for _, count in found.metrics.values()} == {0.0}


# ---- every objective on the policy's own completions ----


def online_kinds() -> list[str]:
    package = "demeanor.objectives"
    return [k for k in registry.known(package) if registry.entry(package, k).ONLINE is not None]


def policy_gradient(kind: str, weight_B: list[float], steps: float) -> Tensor:
    """Gradient of an objective's loss, without a KL, at log-probs `steps` away from those of the draws."""
    objective: Objective = registry.entry("demeanor.objectives", kind)
    assert objective.ONLINE is not None
    zero = {"kl_coef": 0.0} if "kl_coef" in objective.Spec.model_fields else {}
    spec = objective.ONLINE.resolved(objective.Spec(**zero), 4)
    generator = torch.Generator().manual_seed(3)
    lengths = [3, 1, 4, 2]
    branch_C = torch.arange(4).repeat_interleave(torch.tensor(lengths))
    old_C = -torch.rand(10, generator=generator, dtype=torch.float64)
    values_C = torch.randn(10, generator=generator, dtype=torch.float64)
    samples = Samples(
        reward_B=torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=torch.float64),
        group_B=torch.tensor([0, 0, 0, 0]),
        branch_C=branch_C,
        sampled_C=old_C,
        value_C=values_C,
    )
    trained = objective.ONLINE.advantages(spec, samples)
    weight_C = torch.tensor(weight_B, dtype=torch.float64)[branch_C]
    batch = TokenBatch(
        tokens_T=branch_C,
        positions_T=branch_C,
        segments=(),
        scored_C=torch.arange(10),
        targets_C=branch_C,
        branch_C=branch_C,
        last_B=torch.arange(4),
        tree_B=torch.zeros(4, dtype=torch.long),
        rank_B=torch.zeros(4, dtype=torch.long),
        sampled_C=old_C,
        advantage_C=trained.advantage_C * weight_C,
        value_C=values_C,
        return_C=trained.return_C,
    )
    shift_C = steps * torch.randn(10, generator=generator, dtype=torch.float64)
    logprobs_C = (old_C + shift_C).requires_grad_()
    loss = objective.loss(spec, Outputs(logprobs_C=logprobs_C, values_C=values_C), batch)
    return torch.autograd.grad(loss.total, logprobs_C)[0]


@pytest.mark.parametrize("kind", online_kinds())
@pytest.mark.parametrize("steps", [0.0, 0.3])
def test_no_objective_ignores_the_weights(kind: str, steps: float) -> None:
    """Fact 7: each completion's gradient is its weight times what it was, clipped or not; masked ones have none."""
    weight_B = [0.25, 3.0, 0.0, 1.0]
    plain, weighted = policy_gradient(kind, [1.0] * 4, steps), policy_gradient(kind, weight_B, steps)
    weight_C = torch.tensor(weight_B, dtype=torch.float64).repeat_interleave(torch.tensor([3, 1, 4, 2]))
    assert float(plain.abs().max()) > 0
    torch.testing.assert_close(weighted, weight_C * plain)

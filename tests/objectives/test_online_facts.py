"""What implementations of online objectives got wrong, each fact (by its number) a test, and slow twins of every loss."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from demeanor.core import registry
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model.tensors import Outputs, TokenBatch, branch_lengths
from demeanor.objectives import Samples
from demeanor.objectives._policy_gradient import generalised_advantages, whitened
from demeanor.objectives.mixture import MixtureSpec
from demeanor.training.loop import accumulate
from tests.conftest import each
from tests.objectives.page import metrics
from tests.objectives.tabular import iteration, objective, samples, slope

PACKAGE = "demeanor.objectives"
KINDS = [k for k in registry.known(PACKAGE) if registry.entry(PACKAGE, k).ONLINE is not None]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"kl_coef": 0.1}) for kind in KINDS),
    ("ppo", {"kl_coef": 0.0, "value_clip": None, "whiten": False, "gamma": 0.9, "gae_lambda": 0.95}),
    *(("grpo", {"kl_coef": 0.1, "kl": kl}) for kl in ("k1", "k2", "k2_sequence", "k3", "rho_k3")),
    *(("grpo", {"normaliser": n}) for n in ("grpo", "bnpo")),
    ("grpo", {"normaliser": "dr_grpo", "length": 9, "std": "group"}),
    ("grpo", {"delta": 1.5, "std": "batch"}),
    ("gspo", {"kl_coef": 0.1, "kl": "rho_k3", "clip_low": 0.1, "clip_high": 0.1}),
    ("luspo", {"kl_coef": 0.1, "kl": "k3", "clip_low": 0.1, "clip_high": 0.1}),
    ("sapo", {"kl_coef": 0.1, "kl": "k2"}),
    ("cispo", {"kl_coef": 0.1, "kl": "k3", "cap": 1.1}),
    ("vespo", {"kl_coef": 0.1, "kl": "k3"}),
]
GROUPS = ((3, 1, 2, 4), (2, 2, 1, 5), (1, 3, 3, 2), (4, 1, 1, 2))


def named(kind: str, settings: dict[str, Any]) -> str:
    return "-".join([kind, *(f"{k}={v}" for k, v in settings.items())])


variants = pytest.mark.parametrize(
    ("kind", "settings"), VARIANTS, ids=[named(kind, settings) for kind, settings in VARIANTS]
)


def spec_of(kind: str, **settings: Any) -> Any:
    return objective(kind).Spec(**settings)


def tree(lengths: tuple[int, ...], draw: random.Random) -> Tree:
    branches = tuple(Branch(tuple(draw.randrange(16) for _ in range(n)), (True,) * n) for n in lengths)
    return Tree((1, 2), branches, tuple(range(len(lengths))))


class Drawn:
    """Rewards, sampler, reference and values of some groups, and a policy that has moved from the sampler."""

    def __init__(
        self, groups: tuple[tuple[int, ...], ...] = GROUPS, seed: int = 0, moved: float = 0.3
    ) -> None:
        draw = random.Random(seed)
        self.trees = [tree(lengths, draw) for lengths in groups]
        self.batch = collate(self.trees)
        generator = torch.Generator().manual_seed(seed)
        size = len(self.batch.branch_C)
        normal = lambda n: torch.randn(n, generator=generator, dtype=torch.float64)  # noqa: E731
        self.sampled_C = -torch.rand(size, generator=generator, dtype=torch.float64) * 2 - 0.01
        self.reference_C = self.sampled_C + 0.4 * normal(size)
        self.logprobs_C = self.sampled_C + moved * normal(size)
        self.value_C, self.values_C = normal(size), normal(size)
        self.reward_B = normal(self.batch.num_branches)

    def filled(self, kind: str, spec: Any) -> TokenBatch:
        """The batch with what the objective trains on."""
        return iteration(
            kind, spec, self.batch, self.reward_B, self.sampled_C, self.reference_C, self.value_C
        )[0]


# ---- slow twins ----


def twin_advantages(kind: str, spec: Any, drawn: Drawn) -> tuple[list[list[float]], list[list[float]]]:
    """Advantages and returns of each completion's tokens, by loops."""
    rows = by_branch(drawn.batch, drawn.sampled_C, drawn.reference_C, drawn.value_C)
    rewards, tree_B = drawn.reward_B.tolist(), drawn.batch.tree_B.tolist()
    in_reward = spec.kl_coef if getattr(spec, "kl", "reward") == "reward" else 0.0
    if kind == "ppo":
        advantages, returns = [], []
        for (sampled, reference, values), reward in zip(rows, rewards):
            gains = [-in_reward * (a - b) for a, b in zip(sampled, reference)]
            gains[-1] += reward
            found, carried = [], 0.0
            for t in reversed(range(len(gains))):
                after = values[t + 1] if t + 1 < len(gains) else 0.0
                carried = gains[t] + spec.gamma * after - values[t] + spec.gamma * spec.gae_lambda * carried
                found.insert(0, carried)
            advantages.append(found)
            returns.append([a + v for a, v in zip(found, values)])
        if spec.whiten:
            everyone = [a for row in advantages for a in row]
            mean = sum(everyone) / len(everyone)
            variance = sum((a - mean) ** 2 for a in everyone) / len(everyone)
            advantages = [[(a - mean) / math.sqrt(variance + 1e-8) for a in row] for row in advantages]
        return advantages, returns
    gains = [r - in_reward * sum(a - b for a, b in zip(row[0], row[1])) for row, r in zip(rows, rewards)]
    advantages = []
    for i, (row, gain) in enumerate(zip(rows, gains)):
        group = [g for g, which in zip(gains, tree_B) if which == tree_B[i]]
        others = [g for j, (g, which) in enumerate(zip(gains, tree_B)) if which == tree_B[i] and j != i]
        found_A = gain - (sum(others) / len(others) if kind == "rloo" else sum(group) / len(group))
        if getattr(spec, "std", "none") != "none":
            pool = group if spec.std == "group" else gains
            mean = sum(pool) / len(pool)
            found_A /= math.sqrt(sum((g - mean) ** 2 for g in pool) / (len(pool) - 1)) + 1e-4
        advantages.append([found_A] * len(row[0]))
    return advantages, []


def by_branch(batch: TokenBatch, *columns_C: Tensor) -> list[tuple[list[float], ...]]:
    """Each completion's values of some columns."""
    return [
        tuple(column[batch.branch_C == b].tolist() for column in columns_C) for b in range(batch.num_branches)
    ]


def clip_loss(ratio: float, advantage: float, low: float, high: float, delta: float = math.inf) -> float:
    return -min(min(ratio, delta) * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def kl_of(kind: str, gaps: list[float], t: int, ratio: float) -> float:
    k3 = math.exp(-gaps[t]) - 1 + gaps[t]
    return {
        "k1": gaps[t],
        "k2": gaps[t] ** 2 / 2,
        "k2_sequence": sum(gaps) ** 2 / 2 / len(gaps),
        "k3": k3,
        "rho_k3": ratio * k3,
    }[kind]


def twin_loss(kind: str, spec: Any, drawn: Drawn, batch: TokenBatch, now_C: Tensor, held_C: Tensor) -> float:
    """The summed loss at log-probabilities now_C, its parts without gradient at held_C."""
    assert batch.advantage_C is not None
    total = 0.0
    returns_C = batch.return_C if batch.return_C is not None else torch.zeros_like(now_C)
    rows = by_branch(
        batch, now_C, held_C, drawn.sampled_C, drawn.reference_C, batch.advantage_C, returns_C,
        drawn.value_C, drawn.values_C,
    )  # fmt: skip
    for now, held, sampled, reference, advantage, returns, old, new in rows:
        length, logs = len(now), [a - b for a, b in zip(now, sampled)]
        gaps = [a - b for a, b in zip(now, reference)]
        whole = math.exp(sum(logs))
        mean = math.exp(sum(logs) / length)
        phi = 0.0
        if kind == "vespo":
            log_w = sum(a - b for a, b in zip(held, sampled))
            k = spec.k_negative if advantage[0] < 0 else spec.k_positive
            decay = spec.lambda_negative if advantage[0] < 0 else spec.lambda_positive
            phi = math.exp(log_w) ** k * math.exp(decay * (1 - math.exp(log_w)))
        tokens = []
        for t in range(length):
            A, ratio = advantage[t], math.exp(logs[t])
            if kind == "ppo":
                one = clip_loss(ratio, A, spec.clip_range, spec.clip_range)
                error = (new[t] - returns[t]) ** 2
                if spec.value_clip is not None:
                    near = old[t] + min(max(new[t] - old[t], -spec.value_clip), spec.value_clip)
                    error = max(error, (near - returns[t]) ** 2)
                one += spec.value_coef * 0.5 * error
            elif kind == "rloo":
                one = clip_loss(whole, A, spec.clip_low, spec.clip_high) / length
            elif kind == "grpo":
                one = clip_loss(ratio, A, spec.clip_low, spec.clip_high, spec.delta or math.inf)
            elif kind in ("gspo", "luspo"):
                one = clip_loss(mean, A, spec.clip_low, spec.clip_high)
            elif kind == "cispo":
                one = -min(math.exp(held[t] - sampled[t]), spec.cap) * A * now[t]
            elif kind == "sapo":
                tau = spec.tau_positive if A > 0 else spec.tau_negative
                one = -4 / tau / (1 + math.exp(-tau * (ratio - 1))) * A
            else:
                one = -phi * A * now[t]
            if getattr(spec, "kl", "reward") != "reward" and spec.kl_coef:
                one += spec.kl_coef * kl_of(spec.kl, gaps, t, mean if kind in ("gspo", "luspo") else ratio)
            tokens.append(one)
        means = kind in ("gspo", "sapo") or getattr(spec, "normaliser", "") == "grpo"
        total += sum(tokens) / length if means else sum(tokens)
    return total


def twin_count(kind: str, spec: Any, lengths: list[int]) -> float:
    if kind in ("rloo", "gspo", "luspo", "sapo") or getattr(spec, "normaliser", "") == "grpo":
        return len(lengths)
    if getattr(spec, "normaliser", "") == "dr_grpo":
        return len(lengths) * spec.length
    return sum(lengths)


@variants
def test_an_objective_is_its_loop_over_tokens(kind: str, settings: dict[str, Any]) -> None:
    """Advantages, loss, count, and the slope in every log-probability by central differences of the twin."""
    spec, drawn = spec_of(kind, **settings), Drawn()
    batch = drawn.filled(kind, spec)
    advantages, returns = twin_advantages(kind, spec, drawn)
    assert batch.advantage_C is not None
    flat = lambda rows: torch.tensor([x for row in rows for x in row], dtype=torch.float64)  # noqa: E731
    assert torch.allclose(batch.advantage_C, flat(advantages), atol=1e-10)
    assert (batch.return_C is None) == (kind != "ppo")
    if batch.return_C is not None:
        assert torch.allclose(batch.return_C, flat(returns), atol=1e-10)
    loss, found = slope(kind, spec, batch, drawn.logprobs_C, drawn.values_C)
    at = drawn.logprobs_C
    assert float(loss.total.detach()) == pytest.approx(twin_loss(kind, spec, drawn, batch, at, at), abs=1e-10)
    lengths = branch_lengths(batch)
    online = objective(kind).ONLINE
    assert online is not None
    wanted = twin_count(kind, spec, lengths.tolist())
    assert float(loss.count) == online.count(spec, lengths) == wanted
    differences, h = [], 1e-6
    for i in range(len(at)):
        step = torch.zeros_like(at)
        step[i] = h
        up, down = (twin_loss(kind, spec, drawn, batch, at + sign * step, at) for sign in (1, -1))
        differences.append((up - down) / (2 * h))
    assert torch.allclose(found, torch.tensor(differences, dtype=torch.float64), atol=1e-6)


# ---- 1: one division for the whole optimiser step ----


class Table(nn.Module):
    """A policy and a critic that know only the position."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.logits = nn.Parameter(torch.randn(9, 16, generator=generator, dtype=torch.float64))
        self.values = nn.Parameter(torch.randn(9, generator=generator, dtype=torch.float64))

    def forward(self, batch: TokenBatch) -> Outputs:
        at_C = batch.positions_T[batch.scored_C]
        return Outputs(
            logprobs_C=self.logits.log_softmax(-1)[at_C, batch.targets_C], values_C=self.values[at_C]
        )


COLUMNS = ("sampled_C", "reference_C", "advantage_C", "value_C", "return_C")


def micro_batches(whole: TokenBatch, trees: list[Tree], parts: int) -> list[TokenBatch]:
    """A step's trees in several batches, each with its share of the columns."""
    size, start, found = len(trees) // parts, 0, []
    for p in range(parts):
        batch = collate(trees[p * size : (p + 1) * size])
        end = start + len(batch.branch_C)
        share = {n: x[start:end] for n in COLUMNS if (x := getattr(whole, n)) is not None}
        found.append(batch._replace(**share))
        start = end
    return found


def gradient_of(kind: str, spec: Any, batches: list[TokenBatch]) -> tuple[list[Tensor], float]:
    model = Table()
    done = accumulate(model, model, lambda o, b: objective(kind).loss(spec, o, b), batches, None)
    return [p.grad for p in model.parameters() if p.grad is not None], done.loss


@variants
def test_fact_1_a_step_is_divided_once_whatever_its_micro_batches(
    kind: str, settings: dict[str, Any]
) -> None:
    spec, drawn = spec_of(kind, **settings), Drawn()
    whole = drawn.filled(kind, spec)
    found = {parts: gradient_of(kind, spec, micro_batches(whole, drawn.trees, parts)) for parts in (1, 2, 4)}
    one, loss = found[1]
    assert float(one[0].norm()) > 1e-3
    for parts in (2, 4):
        assert found[parts][1] == pytest.approx(loss, abs=1e-12)
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found[parts][0], one, strict=True))


# ---- what can be left out ----


@variants
def test_completions_without_advantage_can_be_left_out_exactly_where_it_is_declared(
    kind: str, settings: dict[str, Any]
) -> None:
    """Half of the groups have equal rewards; the count is that of all, so the step is the same."""
    spec, drawn = spec_of(kind, **settings), Drawn()
    online = objective(kind).ONLINE
    assert online is not None
    drawn.reward_B[:8] = 0.1
    drawn.reference_C = drawn.sampled_C + 0.2  # a KL in the reward must not give them a contrast of its own
    drawn.reference_C[drawn.batch.branch_C < 8] = drawn.sampled_C[drawn.batch.branch_C < 8]
    whole = drawn.filled(kind, spec)
    lengths_B = branch_lengths(whole)
    parts = micro_batches(whole, drawn.trees, 2)
    sums = []
    for batches in ([whole], [parts[1]]):
        model = Table()
        total = sum((objective(kind).loss(spec, model(b), b).total for b in batches), torch.zeros(()))
        sums.append(torch.autograd.grad(total, model.logits)[0] / online.count(spec, lengths_B))
    same = bool(torch.allclose(sums[0], sums[1], atol=1e-12))
    if not online.critic:  # whitening gives a critic's completions advantages
        assert parts[0].advantage_C is not None
        assert float(parts[0].advantage_C.abs().max()) == 0.0
    assert same == online.skips(spec)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_declared_follows_the_settings(kind: str) -> None:
    online = objective(kind).ONLINE
    assert online is not None
    off, on = spec_of(kind, kl_coef=0.0), spec_of(kind, kl_coef=0.2)
    assert (online.reference(off), online.reference(on)) == (False, True)
    assert (online.beta(off), online.beta(on)) == (0.0, 0.2)
    assert online.skips(on) == (not online.critic)
    assert online.critic == (kind == "ppo") == (not online.groups)
    assert (online.value_init is not None) == online.critic
    if kind not in ("ppo", "rloo"):
        in_loss = spec_of(kind, kl_coef=0.2, kl="k3")
        assert (online.reference(in_loss), online.beta(in_loss), online.skips(in_loss)) == (True, 0.0, False)
        assert online.skips(spec_of(kind, kl_coef=0.0, kl="k3")), "no coefficient, no KL"


# ---- 2, 11: tokens that the policy did not write ----


def with_tools(lengths: tuple[int, ...], draw: random.Random) -> tuple[Tree, Tree]:
    """A tree whose completions hold tools' answers, in the middle and at the end, and the same without them."""
    plain = tree(lengths, draw)
    branches = []
    for branch in plain.branches:
        tokens, trained = list(branch.tokens), list(branch.trained)
        middle = len(tokens) // 2
        tokens[middle:middle], trained[middle:middle] = [7, 7, 7], [False] * 3
        branches.append(Branch((*tokens, 8, 8), (*trained, False, False)))
    return plain._replace(branches=tuple(branches)), plain


@variants
def test_fact_2_tokens_that_are_not_trained_are_in_no_sum_mean_or_kl(
    kind: str, settings: dict[str, Any]
) -> None:
    draw, spec = random.Random(3), spec_of(kind, **settings)
    pairs = [with_tools(lengths, draw) for lengths in GROUPS]
    drawn = Drawn()
    losses = []
    for trees in ([a for a, _ in pairs], [b for _, b in pairs]):
        drawn.trees, drawn.batch = trees, collate(trees)
        losses.append(slope(kind, spec, drawn.filled(kind, spec), drawn.logprobs_C, drawn.values_C))
    (masked, masked_slope), (plain, plain_slope) = losses
    assert len(masked_slope) == len(plain_slope) == sum(map(sum, GROUPS))
    assert float(masked.total.detach()) == float(plain.total.detach())
    assert float(masked.count) == float(plain.count)
    assert torch.equal(masked_slope, plain_slope)


def test_fact_11_gae_carries_value_and_sum_across_tokens_that_are_not_trained() -> None:
    """Against a loop over all tokens with a mask, as verl's: at a masked token nothing is added or discounted."""
    gamma, lam, mask = 0.9, 0.8, [1, 1, 0, 0, 1, 0, 1, 0]
    rewards = [0.1, -0.2, 9.0, 9.0, 0.3, 9.0, 1.5, 9.0]  # 9 and 5: what must never be read
    values = [0.5, 0.4, 5.0, 5.0, -0.3, 5.0, 0.2, 5.0]
    advantage, after, wanted = 0.0, 0.0, []
    for t in reversed(range(len(mask))):
        if mask[t]:
            advantage = rewards[t] + gamma * after - values[t] + gamma * lam * advantage
            after = values[t]
            wanted.insert(0, advantage)
    kept = [t for t in range(len(mask)) if mask[t]]
    pick = lambda row: torch.tensor([row[t] for t in kept], dtype=torch.float64)  # noqa: E731
    found = generalised_advantages(pick(rewards), pick(values), torch.zeros(4, dtype=torch.int64), gamma, lam)
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)


def test_fact_11_the_reward_is_paid_at_the_last_token_that_the_policy_wrote() -> None:
    draw = random.Random(0)
    batch = collate([with_tools((3, 2), draw)[0]])
    zeros = torch.zeros(5, dtype=torch.float64)
    reward_B = torch.tensor([2.0, -1.0], dtype=torch.float64)
    spec = spec_of("ppo", kl_coef=0.0, whiten=False, gamma=0.5)
    filled, _ = iteration("ppo", spec, batch, reward_B, zeros, zeros, zeros)
    assert filled.return_C is not None
    assert filled.return_C.tolist() == [0.5, 1.0, 2.0, -0.5, -1.0]


def test_gae_of_several_completions_is_that_of_each_alone() -> None:
    drawn, parts = Drawn(), []
    branch_C = drawn.batch.branch_C
    for b in range(drawn.batch.num_branches):
        mine = branch_C == b
        zeros = torch.zeros(int(mine.sum()), dtype=torch.int64)
        parts.append(generalised_advantages(drawn.reference_C[mine], drawn.value_C[mine], zeros, 0.9, 0.7))
    together = generalised_advantages(drawn.reference_C, drawn.value_C, branch_C, 0.9, 0.7)
    assert torch.allclose(together, torch.cat(parts), atol=1e-12)


def test_gae_with_lambda_one_is_reward_to_go_minus_value_and_with_zero_the_one_step_error() -> None:
    rewards, values = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([0.5, -0.5, 1.0]).double()
    one = torch.zeros(3, dtype=torch.int64)
    assert generalised_advantages(rewards, values, one, 1.0, 1.0).tolist() == [2.5, 3.5, 1.0]
    assert generalised_advantages(rewards, values, one, 1.0, 0.0).tolist() == [-1.0, 2.5, 1.0]


# ---- 8, 9, 13, 15: rewards of a group ----


def group_of(
    rewards: list[float], kind: str = "grpo", **settings: Any
) -> tuple[list[float], dict[str, float]]:
    """Advantages of completions of one token in one group, and the metrics that counted something."""
    size = len(rewards)
    batch = collate([tree((1,) * size, random.Random(0))])
    zeros = torch.zeros(size, dtype=torch.float64)
    reward_B = torch.tensor(rewards, dtype=torch.float64)
    spec = spec_of(kind, **{"kl_coef": 0.0, **settings})
    _, found = iteration(kind, spec, batch, reward_B, zeros, zeros, zeros)
    means = {name: float(a / b) for name, (a, b) in found.metrics.items() if float(b)}
    return found.advantage_C.tolist(), means


def test_fact_8_a_deviation_makes_two_nearly_equal_rewards_as_different_as_any() -> None:
    near, far = [0.50, 0.51], [-3.0, 4.0]
    assert group_of(near)[0] == pytest.approx([-0.005, 0.005])
    scaled = group_of(near, std="group")[0][1] / group_of(far, std="group")[0][1]
    assert 0.98 < scaled < 1.0
    assert group_of(near)[0][1] / group_of(far)[0][1] == pytest.approx(0.01 / 7)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "ppo"])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -7.7])
@pytest.mark.parametrize("size", [3, 7, 8])
def test_fact_9_equal_rewards_have_exactly_no_advantage_and_are_counted(
    kind: str, reward: float, size: int
) -> None:
    """Exactly: the rounded mean of 0.1, 0.1, 0.1 is not 0.1, and a deviation would blow the difference up."""
    advantages, found = group_of([reward] * size, kind)
    assert advantages == [0.0] * size
    assert found["frac_reward_zero_std"] == 1.0
    assert group_of([reward] * (size - 1) + [reward + 1], kind)[1]["frac_reward_zero_std"] == 0.0


def test_fact_9_equal_rewards_stay_without_advantage_when_they_are_divided_by_a_deviation() -> None:
    assert group_of([0.1] * 3, std="group")[0] == [0.0] * 3
    assert group_of([0.1] * 3, std="batch")[0] == [0.0] * 3


def test_fact_9_two_rewards_that_cancel_teach_nothing_and_are_counted() -> None:
    correct, short = [1.0, 0.0, 1.0], [-1.0, 0.0, -1.0]
    advantages, found = group_of([a + b for a, b in zip(correct, short)])
    assert advantages == [0.0] * 3
    assert found["frac_reward_zero_std"] == 1.0


def test_fact_13_a_completion_that_is_left_out_is_in_no_baseline_sum_or_count() -> None:
    """`truncated: mask` takes it out of the samples; its tokens are untrained in the tree."""
    drawn = random.Random(0)
    kept = tree((2, 3, 1), drawn)
    cut = kept._replace(branches=(*kept.branches, Branch((4, 4), (False, False))), ranks=(0, 1, 2, 3))
    found = []
    for kind in each(k for k in KINDS if k != "ppo"):
        spec, logprobs_C = spec_of(kind, kl_coef=0.0), -torch.arange(1, 7, dtype=torch.float64) / 3
        reward_B = torch.tensor([1.0, 0.0, 0.4], dtype=torch.float64)
        filled, _ = iteration(kind, spec, collate([kept]), reward_B, logprobs_C)
        loss, slope_C = slope(kind, spec, filled, logprobs_C + 0.1)
        masked = collate([cut])._replace(sampled_C=logprobs_C, advantage_C=filled.advantage_C)
        other, other_C = slope(kind, spec, masked, logprobs_C + 0.1)
        found.append(torch.equal(slope_C, other_C) and float(loss.count) == float(other.count))
    assert found == [True] * 7


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "ppo"])
def test_fact_15_a_group_of_one_has_advantage_zero_never_its_raw_reward(kind: str) -> None:
    online = objective(kind).ONLINE
    assert online is not None
    assert online.groups, "the loop refuses rollouts.count: 1"
    for settings in ({}, {"std": "group"}, {"std": "batch"}):
        if kind == "rloo" and settings:
            continue
        assert group_of([3.0], kind, **settings)[0] == [0.0]
    assert "frac_reward_zero_std" not in group_of([3.0], kind)[1], "it is no group of equal rewards"


def test_fact_15_a_group_that_lost_members_is_centred_on_the_others() -> None:
    """Groups of 3, 1 and 2 survivors; the ids of groups that lost everybody are missing."""
    reward_B = torch.tensor([1.0, 2.0, 6.0, 9.0, 4.0, 8.0], dtype=torch.float64)
    group_B, branch_C = torch.tensor([0, 0, 0, 2, 5, 5]), torch.arange(6)
    zeros = torch.zeros(6, dtype=torch.float64)
    drawn = Samples(reward_B, group_B, branch_C, zeros)
    wanted = {"rloo": [-3.0, -1.5, 4.5, 0.0, -4.0, 4.0], "grpo": [-2.0, -1.0, 3.0, 0.0, -2.0, 2.0]}
    for kind, numbers in each(wanted.items()):
        online = objective(kind).ONLINE
        assert online is not None
        found = online.advantages(spec_of(kind, kl_coef=0.0), drawn)
        assert found.advantage_C.tolist() == pytest.approx(numbers)
        assert [float(x) for x in found.metrics["frac_reward_zero_std"]] == [0.0, 2.0]


def test_ppo_learns_from_one_completion_a_prompt() -> None:
    advantages, _ = group_of([3.0], "ppo", whiten=False)
    assert advantages == [3.0]


# ---- 12: whitening ----


def test_fact_12_whitening_is_over_all_trained_tokens_of_an_iteration_at_once() -> None:
    drawn = Drawn()
    plain, white = (drawn.filled("ppo", spec_of("ppo", whiten=w)) for w in (False, True))
    assert plain.advantage_C is not None
    assert white.advantage_C is not None
    assert float(white.advantage_C.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(white.advantage_C.var(correction=0)) == pytest.approx(1.0, abs=1e-6)
    parts = torch.cat([whitened(part) for part in plain.advantage_C.split(10)])
    assert float((parts - white.advantage_C).abs().max()) > 0.1, "in minibatches it would be something else"
    assert plain.return_C is not None
    assert white.return_C is not None
    assert torch.equal(plain.return_C, white.return_C), "the critic learns returns, not whitened ones"


def test_whitening_equal_advantages_gives_zeros() -> None:
    assert whitened(torch.full((4,), 0.25)).tolist() == [0.0] * 4
    assert whitened(torch.tensor([3.0])).tolist() == [0.0]


# ---- the KL in the reward, and its controller ----


def test_the_controllers_coefficient_is_used_not_the_settings() -> None:
    drawn = Drawn()
    for kind in ("ppo", "rloo", "grpo"):
        online = objective(kind).ONLINE
        assert online is not None
        found = [
            online.advantages(
                spec_of(kind, kl_coef=0.1),
                samples(
                    drawn.batch, drawn.reward_B, drawn.sampled_C, drawn.reference_C,
                    value_C=drawn.value_C, beta=beta,
                ),
            ).advantage_C
            for beta in (0.1, 0.5)
        ]  # fmt: skip
        assert float((found[0] - found[1]).abs().max()) > 0.01


def test_the_kl_metric_is_nats_a_completion() -> None:
    drawn = Drawn()
    for kind in each(KINDS):
        spec = spec_of(kind, kl_coef=0.1)
        _, found = iteration(
            kind, spec, drawn.batch, drawn.reward_B, drawn.sampled_C, drawn.reference_C, drawn.value_C
        )
        total, number = found.metrics["kl"]
        assert float(number) == 16
        assert float(total) == pytest.approx(float((drawn.sampled_C - drawn.reference_C).sum()))


def test_the_kl_controller_moves_towards_its_target_by_at_most_a_fifth() -> None:
    """Ziegler et al. 2019: x (1 + clip(kl/target - 1, +-.2) n / horizon)."""
    online = objective("ppo").ONLINE
    assert online is not None
    spec = spec_of("ppo", kl_target=6.0, kl_horizon=1000)
    assert online.adapt(spec, 0.1, 6.0, 100) == 0.1
    assert online.adapt(spec, 0.1, 6.6, 100) == pytest.approx(0.1 * 1.01)
    assert online.adapt(spec, 0.1, 60.0, 100) == pytest.approx(0.1 * 1.02)
    assert online.adapt(spec, 0.1, -3.0, 1000) == pytest.approx(0.1 * 0.8)
    assert online.adapt(spec_of("ppo"), 0.1, 60.0, 100) == 0.1, "no target: fixed"


def test_a_perfect_critic_explains_all_variance_and_a_constant_one_none() -> None:
    drawn = Drawn()
    spec = spec_of("ppo", kl_coef=0.0)
    first, _ = iteration("ppo", spec, drawn.batch, drawn.reward_B, drawn.sampled_C, None, 0 * drawn.value_C)
    explained = []
    for value_C in (first.return_C, 0 * drawn.value_C + 3):
        _, found = iteration("ppo", spec, drawn.batch, drawn.reward_B, drawn.sampled_C, None, value_C)
        explained.append(float(found.metrics["explained_variance"][0]))
    assert explained == [pytest.approx(1.0), pytest.approx(0.0)]


# ---- settings ----


def test_dr_grpo_divides_by_a_constant_that_the_rollouts_give_if_the_settings_do_not() -> None:
    online = objective("grpo").ONLINE
    assert online is not None
    lengths = torch.tensor([3, 5, 0])
    for settings, wanted in (({}, 64), ({"length": 10}, 10)):
        spec = online.resolved(spec_of("grpo", normaliser="dr_grpo", **settings), 64)
        assert online.count(spec, lengths) == 2 * wanted
    assert online.resolved(spec_of("grpo"), 64) == spec_of("grpo")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"length": 10}, "normaliser: dapo"),
        ({"delta": 1.2}, "1 + clip_high"),
        ({"normaliser": "mean"}, "dr_grpo"),
        ({"kl": "k4"}, "rho_k3"),
        ({"kl_coef": -1.0}, "greater than or equal to 0"),
    ],
)
def test_settings_of_grpo_that_mean_nothing_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as error:
        spec_of("grpo", **settings)
    assert says in str(error.value)


def test_a_coefficient_of_zero_cannot_be_steered() -> None:
    with pytest.raises(ValidationError, match="give kl_coef a first value"):
        spec_of("ppo", kl_coef=0.0, kl_target=6.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_refuses_objectives_on_the_policys_own_completions(kind: str) -> None:
    with pytest.raises(ValidationError, match=f"{kind} cannot be a part"):
        MixtureSpec(parts=({"kind": kind},))


@variants
def test_what_an_online_objective_logs_stands_on_its_page(kind: str, settings: dict[str, Any]) -> None:
    spec, drawn = spec_of(kind, **settings), Drawn()
    batch, found = iteration(
        kind, spec, drawn.batch, drawn.reward_B, drawn.sampled_C, drawn.reference_C, drawn.value_C
    )
    outputs = Outputs(logprobs_C=drawn.logprobs_C, values_C=drawn.values_C, entropy_C=drawn.sampled_C.abs())
    logged = {**found.metrics, **objective(kind).loss(spec, outputs, batch).metrics}
    assert not any(total.requires_grad for total, _ in each(logged.values()))
    page = metrics(kind)
    assert [name for name in logged if f"`{name}`" not in page] == []


@variants
def test_single_precision_and_no_completions_are_finite(kind: str, settings: dict[str, Any]) -> None:
    spec, drawn = spec_of(kind, **settings), Drawn()
    batch = drawn.filled(kind, spec)
    single = batch._replace(**{n: x.float() for n in COLUMNS if (x := getattr(batch, n)) is not None})
    loss, slope_C = slope(kind, spec, single, drawn.logprobs_C.float(), drawn.values_C.float())
    double, wanted_C = slope(kind, spec, batch, drawn.logprobs_C, drawn.values_C)
    assert float(loss.total.detach()) == pytest.approx(float(double.total.detach()), abs=1e-4)
    assert torch.allclose(slope_C.double(), wanted_C, atol=1e-5)
    nothing = {n: x[:0] for n in COLUMNS if (x := getattr(batch, n)) is not None}
    empty = collate([])._replace(**nothing)
    none, _ = slope(kind, spec, empty, drawn.logprobs_C[:0], drawn.values_C[:0])
    assert (float(none.total.detach()), float(none.count)) == (0.0, 0.0)


@variants
@pytest.mark.parametrize("far", [-120.0, 120.0])
def test_a_policy_that_ran_far_away_has_a_finite_gradient(
    kind: str, settings: dict[str, Any], far: float
) -> None:
    """Ratios of exp(120) are infinite in single precision; also where the advantage is 0."""
    spec, drawn = spec_of(kind, **settings), Drawn()
    drawn.reward_B[:8] = 1.0
    batch = drawn.filled(kind, spec)
    single = batch._replace(**{n: x.float() for n in COLUMNS if (x := getattr(batch, n)) is not None})
    loss, slope_C = slope(kind, spec, single, drawn.sampled_C.float() + far, drawn.values_C.float())
    assert math.isfinite(float(loss.total.detach()))
    assert bool(slope_C.isfinite().all())
    assert all(math.isfinite(float(total)) for total, _ in each(loss.metrics.values()))

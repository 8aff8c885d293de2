"""C7: the alignment tax of a shared low-rank softmax. PPO-ptx's remedy (a pretraining term) against a stronger KL and against merging.

Answers to prompts and next tokens of pretraining contexts share their output vectors, so reward moves both. The start predicts the
pretraining text perfectly; the tax is the KL from it on pretraining contexts (nats a token). The gradient of the reward is exact: `rloo`
on all answers, each weighted by its probability. Source: Ouyang et al. 2022 (2203.02155), equation 2 and figures 33 and 34; merging: Lin et
al. 2023 (2309.06256).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from demeanor.core import registry
from demeanor.evaluation.profile import ece
from demeanor.model.tensors import Outputs
from tests.experiments.findings import Finding, failed, interval
from tests.experiments.tabular import flat

rloo, sft = (registry.entry("demeanor.objectives", kind) for kind in ("rloo", "sft"))
PROMPTS, CONTEXTS, TOKENS, RANK = 6, 12, 10, 6
STEPS, LR, SEEDS = 200, 0.1, 3
BETA, PTX = 0.2, 0.3
STRONGER = (4, 10)  # times BETA


class Softmax(NamedTuple):
    """Logits of a row are its vector times the shared output vectors: the first PROMPTS rows are prompts, the others contexts."""

    rows_XR: Tensor
    output_RV: Tensor

    def logprobs(self) -> Tensor:
        return (self.rows_XR @ self.output_RV).log_softmax(1)


class Trained(NamedTuple):
    """A policy after training with its mean reward and its tax."""

    policy: Softmax
    reward: float
    tax: float


def start(seed: int) -> tuple[Softmax, Tensor]:
    """A random policy and the rewards of its answers, rewards_XV."""
    drawn = torch.Generator().manual_seed(seed)
    rows = torch.randn(PROMPTS + CONTEXTS, RANK, generator=drawn, dtype=torch.float64)
    output = torch.randn(RANK, TOKENS, generator=drawn, dtype=torch.float64)
    return Softmax(rows, output), torch.randn(PROMPTS, TOKENS, generator=drawn, dtype=torch.float64)


def measured(policy: Softmax, before: Softmax, rewards_XV: Tensor) -> Trained:
    """Mean reward over prompts and mean KL(before || now) over contexts."""
    now, old = policy.logprobs(), before.logprobs()
    reward = float((now[:PROMPTS].exp() * rewards_XV).sum() / PROMPTS)
    tax = float((old[PROMPTS:].exp() * (old[PROMPTS:] - now[PROMPTS:])).sum() / CONTEXTS)
    return Trained(policy, reward, tax)


def train(before: Softmax, rewards_XV: Tensor, seed: int, *, beta: float, ptx: float = 0.0) -> Trained:
    """Maximise reward - beta KL + ptx x log-likelihood of drawn pretraining tokens."""
    drawn = torch.Generator().manual_seed(100 + seed)
    policy = Softmax(*(x.clone().requires_grad_() for x in before))
    optimiser = torch.optim.Adam([*policy], lr=LR)
    answers = torch.arange(PROMPTS * TOKENS)
    batch = flat(answers % TOKENS, answers // TOKENS, torch.zeros_like(answers))
    old = before.logprobs()
    for _ in range(STEPS):
        now = policy.logprobs()
        seen = now[:PROMPTS].detach()
        value = rewards_XV - beta * (seen - old[:PROMPTS])
        advantage = seen.exp() * (value - (seen.exp() * value).sum(1, keepdim=True))
        there = batch._replace(sampled_C=seen.reshape(-1), advantage_C=advantage.reshape(-1))
        loss = rloo.loss(rloo.Spec(), Outputs(logprobs_C=now[:PROMPTS].reshape(-1)), there).total / PROMPTS
        if ptx:
            tokens = torch.multinomial(old[PROMPTS:].exp(), 8, replacement=True, generator=drawn)
            text = Outputs(logprobs_C=now[PROMPTS:].gather(1, tokens).reshape(-1))
            of_text = sft.loss(sft.Spec(), text, flat(tokens.reshape(-1), NO_TREES, NO_TREES))
            loss = loss + ptx * of_text.total / CONTEXTS
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return measured(Softmax(*(x.detach() for x in policy)), before, rewards_XV)


NO_TREES = torch.zeros(0, dtype=torch.long)


def between(before: Softmax, after: Softmax, share: float) -> Softmax:
    """Linear merging, as `merge` of model/merge.py with method linear does it to each tensor."""
    return Softmax(*(torch.lerp(a, b, share) for a, b in zip(before, after)))


def miscalibration(policy: Softmax, truth: Softmax, seed: int, n: int = 4000) -> float:
    """ECE of the most likely token of pretraining contexts."""
    drawn = torch.Generator().manual_seed(seed)
    context = torch.randint(CONTEXTS, (n,), generator=drawn)
    token = torch.multinomial(truth.logprobs()[PROMPTS:].exp()[context], 1, generator=drawn)[:, 0]
    confidence, guess = policy.logprobs()[PROMPTS:].exp().max(1)
    return ece(confidence[context].numpy(), (guess[context] == token).double().numpy())


class Run(NamedTuple):
    """One seed: shares of the gain kept and of the tax left against plain RL, by remedy; and ECE before, after and merged."""

    kept: dict[str, float]
    left: dict[str, float]
    ece: tuple[float, float, float]


def run(seed: int) -> Run:
    before, rewards = start(seed)
    base = measured(before, before, rewards)
    plain = train(before, rewards, seed, beta=BETA)
    merged = measured(between(before, plain.policy, 0.5), before, rewards)
    found = {
        "ptx": train(before, rewards, seed, beta=BETA, ptx=PTX),
        **{f"kl x {times}": train(before, rewards, seed, beta=BETA * times) for times in STRONGER},
        "merge": merged,
    }
    gain = plain.reward - base.reward
    return Run(
        {name: (it.reward - base.reward) / gain for name, it in found.items()},
        {name: it.tax / plain.tax for name, it in found.items()},
        (
            miscalibration(before, before, seed),
            miscalibration(plain.policy, before, seed),
            miscalibration(merged.policy, before, seed),
        ),
    )


@cache
def findings() -> tuple[Finding, ...]:
    runs = [run(seed) for seed in range(SEEDS)]

    def of(values: list[float], claim: str, theory: str, least: float = -1e9, most: float = 1e9) -> Finding:
        mean, low, high = interval(values)
        return Finding(
            claim,
            theory,
            mean,
            least <= mean <= most and least <= min(values) and max(values) <= most,
            low,
            high,
            seeds=SEEDS,
        )

    kept, left = ([getattr(r, side) for r in runs] for side in ("kept", "left"))
    return (
        of([k["ptx"] for k in kept], "ptx: share of the reward gain kept", ">= 0.95", least=0.95),
        of([t["ptx"] for t in left], "ptx: share of the tax left", "<= 0.2", most=0.2),
        *(
            finding
            for times in STRONGER
            for finding in (
                of(
                    [k[f"kl x {times}"] for k in kept],
                    f"KL x {times}: share of the reward gain kept",
                    "<= 0.7",
                    most=0.7,
                ),
                of(
                    [
                        k["ptx"] - t["ptx"] - k[f"kl x {times}"] + t[f"kl x {times}"]
                        for k, t in zip(kept, left)
                    ],
                    f"ptx minus KL x {times}, in gain kept minus tax left",
                    "> 0",
                    least=0.0,
                ),
            )
        ),
        of(
            [k["merge"] - t["merge"] for k, t in zip(kept, left)],
            "merging half way: gain kept minus tax left",
            "> 0: better than a linear trade",
            least=0.0,
        ),
        of(
            [k["ptx"] - t["ptx"] - k["merge"] + t["merge"] for k, t in zip(kept, left)],
            "ptx minus merging half way, in gain kept minus tax left",
            "> 0",
            least=0.0,
        ),
        of(
            [r.ece[1] - r.ece[0] for r in runs],
            "ECE on pretraining text after RL minus before",
            "> 0",
            least=0.0,
        ),
        of([r.ece[2] - r.ece[1] for r in runs], "ECE merged half way minus after RL", "< 0", most=0.0),
    )


def test_a_pretraining_term_removes_the_tax_that_a_stronger_kl_does_not() -> None:
    assert failed(findings()) == []

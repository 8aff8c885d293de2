"""C7 in the language model: PPO-ptx and RLOO-ptx keep what was learned from text; a larger KL coefficient and merging pay for it in reward.

The base learned facts (a key, then a value drawn from the key's own distribution) beside reviews. Reward is the sentiment of reviews; the tax
is the KL from the true distribution of values to the model's (nats), above the base's own. `make experiments`, about 5 minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from demeanor.data.trees import Branch, Tree, collate
from demeanor.evaluation.profile import ece
from demeanor.model import checkpoints
from demeanor.model.llama import Llama
from demeanor.model.merge import merge
from tests.experiments.charts import Series, plane, write
from tests.experiments.findings import FIGURES, Finding, failed, interval, publish
from tests.experiments.tiny_lm import LENGTH, SHAPE, VOCABULARY, draw, offline, online, rows, sentiment, true

FACT, KEYS, VALUES = VOCABULARY, 20, 20
WORDS = VOCABULARY + 1 + KEYS + VALUES  # 53
SEEDS, STEPS, COUNT, LR, BETA = 3, 60, 16, 3e-3, 0.1
PTX = {"data": [{"source": "memory"}], "weight": 1.0, "batch_rows": 64}
STRONGER = (5, 10)


def truth(seed: int) -> Tensor:
    """The distribution of values of each key: KEYS x VALUES, three or so likely ones."""
    drawn = torch.Generator().manual_seed(900 + seed)
    return (2.0 * torch.randn(KEYS, VALUES, generator=drawn)).softmax(1)


def facts(n: int, seed: int, of: Tensor) -> list[Tree]:
    """Rows of text: FACT, a key, a value."""
    drawn = torch.Generator().manual_seed(seed)
    key = torch.randint(KEYS, (n,), generator=drawn)
    value = torch.multinomial(of[key], 1, generator=drawn)[:, 0]
    first = VOCABULARY + 1
    return [
        Tree((FACT, first + k), (Branch((first + KEYS + v,), (True,)),))
        for k, v in zip(key.tolist(), value.tolist())
    ]


def learned_text(seed: int) -> Llama:
    """The base, on reviews and facts."""
    both = [tree for pair in zip(rows(4000, seed), facts(4000, seed, truth(seed))) for tree in pair]
    found = offline(checkpoints.create(SHAPE, WORDS, seed), "sft", both, lr=5e-3, epochs=3, seed=seed)
    assert isinstance(found, Llama)
    return found


@torch.no_grad()
def values(model: Llama) -> Tensor:
    """Log-probabilities of all tokens after every key: KEYS x WORDS."""
    first = VOCABULARY + 1
    batch = collate([Tree((FACT, first + k), (Branch((first + KEYS,), (True,)),)) for k in range(KEYS)])
    hidden = model.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.scored_C)
    return (hidden @ model.head().T).double().log_softmax(-1)


class Measured(NamedTuple):
    """A policy: mean sentiment of drawn reviews, KL(truth || model) of values (nats), and ECE of its likeliest value."""

    gold: float
    kl: float
    ece: float


def measured(model: Llama, seed: int, of: Tensor) -> Measured:
    gold = float(np.mean([sentiment(r.tokens) for group in draw(model, 200, seed) for r in group]))
    first = VOCABULARY + 1 + KEYS
    found = values(model)
    p = of.double()
    drawn = torch.Generator().manual_seed(seed)
    key = torch.arange(KEYS).repeat_interleave(200)
    value = torch.multinomial(of[key], 1, generator=drawn)[:, 0]
    confidence, guess = found.exp().max(1)
    right = (guess[key] == first + value).double()
    return Measured(
        gold,
        float((p * (p.log() - found[:, first:])).sum(1).mean()),
        ece(confidence[key].numpy(), right.numpy()),
    )


def halfway(a: Llama, b: Llama) -> Llama:
    """Both averaged, by the merge of `kind: merge`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, model in (("a", a), ("b", b)):
            checkpoints.save(model, folder / part)
        merge([folder / "a", folder / "b"], [0.5, 0.5], folder / "out")
        return checkpoints.load(folder / "out")


def run(seed: int) -> dict[str, Measured]:
    """Every policy of one seed."""
    of, start = truth(seed), learned_text(seed)
    text = facts(4000, 50 + seed, of)
    common = {"steps": STEPS, "count": COUNT, "lr": LR, "seed": seed}
    found = {"base": start}
    for kind, more in (("rloo", {}), ("ppo", {"value_init": "zero"})):
        found[kind] = online(start, kind, true(), kl_coef=BETA, **common, **more)  # type: ignore[arg-type]
        found[f"{kind}-ptx"] = online(
            start, kind, true(), kl_coef=BETA, ptx=text, **{**common, "ptx_spec": PTX}, **more
        )  # type: ignore[arg-type]
    for times in STRONGER:
        found[f"rloo, KL x {times}"] = online(start, "rloo", true(), kl_coef=BETA * times, **common)  # type: ignore[arg-type]
    found["rloo merged with base"] = halfway(start, found["rloo"])
    return {name: measured(model, seed, of) for name, model in found.items()}


def claims(runs: Sequence[Mapping[str, Measured]]) -> list[Finding]:
    """What the policies of all seeds say; a claim holds if it holds in every seed."""
    told = []

    def claim(
        text: str, theory: str, found: Sequence[float], holds: Callable[[float], bool] | None = None
    ) -> None:
        mean, low, high = interval(found)
        kept = holds is None or all(map(holds, found))
        told.append(Finding(text, theory, mean, kept, low, high, n=KEYS, seeds=len(runs)))

    def kept(name: str, plain: str) -> list[float]:
        return [(r[name].gold - r["base"].gold) / (r[plain].gold - r["base"].gold) for r in runs]

    def left(name: str, plain: str) -> list[float]:
        return [(r[name].kl - r["base"].kl) / (r[plain].kl - r["base"].kl) for r in runs]

    for kind in ("rloo", "ppo"):
        tax = [r[kind].kl - r["base"].kl for r in runs]
        claim(f"tax of {kind} (nats a value)", "> 0", tax, lambda x: x > 0)
        claim(
            f"{kind}-ptx: share of the reward gain kept",
            ">= 0.95",
            kept(f"{kind}-ptx", kind),
            lambda x: x >= 0.95,
        )
        claim(f"{kind}-ptx: share of the tax left", "<= 0.2", left(f"{kind}-ptx", kind), lambda x: x <= 0.2)
    for times in STRONGER:
        name = f"rloo, KL x {times}"
        more = [r[name].kl - r["rloo-ptx"].kl for r in runs]
        claim(
            f"KL x {times}: share of the reward gain kept", "< 0.95", kept(name, "rloo"), lambda x: x < 0.95
        )
        claim(f"KL x {times}: tax minus that of rloo-ptx (nats a value)", "> 0", more, lambda x: x > 0)
    merged = "rloo merged with base"
    claim("merging half way: share of the reward gain kept", "reported", kept(merged, "rloo"))
    claim("merging half way: share of the tax left", "reported", left(merged, "rloo"))
    better = [k - t for k, t in zip(kept(merged, "rloo"), left(merged, "rloo"))]
    claim(
        "merging half way: gain kept minus tax left",
        "> 0: better than a linear trade",
        better,
        lambda x: x > 0,
    )
    claim(
        "ECE on facts, rloo minus base",
        "reported; > 0 on tables",
        [r["rloo"].ece - r["base"].ece for r in runs],
    )
    claim(
        "ECE on facts, merged minus rloo",
        "reported; < 0 on tables",
        [r[merged].ece - r["rloo"].ece for r in runs],
    )
    return told


def publish_all(runs: Sequence[Mapping[str, Measured]]) -> list[Finding]:
    """Print the table, write JSON and the picture."""
    told = claims(runs)
    series = {name: Series([(r[name].kl - r["base"].kl, r[name].gold) for r in runs]) for name in runs[0]}
    about = "Reward against alignment tax of plain online RL, ptx, larger KL coefficients and merging"
    write(
        FIGURES / "tax.svg",
        plane(series, "tax: KL on facts above the base's (nats a value)", "gold reward", about),
    )
    publish("c07-lm", told, runs=runs)
    return told


@pytest.mark.experiment
def test_ptx_keeps_the_gain_and_removes_the_tax_and_a_larger_kl_coefficient_does_not() -> None:
    assert failed(publish_all([run(seed) for seed in range(SEEDS)])) == []


def test_a_merge_half_way_is_the_mean_of_both() -> None:
    a, b = (checkpoints.create(SHAPE, WORDS, seed) for seed in (0, 1))
    found = halfway(a, b)
    for (name, mean), left, right in zip(found.named_parameters(), a.parameters(), b.parameters()):
        assert torch.allclose(mean, (left + right) / 2, atol=1e-6), name
    assert LENGTH == 4

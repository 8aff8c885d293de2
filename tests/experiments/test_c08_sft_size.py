"""C8: a few examples teach the format, no number of them teaches what the base does not know.

The base read facts (FACT key value) as text. Fine-tuning shows N answers (ASK key -> OPEN value CLOSE) on half of the keys; format and
knowledge are measured on the other half, as exact probabilities of the answer. `make experiments`, about 2 minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import checkpoints
from demeanor.model.llama import Llama
from demeanor.stack.schema import ModelShape
from demeanor.training.online import policy_of
from tests.experiments.charts import Series, plane, write
from tests.experiments.findings import FIGURES, Finding, failed, interval, publish
from tests.experiments.tiny_lm import offline

ASK, FACT, OPEN, CLOSE = 0, 1, 2, 3
KEYS, VALUES = 60, 20
FIRST_KEY, FIRST_VALUE = 4, 4 + KEYS
WORDS = 4 + KEYS + VALUES  # 84
SHAPE = ModelShape(layers=2, width=48, heads=2, context=16)
SIZES = (0, 3, 10, 30, 100, 300, 1000)
SEEDS, KNOWN = 3, 0.6  # the base read the facts of this share of the keys


def truth(seed: int) -> list[int]:
    """The value of every key."""
    return np.random.default_rng(seed).integers(VALUES, size=KEYS).tolist()


def base(seed: int) -> Llama:
    """A base that read KNOWN of the facts; of the other keys it read wrong values, so that it knows how to answer."""
    rng, value = np.random.default_rng(seed + 1), truth(seed)
    read = [v if rng.random() < KNOWN else int(rng.integers(VALUES)) for v in value]
    trees = [
        Tree((), (Branch((FACT, FIRST_KEY + k, FIRST_VALUE + read[k]), (False, True, True)),))
        for k in rng.integers(KEYS, size=4000).tolist()
    ]
    found = offline(checkpoints.create(SHAPE, WORDS, seed), "sft", trees, lr=5e-3, epochs=2, seed=seed)
    assert isinstance(found, Llama)
    return found


def asked(keys: Sequence[int], value: Sequence[int]) -> list[Tree]:
    """Answers in the format: OPEN value CLOSE."""
    return [
        Tree((ASK, FIRST_KEY + k), (Branch((OPEN, FIRST_VALUE + value[k], CLOSE), (True, True, True)),))
        for k in keys
    ]


class Answers(NamedTuple):
    """On held-out keys: probability of an answer of the format (any value), share of right values, and nats of the right answer."""

    format: float
    right: float
    nll: float


@torch.no_grad()
def answers(model: nn.Module, keys: Sequence[int], value: Sequence[int]) -> Answers:
    policy = policy_of(model)
    assert isinstance(policy, Llama)

    def after(prompts: Sequence[tuple[int, ...]]) -> Tensor:
        batch = collate([Tree(p, (Branch((0,), (True,)),)) for p in prompts])
        hidden = policy.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.scored_C)
        return (hidden @ policy.head().T).double().log_softmax(-1)

    values = slice(FIRST_VALUE, FIRST_VALUE + VALUES)
    opened = after([(ASK, FIRST_KEY + k) for k in keys])[:, OPEN]
    middle = after([(ASK, FIRST_KEY + k, OPEN) for k in keys])[:, values]
    each = [(ASK, FIRST_KEY + k, OPEN, FIRST_VALUE + v) for k in keys for v in range(VALUES)]
    closed = after(each)[:, CLOSE].reshape(len(keys), VALUES)
    whole = opened[:, None] + middle + closed  # keys x values: the whole answer
    right = torch.tensor([value[k] for k in keys])
    said = whole.gather(1, right[:, None])[:, 0]
    return Answers(
        float(whole.exp().sum(1).mean()),
        float((middle.argmax(1) == right).double().mean()),
        float(-said.mean()),
    )


@torch.no_grad()
def said_as_text(model: Llama, keys: Sequence[int], value: Sequence[int]) -> float:
    """Share of keys whose value is the likeliest after FACT key."""
    batch = collate([Tree((FACT, FIRST_KEY + k), (Branch((0,), (True,)),)) for k in keys])
    hidden = model.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.scored_C)
    best = (hidden @ model.head().T)[:, FIRST_VALUE:].argmax(1).tolist()
    return float(np.mean([b == value[k] for b, k in zip(best, keys)]))


class Run(NamedTuple):
    """One seed: held-out answers by N after three epochs, and by fifth of ten epochs on 60 examples."""

    sizes: dict[int, Answers]
    long: list[Answers]
    as_text: float  # share of held-out keys whose value the base writes after FACT key


def run(seed: int) -> Run:
    start, value = base(seed), truth(seed)
    rng = np.random.default_rng(seed + 2)
    order = rng.permutation(KEYS).tolist()
    shown, held = order[: KEYS // 2], order[KEYS // 2 :]
    sizes = {0: answers(start, held, value)}
    for n in SIZES[1:]:
        keys = [shown[i % len(shown)] for i in range(n)]
        model = offline(start, "sft", asked(keys, value), lr=5e-3, epochs=3, batch_rows=4, seed=seed)
        sizes[n] = answers(model, held, value)
    seen: list[Answers] = []

    def probe(model: nn.Module, step: int) -> Mapping[str, float]:
        seen.append(answers(model, held, value))
        return {}

    offline(start, "sft", asked(shown * 2, value), lr=5e-3, epochs=20, batch_rows=4, seed=seed, probe=probe)
    return Run(sizes, seen, said_as_text(start, held, value))


@pytest.mark.experiment
def test_format_saturates_early_and_knowledge_does_not_grow() -> None:
    runs = [run(seed) for seed in range(SEEDS)]
    told = []

    def claim(
        text: str,
        theory: str,
        found: Sequence[float],
        holds: Callable[[float, float, float], bool],
        places: int = 3,
    ) -> None:
        mean, low, high = interval(found)
        told.append(
            Finding(
                text, theory, mean, holds(mean, low, high), low, high, n=KEYS // 2, seeds=SEEDS, places=places
            )
        )

    last = SIZES[-1]
    claim(
        "format of held-out answers at N = 0",
        "< 0.05",
        [r.sizes[0].format for r in runs],
        lambda m, low, high: m < 0.05,
    )
    claim(
        f"format at N = {last}", "> 0.95", [r.sizes[last].format for r in runs], lambda m, low, high: m > 0.95
    )
    n90 = [next(n for n in SIZES if r.sizes[n].format >= 0.9 * r.sizes[last].format) for r in runs]
    claim(
        "N at which the format reaches 90% of its end",
        "<= 300, of 1,000",
        [float(n) for n in n90],
        lambda m, low, high: max(n90) <= 300,
        places=0,
    )
    gains = [r.sizes[last].right - r.sizes[0].right for r in runs]
    claim(
        f"right values on held-out keys, N = {last} minus N = 0",
        "<= 0 within noise",
        gains,
        lambda m, low, high: low <= 0,
    )
    claim(
        "right values on held-out keys, best of all N, minus what the base says of them as text",
        "<= 0 within noise: nothing is learned that it did not know",
        [max(a.right for a in r.sizes.values()) - r.as_text for r in runs],
        lambda m, low, high: low <= 0,
    )
    ends = [(min(a.nll for a in r.long[1:-1]), r.long[-1], r.long[1]) for r in runs]
    claim(
        "20 epochs on 60 examples: held-out nats of the right answer, end minus least",
        "> 0 in every seed: it overfits",
        [e.nll - least for least, e, _ in ends],
        lambda m, low, high: min(e.nll - least for least, e, _ in ends) > 0,
    )
    claim(
        "20 epochs: format at the end minus at the first fifth",
        ">= 0: the score does not fall with it",
        [e.format - first.format for _, e, first in ends],
        lambda m, low, high: m >= -0.01,
    )
    x = [float(np.log10(max(n, 1))) for n in SIZES]
    series = {
        "format": Series(
            [(a, float(np.mean([r.sizes[n].format for r in runs]))) for a, n in zip(x, SIZES)],
            True,
            [interval([r.sizes[n].format for r in runs])[1:] for n in SIZES],
        ),
        "knowledge": Series(
            [(a, float(np.mean([r.sizes[n].right for r in runs]))) for a, n in zip(x, SIZES)],
            True,
            [interval([r.sizes[n].right for r in runs])[1:] for n in SIZES],
        ),
    }
    write(
        FIGURES / "sft-size.svg",
        plane(
            series,
            "log10 of the number of examples (0: none)",
            "share of held-out keys",
            "Format and knowledge against the number of fine-tuning examples",
        ),
    )
    publish(
        "c08", told, runs=[{"sizes": {str(n): a for n, a in r.sizes.items()}, "long": r.long} for r in runs]
    )
    assert failed(told) == []


def test_the_format_is_a_probability_and_an_untrained_model_has_nearly_none() -> None:
    model = checkpoints.create(SHAPE, WORDS, 0)
    found = answers(model, [0, 1, 2], truth(0))
    assert 0 < found.format < 0.01
    assert found.nll > 3

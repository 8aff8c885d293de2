"""A language so small that every answer can be counted: reviews of four words, and a transformer that writes them.

In: a seed. Out: a policy trained on reviews, preference pairs, and policies trained from it by the loops of demeanor/training themselves.
A policy's gold reward and its KL to the reference are exact sums over all 12^4 answers, so no point is above the exact frontier by luck.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from demeanor.app import ONLINE
from demeanor.core import registry
from demeanor.data.batches import Schedule
from demeanor.data.trees import Branch, Tree, collate
from demeanor.evaluation.statistics import Floats
from demeanor.model import checkpoints
from demeanor.model.heads import policy_outputs, reward_outputs
from demeanor.model.llama import Llama
from demeanor.model.reward_model import ActorCritic, RewardModel
from demeanor.stack.schema import ModelReward, ModelShape, OnlineStage, Optim
from demeanor.training.loop import fit
from demeanor.training.online import Setup, fit_online, policy_of
from demeanor.training.progress import StageProgress
from demeanor.training.reference import scored_logprobs
from demeanor.training.rewards import Rollout, Task
from demeanor.training.scoring import ModelTerm, RewardSum, TermScore

PACKAGE = "demeanor.objectives"
START, TOPICS, GOOD, BAD, NOT, PLAIN = 0, (1, 2, 3), (4, 5, 6), (7, 8, 9), 10, 11
WORDS, VOCABULARY, LENGTH = (*GOOD, *BAD, NOT, PLAIN), 12, 4
PROMPTS = tuple((START, topic, opener) for topic in TOPICS for opener in (PLAIN, NOT))
ANSWERS = VOCABULARY**LENGTH
SHAPE = ModelShape(layers=2, width=32, heads=2, context=16)
Probe = Callable[[nn.Module, int], Mapping[str, float]]


class Numbers:
    """A tokenizer whose words are numbers."""

    vocab_size = VOCABULARY

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(f" {t}" for t in tokens)


class Unended:
    """A template without a stop token: every answer has LENGTH words."""

    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()


# ---- gold ----


def sentiment(answer: Sequence[int]) -> float:
    """+1 for a good word, -1 for a bad one, the sign turned after NOT; a topic or START in an answer costs 1."""
    total, sign = 0.0, 1.0
    for token in answer:
        if token in GOOD:
            total += sign
        elif token in BAD:
            total -= sign
        elif token not in (NOT, PLAIN):
            total -= 1.0
        sign = -1.0 if token == NOT else 1.0
    return total


@cache
def every_answer() -> Floats:
    """All answers, (12^4, 4), in the order of `logprobs`."""
    return np.stack(np.meshgrid(*[np.arange(VOCABULARY)] * LENGTH, indexing="ij"), axis=-1).reshape(
        -1, LENGTH
    )


def gold_of_all(gold: Callable[[Sequence[int]], float] = sentiment) -> Tensor:
    """Gold rewards of all answers, the same for every prompt."""
    return torch.tensor([gold(answer) for answer in every_answer().tolist()], dtype=torch.float64)


# ---- exact quantities of a policy ----


@torch.no_grad()
def logprobs(model: nn.Module) -> Tensor:
    """Log-probabilities (nats, fp64) of all answers to all prompts: prompts x answers."""
    policy = policy_of(model)
    assert isinstance(policy, Llama)
    prefixes = every_answer()[::VOCABULARY]  # the distinct first three words
    branches = tuple(Branch((*map(int, p), 0), (True,) * LENGTH) for p in prefixes)
    found = []
    for prompt in PROMPTS:
        batch = collate([Tree(prompt, branches, (0,) * len(branches))])
        hidden = policy.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.scored_C)
        each = (hidden @ policy.head().T).double().log_softmax(-1).reshape(len(branches), LENGTH, VOCABULARY)
        whole = torch.zeros([VOCABULARY] * LENGTH, dtype=torch.float64)
        for place in range(LENGTH):
            step = VOCABULARY ** (LENGTH - 1 - place)  # prefixes that share their first `place` words
            rows = each[::step, place] if place < LENGTH - 1 else each[:, place]
            shape = [VOCABULARY] * (place + 1) + [1] * (LENGTH - 1 - place)
            whole = whole + rows.reshape(shape)
        found.append(whole.reshape(-1))
    return torch.stack(found)


class Point(NamedTuple):
    """A policy's mean KL to the reference (nats an answer) and its mean gold reward, over prompts."""

    kl: float
    gold: float


def place(policy_PA: Tensor, reference_PA: Tensor, gold_A: Tensor) -> Point:
    """Exact KL and gold of a table of log-probabilities."""
    p = policy_PA.exp()
    return Point(float((p * (policy_PA - reference_PA)).sum(1).mean()), float((p @ gold_A).mean()))


def frontier(reference_PA: Tensor, gold_A: Tensor, points: int = 1000) -> list[Point]:
    """The best gold for every KL: ref exp(gold / beta), beta from large to small."""
    betas = np.geomspace(50, 0.02, points)
    tilted = [(reference_PA + gold_A / float(b)).log_softmax(1) for b in betas]
    return [
        Point(0.0, float((reference_PA.exp() @ gold_A).mean())),
        *(place(t, reference_PA, gold_A) for t in tilted),
    ]


def height(curve: Sequence[Point], kl: float) -> float:
    """The frontier at a KL; between two of its points the chord, which is below it."""
    return float(np.interp(kl, [p.kl for p in curve], [p.gold for p in curve]))


def best_of(reference_PA: Tensor, gold_A: Tensor, n: int) -> Point:
    """The best of n answers of the reference by gold, exactly; ties go to the first drawn, which is any of them alike."""
    order = gold_A.argsort()
    p = reference_PA.exp()[:, order]
    levels, level = torch.unique(gold_A[order], return_inverse=True)
    mass = torch.zeros(len(p), len(levels), dtype=p.dtype).index_add(1, level, p)
    below = mass.cumsum(1)
    chosen = below**n - torch.cat([torch.zeros(len(p), 1, dtype=p.dtype), below[:, :-1]], dim=1) ** n
    policy = p * (chosen / mass.clamp_min(1e-300))[:, level]
    ratio = (policy / p.clamp_min(1e-300)).clamp_min(1e-300).log()
    return Point(float((policy * ratio).sum(1).mean()), float((policy @ gold_A[order]).mean()))


# ---- rows ----


def rows(n: int, seed: int) -> list[Tree]:
    """Reviews: a topic's lean, a Markov chain of words, mostly plain and a little worse than neutral."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        prompt = PROMPTS[rng.integers(len(PROMPTS))]
        lean = (0.35, 0.2, 0.1)[prompt[1] - 1]
        answer: list[int] = []
        for _ in range(LENGTH):
            kind = rng.random()
            bad = 0.4 - lean / 2
            group = GOOD if kind < lean else BAD if kind < lean + bad else (NOT, PLAIN)
            weights = np.array([0.6, 0.3, 0.1][: len(group)])
            answer.append(int(rng.choice(group, p=weights / weights.sum())))
        found.append(Tree(prompt, (Branch(tuple(answer), (True,) * LENGTH),)))
    return found


def draw(model: nn.Module, count: int, seed: int) -> list[list[Rollout]]:
    """`count` answers to every prompt, by the engine."""
    stage = OnlineStage.model_validate(declared("rloo", count=count))
    roll = ONLINE.roll(None, stage, Numbers(), Unended(), Path("."), Path("."))  # type: ignore[arg-type]
    seeds = [[hash((seed, i, g)) & 0xFFFFFFFF for g in range(count)] for i in range(len(PROMPTS))]
    return roll(policy_of(model), tasks(), seeds)


def tasks() -> list[Task]:
    return [Task((), prompt) for prompt in PROMPTS]


def comparisons(
    model: nn.Module, per_prompt: int, seed: int, gold: Callable[[Sequence[int]], float] = sentiment
) -> list[Tree]:
    """Pairs of the model's own answers with Bradley-Terry labels of the gold reward."""
    rng, found = np.random.default_rng(seed), []
    for group in draw(model, 2 * per_prompt, seed):
        for a, b in zip(group[::2], group[1::2]):
            wins = rng.random() < 1 / (1 + np.exp(gold(b.tokens) - gold(a.tokens)))
            first, second = (a, b) if wins else (b, a)
            branches = tuple(Branch(r.tokens, (True,) * len(r.tokens)) for r in (first, second))
            found.append(Tree(a.task.tokens, branches, (0, 1)))
    return found


# ---- training ----


def offline(
    start: nn.Module,
    kind: str,
    trees: Sequence[Tree],
    *,
    lr: float,
    epochs: float = 1.0,
    batch_rows: int = 64,
    seed: int = 0,
    reference: nn.Module | None = None,
    probe: Probe | None = None,
    **settings: Any,
) -> nn.Module:
    """A copy of `start` after the offline loop; `probe` sees it before, after each fifth and at the end."""
    objective, model = registry.entry(PACKAGE, kind), copy.deepcopy(start)
    outputs = reward_outputs if objective.READS == "rewards" else policy_outputs
    logprobs_of = None
    if objective.ROLES:
        assert reference is not None
        logprobs_of = [part.tolist() for part in scored_logprobs(reference, policy_outputs, trees)]
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            outputs,
            partial(objective.loss, objective.Spec(**settings)),
            trees,
            Schedule(trees, batch_rows=batch_rows, epochs=epochs, seed=seed),
            Optim(lr=lr),
            out=Path(folder),
            watch=StageProgress(kind, stream=io.StringIO(), terminal=False),
            read_last=objective.READS == "rewards",
            reference=logprobs_of,
            evaluate=probe,
            checkpoint_every_s=1e9,
        )
    return model


@cache
def base(seed: int) -> Llama:
    """The reference: a transformer of two layers on 6,000 reviews."""
    model = offline(
        checkpoints.create(SHAPE, VOCABULARY, seed),
        "sft",
        rows(6000, seed),
        lr=5e-3,
        epochs=3,
        batch_rows=64,
        seed=seed,
    )
    assert isinstance(model, Llama)
    return model.requires_grad_(True)


def reward_model(
    policy: Llama, trees: Sequence[Tree], seed: int, *, lr: float = 2e-3, epochs: float = 3.0
) -> RewardModel:
    """A reward model from the policy's weights, on comparisons."""
    model = offline(
        checkpoints.reward_from(policy, seed), "reward", trees, lr=lr, epochs=epochs, batch_rows=32, seed=seed
    )
    assert isinstance(model, RewardModel)
    return model


def declared(
    kind: str,
    *,
    count: int = 8,
    steps: int = 1,
    lr: float = 1e-3,
    seed: int = 0,
    length: int = LENGTH,
    **more: Any,
) -> dict[str, Any]:
    """An online stage as stack.yaml has it; its prompts and reward are given to the loop in memory."""
    if "ptx_spec" in more:
        more["ptx"] = more.pop("ptx_spec")
    settings = {k: more.pop(k) for k in list(more) if k not in OnlineStage.model_fields}
    return {
        "name": "online",
        "objective": {"kind": kind, **settings},
        "prompts": [{"source": "memory"}],
        "reward": [{"kind": "repetition"}],
        "rollouts": {"count": count, "max_tokens": length},
        "batch_rows": len(PROMPTS),
        "steps": steps,
        "seed": seed,
        "optim": {"lr": lr, "schedule": "linear", "warmup": 0.05},
        **more,
    }


def gold_term(gold: Callable[[Sequence[int]], float]) -> Callable[[Sequence[Rollout]], list[TermScore]]:
    """A reward term that is the gold itself."""
    return lambda rollouts: [TermScore(gold(r.tokens)) for r in rollouts]


def learned(models: Sequence[RewardModel], combine: str = "mean", penalty: float = 0.5) -> RewardSum:
    """The reward of trained models, as `reward: [{kind: model}]` builds it."""
    named = {f"rm{i}": model for i, model in enumerate(models)}
    spec = ModelReward(stages=tuple(named), combine=combine, penalty=penalty)  # type: ignore[arg-type]
    return RewardSum({"model": (1.0, ModelTerm(spec, named.__getitem__))})


def true(gold: Callable[[Sequence[int]], float] = sentiment) -> RewardSum:
    """The gold as the reward."""
    return RewardSum({"gold": (1.0, gold_term(gold))})


def online(
    start: Llama,
    kind: str,
    score: RewardSum,
    *,
    asked: Sequence[Task] | None = None,
    critic: RewardModel | None = None,
    ptx: Sequence[Tree] = (),
    probe: Probe | None = None,
    **stage: Any,
) -> Llama:
    """A copy of `start` after the online loop: sampled by the engine, scored by `score`, `start` as the reference."""
    spec = OnlineStage.model_validate(declared(kind, **stage))
    objective = registry.entry(PACKAGE, kind)
    settings = objective.Spec(**{k: v for k, v in spec.objective.items() if k != "kind"})
    model: nn.Module = copy.deepcopy(start)
    if objective.ONLINE is not None and objective.ONLINE.critic:
        values = copy.deepcopy(critic) if critic is not None else checkpoints.reward_from(start, spec.seed)
        if critic is None:
            nn.init.zeros_(values.score.weight)
        model = ActorCritic(model, values)
    reads = objective.ROLES if objective.ONLINE is None else objective.ONLINE.reference(settings)
    setup = Setup(
        stage=spec,
        objective=objective,
        settings=settings,
        tasks=tasks() if asked is None else asked,
        roll=ONLINE.roll(None, spec, Numbers(), Unended(), Path("."), Path(".")),  # type: ignore[arg-type]
        score=score,
        forward=policy_outputs,
        untrained=lambda: copy.deepcopy(start),
        reference=copy.deepcopy(start).requires_grad_(False) if reads else None,
        ptx=ptx,
        probe=probe,
    )
    with tempfile.TemporaryDirectory() as folder:
        watch = StageProgress(kind, stream=io.StringIO(), terminal=False)
        fit_online(model, setup, out=Path(folder), watch=watch, checkpoint_every_s=1e9)
    found = policy_of(model)
    assert isinstance(found, Llama)
    return found

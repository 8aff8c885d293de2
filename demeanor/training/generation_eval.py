"""Evaluation by generation during training (`probe:` in a stage): answers to fixed prompts, their metrics.

In: a way to generate, and functions that measure answers (reference, reward model, held-out scorer). Out:
`eval_probe/` metrics, samples.jsonl, warnings of reward hacking. It changes no weights and knows no engine or
objective.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn

from demeanor.core import hardware
from demeanor.core.errors import DataError, DemeanorError
from demeanor.core.types import Completion, Item
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import checkpoints
from demeanor.model.heads import policy_outputs, reward_outputs
from demeanor.stack.schema import GenerationEvalSpec, Stage
from demeanor.stack.stack import Stack
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer
from demeanor.training import progress
from demeanor.training.loop import Evaluate, to_device
from demeanor.training.reference import MICRO_TOKENS, micro_batches, scored_logprobs
from demeanor.training.runs import LEDGER, Runs, read_log, weights_folder

SAMPLES = "samples.jsonl"
NGRAM = 3
LONGER, MORE_REPEATED, WORSE = 2.0, 0.2, 0.1
"""Limits of the warnings, against the first evaluation.

In this order: answers so many times as long or as short, so much more repetition, a held-out score so much
lower although the reward is higher.
"""


class Prompt(NamedTuple):
    """One prompt: its text for a reader, its tokens for a model."""

    text: str
    tokens: tuple[int, ...]


class SampledAnswer(NamedTuple):
    """One sampled answer: its text, all sampled tokens, and whether the last of them is a stop token."""

    text: str
    tokens: tuple[int, ...]
    ended: bool

    @property
    def content(self) -> tuple[int, ...]:
        """The tokens without the stop token."""
        return self.tokens[:-1] if self.ended else self.tokens


class AnswerMetrics(NamedTuple):
    """Functions that measure answers; None where the stage declares no such measure.

    `reference` gives the log-probs (nats) of all sampled tokens of each answer, `reward` the trained reward
    of each, `held_out` a score in [0, 1] that nothing trains on (None: this answer cannot be scored).
    """

    refused: Callable[[str], bool]
    reference: Callable[[Sequence[Tree]], list[list[float]]] | None = None
    reward: Callable[[Sequence[Tree]], list[float]] | None = None
    held_out: Callable[[Sequence[SampledAnswer]], list[float | None]] | None = None


Generate = Callable[[nn.Module, Sequence[Prompt]], list[SampledAnswer]]
Say = Callable[[str], None]


def evaluator(
    prompts: Sequence[Prompt], generate: Generate, metrics: AnswerMetrics, *, folder: Path, say: Say
) -> Evaluate:
    """A function that samples answers to `prompts`, keeps them in samples.jsonl and returns their metrics."""
    path = folder / SAMPLES

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        answers = generate(model, prompts)
        found = signals(answers, metrics.refused)
        first = first_answers(read_log(path), step)
        pairs = [(a.content, first[p.text]) for p, a in zip(prompts, answers) if p.text in first]
        if pairs:
            found["agreement"] = fmean(overlap(now, then) for now, then in pairs)
        trees = [tree(prompt, answer) for prompt, answer in zip(prompts, answers)]
        if metrics.reference is not None:
            found |= divergence(logprobs(model, trees), metrics.reference(trees))
        if metrics.reward is not None:
            found["reward"] = fmean(metrics.reward(trees))
        if metrics.held_out is not None:
            scores = [score for score in metrics.held_out(answers) if score is not None]
            if scores:
                found |= {"held_out": fmean(scores), "held_out_rows": float(len(scores))}
        with progress.MetricsLog(path, step=step - 1) as rows:  # drops what a killed run wrote of this step
            for prompt, answer in zip(prompts, answers):
                row = {"prompt": prompt.text, "answer": answer.text, "ended": answer.ended}
                rows.append({"step": step, **row, "tokens": answer.content})
        say(f"probe after step {step}: {line(found)}")
        for warning in warnings(_first(folder, found), found):
            say(f"probe after step {step}: WARNING {warning}")
        return {f"probe/{name}": value for name, value in found.items()}

    return evaluate


def first_answers(rows: Sequence[Mapping[str, Any]], step: int) -> dict[str, list[int]]:
    """Tokens of the first evaluation's answers by prompt; empty if that is the one of `step`."""
    earlier = [row for row in rows if row["step"] < step]
    return {row["prompt"]: row["tokens"] for row in earlier if row["step"] == earlier[0]["step"]}


def _first(folder: Path, found: Mapping[str, float]) -> Mapping[str, float]:
    """The metrics of the first evaluation in the metrics log, or `found` if there is none."""
    mark = "eval_probe/"
    for row in read_log(folder / LEDGER):
        if any(name.startswith(mark) for name in row):
            return {
                name.removeprefix(mark): value
                for name, value in row.items()
                if name.startswith(mark) and value is not None
            }
    return found


# ---- the signals ----


def signals(answers: Sequence[SampledAnswer], refused: Callable[[str], bool]) -> dict[str, float]:
    """Means over answers: `length` (tokens), shares `ended`, `empty`, `refused`, `repetition`, `loop`."""
    return {
        "length": fmean(len(a.content) for a in answers),
        "ended": fmean(a.ended for a in answers),
        "empty": fmean(not a.text.strip() for a in answers),
        "refused": fmean(refused(a.text) for a in answers),
        "repetition": fmean(repetition(a.content) for a in answers),
        "loop": fmean(longest_repeat(a.content) for a in answers),
    }


def repetition(tokens: Sequence[int]) -> float:
    """1 - distinct-3, the share of 3-grams that occurred before; 0 for fewer than two.

    Source: Li et al. 2016, arXiv 1510.03055.
    """
    grams = _grams(tokens, NGRAM)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def longest_repeat(tokens: Sequence[int]) -> float:
    """Length of the longest n-gram that occurs twice (overlaps count), as a share of the answer."""
    low, high = 0, max(len(tokens) - 1, 0)
    while low < high:  # if one of n repeats, so does one of n - 1
        middle = (low + high + 1) // 2
        grams = _grams(tokens, middle)
        low, high = (middle, high) if len(set(grams)) < len(grams) else (low, middle - 1)
    return low / len(tokens) if tokens else 0.0


def _grams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """F1 of two answers as bags of tokens; 1 for two empty ones.

    Source: Rajpurkar et al. 2016, arXiv 1606.05250, section 5.
    """
    if not one and not other:
        return 1.0
    return 2 * (Counter(one) & Counter(other)).total() / (len(one) + len(other))


def divergence(policy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> dict[str, float]:
    """KL(policy || reference) in nats per token, from the policy's own samples at temperature 1.

    `kl` is the estimator k1, `kl3` is k3, which is never negative. Source: Schulman 2020, Approximating KL
    Divergence.
    """
    gaps = [q - p for ps, qs in zip(policy, reference, strict=True) for p, q in zip(ps, qs, strict=True)]
    if not gaps:
        return {}
    return {"kl": -fmean(gaps), "kl3": fmean(math.expm1(min(gap, 80.0)) - gap for gap in gaps)}


def warnings(first: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """Sentences about signals that moved too far since the first evaluation."""
    found = []
    before, length = first["length"], now["length"]
    if length >= LONGER * before > 0 or before >= LONGER * length > 0:
        found.append(f"length: answers have {length:.1f} tokens, {before:.1f} at first")
    for name, what in (
        ("repetition", "repeated 3-grams"),
        ("loop", "the longest repeated passage"),
    ):
        if now[name] - first[name] >= MORE_REPEATED:
            found.append(f"{name}: {what} make {now[name]:.0%} of an answer, {first[name]:.0%} at first")
    if now["empty"] - first["empty"] >= MORE_REPEATED:
        found.append(f"empty: {now['empty']:.0%} of the answers are empty, {first['empty']:.0%} at first")
    if (
        {"reward", "held_out"} <= first.keys() & now.keys()
        and now["reward"] > first["reward"]
        and first["held_out"] - now["held_out"] >= WORSE
    ):
        found.append(
            f"hacking: the reward rose from {first['reward']:.3f} to {now['reward']:.3f} while the held-out "
            f"score fell from {first['held_out']:.0%} to {now['held_out']:.0%}"
        )
    return found


def line(found: Mapping[str, float]) -> str:
    """The signals in one line."""
    shares = ("ended", "empty", "refused", "repetition", "loop", "agreement", "held_out")
    parts = [f"{name.replace('_', '-')} {found[name]:.0%}" for name in shares if name in found]
    parts += [f"{name} {round(found[name], 3) + 0.0:.3f}" for name in ("kl", "reward") if name in found]
    return ", ".join([f"{found['length']:.1f} tokens", *parts])


# ---- numbers that need a model ----


def tree(prompt: Prompt, answer: SampledAnswer) -> Tree:
    """The answer as a row whose sampled tokens are all scored."""
    return Tree(
        prompt.tokens, (Branch(answer.tokens, (True,) * len(answer.tokens)),), source=prompt.text[:40]
    )


def logprobs(model: nn.Module, trees: Sequence[Tree]) -> list[list[float]]:
    """Log-probs (nats, fp32) of each tree's scored tokens under a policy."""
    return [part.tolist() for part in scored_logprobs(model, policy_outputs, trees)]


@torch.no_grad()
def rewards(model: nn.Module, trees: Sequence[Tree]) -> list[float]:
    """The reward of each answer under a reward model, fp32: of all branches, tree by tree."""
    device, found = next(model.parameters()).device, [[0.0]] * len(trees)
    for group in micro_batches(trees, MICRO_TOKENS):
        rewards_B = reward_outputs(
            model, to_device(collate([trees[i] for i in group], read_last=True), device)
        ).rewards_B
        assert rewards_B is not None
        sizes = [len(trees[i].branches) for i in group]
        for i, part in zip(group, torch.split(rewards_B.float().cpu(), sizes)):
            found[i] = part.tolist()
    return [value for part in found for value in part]


class GenerationServices(NamedTuple):
    """What app.py provides, since training knows neither engines nor scorers."""

    generate: Callable[
        [nn.Module, Tokenizer, Template, GenerationEvalSpec, Sequence[Prompt]], list[SampledAnswer]
    ]
    """Sample a policy's answers, the same draws each time: the n-th prompt has seed n."""
    refused: Callable[[str], bool]
    items: Callable[[str, Path], Sequence[Item]]
    """The items of a suite by name, or of a file in a folder."""
    score: Callable[[Item, Completion], float | None]


def prepare(
    stack: Stack,
    runs: Runs,
    stage: Stage,
    tokenizer: Tokenizer,
    template: Template,
    *,
    parent: Path,
    reference: Path,
    services: GenerationServices,
) -> Callable[[Sequence[Tree], Path, Say], Evaluate | None]:
    """From held-out rows, the run's folder and a printer to the evaluation that the stage declares.

    It is None if no held-out prompt fits the model. Raises DemeanorError for a model that no engine here
    runs, DataError for a suite without items.
    """
    assert stage.probe is not None, f"{stage.name}: declares no evaluation by generation"
    settings, about = stage.probe, checkpoints.checkpoint_info(parent)
    if not about.lean:
        raise DemeanorError(
            f"{stage.name}: probe: a {about.model_type} model can be trained here, but its answers cannot be "
            "sampled during training; leave the probe out"
        )
    items = None if settings.prompts is None else suite(services, settings.prompts, stack.root)
    scorer = None if settings.reward is None else weights_folder(stack, runs, settings.reward)

    def reference_logprobs(trees: Sequence[Tree]) -> list[list[float]]:
        return logprobs(checkpoints.policy(reference).to(hardware.device()), trees)

    def reward(trees: Sequence[Tree]) -> list[float]:
        assert scorer is not None
        return rewards(checkpoints.reward(scorer, 0).to(hardware.device()), trees)

    def generate(model: nn.Module, prompts: Sequence[Prompt]) -> list[SampledAnswer]:
        return services.generate(model, tokenizer, template, settings, prompts)

    def begin(held: Sequence[Tree], folder: Path, say: Say) -> Evaluate | None:
        if items is None:
            every = held_out(held, tokenizer)
        else:
            every = [(rendered(item, template), item) for item in items]
        fitting = [(p, item) for p, item in every if len(p.tokens) < about.context][: settings.count]
        if not fitting:
            say("probe: no held-out prompt fits the model's context, so no answer is sampled")
            return None
        used = [item for _, item in fitting if item is not None]
        metrics = AnswerMetrics(
            refused=services.refused,
            reference=reference_logprobs if settings.temperature == 1 else None,
            reward=None if scorer is None else reward,
            held_out=None if items is None else partial(scored, services, used),
        )
        return evaluator([prompt for prompt, _ in fitting], generate, metrics, folder=folder, say=say)

    return begin


def held_out(rows: Sequence[Tree], tokenizer: Tokenizer) -> list[tuple[Prompt, Item | None]]:
    """The distinct prompts of rows; no item belongs to them."""
    return [
        (Prompt(tokenizer.decode(tokens), tokens), None)
        for tokens in dict.fromkeys(row.prompt for row in rows if row.prompt)
    ]


def suite(services: GenerationServices, name: str, root: Path) -> Sequence[Item]:
    """The items of `world:NAME`, `builtin:NAME` or a file beside the stack.

    Raises DataError if there is none.
    """
    found = services.items(name, root)
    if not found:
        raise DataError(f"{name}: has no items; the probe wants at least one prompt")
    return found


def rendered(item: Item, template: Template) -> Prompt:
    """The item as a prompt; its text is the last message and the item's id."""
    tokens = template.render(item.messages, item.tools, generate=True).tokens
    return Prompt(f"{item.messages[-1].content} [{item.id}]", tuple(tokens))


def scored(
    services: GenerationServices, items: Sequence[Item], answers: Sequence[SampledAnswer]
) -> list[float | None]:
    """The score of each answer by its item's own scorer."""
    completions = [Completion(answer.text, "stop" if answer.ended else "length") for answer in answers]
    return [services.score(item, completion) for item, completion in zip(items, completions, strict=True)]


def sample_lines(rows: Sequence[Mapping[str, Any]], limit: int | None = None) -> Iterator[str]:
    """A heading for each prompt, then a line for each step: step, tokens (`+`: no stop token), the answer.

    A reward, where there is one, stands before the answer.
    """
    for prompt in list(dict.fromkeys(row["prompt"] for row in rows))[:limit]:
        yield f"## {_one_line(prompt)}"
        for row in rows:
            if row["prompt"] == prompt:
                count = row["tokens"] if isinstance(row["tokens"], int) else len(row["tokens"])
                size = f"{count}{'' if row['ended'] else '+'}"
                reward = f"{row['reward']:>8.3f}  " if row.get("reward") is not None else ""
                yield f"{row['step']:>7} {size:>5}  {reward}{_one_line(row['answer'])}"
        yield ""


def _one_line(text: str) -> str:
    """Text as one line: line ends and control characters written out."""
    return json.dumps(text, ensure_ascii=False)[1:-1]

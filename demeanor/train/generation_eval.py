"""What a policy says while it trains, on a fixed set of prompts: signals of reward hacking, the samples, warnings.

In: a way to generate, and whatever else can judge an answer (reference, reward model, held-out scorer). Out: `eval_probe/` numbers,
samples.jsonl, lines for a person. It refuses to change weights, and to know engines, tokenizers and objectives.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from demeanor.core import hardware
from demeanor.core.errors import DataError, DemeanorError
from demeanor.core.types import Completion, Item
from demeanor.data.trees import Branch, Tree, collate, num_scored
from demeanor.model import checkpoints
from demeanor.model.heads import policy_outputs, reward_outputs
from demeanor.stack.schema import GenerationEvalSpec, Stage
from demeanor.stack.stack import Stack
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer
from demeanor.train import progress
from demeanor.train.loop import Evaluate, to_device
from demeanor.train.reference import MICRO_TOKENS, micro_batches
from demeanor.train.runs import LEDGER, Runs, weights_folder

if TYPE_CHECKING:
    from torch import nn


SAMPLES = "samples.jsonl"
NGRAM = 3
LONGER, MORE_REPEATED, WORSE = 2.0, 0.2, 0.1
"""What is warned of, against the first evaluation: answers this many times as long (or as short), this much more repetition,
a held-out score this much lower while the reward is higher."""


class Prompt(NamedTuple):
    """What is asked: its text for a person, its tokens for a model."""

    text: str
    tokens: tuple[int, ...]


class SampledAnswer(NamedTuple):
    """What was said: its text, all tokens that were drawn, and whether the last of them ended it (or room ran out)."""

    text: str
    tokens: tuple[int, ...]
    ended: bool

    @property
    def said(self) -> tuple[int, ...]:
        """The tokens without the one that ends."""
        return self.tokens[:-1] if self.ended else self.tokens


class Judges(NamedTuple):
    """Who looks at the answers besides counting; None where there is nobody.

    `reference` gives the log-probs (nats) of all drawn tokens per answer, `reward` the trained reward of each, `held_out` a score
    in [0, 1] that nothing trains on, None where it cannot say.
    """

    refused: Callable[[str], bool]
    reference: Callable[[Sequence[Tree]], list[list[float]]] | None = None
    reward: Callable[[Sequence[Tree]], list[float]] | None = None
    held_out: Callable[[Sequence[SampledAnswer]], list[float | None]] | None = None


Generate = Callable[[nn.Module, Sequence[Prompt]], list[SampledAnswer]]
Say = Callable[[str], None]
Watch = Callable[[Sequence[Tree], Path, Say], Evaluate | None]
"""From held-out rows, the run's folder and where to speak to the probe; None where nothing can be asked."""


def prober(
    prompts: Sequence[Prompt], generate: Generate, judges: Judges, *, folder: Path, say: Say
) -> Evaluate:
    """A function that lets the model answer `prompts` after a step, keeps the answers in `folder` and returns the signals."""
    path = folder / SAMPLES

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        answers = generate(model, prompts)
        earlier = [row for row in progress.read_log(path) if row["step"] < step]
        started = {row["prompt"]: row for row in earlier if row["step"] == earlier[0]["step"]}
        found = signals(answers, judges.refused)
        if agreed := [
            overlap(a.said, started[p.text]["tokens"]) for p, a in zip(prompts, answers) if p.text in started
        ]:
            found["agreement"] = fmean(agreed)  # with the weights it began with: the parent's
        trees = [tree(p, a) for p, a in zip(prompts, answers)]
        if judges.reference is not None:
            found |= divergence(logprobs(model, trees), judges.reference(trees))
        if judges.reward is not None:
            found["reward"] = fmean(judges.reward(trees))
        if judges.held_out is not None and (scores := [x for x in judges.held_out(answers) if x is not None]):
            found["held_out"] = fmean(scores)
        with progress.MetricsLog(
            path, step=step - 1
        ) as rows:  # what a killed run wrote of this step is replaced
            for prompt, answer in zip(prompts, answers):
                rows.append(
                    {
                        "step": step,
                        "prompt": prompt.text,
                        "answer": answer.text,
                        "ended": answer.ended,
                        "tokens": answer.said,
                    }
                )
        say(f"probe after step {step}: {line(found)}")
        for warning in warnings(_first(folder, found), found):
            say(f"probe after step {step}: WARNING {warning}")
        return {f"probe/{name}": value for name, value in found.items()}

    return evaluate


def _first(folder: Path, found: Mapping[str, float]) -> Mapping[str, float]:
    """Signals of the first evaluation in the ledger; these, if they are the first."""
    mark = "eval_probe/"
    for row in progress.read_log(folder / LEDGER):
        if any(name.startswith(mark) for name in row):
            return {
                name.removeprefix(mark): value
                for name, value in row.items()
                if name.startswith(mark) and value is not None
            }
    return found


# ---- the signals ----


def signals(answers: Sequence[SampledAnswer], refused: Callable[[str], bool]) -> dict[str, float]:
    """What counting shows: `length` (tokens), and the shares `ended`, `empty`, `refused`, `repetition`, `loop`; means over answers."""
    return {
        "length": fmean(len(a.said) for a in answers),
        "ended": fmean(a.ended for a in answers),
        "empty": fmean(not a.text.strip() for a in answers),
        "refused": fmean(refused(a.text) for a in answers),
        "repetition": fmean(repetition(a.said) for a in answers),
        "loop": fmean(longest_repeat(a.said) for a in answers),
    }


def repetition(tokens: Sequence[int]) -> float:
    """1 - distinct-3: the share of 3-grams that stood there before; 0 for fewer than two (Li et al. 2016, arXiv 1510.03055)."""
    grams = _grams(tokens, NGRAM)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def longest_repeat(tokens: Sequence[int]) -> float:
    """Length of the longest n-gram that stands there twice (overlaps count), as a share of the answer."""
    low, high = 0, max(len(tokens) - 1, 0)
    while low < high:  # if one of n repeats, so does one of n - 1
        middle = (low + high + 1) // 2
        grams = _grams(tokens, middle)
        low, high = (middle, high) if len(set(grams)) < len(grams) else (low, middle - 1)
    return low / len(tokens) if tokens else 0.0


def _grams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """F1 of two answers as bags of tokens; two empty ones agree (Rajpurkar et al. 2016, arXiv 1606.05250, section 5)."""
    if not one and not other:
        return 1.0
    return 2 * (Counter(one) & Counter(other)).total() / (len(one) + len(other))


def divergence(policy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> dict[str, float]:
    """KL(policy to reference) in nats per token on the policy's own draws at temperature 1: `kl` is k1, `kl3` is k3 (never negative).

    Source: Schulman 2020, Approximating KL Divergence.
    """
    gaps = [q - p for ps, qs in zip(policy, reference, strict=True) for p, q in zip(ps, qs, strict=True)]
    return (
        {"kl": -fmean(gaps), "kl3": fmean(math.expm1(min(gap, 80.0)) - gap for gap in gaps)} if gaps else {}
    )


def warnings(first: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """What moved too far since the first evaluation, as sentences."""
    found = []
    before, length = first["length"], now["length"]
    if length >= LONGER * before > 0 or before >= LONGER * length > 0:
        found.append(f"length: answers have {length:.1f} tokens, {before:.1f} at first")
    for name, what in (
        ("repetition", "3-grams that stood there before"),
        ("loop", "the longest repeated passage"),
    ):
        if now[name] - first[name] >= MORE_REPEATED:
            found.append(f"{name}: {what} make {now[name]:.0%} of an answer, {first[name]:.0%} at first")
    if now["empty"] - first["empty"] >= MORE_REPEATED:
        found.append(f"empty: {now['empty']:.0%} of the answers say nothing, {first['empty']:.0%} at first")
    if (
        {"reward", "held_out"} <= first.keys() & now.keys()
        and now["reward"] > first["reward"]
        and first["held_out"] - now["held_out"] >= WORSE
    ):
        found.append(
            f"hacking: the reward rose from {first['reward']:.3f} to {now['reward']:.3f} while the held-out score "
            f"fell from {first['held_out']:.0%} to {now['held_out']:.0%}"
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
    """The answer as a row whose every drawn token is scored."""
    return Tree(
        prompt.tokens, (Branch(answer.tokens, (True,) * len(answer.tokens)),), source=prompt.text[:40]
    )


@torch.no_grad()
def logprobs(model: nn.Module, trees: Sequence[Tree]) -> list[list[float]]:
    """Log-probs (nats, fp32) of each tree's scored tokens under a policy, as it stands."""
    device, found = next(model.parameters()).device, [list[float]() for _ in trees]
    for group in micro_batches(trees, MICRO_TOKENS):
        flat_C = policy_outputs(model, to_device(collate([trees[i] for i in group]), device)).logprobs_C
        assert flat_C is not None
        for i, part_C in zip(group, torch.split(flat_C.float().cpu(), [num_scored(trees[i]) for i in group])):
            found[i] = part_C.tolist()
    return found


@torch.no_grad()
def rewards(model: nn.Module, trees: Sequence[Tree]) -> list[float]:
    """The reward of each tree's answer under a reward model, fp32."""
    device, found = next(model.parameters()).device, [0.0] * len(trees)
    for group in micro_batches(trees, MICRO_TOKENS):
        rewards_B = reward_outputs(
            model, to_device(collate([trees[i] for i in group], read_last=True), device)
        ).rewards_B
        assert rewards_B is not None
        for i, value in zip(group, rewards_B.float().cpu().tolist()):
            found[i] = value
    return found


def both(one: Evaluate | None, other: Evaluate) -> Evaluate:
    """Two evaluations as one."""

    def evaluate(model: nn.Module, step: int) -> Mapping[str, float]:
        found: dict[str, Any] = {} if one is None else dict(one(model, step))
        return found | dict(other(model, step))

    return evaluate


class GenerationServices(NamedTuple):
    """What app.py hands in, since training knows neither engines nor scorers."""

    generate: Callable[
        [nn.Module, Tokenizer, Template, GenerationEvalSpec, Sequence[Prompt]], list[SampledAnswer]
    ]
    """Let a policy answer prompts, the same draws each time: the n-th prompt has seed n."""
    refused: Callable[[str], bool]
    items: Callable[[str, Path], Sequence[Item]]
    """The items of a suite by name, or of a file beside a folder."""
    score: Callable[[Item, Completion], float | None]


def watching(
    stack: Stack,
    runs: Runs,
    stage: Stage,
    tokenizer: Tokenizer,
    template: Template,
    *,
    parent: Path,
    reference: Path,
    services: GenerationServices,
) -> Watch | None:
    """The stage's evaluation by generation, still to be given held-out rows, a folder and where to print; None if it declares none.

    Raises DemeanorError for a model that no engine here runs, DataError for a suite without a usable prompt.
    """
    if stage.probe is None:
        return None
    settings, about = stage.probe, checkpoints.checkpoint_info(parent)
    if not about.lean:
        raise DemeanorError(
            f"{stage.name}: probe: a {about.model_type} model can be trained here, but not asked; leave the probe out"
        )
    items = None if settings.prompts is None else suite(services, settings.prompts, stack.root)
    scorer = None if settings.reward is None else weights_folder(stack, runs, settings.reward)

    def begin(held: Sequence[Tree], folder: Path, say: Say) -> Evaluate | None:
        every = (
            held_out(held, tokenizer)
            if items is None
            else [(rendered(item, template), item) for item in items]
        )
        fitting = [(prompt, item) for prompt, item in every if len(prompt.tokens) < about.context][
            : settings.count
        ]
        if not fitting:
            say("probe: there is no held-out prompt that fits, so nothing is asked")
            return None
        judges = Judges(
            refused=services.refused,
            reference=(lambda trees: logprobs(checkpoints.policy(reference).to(hardware.device()), trees))
            if settings.temperature == 1
            else None,
            reward=None
            if scorer is None
            else lambda trees: rewards(checkpoints.reward(scorer, 0).to(hardware.device()), trees),
            held_out=None
            if items is None
            else partial(scored, services, [item for _, item in fitting if item is not None]),
        )
        asked = [prompt for prompt, _ in fitting]

        def generate(model: nn.Module, prompts: Sequence[Prompt]) -> list[SampledAnswer]:
            return services.generate(model, tokenizer, template, settings, prompts)

        return prober(asked, generate, judges, folder=folder, say=say)

    return begin


def held_out(rows: Sequence[Tree], tokenizer: Tokenizer) -> list[tuple[Prompt, Item | None]]:
    """The different prompts of rows that have one."""
    return [
        (Prompt(tokenizer.decode(tokens), tokens), None)
        for tokens in dict.fromkeys(row.prompt for row in rows if row.prompt)
    ]


def suite(services: GenerationServices, name: str, root: Path) -> Sequence[Item]:
    """The items of `world:NAME`, `builtin:NAME` or of a file beside the stack; raises DataError if there is none."""
    found = services.items(name, root)
    if not found:
        raise DataError(f"{name}: has no items; wanted at least one prompt for the probe")
    return found


def rendered(item: Item, template: Template) -> Prompt:
    """The item as a prompt; what a person reads is its last message and its id."""
    tokens = template.render(item.messages, item.tools, generate=True).tokens
    return Prompt(f"{item.messages[-1].content} [{item.id}]", tuple(tokens))


def scored(
    services: GenerationServices, items: Sequence[Item], answers: Sequence[SampledAnswer]
) -> list[float | None]:
    """What each item's own scorer says of the answer to it."""
    completions = [Completion(answer.text, "stop" if answer.ended else "length") for answer in answers]
    return [services.score(item, completion) for item, completion in zip(items, completions, strict=True)]


def sample_lines(rows: Sequence[Mapping[str, Any]], limit: int | None = None) -> Iterator[str]:
    """A heading for each prompt, then a line for each step: its number, tokens written (`+` if it did not end), the answer."""
    for prompt in list(dict.fromkeys(row["prompt"] for row in rows))[:limit]:
        yield f"## {_one_line(prompt)}"
        for row in rows:
            if row["prompt"] == prompt:
                size = f"{len(row['tokens'])}{'' if row['ended'] else '+'}"
                yield f"{row['step']:>7} {size:>5}  {_one_line(row['answer'])}"
        yield ""


def _one_line(text: str) -> str:
    """Text as one line: line ends and control characters written out."""
    return json.dumps(text, ensure_ascii=False)[1:-1]

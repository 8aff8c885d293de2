"""What training needs of the engine, the layers, the scorers and the judge, composed for app.py.

In: a function that makes what layers may use. Out: the services of evaluation by generation, of rewards and of online
stages. Part of the composition root: it only builds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import nn

from demeanor.core.errors import UsageError
from demeanor.core.types import Completion, Decoding, Item, Score
from demeanor.engine.remote import remote
from demeanor.engine.respond import complete_prompts
from demeanor.engine.rollouts import sample_groups
from demeanor.evaluation import items, judge, suites
from demeanor.evaluation.scorers import refusal, score_item, scored_from_text
from demeanor.layers import Kit, compose
from demeanor.model.hf import ForeignModel
from demeanor.model.llama import Llama
from demeanor.policy_sampler import PolicySampler
from demeanor.stack.schema import GenerationEvalSpec, OnlineStage, RolloutsSpec
from demeanor.stack.stack import Stack
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer
from demeanor.training import environments, generation_eval, online_stage, scoring
from demeanor.training.rewards import Roll, Rollout, Task
from demeanor.training.runs import Runs

MakeKit = Callable[[Stack, Runs, Template], Kit]
"""From a stack, the folder of runs and its template to what its layers may use."""


def _generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    template: Template,
    settings: GenerationEvalSpec,
    prompts: Sequence[generation_eval.Prompt],
) -> list[generation_eval.SampledAnswer]:
    assert isinstance(model, Llama), f"wanted a policy that an engine runs, got {type(model).__name__}"
    decoding = Decoding(settings.temperature, 1.0, settings.max_tokens)
    answers = complete_prompts(model, tokenizer, template, [prompt.tokens for prompt in prompts], decoding)
    return [
        generation_eval.SampledAnswer(
            "".join(piece.text for piece in pieces),
            tuple(piece.token for piece in pieces),
            pieces[-1].finish == "stop",
        )
        for pieces in answers
    ]


GENERATION = generation_eval.GenerationServices(
    generate=_generate,
    refused=lambda text: bool(refusal.declined(Completion(text, "stop"))),
    items=suites.items,
    score=lambda item, completion: score_item(item, completion).value,
)
"""What evaluation by generation during training needs of the engine, the suites and the scorers."""


def _score(item: Item, completion: Completion) -> Score:
    if not scored_from_text(item):
        return Score(
            None, "", f"{item.scorer} reads what happened on the way, and a sampled answer has no events"
        )
    return score_item(item, completion)


def _judge(stack: Stack, verdicts: Path) -> scoring.Prefer:
    spec = stack.spec.evaluation.judge
    if spec is None:
        raise UsageError(judge.NO_JUDGE.format(stack=stack.path))
    return partial(judge.preferences, judge.judge_client(spec, verdicts, remote))


REWARDS = scoring.RewardServices(score=_score, wrong=items.wrong_target, judge=_judge)
"""What rewards need of the scorers and the judge."""


def online(kit: MakeKit) -> online_stage.OnlineServices:
    """The services of online stages."""
    return online_stage.OnlineServices(roll=partial(_roll, kit), rewards=REWARDS, generation=GENERATION)


def _roll(
    make: MakeKit,
    stack: Stack,
    stage: OnlineStage,
    tokenizer: Tokenizer,
    template: Template,
    folder: Path,
    parent: Path,
) -> Roll:
    settings = stage.rollouts
    if not (settings.layers or settings.environment or settings.url):
        return partial(_single_turns, settings, tokenizer, template)
    opened = environments.load(settings.environment, stack.root) if settings.environment else None
    kit = make(stack, Runs(folder.parent), template)
    kept = [(layer.spec, layer.module) for layer in stack.layers if layer.name in settings.layers]
    return PolicySampler(
        stage, tokenizer, template, lambda inner: compose(kept, inner, kit), opened, folder, parent
    )


def _single_turns(
    settings: RolloutsSpec,
    tokenizer: Tokenizer,
    template: Template,
    model: nn.Module,
    tasks: Sequence[Task],
    seeds: Sequence[Sequence[int]],
) -> list[list[Rollout]]:
    """One answer to each task and seed, those of a task drawn together."""
    assert isinstance(model, Llama | ForeignModel), f"wanted a policy, got {type(model).__name__}"
    decoding = Decoding(
        settings.temperature,
        settings.top_p,
        settings.max_tokens,
        stop=template.stop,
        top_k=settings.top_k,
        min_p=settings.min_p or 0.0,
    )
    found = sample_groups(
        model,
        tokenizer,
        [task.tokens for task in tasks],
        count=max(map(len, seeds), default=0),
        decoding=decoding,
        stop_tokens=template.stop_tokens,
        seeds=lambda n, g: seeds[n][g],
    )
    return [
        [
            Rollout(task, x.tokens, (True,) * len(x.tokens), x.sampled, x.text, x.ended, x.kept)
            for x in completions
        ]
        for task, completions in zip(tasks, found)
    ]

"""The probe of a stage, composed: its prompts, the live model behind an engine, and who judges the answers.

In: a Stack, a stage with `probe`, its tokenizer and template. Out: what `train.stage` calls with the held-out rows. The engine reads
the weights where they are trained, so nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from demeanor import hardware
from demeanor.build import library
from demeanor.build.house import judge, weights_folder
from demeanor.data.trees import Tree
from demeanor.engine.local import LocalEngine
from demeanor.engine.request import Request
from demeanor.errors import DataError, DemeanorError
from demeanor.model import folders
from demeanor.model.llama import Llama
from demeanor.scorers import refusal
from demeanor.spec import Probe, Stage
from demeanor.stack import Stack
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer
from demeanor.train import probe as probing
from demeanor.train.lineage import Runs
from demeanor.train.loop import Evaluate
from demeanor.train.probe import Answer, Generate, Judges, Prompt, Say, Watch
from demeanor.types import Completion, Decoding, Item

if TYPE_CHECKING:
    from torch import nn

SLOTS = 32
"""Answers that are written at the same time; more would only cost memory."""


def watching(
    stack: Stack,
    runs: Runs,
    stage: Stage,
    tokenizer: Tokenizer,
    template: Template,
    *,
    parent: Path,
    reference: Path,
) -> Watch | None:
    """From held-out rows, a run's folder and where to speak to the stage's probe; None where it has none.

    Raises DemeanorError for a model that no engine here runs, DataError for a suite without a usable prompt.
    """
    if stage.probe is None:
        return None
    settings, about = stage.probe, folders.about(parent)
    if not about.lean:
        raise DemeanorError(
            f"{stage.name}: probe: a {about.model_type} model can be trained here, but not asked; leave the probe out"
        )
    items = None if settings.prompts is None else suite(stack, settings.prompts)
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
            refused=lambda text: bool(refusal.declined(Completion(text, "stop"))),
            reference=(lambda trees: probing.logprobs(folders.policy(reference).to(hardware.device()), trees))
            if settings.temperature == 1
            else None,
            reward=None
            if scorer is None
            else lambda trees: probing.rewards(folders.reward(scorer, 0).to(hardware.device()), trees),
            held_out=None
            if items is None
            else partial(judged, [item for _, item in fitting if item is not None]),
        )
        asked = [prompt for prompt, _ in fitting]
        return probing.prober(asked, generator(tokenizer, template, settings), judges, folder=folder, say=say)

    return begin


def held_out(rows: Sequence[Tree], tokenizer: Tokenizer) -> list[tuple[Prompt, Item | None]]:
    """The different prompts of rows that have one."""
    return [
        (Prompt(tokenizer.decode(tokens), tokens), None)
        for tokens in dict.fromkeys(row.prompt for row in rows if row.prompt)
    ]


def suite(stack: Stack, name: str) -> tuple[Item, ...]:
    """The items of `world:NAME`, `builtin:NAME` or of a file beside the stack; raises DataError if there is none."""
    found = library.items(name, stack.root)
    if not found:
        raise DataError(f"{name}: has no items; wanted at least one prompt for the probe")
    return found


def rendered(item: Item, template: Template) -> Prompt:
    """The item as a prompt; what a person reads is its last message and its id."""
    tokens = template.render(item.messages, item.tools, generate=True).tokens
    return Prompt(f"{item.messages[-1].content} [{item.id}]", tuple(tokens))


def judged(items: Sequence[Item], answers: Sequence[Answer]) -> list[float | None]:
    """What each item's own scorer says of the answer to it."""
    return [
        judge(item, Completion(answer.text, "stop" if answer.ended else "length")).value
        for item, answer in zip(items, answers, strict=True)
    ]


def generator(tokenizer: Tokenizer, template: Template, settings: Probe) -> Generate:
    """A function that lets a policy answer all prompts, the same draws each time: the n-th prompt has seed n."""

    def generate(model: nn.Module, prompts: Sequence[Prompt]) -> list[Answer]:
        assert isinstance(model, Llama), f"wanted a policy that an engine runs, got {type(model).__name__}"
        room = max(len(prompt.tokens) for prompt in prompts) + settings.max_tokens
        engine = LocalEngine(model, tokenizer, num_slots=min(len(prompts), SLOTS), max_context=room)
        try:
            pieces = engine.generate(
                [
                    Request(
                        p.tokens,
                        Decoding(settings.temperature, 1.0, settings.max_tokens, seed, template.stop),
                        template.stop_tokens,
                    )
                    for seed, p in enumerate(prompts)
                ]
            )
        finally:
            engine.close()
        return [
            Answer(
                "".join(piece.text for piece in answer),
                tuple(piece.token for piece in answer),
                answer[-1].finish == "stop",
            )
            for answer in pieces
        ]

    return generate

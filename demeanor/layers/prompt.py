"""The prompt layer: puts the operator's system prompt and example turns before the conversation.

In: a turn. Out: the turn with our system message, the caller's leading system and developer messages (with a
developer's authority), examples, and the rest; a Prompted event with what was added, and LeftOut events for what a token
budget left out. Does not change the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from demeanor.core import registry
from demeanor.core.errors import Problem, SpecError
from demeanor.core.files import read_text
from demeanor.core.types import Event, Message, Messages, Prompted, Respond, Trust, Turn
from demeanor.layers import Kit, _prompt_text, timed
from demeanor.layers._prompt_budget import fitted, parts_of
from demeanor.layers._prompt_text import PromptText, VariableSpec
from demeanor.layers.policy.rules import problems_of, read_yaml

BEHAVIOUR = True


class SelectSpec(registry.Spec):
    """Which of many examples a question gets."""

    count: int = Field(gt=0, le=64, description="the most similar ones, the most similar last")
    by: Literal["words", "vectors", "both"] = Field(
        "words",
        description="similarity of their questions: BM25, cosine of an encoder's vectors, or both by rank fusion",
    )
    encoder: registry.Source | None = Field(
        None, description="a folder beside the stack file, a hub id, or http://host/v1#model"
    )
    key_env: str | None = Field(None, description="environment variable with the key of an encoder's address")

    @model_validator(mode="after")
    def _fits(self) -> SelectSpec:
        if (self.by == "words") != (self.encoder is None):
            wanted = "an `encoder`" if self.encoder is None else "`by: vectors` or `by: both` with an encoder"
            raise ValueError(f"by: {self.by}: wanted {wanted}")
        return self


class Spec(registry.Spec):
    """What comes before every conversation: a system prompt (a file, or text), examples, or both."""

    system: registry.File | None = Field(None, description="file with the system prompt")
    text: str | None = Field(None, min_length=1, description="the system prompt itself, instead of a file")
    few_shot: registry.File | None = Field(
        None, description="YAML file of examples: `messages:` a list of {role, content}"
    )
    variables: dict[str, VariableSpec] | None = Field(
        None, description="what stands for {{ name }} in the system prompt; null: braces are plain text"
    )
    select: SelectSpec | None = Field(
        None, description="only the examples most like the question; null: all of them"
    )
    max_tokens: int | None = Field(
        None,
        gt=0,
        description="longest prompt, conversation and passages included; beyond it examples, then the oldest turns are "
        "left out; null: no limit",
    )

    @field_validator("variables", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """`name: text` means `name: {value: text}`."""
        if not isinstance(value, dict):
            return value
        return {k: v if isinstance(v, dict | VariableSpec) else {"value": v} for k, v in value.items()}

    @model_validator(mode="after")
    def _says_something(self) -> Spec:
        if self.system is not None and self.text is not None:
            raise ValueError("system (a file) and text are two system prompts; wanted one")
        if self.system is None and self.text is None and self.few_shot is None:
            raise ValueError("wanted system (a file), text, or few_shot (a file)")
        if self.select is not None and self.few_shot is None:
            raise ValueError("select chooses among the examples of few_shot; name that file, or leave it out")
        if self.variables is not None and self.system is None and self.text is None:
            raise ValueError("variables stand in a system prompt; set system or text, or leave them out")
        return self


class Line(registry.Spec):
    """One message of an example."""

    role: Literal["user", "assistant"]
    content: str = Field(min_length=1)


class FewShot(registry.Spec):
    """The whole of a few-shot file: alternating turns, user first, answer last."""

    messages: tuple[Line, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _alternates(self) -> FewShot:
        wrong = next(
            (i for i, line in enumerate(self.messages) if (line.role == "user") != (i % 2 == 0)), None
        )
        if wrong is not None:
            raise ValueError(
                f"messages[{wrong}] is from the {self.messages[wrong].role} again; "
                "user and assistant take turns"
            )
        if len(self.messages) % 2:
            raise ValueError("the last example has no answer from the assistant")
        return self


def check(spec: Spec, root: Path) -> list[Problem]:
    """Return every mistake in the files."""
    problems = [] if spec.few_shot is None else problems_of(root / spec.few_shot, FewShot)
    try:
        prompt = source(spec, root)
        where = "text" if spec.system is None else str(root / spec.system)
        if spec.system is not None and prompt is not None and not prompt.text:
            problems.append(Problem(where, "empty; wanted a system prompt"))
        if prompt is not None and spec.variables is not None:
            problems += _prompt_text.check(prompt.text, spec.variables, where)
    except SpecError as error:
        problems += error.problems
    return problems


def source(spec: Spec, root: Path) -> PromptText | None:
    """Return the system prompt as it is written, or None; raises SpecError for a file that cannot be read."""
    if spec.text is not None:
        return PromptText(spec.text, "", hashlib.sha256(spec.text.encode()).hexdigest()[:12])
    return None if spec.system is None else _prompt_text.read(root / spec.system)


def fixed(spec: Spec, root: Path) -> str | None:
    """Return the system prompt of a request that sets no variable, or None; raises SpecError as `source` does."""
    prompt = source(spec, root)
    if prompt is None or spec.variables is None:
        return None if prompt is None else prompt.text
    return _prompt_text.filled(prompt.text, _prompt_text.values_of(spec.variables, {}))


@dataclass(frozen=True, slots=True)
class _Examples:
    """Pairs of question and answer, and how to choose among them."""

    pairs: tuple[Messages, ...]
    chosen: Callable[[str], Sequence[int]] | None
    off_loop: bool
    count: int

    async def of(self, question: str) -> list[Messages]:
        """Return the pairs for a question, the most similar last."""
        if self.chosen is None:
            return list(self.pairs)
        ask = partial(self.chosen, question)
        order = await asyncio.to_thread(ask) if self.off_loop else ask()
        return [self.pairs[i] for i in reversed(order[: self.count])]


def _examples(spec: Spec, kit: Kit) -> _Examples:
    if spec.few_shot is None:
        return _Examples((), None, False, 0)
    lines = read_yaml(kit.root / spec.few_shot, FewShot).messages
    said = [Message(line.role, line.content) for line in lines]
    pairs = tuple((said[i], said[i + 1]) for i in range(0, len(said), 2))
    if spec.select is None:
        return _Examples(pairs, None, False, len(pairs))
    ranked = kit.rank_texts([question.content for question, _ in pairs], spec.select)
    return _Examples(pairs, ranked, spec.select.by != "words", spec.select.count)


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Add the prompt to every turn."""
    prompt, examples = source(spec, kit.root), _examples(spec, kit)
    told = {} if prompt is None else {"version": prompt.version, "sha256": prompt.sha256}
    if prompt is None and spec.few_shot is not None:
        shots = read_text(kit.root / spec.few_shot)
        told = {"sha256": hashlib.sha256(shots.encode()).hexdigest()[:12]}

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        system: Messages = ()
        if prompt is not None:
            values = _prompt_text.values_of(spec.variables or {}, turn.metadata)
            text = prompt.text if spec.variables is None else _prompt_text.filled(prompt.text, values)
            system = (Message("system", text, trust=Trust.SYSTEM),)
        pairs = await examples.of(question_of(turn.messages))
        messages = prompted(turn.messages, system, [m for pair in pairs for m in pair])
        if spec.max_tokens is not None:
            parts = parts_of(lowered(turn.messages), system, pairs)
            messages, kept, left_out = fitted(
                parts, spec.max_tokens, lambda found: kit.count_tokens(found, turn.tools)
            )
            pairs = list(kept)
            for gone in left_out:
                yield gone
        yield Prompted((*system, *(m for pair in pairs for m in pair)), **told)
        async for event in inner(replace(turn, messages=messages)):
            yield event

    return timed("prompt", body, inner, kit.clock)


def question_of(messages: Messages) -> str:
    """Return the last user message."""
    return next((m.content for m in reversed(messages) if m.role == "user"), "")


def lowered(messages: Messages) -> Messages:
    """Return the conversation in which no system message keeps a system's authority."""
    return tuple(replace(m, trust=Trust.DEVELOPER) if m.authority > Trust.DEVELOPER else m for m in messages)


def prompted(messages: Messages, system: Messages, examples: Sequence[Message]) -> Messages:
    """Return the conversation with our messages added; no other system message keeps a system's authority."""
    parts = parts_of(lowered(messages), system, (tuple(examples),) if examples else ())
    return parts.messages()

"""The prompt layer: puts the operator's system prompt and example turns before the conversation.

In: a turn. Out: the turn with our system message, the caller's leading system and developer messages (with a
developer's authority), examples, and the rest; and a Prompted event with what was added. Does not change the
answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from demeanor.core import registry
from demeanor.core.errors import Problem, SpecError
from demeanor.core.files import read_text
from demeanor.core.types import Event, Message, Messages, Prompted, Respond, Trust, Turn
from demeanor.layers import Kit, timed
from demeanor.layers.policy.rules import problems_of, read_yaml

BEHAVIOUR = True


class Spec(registry.Spec):
    """What comes before every conversation: a system prompt (a file, or text), examples, or both."""

    system: registry.File | None = Field(None, description="file with the system prompt")
    text: str | None = Field(None, min_length=1, description="the system prompt itself, instead of a file")
    few_shot: registry.File | None = Field(
        None, description="YAML file of examples: `messages:` a list of {role, content}"
    )

    @model_validator(mode="after")
    def _says_something(self) -> Spec:
        if self.system is not None and self.text is not None:
            raise ValueError("system (a file) and text are two system prompts; wanted one")
        if self.system is None and self.text is None and self.few_shot is None:
            raise ValueError("wanted system (a file), text, or few_shot (a file)")
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
        if spec.system is not None and not read_text(root / spec.system).strip():
            problems.append(Problem(str(root / spec.system), "empty; wanted a system prompt"))
    except SpecError as error:
        problems += error.problems
    return problems


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Add the prompt to every turn."""
    text = spec.text if spec.system is None else read_text(kit.root / spec.system).strip()
    system = () if text is None else (Message("system", text, trust=Trust.SYSTEM),)
    lines = () if spec.few_shot is None else read_yaml(kit.root / spec.few_shot, FewShot).messages
    examples = tuple(Message(line.role, line.content) for line in lines)

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        yield Prompted((*system, *examples))
        async for event in inner(replace(turn, messages=prompted(turn.messages, system, examples))):
            yield event

    return timed("prompt", body, inner, kit.clock)


def prompted(messages: Messages, system: Messages, examples: Messages) -> Messages:
    """Return the conversation with our messages added; no other system message keeps a system's authority."""
    lowered = tuple(
        replace(m, trust=Trust.DEVELOPER) if m.authority > Trust.DEVELOPER else m for m in messages
    )
    leading = tuple(takewhile(lambda m: m.role in ("system", "developer"), lowered))
    return (*system, *leading, *examples, *lowered[len(leading) :])

"""Rules: yes-or-no propositions about an answer, each a scorer with a target and a weight, in a YAML file.

In: the file and an answer. Out: each proposition's value in [0, 1]. The weights are fitted in `fit`, on
answers that people graded. Source: Mu et al. 2024, arXiv 2411.01111.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from demeanor.core.errors import Problem, SpecError
from demeanor.core.files import read_yaml
from demeanor.core.registry import Spec as Base
from demeanor.core.types import Completion, Item, Messages, Score


class Proposition(Base):
    """One proposition: what a scorer says of an answer, and what it is worth."""

    name: str = Field(min_length=1, description="what metrics and `fit-rules` call it")
    scorer: str = Field(description="a scorer of docs/scorers.md")
    target: dict[str, Any] = Field(default_factory=dict, description="the scorer's target")
    axes: tuple[str, ...] = Field(
        (), description="only answers to items of these axes; others count as 0; empty: all"
    )
    weight: float = Field(0.0, description="reward of the proposition where it holds")


class RewardRules(Base):
    """The rules of one file, in order."""

    rules: tuple[Proposition, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _named_once(self) -> RewardRules:
        names = [rule.name for rule in self.rules]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"rules: the name '{twice[0]}' stands twice; wanted each once")
        return self


def read(path: Path) -> RewardRules:
    """Read a file of rules. Raises SpecError with every mistake in it."""
    try:
        return RewardRules.model_validate(read_yaml(path))
    except ValidationError as error:
        raise SpecError(
            Problem(
                ": ".join([str(path), ".".join(map(str, one["loc"]))]).removesuffix(": "),
                one["msg"].removeprefix("Value error, "),
            )
            for one in error.errors(include_url=False)
        ) from None


def mistakes(path: Path, wrong: Callable[[Item], str | None]) -> list[str]:
    """What is wrong with a file: that it cannot be read, or rules whose scorer or target cannot be used."""
    try:
        found = read(path)
    except SpecError as error:
        return [str(error)]
    told = [(rule.name, wrong(item(rule, ()))) for rule in found.rules]
    return [f"{path}: rule {name}: {mistake}" for name, mistake in told if mistake]


def item(rule: Proposition, messages: Messages) -> Item:
    """The proposition about an answer to these messages, as an item of its scorer."""
    return Item(rule.name, messages, rule.scorer, rule.target, axis="rules", cluster=rule.name)


def propositions(
    found: RewardRules,
    messages: Messages,
    about: Item | None,
    answer: Completion,
    score: Callable[[Item, Completion], Score],
) -> list[float | None]:
    """Each rule's value for an answer to a prompt, whose item is `about`; None: it cannot be scored."""
    axis = None if about is None else about.axis
    return [
        score(item(rule, messages), answer).value if not rule.axes or axis in rule.axes else 0.0
        for rule in found.rules
    ]

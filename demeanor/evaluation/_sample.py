"""One scored answer as any harness logs it, and the scorer of ours that would judge it alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from demeanor import registry
from demeanor.errors import DataError
from demeanor.types import Completion, Messages, Score


@dataclass(frozen=True, slots=True)
class Repeat:
    """How we would ask and judge it; `completion`: the logged answer as our scorer reads it."""

    messages: Messages
    scorer: str
    target: Mapping[str, Any]
    completion: Completion


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of a variant; `content` hashes question and target, `repeat` is a reason where our scorers cannot repeat it."""

    variant: str
    stack_key: str
    log: str
    id: str
    axis: str
    cluster: str
    epoch: int
    content: str
    messages: Messages
    wanted: tuple[str, ...]
    scorer: str
    metric: str
    value: float | None
    text: str
    extracted: str = ""
    explanation: str = ""
    ms: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    repeat: Repeat | str = "no scorer of ours"

    def differs(self) -> bool:
        """Whether our scorer gives the logged answer another value; False where the harness gave none."""
        if isinstance(self.repeat, str) or self.value is None:
            return False
        module = registry.entry("demeanor.scorers", self.repeat.scorer)
        score: Score = module.score(
            module.Spec.model_validate(dict(self.repeat.target)), self.repeat.completion
        )
        return score.value != self.value


def share(value: object, where: str) -> float:
    """A value as a share; raises DataError naming what is none."""
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(
            f"{where}: got {value!r}, wanted a value from 0 to 1, higher is better; choose another with --metric"
        )
    return float(value)


def source(fields: Mapping[str, Any], named: str | None, where: str, document: str) -> str:
    """The cluster of a sample: the named field, else `cluster` or `group`, else the document alone."""
    if named is not None and named not in fields:
        raise DataError(f"{where}: --cluster {named}: no such field. Known: {', '.join(fields) or 'none'}")
    name = named or next((n for n in ("cluster", "group") if fields.get(n) not in (None, "")), None)
    return str(fields[name]) if name else document

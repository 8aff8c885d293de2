"""`ifeval`: whether an answer follows verifiable instructions, as IFEval's official scorer judges it (Zhou et al. 2023, arXiv 2311.07911).

In: instruction ids with their settings. Out: 1 if all are followed (prompt level); the explanation tells each. Strict reads the answer
as it stands, `loose` is content if one of eight readings follows (without its first line, its last one, both; each also without `*`).
"""

from __future__ import annotations

import difflib
import re
from typing import Literal

from pydantic import Field, model_validator

from demeanor.core import registry
from demeanor.core.types import Completion, Score
from demeanor.evaluation.scorers._ifeval import CHECKS

RELATIONS = ("less than", "at least")
Setting = str | int | tuple[str, ...]


class Instruction(registry.Spec):
    """One instruction of the 25 kinds, with exactly the settings that its kind reads."""

    id: str
    settings: dict[str, Setting] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> Instruction:
        if self.id not in CHECKS:
            near = difflib.get_close_matches(self.id, CHECKS, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"unknown instruction '{self.id}'.{hint} Known: {', '.join(CHECKS)}.")
        wanted = CHECKS[self.id][1]
        if set(self.settings) != set(wanted):
            raise ValueError(f"{self.id}: got settings {sorted(self.settings)}, wanted {sorted(wanted)}")
        for name, value in self.settings.items():
            _right(self.id, name, value)
        relation = next((x for x in self.settings if x.endswith("relation")), "")
        counts = [n for n, x in self.settings.items() if isinstance(x, int) and x < 1]
        if relation and self.settings[relation] == "less than" and counts:
            raise ValueError(f"{self.id}: {counts[0]}: less than 0 of anything, which no answer satisfies")
        return self


def _right(kind: str, name: str, value: Setting) -> None:
    """Raise ValueError for a value of the wrong type, a relation nobody knows or a word that is no expression."""
    if name.endswith("relation"):
        if value not in RELATIONS:
            raise ValueError(f"{kind}: {name}: got {value!r}, wanted one of {', '.join(RELATIONS)}")
        return
    lists = name in ("keywords", "forbidden_words")
    numbers = name.startswith(("num_", "nth_")) or name.endswith("frequency")
    if numbers:
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= (name == "nth_paragraph")
    else:
        fits = isinstance(value, tuple if lists else str) and bool(value)
    if not fits:
        raise ValueError(
            f"{kind}: {name}: got {value!r}, wanted {'a list of text' if lists else 'a whole number' if numbers else 'text'}"
        )
    for word in (
        value if isinstance(value, tuple) else (value,) if name in ("keyword", "section_spliter") else ()
    ):
        if re.search(
            r"(?<!\\)[*+?}]\+", str(word)
        ):  # Python 3.11 reads a possessive quantifier, older ones refuse it
            raise ValueError(
                f"{kind}: {name}: {word!r} is read as a regular expression; write {re.escape(str(word))!r}"
            )
        try:
            re.compile(str(word))  # the official scorer reads them as expressions
        except re.error as error:
            raise ValueError(f"{kind}: {name}: {word!r} is no regular expression: {error}") from None


class Spec(registry.Spec):
    """What was asked for."""

    instructions: tuple[Instruction, ...] = Field(
        min_length=1, description="ids of IFEval with their settings"
    )
    mode: Literal["strict", "loose"] = Field("strict", description="loose: one of eight readings must follow")


def readings(text: str) -> list[str]:
    """The eight texts of which loose scoring wants one to follow."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(x.replace("*", "") for x in cut)]


def followed(target: Spec, text: str) -> list[bool]:
    """Whether each instruction is followed; an empty text follows none."""
    texts = [t for t in (readings(text) if target.mode == "loose" else [text]) if t.strip()]
    return [any(CHECKS[i.id][0](t, i.settings) for t in texts) for i in target.instructions]


def score(target: Spec, completion: Completion) -> Score:
    """1.0 if every instruction is followed."""
    found = followed(target, completion.text)
    told = ", ".join(
        f"{i.id} {'followed' if ok else 'NOT followed'}"
        for i, ok in zip(target.instructions, found, strict=True)
    )
    return Score(float(all(found)), f"{sum(found)} of {len(found)} followed", told)

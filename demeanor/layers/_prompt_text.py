"""The text of a system prompt: its front matter (version), and its variables.

In: a file or a text with `{{ name }}` in it, declared variables, and what a request's metadata sets. Out: the text that
the model reads. The language is substitution and nothing else. A request can only choose among declared values, give a
number in a declared range, or a short word of a declared pattern: none of them can hold a sentence, so none can
instruct the model with a system's authority.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import re2
import yaml
from pydantic import Field, field_validator, model_validator

from demeanor.core import registry
from demeanor.core.errors import Problem, RequestError, SpecError, unknown
from demeanor.core.files import read_text

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
MOST_CHARS = 64  # of a value that a request gives
_PLACE = re.compile(r"\\?\{\{(.*?)\}\}", re.DOTALL)
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,9})?", re.ASCII)


class VariableSpec(registry.Spec):
    """One variable of a system prompt."""

    value: str = Field(description="what stands in its place, unless a request says otherwise")
    request: bool = Field(False, description="the request's `metadata` may set it, by its name")
    values: tuple[str, ...] | None = Field(
        None, min_length=1, description="with request: one of these texts; null: any other kind"
    )
    number: tuple[float, float] | None = Field(
        None, description="with request: a number from the first to the second; null: any other kind"
    )
    pattern: str | None = Field(
        None,
        min_length=1,
        description="with request: an RE2 pattern that the whole value matches; at most 64 characters, no white space",
    )

    @field_validator("value", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _fits(self) -> VariableSpec:
        kinds = [name for name in ("values", "number", "pattern") if getattr(self, name) is not None]
        if self.request and len(kinds) != 1:
            raise ValueError(
                f"got {' and '.join(kinds) or 'none'} of values, number and pattern, wanted one: a request may not "
                "write free text into a system prompt"
            )
        if kinds and not self.request:
            raise ValueError(f"{kinds[0]} is for request: true; leave it out")
        if self.pattern is not None:
            try:
                re2.compile(self.pattern)
            except re2.error as error:
                raise ValueError(f"pattern: {error}") from None
        if self.number is not None and self.number[0] > self.number[1]:
            raise ValueError(
                f"number: got {self.number[0]:g} to {self.number[1]:g}, wanted the smaller one first"
            )
        return self

    def refusal(self, given: str) -> str | None:
        """Return what is wrong with a request's value, or None."""
        if self.values is not None:
            return None if given in self.values else f"wanted one of {', '.join(self.values)}"
        if self.number is not None:
            low, high = self.number
            fits = _NUMBER.fullmatch(given) and low <= float(given) <= high
            return None if fits else f"wanted a number from {low:g} to {high:g}"
        assert self.pattern is not None, "a request's variable has one of three kinds"
        if len(given) > MOST_CHARS or any(c.isspace() or not c.isprintable() for c in given):
            return f"wanted at most {MOST_CHARS} characters without white space"
        return None if re2.fullmatch(self.pattern, given) else f"wanted the pattern {self.pattern}"


Variables = Mapping[str, VariableSpec]


class FrontMatter(registry.Spec):
    """The head of a prompt file, between two lines of `---`."""

    version: str | int | float = Field(description="what traces call this version of the prompt")
    description: str | None = Field(None, description="what changed, for people")


@dataclass(frozen=True, slots=True)
class PromptText:
    """A prompt file: its text without the front matter, its version, and a hash of the whole file (12 hex digits)."""

    text: str
    version: str
    sha256: str
    description: str = ""


def read(path: Path) -> PromptText:
    """Read a prompt file; raises SpecError for a front matter that cannot be read."""
    return parsed(read_text(path), str(path))


def parsed(source: str, where: str = "text") -> PromptText:
    """Return a prompt's source as text and version. It has a front matter if its first line is `---` and what stands
    before the next such line is a mapping."""
    hashed = hashlib.sha256(source.encode()).hexdigest()[:12]
    head, found = _head(source)
    if head is None:
        return PromptText(source.strip(), "", hashed)
    front, problems = registry.parse(FrontMatter, head, where)
    if front is None:
        raise SpecError(problems)
    return PromptText(found.strip(), str(front.version), hashed, front.description or "")


def _head(source: str) -> tuple[dict[str, Any] | None, str]:
    first, _, rest = source.partition("\n")
    if first.rstrip() != "---":
        return None, source
    head, mark, body = f"\n{rest}".partition("\n---\n")
    try:
        found = yaml.safe_load(head) if mark else None
    except (yaml.YAMLError, RecursionError):
        return None, source
    return (found, body) if isinstance(found, dict) else (None, source)


def check(source: str, variables: Variables, where: str) -> list[Problem]:
    """Return the variables that a text names and no one declares, and those that are declared for nothing."""
    problems = []
    used: set[str] = set()
    for found in _PLACE.finditer(source):
        name = found[1].strip()
        if found[0].startswith("\\"):
            continue
        used.add(name)
        if not NAME.fullmatch(name):
            what = f"got '{found[0][:60]}', wanted {{{{ name }}}}; write \\{{{{ ... }}}} for the braces themselves"
            problems.append(Problem(where, what))
        elif name not in variables:
            problems.append(Problem(where, unknown(name, variables, noun="variable")))
    for name in variables:
        if not NAME.fullmatch(name):
            problems.append(Problem(f"{where}: variables", f"got '{name}', wanted a lower-case word"))
        elif name not in used:
            problems.append(Problem(f"{where}: variables.{name}", "the text does not use it; leave it out"))
    return problems


def values_of(variables: Variables, metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the value of every variable for a request. Raises RequestError (400) for one that may not be set so."""
    found = {}
    for name, variable in variables.items():
        given = metadata.get(name) if variable.request else None
        if given is not None and (wrong := variable.refusal(given)) is not None:
            raise RequestError(f"metadata.{name}: {wrong}.", param=f"metadata.{name}", code="invalid_value")
        found[name] = variable.value if given is None else given
    return found


def filled(source: str, values: Mapping[str, str]) -> str:
    """Return a text with its variables filled in, in one pass: a value is never read as a variable."""
    return _PLACE.sub(lambda m: m[0][1:] if m[0].startswith("\\") else values[m[1].strip()], source)

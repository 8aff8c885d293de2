"""Reads the cue files of this folder: patterns in which {name} stands for any of the words that the file lists under that name.

Input: a YAML file and what it must hold. Output: its settings; regular expressions. A mistake in a file is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

from demeanor.core import registry
from demeanor.core.errors import DemeanorError, SpecError, unknown
from demeanor.stack import validate

S = TypeVar("S", bound=registry.Spec)
Words: TypeAlias = Mapping[str, str | tuple[str, ...]]
"""A name's words: alternatives, or one regular expression."""
_NAME = re.compile(r"\{([A-Za-z]+)\}")


def read(file: str, model: type[S]) -> S:
    """The settings of a YAML file of this folder; raises SpecError with every mistake in it."""
    path = Path(__file__).parent / file
    found, problems = registry.parse(model, validate.read_yaml(path), path.name)
    if found is None:
        raise SpecError(problems)
    return found


def expression(patterns: Iterable[str], words: Words, where: str, flags: int = 0) -> re.Pattern[str]:
    """One regular expression of several alternatives, names in braces replaced by their words."""

    def alternatives(match: re.Match[str]) -> str:
        if match[1] not in words:
            raise DemeanorError(f"{where}: {unknown(match[1], words, noun='name in braces')}")
        listed = words[match[1]]
        return listed if isinstance(listed, str) else "(?:" + "|".join(listed) + ")"

    text = _NAME.sub(alternatives, "|".join(patterns))
    try:
        return re.compile(text, flags)
    except re.error as error:
        raise DemeanorError(f"{where}: not a regular expression: {error}") from None

"""Who gets which arm: a hash of the user and the experiment's salt, so that a user stays where they are and experiments do not agree.

In: declarations and a user. Out: the arm's number and the user's unit. Nothing is stored, so several servers assign alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from demeanor.core.types import Messages
from demeanor.stack.serving_schema import ExperimentSpec


class Assignment(NamedTuple):
    """A user's place in an experiment: the number of the arm, and the hash that stands for the user."""

    experiment: ExperimentSpec
    arm: int
    unit: str


def identity(user: str | None, messages: Messages) -> str:
    """What is assigned: the user, or without one the conversation by its first user message, so that all its turns get one arm."""
    if user:
        return f"user\x1f{user}"
    first = next((m.content for m in messages if m.role == "user"), "")
    return f"conversation\x1f{first}"


def uniform(*parts: str) -> float:
    """A number in [0, 1) that is a function of the parts, and looks random."""
    return int.from_bytes(_hash(*parts)[:8]) / 2**64


def _hash(*parts: str) -> bytes:
    text = "\x1f".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def assign(spec: ExperimentSpec, who: str) -> Assignment | None:
    """The arm of whoever it is in this experiment; None if they are not part of its traffic."""
    salt = spec.name if spec.salt is None else spec.salt
    if uniform(salt, "traffic", who) >= spec.traffic:
        return None
    at, ends = uniform(salt, "arm", who), accumulate(arm.share for arm in spec.arms[:-1])
    return Assignment(spec, sum(at >= end for end in ends), _hash(salt, "unit", who)[:8].hex())


def first_assignment(
    specs: Sequence[ExperimentSpec], running: Mapping[str, bool], who: str
) -> Assignment | None:
    """The assignment in the first running experiment that takes them: nobody is in two at once."""
    for spec in specs:
        if running.get(spec.name, True) and (found := assign(spec, who)) is not None:
            return found
    return None

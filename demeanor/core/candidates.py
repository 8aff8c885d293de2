"""A comparison of answers that may become a row of a preference set, whoever made it: people, judges, or a model that mended itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

CandidateKind: TypeAlias = Literal["correction", "thumbs", "comparison", "label", "judge", "revision"]
KINDS: tuple[CandidateKind, ...] = ("correction", "thumbs", "comparison", "label", "judge", "revision")


@dataclass(frozen=True, slots=True)
class PreferenceCandidate:
    """A prompt (OpenAI's messages) with answers and their ranks (0 is best), and where they came from.

    `unusable` says why it can be no row, where its source knows: a tie, a complaint that belongs to another layer. `turn_ids` are the
    recorded turns whose words it holds, `users` whose they are.
    """

    kind: CandidateKind
    prompt: Sequence[Mapping[str, Any]]
    completions: tuple[str, ...]
    ranks: tuple[int, ...]
    source: str
    unusable: str = ""
    turn_ids: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    stack_keys: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

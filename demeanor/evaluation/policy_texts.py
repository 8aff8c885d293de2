"""The texts that the shipped injection detector learns from: attacks made from templates, harmless texts with their words.

In: the files in `policies/texts/`, a seed. Out: LabelledTexts. All of them were written for this project.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import yaml

from demeanor.core.registry import SHIPPED
from demeanor.evaluation.labelled_texts import LabelledText, read

SLOT = re.compile(r"\{(\w+)\}")
TEXTS = SHIPPED / "texts"
TRIGGERS, FURTHER = TEXTS / "benign-triggers.txt", TEXTS / "benign-confirm.txt"
ATTACKS, HARMLESS = TEXTS / "injection-attacks.yaml", TEXTS / "benign-templates.yaml"


def attacks(for_each: int, seed: int = 0) -> list[LabelledText]:
    """Return attacks, up to `for_each` distinct texts of each template."""
    return _expanded(ATTACKS, frozenset({"injection"}), for_each, seed)


def harmless(for_each: int, seed: int = 0) -> list[LabelledText]:
    """Return harmless texts with the words of attacks, up to `for_each` distinct ones of each template."""
    return _expanded(HARMLESS, frozenset(), for_each, seed)


def _expanded(path: Path, labels: frozenset[str], for_each: int, seed: int) -> list[LabelledText]:
    """Return texts of all templates of a file; those of one template are one group."""
    written: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    rng, found = random.Random(seed), list[LabelledText]()
    for templates in written["groups"].values():
        for template in templates:
            texts = {
                _filled(template, written["slots"], rng) for _ in range(for_each if "{" in template else 1)
            }
            found += [LabelledText(text, labels, template, path.stem) for text in sorted(texts)]
    return found


def triggers() -> list[LabelledText]:
    """Return the harmless texts with the words of injections."""
    return read([TRIGGERS])


def _filled(template: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    text = SLOT.sub(lambda slot: rng.choice(slots[slot[1]]), template)
    return text[:1].upper() + text[1:] if rng.random() < 0.8 else text

"""The files of the demo's stack: written by `demeanor init`, and kept in stacks/demo (a test compares the two)."""

from __future__ import annotations

from importlib import resources

from demeanor.world.behaviour import SYSTEM
from demeanor.world.notices import notices


def contents() -> dict[str, str]:
    """Every file by its path: stack.yaml, policy.yaml, prompts/system.md and today's notices."""
    here = resources.files("demeanor.world")
    found = {name: (here / name).read_text(encoding="utf-8") for name in ("stack.yaml", "policy.yaml")}
    found["prompts/system.md"] = SYSTEM
    return found | {f"notices/{n.name}": n.text for n in notices()}

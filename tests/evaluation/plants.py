"""Ten stacks with one broken layer each, and five healthy ones: the same declaration with one thing changed.

Each plant is overrides of the stack file, faults of its weights, or a change of a layer's file; `suspect` is the layer to be named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from demeanor.evaluation.items import save_suite
from demeanor.layers import tools
from demeanor.layers.tools import LoadedTool
from demeanor.stack.stack import Stack
from tests.app import tiny
from tests.evaluation import clerk
from tests.evaluation.clerk import Fault

PROMPT = "You are the clerk of the harbour. " + " ".join(f"{k} {v}." for k, v in clerk.CARD.items())
ROLE_PLAY = {
    "name": "role-play",
    "on": "input",
    "pattern": "(?i)pretend you are",
    "action": "refuse",
    "reason": "a wrapping",
    "reply": "No games.",
}
CARDS = {
    "name": "card",
    "on": "output",
    "detector": "card",
    "action": "refuse",
    "reason": "a card number",
    "reply": "I cannot show that.",
}
STRICT = {
    "name": "how-to",
    "on": "input",
    "pattern": "(?i)how do",
    "action": "refuse",
    "reason": "too strict",
    "reply": "I cannot help with that.",
}
IDLE = {
    "name": "shouting",
    "on": "input",
    "pattern": "[A-Z]{12}",
    "action": "refuse",
    "reason": "shouting",
    "reply": "Please do not shout.",
}
QUANTISED = {"kind": "quantise", "name": "quantised", "format": "int8", "parent": "dpo"}


@dataclass(frozen=True)
class Plant:
    """One stack: what is changed, and which layer that makes suspect (`none`: it stays healthy)."""

    suspect: str
    system: str = PROMPT
    rules: tuple[Mapping[str, object], ...] = (ROLE_PLAY, CARDS)
    stale: bool = False
    quantised: bool = False
    template: str | None = None
    temperature: float = 0.0
    top_k: int = 1
    drifted: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, Fault] = field(default_factory=dict)


PLANTS: Mapping[str, Plant] = {
    "wrong template": Plant("template", template="chatml"),
    "missing end of turn": Plant("sft", faults={"sft": Fault(endless=True), "dpo": Fault(endless=True)}),
    "stale index": Plant("retrieval", stale=True),
    "contradictory prompt": Plant("prompt", system=PROMPT + " Say nothing."),
    "over-strict rule": Plant("policy", rules=(ROLE_PLAY, CARDS, STRICT)),
    "temperature 2": Plant("decoding", temperature=2.0),
    "quantisation damage": Plant("quantised", quantised=True, faults={"quantised": Fault(damaged=True)}),
    "shuffled preferences": Plant("dpo", faults={"dpo": Fault(shuffled=True)}),
    "leaked system prompt": Plant("prompt", system=PROMPT + " Password Falafel."),
    "tool schema drift": Plant("tools", drifted={"expression": "formula"}),
}
HEALTHY: Mapping[str, Plant] = {
    "as declared": Plant("none"),
    "prompt reordered": Plant(
        "none", system="You are the clerk of the harbour. Phone 47. Channel 63. Desk Pilot. Closing 21."
    ),
    "another rule": Plant("none", rules=(ROLE_PLAY, CARDS, IDLE)),
    "rounded without loss": Plant("none", quantised=True),
    "warm": Plant("none", temperature=0.7),
}


def stack_of(plant: Plant, folder: Path, ports: int = len(clerk.ASKED)) -> Stack:
    """Write the planted stack with its files and its suite about so many ports, and load it."""
    from demeanor.app import load_stack

    tiny.write(folder)
    asked = clerk.ASKED[:ports]
    truth = {
        f"board-{n}.md": {p: str((7 * i + 5) % 60) for i, p in enumerate(asked) if i // 4 == n}
        for n in range(5)
    }
    texts = {
        name: "Departures today: " + " ".join(f"{k} {v}." for k, v in values.items())
        for name, values in truth.items()
    }
    for old in (folder / "notices").iterdir():
        old.unlink()
    (folder / "truth").mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / "truth" / name).write_text(text)
        stale = "Departures today: " + " ".join(f"{k} {(int(v) + 13) % 60}." for k, v in truth[name].items())
        (folder / "notices" / name).write_text(stale if plant.stale else text)
    (folder / "system.md").write_text(plant.system)
    (folder / "policy.yaml").write_text(yaml.safe_dump({"rules": [dict(r) for r in plant.rules]}))
    save_suite(
        clerk.suite({name: (texts[name], truth[name]) for name in truth}, asked), folder / "suite.jsonl"
    )
    declared = tiny.TINY | {
        "evaluation": {"suites": ["suite.jsonl"]},
        "decoding": {"temperature": plant.temperature, "max_tokens": 80},
    }
    weights = cast(dict[str, Any], tiny.TINY["weights"])
    stages = [
        s | ({"seed": 7} if s["name"] in plant.faults else {}) for s in weights["stages"]
    ]  # other weights: another key
    if plant.quantised:
        stages, weights = [*stages, QUANTISED], weights | {"serve": "quantised"}
    declared["weights"] = weights | {"stages": stages}
    (folder / "stack.yaml").write_text(yaml.safe_dump(declared, sort_keys=False))
    stack = load_stack(folder / "stack.yaml")
    return stack.with_template(plant.template) if plant.template else stack


def drifted(names: Mapping[str, str]) -> dict[str, LoadedTool] | None:
    """The tools with the calculator's arguments renamed."""
    return (
        {"calculator": tools.with_renamed_arguments(tools.load(["calculator"])["calculator"], names)}
        if names
        else None
    )

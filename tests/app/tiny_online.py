"""The tiny stack with online stages on its trained sft and rm: seconds each."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from tests.app import tiny

SMALL: dict[str, Any] = {
    "parent": "sft",
    "prompts": [{"source": "world:preferences", "limit": 40}],
    "reward": [{"kind": "model", "stages": ["rm"]}],
    "rollouts": {"count": 3, "max_tokens": 12},
    "optim": {"lr": 1.0e-3, "warmup": 0.0},
    "batch_rows": 4,
    "steps": 4,
}
ITEMS: dict[str, Any] = {
    **SMALL,
    "prompts": [{"source": "world:behaviour", "items": True, "axes": ["facts", "format"]}],
    "reward": ["item", {"kind": "length", "free": 8, "weight": 0.1}],
}
STAGES: dict[str, dict[str, Any]] = {
    "rloo": {**SMALL, "objective": {"kind": "rloo", "kl_coef": 0.05}},
    "grpo": {**ITEMS, "objective": "grpo", "inner_epochs": 2, "minibatches": 2},
    "ppo": {
        **SMALL,
        "objective": {"kind": "ppo", "kl_target": 0.5},
        "reward": [{"kind": "model", "stages": ["rm"], "normalise": "demonstrations"}, "repetition"],
        "ptx": {"data": [{"source": "world:corpus", "limit": 60}], "weight": 0.5, "batch_rows": 4},
        "cost": {"terms": [{"kind": "length", "free": 4, "weight": -1.0}], "limit": 0.1},
    },
    "online_dpo": {**SMALL, "objective": {"kind": "dpo", "beta": 0.1}},
    "best_of_n": {**SMALL, "objective": "sft"},
}


def write(folder: Path, *stages: str, **changes: Any) -> Path:
    """The tiny stack with these online stages, each with `changes`; returns the stack file."""
    path = tiny.write(folder)
    stack = deepcopy(tiny.TINY)
    weights: Any = stack["weights"]
    weights["stages"] = [x for x in weights["stages"] if x["name"] in ("sft", "rm")]
    weights["stages"] += [{"name": name, **deepcopy(STAGES[name]), **changes} for name in stages]
    weights["serve"] = stages[-1]
    path.write_text(yaml.safe_dump(stack, sort_keys=False))
    return path

"""Checks the blocks of YAML and JSON: a stack or a part of one against the schema and every plug-in, rules as rules.

A part is put into the demo's stack: settings of its top, stages, layers. Files that only the reader has are no mistake.
"""

from __future__ import annotations

import json
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from bench.pages.blocks import ROOT, Block

STAGE_PARTS = {"rollouts", "optim", "reward", "cost", "ptx", "probe"}
ABSENT = (
    "no such file",
    "no such folder",
    "no such suite",
    "no such checkpoint",
    "is not a folder",
    "nothing matches",
    "No such file",
)
GATE = {"superiority", "non_inferiority", "zero_tolerance", "stability", "confidence"}


def problems(block: Block) -> list[str]:
    """What is wrong in a block of YAML or JSON."""
    try:
        if block.language == "json":
            return _json(block.text)
        found = yaml.safe_load(block.text)
    except (ValueError, yaml.YAMLError) as error:
        return [str(error)]
    kind = block.settings.get("as") or kind_of(found)
    if kind not in CHECKS:
        return [f"settings of no known kind ({kind}); say `as:` one of {sorted(CHECKS)}, or skip: fragment"]
    return CHECKS[kind](found, block)


def _json(text: str) -> list[str]:
    """One value, or one a line, or values one after the other."""
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        _, end = decoder.raw_decode(rest)
        rest = rest[end:].strip()
    return []


def kind_of(found: Any) -> str:
    """What a piece of YAML is a part of."""
    first = found[0] if isinstance(found, list) and found else found
    keys = {str(key) for key in first} if isinstance(first, dict) else set()
    if isinstance(found, list):
        return "stages" if keys & {"objective", "parent"} else "layers" if "kind" in keys else "rules"
    if keys & GATE:
        return "gate"
    if "rules" in keys:
        return "rewards" if any("scorer" in rule for rule in found["rules"]) else "rules"
    if keys & STAGE_PARTS and not keys & {"weights", "layers"}:
        return "stage"
    if keys <= {
        "name",
        "weights",
        "stages",
        "layers",
        "serve",
        "evaluation",
        "template",
        "decoding",
        "shadows",
        "evaluators",
    }:
        return "stack"
    return f"keys {sorted(keys)}"


def _loaded(raw: dict[str, Any], folder: Path) -> list[str]:
    """The mistakes of a stack that are not a reader's own missing files."""
    from demeanor import app
    from demeanor.core.errors import SpecError

    path = folder / "block.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    try:
        app.load_stack(path)
    except SpecError as error:
        return [str(p) for p in error.problems if not any(text in str(p) for text in ABSENT)]
    return []


def _folder() -> Path:
    """The files of the demo's stack, once a process."""
    import shutil

    if not _made:
        folder = Path(tempfile.mkdtemp(prefix="pages-"))
        shutil.copytree(ROOT / "stacks" / "demo", folder, dirs_exist_ok=True)
        _made.append(folder)
    return _made[0]


_made: list[Path] = []


def _demo() -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load((ROOT / "stacks" / "demo" / "demo.yaml").read_text())
    return raw


def stack(found: dict[str, Any], block: Block) -> list[str]:
    """A whole stack (it has a name) or some of its top settings."""
    if "stages" in found:
        found = {"weights": {"stages": found["stages"]}} | {k: v for k, v in found.items() if k != "stages"}
    serve = {k: found[k] for k in ("shadows", "evaluators") if k in found}
    found = {k: v for k, v in found.items() if k not in serve}
    raw = found if "name" in found and "weights" in found else _demo()
    if serve:
        found = {**found, "serve": {**found.get("serve", {}), **serve}}
    for key, value in found.items():
        if key == "weights" and raw is not found and "base" not in value:
            for stage in value.get("stages", []):
                _put(raw, stage)
            raw["weights"] |= {k: v for k, v in value.items() if k != "stages"}
            raw["weights"]["serve"] = None
        else:
            raw[key] = value
            if key == "weights" and "template" not in found and _remote(value):
                raw.pop("template", None)  # that server writes its prompts itself
    return _loaded(raw, _folder())


def _remote(weights: dict[str, Any]) -> bool:
    base = weights.get("base")
    return isinstance(base, dict) and base.get("kind") == "remote"


def _put(raw: dict[str, Any], stage: dict[str, Any]) -> None:
    stages = raw["weights"]["stages"]
    names = [s["name"] for s in stages]
    if stage.get("name") in names:
        stages[names.index(stage["name"])] = stage
    else:
        stages.append(stage)
    raw["weights"]["serve"] = None


def stages(found: list[dict[str, Any]], block: Block) -> list[str]:
    return stack({"weights": {"stages": found}}, block)


def stage(found: dict[str, Any], block: Block) -> list[str]:
    """Some settings of a stage: of one that learns online, if they are of such."""
    asked = [{"source": "world:exercises", "items": True}]
    online = {"objective": "grpo", "prompts": asked, "reward": ["item"], "steps": 2}
    return stages([{"name": "here", "parent": "sft", **online, **found}], block)


def layers(found: list[Any], block: Block) -> list[str]:
    return stack({"layers": found}, block)


def alternatives(found: dict[str, Any], block: Block) -> list[str]:
    """Layers of which a stack has one."""
    return [problem for layer in found["layers"] for problem in layers([layer], block)]


def rules(found: Any, block: Block) -> list[str]:
    """Rules of a policy, as the layer reads them."""
    from demeanor.app import policy_kit
    from demeanor.core.errors import SpecError
    from demeanor.layers.policy import matching

    path = _folder() / "block-rules.yaml"
    text = block.text if isinstance(found, dict) else "rules:\n" + textwrap.indent(block.text, "  ")
    path.write_text(text)  # as it stands: `on` is no YAML 1.1 there
    try:
        matching.load(path, policy_kit())
    except SpecError as error:
        return [str(p) for p in error.problems if not any(text in str(p) for text in ABSENT)]
    return []


def gate(found: Any, block: Block) -> list[str]:
    from demeanor.core.errors import SpecError
    from demeanor.evaluation.gate import read_rules

    path = _folder() / "block-gate.yaml"
    path.write_text(yaml.safe_dump(found))
    try:
        read_rules(path)
    except SpecError as error:
        return [str(p) for p in error.problems]
    return []


def rewards(found: Any, block: Block) -> list[str]:
    (_folder() / "block-rewards.yaml").write_text(yaml.safe_dump(found))
    return stage({"reward": [{"kind": "rules", "rules": "block-rewards.yaml"}]}, block)


def plain(found: Any, block: Block) -> list[str]:
    """YAML of another program, or a file that has its own test: it parses."""
    return []


CHECKS: dict[str, Callable[[Any, Block], list[str]]] = {
    "stack": stack,
    "stages": stages,
    "stage": stage,
    "layers": layers,
    "alternatives": alternatives,
    "rules": rules,
    "gate": gate,
    "rewards": rewards,
    "plain": plain,
}

"""The page for people who come from TRL: what it names exists here. tests/parity checks that nothing of TRL is missing."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from demeanor.core import registry
from demeanor.stack.schema import OnlineStage, Optim, RolloutsSpec
from tests.conftest import each
from tests.test_stack import SOUND, load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-trl.md"
KINDS = [
    kind
    for kind in registry.known("demeanor.objectives")
    if registry.entry("demeanor.objectives", kind).ONLINE is not None
]


def mapped() -> list[tuple[list[str], str]]:
    """TRL's names and our setting, of every row of the tables with both."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| `([\w.]+)` \|", PAGE.read_text(), re.M)
    return [(re.findall(r"\w+", names), ours) for names, ours in rows]


def test_every_setting_that_the_page_names_exists_here() -> None:
    objectives = {f for kind in KINDS for f in registry.spec_of("demeanor.objectives", kind).model_fields}
    known = (
        {f"objective.{f}" for f in objectives}
        | {f"rollouts.{f}" for f in RolloutsSpec.model_fields}
        | {f"optim.{f}" for f in Optim.model_fields}
        | set(OnlineStage.model_fields)
    )
    assert [ours for _, ours in each(mapped()) if ours not in known] == []
    assert len(mapped()) > 25


def test_the_pages_stage_is_a_stage(tmp_path: Path) -> None:
    written = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)
    (stage,) = yaml.safe_load(written[0])
    stage["prompts"] = [{"source": "world:instructions"}]
    raw = {**SOUND, "weights": {**SOUND["weights"], "stages": [*SOUND["weights"]["stages"], stage]}}
    assert load(tmp_path, raw).objective_kind("rl") == "grpo"

"""Contract of every entry of the objectives folder: a new objective is tested the moment it exists."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs
from demeanor.objectives import MovingReference, Objective, Online
from tests.objectives.page import PAGE, page, section

PACKAGE = "demeanor.objectives"
ROOT = Path(__file__).resolve().parents[2]


def read_by(function: Callable[..., Any]) -> set[str]:
    """Attributes of `spec` that the body of a function reads, methods of pydantic left out."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    attributes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    read = {n.attr for n in attributes if isinstance(n.value, ast.Name) and n.value.id == "spec"}
    return {name for name in read if not name.startswith("model_")}


def declared(online: Online) -> list[Callable[..., Any]]:
    """The functions of the settings that an objective on its own completions declares."""
    return [value for value in vars(online).values() if callable(value)]


@pytest.mark.parametrize("name", registry.known(PACKAGE))
def test_an_objective_declares_itself_and_reads_all_its_settings(name: str) -> None:
    objective = registry.entry(PACKAGE, name)
    assert isinstance(objective, Objective)
    assert any(character.isdigit() for character in objective.source), (
        "name the paper, its year and the equation"
    )
    assert objective.ROWS in ("examples", "preferences", "unpaired", "prompts")
    assert (objective.ROWS == "prompts") == (objective.ONLINE is not None)
    assert objective.READS in ("logprobs", "rewards")
    assert set(objective.ROLES) <= {"reference"}
    assert isinstance(objective.POLICY, bool)
    assert isinstance(objective.WHOLE_STEP, bool)
    assert isinstance(objective.KL, bool)
    assert {f"{statistic}_C" for statistic in objective.STATISTICS} <= set(Outputs._fields)
    assert list(inspect.signature(objective.loss).parameters) == ["spec", "outputs", "batch"]
    assert inspect.signature(objective.loss).return_annotation in (Loss, "Loss")
    assert objective.loss.__doc__
    read = read_by(objective.loss)
    if objective.MOVING is not None:
        read |= read_by(objective.MOVING)
        assert isinstance(objective.MOVING(objective.Spec()), MovingReference)
    if objective.ONLINE is not None:
        read |= set().union(*(read_by(function) for function in declared(objective.ONLINE)))
    fields = registry.spec_of(PACKAGE, name).model_fields
    assert read == set(fields), "a setting that nothing reads, or one that is not declared"
    assert all(f.description for f in fields.values())


@pytest.mark.parametrize("name", registry.known(PACKAGE))
def test_an_objective_has_its_section_with_every_setting_and_its_source(name: str) -> None:
    text = section(name)
    assert [f for f in registry.spec_of(PACKAGE, name).model_fields if f"\n* `{f}` (" not in text] == []
    assert "`L = " in text
    papers = re.findall(r"\d{4}\.\d{5}", registry.entry(PACKAGE, name).source)
    assert [paper for paper in papers if paper not in text] == []
    assert f"[`{name}`](#{name})" in page(name).read_text(), "a row of the table at the top"


@pytest.mark.parametrize(
    "name", [k for k in registry.known(PACKAGE) if registry.entry(PACKAGE, k).ONLINE is not None]
)
def test_an_objective_on_its_own_completions_stands_in_the_table_of_all_objectives(name: str) -> None:
    assert f"[`{name}`](online-objectives.md#{name})" in PAGE.read_text()


def test_a_stage_reads_no_setting_of_an_objective() -> None:
    """What training must provide is declared by the objective, so a new one changes no file of train/."""
    tree = ast.parse((ROOT / "demeanor" / "training" / "stage.py").read_text())
    attributes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    reads = {n.attr for n in attributes if isinstance(n.value, ast.Name) and n.value.id == "settings"}
    assert not reads

"""Contract of every file of the objectives folder: a new objective is tested the moment it exists."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from demeanor.core import registry
from demeanor.model.tensors import Loss

PACKAGE = "demeanor.objectives"
STAGE = (Path(__file__).resolve().parents[2] / "demeanor" / "train" / "stage.py").read_text()
DOCS = Path(__file__).resolve().parents[2] / "docs" / "objectives"


@pytest.mark.parametrize("name", registry.known(PACKAGE))
def test_an_objective_declares_itself_and_reads_all_its_settings(name: str) -> None:
    module = registry.entry(PACKAGE, name)
    assert "Source:" in (module.__doc__ or ""), "name the paper and the equation"
    assert module.ROWS in ("examples", "preferences", "unpaired")
    assert module.READS in ("logprobs", "rewards")
    assert isinstance(module.ROLES, tuple)
    assert isinstance(module.POLICY, bool)
    assert list(inspect.signature(module.loss).parameters) == ["spec", "outputs", "batch"]
    assert inspect.signature(module.loss).return_annotation in (Loss, "Loss")
    tree = ast.parse(Path(str(module.__file__)).read_text())
    read = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "spec"
    }
    if getattr(module, "MOVING", False):
        read |= {"alpha", "every"}  # how the reference moves is train's to read
        assert "settings.alpha" in STAGE
        assert "settings.every" in STAGE
    assert set(getattr(module, "STATISTICS", ())) <= {"collision"}
    assert isinstance(getattr(module, "WHOLE_STEP", False), bool)
    assert read == set(registry.spec_of(PACKAGE, name).model_fields), (
        "a setting that nothing reads, or one that is not declared"
    )
    assert all(f.description for f in registry.spec_of(PACKAGE, name).model_fields.values())


@pytest.mark.parametrize("name", registry.known(PACKAGE))
def test_an_objective_has_its_page_with_every_setting(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text()
    for field in registry.spec_of(PACKAGE, name).model_fields:
        assert f"`{field}`" in page

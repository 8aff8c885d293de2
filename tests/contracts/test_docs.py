"""The documentation names what exists: links, settings, plug-ins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from demeanor.core import registry
from demeanor.stack import schema

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), DOCS.parent / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_relative_link_exists(page: Path) -> None:
    links = [x for x in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in x]
    assert [x for x in links if not (page.parent / x).exists()] == []


@pytest.mark.parametrize(
    "name",
    [
        "StackSpec",
        "WeightsSpec",
        "Scratch",
        "Import",
        "TokenizerSpec",
        "ModelShape",
        "Stage",
        "Adapter",
        "ImportStage",
        "MergeStage",
        "Optim",
        "Source",
        "DecodingSpec",
        "EvaluationSpec",
        "JudgeSpec",
    ],
)
def test_every_setting_of_the_stack_is_on_its_page(name: str) -> None:
    page = (DOCS / "stack.md").read_text()
    assert [f for f in getattr(schema, name).model_fields if f"| `{f}` |" not in page] == []


@pytest.mark.parametrize("kind", registry.known("demeanor.layers"))
def test_every_layer_and_its_settings_are_on_the_page_of_layers(kind: str) -> None:
    page = (DOCS / "layers.md").read_text().split(f"\n## {kind}", 1)[1].split("\n## ")[0]
    assert [
        f for f in registry.spec_of("demeanor.layers", kind).model_fields if f"| `{f}` |" not in page
    ] == []

"""The pictures of the objectives are what the objectives compute."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from demeanor.core import registry
from tests.objectives.page import section

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "objectives"


@pytest.mark.parametrize("kind", registry.known("demeanor.objectives"))
def test_the_picture_on_an_objectives_page_is_drawn_by_the_objective(kind: str) -> None:
    found = importlib.util.spec_from_file_location("plot", FOLDER / "plot.py")
    assert found is not None
    assert found.loader is not None
    plot = importlib.util.module_from_spec(found)
    found.loader.exec_module(plot)
    assert (FOLDER / f"{kind}.svg").read_text() == plot.svg(kind), "run `python docs/objectives/plot.py`"
    assert f"(objectives/{kind}.svg)" in section(kind)

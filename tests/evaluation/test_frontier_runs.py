"""The frontier of a trained stack: its points, and its section on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from demeanor.app import services
from demeanor.evaluation import frontier, ladder
from demeanor.report import outputs, publish
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs


def test_every_stage_is_placed_bare_behind_the_layers_and_behind_policy(trained: tuple[Stack, Runs]) -> None:
    variants, placed = frontier.points(trained[0])
    assert [p.label for p in placed.values()] == [
        f"{s}{x}" for x in ("", "+layers", "+policy") for s in ("base", "sft", "dpo")
    ]
    assert {p.label: placed[p.before].label for p in placed.values() if p.before} == {
        "sft": "base",
        "dpo": "sft",
        "sft+layers": "base+layers",
        "dpo+layers": "sft+layers",
        "base+policy": "base+layers",
        "sft+policy": "sft+layers",
        "dpo+policy": "dpo+layers",
    }
    assert variants["tiny-desk"].key() == trained[0].key()


def test_the_frontier_is_a_table_a_file_and_a_section(
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    found = frontier.run(stack, services(runs), tmp_path, limit=2, name="f")
    outputs.show(frontier.section(found), outputs.console())
    assert "dpo+policy" in capsys.readouterr().out
    result = ladder.evaluate(
        stack, services(runs), tmp_path, variants=["tiny-desk:base", "tiny-desk"], limit=2, name="f"
    )
    page = publish.show(result, tmp_path).read_text()
    assert 'id="frontier"' in page
    assert "What safety costs" in page

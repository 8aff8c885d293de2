"""The page for people who come from TRL names every setting of its configurations. `make parity`."""

from __future__ import annotations

from pathlib import Path

import pytest

trl = pytest.importorskip("trl", reason="TRL is not installed here; run `make parity`")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-trl.md"


@pytest.mark.parity
@pytest.mark.parametrize("name", ["GRPOConfig", "RLOOConfig"])
def test_every_field_of_trls_configuration_stands_on_the_page(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    inherited = set(transformers.TrainingArguments.__dataclass_fields__) - {"learning_rate"}
    own = set(getattr(trl, name).__dataclass_fields__) - inherited
    text = PAGE.read_text()
    assert {"beta", "num_generations"} <= own
    assert sorted(field for field in own if f"`{field}`" not in text) == []

"""`weights.compute`: which numbers answer is part of an answer's identity, and of no stage's."""

from __future__ import annotations

from pathlib import Path

import pytest

from demeanor import app
from demeanor.core.errors import EngineError
from demeanor.engine import forward
from demeanor.model import checkpoints, native
from demeanor.stack.schema import ModelShape

DEMO = Path(__file__).parents[2] / "stacks" / "demo" / "demo.yaml"


def test_bf16_products_change_the_answers_key_and_no_stages() -> None:
    plain, exact, narrow = (
        app.load_stack(DEMO, overrides)
        for overrides in ([], ["weights.compute=fp32"], ["weights.compute=bf16"])
    )
    assert plain.key() == exact.key() != narrow.key()
    assert plain.policies, "there are stages to compare"
    assert [plain.stage_key(name) for name in plain.policies] == [
        narrow.stage_key(name) for name in narrow.policies
    ]


@pytest.mark.parametrize("fast", ["fp32", "bf16"])
def test_auto_is_what_this_machine_measures(fast: native.Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "faster", lambda: fast)
    found = app.load_stack(DEMO, ["weights.compute=auto"])
    assert found.spec.weights.compute == fast
    assert found.key() == app.load_stack(DEMO, [f"weights.compute={fast}"]).key()


def test_where_nothing_is_compiled_bf16_is_refused_and_auto_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    native.faster.cache_clear()
    monkeypatch.setattr(native, "build", lambda: None)
    model = checkpoints.create(ModelShape(layers=1, width=32, heads=2), 300, 0)
    assert native.faster() == "fp32"
    native.faster.cache_clear()
    with pytest.raises(EngineError, match=r"weights\.compute: bf16 needs the compiled decoder"):
        forward.forward_of(model, 2, 64, compute="bf16")

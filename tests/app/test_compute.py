"""`weights.compute`: which numbers answer is part of an answer's identity, and of no stage's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demeanor import app
from demeanor.core.errors import EngineError, SpecError
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
    monkeypatch.setattr(native, "faster", lambda shapes: fast)
    found = app.load_stack(DEMO, ["weights.compute=auto"])
    assert found.spec.weights.compute == fast
    assert found.key() == app.load_stack(DEMO, [f"weights.compute={fast}"]).key()


def test_where_nothing_is_compiled_bf16_is_refused_and_auto_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "build", lambda: None)
    model = checkpoints.create(ModelShape(layers=1, width=32, heads=2), 300, 0)
    assert native.faster() == "fp32"
    with pytest.raises(EngineError, match=r"weights\.compute: bf16 needs the compiled decoder"):
        forward.forward_of(model, 2, 64, compute="bf16")


def test_a_narrow_cache_changes_the_answers_key_and_no_stages() -> None:
    plain, exact, narrow, half = (
        app.load_stack(DEMO, [f"weights.cache={name}"] if name else [])
        for name in ("", "fp32", "bf16", "fp16")
    )
    assert plain.key() == exact.key()
    assert len({plain.key(), narrow.key(), half.key()}) == 3
    assert plain.policies, "there are stages to compare"
    assert [plain.stage_key(name) for name in plain.policies] == [
        narrow.stage_key(name) for name in narrow.policies
    ]


@pytest.mark.parametrize("built", [True, False])
def test_every_forward_keeps_keys_and_values_as_the_setting_says(
    built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled, and in torch where nothing is compiled: half the memory, and nearly the same logits."""
    if not built:
        monkeypatch.setattr(native, "build", lambda: None)
    elif native.build() is None:
        pytest.skip("no C++ compiler here")
    model = checkpoints.create(ModelShape(layers=2, width=64, heads=4, kv_heads=2, init="normal"), 300, 0)
    wide, narrow = (forward.forward_of(model, 2, 64, cache_format=name) for name in ("fp32", "bf16"))
    rows = forward.Rows(read=[19])
    rows.add(tuple(range(1, 21)), 0, 0)
    a, b = (x.run(rows).logits_RV for x in (wide, narrow))
    assert not torch.equal(a, b)
    assert torch.allclose(a, b, atol=0.05 * a.std().item())
    one = forward.Rows([7], [0], [20], [0])
    a, b = (x.run(one).logits_RV for x in (wide, narrow))
    assert torch.allclose(a, b, atol=0.05 * a.std().item())
    assert (wide.placement.cache, narrow.placement.cache) == ("fp32", "bf16")
    assert built or narrow.num_bytes < wide.num_bytes  # pages are counted by their budget


def test_a_remote_model_takes_no_setting_of_local_decoding(tmp_path: Path) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text(
        "name: far\nweights:\n  base: {kind: remote, url: 'http://127.0.0.1:9/v1', model: m}\n  cache: bf16\n"
    )
    with pytest.raises(SpecError, match=r"weights\.cache: .*another server"):
        app.load_stack(path)

"""Where weights decode: the CPU or CUDA, and in what numbers; what runs on a GPU is run here on the CPU through the same code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from demeanor import app
from demeanor.core.errors import EngineError, SpecError
from demeanor.core.types import Decoding
from demeanor.engine import forward, placement
from demeanor.engine.local import LocalEngine, Request
from demeanor.model import checkpoints, native
from demeanor.model.grouped import Grouped, group_rounded
from demeanor.model.grouped_modules import keep_grouped
from demeanor.model.llama import KVCache, Llama
from demeanor.stack.schema import ModelShape
from tests.engine.byte_model import ByteTokenizer
from tests.groups import grouped_matrices

DEMO = Path(__file__).parents[2] / "stacks" / "demo" / "demo.yaml"
CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here: this path never ran on a GPU"
)


def policy(vocab: int = 300) -> Llama:
    shape = ModelShape(layers=2, width=64, heads=4, kv_heads=2, context=64, init="normal")
    return checkpoints.create(shape, vocab, 0)


def rows() -> forward.Rows:
    found = forward.Rows(read=[11])
    found.add(tuple(range(1, 13)), 0, 0)
    return found


def moved_logits(model: Llama, compute: native.Compute) -> torch.Tensor:
    """Logits of the forward that a GPU runs, on the CPU."""
    model = placement.moved(model, torch.device("cpu"), compute)
    head = model.head()
    found = forward.Torch(model, KVCache(model.config, 2, 64, head.dtype, head.device))
    assert found.placement == ("cpu", compute, compute, compute)
    first = found.run(rows()).logits_RV
    assert torch.isfinite(found.run(forward.Rows([7], [0], [12], [0])).logits_RV).all()
    assert first.dtype == torch.float32
    return first


def test_what_a_gpu_runs_gives_the_compiled_decoders_logits() -> None:
    exact = forward.forward_of(policy(), 2, 64).run(rows()).logits_RV
    found = moved_logits(policy(), "fp32")
    assert torch.allclose(found, exact, atol=1e-4 * exact.abs().max().item())


def test_what_a_gpu_runs_in_bf16_is_near_and_keeps_keys_and_values_in_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = moved_logits(policy(), "fp32")
    found = moved_logits(policy(), "bf16")
    assert not torch.equal(found, exact)
    assert torch.allclose(found, exact, atol=0.1 * exact.std().item())
    model = placement.moved(policy(), torch.device("cpu"), "bf16")
    monkeypatch.setattr(native, "build", lambda: None)
    by_engine = forward.forward_of(model, 2, 64, compute="bf16")
    assert by_engine.placement == ("cpu", "bf16", "bf16", "bf16")


def test_matrices_in_groups_are_unpacked_before_they_move() -> None:
    model = policy()
    name = "model.layers.0.mlp.up_proj.weight"
    keep_grouped(model, name, group_rounded(model.state_dict()[name], "q4_0"))
    assert grouped_matrices(model)
    kept = forward.forward_of(model, 2, 64).run(rows()).logits_RV
    found = moved_logits(model, "fp32")
    assert not grouped_matrices(model)
    assert torch.allclose(found, kept, atol=0.05 * kept.std().item())


def test_without_a_gpu_null_is_the_cpu_and_cuda_is_refused_before_anything_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plain, asked = app.load_stack(DEMO), app.load_stack(DEMO, ["weights.device=cuda"])
    assert plain.key() == app.load_stack(DEMO, ["weights.device=cpu"]).key() != asked.key()
    assert plain.spec.weights.device is None
    with pytest.raises(EngineError, match=r"weights\.device: cuda: torch finds no CUDA device"):
        placement.placed(policy(), "cuda")


def test_with_a_gpu_null_is_cuda_and_auto_is_the_gpus_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    found = app.load_stack(DEMO, ["weights.compute=auto"]).spec.weights
    assert (found.device, found.compute) == ("cuda", "bf16")
    kept = app.load_stack(DEMO, ["weights.device=cpu"]).spec.weights
    assert (kept.device, kept.compute) == ("cpu", "fp32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert app.load_stack(DEMO).spec.weights.device is None


def test_slots_are_as_many_as_a_gpus_free_memory_holds() -> None:
    config = policy().config
    one = 2 * 2 * 2 * 16 * 64 * 4  # keys and values, layers, kv heads, head size, tokens, bytes
    assert placement.fitting(100 * one, config, 4, 32, 64) == 32
    assert placement.fitting(11 * one, config, 4, 32, 64) == 8  # nine tenths, and one slot for hidden states
    with pytest.raises(EngineError, match=r"weights\.cache to bf16.*weights\.device to cpu"):
        placement.fitting(2 * one, config, 4, 32, 64)
    assert placement.slots_that_fit(policy(), 32, 64) == 32


@pytest.mark.skipif(native.build() is None, reason="no C++ compiler here")
def test_an_engine_unpacks_no_matrix_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unpacked head of 50,000 tokens and its copies would take 230 MB for a moment."""
    model = policy()
    for name, weight in list(model.named_parameters()):
        if weight.ndim == 2:
            keep_grouped(model, name, group_rounded(weight, "q8_0"))
    monkeypatch.setattr(Grouped, "dequantised", lambda _: pytest.fail("a matrix was unpacked"))
    engine = LocalEngine(model, ByteTokenizer(), max_context=64)
    (pieces,) = engine.generate([Request((5, 6, 7), Decoding(temperature=0, max_tokens=3))])
    engine.close()
    assert len(pieces) == 3


def test_the_models_own_shapes_are_measured_once_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    class Library:
        def measured_seconds(self, kind: int, *shape: int) -> float:
            asked.append(shape)
            return 0.001 if kind == native.BF16_PRODUCTS else 0.0015

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(native, "build", Library)
    monkeypatch.setattr(native, "_SECONDS", {})
    stack = app.load_stack(DEMO, ["weights.compute=auto"])
    shapes = placement.shapes(stack.spec.weights, stack.root)
    width = stack.spec.weights.base.model.width  # type: ignore[union-attr]
    assert shapes
    assert all(width in shape for shape in shapes)
    cut = [tuple(min(side, native.WIDEST) for side in shape) for shape in shapes]
    assert asked == [(native.MEASURED_ROWS, *shape) for _ in range(2) for shape in cut]
    app.load_stack(DEMO, ["weights.compute=auto"])
    assert len(asked) == 2 * len(shapes), "a second load measures nothing"
    assert stack.spec.weights.compute == "bf16"
    count = len(shapes)
    told = f"products in bf16, keys and values in bf16 (this model's products of 96 rows: fp32 {1.5 * count:.2f} ms, bf16 {count:.2f} ms)"
    assert app.decoding_note(stack) == f"decodes on CPU, {told}"
    assert "measured" not in app.decoding_note(app.load_stack(DEMO))


def test_an_engine_says_how_it_decodes() -> None:
    tokenizer: Any = ByteTokenizer()
    engine = LocalEngine(policy(), tokenizer, num_slots=2, cache_format="fp16")
    try:
        assert engine.placement.cache == "fp16"
        assert engine.placement.sentence().endswith("products in fp32, keys and values in fp16")
    finally:
        engine.close()


@CUDA
def test_an_engine_on_cuda_gives_the_cpus_greedy_tokens() -> None:
    tokenizer: Any = ByteTokenizer()
    request = Request((1, 2, 3), Decoding(temperature=0, max_tokens=8), frozenset())
    found = []
    for device in ("cpu", "cuda"):
        engine = LocalEngine(placement.placed(policy(), device), tokenizer, num_slots=2)
        try:
            assert engine.placement.device == device
            found.append([piece.token for piece in engine.generate([request])[0]])
            assert engine.hidden((1, 2, 3)).device.type == "cpu"
        finally:
            engine.close()
    assert found[0] == found[1]


def test_another_format_is_another_engine_after_a_reload() -> None:
    from demeanor.training.runs import Runs

    plain, half = (
        app.StackRuntime(app.load_stack(DEMO, overrides), Runs(Path("nowhere")))
        for overrides in ([], ["weights.cache=fp16"])
    )
    assert plain.engine_key("base") != half.engine_key("base")
    assert plain.stack.stage_key("base") == half.stack.stage_key("base")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(SpecError, match="device"):
        app.load_stack(DEMO, ["weights.device=tpu"])

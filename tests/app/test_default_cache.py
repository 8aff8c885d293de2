"""Keys and values without `weights.cache`: bf16 for rounded weights or products, fp32 for exact ones, and part of an answer's identity."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from demeanor import app
from demeanor.app import StackRuntime
from demeanor.cli import main
from demeanor.core.types import Decoding
from demeanor.engine.cache_budget import PROCESS, CacheBudget
from demeanor.engine.scheduler import Request
from demeanor.model import checkpoints, native
from demeanor.model.llama import KVCache, kept
from demeanor.model.pages import PagedCache
from demeanor.stack.schema import ModelShape
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs
from tests.model import gguf_files


def stack_of(folder: Path, *later: dict[str, Any], overrides: Sequence[str] = (), **base: Any) -> Stack:
    """A base and `sft`, and what comes after them."""
    base = base or {"kind": "scratch", "data": [{"source": "world:corpus"}]}
    stages = [{"name": "sft", "objective": "sft", "data": [{"source": "world:instructions"}]}, *later]
    (folder / "stack.yaml").write_text(
        yaml.safe_dump({"name": "s", "weights": {"base": base, "stages": stages}})
    )
    return app.load_stack(folder / "stack.yaml", overrides)


def small(**settings: str) -> dict[str, Any]:
    return {"name": "small", "kind": "quantise", **settings}


@pytest.mark.parametrize("format", ["int8", "q8_0", "q4_0", "q4_1"])
def test_rounded_weights_take_16_bits_and_it_is_part_of_the_answers_key(format: str, tmp_path: Path) -> None:
    stack, wide, half = (
        stack_of(tmp_path, small(format=format), overrides=overrides)
        for overrides in ([], ["weights.cache=fp32"], ["weights.cache=bf16"])
    )
    assert [stack.cache_format(stage) for stage in ("base", "sft", "small")] == ["fp32", "fp32", "bf16"]
    assert [wide.cache_format("small"), half.cache_format("base")] == ["fp32", "bf16"]
    assert stack.key() == half.key() != wide.key()
    assert stack.stage_key("small") == wide.stage_key("small")
    assert stack.variant("sft").key() == wide.variant("sft").key(), "exact weights answer as before"


@pytest.mark.parametrize("settings", [{"format": "bf16"}, {"format": "q4_0", "activations": "fp32"}])
def test_what_multiplies_in_fp32_keeps_fp32(settings: dict[str, str], tmp_path: Path) -> None:
    stack, wide = (
        stack_of(tmp_path, small(**settings), overrides=overrides)
        for overrides in ([], ["weights.cache=fp32"])
    )
    assert stack.cache_format("small") == "fp32"
    assert stack.key() == wide.key()


def test_an_adapter_stands_on_rounded_weights_and_a_trained_copy_does_not(tmp_path: Path) -> None:
    trained = {"objective": "sft", "data": [{"source": "world:instructions"}], "parent": "small"}
    adapted = {"name": "thin", "adapter": {"rank": 2}, **trained}
    stack = stack_of(tmp_path, small(format="q8_0"), adapted, {"name": "whole", **trained})
    assert [stack.cache_format(stage) for stage in ("small", "thin", "whole")] == ["bf16", "bf16", "fp32"]


@pytest.mark.parametrize(
    ("form", "format"), [("Q8_0", "bf16"), ("Q4_0", "bf16"), ("F16", "fp32"), ("F32", "fp32")]
)
def test_a_gguf_base_as_its_blocks_say_to_the_engine_explain_and_records(
    form: str, format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf_files.write(tmp_path / "tiny.gguf", form=form)
    path = tmp_path / "stack.yaml"
    path.write_text(yaml.safe_dump({"name": "gg", "weights": {"base": "tiny.gguf"}, "template": "model"}))
    stack, runs = app.load_stack(path), Runs(tmp_path / "runs")
    wide = app.load_stack(path, ["weights.cache=fp32"])
    assert stack.cache_format("base") == format
    assert (stack.key() == wide.key()) is (format == "fp32")
    assert f"keys and values in {format}" in app.decoding_note(stack)
    for one, wanted in ((stack, format), (wide, "fp32")):
        with closing(StackRuntime(one, runs, num_slots=2)) as runtime:
            assert runtime.weights("base").engine.placement.cache == wanted
            assert runtime.engine_key("base")[2] == wanted
    gguf_files.write(tmp_path / "tiny.gguf", form="F32" if format == "bf16" else "Q8_0")
    assert app.load_stack(path).cache_format("base") != format, "a file that was changed is read again"
    assert main(["explain", str(path), "--runs", str(runs.root)]) == 0
    assert "keys and values in" in " ".join(capsys.readouterr().out.split())


def test_products_in_bf16_keep_bf16_where_the_decoder_is_ours(tmp_path: Path) -> None:
    exact, ours = (stack_of(tmp_path, overrides=chosen) for chosen in ([], ["weights.compute=bf16"]))
    assert [exact.cache_format("base"), ours.cache_format("base")] == ["fp32", "bf16"]
    other = stack_of(tmp_path, kind="import", path="owner/name", overrides=["weights.compute=bf16"])
    assert other.cache_format("base") == "fp32", (
        "transformers may run it, which keeps keys and values in its own format"
    )


def test_stacks_of_one_process_share_a_bound_though_their_formats_differ(tmp_path: Path) -> None:
    if native.build() is None:
        pytest.skip("no C++ compiler here")
    gguf_files.write(tmp_path / "tiny.gguf", form="Q8_0")
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump({"name": "gg", "weights": {"base": "tiny.gguf"}}))
    stacks = [app.load_stack(tmp_path / "stack.yaml", more) for more in ([], ["weights.cache=fp32"])]
    runs, budget = Runs(tmp_path / "runs"), CacheBudget(100_000)
    request = Request((1, 2, 3), Decoding(temperature=0, max_tokens=4))
    with (
        closing(StackRuntime(stacks[0], runs, caches=budget)) as half,
        closing(StackRuntime(stacks[1], runs, caches=budget)) as wide,
    ):
        held = []
        for runtime in (half, wide):
            runtime.weights("base").engine.generate([request])
            held.append(budget.limit_bytes - budget.free_bytes)
        assert held[1] - held[0] > 1.9 * held[0] > 0, "a page of fp32 has twice the bytes"
    assert budget.free_bytes == budget.limit_bytes
    with closing(StackRuntime(stacks[0], runs)) as plain:
        assert plain.caches is PROCESS


def test_a_hub_id_is_not_downloaded_to_look_and_counts_as_exact(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, small(format="int8"), kind="import", path="owner/name")
    assert stack.imported == "other"
    assert [stack.cache_format(stage) for stage in ("base", "small")] == ["fp32", "fp32"]


def test_fp16_ends_at_its_greatest_number_in_compiled_code_and_in_torch() -> None:
    """A model whose keys are beyond fp16: they become 65,504 and the logits stay finite; bf16 keeps their size."""
    model = checkpoints.create(ModelShape(layers=1, width=32, heads=2, init="normal"), 64, 0)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.mul_(1e6)  # type: ignore[union-attr, operator]
        model.model.layers[0].self_attn.v_proj.weight.mul_(1e6)  # type: ignore[union-attr, operator]
    assert kept(torch.tensor([1e9, -1e9, 0.5]), torch.float16).tolist() == [65504.0, -65504.0, 0.5]
    cache = KVCache(model.config, 1, 16, torch.float16)
    hidden = model.prefill(torch.arange(1, 9), 0, 0, cache)
    hidden = torch.cat([hidden, model.step(torch.tensor([9]), torch.tensor([0]), torch.tensor([8]), cache)])
    assert cache.keys[0].abs().max() == 65504
    assert hidden.isfinite().all()
    if native.build() is not None:
        paged = PagedCache(model.config, 1, 32, format="fp16")
        found = native.Native(model, paged).hidden(range(1, 10), [0] * 9, range(9), range(9))
        assert paged.data.abs().max() == 65504
        assert torch.allclose(found, hidden, atol=1e-4)

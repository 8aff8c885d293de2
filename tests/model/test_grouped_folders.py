"""Folders with matrices in groups: what is written is read, served as it is, trained on unpacked; odd ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demeanor.core.errors import CheckpointError
from demeanor.model import adapters, checkpoints, native, quantize
from demeanor.model.grouped import GROUP_FORMATS, GroupFormat, group_rounded
from demeanor.model.llama import Llama
from demeanor.model.pages import PagedCache
from demeanor.model.stored import StoredTensors
from demeanor.stack.schema import Adapter, ModelShape
from tests.groups import grouped_matrices

SHAPE = ModelShape(layers=2, width=96, heads=3, kv_heads=1, mlp_width=152, context=64)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups") / "plain"
    checkpoints.save(checkpoints.create(SHAPE, 300, 0), folder)
    return folder


def small(plain: Path, out: Path, format: GroupFormat = "q4_0", **settings: str) -> Path:
    chosen = {"head": "q8_0", "activations": "int8", **settings}
    quantize.write_groups(plain, out, format, **chosen)  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_a_folder_holds_the_groups_and_loads_packed_and_unpacked(
    format: GroupFormat, plain: Path, tmp_path: Path
) -> None:
    folder = small(plain, tmp_path / "small", format)
    before, after = checkpoints.load(plain), checkpoints.load(folder)
    held = checkpoints.serving(folder)
    assert isinstance(held, Llama)
    found = grouped_matrices(held)
    assert len(found) == 2 * 7 + 1
    for name, weight in before.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(after.get_parameter(name), weight)
            continue
        wanted = group_rounded(weight, "q8_0" if "embed" in name else format)
        assert found[name].format == wanted.format
        assert torch.equal(found[name].packed_OB, wanted.packed_OB)
        assert torch.equal(after.get_parameter(name), wanted.dequantised())
    assert checkpoints.num_weights(folder) == checkpoints.num_weights(plain)
    assert [p.ndim for p in held.parameters()] == [1] * 5, "only norms are fp32"
    stored = StoredTensors(folder)
    assert stored.shapes["model.layers.1.mlp.down_proj.weight"] == (96, 152)
    checkpoints.save(held, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(again[name], tensor), name


def test_a_folder_that_asks_for_fp32_activations_is_served_unpacked(plain: Path, tmp_path: Path) -> None:
    folder = small(plain, tmp_path / "wide", activations="fp32")
    held = checkpoints.serving(folder)
    assert grouped_matrices(held) == {}
    assert set(native.Native(held, PagedCache(held.config, 1, 64)).formats) == {"fp32"}  # type: ignore[arg-type]


def test_an_adapter_on_a_small_base_keeps_it_small_and_adds_its_product(plain: Path, tmp_path: Path) -> None:
    folder = small(plain, tmp_path / "small", "q8_0")
    model, settings = checkpoints.load(folder), Adapter(rank=4)
    adapters.attach(model, settings, 0)
    with torch.no_grad():
        for _, module in adapters.adapters(model):
            module.lora_B.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    adapters.save(model, settings, folder, tmp_path / "low", reward=False)
    held = checkpoints.serving(tmp_path / "low")
    assert isinstance(held, Llama)
    assert len(grouped_matrices(held)) == 15
    asked = list(range(5, 25))

    def logits(policy: Llama) -> Tensor:
        ran = native.Native(policy, PagedCache(policy.config, 1, 64))
        return ran.forward(asked, [0] * 20, range(20), range(20)).logits_RV

    folded, alone = checkpoints.load(tmp_path / "low"), checkpoints.serving(folder)
    assert isinstance(alone, Llama)
    assert float((logits(held) - logits(folded)).norm()) <= 0.03 * float(logits(folded).norm())
    assert float((logits(alone) - logits(folded)).norm()) > 0.3 * float(logits(folded).norm())


def packed(folder: Path) -> native.Native:
    """What an engine makes of a folder, whose matrices are read when they are packed."""
    model = checkpoints.serving(folder)
    return native.Native(model, PagedCache(model.config, 1, 64))  # type: ignore[arg-type]


Change = Callable[[dict[str, Tensor]], object]
NAME = "model.layers.0.mlp.up_proj.weight"
BROKEN: dict[str, tuple[Change, str]] = {
    "no scales": (lambda t: t.pop(f"{NAME}_scale"), rf"{NAME} is stored as _packed 152x48 uint8; wanted"),
    "scales of another shape": (
        lambda t: t.update({f"{NAME}_scale": t[f"{NAME}_scale"][:, :2].contiguous()}),
        r"_scale 152x2 float16; wanted",
    ),
    "NaN": (lambda t: t[f"{NAME}_scale"].fill_(torch.nan), "a scale or minimum is not a finite number"),
    "too few outputs": (
        lambda t: t.update({f"{NAME}{x}": t[f"{NAME}{x}"][:151].contiguous() for x in ("_packed", "_scale")}),
        r"is \(151, 96\), wanted \(152, 96\)|declares 2 layers",
    ),
    "a flat tensor": (lambda t: t.update({f"{NAME}_packed": t[f"{NAME}_packed"].flatten()}), "wanted"),
    "integers of 32 bits": (
        lambda t: t.update({f"{NAME}_packed": t[f"{NAME}_packed"].int()}),
        "152x48 int32|is .152, 48., wanted .152, 96.",
    ),
    "a matrix twice": (
        lambda t: t.update({NAME: torch.zeros(152, 96)}),
        f"{NAME} is there whole and in groups",
    ),
    "a lone minimum": (lambda t: t.update({"x_minimum": torch.zeros(1)}), "do not belong to the model"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("load", [checkpoints.load, packed])
def test_a_broken_folder_is_refused(
    case: str, load: Callable[[Path], object], plain: Path, tmp_path: Path
) -> None:
    folder = small(plain, tmp_path / "small")
    tensors = load_file(folder / "model.safetensors")
    change, said = BROKEN[case]
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        load(folder)


def test_another_method_is_refused_and_ours_is_refused_by_transformers(plain: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = small(plain, tmp_path / "small")
    with pytest.raises(ValueError, match="no `quant_method`"):
        AutoModelForCausalLM.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for other in ({"quant_method": "gptq", "bits": 4}, {"bits": 4}, "q4", ["q4"]):
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": other}))
        with pytest.raises(CheckpointError, match="quantization_config of this checkpoint is not supported"):
            checkpoints.load(folder)

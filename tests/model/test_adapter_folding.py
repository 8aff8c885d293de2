"""A chain of adapters as one: equal outputs whatever the ranks, scales and targets; what cannot be one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demeanor.core.errors import CheckpointError
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import adapter_folding, adapters, checkpoints
from demeanor.model.heads import policy_outputs
from demeanor.stack.schema import Adapter, ModelShape

VOCAB, ROW = 61, (5, 6, 7, 8, 9, 10, 11)
SHAPE = ModelShape(layers=2, width=32, heads=4, kv_heads=2, context=64)
BATCH = collate([Tree(ROW[:2], (Branch(ROW[2:], (True,) * 5),))])
CHAINS = {
    "one": [Adapter(rank=3, alpha=6)],
    "equal": [Adapter(rank=2, alpha=4), Adapter(rank=2, alpha=4)],
    "other ranks and scales": [Adapter(rank=2, alpha=3), Adapter(rank=5, alpha=6, rslora=True)],
    "other targets": [
        Adapter(rank=2, alpha=4, targets=("q_proj",)),
        Adapter(rank=3, alpha=6, targets=("q_proj", "down_proj")),
        Adapter(rank=1, alpha=1, targets=("v_proj",)),
    ],
}


def made(folder: Path, chain: list[Adapter]) -> Path:
    """A chain of trained adapters on a tiny base; returns the folder of the last."""
    checkpoints.save(checkpoints.create(SHAPE, VOCAB, 0), folder / "base")
    parent = folder / "base"
    for i, settings in enumerate(chain):
        model = checkpoints.load(parent)
        adapters.attach(model, settings, i)
        draw = torch.Generator().manual_seed(10 + i)
        for _, module in adapters.adapters(model):
            module.lora_B.data = torch.randn(module.lora_B.shape, generator=draw) / 8
        checkpoints.save_checkpoint(model, folder / f"{i}", adapter=settings, parent=parent)
        parent = folder / f"{i}"
    return parent


def logprobs(folder: Path) -> Tensor:
    with torch.no_grad():
        found = policy_outputs(checkpoints.load(folder), BATCH).logprobs_C
    assert found is not None
    return found


@pytest.mark.parametrize("name", CHAINS)
def test_one_adapter_has_the_outputs_of_the_chain(name: str, tmp_path: Path) -> None:
    last = made(tmp_path, CHAINS[name])
    whole, chain = adapter_folding.chain(last)
    assert (whole.resolve(), len(chain)) == (tmp_path / "base", len(CHAINS[name]))
    adapter_folding.write(adapter_folding.folded(chain, last), tmp_path / "out", base=str(whole))
    assert torch.allclose(logprobs(tmp_path / "out"), logprobs(last), atol=1e-5)
    assert not torch.allclose(logprobs(last), logprobs(whole), atol=1e-2)
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["r"] == sum(x.rank for x in CHAINS[name])
    assert settings["base_model_name_or_path"] == str(whole)


def test_a_lone_adapter_is_written_as_it_was(tmp_path: Path) -> None:
    last = made(tmp_path, CHAINS["one"])
    whole, chain = adapter_folding.chain(last)
    adapter_folding.write(adapter_folding.folded(chain, last), tmp_path / "out", base="owner/name")
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (last, tmp_path / "out"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(t, theirs[n]) for n, t in ours.items())
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["r"], settings["lora_alpha"]) == (
        "owner/name",
        3,
        6,
    )
    assert whole == tmp_path / "base"


def test_a_matrix_that_was_trained_whole_goes_along(tmp_path: Path) -> None:
    last = made(tmp_path, CHAINS["equal"])
    embedding = torch.randn(VOCAB, 32, generator=torch.Generator().manual_seed(3))
    path = tmp_path / "0" / "adapter_model.safetensors"
    name = "base_model.model.model.embed_tokens.weight"
    save_file({**load_file(path), name: embedding}, path)
    settings = json.loads((tmp_path / "0" / "adapter_config.json").read_text())
    (tmp_path / "0" / "adapter_config.json").write_text(
        json.dumps({**settings, "modules_to_save": ["embed_tokens"]})
    )
    whole, chain = adapter_folding.chain(last)
    adapter_folding.write(adapter_folding.folded(chain, last), tmp_path / "out", base=str(whole))
    assert torch.allclose(logprobs(tmp_path / "out"), logprobs(last), atol=1e-5)
    assert torch.equal(load_file(tmp_path / "out" / "adapter_model.safetensors")[name], embedding)


def test_what_is_no_single_adapter_is_refused(tmp_path: Path) -> None:
    last = made(tmp_path, CHAINS["equal"])
    path = tmp_path / "1" / "adapter_model.safetensors"
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {k: t for k, t in load_file(path).items() if not k.startswith(name)}
    save_file({**tensors, f"{name}.weight": torch.zeros(32, 32)}, path)
    _, chain = adapter_folding.chain(last)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is trained whole on top of an adapter of it"):
        adapter_folding.folded(chain, last)
    with pytest.raises(CheckpointError, match="holds whole weights and no adapter"):
        adapter_folding.chain(tmp_path / "base")

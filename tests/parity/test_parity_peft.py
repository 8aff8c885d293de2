"""Adapter folders and PEFT: what we write it loads on the parent's folder with equal outputs, and what it writes we load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import adapters, checkpoints
from demeanor.model.heads import policy_outputs, reward_outputs
from demeanor.stack.schema import Adapter, ModelShape

pytestmark = pytest.mark.parity
peft = pytest.importorskip("peft", reason="run with bench/.venv/bin/python -m pytest -m parity tests/parity")

VOCAB, ROW = 61, (5, 6, 7, 8, 9)
SHAPE = ModelShape(layers=2, width=32, heads=4, kv_heads=2, context=64)
BATCH = collate([Tree(ROW[:2], (Branch(ROW[2:], (True,) * 3),))], read_last=True)
KINDS = [
    Adapter(rank=3, alpha=6),
    Adapter(rank=4, alpha=6, rslora=True),
    Adapter(rank=2, targets=("q_proj", "down_proj")),
]


def filled(model: torch.nn.Module, settings: Adapter) -> None:
    """An adapter on a model whose B is not zero."""
    adapters.attach(model, settings, 1)
    draw = torch.Generator().manual_seed(2)
    for _, module in adapters.adapters(model):
        module.lora_B.data = torch.randn(module.lora_B.shape, generator=draw) / 10


def row_logprobs(model: torch.nn.Module) -> Tensor:
    """Log-probs of the last three tokens of ROW under a model of transformers or peft."""
    with torch.no_grad():
        logprobs = model(torch.tensor([ROW])).logits[0].log_softmax(-1)
    return torch.stack([logprobs[i, ROW[i + 1]] for i in (1, 2, 3)])


def ours(folder: Path) -> Tensor:
    with torch.no_grad():
        found = policy_outputs(checkpoints.load(folder), BATCH).logprobs_C
    assert found is not None
    return found


@pytest.mark.parametrize("settings", KINDS, ids=["all linear", "rslora", "two targets"])
def test_peft_loads_our_policy_adapter_with_equal_outputs(settings: Adapter, tmp_path: Path) -> None:
    checkpoints.save(checkpoints.create(SHAPE, VOCAB, 0), tmp_path / "parent")
    model = checkpoints.load(tmp_path / "parent")
    filled(model, settings)
    checkpoints.save_checkpoint(model, tmp_path / "adapter", adapter=settings, parent=tmp_path / "parent")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "parent")
    plain = row_logprobs(base)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    found = row_logprobs(theirs)
    assert torch.allclose(ours(tmp_path / "adapter"), found, atol=1e-5)
    assert not torch.allclose(plain, found, atol=1e-3)


@pytest.mark.parametrize("settings", KINDS[:1], ids=["all linear"])
def test_peft_loads_our_reward_adapter_with_equal_scores(settings: Adapter, tmp_path: Path) -> None:
    checkpoints.save(checkpoints.create(SHAPE, VOCAB, 0), tmp_path / "parent")
    model = checkpoints.reward(tmp_path / "parent", 7)
    filled(model, settings)
    checkpoints.save_checkpoint(model, tmp_path / "adapter", adapter=settings, parent=tmp_path / "parent")
    base = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "parent", num_labels=1, pad_token_id=0
    )
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        wanted = theirs(torch.tensor([ROW])).logits[0]
        found = reward_outputs(checkpoints.load_reward(tmp_path / "adapter"), BATCH).rewards_B
    assert found is not None
    assert torch.allclose(found, wanted, atol=1e-5)
    assert float(wanted.abs()) > 1e-3


@pytest.mark.parametrize("reward", [False, True], ids=["policy", "reward"])
def test_we_load_what_peft_writes(reward: bool, tmp_path: Path) -> None:
    checkpoints.save(checkpoints.create(SHAPE, VOCAB, 0), tmp_path / "parent")
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    base = kind.from_pretrained(
        tmp_path / "parent", **({"num_labels": 1, "pad_token_id": 0} if reward else {})
    )
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        task_type="SEQ_CLS" if reward else "CAUSAL_LM",
        modules_to_save=["score"] if reward else None,
    )
    model = peft.get_peft_model(base, config).eval()
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) / 10
    model.save_pretrained(tmp_path / "adapter")
    if reward:
        with torch.no_grad():
            found = reward_outputs(checkpoints.load_reward(tmp_path / "adapter"), BATCH).rewards_B
            wanted = model(torch.tensor([ROW])).logits[0]
        assert found is not None
    else:
        found, wanted = ours(tmp_path / "adapter"), row_logprobs(model)
    assert torch.allclose(found, wanted, atol=1e-5)

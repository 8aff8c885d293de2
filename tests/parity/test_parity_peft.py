"""Adapter folders and PEFT: what we write it loads on the parent's folder with equal outputs, and what it writes we load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from demeanor.cli import main
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import adapter_folding, adapters, checkpoints
from demeanor.model.heads import policy_outputs, reward_outputs
from demeanor.stack.schema import Adapter, ModelShape
from tests.model.test_adapter_folding import CHAINS, made
from tests.training.test_export_adapter import two_adapters

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


@pytest.mark.parametrize("name", CHAINS)
def test_peft_loads_a_folded_chain_with_equal_logits(name: str, tmp_path: Path) -> None:
    """The base is found from any folder, since its path is absolute."""
    last = made(tmp_path, CHAINS[name])
    whole, chain = adapter_folding.chain(last)
    adapter_folding.write(adapter_folding.folded(chain, last), tmp_path / "out", base=str(whole.resolve()))
    base = AutoModelForCausalLM.from_pretrained(
        peft.PeftConfig.from_pretrained(tmp_path / "out").base_model_name_or_path
    )
    plain = row_logprobs(base)
    found = row_logprobs(peft.PeftModel.from_pretrained(base, tmp_path / "out"))
    assert torch.allclose(ours(last), found, atol=1e-5)
    assert not torch.allclose(plain, found, atol=1e-3)


def test_peft_loads_a_folded_chain_with_a_trained_embedding(tmp_path: Path) -> None:
    last = made(tmp_path, CHAINS["equal"])
    path, key = tmp_path / "0" / "adapter_model.safetensors", "base_model.model.model.embed_tokens.weight"
    embedding = torch.randn(VOCAB, 32, generator=torch.Generator().manual_seed(3))
    save_file({**load_file(path), key: embedding}, path)
    settings = json.loads((tmp_path / "0" / "adapter_config.json").read_text())
    settings["modules_to_save"] = ["embed_tokens"]
    (tmp_path / "0" / "adapter_config.json").write_text(json.dumps(settings))
    whole, chain = adapter_folding.chain(last)
    adapter_folding.write(adapter_folding.folded(chain, last), tmp_path / "out", base=str(whole.resolve()))
    base = AutoModelForCausalLM.from_pretrained(whole)
    found = row_logprobs(peft.PeftModel.from_pretrained(base, tmp_path / "out"))
    assert torch.allclose(ours(last), found, atol=1e-5)


def test_the_verb_compares_with_peft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack, runs = two_adapters(tmp_path)
    given = [str(stack.path), str(tmp_path / "out"), "--runs", str(runs.root), "--check", "1", "--adapter"]
    assert main(["export", *given]) == 0
    assert "answers identical token for token: 1 of 1" in capsys.readouterr().out

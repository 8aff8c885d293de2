"""Architectures through transformers: a Llama forced that way is our Llama; a GPT-2, which has no other way, learns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from demeanor.core import registry
from demeanor.core.errors import CheckpointError
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import adapters, checkpoints, hf
from demeanor.model.heads import policy_outputs, reward_outputs
from demeanor.model.llama import UnsupportedError
from demeanor.model.tensors import Loss
from demeanor.stack.schema import Adapter, ModelShape

dpo, reward, sft = (registry.entry("demeanor.objectives", kind) for kind in ("dpo", "reward", "sft"))

VOCAB = 61
SHAPE = ModelShape(layers=2, width=32, heads=4, kv_heads=2, context=64)


def trees(branches: int) -> list[Tree]:
    """Four prompts of different lengths with branches of different lengths, some tokens untrained."""
    draw = torch.Generator().manual_seed(branches)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, VOCAB, (n,), generator=draw).tolist())

    def branch(n: int) -> Branch:
        return Branch(tokens(n), tuple(i % 3 != 1 for i in range(n)))

    found = [
        Tree(
            tokens(2 + 3 * i),
            tuple(branch(2 + (i + 2 * k) % 5) for k in range(branches)),
            tuple(range(branches)),
        )
        for i in range(4)
    ]
    return found if branches > 1 else [*found, Tree((), (branch(6),))]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        n.removeprefix("trunk.").removeprefix("inner."): p.grad
        for n, p in model.named_parameters()
        if p.grad is not None
    }


def loss_of(kind: Any, model: nn.Module, rows: list[Tree]) -> Loss:
    batch = collate(rows, read_last=kind is reward)
    outputs = (reward_outputs if kind is reward else policy_outputs)(model, batch)
    if kind is dpo:
        batch = batch._replace(reference_C=torch.full((len(batch.targets_C),), -3.0))
    found: Loss = kind.loss(kind.Spec(), outputs, batch)
    return found


@pytest.mark.parametrize(
    ("kind", "branches"),
    [(sft, 1), (dpo, 2), (dpo, 4), (reward, 2), (reward, 4)],
    ids=["sft", "pair", "ranking", "reward pair", "reward ranking"],
)
def test_a_llama_through_transformers_has_our_loss_and_gradients(
    kind: Any, branches: int, tmp_path: Path
) -> None:
    policy = checkpoints.create(SHAPE, VOCAB, 0)
    ours: nn.Module = checkpoints.reward_from(policy, 3) if kind is reward else policy
    checkpoints.save(ours, tmp_path)
    theirs = hf.load_reward(tmp_path) if kind is reward else hf.load(tmp_path)
    rows = trees(branches)
    mine, wanted = (loss_of(kind, model, rows) for model in (ours, theirs))
    assert mine.total.item() == pytest.approx(wanted.total.item(), abs=1e-5)
    assert int(mine.count) == int(wanted.count)
    mine.total.backward()
    wanted.total.backward()
    found, expected = gradients(ours), gradients(theirs)
    assert found.keys() == expected.keys()
    assert max(float((found[n] - expected[n]).abs().max()) for n in found) < 1e-5
    assert max(float(g.abs().max()) for g in found.values()) > 1e-3


def test_collision_is_the_log_of_the_summed_squared_probabilities(tmp_path: Path) -> None:
    checkpoints.save(checkpoints.create(SHAPE, VOCAB, 0), tmp_path)
    model, batch = hf.load(tmp_path), collate(trees(2))
    found = model.outputs(batch, statistics=("collision",)).collision_C
    rows, mask, row, place = hf.unrolled(batch, batch.scored_C)
    with torch.no_grad():
        p = model.inner(input_ids=rows, attention_mask=mask).logits[row, place].softmax(-1)
    assert found is not None
    assert not found.requires_grad
    assert torch.allclose(found, p.square().sum(-1).log(), atol=1e-5)


def gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    ).save_pretrained(folder)
    return folder


def neox(folder: Path) -> Path:
    torch.manual_seed(0)
    GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)
    return folder


def test_a_folder_says_which_way_it_goes(tmp_path: Path) -> None:
    found = checkpoints.checkpoint_info(gpt2(tmp_path))
    assert (found.model_type, found.context, found.vocab_size, found.lean, found.reward) == (
        "gpt2",
        64,
        VOCAB,
        False,
        False,
    )
    assert checkpoints.num_weights(tmp_path) == sum(
        p.numel() for p in checkpoints.policy(tmp_path).parameters()
    )
    with pytest.raises(
        UnsupportedError, match="Other architectures of transformers run through its own forward"
    ):
        checkpoints.load(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "abacus", "architectures": ["AbacusForCausalLM"]})
    )
    with pytest.raises(CheckpointError, match="unknown model_type 'abacus'"):
        checkpoints.checkpoint_info(tmp_path)


@pytest.mark.parametrize("make", [gpt2, neox])
def test_a_foreign_model_learns_and_is_saved_as_transformers_saves_it(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    model, batch = checkpoints.policy(make(tmp_path / "a")), collate(trees(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    curve = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = sft.loss(sft.Spec(), policy_outputs(model, batch), batch)
        (loss.total / loss.count).backward()
        optimizer.step()
        curve.append(float(loss.total.detach() / loss.count))
    assert curve[0] == pytest.approx(math.log(VOCAB), rel=0.1)
    assert curve[-1] < curve[0] - 0.5
    checkpoints.save_checkpoint(model, tmp_path / "b")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert all(torch.equal(p, q) for p, q in zip(theirs.parameters(), model.parameters(), strict=True))


def test_a_foreign_reward_model_begins_on_a_policy_and_goes_on_with_its_head(tmp_path: Path) -> None:
    first = checkpoints.reward(gpt2(tmp_path / "a"), 7)
    again, other = checkpoints.reward(tmp_path / "a", 7), checkpoints.reward(tmp_path / "a", 8)
    weight = [dict(m.named_parameters())["inner.score.weight"] for m in (first, again, other)]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])
    checkpoints.save_checkpoint(first, tmp_path / "b")
    assert checkpoints.checkpoint_info(tmp_path / "b").reward
    batch = collate(trees(2), read_last=True)
    found, wanted = (
        reward_outputs(m, batch).rewards_B for m in (checkpoints.reward(tmp_path / "b", 99), first)
    )
    assert found is not None
    assert torch.equal(found, wanted)


def test_an_adapter_on_a_foreign_model_is_a_folder_too(tmp_path: Path) -> None:
    settings, batch = Adapter(rank=2), collate(trees(1))
    model = checkpoints.policy(neox(tmp_path / "a"))
    adapters.attach(model, settings, 0)
    for _, module in adapters.adapters(model):
        module.lora_B.data.fill_(0.05)
    checkpoints.save_checkpoint(model, tmp_path / "b", adapter=settings, parent=tmp_path / "a")
    found, wanted, plain = (
        policy_outputs(m, batch).logprobs_C
        for m in (checkpoints.policy(tmp_path / "b"), model, checkpoints.policy(tmp_path / "a"))
    )
    assert found is not None
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)
    with pytest.raises(CheckpointError, match="Conv1D"):
        adapters.attach(checkpoints.policy(gpt2(tmp_path / "c")), settings, 0)

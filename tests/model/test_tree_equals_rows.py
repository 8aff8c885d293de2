"""The acceptance test of token trees: loss and gradients equal padded separate rows run through transformers, in fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from demeanor.core import registry
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import checkpoints
from demeanor.model.heads import policy_outputs, reward_outputs
from demeanor.model.initial import initialise
from demeanor.model.llama import Llama
from demeanor.model.tensors import Loss, Segment
from demeanor.stack.schema import ModelShape
from tests.conftest import each

dpo, reward, sft = (registry.entry("demeanor.objectives", kind) for kind in ("dpo", "reward", "sft"))

VOCAB = 61
SHAPE = ModelShape(layers=2, width=32, heads=4, kv_heads=2, context=64)


def config(**more: object) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_theta=1000.0,
        rms_norm_eps=1e-5,
        max_position_embeddings=64,
        **more,
    )


def twins() -> tuple[Llama, LlamaForCausalLM]:
    """Our model and transformers' with the same random weights."""
    ours = checkpoints.create(SHAPE, VOCAB, 0)
    theirs = LlamaForCausalLM(config())
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return ours, theirs


def forest(branches: Sequence[int], seed: int = 0, *, masked: bool = False) -> list[Tree]:
    """A tree for each entry: that many branches of different lengths on a prompt of its own."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, VOCAB, (n,), generator=generator).tolist())

    trees = []
    for i, count in enumerate(branches):
        made = []
        for k in range(count):
            tokens = draw(2 + (3 * k + 5 * i) % 7)
            trained = tuple((j + k) % 3 != 1 for j in range(len(tokens))) if masked else (True,) * len(tokens)
            made.append(Branch(tokens, trained))
        trees.append(Tree(draw(3 + 4 * i % 9), tuple(made), tuple(range(count)), None, f"tree {i}"))
    return trees


def rows(trees: Sequence[Tree]) -> tuple[Tensor, Tensor, Tensor]:
    """Every prompt and branch as a right-padded row of its own: ids, attention mask, labels (-100 where nothing is trained)."""
    whole = [(t.prompt + b.tokens, (False,) * len(t.prompt) + b.trained) for t in trees for b in t.branches]
    longest = max(len(tokens) for tokens, _ in whole)
    ids, mask, labels = (torch.full((len(whole), longest), value) for value in (0, 0, -100))
    for i, (tokens, trained) in enumerate(whole):
        ids[i, : len(tokens)], mask[i, : len(tokens)] = torch.tensor(tokens), 1
        labels[i, : len(tokens)] = torch.where(torch.tensor(trained), torch.tensor(tokens), -100)
    return ids, mask, labels


def row_logprobs(model: LlamaForCausalLM, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
    """Summed log-prob and number of trained tokens of every row."""
    ids, mask, labels = rows(trees)
    logprobs = model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    wanted = labels[:, 1:]
    each = logprobs.gather(-1, wanted.clamp(min=0)[..., None]).squeeze(-1) * (wanted != -100)
    return each.sum(-1), (wanted != -100).sum(-1)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n.removeprefix("trunk."): p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(loss: Tensor, ours: nn.Module, expected: Tensor, theirs: nn.Module) -> None:
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    mine, wanted = gradients(ours), gradients(theirs)
    assert mine.keys() == {n for n in wanted if n != "lm_head.weight"}
    for name, gradient in mine.items():
        assert torch.allclose(gradient, wanted[name], atol=1e-5), name
    assert max(float(g.abs().max()) for g in mine.values()) > 1e-3


def test_hidden_states_of_a_tree_equal_those_of_separate_rows() -> None:
    ours, _ = twins()
    trees = forest([1, 2, 3, 4])
    batch = collate(trees, read_last=True)
    with torch.no_grad():
        found = ours.hidden(batch.tokens_T, batch.positions_T, batch.segments)[batch.last_B]
        alone = [torch.tensor(t.prompt + b.tokens) for t in trees for b in t.branches]
        wanted = torch.stack([ours.hidden(x, torch.arange(len(x)), (Segment(0, len(x)),))[-1] for x in alone])
    assert torch.allclose(found, wanted, atol=1e-5)


def test_supervised_loss_and_gradients_equal_padded_rows() -> None:
    ours, theirs = twins()
    trees = forest([1, 1, 1, 1, 1], masked=True)
    trees += [t._replace(prompt=()) for t in forest([1, 1], seed=1)]  # plain text
    found = sft.loss(sft.Spec(), policy_outputs(ours, batch := collate(trees)), batch)
    sums, counts = row_logprobs(theirs, trees)
    assert int(found.count) == int(counts.sum())
    assert_equal(found.total / found.count, ours, -sums.sum() / counts.sum(), theirs)


@pytest.mark.parametrize("branches", [[2, 2, 2], [4, 4], [2, 4, 3]])
def test_reward_loss_and_gradients_equal_padded_rows(branches: list[int]) -> None:
    policy, _ = twins()
    ours = checkpoints.reward_from(policy, 3)
    theirs = LlamaForSequenceClassification(config(num_labels=1, pad_token_id=0))
    theirs.load_state_dict({n.removeprefix("trunk."): p for n, p in ours.state_dict().items()}, strict=False)
    trees = forest(branches)
    batch = collate(trees, read_last=True)
    found = reward.loss(reward.Spec(), reward_outputs(ours, batch), batch)
    ids, mask, _ = rows(trees)
    scores = list(theirs(ids, attention_mask=mask).logits.squeeze(-1).split(branches))
    per_tree = [
        torch.stack([-logsigmoid(s[i] - s[j]) for i in range(len(s)) for j in range(i + 1, len(s))]).mean()
        for s in scores
    ]
    assert int(found.count) == len(trees)
    assert_equal(found.total / found.count, ours, torch.stack(per_tree).mean(), theirs)


@pytest.mark.parametrize(
    "settings", [dpo.Spec(beta=0.3), dpo.Spec(beta=0.3, label_smoothing=0.1), dpo.Spec(beta=0.3, nll=0.5)]
)
def test_dpo_loss_and_gradients_equal_padded_rows(settings: Any) -> None:
    ours, theirs = twins()
    frozen = checkpoints.create(SHAPE, VOCAB, 7)
    frozen_theirs = LlamaForCausalLM(config())
    frozen_theirs.load_state_dict(frozen.state_dict(), strict=False)
    trees = forest([2, 2, 2, 2], seed=5)
    with torch.no_grad():
        bare = collate(trees)
        logprobs = policy_outputs(frozen, bare).logprobs_C
        reference_rows, _ = row_logprobs(frozen_theirs, trees)
    assert logprobs is not None
    parts = logprobs.split([sum(len(b.tokens) for b in t.branches) for t in trees])
    batch = collate(trees, reference=[p.tolist() for p in parts])
    found = dpo.loss(settings, policy_outputs(ours, batch), batch)
    sums, counts = row_logprobs(theirs, trees)
    h = settings.beta * ((sums - reference_rows)[0::2] - (sums - reference_rows)[1::2])
    expected = -(1 - settings.label_smoothing) * logsigmoid(h) - settings.label_smoothing * logsigmoid(-h)
    if settings.nll is not None:
        expected = expected - settings.nll * (sums / counts)[0::2]
    assert_equal(found.total / found.count, ours, expected.mean(), theirs)


def of_sft(model: nn.Module, trees: Sequence[Tree]) -> Loss:
    batch = collate(trees)
    return sft.loss(sft.Spec(), policy_outputs(model, batch), batch)


def of_reward(model: nn.Module, trees: Sequence[Tree]) -> Loss:
    batch = collate(trees, read_last=True)
    return reward.loss(reward.Spec(center=0.01), reward_outputs(model, batch), batch)


def of_dpo(model: nn.Module, trees: Sequence[Tree]) -> Loss:
    batch = collate(trees, reference=[[-3.0] * sum(len(b.tokens) for b in t.branches) for t in trees])
    return dpo.loss(dpo.Spec(beta=0.3), policy_outputs(model, batch), batch)


@pytest.mark.parametrize(
    ("loss", "branches"), [(of_sft, [1] * 6), (of_reward, [2, 4, 2, 3]), (of_dpo, [2, 2, 4, 2])]
)
def test_micro_batches_do_not_change_the_gradient(
    loss: Callable[[nn.Module, Sequence[Tree]], Loss], branches: list[int]
) -> None:
    trees = forest(branches, seed=2)
    found = []
    for parts in ([trees], [trees[:1], trees[1:]], [[t] for t in reversed(trees)]):
        policy = checkpoints.create(SHAPE, VOCAB, 0)
        model: nn.Module = checkpoints.reward_from(policy, 1) if loss is of_reward else policy
        losses = [loss(model, part) for part in parts]
        (sum(x.total for x in losses) / sum(x.count for x in losses)).backward()
        found.append(gradients(model))
    assert len(found) == 3
    for other in found[1:]:
        for name, gradient in each(found[0].items()):
            assert float((gradient - other[name]).abs().max()) < 1e-6, name


def test_recomputing_layers_in_the_backward_pass_changes_no_bit() -> None:
    trees = [
        Tree((1, 2, 3), (Branch((4, 5), (True, True)), Branch((6,), (True,))), (0, 1)),
        Tree((7,), (Branch((8, 9, 10), (True,) * 3),)),
    ]
    found = []
    for recompute in (False, True):
        model = checkpoints.create(ModelShape(layers=3, width=32, heads=2, context=32), 300, 0)
        model.recompute = recompute
        logprobs = policy_outputs(model, collate(trees)).logprobs_C
        assert logprobs is not None
        logprobs.sum().backward()
        found.append([logprobs.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_bf16_training_follows_fp32_for_every_shape_of_attention(qk_norm: bool, kv_heads: int) -> None:
    """Loss and gradients under autocast, within bf16's rounding, with norms on queries and keys (Qwen3) and shared key heads."""
    model = Llama(
        replace(checkpoints.create(SHAPE, VOCAB, 0).config, qk_norm=qk_norm, num_key_value_heads=kv_heads)
    )
    initialise(model, 0, mimetic=False)
    batch = collate(forest([1, 2, 3, 2]))
    found = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logprobs = policy_outputs(model, batch).logprobs_C
        assert logprobs is not None
        logprobs.mean().backward()
        found.append([logprobs.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for wanted, got in zip(*found):
        assert float((got - wanted).abs().max()) < 0.05 * max(0.02, float(wanted.abs().max()))

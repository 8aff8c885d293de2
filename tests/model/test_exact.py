"""The exact forward: values of the decoder, gradients of the torch forward, temperature and kept tokens in both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import adapters, checkpoints, exact, native
from demeanor.model.exact import exact_policy_outputs, obstacle
from demeanor.model.heads import policy_outputs
from demeanor.model.llama import Config, Llama
from demeanor.model.pages import PagedCache
from demeanor.model.tensors import Outputs, Segment, TokenBatch
from demeanor.stack.schema import Adapter, ModelShape

compiled = pytest.mark.skipif(native.build() is None, reason="no C++ compiler here")

VOCAB = 61
PLAIN = Config("llama", VOCAB, 40, 72, 3, 4, 2, 10, 128, 1e-5, 1e4, True)
MODELS = {
    "tied, grouped queries": PLAIN,
    "untied": replace(PLAIN, tie_word_embeddings=False, num_key_value_heads=4),
    "biases": replace(PLAIN, qkv_bias=True, output_bias=True, mlp_bias=True),
    "head norms": replace(PLAIN, model_type="qwen3", qk_norm=True, head_dim=14, num_key_value_heads=1),
    "whole panels": replace(PLAIN, hidden_size=64, intermediate_size=128, head_dim=16),
}


def built(config: Config, adapter: Adapter | None = None, spread: float = 0.2) -> Llama:
    """A model whose every parameter does something."""
    draw = torch.Generator().manual_seed(5)
    model = Llama(config)
    if adapter is not None:
        adapters.attach(model, adapter, 1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(spread * torch.randn(p.shape, generator=draw) + ("norm" in name))
    return model


def forest(*, masked: bool = False) -> list[Tree]:
    """Groups that share prompts, a prompt of one token, single completions, and plain text."""
    draw = torch.Generator().manual_seed(2)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, VOCAB, (n,), generator=draw).tolist())

    def branch(n: int) -> Branch:
        return Branch(tokens(n), tuple(not masked or (i + n) % 3 != 1 for i in range(n)))

    groups = [(9, (5, 1, 17, 4)), (1, (3, 8)), (30, (6,)), (2, (2, 2, 2, 2, 2)), (0, (12,))]
    return [Tree(tokens(p), tuple(map(branch, lengths)), (0,) * len(lengths)) for p, lengths in groups]


def drawn(batch: TokenBatch, *, temperature: bool = True, kept: bool = True) -> TokenBatch:
    """The batch with temperatures, and with every other target drawn from some tokens only."""
    count, draw = len(batch.targets_C), torch.Generator().manual_seed(4)
    found = []
    for i in range(0, count, 2):
        target = int(batch.targets_C[i])
        others = torch.randperm(VOCAB, generator=draw)[: 1 + i % 20].tolist()
        found += [(i, token) for token in {target, *others}]
    of_K, kept_K = torch.tensor(found).unbind(1)
    shuffled = torch.randperm(len(found), generator=draw)
    return batch._replace(
        temperature_C=torch.linspace(0.5, 1.7, count) if temperature else None,
        kept_K=kept_K[shuffled] if kept else None,
        kept_of_K=of_K[shuffled] if kept else None,
    )


def column(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def gradients(
    function: Callable[..., Outputs], model: Llama, batch: TokenBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and the gradient of a weighted sum of them."""
    model.zero_grad(set_to_none=True)
    logprobs_C = column(function(model, batch).logprobs_C)
    (logprobs_C * torch.linspace(-1, 2, len(logprobs_C))).sum().backward()
    return logprobs_C.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradient(model: Llama, batch: TokenBatch, tolerance: float = 2e-5) -> None:
    """The relative distance of every tensor's gradient is fp32 rounding; the largest seen is 2e-6."""
    wanted_C, wanted = gradients(policy_outputs, model, batch)
    found_C, found = gradients(exact_policy_outputs, model, batch)
    assert torch.allclose(found_C, wanted_C, atol=1e-5 * float(wanted_C.abs().max()))
    assert found.keys() == wanted.keys()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == wanted.keys()
    worst = {n: float((found[n] - g).norm() / g.norm()) for n, g in wanted.items()}
    assert max(worst.values()) < tolerance, max(worst.items(), key=lambda x: x[1])


def test_the_columns_of_sampling_change_the_distribution_as_a_slow_twin_says() -> None:
    model = built(PLAIN)
    batch = drawn(collate(forest(masked=True)))
    with torch.no_grad():
        hidden_CD = model.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.scored_C)
        logits_CV = (hidden_CD @ model.head().T).double()
        found = policy_outputs(model, batch, statistics=("entropy", "collision"))
    kept_K, of_K, temperature_C = column(batch.kept_K), column(batch.kept_of_K), column(batch.temperature_C)
    for i, target in enumerate(batch.targets_C.tolist()):
        ids = kept_K[of_K == i].tolist() or list(range(VOCAB))
        weights = {v: torch.exp(logits_CV[i, v] / temperature_C[i].double()) for v in ids}
        total = sum(weights.values())
        probs = torch.stack([w / total for w in weights.values()])
        assert float(column(found.logprobs_C)[i]) == pytest.approx(
            float((weights[target] / total).log()), abs=1e-5
        )
        assert float(column(found.entropy_C)[i]) == pytest.approx(
            float(-(probs * probs.log()).sum()), abs=1e-5
        )
        whole = logits_CV[i].softmax(-1).square().sum().log()
        assert float(column(found.collision_C)[i]) == pytest.approx(float(whole), abs=1e-5)


def test_without_columns_of_sampling_the_distribution_is_the_models_own() -> None:
    model, batch = built(PLAIN), collate(forest())
    with torch.no_grad():
        plain = column(policy_outputs(model, batch).logprobs_C)
        ones = torch.ones(len(plain))
        same = column(policy_outputs(model, batch._replace(temperature_C=ones)).logprobs_C)
    assert torch.equal(plain, same)


@compiled
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_the_torch_forwards(name: str) -> None:
    assert_same_gradient(built(MODELS[name]), drawn(collate(forest(masked=True))))


@compiled
@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "v_proj", "down_proj")])
@pytest.mark.parametrize("name", ["tied, grouped queries", "biases"])
def test_the_gradient_of_an_adapter_is_the_torch_forwards(name: str, targets: tuple[str, ...]) -> None:
    model = built(MODELS[name], Adapter(rank=3, alpha=6, targets=targets))
    assert_same_gradient(model, drawn(collate(forest(masked=True))))


@compiled
@pytest.mark.parametrize("columns", [(False, False), (True, False), (False, True)])
def test_the_gradient_is_the_torch_forwards_for_each_column(columns: tuple[bool, bool]) -> None:
    temperature, kept = columns
    assert_same_gradient(built(PLAIN), drawn(collate(forest()), temperature=temperature, kept=kept))


@compiled
@pytest.mark.parametrize("adapter", [None, Adapter(rank=3, alpha=6)])
def test_under_autocast_the_values_stay_exact_and_the_gradient_is_rounded(adapter: Adapter | None) -> None:
    """Its distance from the fp32 gradient is no larger than that of the torch forward under autocast, within a third."""
    model, batch = built(MODELS["biases"], adapter), drawn(collate(forest(masked=True)))

    def rounded(function: Callable[..., Outputs]) -> Callable[..., Outputs]:
        def run(model: Llama, batch: TokenBatch) -> Outputs:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return function(model, batch)

        return run

    plain_C, plain = gradients(exact_policy_outputs, model, batch)
    found_C, found = gradients(rounded(exact_policy_outputs), model, batch)
    _, theirs = gradients(rounded(policy_outputs), model, batch)
    assert torch.equal(found_C, plain_C)
    assert {g.dtype for g in found.values()} == {torch.float32}

    def distance(other: dict[str, Tensor]) -> float:
        square = sum(float((other[n] - g).square().sum()) for n, g in plain.items())
        return (square / sum(float(g.square().sum()) for g in plain.values())) ** 0.5

    assert 1e-4 < distance(found) < 1.33 * distance(theirs) < 0.1


@compiled
def test_the_gradient_is_the_change_of_the_value() -> None:
    """Central differences along the gradient itself: f(w + hg) - f(w - hg) = 2h |g|^2 + O(h^3)."""
    model, batch = built(PLAIN, spread=0.1), drawn(collate(forest()))
    _, found = gradients(exact_policy_outputs, model, batch)
    square = sum(float(g.square().sum()) for g in found.values())
    step, weights = 2e-3 / square**0.5, torch.linspace(-1, 2, len(batch.targets_C)).double()

    def value(sign: float) -> float:
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(found[name], alpha=sign * step)
            return float((column(exact_policy_outputs(model, batch).logprobs_C).double() * weights).sum())

    difference = value(1.0) - value(-2.0)
    assert difference == pytest.approx(2 * step * square, rel=2e-2)


@compiled
def test_few_rows_a_call_and_logits_in_chunks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = built(PLAIN), drawn(collate(forest(masked=True)))
    whole_C, whole = gradients(exact_policy_outputs, model, batch)
    with torch.no_grad():
        assert torch.equal(column(exact_policy_outputs(model, batch).logprobs_C), whole_C)
    monkeypatch.setattr(exact, "ROWS", 1)
    monkeypatch.setattr(exact, "LARGE", 7 * 4 * VOCAB)
    cut_C, cut = gradients(exact_policy_outputs, model, batch)
    assert torch.equal(cut_C, whole_C)
    assert max(float((cut[n] - g).norm() / g.norm()) for n, g in whole.items()) < 2e-5


@compiled
def test_values_are_the_decoders_token_by_token_also_after_steps() -> None:
    model = built(PLAIN)
    trees = forest()
    for _ in range(3):
        found = column(exact_policy_outputs(model, collate(trees)).logprobs_C)
        wanted = []
        decoder = native.Native(model, PagedCache(model.config, 1, 64))
        for tree in trees:
            for branch in tree.branches:
                path = (*tree.prompt, *branch.tokens)
                for at, token in enumerate(path[:-1]):
                    step = decoder.forward([token], [0], [at], [0])
                    if at >= len(tree.prompt) - 1:
                        wanted.append(float(step.logits_RV[0, path[at + 1]] - step.total_R[0]))
        assert found.tolist() == wanted
        model.zero_grad()
        (-found.mean()).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * column(p.grad) / column(p.grad).norm()


@compiled
def test_frozen_matrices_are_packed_once_and_again_after_a_change() -> None:
    model = built(PLAIN, Adapter(rank=2, alpha=4))
    batch = collate(forest())

    def value() -> Tensor:
        with torch.no_grad():
            return column(exact_policy_outputs(model, batch).logprobs_C)

    first = value()
    kept = {name: entry[2] for name, entry in exact._PACKED[model].items()}
    assert len(kept) == 4 * PLAIN.num_hidden_layers + 1, "every matrix and the head"
    assert torch.equal(value(), first)
    assert all(exact._PACKED[model][name][2] is tensors for name, tensors in kept.items())
    frozen = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        frozen.mul_(2)
    assert not torch.equal(value(), first)
    fresh = built(PLAIN, Adapter(rank=2, alpha=4))
    with torch.no_grad():
        fresh.model.layers[1].mlp.down_proj.weight.mul_(2)
        assert torch.equal(column(exact_policy_outputs(fresh, batch).logprobs_C), value())


@compiled
def test_statistics_equal_the_torch_forwards() -> None:
    model, batch = built(PLAIN), drawn(collate(forest()))
    names = ("entropy", "collision")
    with torch.no_grad():
        found, wanted = (f(model, batch, statistics=names) for f in (exact_policy_outputs, policy_outputs))
    assert torch.allclose(column(found.entropy_C), column(wanted.entropy_C), atol=1e-5)
    assert torch.allclose(column(found.collision_C), column(wanted.collision_C), atol=1e-5)


def test_where_the_decoder_cannot_run_the_ordinary_forward_does_and_says_why(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = built(PLAIN), collate(forest())
    exact._say.cache_clear()
    monkeypatch.setattr(native, "build", lambda: None)
    wanted = column(policy_outputs(model, batch).logprobs_C)
    for _ in range(2):
        assert torch.equal(column(exact_policy_outputs(model, batch).logprobs_C), wanted)
    assert caplog.text.count("no compiled decoder") == 1
    monkeypatch.undo()
    assert "torch.float64" in str(obstacle(built(PLAIN).double()))
    assert "Linear runs through transformers" in str(obstacle(torch.nn.Linear(2, 2)))


def test_a_context_that_is_no_path_is_refused() -> None:
    batch: Any = collate([Tree((1, 2, 3, 4), (Branch((5,), (True,)), Branch((6,), (True,))), (0, 0))])
    odd = batch._replace(segments=(*batch.segments[:-1], Segment(4, 5, ((1, 3),))))
    with pytest.raises(ValueError, match="not a path from the root"):
        list(exact.waves(odd))


def test_created_models_have_no_obstacle() -> None:
    model = checkpoints.create(ModelShape(layers=1, width=32, heads=2, context=64), VOCAB, 0)
    assert obstacle(model) is None or native.build() is None

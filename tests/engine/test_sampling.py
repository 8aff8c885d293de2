"""Draws follow the exact distribution; the nucleus is the smallest set; log-probabilities are of the unmodified distribution."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare

from demeanor.engine import sampling
from demeanor.model.draws import Noise


def slow_nucleus(probs: list[float], top_p: float) -> set[int]:
    """The twin: take the most likely token until the mass is reached."""
    kept, mass = set(), 0.0
    for token in sorted(range(len(probs)), key=lambda i: -probs[i]):
        if mass >= top_p:
            break
        kept.add(token)
        mass += probs[token]
    return kept


def slow_distribution(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """The twin: softmax of logits / temperature, cut to the nucleus and renormalised."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    probs = [w / sum(weights) for w in weights]
    kept = slow_nucleus(probs, top_p)
    return [p / sum(probs[i] for i in kept) if i in kept else 0.0 for i, p in enumerate(probs)]


@pytest.mark.parametrize("vocab_size", [5, 40, 300])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(
    vocab_size: int, top_p: float, spread: float
) -> None:
    logits_NV = spread * torch.randn(8, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    probs_NV = logits_NV.softmax(-1)
    kept_NV = sampling.nucleus(probs_NV, torch.full((8,), top_p))
    assert kept_NV.shape == (8, vocab_size)
    for probs_V, kept_V in zip(probs_NV.double().tolist(), kept_NV):
        assert set(kept_V.nonzero()[:, 0].tolist()) == slow_nucleus(probs_V, torch.tensor(top_p).item())


def test_of_equally_likely_tokens_the_first_are_among_the_top_k() -> None:
    draw = torch.Generator().manual_seed(0)
    probs_NV = torch.rand(60, 40, generator=draw).mul(5).floor()  # many ties, also at 0
    top_k_N = torch.arange(60) % 39 + 1
    kept = [row.nonzero()[:, 0].tolist() for row in sampling.likeliest(probs_NV, top_k_N)]
    assert kept == [
        sorted(sorted(range(40), key=lambda i: (-row[i], i))[:k])
        for row, k in zip(probs_NV.tolist(), top_k_N.tolist())
    ]


def test_the_tokens_that_narrowing_keeps_do_not_depend_on_the_other_rows() -> None:
    """Some rows reach top_p among their 64 likeliest tokens, others are sorted whole; ties stand at the edge."""
    draw = torch.Generator().manual_seed(1)
    logits_NV = (
        torch.randn(12, 300, generator=draw).mul(torch.linspace(0.1, 6, 12)[:, None]).round(decimals=1)
    )
    ones_N, top_p_N = torch.ones(12), torch.full((12,), 0.9)
    together = sampling.narrowed(logits_NV, ones_N, top_p_N)
    alone = [sampling.narrowed(logits_NV[i : i + 1], ones_N[:1], top_p_N[:1]) for i in range(12)]
    assert torch.equal(together, torch.cat(alone))
    sizes = (together > 0).sum(-1)
    assert int(sizes.min()) < 64 < int(sizes.max())


def test_a_row_that_reaches_top_p_exactly_keeps_no_more() -> None:
    probs_NV = torch.tensor([[0.25, 0.5, 0.125, 0.125]])
    assert sampling.nucleus(probs_NV, torch.tensor([0.75])).tolist() == [[True, True, False, False]]
    assert sampling.nucleus(probs_NV, torch.tensor([0.5])).tolist() == [[False, True, False, False]]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.5, 0.8), (0.7, 0.95)])
def test_draws_follow_the_exact_distribution(temperature: float, top_p: float) -> None:
    num_draws, logits = 20_000, [2.0, 1.0, 0.5, 0.0, -1.0, -2.0, -3.0, 1.5]
    noise = Noise(1)
    uniform_NV = torch.stack([noise.uniform(len(logits)) for _ in range(num_draws)])
    tokens_N = sampling.draw(
        torch.tensor([logits]).expand(num_draws, -1).clone(),
        torch.full((num_draws,), temperature),
        torch.full((num_draws,), top_p),
        uniform_NV,
    )
    counts = torch.bincount(tokens_N, minlength=len(logits)).tolist()
    exact = slow_distribution(logits, temperature, top_p)
    assert all(count == 0 for count, p in zip(counts, exact) if p == 0)
    observed, expected = zip(*[(count, num_draws * p) for count, p in zip(counts, exact) if p > 0])
    assert chisquare(observed, expected).pvalue > 0.01


def test_each_row_has_its_own_temperature_and_top_p() -> None:
    generator = torch.Generator().manual_seed(3)
    logits_NV = torch.randn(6, 50, generator=generator)
    temperature_N, top_p_N = (
        torch.tensor([0.2, 0.7, 1.0, 1.0, 2.0, 5.0]),
        torch.tensor([1.0, 0.5, 1.0, 0.9, 0.3, 1.0]),
    )
    uniform_NV = torch.rand(6, 50, generator=generator)
    together = sampling.draw(logits_NV, temperature_N, top_p_N, uniform_NV).tolist()
    alone = [
        sampling.draw(
            logits_NV[i : i + 1], temperature_N[i : i + 1], top_p_N[i : i + 1], uniform_NV[i : i + 1]
        ).item()
        for i in range(6)
    ]
    assert together == alone


def test_a_small_change_of_the_logits_changes_about_as_few_draws_as_any_method_must() -> None:
    """Total variation bounds it from below: 4 of 10,000 draws here. An inverse CDF changes 75."""
    generator = torch.Generator().manual_seed(5)
    logits_NV = 0.1 * torch.randn(10_000, 500, generator=generator)
    moved_NV = logits_NV + 1e-3 * torch.randn(10_000, 500, generator=generator)
    uniform_NV = torch.rand(10_000, 500, generator=generator)
    ones_N = torch.ones(10_000)
    must = 0.5 * (logits_NV.softmax(-1) - moved_NV.softmax(-1)).abs().sum(-1).sum()
    changed = sampling.draw(logits_NV, ones_N, ones_N, uniform_NV) != sampling.draw(
        moved_NV, ones_N, ones_N, uniform_NV
    )
    by_cdf = (logits_NV.double().softmax(-1).cumsum(-1) < uniform_NV[:, :1]).sum(-1)
    moved_by_cdf = (moved_NV.double().softmax(-1).cumsum(-1) < uniform_NV[:, :1]).sum(-1)
    assert changed.sum() <= 3 * must
    assert (by_cdf != moved_by_cdf).sum() > 5 * changed.sum()


def test_as_temperature_falls_a_draw_becomes_greedy() -> None:
    generator = torch.Generator().manual_seed(7)
    logits_NV = torch.randn(64, 100, generator=generator)
    cold = sampling.draw(
        logits_NV, torch.full((64,), 1e-4), torch.ones(64), torch.rand(64, 100, generator=generator)
    )
    assert torch.equal(cold, sampling.greedy(logits_NV))


def test_extreme_uniform_numbers_give_a_token_of_the_distribution() -> None:
    logits_NV = torch.tensor([[0.0, 0.0, -torch.inf]])
    one = torch.ones(1)
    for value in (0.0, 1.0 - 2**-24, 1.0):
        assert sampling.draw(logits_NV, one, one, torch.full((1, 3), value)).item() in (0, 1)


def test_the_logprob_of_a_token_is_its_log_softmax_in_nats() -> None:
    logits_NV = torch.tensor([[math.log(0.5), math.log(0.3), math.log(0.2)]]) + 4.0
    assert sampling.token_logprobs(logits_NV, torch.tensor([1])).item() == pytest.approx(
        math.log(0.3), abs=1e-6
    )
    logprobs_NK, tokens_NK = sampling.top_logprobs(logits_NV, 2)
    assert tokens_NK.tolist() == [[0, 1]]
    assert logprobs_NK[0].tolist() == pytest.approx([math.log(0.5), math.log(0.3)], abs=1e-6)
    assert sampling.top_logprobs(logits_NV, 20)[1].shape == (1, 3), "no more alternatives than tokens"


def slow_narrowed(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> list[float]:
    """The twin: temper, keep the k likeliest, of those the nucleus, of those what reaches min_p times the best."""
    probs = slow_distribution(logits, temperature, 1.0)
    best = sorted(range(len(probs)), key=lambda i: -probs[i])[: top_k or len(probs)]
    probs = [p / sum(probs[i] for i in best) if i in best else 0.0 for i, p in enumerate(probs)]
    kept = slow_nucleus(probs, top_p)
    kept = {i for i in kept if probs[i] >= min_p * max(probs)}
    return [p / sum(probs[i] for i in kept) if i in kept else 0.0 for i, p in enumerate(probs)]


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(3, 1.0, 0.0), (1, 1.0, 0.0), (0, 1.0, 0.2), (5, 0.8, 0.0), (6, 0.95, 0.15), (100, 1.0, 0.0)],
)
def test_draws_narrowed_by_top_k_top_p_and_min_p_follow_the_exact_distribution(
    top_k: int, top_p: float, min_p: float
) -> None:
    num_draws, logits = 20_000, [2.0, 1.0, 0.5, 0.0, -1.0, -2.0, -3.0, 1.5]
    noise = Noise(2)
    uniform_NV = torch.stack([noise.uniform(len(logits)) for _ in range(num_draws)])
    tokens_N = sampling.draw(
        torch.tensor([logits]).expand(num_draws, -1).clone(),
        torch.full((num_draws,), 1.2),
        torch.full((num_draws,), top_p),
        uniform_NV,
        torch.full((num_draws,), top_k),
        torch.full((num_draws,), min_p),
    )
    counts = torch.bincount(tokens_N, minlength=len(logits)).tolist()
    exact = slow_narrowed(logits, 1.2, top_k, top_p, min_p)
    assert [count > 0 for count in counts] == [p > 0 for p in exact]
    observed, expected = zip(*[(count, num_draws * p) for count, p in zip(counts, exact) if p > 0])
    assert len(observed) == 1 or chisquare(observed, expected).pvalue > 1e-3


def test_penalties_count_each_token_of_the_answer() -> None:
    logits_V = torch.zeros(6)
    sampling.penalise(logits_V, {2: 1, 4: 3}, presence=0.5, frequency=0.25)
    assert logits_V.tolist() == [0, 0, -0.75, 0, -1.25, 0]


def test_min_p_of_one_keeps_the_best_token_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    logits_NV = torch.randn(500, 40, generator=generator)
    uniform_NV = torch.rand(500, 40, generator=generator)
    ones_N = torch.ones(500)
    drawn_N = sampling.draw(logits_NV, 3 * ones_N, ones_N, uniform_NV, None, ones_N)
    assert torch.equal(drawn_N, logits_NV.argmax(-1))


def test_of_two_tokens_with_the_number_0_the_likelier_wins() -> None:
    """Waits of 0 would make both infinitely good, and the first would win."""
    logits_NV, uniform_NV = torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([[0.0, 0.0, 0.5]])
    ones_N = torch.ones(1)
    assert sampling.draw(logits_NV, ones_N, ones_N, uniform_NV).tolist() == [1]


@pytest.mark.parametrize("spread", [0.5, 3.0, 12.0])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_full_sort(spread: float) -> None:
    """64 tokens are tried, then 2,048, then all are sorted; every row takes its own way."""
    draws = torch.Generator().manual_seed(0)
    probs_NV = (spread * torch.randn(8, 10_000, generator=draws)).softmax(-1)
    top_p_N = torch.tensor([0.05, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999])
    sorted_NV, ids_NV = probs_NV.sort(descending=True, stable=True)
    mass_NV = sorted_NV.double().cumsum(-1)
    before_NV = torch.cat([torch.full((8, 1), -1.0), mass_NV[:, :-1]], -1)
    wanted_NV = torch.zeros_like(probs_NV, dtype=torch.bool).scatter_(
        -1, ids_NV, before_NV < top_p_N[:, None]
    )
    found_NV = sampling.nucleus(probs_NV, top_p_N)
    assert int((found_NV != wanted_NV).sum()) == 0
    alone_NV = torch.cat([sampling.nucleus(probs_NV[i : i + 1], top_p_N[i : i + 1]) for i in range(8)])
    assert torch.equal(alone_NV, found_NV)

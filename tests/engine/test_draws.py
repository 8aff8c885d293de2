"""Tokens that compiled code draws are those of a slow draw in double precision, whatever the settings, the other rows and the threads are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare

from demeanor.engine import sampling
from demeanor.engine.sampling import DrawSettings
from demeanor.model import draws
from demeanor.model.draws import Noise
from demeanor.model.native import build

pytestmark = pytest.mark.skipif(build() is None, reason="needs a C++ compiler")

SETTINGS = [
    DrawSettings(temperature, top_p, min_p, top_k)
    for temperature, top_p, min_p, top_k in itertools.product(
        (0.3, 1.0, 1.7), (1.0, 0.999, 0.9, 0.5, 1e-9), (0.0, 0.05), (0, 1, 7, 10_000)
    )
]


def slow_draw(logits: list[float], s: DrawSettings, uniform: list[float]) -> tuple[list[int], list[float]]:
    """The twin: the tokens that narrowing leaves, and how fast each runs (the greatest wins), in double precision."""
    vocab, top = len(logits), max(logits)
    weights = [math.exp((x - top) / s.temperature) for x in logits]
    order = sorted(range(vocab), key=lambda v: (-weights[v], v))
    order = order[: s.top_k] if s.top_k else order
    need, mass, kept = torch.tensor(s.top_p).item() * sum(weights[v] for v in order), 0.0, list[int]()
    for v in order:
        if s.top_p < 1 and mass >= need and kept:
            break
        kept.append(v)
        mass += weights[v]
    kept = sorted(v for v in kept if weights[v] >= torch.tensor(s.min_p).item())
    return kept, [weights[v] / max(-math.log1p(-uniform[v]), 1e-30) for v in kept]


@pytest.mark.parametrize("seed", [0, 1, -7, 2**31, 2**40 + 3, 2**70])
def test_random_numbers_are_those_of_torch_for_the_seed(seed: int) -> None:
    generator, noise = torch.Generator().manual_seed(seed % 2**64), Noise(seed)
    for vocab in (7, 5_000, 624, 313, 1):
        assert torch.equal(
            torch.rand(vocab, generator=generator, dtype=torch.float64).float(), noise.uniform(vocab)
        )


def test_without_a_seed_every_answer_has_its_own_numbers() -> None:
    assert not torch.equal(Noise(None).uniform(20), Noise(None).uniform(20))


@pytest.mark.parametrize("vocab", [5, 61, 300])
@pytest.mark.parametrize("spread", [0.2, 4.0])
@pytest.mark.parametrize("ties", [False, True])
def test_every_narrowing_is_that_of_the_slow_draw(vocab: int, spread: float, ties: bool) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits_NV = spread * torch.randn(len(SETTINGS), vocab, generator=generator)
    if ties:
        logits_NV = logits_NV.mul(2).round() / 2
    tokens_N, kept = sampling.drawn(
        logits_NV, SETTINGS, [Noise(i) for i in range(len(SETTINGS))], [True] * len(SETTINGS)
    )
    sure = 0
    for i, (settings, row) in enumerate(zip(SETTINGS, logits_NV.tolist())):
        left, speeds = slow_draw(row, settings, Noise(i).uniform(vocab).tolist())
        assert kept[i].tolist() == left if i in kept else len(left) == vocab
        first, *others = sorted(speeds, reverse=True)
        if not others or others[0] < first * (1 - 1e-5):  # else fp32 may find another
            sure += 1
            assert int(tokens_N[i]) == left[speeds.index(first)], settings
    assert sure > len(SETTINGS) - 3


def test_of_equal_tokens_the_first_are_kept_and_no_more_than_reach_top_p_exactly() -> None:
    settings = [
        DrawSettings(1.0, 0.5, 0.0, 0),
        DrawSettings(1.0, 1.0, 0.0, 3),
        DrawSettings(1.0, 0.5, 0.0, 4),
    ]
    _, kept = sampling.drawn(torch.zeros(3, 8), settings, [Noise(i) for i in range(3)], [True] * 3)
    assert [x.tolist() for x in kept.values()] == [[0, 1, 2, 3], [0, 1, 2], [0, 1]]


def test_a_whole_vocabulary_is_drawn_as_torch_draws_it() -> None:
    generator = torch.Generator().manual_seed(5)
    logits_NV = 3 * torch.randn(24, 49_152, generator=generator)
    settings = [
        DrawSettings(*x) for x in itertools.product((0.7, 1.0), (1.0, 0.9, 0.5), (0.0, 0.02), (0, 50))
    ]
    noises = [Noise(i) for i in range(24)]
    tokens_N, _ = sampling.drawn(logits_NV, settings, noises, [False] * 24)
    temperature_N, top_p_N, min_p_N, top_k_N = torch.tensor(settings).unbind(1)
    probs_NV = sampling.narrowed(logits_NV, temperature_N, top_p_N, top_k_N.long(), min_p_N)
    uniform_NV = torch.stack([Noise(i).uniform(49_152) for i in range(24)])
    assert torch.equal(tokens_N, sampling.race(probs_NV, uniform_NV))


def test_a_row_is_drawn_alike_alone_among_others_and_by_any_number_of_threads() -> None:
    logits_NV = 2 * torch.randn(len(SETTINGS), 400, generator=torch.Generator().manual_seed(2))
    count, threads = len(SETTINGS), torch.get_num_threads()
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        try:
            noises = [Noise(i) for i in range(count)]
            found += [
                sampling.drawn(logits_NV, SETTINGS, noises, [False] * count)[0].tolist() for _ in range(2)
            ]
        finally:
            torch.set_num_threads(threads)
    assert found[0] == found[2] == found[4]
    assert found[1] == found[3] == found[5] != found[0], "the second draw has other random numbers"
    alone = [
        int(sampling.drawn(logits_NV[i : i + 1], SETTINGS[i : i + 1], [Noise(i)], [False])[0])
        for i in range(count)
    ]
    assert alone == found[0]


def test_without_a_compiler_the_tokens_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_NV = 2 * torch.randn(len(SETTINGS), 200, generator=torch.Generator().manual_seed(3))
    count = len(SETTINGS)
    tokens_N, kept = sampling.drawn(logits_NV, SETTINGS, [Noise(i) for i in range(count)], [True] * count)
    monkeypatch.setattr(draws, "build", lambda: None)
    noises = [Noise(i) for i in range(count)]
    assert all(noise.state is None for noise in noises)
    again_N, left = sampling.drawn(logits_NV, SETTINGS, noises, [True] * count)
    assert tokens_N.tolist() == again_N.tolist()
    assert {i: x.tolist() for i, x in kept.items()} == {i: x.tolist() for i, x in left.items()}


@pytest.mark.parametrize(
    "settings",
    [DrawSettings(1.0, 1.0, 0.0, 0), DrawSettings(0.7, 0.9, 0.0, 0), DrawSettings(1.3, 0.95, 0.1, 6)],
)
def test_many_draws_follow_the_exact_distribution(settings: DrawSettings) -> None:
    logits, noise, num_draws = [2.0, 1.0, 0.5, 0.0, -1.0, -2.0, -3.0, 1.5], Noise(4), 8_000
    logits_NV = torch.tensor([logits])
    tokens = [int(sampling.drawn(logits_NV, [settings], [noise], [False])[0]) for _ in range(num_draws)]
    kept, _ = slow_draw(logits, settings, [0.5] * len(logits))
    weights = [math.exp(logits[v] / settings.temperature) for v in kept]
    assert set(tokens) == set(kept)
    expected = [num_draws * w / sum(weights) for w in weights]
    assert chisquare([tokens.count(v) for v in kept], expected).pvalue > 1e-3


def test_forbidden_tokens_never_win() -> None:
    logits_NV = torch.full((1, 49), -torch.inf)
    logits_NV[0, 30] = -5.0
    for settings in SETTINGS:
        assert int(sampling.drawn(logits_NV, [settings], [Noise(1)], [False])[0]) == 30


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_row_without_a_likeliest_token_reads_nothing_beyond_it(broken: float) -> None:
    """No weight is 1 then, so what narrowing looks for is not there; a token is drawn all the same, whatever it is."""
    count = len(SETTINGS)
    logits_NV = torch.full((count, 37), broken)
    tokens_N, kept = sampling.drawn(logits_NV, SETTINGS, [Noise(i) for i in range(count)], [True] * count)
    assert tokens_N.tolist() == [0] * count
    assert kept == {}

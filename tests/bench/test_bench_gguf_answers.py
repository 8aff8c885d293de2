"""How two sets of logits of one answer are counted."""

import pytest
import torch

from bench.gguf_answers import Pair, lines


def test_a_pair_counts_best_tokens_answers_and_the_gaps_where_they_differ() -> None:
    exact = torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.5, 0.0]])
    a, b = exact + 7.0, exact.clone()  # a constant beside a row's logits changes nothing
    b[1] = torch.tensor([1.6, 1.5, 0.0])
    pair = Pair()
    pair.add(a, b, exact)
    pair.add(a[:1], b[:1], exact[:1])
    assert (pair.positions, pair.same, pair.answers, pair.equal) == (3, 2, 2, 1)
    assert pair.gaps == pytest.approx([0.5])
    assert pair.rms == pytest.approx((0.6**2 * (2 / 9) / 3) ** 0.5)
    ((names, same, _, answers, difference, gap),) = lines({("a", "b"): pair})
    assert (names, same, answers, gap) == ("a and b", "2 of 3", "1 of 2", "0.500, 0.500")
    assert difference == f"{pair.rms:.4f}"

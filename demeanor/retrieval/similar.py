"""A few hundred texts in the order of their similarity to a question: BM25, vectors, or both by rank fusion.

In: texts and how to compare them. Out: a function from a question to all their numbers, the most similar first; of equal
ones the earlier. All in memory; for folders of documents there is index.py.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

from demeanor.retrieval import words
from demeanor.retrieval.vectors import Encoder, Matrix, nearest, vectors_of

K1, B = 1.2, 0.75  # Robertson et al. 1995, the usual values
FUSION = 60  # of reciprocal rank fusion; Cormack et al. 2009
Ranked = Callable[[str], list[int]]


def ranked(
    texts: Sequence[str], by: Literal["words", "vectors", "both"], encoder: Encoder | None = None
) -> Ranked:
    """Return a function from a question to the texts' numbers, the most similar first."""
    if by == "words":
        return by_words(texts)
    assert encoder is not None, "the layer's settings name an encoder"
    dense = by_vectors(texts, encoder)
    if by == "vectors":
        return dense
    lexical = by_words(texts)

    def both(question: str) -> list[int]:
        scores: defaultdict[int, float] = defaultdict(float)
        for order in (lexical(question), dense(question)):
            for rank, number in enumerate(order, 1):
                scores[number] += 1 / (FUSION + rank)
        return _best_first([scores[i] for i in range(len(texts))])

    return both


def by_words(texts: Sequence[str]) -> Ranked:
    """BM25 with English stop words out of the question."""
    score = bm25(texts)
    return lambda question: _best_first(score(question))


def bm25(texts: Sequence[str]) -> Callable[[str], list[float]]:
    """Return a function from a question to the score of each text."""
    counts = [Counter(words.index_terms(text)) for text in texts]
    lengths = [sum(count.values()) for count in counts]
    mean = sum(lengths) / len(lengths) or 1.0
    having = Counter(term for count in counts for term in count)

    def scores(question: str) -> list[float]:
        terms = words.without(words.query_terms(question), words.ENGLISH)
        rarity = {t: math.log(1 + (len(texts) - having[t] + 0.5) / (having[t] + 0.5)) for t in terms}
        found = []
        for count, length in zip(counts, lengths, strict=True):
            long = K1 * (1 - B + B * length / mean)
            found.append(sum(rarity[t] * count[t] * (K1 + 1) / (count[t] + long) for t in terms))
        return found

    return scores


def by_vectors(texts: Sequence[str], encoder: Encoder) -> Ranked:
    """Cosine of an encoder's vectors; the texts are encoded at the first question."""
    kept: list[Matrix] = []

    def order(question: str) -> list[int]:
        if not kept:
            kept.append(vectors_of(texts, encoder, None, None))
        return [row for row, _ in nearest(kept[0], encoder.encode([question], query=True)[0])]

    return order


def _best_first(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))

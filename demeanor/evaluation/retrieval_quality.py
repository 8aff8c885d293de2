"""What an index finds of what it should: recall, MRR and time on labelled questions, compared between settings.

In: questions with the passages that answer them, and searches by name. Out: one row a search, with intervals over the
questions and, from the second on, the difference to the first on the same questions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demeanor.core.errors import DataError
from demeanor.core.files import json_lines
from demeanor.core.table import Table, interval, points
from demeanor.core.types import Search
from demeanor.evaluation.statistics import Estimate, mean, paired

AT = (1, 5, 10)  # passages that count for recall
MRR_AT = 5


@dataclass(frozen=True, slots=True)
class LabelledQuestion:
    """A question and the passages that answer it: ids, or sources where whole documents count."""

    question: str
    passages: frozenset[str]
    cluster: str


@dataclass(frozen=True, slots=True)
class SearchQuality:
    """One search on all questions: recall at each of AT and reciprocal rank by question, milliseconds a query."""

    name: str
    recall: Mapping[int, tuple[float, ...]]
    reciprocal: tuple[float, ...]
    ms: tuple[float, ...]


def labelled(path: Path) -> list[LabelledQuestion]:
    """Read questions from .jsonl (or a JSON list): `question`, `passages`, and `cluster` if some belong together.

    Raises DataError that says which row is wrong and how.
    """
    if path.suffix == ".json":
        try:
            rows = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        if not isinstance(rows, list):
            raise DataError(f"{path}: wanted a list of rows")
    else:
        rows = [row for row, _ in json_lines(path, lambda row: row, "a question")]
    found = [_row(path, number, row) for number, row in enumerate(rows, 1)]
    if not found:
        raise DataError(f"{path}: no questions; wanted rows like {EXAMPLE}")
    return found


EXAMPLE = '{"question": "When does the ferry leave?", "passages": ["ferries.md#1"]}'


def _row(path: Path, number: int, row: Any) -> LabelledQuestion:
    values: dict[str, Any] = row if isinstance(row, dict) else {}
    question, passages = values.get("question"), values.get("passages", values.get("correct_chunks"))
    labels = [x for x in passages if isinstance(x, str)] if isinstance(passages, list) else []
    if not isinstance(question, str) or not question.strip() or not labels or passages != labels:
        raise DataError(f"{path}: row {number}: wanted {EXAMPLE}")
    return LabelledQuestion(question, frozenset(labels), str(values.get("cluster", number)))


def quality(name: str, search: Search, questions: Sequence[LabelledQuestion]) -> SearchQuality:
    """Ask all questions of one search."""
    recall: dict[int, list[float]] = {k: [] for k in AT}
    reciprocal, ms = list[float](), list[float]()
    for asked in questions:
        start = time.perf_counter()
        found = search(asked.question, max(AT))
        ms.append(1000 * (time.perf_counter() - start))
        hits = [{p.id, p.source} & asked.passages for p in found]
        for k in AT:
            recall[k].append(len(set().union(*hits[:k])) / len(asked.passages))
        first = next((i for i, hit in enumerate(hits[:MRR_AT], 1) if hit), None)
        reciprocal.append(1 / first if first else 0.0)
    return SearchQuality(name, {k: tuple(v) for k, v in recall.items()}, tuple(reciprocal), tuple(ms))


def unknown(questions: Sequence[LabelledQuestion], known: frozenset[str]) -> list[str]:
    """Return labels that no passage and no document of the index has."""
    return sorted({label for asked in questions for label in asked.passages} - known)


def quality_table(found: Sequence[SearchQuality], questions: Sequence[LabelledQuestion]) -> Table:
    """The searches as rows."""
    clusters = [asked.cluster for asked in questions]
    first = found[0]
    rows = []
    for each in found:
        change = ""
        if each is not first:
            d = paired(np.array(first.recall[5]), np.array(each.recall[5]), clusters)
            change = f"{points(d.value)} {interval(d.low, d.high)}"
        rows.append(
            (
                each.name,
                *(_share(mean(np.array(each.recall[k]), clusters)) for k in AT),
                _share(mean(np.array(each.reciprocal), clusters)),
                change,
                f"{np.percentile(each.ms, 50):.1f}",
                f"{np.percentile(each.ms, 95):.1f}",
            )
        )
    columns = (
        "search",
        *(f"recall@{k}" for k in AT),
        f"MRR@{MRR_AT}",
        f"recall@5 against {first.name}",
        "ms p50",
        "ms p95",
    )
    return Table(columns, tuple(rows))


def _share(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} ({found.low:.2f} to {found.high:.2f})"


def quality_json(found: Sequence[SearchQuality], questions: Sequence[LabelledQuestion]) -> dict[str, Any]:
    """The same with the values of every question."""
    clusters = [asked.cluster for asked in questions]
    return {
        "n": len(questions),
        "searches": [
            {
                "name": each.name,
                **{f"recall@{k}": mean(np.array(v), clusters)._asdict() for k, v in each.recall.items()},
                f"mrr@{MRR_AT}": mean(np.array(each.reciprocal), clusters)._asdict(),
                "ms_p50": float(np.percentile(each.ms, 50)),
                "ms_p95": float(np.percentile(each.ms, 95)),
                "recall_by_question": list(each.recall[5]),
            }
            for each in found
        ],
    }

"""How far the labels of a queue agree: Krippendorff's alpha, each labeller against the rest, gold checks, a taste for places.

In: labels (anything with item, labeller, choice, ranks, shown), the ranks that gold checks expect. Out: a `LabelAgreement`. Items
are the clusters of every interval. It knows no database, page or model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from demeanor.core.table import Paragraph, Section, Table, estimate, plural, share
from demeanor.evaluation.agreement import Agreement, Level, alpha
from demeanor.evaluation.statistics import Estimate, Floats, mcnemar_exact, mean

FIRST, SAME, SECOND, BOTH_BAD = -1.0, 0.0, 1.0, 2.0
"""Values of a comparison of two answers; `both bad` is a value of its own for the nominal coefficient and a tie in order."""


class Opinion(Protocol):
    """One labeller's label of one item: `ranks` by answer number (0 is best), `shown` the order they saw."""

    @property
    def item(self) -> str: ...

    @property
    def labeller(self) -> str: ...

    @property
    def choice(self) -> str: ...

    @property
    def ranks(self) -> Sequence[int]: ...

    @property
    def shown(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Ratings:
    """Ratings as a matrix: `values_NR` (units x labellers, NaN: none), each unit's name and item."""

    values_NR: Floats
    units: tuple[str, ...]
    items: tuple[str, ...]
    labellers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabellerAgreement:
    """One labeller: labels given, how often their comparisons are those of each other labeller, gold checks, and how
    often they chose the answer that stood first (`first_p`: exact sign test against the second, pairs only)."""

    labeller: str
    labels: int
    with_rest: Estimate | None
    gold: Estimate | None
    first: Estimate | None
    first_p: float | None
    median_s: float | None = None


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """Agreement of all labels of a queue."""

    items: int
    labels: int
    nominal: Agreement
    ordinal: Agreement
    labellers: tuple[LabellerAgreement, ...]


def measure(
    labels: Sequence[Opinion], gold: Mapping[str, Sequence[int]] | None = None, *, draws: int = 2000
) -> LabelAgreement:
    """Measure the labels of a queue; gold checks count for their labeller alone, skipped items for nobody."""
    known = gold or {}
    given = [label for label in labels if label.choice != "skipped"]
    work = [label for label in given if label.item not in known]
    nominal, ordinal = ratings(work, "nominal"), ratings(work, "ordinal")
    people = sorted({label.labeller for label in given})
    return LabelAgreement(
        len({label.item for label in work}),
        len(work),
        alpha(nominal.values_NR, nominal.items, level="nominal", draws=draws),
        alpha(ordinal.values_NR, ordinal.items, level="ordinal", draws=draws),
        tuple(_labeller(name, given, known, nominal) for name in people),
    )


def ratings(labels: Sequence[Opinion], level: Level) -> Ratings:
    """The labels as units x labellers.

    Pairs: one unit an item; -1 the first answer is better, 1 the second, 0 a tie, and both bad: 2 (nominal) or 0 (ordinal).
    Rankings, nominal: one such unit for every two answers. Rankings, ordinal: one unit an answer, its rank.
    """
    people = {name: n for n, name in enumerate(sorted({label.labeller for label in labels}))}
    rows: dict[tuple[str, str], Floats] = {}
    for label in labels:
        for unit, value in _values(label, level).items():
            row = rows.setdefault((unit, label.item), np.full(len(people), np.nan))
            row[people[label.labeller]] = value
    keys = sorted(rows)
    values = np.array([rows[key] for key in keys]).reshape(len(keys), len(people))
    return Ratings(values, tuple(u for u, _ in keys), tuple(i for _, i in keys), tuple(people))


def _values(label: Opinion, level: Level) -> dict[str, float]:
    size = len(label.ranks)
    if size > 2 and level == "ordinal":
        return {f"{label.item}/{n}": float(rank) for n, rank in enumerate(label.ranks)}
    bad = BOTH_BAD if level == "nominal" else SAME
    return {
        f"{label.item}/{a}-{b}": bad
        if label.choice == "all_bad"
        else float(np.sign(label.ranks[a] - label.ranks[b]))
        for a, b in combinations(range(size), 2)
    }


def _labeller(
    name: str, given: Sequence[Opinion], gold: Mapping[str, Sequence[int]], nominal: Ratings
) -> LabellerAgreement:
    own = [label for label in given if label.labeller == name]
    checks = [label for label in own if label.item in gold]
    right = [float(_right(label, gold[label.item])) for label in checks]
    first, p = _first(own)
    return LabellerAgreement(
        name,
        len(own),
        _with_rest(name, nominal),
        mean(np.array(right), [label.item for label in checks]) if checks else None,
        first,
        p,
        _median_s(own),
    )


def _right(label: Opinion, wanted: Sequence[int]) -> bool:
    """Whether a label has the best answers of a gold check, or says what the check says of all."""
    if len(set(wanted)) == 1:
        return len(set(label.ranks)) == 1
    best = [{n for n, rank in enumerate(ranks) if rank == 0} for ranks in (label.ranks, wanted)]
    return label.choice == "ranked" and best[0] == best[1]


def _with_rest(name: str, found: Ratings) -> Estimate | None:
    """How often this labeller's comparison is that of another labeller of the same unit."""
    if name not in found.labellers:
        return None
    n = found.labellers.index(name)
    own_N = found.values_NR[:, n]
    rest_NR = np.delete(found.values_NR, n, axis=1)
    rows, others = np.nonzero(~np.isnan(rest_NR) & ~np.isnan(own_N)[:, None])
    if not len(rows):
        return None
    same = (rest_NR[rows, others] == own_N[rows]).astype(float)
    return mean(same, [found.items[row] for row in rows])


def _first(own: Sequence[Opinion]) -> tuple[Estimate | None, float | None]:
    """How often the better answer of a pair was the one shown first; p of first and second being equally likely."""
    decided = [label for label in own if len(label.ranks) == 2 and label.choice == "ranked"]
    if not decided:
        return None, None
    chose = np.array([float(label.ranks[label.shown[0]] == 0) for label in decided])
    firsts = int(chose.sum())
    return mean(chose, [label.item for label in decided]), mcnemar_exact(firsts, len(chose) - firsts)


def _median_s(own: Sequence[Opinion]) -> float | None:
    taken = [ms for label in own if (ms := getattr(label, "ms", 0)) > 0]
    return float(np.median(taken)) / 1000 if taken else None


def measured(given: Sequence[Any], gold: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The agreement of labels as JSON, as the labelling page shows it."""
    return as_json(measure(given, gold))


def as_json(found: LabelAgreement) -> dict[str, Any]:
    """The agreement as JSON: every number by its name."""

    def named(value: Any) -> Any:
        return value._asdict() if isinstance(value, Agreement | Estimate) else value

    people = [{name: named(getattr(one, name)) for name in one.__slots__} for one in found.labellers]
    return {
        "items": found.items,
        "labels": found.labels,
        "nominal": named(found.nominal),
        "ordinal": named(found.ordinal),
        "labellers": people,
    }


# ---- what a person reads ----


def section(found: LabelAgreement, name: str) -> Section:
    """Alpha and each labeller as tables."""
    coefficients = Table(
        ("Krippendorff's alpha (0: chance, 1: perfect)", "measured (95% interval)", "units", "labels"),
        tuple(
            (level, estimate(*one[:3]), str(one.units), str(one.ratings))
            for level, one in (("nominal", found.nominal), ("ordinal", found.ordinal))
        ),
    )
    people = Table(
        (
            "labeller",
            "labels",
            "as the rest say",
            "gold checks right",
            "first shown is better",
            "p",
            "median s",
        ),
        tuple(
            (
                one.labeller,
                str(one.labels),
                *(share(*x[:3]) if x else "-" for x in (one.with_rest, one.gold, one.first)),
                "-" if one.first_p is None else f"{one.first_p:.3f}",
                "-" if one.median_s is None else f"{one.median_s:.1f}",
            )
            for one in found.labellers
        ),
    )
    about = Paragraph(
        f"{plural(found.labels, 'label')} of {plural(found.items, 'item')}; intervals resample items."
    )
    return Section("labels", "Labels", f"How far people agree: {name}", (about, coefficients, people))

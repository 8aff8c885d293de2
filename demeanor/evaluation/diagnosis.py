"""Which change repairs what fails, what it breaks, and which layer that accuses.

In: rows of the stack as it is and under each intervention, on the same failing items and passing controls. Out: one `Diagnosis`
tree, nothing rendered. Items count as right from 0.5 on. It refuses to know how an intervention is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from demeanor.errors import DataError
from demeanor.evaluation.cells import Cells
from demeanor.evaluation.repairs import AS_IS, Intervention, Repair, corrected, repair, right, share
from demeanor.evaluation.row import Row
from demeanor.evaluation.suite import suite_hash
from demeanor.types import Item

WORTH = 0.2
"""A share of the failing items: if no intervention can be repairing so many, the weights have to learn it."""


@dataclass(frozen=True, slots=True)
class Honest:
    """The best intervention's share of repaired items, free of the flattery of picking it on the same items.

    Clusters are halved; the best by net on one half is estimated on the other, and both estimates are pooled.
    """

    chosen: tuple[str, ...]
    naive: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything found; `passing` is how many items the controls stand for, `guilty` the layer accused, or `none`."""

    name: str
    suite_hash: str
    scope: str
    judged: str
    failing: int
    passing: int
    controls: int
    repairs: tuple[Repair, ...]
    honest: Honest | None
    guilty: str
    recommendation: str
    questions: dict[str, str]
    wrong: tuple[str, ...] = ()
    """Ids of the failing items that were replayed."""
    curve: tuple[tuple[float, float], ...] = ()
    """Share right by share of the rows that the last trained stage read, and what that says; empty unless asked for."""
    learnt: str = ""


def diagnose(
    rows: Sequence[Row],
    failing: Sequence[Item],
    controls: Sequence[Item],
    passing: int,
    interventions: Sequence[Intervention],
    *,
    name: str,
    scope: str,
    judged: str = "by the scorers of the items",
    suite: str | None = None,
    wrong: int | None = None,
) -> Diagnosis:
    """Judge every intervention; rows of the unchanged stack bear the variant `AS_IS`, the others their intervention's name.

    `passing` is the number of items that `controls` were drawn from, `wrong` that of `failing` (None: these are all), `suite` the
    hash of the whole suite (None: of these items). Raises DataError if the rows say that a failing item passes or a control fails.
    """
    items = [*failing, *controls]
    if not failing:
        return Diagnosis(
            name,
            suite or suite_hash(items),
            scope,
            judged,
            0,
            passing,
            len(controls),
            (),
            None,
            "none",
            "Nothing fails here, so there is nothing to repair.",
            {},
        )
    cells = Cells(
        [replace(r, value=0.0) if r.error and r.variant != AS_IS else r for r in rows], items
    )  # no answer is a wrong one
    _check(cells, failing, controls)
    wrong = len(failing) if wrong is None else wrong
    repairs = corrected([repair(cells, x, failing, controls, (wrong, passing)) for x in interventions])
    found = Diagnosis(
        name,
        suite or suite_hash(items),
        scope,
        judged,
        len(failing),
        passing,
        len(controls),
        repairs,
        _honest(
            cells, [x.name for x in interventions if x.kind != "again"], failing, controls, passing / wrong
        ),
        guilty(repairs),
        "",
        {item.id: item.messages[-1].content for item in items},
        tuple(item.id for item in failing),
    )
    return replace(found, recommendation=recommendation(found, failing, (wrong + passing) / wrong))


def guilty(repairs: Sequence[Repair]) -> str:
    """The layer whose undoing makes the whole better by most, shown after correction; else the one that makes an axis better by most
    without making the whole worse; `none` where neither is shown."""
    accused = [r for r in repairs if r.layer]
    if whole := [r for r in accused if r.shown]:
        return max(whole, key=lambda r: r.net or 0.0).layer
    of_axes = [(a.net or 0.0, r.layer) for r in accused for a in r.helped]
    return max(of_axes)[1] if of_axes else "none"


def recommendation(found: Diagnosis, failing: Sequence[Item], scale: float) -> str:
    """One sentence: what to do about the failing items, or that the data cannot tell; `scale` is all items by failing ones."""
    real = [r for r in found.repairs if r.kind != "again"]
    shown = [r for r in real if r.shown]
    if shown:
        best = max(shown, key=lambda r: ((r.net or 0.0), bool(r.layer)))
        return (
            f"{best.advice} It repairs {best.repaired} of {best.failing} failing items and breaks {best.broken} of "
            f"{best.controls} controls."
        )
    if of_axes := [(a.net or 0.0, bool(r.layer), a.axis, r) for r in real for a in r.helped]:
        _, _, axis, best = max(of_axes, key=lambda x: x[:3])
        here = next(a for a in best.axes if a.axis == axis)
        return (
            f"{best.advice} On {axis} it repairs {here.repaired} of {here.failing} failing items; elsewhere it repairs "
            f"{best.repaired - here.repaired} and breaks {best.broken - here.broken} of {best.controls - here.controls} controls."
        )
    most, costly = max((_possible(r, scale) for r in real), default=1.0), _costly(real)
    if most >= WORTH:
        tried = max(real, key=lambda r: r.net or 0.0, default=None)
        near = (
            f" Nearest: {tried.name}, {tried.repaired} repaired and {tried.broken} broken."
            if tried and (tried.net or 0.0) > 0
            else ""
        )
        return (
            f"The data cannot tell: no intervention is shown to help, but one could be repairing up to {most:.0%} of the failing "
            f"items, less what it breaks.{near}{costly}"
        )
    if _must_not(failing) >= 0.5:
        return (
            "Write a rule (policy): most failing items must not be answered, and no change of prompt, decoding or layers repairs "
            f"more than {most:.0%} of them, less what it breaks.{costly}"
        )
    return (
        f"Fine-tune it: no change of prompt, examples, passages, decoding or layers repairs more than {most:.0%} of the failing items, "
        f"less what it breaks, so the weights have to learn it.{costly}"
    )


def _possible(r: Repair, scale: float) -> float:
    """The share of the failing items that an intervention may be repairing, less what it breaks."""
    most = 1.0 if r.rate_high is None else r.rate_high
    return most if r.net_high is None else max(0.0, min(most, r.net_high * scale))


def _costly(repairs: Sequence[Repair]) -> str:
    """What repairs at least half of the failing items and is not worth what it breaks, in a sentence; empty where nothing does."""
    much = [r for r in repairs if (r.rate or 0.0) >= 0.5 and (r.net or 0.0) < 0]
    if not much:
        return ""
    best = max(much, key=lambda r: (r.rate or 0.0, r.net or 0.0))
    return f" Not worth it: {best.name} repairs {best.repaired} of {best.failing} and breaks {best.broken} of {best.controls} controls."


def _must_not(failing: Sequence[Item]) -> float:
    """The share of items whose right answer is not to say something."""
    return sum(item.target.get("refuse") is True or item.scorer == "absence" for item in failing) / len(
        failing
    )


def _check(cells: Cells, failing: Sequence[Item], controls: Sequence[Item]) -> None:
    wrong_N, right_N = right(cells, AS_IS, failing), right(cells, AS_IS, controls)
    for items, mask_N, was in (
        (failing, wrong_N == 1, "failing item passes"),
        (controls, right_N == 0, "control fails"),
    ):
        if mask_N.any():
            raise DataError(
                f"diagnosis: {int(mask_N.sum())} {was} in the rows given, first '{items[int(np.argmax(mask_N))].id}'"
            )


def _honest(
    cells: Cells, names: Sequence[str], failing: Sequence[Item], controls: Sequence[Item], odds: float
) -> Honest | None:
    """Choose on one half of the clusters, estimate on the other; None where the failing items have fewer than two clusters.

    `odds` is the number of passing items for each failing one.
    """
    groups = sorted({i.cluster for i in failing})
    if len(groups) < 2 or not names:
        return None
    order = np.random.default_rng(0).permutation(len(groups))
    first = {groups[i] for i in order[: len(groups) // 2]}
    others = sorted({i.cluster for i in controls} - set(groups))
    first |= {c for n, c in enumerate(others) if n % 2}
    up = {n: right(cells, n, failing) for n in names}
    down = {n: 1 - right(cells, n, controls) for n in names}
    here_F, here_C = (
        np.array([i.cluster in first for i in items], dtype=bool) for items in (failing, controls)
    )

    def best(half_F: npt.NDArray[np.bool_], half_C: npt.NDArray[np.bool_]) -> str:
        scaled = odds * len(failing) / max(1, len(controls))
        return max(
            names, key=lambda n: float(np.nansum(up[n][half_F])) - scaled * float(np.nansum(down[n][half_C]))
        )

    chosen = best(here_F, here_C), best(~here_F, ~here_C)
    values_F = np.where(here_F, up[chosen[1]], up[chosen[0]])
    value, low, high = share(values_F, failing)
    naive = up[best(np.ones_like(here_F), np.ones_like(here_C))]
    if value is None or np.isnan(naive).all():
        return None
    return Honest(chosen, float(np.nanmean(naive)), value, low, high)


def guilty_among(effects: Mapping[str, tuple[float, bool]]) -> str:
    """The player whose leaving makes the whole better by most, of {player: (whole minus the whole without it, shown)}; else `none`."""
    harmful = {player: value for player, (value, shown) in effects.items() if shown and value < 0}
    return min(harmful, key=lambda player: harmful[player]) if harmful else "none"

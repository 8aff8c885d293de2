"""Section of the page: the same ladder trained with several seeds. Is a step the recipe's doing, or one training's luck?

In: the JSON of results/NAME.seeds.json, as plain dictionaries. Out: markup, Markdown, plain cells. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from demeanor.report.markup import Html, el
from demeanor.report.parts import fold, lead, note, section, table, wide
from demeanor.report.words import MINUS, axis_name, plural

STEPS = ("step", "axis", "by seed", "mean (95%)", "between seeds", "between items", "shown in")


def seeds(found: Mapping[str, Any]) -> Html:
    """The ladder's means over seeds, the steps that survive, and every step seed by seed."""
    return section(
        "seeds",
        "Another training",
        lead(
            f"The same recipe trained {len(found['seeds'])} times, with seeds {', '.join(map(str, found['seeds']))}, and measured on the "
            f"same items. {sentence(found)}"
        ),
        wide(table(["share right, %", *found["variants"]], ladder(found), class_="small")),
        note("Mean over seeds and, in brackets, the lowest and the highest."),
        fold(
            "Every step, seed by seed",
            wide(table(STEPS, [_row(s) for s in found["steps"]], class_="small")),
            note(
                "In bold: the 95% interval over seeds and items excludes zero (not corrected for the number of rows). Between seeds: "
                "standard deviation of the seeds' changes. Between items: standard error that the items leave within one training. "
                "Where the first is larger, an interval from one training is too narrow for the recipe."
            ),
        ),
    )


def sentence(found: Mapping[str, Any]) -> str:
    """How many steps survive another seed, and how the two noises compare."""
    sure = [s for s in found["steps"] if _sure(s)]
    once = [s for s in found["steps"] if s["shown"] and not _sure(s)]
    noisy = [s for s in found["steps"] if s["within"] is not None and s["between"] > s["within"]]
    return (
        f"{plural(len(sure), 'change')} of {len(found['steps'])} (step by axis) hold over seeds and items; {len(once)} more were shown "
        f"in some training and do not; in {len(noisy)} seeds differ by more than items do."
    )


def ladder(found: Mapping[str, Any]) -> list[list[str]]:
    """A row per axis: mean, lowest and highest of every rung."""
    by = {(x["variant"], x["axis"]): x["values"] for x in found["levels"]}
    axes = list(dict.fromkeys(x["axis"] for x in found["levels"]))
    return [[axis_name(axis), *(_level(by.get((rung, axis))) for rung in found["variants"])] for axis in axes]


def steps(found: Mapping[str, Any]) -> list[list[str]]:
    """The steps that hold over seeds or were shown in one, as plain cells."""
    return [_cells(s) for s in found["steps"] if _sure(s) or s["shown"]]


def markdown(found: Mapping[str, Any]) -> str:
    """The ladder over seeds as Markdown."""
    rows = [["share right, %", *found["variants"]], ["---"] * (1 + len(found["variants"])), *ladder(found)]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"## Another training\n\nSeeds {', '.join(map(str, found['seeds']))}. {sentence(found)}\n\n{lines}"


def _sure(s: Mapping[str, Any]) -> bool:
    return s["low"] is not None and (s["low"] > 0 or s["high"] < 0)


def _level(values: list[float] | None) -> str:
    if not values:
        return "–"
    low, high = 100 * min(values), 100 * max(values)
    return f"{100 * sum(values) / len(values):.0f}" + ("" if low == high else f" ({low:.0f} to {high:.0f})")


def _row(s: Mapping[str, Any]) -> list[Html | str]:
    step, axis, by, mean, *rest = _cells(s)
    return [step, axis, by, el("b", mean) if _sure(s) else mean, *rest]


def _cells(s: Mapping[str, Any]) -> list[str]:
    bounds = "" if s["low"] is None else f" ({100 * s['low']:+.0f} to {100 * s['high']:+.0f})"
    within = "–" if s["within"] is None else f"{100 * s['within']:.1f}"
    cells = [
        f"+{s['step']}",
        axis_name(s["axis"]),
        ", ".join(f"{100 * v:+.0f}" for v in s["values"]),
        f"{100 * s['mean']:+.1f}{bounds}",
        f"{100 * s['between']:.1f}",
        within,
        f"{s['shown']} of {len(s['values'])}",
    ]
    return [x.replace("-", MINUS) for x in cells]

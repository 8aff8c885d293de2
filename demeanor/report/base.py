"""Section of the page: was the base asked fairly, and what the stage after it adds to the best way of asking.

In: the JSON of results/NAME.base.json, as plain dictionaries. Out: markup, Markdown, a sentence. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from demeanor.report.markup import Html, el
from demeanor.report.parts import lead, note, section, table, wide
from demeanor.report.words import MINUS, axis_name, listed


def base(found: Mapping[str, Any]) -> Html:
    """A row per axis: the base's means by way, the best way, and the stage's gain over the base as declared and over the best."""
    return section(
        "base",
        "Was the base asked fairly",
        lead(
            f"A base model is no assistant, and a poor prompt makes it look worse than it is. It was asked in {len(found['ways'])} ways: "
            f"{listed(list(found['ways']))}. What {found['stage']} adds to the best of them is training; the rest was prompting."
        ),
        wide(table(columns(found), [_row(g) for g in cells(found)], class_="small")),
        note(
            "Best way: each half of the clusters is asked in the way that was best on the other half, so that the best of several is not "
            "flattered; of all items together one way. Bold: the 95% interval of the gain excludes zero. Where saying nothing is right "
            "(no secret told), the way that makes the base babble wins: read such an axis with that in mind."
        ),
        note(sentence(found)),
    )


def columns(found: Mapping[str, Any]) -> list[str]:
    """Head of the table."""
    return [
        "share right, %",
        *found["ways"],
        "best way",
        found["stage"],
        "gain over declared",
        "gain over best",
    ]


def cells(found: Mapping[str, Any]) -> list[list[tuple[str, bool]]]:
    """Rows of cells with whether each is to be set in bold."""
    rows = []
    for g in found["gains"]:
        ways = [(f"{100 * g['ways'][w]:.0f}", False) for w in found["ways"]]
        rows.append(
            [
                (axis_name(g["axis"]), False),
                *ways,
                (f"{100 * g['best']:.0f} ({listed(list(g['picked']))})", False),
                (f"{100 * g['stage']:.0f}", False),
                _points(**g["over_declared"]),
                _points(**g["over_best"]),
            ]
        )
    return rows


def sentence(found: Mapping[str, Any]) -> str:
    """The whole in a sentence."""
    g = found["gains"][-1]
    about = "all items" if g["axis"] == "all" else axis_name(g["axis"])
    return (
        f"On {about}, {found['stage']} adds {_points(**g['over_declared'])[0]} points to the base as "
        f"declared ({found['declared']}) and {_points(**g['over_best'])[0]} to the base asked in the best way."
    )


def markdown(found: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    rows = [[f"**{text}**" if bold else text for text, bold in row] for row in cells(found)]
    head = columns(found)
    lines = "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
    return f"## Was the base asked fairly\n\n{sentence(found)}\n\n{lines}"


def _row(row: list[tuple[str, bool]]) -> list[Html | str]:
    return [el("b", text) if bold else text for text, bold in row]


def _points(value: float, low: float | None, high: float | None) -> tuple[str, bool]:
    bounds = "" if low is None or high is None else f" ({100 * low:+.0f} to {100 * high:+.0f})"
    return f"{100 * value:+.0f}{bounds}".replace("-", MINUS), low is not None and high is not None and (
        low > 0 or high < 0
    )

"""Draws the training curves of docs/online.md: python docs/online/plot.py RESULT.json STAGE OUT.svg [TITLE ...].

In: a result of `demeanor eval`. Out: one SVG with the report's own figures of an online stage, or those named.
"""

from __future__ import annotations

import sys
from pathlib import Path

from markupsafe import Markup

from demeanor.evaluation.result import Result, load
from demeanor.evaluation.training_report import figures_of
from demeanor.report.figures import draw, el, svg, text

COLUMNS, WIDTH, HEIGHT, HEAD = 3, 345.0, 252.0, 40.0
COLORS = ("#0b6a9c", "#d98a1f", "#7a5aa6", "#3c8f6d", "#c76b8f", "#6f7d83")
STYLE = Markup(
    "text{font:12px system-ui,sans-serif;fill:#1c2529}.head{font-weight:600;font-size:13px}.tick{font-size:11px;fill:#5b676d}"
    ".rule{stroke:#d7d3ca;stroke-width:1}.line{fill:none;stroke-width:1.8}"
    + "".join(f".c{n}{{stroke:{color}}}.s{n}{{fill:{color}}}" for n, color in enumerate(COLORS))
    + "@media (prefers-color-scheme:dark){text{fill:#e6ebec}.tick{fill:#9aa8ae}.rule{stroke:#35424a}}"
)


def picture(result: Result, stage: str, titles: list[str]) -> str:
    """The figures of a stage in rows of three, each with its title and legend."""
    curve = next(curve for curve in result.curves if curve.name == stage)
    figures = [f for f in figures_of(curve) if not titles or f.title in titles]
    drawn = []
    for n, figure in enumerate(figures):
        x, y = WIDTH * (n % COLUMNS), HEIGHT * (n // COLUMNS)
        parts = [text(4, 14, figure.title, "head"), el("g", draw(figure), transform=f"translate(0 {HEAD:g})")]
        at = 4.0
        for swatch, meaning in figure.legend:
            parts.append(el("rect", x=at, y=22.0, width=9.0, height=9.0, class_=swatch))
            parts.append(text(at + 13, 31, meaning, "tick"))
            at += 24 + 6.1 * len(meaning)
        drawn.append(el("g", *parts, transform=f"translate({x:g} {y:g})"))
    rows = -(-len(figures) // COLUMNS)
    whole = svg(
        WIDTH * min(COLUMNS, len(figures)),
        HEIGHT * rows,
        el("style", STYLE),
        *drawn,
        label=f"Training curves of {stage}",
    )
    return str(whole).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


if __name__ == "__main__":
    path, name, out, *chosen = sys.argv[1:]
    Path(out).write_text(picture(load(Path(path)), name, chosen), encoding="utf-8")

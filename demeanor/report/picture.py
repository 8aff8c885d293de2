"""The ladder of a result as one standalone SVG, for a README or a slide: `demeanor report RESULT.json --picture FILE.svg`.

Input: a Result. Output: SVG text with its own style (light and dark). Every number is the result's; nothing is computed here.
"""

from __future__ import annotations

from markupsafe import Markup

from demeanor.core.table import axis_name, points
from demeanor.evaluation.result import Axis, Delta, Result, is_firm, ladder_of
from demeanor.report.figures import el, svg, text

CELL, ROW, HEAD, FOOT = 98.0, 30.0, 44.0, 46.0
LABEL, CHARACTER = 138.0, 7.4  # least width of a row's name, and that of one of its characters
STYLE = Markup(
    "text{font:13px system-ui,sans-serif;fill:#1c2529}.soft{fill:#5b676d;font-size:12px}.cell{fill:#0b6a9c}"
    ".up{fill:#0b6a9c;font-weight:700;font-size:12px}.down{fill:#b5460f;font-weight:700;font-size:12px}.frame{fill:none;stroke:#d7d3ca}"
    "@media (prefers-color-scheme:dark){text{fill:#e6ebec}.soft{fill:#9aa8ae}.cell{fill:#4f9fd0}"
    ".up{fill:#8fd0f5}.down{fill:#f2995f}.frame{stroke:#35424a}}"
)


def picture(result: Result) -> str:
    """Behaviors down, steps across; a cell is the share right in percent, darker for more, with its change where it is shown."""
    steps = ladder_of(result)
    deltas = {(c.after, d.axis): d for c in result.steps for d in c.deltas}
    label = max(LABEL, 20 + CHARACTER * max((len(axis_name(axis.name)) for axis in result.axes), default=0))
    width, height = label + CELL * len(steps) + 8, HEAD + ROW * len(result.axes) + FOOT
    marks = [text(label + CELL * (n + 0.5), HEAD - 14, v.label, anchor="middle") for n, v in enumerate(steps)]
    for row, axis in enumerate(result.axes):
        y = HEAD + ROW * row
        marks.append(text(label - 12, y + 20, axis_name(axis.name), anchor="end"))
        for n, variant in enumerate(steps):
            marks.append(_cell(axis, variant.id, deltas.get((variant.id, axis.name)), label + CELL * n, y))
    notes = (
        f"% of {result.items} items right; every column adds one layer to the one before.",
        "Blue, orange: the change where its 95% interval excludes zero; *: also if one allows for looking at all changes at once.",
    )
    marks += [text(label - 12, height - FOOT + 18 + 17 * n, note, "soft") for n, note in enumerate(notes)]
    drawn = svg(
        width, height, el("style", STYLE), *marks, label="What each layer did: the share of items right"
    )
    return str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _cell(axis: Axis, variant: str, delta: Delta | None, x: float, y: float) -> Markup:
    value = axis.means[variant].value
    box = {"x": x + 1, "y": y + 1, "width": CELL - 2, "height": ROW - 2, "rx": 3.0}
    parts = [el("rect", **box, class_="frame")]
    if value is None:
        parts.append(text(x + CELL / 2, y + 20, "-", "soft", anchor="middle"))
        return el("g", *parts)
    parts.insert(0, el("rect", **box, class_="cell", fill_opacity=0.05 + 0.4 * value))
    change = delta is not None and delta.shown and delta.value is not None
    parts.append(text(x + CELL / 2 - (24 if change else 0), y + 20, f"{100 * value:.0f}", anchor="middle"))
    if delta is not None and change:
        sign = points(delta.value) + ("*" if is_firm(delta) else "")
        parts.append(
            text(x + CELL / 2 + 20, y + 20, sign, "up" if (delta.value or 0) > 0 else "down", anchor="middle")
        )
    return el("g", *parts)

"""The curve of an online run as one standalone SVG: reward of every iteration, and of the held-out prompts with intervals.

In: the metrics log of a run (`runs/KEY/ledger.jsonl`). Out: an SVG file, and on stdout what stands in it. It computes a running mean and
nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from demeanor.report.figures import el, line, svg, text
from demeanor.training.loop import is_evaluation
from demeanor.training.runs import read_log

WIDTH, HEIGHT, LEFT, TOP, RIGHT, FOOT = 640.0, 260.0, 46.0, 16.0, 16.0, 56.0
WINDOW = 5  # iterations in a running mean
STYLE = Markup(
    "text{font:12px system-ui,sans-serif;fill:#1c2529}.rule{stroke:#d7d3ca}.each{fill:#0b6a9c;fill-opacity:.35}"
    ".mean{stroke:#0b6a9c;stroke-width:2;fill:none}.held{fill:#b5460f}.whisker{stroke:#b5460f;stroke-width:1.5}"
    "@media (prefers-color-scheme:dark){text{fill:#e6ebec}.rule{stroke:#35424a}.each{fill:#8fd0f5}.mean{stroke:#8fd0f5}"
    ".held{fill:#f2995f}.whisker{stroke:#f2995f}}"
)
Row = Mapping[str, Any]


def running_mean(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """The mean of each value and up to `window` - 1 before it."""
    return [fmean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]


def curve(rows: Sequence[Row]) -> str:
    """The SVG text of a run's rows."""
    steps = [row for row in rows if not is_evaluation(row)]
    looks = [row for row in rows if "eval_reward" in row]
    last = max([1, *(row["step"] for row in rows)])
    most = max([0.05, *(row["reward"] for row in steps), *(row.get("eval_reward/high", 0) for row in looks)])

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - FOOT) * (1 - min(value, most) / most)

    marks = [line(LEFT, y(most * s), WIDTH - RIGHT, y(most * s), "rule") for s in (0, 0.5, 1)]
    marks += [text(LEFT - 6, y(most * s) + 4, f"{most * s:.2f}", anchor="end") for s in (0, 0.5, 1)]
    marks += [el("circle", cx=x(r["step"]), cy=y(r["reward"]), r=2.0, class_="each") for r in steps]
    means = zip(steps, running_mean([row["reward"] for row in steps]))
    points = " ".join(f"{x(row['step']):.1f},{y(value):.1f}" for row, value in means)
    marks.append(el("polyline", points=points, class_="mean"))
    for row in looks:
        if "eval_reward/low" in row:
            ends = (y(max(0.0, row["eval_reward/low"])), y(row["eval_reward/high"]))
            marks.append(line(x(row["step"]), ends[0], x(row["step"]), ends[1], "whisker"))
        marks.append(el("circle", cx=x(row["step"]), cy=y(row["eval_reward"]), r=4.0, class_="held"))
    rows_held = f"{looks[0]['eval_reward_rows']:.0f} " if looks else ""
    marks += [
        text(LEFT, HEIGHT - 34, "0"),
        text(WIDTH - RIGHT, HEIGHT - 34, f"{last} iterations", anchor="end"),
        text(LEFT, HEIGHT - 12, f"blue: reward of an iteration's answers, mean of {WINDOW}"),
        text(WIDTH - RIGHT, HEIGHT - 12, f"orange: {rows_held}held-out prompts, 95% intervals", anchor="end"),
    ]
    drawn = svg(WIDTH, HEIGHT, el("style", STYLE), *marks, label="Reward over iterations")
    return str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def told(rows: Sequence[Row]) -> str:
    """Means of the first and last fifth of the iterations, of what a reader wants to know."""
    steps = [row for row in rows if not is_evaluation(row)]
    fifth = max(1, len(steps) // 5)
    names = {
        "reward": "reward",
        "groups without contrast": "frac_reward_zero_std",
        "tokens of an answer": "completions/mean_length",
        "of finished answers": "completions/mean_terminated_length",
        "truncated": "completions/clipped_ratio",
        "repetition": "completions/repetition",
        "entropy": "entropy",
        "seconds to generate": "time/generate",
        "seconds to score": "time/score",
        "seconds to train": "time/train",
    }
    lines = [f"| {len(steps)} iterations | first {fifth} | last {fifth} |", "|---|--:|--:|"]
    for label, name in names.items():
        parts = [[row[name] for row in part if name in row] for part in (steps[:fifth], steps[-fifth:])]
        lines.append(f"| {label} | " + " | ".join(f"{fmean(p):.3g}" if p else "-" for p in parts) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ledger", type=Path)
    parser.add_argument("svg", type=Path)
    given = parser.parse_args()
    found = read_log(given.ledger)
    given.svg.write_text(curve(found), encoding="utf-8")
    print(told(found))

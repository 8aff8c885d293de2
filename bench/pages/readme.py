"""README's table against the results of `make demo`: every number lies in the interval that the fresh run gives it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bench.pages.blocks import ROOT

AXES = {
    "format": "format",
    "honesty": "honesty",
    "facts": "facts",
    "arithmetic": "arithmetic",
    "jailbreak refused": "jailbreak",
    "harmless look-alikes answered": "policy_lookalike",
    "safe requests answered": "safe_twin",
}
COLUMNS = ("base", "+sft", "+dpo", "+prompt", "+retrieval", "+tools", "+policy")


def table(text: str) -> dict[str, list[float]]:
    """The table's rows: percent by column of the ladder."""
    lines = text[text.index("| behavior |") :].split("\n\n")[0].splitlines()
    heads = [cell.strip() for cell in lines[0].strip("|").split("|")]
    if tuple(heads[1 : 1 + len(COLUMNS)]) != COLUMNS:
        raise ValueError(
            f"README.md: its table has the columns {heads}; wanted behavior, {', '.join(COLUMNS)}"
        )
    found = {}
    for line in lines[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found[cells[0]] = [float(re.split(r"\s", cell)[0]) for cell in cells[1 : 1 + len(COLUMNS)]]
    return found


def wrong(results: Path) -> list[str]:
    """What README says that the results of the demo do not."""
    result: dict[str, Any] = json.loads((results / "demo.json").read_text())
    ids = {variant["label"]: variant["id"] for variant in result["variants"]}
    means = {axis["name"]: axis["means"] for axis in result["axes"]}
    said = table((ROOT / "README.md").read_text(encoding="utf-8"))
    mistakes = [f"a row of no known behavior: {name}" for name in said if name not in AXES]
    for behavior, axis in AXES.items():
        for label, percent in zip(COLUMNS, said.get(behavior, [float("nan")] * len(COLUMNS)), strict=True):
            fresh = means[axis][ids[label]]
            low, high = 100 * fresh["low"] - 0.5, 100 * fresh["high"] + 0.5
            if not low <= percent <= high:
                mistakes.append(
                    f"{behavior}, {label}: README {percent:.0f}, now {100 * fresh['value']:.0f} ({low:.0f} to {high:.0f})"
                )
    return mistakes

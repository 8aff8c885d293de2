"""Two evaluations of the same items, paired: shares before and after with intervals, by axis and by kind of constraint; sample answers.

In: two files of rows that `demeanor eval` wrote (RESULT.rows.jsonl). Out: tables on stdout, and JSON. All statistics are those of
evaluation/statistics.py, clustered by topic.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from demeanor.evaluation import statistics

Pair = tuple[dict[str, Any], dict[str, Any]]


def pairs(before: Path, after: Path) -> list[Pair]:
    """Rows of both files with one item id, in the order of the first."""
    one, two = (
        {row["item_id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
        for path in (before, after)
    )
    return [(one[key], two[key]) for key in one if key in two]


def compared(found: list[Pair]) -> dict[str, Any]:
    """Both means and their difference, each with its 95% interval, the words of an answer, and the items that changed."""
    clusters = [a["cluster"] for a, _ in found]
    before, after = [a["value"] for a, _ in found], [b["value"] for _, b in found]
    one, two = statistics.mean(before, clusters), statistics.mean(after, clusters)
    change = statistics.paired(before, after, clusters)
    return {
        "n": len(found),
        "clusters": len(set(clusters)),
        "before": [one.value, one.low, one.high],
        "after": [two.value, two.low, two.high],
        "change": [change.value, change.low, change.high],
        "fixed": sum(b > a for a, b in zip(before, after)),
        "broken": sum(b < a for a, b in zip(before, after)),
        "tokens": [sum(x["completion_tokens"] for x in part) / len(part) for part in zip(*found)],
    }


def shown(numbers: list[float | None]) -> str:
    """Percent or points with an interval."""
    value, low, high = (None if x is None else f"{100 * x:.1f}" for x in numbers)
    return f"{value}" if low is None else f"{value} ({low} to {high})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=6)
    given = parser.parse_args()
    every = pairs(given.before, given.after)
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in every:
        groups[pair[0]["axis"]].append(pair)
        if not pair[0]["axis"].endswith("_alone"):
            groups[" ".join(pair[0]["tags"])].append(pair)
    result = {name: compared(found) for name, found in groups.items()}
    print("| items | n | topics | before | after | change | fixed, broken | tokens |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, r in result.items():
        tokens = f"{r['tokens'][0]:.0f}, {r['tokens'][1]:.0f}"
        numbers = " | ".join(shown(r[key]) for key in ("before", "after", "change"))
        print(f"| {name} | {r['n']} | {r['clusters']} | {numbers} | {r['fixed']}, {r['broken']} | {tokens} |")
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for one, two in every[:: max(1, len(every) // given.samples)]:
        print(
            f"\n{one['item_id']}: {one['value']:.0f} -> {two['value']:.0f}\n  {one['text']!r}\n  {two['text']!r}"
        )

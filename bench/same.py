"""`python -m bench.same BEFORE AFTER`: are two demos the same, bit for bit?

BEFORE and AFTER are folders that hold `runs/` and `results/` of `demeanor demo` (of two commits, say).
Compared are the weights of every stage, every step's loss, and every answer with its score (demo.rows.jsonl:
the whole ladder and all 48 cells; base and diagnosis too). Exit code 0 if nothing differs, 1 otherwise. Keys
and timings may differ.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

ANSWER = ("text", "value", "refused_by", "finish_reason", "prompt_tokens", "completion_tokens", "answer")
ROWS = ("demo.rows.jsonl", "demo.base.rows.jsonl", "demo.diagnosis.rows.jsonl")


def stages(runs: Path) -> dict[str, tuple[str, list[float]]]:
    """Hash of the weights and losses by step, for every stage."""
    found = {}
    for record in sorted(runs.glob("*/record.json")):
        folder = record.parent
        weights = folder / "model" / "model.safetensors"
        lines = (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
        stage = json.loads(record.read_text(encoding="utf-8"))["stage"]
        found[stage] = hashlib.sha256(weights.read_bytes()).hexdigest()[:16], losses
    return found


def answers(path: Path) -> dict[tuple[str, str, int], tuple[Any, ...]]:
    """What was answered and how it was scored, by variant, item and seed."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(r["variant"], r["item_id"], r["seed"]): tuple(r.get(name) for name in ANSWER) for r in rows}


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0 if "-h" in sys.argv or "--help" in sys.argv else 2
    before, after = Path(sys.argv[1]), Path(sys.argv[2])
    different = 0
    old, new = stages(before / "runs"), stages(after / "runs")
    for stage, (weights, losses) in old.items():
        found, again = new.get(stage, ("missing", []))
        equal = weights == found and losses == again
        different += not equal
        print(
            f"{stage:6} weights {weights} {found}, losses of {len(losses)} steps: "
            f"{'equal' if equal else 'DIFFER'}"
        )
    for name in ROWS:
        left, right = answers(before / "results" / name), answers(after / "results" / name)
        odd = [key for key in left.keys() | right.keys() if left.get(key) != right.get(key)]
        different += len(odd)
        print(
            f"{name}: {len(left)} answers before, {len(right)} after, {len(odd)} differ "
            f"{odd[:3] if odd else ''}"
        )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())

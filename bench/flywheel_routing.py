"""Complaints in the flywheel: one layer of the stack is broken at a time, and the complaints about it are routed.

In: a healthy stack, how to break it. Out: a confusion matrix of planted layer and label. A complaint is an answer that is wrong in the
broken stack and right in the healthy one, whose answer is the corrected one.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from demeanor import app
from demeanor.app import StackRuntime
from demeanor.core.intervals import wilson
from demeanor.core.types import Completion, Item, RatedTurn, Turn, complete
from demeanor.evaluation.diagnosis import complaints
from demeanor.evaluation.diagnosis.complaints import Complaint
from demeanor.evaluation.experiment import suite
from demeanor.evaluation.scorers import score_item
from demeanor.layers import tools
from demeanor.stack.stack import Stack, decoding_of
from demeanor.training.runs import Runs

STRICT = """  - name: how-to
    on: input
    pattern: '(?i)how do'
    action: refuse
    reason: too strict
    reply: I cannot help with that.
"""
EACH, LIKED = 5, 16
"""Complaints of each planted fault, and liked answers that a repair must not break."""
SCORERS = ("exact", "number", "refusal", "absence")


def _strict(folder: Path, declared: dict[str, Any]) -> None:
    with (folder / "policy.yaml").open("a") as file:
        file.write(STRICT)


def _stale(folder: Path, declared: dict[str, Any]) -> None:
    for path in (folder / "notices").iterdir():
        later = re.sub(r"\b\d+\b", lambda m: str((int(m[0]) + 13) % 60), path.read_text())
        path.write_text(later)


def _contradicted(folder: Path, declared: dict[str, Any]) -> None:
    path = folder / "prompts/system.md"
    path.write_text(path.read_text().replace("Desk", "Desk Gull. Phone 50. Closing 18. Desk"))


def _hot(folder: Path, declared: dict[str, Any]) -> None:
    declared["decoding"]["temperature"] = 2.0


def _earlier(folder: Path, declared: dict[str, Any]) -> None:
    declared["weights"]["serve"] = "sft"


def _nothing(folder: Path, declared: dict[str, Any]) -> None:
    pass


FAULTS: Mapping[str, Callable[[Path, dict[str, Any]], None]] = {
    "policy": _strict,
    "retrieval": _stale,
    "prompt": _contradicted,
    "tools": _nothing,
    "decoding": _hot,
    "weights": _earlier,
}
"""What breaks each layer; the calculator's argument is renamed for the tools, and sft, before any label, answers for the weights."""


def route(stack_file: Path, runs: Runs) -> dict[str, Any]:
    """Break each layer, collect complaints, route them, and count."""
    healthy = app.load_stack(stack_file)
    matrix: dict[str, dict[str, int]] = {}
    for label, fault in FAULTS.items():
        folder = stack_file.parent / "broken" / label
        shutil.copytree(stack_file.parent, folder, ignore=shutil.ignore_patterns("broken", "*.db*"))
        declared = yaml.safe_load(stack_file.read_text())
        fault(folder, declared)
        (folder / stack_file.name).write_text(yaml.safe_dump(declared, sort_keys=False))
        matrix[label] = dict(
            Counter(_labels(label, app.load_stack(folder / stack_file.name), healthy, runs, folder))
        )
    total = sum(sum(found.values()) for found in matrix.values())
    right = sum(found.get(label, 0) for label, found in matrix.items())
    low, high = wilson(right, total)
    names = [*FAULTS, *sorted({x for found in matrix.values() for x in found} - set(FAULTS))]
    return {
        "matrix": matrix,
        "labels": names,
        "complaints": total,
        "right": right,
        "share": right / total,
        "low": low,
        "high": high,
    }


def _labels(label: str, broken: Stack, healthy: Stack, runs: Runs, folder: Path) -> list[str]:
    tool_set = None
    if label == "tools":
        calculator = tools.load(["calculator"])["calculator"]
        tool_set = {"calculator": tools.with_renamed_arguments(calculator, {"expression": "formula"})}

    def opened(stack: Stack, known: Mapping[str, Any] | None) -> StackRuntime:
        return StackRuntime(stack, runs, memory={}, operational=False, tool_set=known)

    items = [item for item in suite(healthy, 24) if item.scorer in SCORERS]
    wanted, given = (
        _answers(opened(healthy, None), healthy, items),
        _answers(opened(broken, tool_set), broken, items),
    )
    bad, good = [], []
    for item, (turn, completion), (_, sound) in zip(items, given, wanted, strict=True):
        is_right, should = (score_item(item, c).value == 1.0 for c in (completion, sound))
        if should and not is_right:
            bad.append(Complaint(turn, completion, sound.text))
        elif is_right:
            good.append(RatedTurn(turn, completion, 1.0, 1.0))
    bad = bad[:: max(1, len(bad) // EACH)][:EACH]
    good = good[:: max(1, len(good) // LIKED)][:LIKED]
    services = replace(app.services(runs), open=lambda stack: opened(stack, tool_set))
    found = complaints.run(broken, services, folder / "results", bad, good, name="routed")
    return [one.label for one in found.complaints]


def _answers(runtime: StackRuntime, stack: Stack, items: Sequence[Item]) -> list[tuple[Turn, Completion]]:
    respond, decoding = runtime.respond(stack), decoding_of(stack)

    async def every() -> list[tuple[Turn, Completion]]:
        free = asyncio.Semaphore(16)

        async def one(n: int, item: Item) -> tuple[Turn, Completion]:
            async with free:
                turn = Turn(
                    item.messages, replace(decoding, seed=n), item.tools, id=item.id, user=f"u{n % 7}"
                )
                return turn, await complete(respond, turn)

        return list(await asyncio.gather(*(one(n, item) for n, item in enumerate(items))))

    try:
        return asyncio.run(every())
    finally:
        runtime.close()

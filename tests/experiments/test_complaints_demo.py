"""Sixty planted complaints about the demo's trained weights, ten of each layer: how many go to the layer that was broken.

Needs the demo's weights in runs/ (`make demo`). PLANTED_SEED=1 takes those of a training with seed 1, PLANTED_OTHERS=1 other complaints.
About 3 minutes.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from demeanor import app
from demeanor.app import StackRuntime, services
from demeanor.core.intervals import wilson
from demeanor.core.types import Completion, Item, RatedTurn, Turn, complete
from demeanor.evaluation import seeds
from demeanor.evaluation.diagnosis import complaints
from demeanor.evaluation.diagnosis.complaints import Complaint
from demeanor.evaluation.experiment import suite
from demeanor.evaluation.scorers import score_item
from demeanor.layers import tools
from demeanor.stack.stack import Stack, decoding_of
from demeanor.training.runs import Runs
from tests.conftest import REPOSITORY
from tests.experiments.test_planted_demo import CASES, DEMO, SEED, copied

PLANTED: Mapping[str, tuple[str, ...]] = {
    "policy": ("over-strict rule",),
    "retrieval": ("stale index",),
    "prompt": ("contradictory prompt", "leaked system prompt"),
    "tools": ("tool schema drift",),
    "decoding": ("temperature 2",),
    "weights": ("quantisation damage", "shuffled preferences"),
}
EACH, LIKED = 10, 24
OTHERS = bool(os.environ.get("PLANTED_OTHERS"))


async def answered(
    runtime: StackRuntime, stack: Stack, items: Sequence[Item]
) -> list[tuple[Turn, Completion]]:
    respond, decoding, free = runtime.respond(stack), decoding_of(stack), asyncio.Semaphore(24)

    async def one(n: int, item: Item) -> tuple[Turn, Completion]:
        async with free:
            turn = Turn(item.messages, replace(decoding, seed=n), item.tools, id=item.id, user=f"u{n % 7}")
            return turn, await complete(respond, turn)

    return list(await asyncio.gather(*(one(n, item) for n, item in enumerate(items))))


def opened(stack: Stack, runs: Runs, tool_set: Mapping[str, Any] | None) -> StackRuntime:
    return StackRuntime(stack, runs, memory={}, operational=False, tool_set=tool_set)


def routed(name: str, folder: Path, runs: Runs, healthy: Stack, most: int) -> list[str]:
    """The labels of complaints about a planted stack: wrong there, right in the healthy one, whose answer is the corrected one."""
    stack = copied(folder, CASES[name][1])
    app.train(stack, runs, only=[stack.serve])
    tool_set = None
    if name == "tool schema drift":
        calculator = tools.load(["calculator"])["calculator"]
        tool_set = {"calculator": tools.with_renamed_arguments(calculator, {"expression": "formula"})}
    items = [item for item in suite(stack, 40) if item.scorer in ("exact", "number", "refusal", "absence")]
    sound, broken = opened(healthy, runs, None), opened(stack, runs, tool_set)
    wanted = asyncio.run(answered(sound, healthy, items))
    given = asyncio.run(answered(broken, stack, items))
    sound.close()
    broken.close()
    bad, good = [], []
    for item, (turn, completion), (_, right) in zip(items, given, wanted):
        is_right, should = (score_item(item, c).value == 1.0 for c in (completion, right))
        if should and not is_right:
            bad.append(Complaint(turn, completion, right.text))
        elif is_right:
            good.append(RatedTurn(turn, completion, 1.0, 1.0))
    step = max(1, len(bad) // most)
    bad = bad[step // 2 if OTHERS else 0 :: step][:most]
    good = good[:: max(1, len(good) // LIKED)][:LIKED]
    given_services = replace(services(runs), open=lambda wanted: opened(wanted, runs, tool_set))
    found = complaints.run(stack, given_services, folder / "results", bad, good, name="x")
    for c in found.complaints:
        print(
            f"{name}: {c.label} [{c.repair}] {c.question[:50]!r} -> {c.answer[:40]!r}, wanted {c.corrected!r}: {c.why}"
        )
    return [c.label for c in found.complaints]


@pytest.mark.experiment
def test_planted_complaints_about_the_demo_go_to_the_layer_that_was_broken(tmp_path: Path) -> None:
    trained = seeds.reseeded(partial(app.load_stack, DEMO / "demo.yaml"), SEED)
    if not all(
        (REPOSITORY / "runs" / trained.stage_key(s) / "model").is_dir() for s in ("base", "sft", "dpo")
    ):
        pytest.skip("the demo's weights are not in runs/; run `make demo` first")
    (tmp_path / "runs").mkdir()
    for path in (REPOSITORY / "runs").iterdir():
        if path.is_dir():
            (tmp_path / "runs" / path.name).symlink_to(path)
    runs, healthy = Runs(tmp_path / "runs"), copied(tmp_path / "healthy", None)
    confusion: Counter[tuple[str, str]] = Counter()
    for label, names in PLANTED.items():
        for name in names:
            most = EACH // len(names)
            found = routed(name, tmp_path / name.replace(" ", "-"), runs, healthy, most)
            confusion.update((label, got) for got in found)
    total = sum(confusion.values())
    correct = sum(count for (planted, label), count in confusion.items() if planted == label)
    wrong = sum(
        count for (planted, label), count in confusion.items() if label not in (planted, "cannot tell")
    )
    low, high = wilson(correct, total)
    print(
        f"{correct} of {total} right ({low:.3f} to {high:.3f}), {wrong} wrong, {total - correct - wrong} cannot tell"
    )
    for (planted, label), count in sorted(confusion.items()):
        print(f"{planted:10} -> {label:12} {count}")
    assert correct >= 0.85 * total

"""Evaluation side of the composition: the suites of a stack over its variants, and the result shown.

In: a Stack with trained weights. Out: results/NAME.json, NAME.rows.jsonl, NAME.html, NAME.md and the table in the terminal.
Weights, tokenizers and engines are shared between variants, and so are generations whose inputs are identical.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from demeanor.app import StackRuntime
from demeanor.core.errors import DataError
from demeanor.core.types import Item, Respond
from demeanor.evaluation import judge as verdicts
from demeanor.evaluation import ladder, suites
from demeanor.evaluation import result as results
from demeanor.evaluation.diagnosis.interventions import decoded_as
from demeanor.evaluation.experiment import ExperimentProgress as Done
from demeanor.evaluation.experiment import run
from demeanor.evaluation.external import ExternalModel, external_models, probe, responder
from demeanor.evaluation.result import Result
from demeanor.evaluation.rows import Row
from demeanor.evaluation.scorers import score_item
from demeanor.evaluation.scorers import scored_from_text as scorable_from_text
from demeanor.report import attribution, base, diagnosis, duel, frontier, gate, markdown, seeds, terminal
from demeanor.report import page as pages
from demeanor.stack.stack import Stack, decoding_of
from demeanor.train import progress
from demeanor.train.runs import LEDGER, Runs, origin

CONCURRENCY = 48
EXTRAS = (
    ("gate", "Verdict", gate.gate, gate.markdown),
    ("attribution", "Attribution", attribution.attribution, attribution.markdown),
    ("base", "Base", base.base, base.markdown),
    ("frontier", "Frontier", frontier.frontier, frontier.markdown),
    ("diagnosis", "Diagnosis", diagnosis.diagnosis, diagnosis.markdown),
    ("duel", "Duels", duel.duel, duel.markdown),
    ("seeds", "Seeds", seeds.seeds, seeds.markdown),
)
"""What may lie beside NAME.json as NAME.KIND.json: kind, its name on the page, its section and its Markdown."""
WIDTH = 130
"""Columns of the table where the output is not a terminal."""


def suite(stack: Stack, limit: int | None = None) -> tuple[Item, ...]:
    """All items of the stack's suites, the first `limit` of each axis; raises DataError on an id that two suites share."""
    items: list[Item] = []
    for name in stack.spec.evaluation.suites:
        items += suites.items(name, stack.root)
    twice = [i for i, n in Counter(item.id for item in items).items() if n > 1]
    if twice:
        raise DataError(
            f"evaluation.suites: {len(twice)} item ids stand in more than one suite, first '{twice[0]}'"
        )
    if limit is None:
        return tuple(items)
    seen: Counter[str] = Counter()
    kept = []
    for item in items:
        seen[item.axis] += 1
        if seen[item.axis] <= limit:
            kept.append(item)
    ids = {item.id for item in kept}
    return tuple(replace(item, twin=item.twin if item.twin in ids else None) for item in kept)


def named(stack: Stack, name: str | None, limit: int | None) -> str:
    """The name of a result: as given, else the stack's, told apart where only the first items of each axis were asked."""
    return name or (stack.spec.name if limit is None else f"{stack.spec.name}.first{limit}")


def evaluate(
    stack: Stack,
    runs: Runs,
    folder: Path,
    *,
    variants: Sequence[str] | None,
    limit: int | None,
    name: str | None,
    beside: Sequence[str] = (),
    beside_keys: Sequence[str] = (),
) -> Result:
    """Measure the ladder and everything-but-one-layer (or the given model ids), other servers beside it, and write the result."""
    name = named(stack, name, limit)
    items = suite(stack, limit)
    if not items:
        raise DataError(
            f"{stack.path}: evaluation.suites: no items to measure on; name a suite, such as [builtin:format]"
        )
    if variants:
        steps = [stack.resolve(v) for v in variants]
        again = [v for v, n in Counter(s.model_id for s in steps).items() if n > 1]
        if again:
            raise DataError(f"--variants: {', '.join(again)} stands there twice; wanted each once")
        without: dict[str, Stack] = {}
    else:
        steps = stack.ladder()
        without = {layer: stack.without(layer) for layer in stack.switches}
        if len(stack.switches) and stack.serve != "base":
            without[stack.serve] = stack.without(stack.serve)
    chosen = {s.model_id: s for s in [*steps, *without.values()]}
    others = external_models(beside, beside_keys, taken=chosen)
    for peer in others:
        probe(peer, decoding_of(stack))
    memory: dict[Any, Any] = {}
    house = StackRuntime(stack, runs, memory=memory, operational=False)
    try:
        rows, _ = asyncio.run(rows_of(house, chosen, items, folder / f"{name}.rows.jsonl", others))
    finally:
        house.close()
    others_too = "".join(f" --beside {text}" for text in beside)
    found = ladder.ladder(
        rows,
        items,
        name=name,
        steps=[s.model_id for s in steps],
        without={k: v.model_id for k, v in without.items()},
        axes={item.axis: suites.about(item.axis) for item in items},
        settings=_settings(stack, rows, len(memory)),
        training=_training(stack, runs),
        commands=(
            f"demeanor train {stack.path}",
            f"demeanor eval {stack.path} --name {name}{others_too}",
            f"demeanor report {folder / name}.json",
        ),
        beside=[peer.name for peer in others],
    )
    found.save(folder / f"{name}.json")
    return found


async def rows_of(
    house: StackRuntime,
    variants: dict[str, Stack],
    items: Sequence[Item],
    out: Path,
    beside: Sequence[ExternalModel] = (),
) -> tuple[list[Row], int]:
    """Measure the variants (by model id) on the items; the rows, and how many of them an earlier run had left in `out`."""
    reused, court = 0, verdicts.of_suite(house.stack, items, out)
    house.warm({v.serve for v in variants.values()})
    logging.getLogger("demeanor.evaluation").addHandler(logging.StreamHandler())
    columns = (
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[about]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, about="")

        def watch(done: Done) -> None:
            nonlocal reused
            reused = done.reused
            about = f"{done.last.variant}" if done.last else ""
            about += f", {done.errors} errors" if done.errors else ""
            bar.update(task, completed=done.done, total=done.total, about=about)

        decoding = decoding_of(house.stack)
        responds = {i: _respond(house, v) for i, v in variants.items()} | {
            p.name: responder(p) for p in beside
        }
        keys = {i: v.key() for i, v in variants.items()} | {p.name: p.stack_key(decoding) for p in beside}
        rows = await run(
            items,
            responds,
            score=court.score if court else score_item,
            seeds=house.stack.spec.evaluation.seeds,
            decoding=decoding,
            out=out,
            keys=keys,
            concurrency=CONCURRENCY,
            watch=watch,
            again=scorable_from_text,
        )
    if court:
        print(court.summary())
    return rows, reused


def _respond(house: StackRuntime, variant: Stack) -> Respond:
    """The variant; one whose decoding is not the stack's is decoded in its own way."""
    given, respond = decoding_of(variant), house.respond(variant)
    return respond if given == decoding_of(house.stack) else decoded_as(given)(respond)


def _settings(
    stack: Stack, rows: Sequence[Row], generated: int
) -> dict[str, str | int | float | bool | None]:
    about = origin()
    decoding = stack.spec.decoding
    return {
        "stack": stack.spec.name,
        "stack key": stack.key(),
        "served weights": f"{stack.serve} ({stack.stage_key(stack.serve)})",
        "suites": ", ".join(stack.spec.evaluation.suites),
        "temperature": decoding.temperature,
        "max tokens": decoding.max_tokens,
        "turns measured": len(rows),
        "distinct model calls in this run": generated,
        "concurrency": CONCURRENCY,
        **(
            {"judge": f"{judged_by.model} at {judged_by.url}"}
            if (judged_by := stack.spec.evaluation.judge)
            else {}
        ),
        "git": about["git"],
        "torch": about["versions"]["torch"],
        "python": about["python"],
        "threads": about["threads"],
    }


def _training(stack: Stack, runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """The ledger of every stage that was trained here."""
    names = ["base", *(s.name for s in stack.spec.weights.stages)]
    paths = {name: runs.folder(stack.stage_key(name)) / LEDGER for name in names}
    return {name: list(progress.read_log(path)) for name, path in paths.items() if path.is_file()}


def read(path: Path) -> Result:
    """Read a result that `evaluate` wrote; raises DataError."""
    return results.load(path)


def show(result: Result, folder: Path, *, page: Path | None = None) -> Path:
    """Print the result, write its page and its Markdown, and return where the page lies."""
    shape = json.loads(result.to_json())
    target = page or folder / f"{result.name}.html"
    _publish(shape, folder, target)
    terminal.show(shape, Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH))
    print(f"\npage: {target}")
    return target


def refresh(folder: Path, name: str, *, quiet: bool = False) -> None:
    """Write the page NAME.html again with what was added beside its result; says where, or what to do where there is no result."""
    path = folder / f"{name}.json"
    if not path.is_file():
        print(
            f"page: none yet, because there is no {path}. Write one with: demeanor eval STACK.yaml --name {name}"
        )
        return
    shape = json.loads(read(path).to_json())
    _publish(shape, folder, folder / f"{name}.html")
    here = [f"{name}.{kind}.json" for kind, *_ in EXTRAS if kind not in _beside(folder, shape)]
    foreign = ", ".join(file for file in here if (folder / file).is_file())
    if not quiet:
        why = (
            f", without {foreign}: measured on other items or another stack than {path.name}"
            if foreign
            else ""
        )
        print(f"page: {folder / name}.html{why}")


def _publish(shape: Any, folder: Path, target: Path) -> None:
    """Write the page and its Markdown, with what lies beside the result and was measured on the same suite and stack."""
    found = _beside(folder, shape)
    sections = [(kind, title, make(found[kind])) for kind, title, make, _ in EXTRAS if kind in found]
    write(target, pages.page(shape, sections, gate.verdict(found["gate"]) if "gate" in found else None))
    texts = [
        markdown.markdown(shape),
        *(text(found[kind]) + "\n" for kind, _, _, text in EXTRAS if kind in found),
    ]
    write(target.with_suffix(".md"), "\n".join(texts))


def _beside(folder: Path, shape: Any) -> dict[str, Any]:
    """The trees NAME.KIND.json that belong to a result, by kind."""
    found = {}
    for kind, *_ in EXTRAS:
        path = folder / f"{shape['name']}.{kind}.json"
        if path.is_file():
            tree = json.loads(path.read_text(encoding="utf-8"))
            hashes = tree.get("hashes", {})
            suite, key = (
                tree.get("suite_hash", hashes.get("suite")),
                tree.get("stack_key", hashes.get("candidate")),
            )
            if suite == shape["suite_hash"] and key in (None, shape["settings"].get("stack key")):
                found[kind] = tree
    return found


def write(path: Path, text: str) -> None:
    """Write a text file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)

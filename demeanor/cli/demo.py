"""`demo`: from an empty machine to a page that shows what each layer of an assistant did; and `init`: the same files to edit."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from demeanor import app, serving
from demeanor.app import load_stack
from demeanor.cli.options import PORT, RUNS
from demeanor.core.errors import DemeanorError, UsageError
from demeanor.evaluation import attribution, base_prompting, frontier, gate, ladder
from demeanor.evaluation.diagnosis import diagnose
from demeanor.report import outputs, publish
from demeanor.server.serve import Settings
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs, trained_on
from demeanor.training.stage import RunOptions
from demeanor.world import catalog

STACK = Path("stacks/demo/demo.yaml")
WIDTH = 130
"""Columns where the output is not a terminal."""
RULES = "gate.yaml"
"""Beside the stack: what its newest layer must show before it ships."""


def run(
    runs_root: Path,
    results: Path,
    overrides: Sequence[str],
    *,
    serve: bool,
    port: int,
    dtype: Literal["auto", "fp32", "bf16"] = "auto",
) -> int:
    """Train, align and measure the embedded world's assistant; print the ladder and where the page lies."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    started = time.monotonic()
    path = STACK if STACK.is_file() else fresh()
    stack = load_stack(path, overrides)
    console.rule(
        f"[bold]{stack.spec.name}[/]: from random weights to a measured assistant, offline, on this machine"
    )
    console.print("1. train the weight layers", style="bold")
    runs = Runs(runs_root)
    app.train(stack, runs, options=RunOptions(dtype))
    trained = time.monotonic()
    console.print("\n2. measure the stack with one more layer at each step, on the same items", style="bold")
    result = ladder.evaluate(stack, app.services(runs), results, name="demo")
    page = publish.show(result, results)
    _proofs(console, stack, runs, results)
    measured = time.monotonic()
    publish.refresh(results, "demo", quiet=True)
    console.print(
        f"\ntrained in {trained - started:.0f} s, measured in {measured - trained:.0f} s, "
        f"all in {time.monotonic() - started:.0f} s"
    )
    number_format, cpu = trained_on(runs, stack.stage_key(stack.serve))
    console.print(
        f"these weights: products in {number_format or 'a format not recorded'} on {cpu or 'a CPU not recorded'}. Another CPU, format or seed rounds "
        "differently and trains other weights, so some numbers differ from README's; `demeanor seeds` says what holds.",
        soft_wrap=True,
        markup=False,
    )
    console.print(f"the page:      {page.resolve().as_uri()}", soft_wrap=True)
    for told, command in next_commands(path, runs_root, overrides, port):
        console.print(f"{told:14} {command}", soft_wrap=True, markup=False)
    if serve:
        return serving.serve(lambda: load_stack(path, overrides), runs, Settings(port=port))
    return DemeanorError.exit_code if result.failed else 0


def next_commands(path: Path, runs: Path, overrides: Sequence[str], port: int) -> list[tuple[str, str]]:
    """What to type next for the assistant that this demo trained, ready for a shell."""
    program = "demeanor" if shutil.which("demeanor") else str(Path(sys.executable).with_name("demeanor"))
    weights = [] if runs == RUNS else ["--runs", str(runs)]
    given = [str(path), *weights, *(word for one in overrides for word in ("--set", one))]
    serving_at = [] if port == PORT else ["--port", str(port)]
    found = [
        ("talk to it:", shlex.join([program, "chat", *given])),
        (
            "its chat page:",
            f"{shlex.join([program, 'serve', *given, *serving_at])}      then http://127.0.0.1:{port}",
        ),
    ]
    return found if overrides else [*found, ("take it apart:", shlex.join([program, "tour", *weights]))]


def _proofs(console: Console, stack: Stack, runs: Runs, results: Path) -> None:
    """What each layer did, what safety costs, whether the newest layer may ship, and what would repair what fails; a few lines each."""
    services = app.services(runs)
    console.print(
        "\n3. attribute the difference to the layers: every set of weights with every subset of layers",
        style="bold",
    )
    split = attribution.run(stack, services, results, name="demo")
    console.print(attribution.generations(split), markup=False)
    console.print(attribution.summary(split), markup=False)
    if len(stack.chain(stack.serve)) > 1:
        base = base_prompting.run(stack, services, results, name="demo")
        console.print(base_prompting.summary(base), markup=False)
    console.print("\n4. what safety costs", style="bold")
    outputs.show_blocks([frontier.brief(frontier.run(stack, services, results, name="demo"))], console)
    rules, newest = stack.path.parent / RULES, stack.switches[-1] if stack.switches else None
    if rules.is_file() and newest:
        console.print(
            f"\n5. may {newest} ship? the whole against everything but {newest}, by {rules}", style="bold"
        )
        report, _ = gate.run(
            stack, services, results, against=f"{stack.spec.name}-{newest}", rules=rules, name="demo"
        )
        outputs.show_blocks(gate.brief(report), console)
    console.print("\n6. diagnose: which change would fix the failing items", style="bold")
    found = diagnose.run(stack, services, results, diagnose.Scope(), name="demo")
    console.print(f"Suspect: {found.suspect}. {found.recommendation}", markup=False)


def fresh() -> Path:
    """Outside the repository the demo writes its own files once."""
    folder = Path("demo")
    if not (folder / "stack.yaml").is_file():
        write_files(folder, force=False)
    return folder / "stack.yaml"


def write_files(folder: Path, *, force: bool) -> list[Path]:
    """Write a stack and every file it names; raises DemeanorError rather than overwrite."""
    planned = catalog.contents()
    there = [name for name in planned if (folder / name).exists()]
    if there and not force:
        raise UsageError(
            f"{folder}: {', '.join(there[:3])}{' ...' if len(there) > 3 else ''} exist already. "
            "Choose another folder, or add --force to overwrite them."
        )
    for name, text in planned.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [folder / name for name in planned]

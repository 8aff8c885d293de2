"""Verbs about a stack itself: demo, init, explain, train, samples, runs, chat, serve, export."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from demeanor.cli.options import PORT, RESULTS, RUNS, Overrides, Results, RunsFolder, StackFile, load
from demeanor.cli.tables import columns
from demeanor.core import hardware
from demeanor.core.errors import DemeanorError, UsageError

if TYPE_CHECKING:
    from demeanor.server.processes import ProcessPlace
    from demeanor.server.serve import Settings
    from demeanor.stack.stack import Stack
    from demeanor.training.runs import Entry, Runs

app = typer.Typer()
runs_app = typer.Typer(
    no_args_is_help=True, help="List trained weights, and delete those that no stack needs."
)


app.add_typer(runs_app, name="runs")


TrainingFormat = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(help="Number format of training's matrix products; auto: the faster one, measured here."),
]


@app.command()
def demo(
    serving: Annotated[
        bool, typer.Option("--serve", help="Serve the chat page and the API at the end.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of --serve.")] = PORT,
    dtype: TrainingFormat = "auto",
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
) -> None:
    """Train, align and evaluate a small demo assistant from random weights, offline, in some minutes."""
    from demeanor.cli.demo import run

    raise typer.Exit(run(runs, results, overrides or [], serve=serving, port=port, dtype=dtype))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write to.")],
    remote: Annotated[
        str | None,
        typer.Option(metavar="URL#MODEL", help="Use a model behind an OpenAI-compatible address."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="FOLDER_OR_ID", help="Use a Hugging Face folder or hub id.")
    ] = None,
    gguf: Annotated[str | None, typer.Option(metavar="FILE", help="Use a GGUF file.")] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Use the demo's stack, which is trained from random weights.")
    ] = False,
    documents: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Answer from these documents (default: three samples to replace)."
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --base: train on these rows (default: a few samples)."),
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --remote: the environment variable that holds its API key."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
) -> None:
    """Write a folder with a stack to start from, for your model or for the demo. Without options it asks what you have."""
    from demeanor.cli import starter
    from demeanor.cli.demo import write_files

    given_models: list[tuple[starter.Kind, str | None]] = [
        ("remote", remote),
        ("base", base),
        ("gguf", gguf),
    ]
    models = {kind: model for kind, model in given_models if model is not None}
    if len(models) + demo > 1:
        raise UsageError(
            f"init: got {' and '.join(f'--{x}' for x in [*models, *(['demo'] if demo else [])])}, wanted one of them"
        )
    wish: starter.Wish | None = None
    if models:
        [(kind, model)] = models.items()
        wish = starter.Wish(kind, model, key_env, documents, rows)
    elif given := [name for name, x in (("documents", documents), ("rows", rows), ("key-env", key_env)) if x]:
        raise UsageError(f"--{given[0]}: is for a model of your own; add --remote, --base or --gguf")
    elif not demo and starter.asked_in_a_terminal():
        wish = starter.interview()
    if wish is None:
        for path in write_files(folder, force=force):
            print(f"wrote {path}")
        print(f"\nnext: demeanor explain {shlex.quote(str(folder / 'stack.yaml'))}")
        return
    planned = starter.plan(folder, wish)
    starter.write(planned, force=force)
    for path in planned.files:
        print(f"wrote {path}")
    for note in planned.notes:
        print(f"note: {note}")
    there = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))}, then "
    print(f"\nnext: {there}the commands of README.md; first: demeanor explain stack.yaml")


@app.command()
def explain(
    stack: StackFile,
    full: Annotated[
        bool, typer.Option("--full", help="Print every setting with its effective value.")
    ] = False,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Show the layers of a stack, which stages are trained, and what training the others would cost."""
    from demeanor.cli.explain import show
    from demeanor.training.runs import Runs

    show(load(stack, overrides), Runs(runs), full=full)


@app.command()
def train(
    stack: StackFile,
    stages: Annotated[
        list[str] | None,
        typer.Option(
            "--stage", metavar="STAGE", help="Train this stage and its ancestors only (repeatable)."
        ),
    ] = None,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute", help="Activation checkpointing: less memory, about a third more compute."
        ),
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Use torch.compile: starts about 15 s later, then steps are 14-22% shorter."
        ),
    ] = False,
    dtype: TrainingFormat = "auto",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used, and say how many.")
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:PLACE",
            help="Also send metrics to tensorboard:DIR, wandb:PROJECT, mlflow:URI or trackio:PROJECT (repeatable).",
        ),
    ] = None,
    probe: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Let each policy answer N held-out prompts during training; see `demeanor samples`.",
        ),
    ] = None,
    check_rewards: Annotated[
        bool,
        typer.Option(
            "--check-rewards",
            help="Train nothing; audit the rewards of online stages with right and worthless answers. Exit code 1: worthless answers earn them, or right ones do not; 4: too few prompts to tell.",
        ),
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: all cores).")] = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Train every stage whose weights are missing; an interrupted stage resumes where it stopped."""
    hardware.prepare(threads)
    from demeanor import app as composed
    from demeanor.training import pipeline
    from demeanor.training.runs import Runs
    from demeanor.training.stage import RunOptions
    from demeanor.training.trackers import together

    found = load(stack, overrides)
    if check_rewards:
        raise typer.Exit(_check_rewards(found, Runs(runs), stages or []))
    composed.train(
        pipeline.tolerant(found) if skip_bad else found,
        Runs(runs),
        only=stages or [],
        options=RunOptions(dtype, compiled, recompute, track=together(track or [])),
        probe=probe,
    )
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks
        print(f"\nnext: demeanor eval {stack}   or   demeanor chat {stack}")


def _check_rewards(stack: Stack, runs: Runs, only: Sequence[str]) -> int:
    """Print the audit of each stage; the exit code is that of the worst."""
    from demeanor import app as composed
    from demeanor.core.types import Verdict
    from demeanor.report import outputs
    from demeanor.training import reward_audit

    audits = composed.check_rewards(stack, runs, only=only)
    for found in audits:
        outputs.show(reward_audit.section(found), outputs.console())
    verdicts = {found.verdict for found in audits}
    return next((v.value for v in (Verdict.FAIL, Verdict.INCONCLUSIVE) if v in verdicts), 0)


@app.command()
def samples(
    stack: Annotated[
        Path, typer.Argument(metavar="STACK.yaml|RUN", help="A stack, or the folder of one run.")
    ],
    stage: Annotated[
        str | None, typer.Option(help="Stage of the stack (default: the one that answers).")
    ] = None,
    prompts: Annotated[int | None, typer.Option(metavar="N", help="Print the first N prompts only.")] = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Print the answers that a stage gave during its training, by prompt and step.

    An online stage also shows completions that it trained on, with their rewards.
    """
    from demeanor.training import generation_eval, online
    from demeanor.training.runs import Runs, read_log

    folder = stack
    if not stack.is_dir():
        found = load(stack, overrides)
        name = stage or found.serve
        if name != "base":
            found.stage(name)  # raises on an unknown name
        folder = Runs(runs).folder(found.stage_key(name))
    rows = read_log(folder / generation_eval.SAMPLES)
    sampled = read_log(folder / online.ROLLOUTS)
    if not rows and not sampled:
        raise DemeanorError(
            f"{folder / generation_eval.SAMPLES}: no samples; a stage leaves them if it trains with `probe:` in the "
            "stack, or with `demeanor train ... --probe 16`"
        )
    if sampled:
        print("completions that it trained on\n")
        print("\n".join(generation_eval.sample_lines(sampled, prompts)))
    if rows:
        print("\n".join(generation_eval.sample_lines(rows, prompts)))


@app.command()
def chat(
    stack: StackFile,
    model: Annotated[
        str | None, typer.Option(help="A variant, e.g. NAME:sft or NAME-policy (default: the whole stack).")
    ] = None,
    ask: Annotated[str | None, typer.Option(help="Ask one question, print the answer, exit.")] = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Talk to the assistant in the terminal."""
    from demeanor.cli.terminal_chat import run
    from demeanor.training.runs import Runs

    raise typer.Exit(run(load(stack, overrides), Runs(runs), model=model, ask=ask))


def _above_zero(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1e6:
        raise typer.BadParameter(f"got {value:g}, wanted a number above 0")
    return value


@app.command()
def serve(
    stack: StackFile,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = PORT,
    api_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Require this key (repeatable); or DEMEANOR_API_KEYS=a,b."),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Require a key of this database, e.g. sqlite:///runs/keys.db or postgresql://USER@HOST/DATABASE.",
        ),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Count the keys' requests per minute in this Redis, for all servers that name it, e.g. redis://localhost.",
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", callback=_above_zero, help="End a request that takes longer (default: never)."
        ),
    ] = None,
    max_waiting: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Refuse a request (429) when N others are waiting for a slot."),
    ] = None,
    max_body: Annotated[int, typer.Option(min=0, metavar="BYTES", help="Refuse longer request bodies.")] = 1
    << 20,
    header_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            callback=_above_zero,
            help="Close a connection whose request headers take longer.",
        ),
    ] = 10.0,
    body_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            callback=_above_zero,
            help="Close a connection whose request body takes longer.",
        ),
    ] = 30.0,
    idle_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            callback=_above_zero,
            help="Close a connection that is idle, or does not read its answer, for longer.",
        ),
    ] = 30.0,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let pages of this origin call the API (repeatable)."),
    ] = None,
    drain: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            callback=_above_zero,
            help="Time that running requests have to finish after SIGTERM.",
        ),
    ] = 20.0,
    approval_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            callback=_above_zero,
            help="How long a tool call waits for a person's approval.",
        ),
    ] = 900.0,
    log: Annotated[
        Literal["text", "json"],
        typer.Option(help="json: one line per request on stderr, without contents and keys."),
    ] = "text",
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Reload the stack when its file, or a file that it names, changes (as SIGHUP does).",
        ),
    ] = False,
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            callback=_above_zero,
            help="Limit for weights and caches; beyond it, idle weights are unloaded, least recently used first (default: no limit).",
        ),
    ] = None,
    cache_memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            callback=_above_zero,
            help="Limit for the keys and values of all weights of this process; earlier prompts stay there until the memory is needed (default: an eighth of the memory that the weights leave, or what one whole context takes).",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="URL",
            help="Also serve the labelling page of the queues in this database, at /label.",
        ),
    ] = None,
    otel: Annotated[
        str | None,
        typer.Option(
            metavar="ENDPOINT",
            envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
            help="Send OpenTelemetry spans there (OTLP over HTTP), e.g. http://localhost:4318.",
        ),
    ] = None,
    otel_content: Annotated[
        bool, typer.Option("--otel-content", help="Include requests and answers in the spans.")
    ] = False,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            max=256,
            metavar="N",
            help="Serve with N processes behind the one address, each with its own weights and caches.",
        ),
    ] = 1,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Serve the OpenAI-compatible API and the chat page."""
    from demeanor.server.processes import supervise
    from demeanor.server.serve import Settings

    settings = Settings(
        host=host,
        port=port,
        api_keys=api_key or [],
        keys=keys,
        redis=redis,
        labels=labels,
        deadline_s=deadline,
        max_waiting=max_waiting,
        max_body_bytes=max_body,
        header_s=header_timeout,
        body_s=body_timeout,
        idle_s=idle_timeout,
        cors=cors or [],
        drain_s=drain,
        approval_s=approval_timeout,
        json_logs=log == "json",
        watch=watch,
        memory_gib=memory,
        cache_gib=cache_memory,
        otel=otel or None,
        otel_content=otel_content,
    )
    one = partial(_serve, stack, overrides, runs, settings)
    if processes == 1:
        raise typer.Exit(one(None))
    raise typer.Exit(supervise(one, host=host, port=port, processes=processes, drain_s=drain))


def _serve(
    stack: Path, overrides: list[str] | None, runs: Path, settings: Settings, place: ProcessPlace | None
) -> int:
    """Serve as the only process, or in one of several."""
    from demeanor.serving import serve as run
    from demeanor.training.runs import Runs

    return run(lambda: load(stack, overrides), Runs(runs), replace(settings, place=place))


@app.command()
def export(
    stack: StackFile,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write to.")],
    model: Annotated[
        str | None,
        typer.Option(help="A variant whose weights to export, e.g. NAME:sft (default: what is served)."),
    ] = None,
    to: Annotated[
        Literal["hf", "onnx", "gguf"],
        typer.Option(
            "--to",
            "--format",
            help="A Hugging Face folder, a GGUF file with an Ollama Modelfile, or ONNX Runtime GenAI.",
        ),
    ] = "hf",
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16", "q8_0", "q4_0"],
        typer.Option(
            help="Number format of the weights; q8_0 and q4_0 with --to gguf.", case_sensitive=False
        ),
    ] = "fp32",
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter", help="Write only the adapters, as one PEFT folder for the weights under them."
        ),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --adapter: the hub id or folder to name as its base (default: the base's own).",
        ),
    ] = None,
    check: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Compare prompts and greedy answers on N items (0: no comparison); exit code 1 if they differ.",
        ),
    ] = 32,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Write the served weights as a folder for other servers, and compare its answers with those of demeanor's own engine."""
    from demeanor import app as composed
    from demeanor.training import export as exporting
    from demeanor.training import export_gguf
    from demeanor.training.runs import Runs

    found, folder = load(stack, overrides), Runs(runs)
    if model:
        found = replace(found, serve=found.resolve(model).serve)
    if base is not None and not adapter:
        raise UsageError("--base: names the base of an adapter; give --adapter too")
    if adapter:
        if (to, dtype) != ("hf", "fp32"):
            raise UsageError("--adapter: writes a PEFT folder in fp32; leave --to and --dtype out")
        written = exporting.export_adapter(found, folder, out, base=base)
        print(f"written: {written} ({found.serve}, adapter)")
        remote = base is not None and not Path(base).is_dir()
        if check and (remote or importlib.util.find_spec("peft") is None):
            why = "its base is not here" if remote else "PEFT is not installed here (pip install peft)"
            print(f"not checked: {why}")
            return
    else:
        texts = composed.suite_texts(found, check or 32) if to == "gguf" else ()
        written = exporting.export(found, folder, out, target=to, dtype=dtype, texts=texts)
        print(f"written: {written} ({found.serve}, {to}, {dtype})")
    if check and to == "gguf" and not export_gguf.runnable():
        print(f"not checked: llama.cpp is not installed here; {export_gguf.INSTALL}, then export again")
    elif check:
        compared = composed.check_export(found, folder, written, target=to, limit=check)
        print("\n".join(exporting.report(compared, to)))
        if dtype in export_gguf.ROUNDED:
            print(f"  {dtype} rounds the weights: answers may differ, and only prompts decide the exit code")
            raise typer.Exit(1 if compared.prompts else 0)
        raise typer.Exit(0 if compared.equal else 1)


# ---- runs ----

Stacks = Annotated[
    list[Path] | None, typer.Argument(metavar="STACK.yaml...", help="Stacks that need their weights.")
]


@runs_app.command("list")
def list_runs(stacks: Stacks = None, overrides: Overrides = None, runs: RunsFolder = RUNS) -> None:
    """List the runs of the given stacks, or all: finished, running, interrupted or broken."""
    from demeanor.training.runs import entries

    found = entries(runs)
    if stacks:
        needed = _needed(stacks, overrides)
        found = [entry for entry in found if entry.key in needed]
    print("\n".join(_lines(found)) or f"{runs}: no runs")


@runs_app.command()
def prune(
    stacks: Stacks = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete them.")] = False,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
) -> None:
    """List the runs that none of the given stacks needs; --yes deletes them."""
    from demeanor.training import runs as trained

    if not stacks:
        raise UsageError(
            "runs prune: wanted the stack files whose weights stay: demeanor runs prune a.yaml b.yaml"
        )
    needed = _needed(stacks, overrides)
    found = trained.entries(runs)
    if yes:
        trained.sweep(runs)
    going = trained.unneeded(found, needed)
    if not going:
        print("every run is needed or running: nothing to delete")
        return
    total = f"{len(going)} run{'' if len(going) == 1 else 's'}, {size(sum(entry.size for entry in going))}"
    print("\n".join(_lines(going)))
    if not yes:
        print(f"\n{total}, that no given stack needs. Nothing was deleted; --yes deletes.")
        return
    for entry in going:
        trained.delete(runs, entry.key)
    print(f"\ndeleted {total}")


def _needed(stacks: list[Path], overrides: list[str] | None) -> set[str]:
    from demeanor.stack.stack import training_keys

    return set().union(*(training_keys(load(path, overrides)) for path in stacks))


def _lines(found: Sequence[Entry]) -> list[str]:
    from demeanor.training.runs import began

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    heading = ("key", "stack", "stage", "begun (UTC)", "size", "loss", "held out", "state")
    rows = [
        (x.key, x.stack, x.stage, began(x), size(x.size), number(x.loss), number(x.held_out), x.state)
        for x in found
    ]
    return columns(heading, rows, right=(4, 5, 6))


def size(count: int) -> str:
    """Bytes for a person: 999 B, 1.2 kB, 34.5 MB (powers of 1000)."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.95:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"

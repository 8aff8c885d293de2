"""Verbs that measure: eval, report, attribute, frontier, gate, diagnose, duel, seeds, judge, suites, logs.

A verb of which answers or verdicts failed says so before its result and exits with 3, where no verdict of its own says more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from demeanor.cli.judges import JudgeKeys, OtherJudges, judge_clients, judge_specs
from demeanor.cli.options import (
    RESULTS,
    RUNS,
    Compare,
    CompareKey,
    Limit,
    Overrides,
    ResultName,
    Results,
    RunsFolder,
    StackFile,
    evaluation_services,
    file_name,
    load,
)
from demeanor.core.errors import DemeanorError, UsageError

if TYPE_CHECKING:
    from demeanor.stack.stack import Stack

app = typer.Typer()
judge_app = typer.Typer(
    no_args_is_help=True, help="Validate the judge of a stack on pairs with human labels."
)
suites_app = typer.Typer(no_args_is_help=True, help="List and print suites: the built-in ones and your own.")
logs_app = typer.Typer(no_args_is_help=True, help="Import the logs of other evaluation harnesses.")
app.add_typer(judge_app, name="judge")
app.add_typer(suites_app, name="suites")
app.add_typer(logs_app, name="logs")


@contextmanager
def _failures_first() -> Iterator[Callable[[], None]]:
    """Yield what prints the failures so far, to be called before a result is shown; exit with 3 if anything failed."""
    from demeanor.evaluation.result_rows import failures

    with failures() as failed:
        try:
            yield lambda: print(f"{failed}\n") if str(failed) else None
        except DemeanorError:
            if str(failed):
                print(failed, file=sys.stderr)
            raise
    if str(failed):
        raise typer.Exit(DemeanorError.exit_code)


@app.command("eval")
def evaluate(
    stack: StackFile,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL...", help="Evaluate these model ids, in this order, instead of the whole ladder."
        ),
    ] = None,
    compare: Compare = None,
    compare_key: CompareKey = None,
    limit: Limit = None,
    name: ResultName = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
) -> None:
    """Evaluate the ladder of layers (cumulative ablation) on the same items; print the table and write the HTML page."""
    from demeanor.evaluation import ladder
    from demeanor.report import publish

    with _failures_first() as tell:
        result = ladder.evaluate(
            load(stack, overrides),
            evaluation_services(runs),
            results,
            variants=variants,
            limit=limit,
            name=name,
            compare=compare or (),
            compare_keys=compare_key or (),
        )
        tell()
        publish.show(result, results)


@app.command()
def report(
    result: Annotated[
        Path, typer.Argument(metavar="RESULT.json|TABLE.yaml", help="A result of eval, or a published table.")
    ],
    out: Annotated[Path | None, typer.Option(help="The HTML page (default: beside the result).")] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Also draw the ladder as one standalone SVG.")
    ] = None,
) -> None:
    """Render a result again, or a published table of scores, as an HTML page, Markdown and a table."""
    from demeanor.core.files import write_text
    from demeanor.evaluation import published
    from demeanor.evaluation.result import load as read
    from demeanor.report import publish

    if published.is_table(result):
        publish.render(result, out)
        return
    found = read(result)
    publish.show(found, result.parent, page=out)
    if picture:
        from demeanor.report.picture import picture as drawn

        write_text(picture, drawn(found))
        print(f"picture: {picture}")


@app.command()
def attribute(
    stack: StackFile,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE...",
            help="Stages whose weights are compared, in order of training (default: from the base to the served one).",
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER...",
            help="Runtime layers to switch on and off (default: all that can change an answer, with template and decoding).",
        ),
    ] = None,
    fraction: Annotated[
        Literal["full", "V", "IV"],
        typer.Option(
            help="Measure only a fraction of the combinations: V separates interactions of two layers, IV only main effects from them."
        ),
    ] = "full",
    base_prompts: Annotated[
        bool,
        typer.Option(
            "--base-prompts",
            help="Also measure the base model raw, with examples and with every template, to tell training from prompting.",
        ),
    ] = False,
    limit: Limit = None,
    name: ResultName = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
) -> None:
    """Attribute scores to layers: a full factorial of weights and runtime layers on the same items."""
    from demeanor.evaluation import attribution, base_prompting
    from demeanor.report import publish

    declared, services = load(stack, overrides), evaluation_services(runs)
    with _failures_first() as tell:
        found = attribution.run(
            declared,
            services,
            results,
            weights=weights,
            layers=None if layers is None else [layer for layer in layers if layer],
            limit=limit,
            name=name,
            fraction=fraction,
        )
        tell()
        publish.show_section(results, found.name, "attribution")
        if base_prompts:
            base_prompting.run(declared, services, results, limit=limit, name=name)
            tell()
            publish.show_section(results, found.name, "base")


@app.command()
def frontier(
    stack: StackFile,
    between: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FROM:TO", help="Instead: merges of two stages, gain and tax along them (repeatable)."
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE.SETTING=A,B",
            help="Instead: train copies of a stage with one setting changed, gain and tax along them (repeatable).",
        ),
    ] = None,
    points: Annotated[int, typer.Option(help="Points of --between, both ends included.")] = 5,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS", help="Axis that the training aimed at (repeatable; default: its own items)."
        ),
    ] = None,
    limit: Limit = None,
    name: ResultName = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
) -> None:
    """Measure the cost of safety: safe prompts answered, unsafe ones refused, capability, by stage and policy threshold.

    With --between or --sweep: the alignment tax as a curve, over merges of two stages or a swept setting.
    """
    from demeanor.evaluation import frontier as tradeoff
    from demeanor.evaluation import tax
    from demeanor.report import publish

    if target and not (between or sweep):
        raise UsageError("--target: is for --between and --sweep")
    with _failures_first() as tell:
        if between or sweep:
            curve = tax.run(
                load(stack, overrides),
                evaluation_services(runs),
                results,
                merges=between or (),
                sweeps=sweep or (),
                points=points,
                target=target or (),
                limit=limit,
                name=name,
            )
            tell()
            publish.show_section(results, curve.name, "tax")
            return
        found = tradeoff.run(
            load(stack, overrides), evaluation_services(runs), results, limit=limit, name=name
        )
        tell()
        publish.show_section(results, found.name, "frontier")


@app.command()
def gate(
    stack: Annotated[
        Path | None, typer.Argument(metavar="STACK.yaml", help="The version to decide about.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="RESULT.json|MODEL_ID",
            help="The baseline: a result of `eval`, or a variant of this stack.",
        ),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option(
            metavar="gate.yaml", help="The rules: superiority, non_inferiority, zero_tolerance, stability."
        ),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="RECORD.json",
            help="Check the signature of a record instead; the exit code is its verdict's.",
        ),
    ] = None,
    limit: Limit = None,
    name: ResultName = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
) -> None:
    """Decide whether this version may ship. Exit code 0: pass, 1: fail, 4: inconclusive; 2 and 3: an error, nothing was decided."""
    from demeanor.evaluation import gate as release
    from demeanor.report import publish

    key = os.environ.get(release.KEY)
    if verify:
        verdict = release.verify(verify, key)
        print(f"{verify}: the signature holds; verdict {verdict.name.lower()}")
        raise typer.Exit(verdict.value)
    if not (stack and against and rules):
        raise UsageError(
            "gate: wanted STACK.yaml --against RESULT.json|MODEL_ID --rules gate.yaml, or --verify RECORD.json"
        )
    with _failures_first() as tell:
        decision, record = release.run(
            load(stack, overrides),
            evaluation_services(runs),
            results,
            against=against,
            rules=rules,
            limit=limit,
            name=name,
        )
        tell()
        publish.show_section(results, record.name.removesuffix(".gate.json"), "gate")
        print("signed" if key else f"not signed: {release.KEY} is not set")
        raise typer.Exit(decision.verdict.value)  # the verdict says it: none is a pass while answers failed


@app.command()
def diagnose(
    stack: StackFile,
    axis: Annotated[str | None, typer.Option(help="Failing items of this behavior (axis) only.")] = None,
    items: Annotated[
        list[str] | None, typer.Option(metavar="ID...", help="Diagnose only these items, if they fail.")
    ] = None,
    turns: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Diagnose recorded turns with bad feedback from this database (or SQLite file); turns with good feedback are controls.",
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="NAME.rows.jsonl", help="Read the current answers from the rows of an earlier eval."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="STACK.yaml|NAME.rows.jsonl",
            help="A reference stack or an earlier result: only items that it passes; the parts of a reference stack are tried as changes.",
        ),
    ] = None,
    learning_curve: Annotated[
        bool,
        typer.Option(
            "--learning-curve",
            help="Also train the last stage on a quarter and a half of its rows, to see whether more rows would help.",
        ),
    ] = False,
    limit: Limit = None,
    name: ResultName = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
) -> None:
    """Find which change of one layer fixes the failing items, what it breaks, and which layer is the suspect."""
    from demeanor.evaluation.diagnosis import diagnose as diagnosis
    from demeanor.report import publish

    if sum(choice is not None for choice in (axis, items, turns)) > 1:
        raise UsageError(
            "diagnose: --axis, --items and --turns exclude each other; wanted one of them at most"
        )
    if turns and (rows or against or limit or learning_curve):
        raise UsageError(
            "--turns takes its items from the database: leave out --rows, --against, --limit and --learning-curve"
        )
    earlier = against if against and against.suffix == ".jsonl" else None
    reference = load(against) if against and not earlier else None
    scope = diagnosis.Scope(axis, tuple(items or ()), limit, reference, earlier, rows, turns)
    with _failures_first() as tell:
        found = diagnosis.run(
            load(stack, overrides), evaluation_services(runs), results, scope, name=name, learn=learning_curve
        )
        tell()
        publish.show_section(results, found.name, "diagnosis")


@app.command()
def duel(
    stack: StackFile,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL...",
            help="Compare these model ids instead of the ladder; the last one is the reference.",
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUITE...", help="builtin:NAME, world:NAME or files, instead of the stack's suites."
        ),
    ] = None,
    compare: Compare = None,
    compare_key: CompareKey = None,
    limit: Limit = None,
    name: ResultName = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
) -> None:
    """Let the judge compare variants pair by pair: win rates, also length-controlled, and ratings."""
    from demeanor.evaluation import duel as duels
    from demeanor.report import publish

    given = duels.Contestants(variants or (), compare or (), compare_key or (), suite or (), limit)
    with _failures_first() as tell:
        found = duels.run(load(stack, overrides), evaluation_services(runs), results, given, name=name)
        tell()
        publish.show_section(results, found.name, "duel")


@app.command()
def seeds(
    stack: StackFile,
    chosen: Annotated[
        list[int] | None, typer.Option("--seeds", metavar="SEED...", help="Training seeds (default: 0 1 2).")
    ] = None,
    limit: Limit = None,
    name: ResultName = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
) -> None:
    """Train with several seeds and evaluate each: does the effect of a layer hold for another training run?"""
    from demeanor.evaluation import seeds as trainings
    from demeanor.report import publish

    def again(more: Sequence[str]) -> Stack:
        return load(stack, [*(overrides or []), *more])

    with _failures_first() as tell:
        found = trainings.run(
            again, evaluation_services(runs), results, chosen=chosen or [0, 1, 2], limit=limit, name=name
        )
        tell()
        publish.show_section(results, found.name, "seeds")


@judge_app.command("validate")
def validate_judge(
    stack: StackFile,
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS.json|jsonl", help="LLMBar's rows, or rows of prompt, chosen, rejected."
        ),
    ],
    limit: Limit = None,
    name: ResultName = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
) -> None:
    """Measure the judge on pairs with human labels: accuracy, agreement and position bias."""
    from demeanor.evaluation import judge_validation
    from demeanor.report import outputs

    with _failures_first() as tell:
        found = judge_validation.run(
            load(stack, overrides), evaluation_services(runs), results, pairs, limit=limit, name=name
        )
        tell()
        outputs.show(judge_validation.section(found), outputs.console())
        print(f"written: {results / found.name}.judge.json")


@judge_app.command("panel")
def measure_panel(
    stack: StackFile,
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS.json|jsonl", help="LLMBar's rows, or rows of prompt, chosen, rejected."
        ),
    ],
    judges: OtherJudges = None,
    judge_keys: JudgeKeys = None,
    limit: Limit = None,
    name: ResultName = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
) -> None:
    """Measure several judges, and all of them together, on pairs with human labels."""
    from demeanor.evaluation import judge_panel, judge_validation
    from demeanor.evaluation.experiment import named
    from demeanor.evaluation.result import save
    from demeanor.report import outputs

    found = load(stack, overrides)
    specs = judge_specs(found, judges, judge_keys)
    if len(specs) < 2:
        raise UsageError("judge panel: wanted two judges or more: the stack's own and --judge URL#MODEL")
    called = named(found, name, None)
    clients = judge_clients(specs, results, called, runs)
    measured = judge_panel.measure(clients, judge_validation.pairs(pairs, limit), called)
    for client in clients:
        print(client.summary())
    save(results, called, "panel", measured)
    outputs.show(judge_panel.section(measured), outputs.console())
    print(f"written: {results / called}.panel.json")


Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SUITE...", help="builtin:NAME, world:NAME or a file (default: all that need no file)."
    ),
]


@suites_app.command("list")
def list_suites(names: Names = None) -> None:
    """List suites: items, clusters, the smallest detectable difference, and the score of one fixed answer."""
    show_suites(names, items=0)


@suites_app.command("show")
def show_suites(
    names: Names = None,
    items: Annotated[int, typer.Option(min=0, metavar="N", help="Items to print of each behavior.")] = 3,
) -> None:
    """List suites and print some items of each behavior (axis)."""
    from demeanor.evaluation import suites
    from demeanor.report import outputs

    outputs.show(suites.section(names or suites.offered(), items), outputs.console())


@logs_app.command("import")
def import_logs(
    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOG...",
            help="Inspect's .json or .eval, lm-eval's samples_*.jsonl, or folders; models in the order of the ladder.",
        ),
    ],
    name: Annotated[
        str, typer.Option("--name", parser=file_name, metavar="NAME", help="Name of the result.")
    ] = "harness",
    metric: Annotated[
        str | None, typer.Option(help="The metric or scorer to read (default: the first of each sample).")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="The field of a document whose samples share a source (default: cluster, else group, else itself).",
        ),
    ] = None,
    as_suite: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.jsonl", help="Instead, write the samples that our scorers can judge as a suite."
        ),
    ] = None,
    results: Results = RESULTS,
) -> None:
    """Compare several models by their logs of Inspect or lm-eval: paired, clustered, with intervals."""
    from demeanor.evaluation import harness_logs as harness
    from demeanor.report import publish

    if as_suite is None:
        publish.show(harness.compare(logs, results, name, metric=metric, cluster=cluster), results)
        return
    written, reasons = harness.write_suite(logs, as_suite, metric=metric, cluster=cluster)
    print(
        f"{as_suite}: {f'{written} items' if written else 'not written, no sample can be judged by a scorer of ours'}"
    )
    for reason, count in sorted(reasons.items(), key=lambda found: -found[1]):
        print(f"  {count} left out: {reason}")
    raise typer.Exit(0 if written else 1)

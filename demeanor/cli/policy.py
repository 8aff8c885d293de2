"""`demeanor policy`: test the rules of a policy file and measure it on labelled texts; train classifiers and probes for its rules."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from demeanor.cli.options import RUNS, RunsFolder, counted_bars, load
from demeanor.core.errors import UsageError

if TYPE_CHECKING:
    from demeanor.evaluation.policy_training import Trained

app = typer.Typer(
    no_args_is_help=True, help="Test and measure a policy file; train classifiers for its rules."
)

PolicyFile = Annotated[
    str, typer.Argument(metavar="POLICY.yaml", help="The file of rules, or builtin:default.")
]
HalfOption = Annotated[
    Literal["all", "tune", "report"],
    typer.Option(
        "--half",
        help="Use all texts, or one half, chosen by a hash of the text: tune for choosing thresholds, the other for measuring.",
    ),
]
StackOption = Annotated[
    Path | None, typer.Option("--stack", metavar="STACK.yaml", help="The stack whose weights a probe reads.")
]


@contextmanager
def _kit(stack_file: Path | None, runs: Path) -> Iterator[Any]:
    from demeanor.app import StackRuntime, policy_kit
    from demeanor.training.runs import Runs

    if stack_file is None:
        yield policy_kit()
        return
    runtime = StackRuntime(load(stack_file), Runs(runs), operational=False)
    try:
        yield runtime.kit(lambda messages, tools: 0)
    finally:
        runtime.close()


@app.command("test")
def check_rules(
    policy_file: PolicyFile,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Labelled texts (repeatable): JSON lines {text, label, stage}, plain harmless lines (.txt), or the files of "
            "OpenAI's moderation set, Presidio, CyberSecEval's prompt injections or XSTest.",
        ),
    ] = None,
    half: HalfOption = "all",
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="RULE=LABEL", help="The label that a rule detects (repeatable)."),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option("--stage", help="The stage of texts that name none (default: input)."),
    ] = None,
    fpr: Annotated[
        float,
        typer.Option("--fpr", min=0.0, max=0.5, help="False-positive rate for which thresholds are chosen."),
    ] = 0.01,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PAGE.html", help="Also write a page, its Markdown and its JSON."),
    ] = None,
    stack: StackOption = None,
    runs: RunsFolder = RUNS,
) -> int:
    """Run the tests in a policy file; with --data, measure what its rules detect, refuse wrongly, and cost.

    Exit code 1 if a rule's own test fails.
    """
    from demeanor.core import registry
    from demeanor.core.types import Stage
    from demeanor.evaluation import labelled_texts, policy_quality, policy_report
    from demeanor.report import outputs, publish

    path = registry.file_path(Path.cwd(), policy_file)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    rules = policy_quality.rule_names(path)
    stages = get_args(Stage)
    if stage is not None and stage not in stages:
        raise UsageError(f"--stage: got {stage}, wanted one of {', '.join(stages)}")
    if out is not None and out.suffix != ".html":
        raise UsageError(f"--out: got {out}, wanted a name that ends in .html")
    named = dict(_pair(text) for text in label or ())
    if unknown := [name for name in named if name not in rules]:
        raise UsageError(f"--label: {unknown[0]} is no rule of {path}; its rules: {', '.join(rules)}")
    rows = labelled_texts.read(data or [])
    with _kit(stack, runs) as kit, counted_bars() as show:
        found = asyncio.run(
            policy_quality.measure(
                path,
                rows,
                kit,
                half=half,
                labels=named,
                false_positives=fpr,
                stage=stage,  # type: ignore[arg-type]
                show=show,
            )
        )
    section = policy_report.section(found)
    outputs.show(section, outputs.console())
    if out is not None:
        publish.write_section(section, found, out)
        print(f"\npage: {out}")
    return 1 if found.failed else 0


def _pair(text: str) -> tuple[str, str]:
    rule, sign, label = text.partition("=")
    if not sign or not label:
        raise UsageError(f"--label: got '{text}', wanted RULE=LABEL")
    return rule, label


@app.command()
def train(
    rows: Annotated[
        list[Path],
        typer.Argument(
            metavar="ROWS...", help="Labelled texts, in the shapes that `policy test --data` reads."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.safetensors", help="The file to write.")],
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="LABEL",
            help="A label to learn (repeatable; default: the only one of the rows).",
        ),
    ] = None,
    half: HalfOption = "all",
    window: Annotated[
        int,
        typer.Option(
            "--window", min=40, max=100_000, help="Longer texts are scored in parts of this many characters."
        ),
    ] = 2000,
    bits: Annotated[
        int,
        typer.Option(
            "--bits", min=10, max=20, help="2^bits buckets of n-grams; a label takes 2 bytes of each."
        ),
    ] = 16,
    fpr: Annotated[
        float,
        typer.Option("--fpr", min=0.0, max=0.5, help="False-positive rate of the file's own threshold."),
    ] = 0.01,
    seed: Annotated[
        int, typer.Option("--seed", help="Random seed of the folds of the cross-validation.")
    ] = 0,
    probe: Annotated[
        Path | None,
        typer.Option(
            "--probe",
            metavar="STACK.yaml",
            help="Train a linear probe on the hidden states of this stack's weights instead.",
        ),
    ] = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Train a classifier (or with --probe a probe) for rules: cross-validated, with calibrated probabilities. Needs no GPU."""
    from demeanor.evaluation import labelled_texts, policy_training

    if out.suffix != ".safetensors":
        raise UsageError(f"--out: got {out}, wanted a name that ends in .safetensors")
    found = labelled_texts.read(rows, half)
    known = sorted({each for row in found for each in row.labels})
    labels = label or known
    if not labels or (len(labels) > 1 and not label):
        raise UsageError(
            f"--label: the rows have the labels {', '.join(known) or 'none'}; name those to learn"
        )
    if wrong := [each for each in labels if each not in known]:
        raise UsageError(
            f"--label: {wrong[0]} is no label of the rows; they have {', '.join(known) or 'none'}"
        )
    with counted_bars() as show:
        if probe is None:
            made = policy_training.train(
                found, labels, out, window=window, bits=bits, false_positives=fpr, seed=seed, show=show
            )
        else:
            if len(labels) != 1:
                raise UsageError("--label: a probe learns one label; train one for each")
            from demeanor.app import train_policy_probe

            made = train_policy_probe(load(probe), runs, found, labels[0], out, fpr, seed, show)
    _print(made)


def _print(made: Trained) -> None:
    from demeanor.core.table import Table, percent
    from demeanor.evaluation.policy_report import area

    rows = tuple(
        (
            f.label,
            str(f.positives),
            str(f.negatives),
            area(f.ranking),
            f"{f.threshold:.4g}",
            percent(f.found, 1),
            percent(f.false, 1),
        )
        for f in made.fits
    )
    columns = (
        "label",
        "with it",
        "without",
        "AUROC, held out",
        "threshold",
        "found, %",
        "false positives, %",
    )
    print(Table(columns, rows))
    print(f"\nwritten: {made.path} ({made.path.stat().st_size:,} bytes; no text in it)")

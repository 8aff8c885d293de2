"""`demeanor data`: look at training rows, and clean them of repeats, leaks of what is measured, lengths, languages, personal data.

Every cleaning reads rows from any source, writes a .jsonl file, and says how many rows it kept, and dropped for which reason.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from demeanor.cli.options import RUNS, Overrides, RunsFolder, StackFile, load
from demeanor.cli.tables import columns
from demeanor.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from demeanor.data.curation import Curated
    from demeanor.stack.schema import Source
    from demeanor.training.inspection import Inspection

SOURCE = "A .jsonl/.json/.csv/.tsv/.txt/.parquet/.arrow file, a folder, hf:owner/name, hf:owner/name@revision, or world:NAME."

Rows = Annotated[str, typer.Argument(metavar="IN", help=SOURCE)]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The .jsonl file to write.")]
Config = Annotated[str | None, typer.Option(help="Configuration of a hub id.")]
Split = Annotated[str | None, typer.Option(help="Split of a hub id or a saved dataset.")]
Column = Annotated[
    list[str] | None, typer.Option(metavar="OURS=THEIRS", help="Read column THEIRS as OURS (repeatable).")
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Use only the first N rows.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out rows that cannot be read, and say how many.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite OUT.")]


app = typer.Typer(no_args_is_help=True, help="Look at training rows, and clean them.")


def _source(
    name: str,
    config: str | None,
    split: str | None,
    column: list[str] | None,
    limit: int | None,
    skip_bad: bool,
) -> Source:
    from demeanor.stack.schema import Source

    renamed = dict(pair.partition("=")[::2] for pair in column or ())
    if not all(renamed) or not all(renamed.values()):
        raise DataError(f"--column: got {' '.join(column or ())}, wanted OURS=THEIRS, e.g. prompt=question")
    return Source(
        source=name, config=config, split=split, columns=renamed or None, limit=limit, skip_bad=skip_bad
    )


# ---- looking ----


@app.command()
def show(
    source: Annotated[str, typer.Argument(metavar="SOURCE|STACK.yaml", help=f"A stack, or rows: {SOURCE}")],
    stage: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="This stage of the stack only (repeatable)."),
    ] = None,
    want: Annotated[
        Literal["examples", "preferences", "unpaired", "text"] | None,
        typer.Option(help="Kind of the rows of a source (default: decided by its first row)."),
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", help="Rows to print.")] = 3,
    config: Config = None,
    split: Split = None,
    column: Column = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Print rows as they will be trained on, with their trained tokens, and the longest rows."""
    from rich.console import Console

    console = Console(highlight=False)
    if source.endswith((".yaml", ".yml")):
        given = {"--config": config, "--split": split, "--column": column, "--limit": limit}
        for name, value in given.items():
            if value:
                raise DataError(
                    f"{name}: a stack says it for each of its sources; leave it out, or use --set"
                )
        _show_stack(Path(source), stage, count, skip_bad, overrides, runs, console)
        return
    from demeanor.data import preview, sources

    named = _source(source, config, split, column, limit, skip_bad)
    kind = want or sources.kind(named, Path())
    found = sources.rows(named, root=Path(), want=kind)
    doubts = sources.Doubts()
    for row in found:
        doubts.add(row)
    for row in found[:count]:
        console.print(preview.show_row(row))
    for doubt in doubts.said():
        console.print(doubt, markup=False)
    console.print(
        f"{len(found):,} rows of {kind}. Tokens, coverage and longest rows: name a stack, which has the tokenizer and the "
        "template."
    )


def _show_stack(
    path: Path,
    stages: list[str] | None,
    count: int,
    skip_bad: bool,
    overrides: list[str] | None,
    runs: Path,
    console: Console,
) -> None:
    from demeanor.stack.schema import Stage
    from demeanor.training import pipeline
    from demeanor.training.inspection import inspect
    from demeanor.training.runs import Runs

    stack = load(path, overrides)
    if skip_bad:
        stack = pipeline.tolerant(stack)
    trained = [stage.name for stage in stack.spec.weights.stages if isinstance(stage, Stage)]
    for name in stages or trained:
        _print_stage(inspect(stack, Runs(runs), name, count=count), console)


def _print_stage(found: Inspection, console: Console) -> None:
    from rich.text import Text

    console.print(f"[bold]{found.stage}[/]")
    console.print(found.rows)
    for tokens, source in found.longest:
        console.print(Text(f"{tokens:,} tokens: {source}"))
    console.print(
        f"{found.too_long:,} of {found.coverage.rows:,} rows are longer than {found.limit:,} tokens and would be left "
        "out"
    )
    if found.disagreements:
        num = len(found.disagreements)
        differ = f"{found.checked} prompts as trained, compared with the template and with its jinja: {num} differ:"
        console.print(Text("\n  ".join([differ, *found.disagreements[:3]]), style="red"))
    else:
        console.print(
            f"prompts as trained are prompts as served, token for token ({found.checked} rows checked)"
        )
    console.print()


# ---- cleaning ----


@app.command()
def dedup(
    source: Rows,
    out: Out,
    threshold: Annotated[
        float,
        typer.Option(
            metavar="S",
            help="Rows with at least this similarity (Jaccard, word 5-grams), and the same numbers, symbols and calls, are duplicates.",
        ),
    ] = 0.8,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Only rows with the same words, numbers, symbols and calls; case, sentence punctuation and ids do not count.",
        ),
    ] = False,
    show_groups: Annotated[
        int, typer.Option("--show", metavar="N", help="Groups of duplicates to print.")
    ] = 5,
    config: Config = None,
    split: Split = None,
    column: Column = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Drop duplicates: of rows with the same or nearly the same words (and the same numbers, symbols and calls), keep the first."""
    from demeanor.data import curation

    rows = _source(source, config, split, column, limit, skip_bad)
    similar = None if exact else threshold
    _report(out, curation.deduplicate(rows, out, threshold=similar, show=show_groups, force=force))


@app.command()
def decontaminate(
    source: Rows,
    out: Out,
    suite: Annotated[
        list[str], typer.Option(metavar="FILE|SUITE", help="world:behaviour, builtin:NAME, or files of rows.")
    ],
    words: Annotated[
        int, typer.Option(metavar="N", help="Length of a shared sequence of words that counts as a leak.")
    ] = 8,
    show_matches: Annotated[int, typer.Option("--show", metavar="N", help="Matches to print.")] = 10,
    config: Config = None,
    split: Split = None,
    column: Column = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Drop rows that share a sequence of words with an evaluation suite."""
    from demeanor.data import curation
    from demeanor.evaluation.suites import texts

    rows = _source(source, config, split, column, limit, skip_bad)
    suites = {name: texts(name) or curation.texts(name) for name in suite}
    _report(
        out,
        curation.remove_overlaps(rows, out, suites=suites, words=words, show=show_matches, force=force),
    )


@app.command("filter")
def keep(
    source: Rows,
    out: Out,
    min_chars: Annotated[int | None, typer.Option(metavar="N", help="Drop rows with a shorter text.")] = None,
    max_chars: Annotated[int | None, typer.Option(metavar="N", help="Drop rows with a longer text.")] = None,
    language: Annotated[
        str | None,
        typer.Option(
            metavar="CODE",
            help="Drop rows in another language: en de fr es it pt nl ja ko zh el he th. Rows whose language is uncertain stay.",
        ),
    ] = None,
    no_personal_data: Annotated[
        bool,
        typer.Option(
            "--no-personal-data",
            help="Drop rows with personal data: card, IBAN, e-mail address, phone, social security number, IP address.",
        ),
    ] = False,
    config: Config = None,
    split: Split = None,
    column: Column = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Drop rows by length, language and personal data."""
    from demeanor.data import curation

    if min_chars is None and max_chars is None and language is None and not no_personal_data:
        raise DataError(
            "data filter: nothing to filter by; give --min-chars, --max-chars, --language or --no-personal-data"
        )
    rows = _source(source, config, split, column, limit, skip_bad)
    done = curation.keep_wanted(
        rows,
        out,
        min_chars=min_chars,
        max_chars=max_chars,
        language=language,
        personal=not no_personal_data,
        force=force,
    )
    _report(out, done)


# ---- rows that a model writes ----


@app.command()
def revise(
    stack: StackFile,
    prompts: Annotated[
        str,
        typer.Argument(metavar="PROMPTS", help=f"{SOURCE} With --items: a suite, such as world:exercises."),
    ],
    out: Out,
    model: Annotated[
        str | None, typer.Option(help="The variant that answers, e.g. NAME:sft (default: the whole stack).")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Critiques and revisions of each answer (default: 1; with --deliberate: 0).",
        ),
    ] = None,
    constitution: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml",
            help="Your own principles (default: those of demeanor/data/constitution.yaml).",
        ),
    ] = None,
    deliberate: Annotated[
        Path | None,
        typer.Option(
            metavar="SPEC.md",
            help="Answer with this specification in the context; the rows are written without it.",
        ),
    ] = None,
    judged: Annotated[
        bool,
        typer.Option("--judged", help="Keep only answers that the stack's judge finds to follow SPEC.md."),
    ] = False,
    items: Annotated[bool, typer.Option("--items", help="PROMPTS is a suite.")] = False,
    axis: Annotated[
        list[str] | None, typer.Option(metavar="AXIS", help="With --items: only this behavior (repeatable).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the answers and principles.")] = 0,
    column: Column = None,
    limit: Limit = None,
    force: Force = False,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Let a model answer prompts, criticize its answers by principles and rewrite them; write rows for sft."""
    from contextlib import closing

    from demeanor import app as composed
    from demeanor.core import files
    from demeanor.data import revision
    from demeanor.evaluation.experiment import progress_bar
    from demeanor.stack.schema import PromptSource
    from demeanor.training.prompts import to_revise
    from demeanor.training.runs import Runs

    if judged and deliberate is None:
        raise UsageError("--judged: wanted --deliberate SPEC.md, which the judge compares answers with")
    if axis and not items:
        raise UsageError("--axis: is for suites; wanted --items too")
    work = revision.answers_file(out)
    if force:
        out.unlink(missing_ok=True)
        work.unlink(missing_ok=True)
    elif out.exists() and not work.exists():
        raise DataError(f"{out}: exists; name another file, or overwrite it with --force")
    found = load(stack, overrides)
    plain = _source(prompts, None, None, column, None, skip_bad=False)
    source = PromptSource(**plain.model_dump(), items=items, axes=tuple(axis or ()))
    chosen = revision.distinct(
        to_revise(source, Path() if not items else found.root, composed.GENERATION.items), limit
    )
    if not chosen:
        raise DataError(
            f"{prompts}: no prompt{' of ' + ', '.join(axis) if axis else ''}; wanted at least one"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with closing(files.lock(work.with_name(f"{work.name}.lock"), out, "is writing these rows; wait for it")):
        with progress_bar("revising") as show:
            done = composed.revise(
                found,
                Runs(runs),
                chosen,
                out,
                model=model,
                constitution=constitution,
                rounds=(0 if deliberate else 1) if rounds is None else rounds,
                specification="" if deliberate is None else files.read_text(deliberate),
                judged=judged,
                seed=seed,
                show=show,
            )
        work.with_name(f"{work.name}.lock").unlink(missing_ok=True)
    if done.kept_from_before:
        print(f"{done.kept_from_before} answers were there already ({work})")
    if done.dropped:
        print(f"{done.dropped} answers do not follow {deliberate}, says the judge, and were left out")
    print(f"written: {done.written} rows, {out}")
    if done.failed:
        print(
            f"{done.failed} prompts failed, run again to try them again; the first: {done.first_error}",
            file=sys.stderr,
        )
        raise typer.Exit(3)


# ---- rules of a reward ----


@app.command("fit-rules")
def fit_rules(
    rules: Annotated[
        Path, typer.Argument(metavar="RULES.yaml", help="Propositions; their weights are replaced.")
    ],
    graded: Annotated[
        Path,
        typer.Argument(
            metavar="GRADED", help="Rows of prompt, completion and grade: ideal, less good, bad, or a number."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write here (default: RULES.yaml itself).")
    ] = None,
) -> None:
    """Fit the weights of a rule-based reward so that better graded answers score higher."""
    from demeanor import app as composed
    from demeanor.training import reward_rules, rule_fit

    if mistakes := reward_rules.mistakes(rules, composed.REWARDS.wrong):
        raise DataError("; ".join(mistakes))
    found = rule_fit.fit(reward_rules.read(rules), rule_fit.read_graded(graded), composed.REWARDS.score)
    rule_fit.write_rules(out or rules, found)
    grades = sorted(found.means)
    heading = ("rule", "weight", *(f"holds at grade {grade:g}" for grade in grades))
    rows = [
        (rule.name, f"{rule.weight:+.3f}", *(f"{100 * found.means[grade][n]:.0f}%" for grade in grades))
        for n, rule in enumerate(found.rules.rules)
    ]
    print("\n".join(columns(heading, rows, right=tuple(range(1, len(heading))))))
    for name, accuracy in (
        ("on these pairs", found.fitted),
        ("on prompts left out of the fit", found.left_out),
    ):
        if accuracy is not None:
            print(
                f"ordered as graded, {name}: {100 * accuracy.value:.1f}% ({100 * accuracy.low:.1f} to "
                f"{100 * accuracy.high:.1f}) of {accuracy.pairs} pairs of {accuracy.prompts} prompts"
            )
    if found.left_out is None:
        print("fewer than 5 prompts: nothing could be left out of the fit, so the accuracy above is too high")
    if found.unscored:
        print(f"{found.unscored} answers were left out: a rule cannot score them")
    print(f"written: {out or rules}")


def _report(out: Path, done: Curated) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for line in (*done.notes, *done.shown):
        console.print(Text(line))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("rows", justify="right")
    table.add_column("what became of them")
    table.add_row(f"{done.kept:,}", Text(f"kept in {out}"))
    for why, count in sorted(done.dropped.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(f"{count:,}", Text(f"dropped: {why}"))
    console.print(table)

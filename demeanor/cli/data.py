"""`demeanor data`: look at what will be trained on, and clean it: repeats, leaks of what is measured, lengths, languages, personal data.

Each cleaning reads rows from any source and writes a .jsonl file; it says how many it kept, and dropped for which reason.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from demeanor.app import load_stack
from demeanor.cli import arguments
from demeanor.core.errors import DataError
from demeanor.train.inspection import inspect

if TYPE_CHECKING:
    from rich.console import Console

    from demeanor.data.curation import Curated
    from demeanor.stack.schema import Source
    from demeanor.train.inspection import Inspection

SOURCE = "a .jsonl/.json/.csv/.txt/.parquet/.arrow file, a folder, hf:owner/name[@revision], or world:NAME"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `data` and its commands."""
    data = verbs.add_parser(
        "data",
        help="look at rows and clean them: show, dedup, decontaminate, filter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = data.add_subparsers(title="commands", required=True, metavar="COMMAND")

    show = _command(
        commands,
        "show",
        _show,
        "print rows as they will be trained on, what of them is trained, and the longest",
    )
    show.add_argument("source", metavar="SOURCE|STACK.yaml", help=f"a stack, or {SOURCE}")
    show.add_argument(
        "--stage",
        action="append",
        default=[],
        metavar="STAGE",
        help="this stage of the stack only (repeatable)",
    )
    show.add_argument(
        "--want",
        choices=("examples", "preferences", "unpaired", "text"),
        default="examples",
        help="what to read the rows of a source as (default: examples; a stack's objectives know)",
    )
    show.add_argument("--count", type=int, default=3, metavar="N", help="rows to print (default: 3)")
    show.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of trained weights (default: runs)"
    )
    show.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        dest="overrides",
        help="change a setting of the stack",
    )

    dedup = _cleaning(
        commands, "dedup", _dedup, "keep the first of rows that say the same, exactly or nearly"
    )
    dedup.add_argument(
        "--threshold",
        type=float,
        default=0.8,
        metavar="S",
        help="similarity of word 5-grams (Jaccard) from which rows count as repeats (default: 0.8)",
    )
    dedup.add_argument(
        "--exact", action="store_true", help="only rows with the same words, whatever case and punctuation"
    )
    dedup.add_argument(
        "--show", type=int, default=5, metavar="N", help="groups of repeats to print (default: 5)"
    )

    leaks = _cleaning(
        commands, "decontaminate", _decontaminate, "drop rows that share words in a row with what is measured"
    )
    leaks.add_argument(
        "--suite",
        nargs="+",
        required=True,
        metavar="FILE|SUITE",
        help="world:behaviour, builtin:NAME, or files of rows",
    )
    leaks.add_argument(
        "--words", type=int, default=8, metavar="N", help="words in a row that count as a leak (default: 8)"
    )
    leaks.add_argument("--show", type=int, default=10, metavar="N", help="matches to print (default: 10)")

    keep = _cleaning(commands, "filter", _filter, "drop rows by length, language and personal data")
    keep.add_argument("--min-chars", type=int, metavar="N", help="shortest text of a row that stays")
    keep.add_argument("--max-chars", type=int, metavar="N", help="longest text of a row that stays")
    keep.add_argument(
        "--language",
        metavar="CODE",
        help="drop rows in another language: en de fr es it pt nl ja ko zh el he th; "
        "rows that do not say (short ones) stay",
    )
    keep.add_argument(
        "--no-personal-data",
        action="store_true",
        help="drop rows with a card number or IBAN (check digits hold), an e-mail address or a phone number",
    )


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("--config", help="configuration of a hub id")
    command.add_argument("--split", help="split of a hub id or a saved dataset")
    command.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="read column THEIRS as OURS (repeatable)",
    )
    command.add_argument("--limit", type=arguments.count, metavar="N", help="the first N rows only")
    command.add_argument(
        "--skip-bad", action="store_true", help="leave out rows that cannot be read, and say how many"
    )
    command.set_defaults(run=run)
    return command


def _cleaning(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    command = _command(commands, name, run, text)
    command.add_argument("source", metavar="IN", help=SOURCE)
    command.add_argument("out", type=Path, metavar="OUT", help="the .jsonl file to write")
    command.add_argument("--force", action="store_true", help="overwrite OUT")
    return command


def _source(options: argparse.Namespace) -> Source:
    from demeanor.stack.schema import Source

    renamed = dict(pair.partition("=")[::2] for pair in options.column)
    if not all(renamed) or not all(renamed.values()):
        raise DataError(f"--column: got {' '.join(options.column)}, wanted OURS=THEIRS, e.g. prompt=question")
    if options.limit is not None and options.limit < 1:
        raise DataError(f"--limit: got {options.limit}, wanted at least 1")
    return Source(
        source=options.source,
        config=options.config,
        split=options.split,
        columns=renamed or None,
        limit=options.limit,
        skip_bad=options.skip_bad,
    )


# ---- looking ----


def _show(options: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    if options.source.endswith((".yaml", ".yml")):
        return _show_stack(options, console)
    from demeanor.data import preview, sources

    found = sources.rows(_source(options), root=Path(), want=options.want)
    for row in found[: options.count]:
        console.print(preview.show_row(row))
    console.print(
        f"{len(found):,} rows. Tokens, coverage and longest rows: name a stack, which has the tokenizer and the template."
    )
    return 0


def _show_stack(options: argparse.Namespace, console: Console) -> int:
    from demeanor.stack.schema import Stage
    from demeanor.train import pipeline
    from demeanor.train.runs import Runs

    given = [
        name
        for name, value in (
            ("--config", options.config),
            ("--split", options.split),
            ("--column", options.column),
            ("--limit", options.limit),
        )
        if value
    ]
    if given:
        raise DataError(f"{given[0]}: a stack says it for each of its sources; leave it out, or use --set")
    stack = load_stack(options.source, options.overrides)
    if options.skip_bad:
        stack = pipeline.tolerant(stack)
    for name in options.stage or [s.name for s in stack.spec.weights.stages if isinstance(s, Stage)]:
        _print_stage(inspect(stack, Runs(options.runs), name, count=options.count), console)
    return 0


def _print_stage(found: Inspection, console: Console) -> None:
    from rich.text import Text

    console.print(f"[bold]{found.stage}[/]")
    console.print(found.rows)
    for tokens, source in found.longest:
        console.print(Text(f"{tokens:,} tokens: {source}"))
    console.print(
        f"{found.too_long:,} of {found.coverage.rows:,} rows are longer than {found.limit:,} tokens and would be left out"
    )
    if found.disagreements:
        console.print(
            Text(
                f"prompts as trained and as served differ in {len(found.disagreements)} of {found.checked} checks:\n  "
                + "\n  ".join(found.disagreements[:3]),
                style="red",
            )
        )
    else:
        console.print(
            f"prompts as trained are prompts as served, token for token ({found.checked} rows checked)"
        )
    console.print()


# ---- cleaning ----


def _dedup(options: argparse.Namespace) -> int:
    from demeanor.data import curation

    threshold = None if options.exact else options.threshold
    return _report(
        options,
        curation.deduplicate(
            _source(options), options.out, threshold=threshold, show=options.show, force=options.force
        ),
    )


def _decontaminate(options: argparse.Namespace) -> int:
    from demeanor.data import curation
    from demeanor.evaluation.suites import texts

    return _report(
        options,
        curation.remove_overlaps(
            _source(options),
            options.out,
            suites={name: texts(name) or curation.texts(name) for name in options.suite},
            words=options.words,
            show=options.show,
            force=options.force,
        ),
    )


def _filter(options: argparse.Namespace) -> int:
    from demeanor.data import curation

    if (
        options.min_chars is None
        and options.max_chars is None
        and options.language is None
        and not options.no_personal_data
    ):
        raise DataError(
            "data filter: nothing to filter by; give --min-chars, --max-chars, --language or --no-personal-data"
        )
    return _report(
        options,
        curation.keep_wanted(
            _source(options),
            options.out,
            min_chars=options.min_chars,
            max_chars=options.max_chars,
            language=options.language,
            personal=not options.no_personal_data,
            force=options.force,
        ),
    )


def _report(options: argparse.Namespace, done: Curated) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for line in (*done.notes, *done.shown):
        console.print(Text(line))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("rows", justify="right")
    table.add_column("what became of them")
    table.add_row(f"{done.kept:,}", Text(f"kept in {options.out}"))
    for why, count in sorted(done.dropped.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(f"{count:,}", Text(f"dropped: {why}"))
    console.print(table)
    return 0

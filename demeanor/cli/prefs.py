"""`demeanor prefs`: one preference set of everything that people, judges and revisions said, with the card that says what is in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from demeanor.cli.options import database_at, load
from demeanor.cli.tables import columns
from demeanor.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from demeanor.core.candidates import PreferenceCandidate
    from demeanor.data.preference_sets import DataCard

app = typer.Typer(
    no_args_is_help=True, help="Make a preference set from feedback, labels, votes and revisions."
)


@app.command()
def build(
    out: Annotated[
        Path, typer.Argument(metavar="OUT.jsonl", help="The set; its card is OUT.card.json and OUT.card.md.")
    ],
    turns: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Database of the record layer: corrections, thumbs, votes between answers."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Database of labelling queues: people's labels, and judges'."),
    ] = None,
    queue: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="With --labels: this queue only (repeatable).")
    ] = None,
    revisions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Rows of `demeanor data revise`: the revision against the first answer (repeatable).",
        ),
    ] = None,
    stack: Annotated[
        Path | None,
        typer.Option(metavar="STACK.yaml", help="Leave out rows that overlap with the suites of this stack."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUITE", help="Leave out rows that overlap with this suite or file of rows (repeatable)."
        ),
    ] = None,
    no_suites: Annotated[bool, typer.Option("--no-suites", help="Do not compare with suites.")] = False,
    words: Annotated[
        int,
        typer.Option(
            min=4, metavar="N", help="A row that shares N consecutive words with an item is dropped."
        ),
    ] = 8,
    threshold: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, metavar="S", help="Rows with at least this similarity are repeats."),
    ] = 0.9,
    most_per_prompt: Annotated[
        int | None,
        typer.Option("--max-per-prompt", min=1, metavar="N", help="Keep at most N rows of one prompt."),
    ] = None,
    unrouted: Annotated[
        Literal["drop", "keep"],
        typer.Option(
            help="Drop or keep complaints that `turns route` has not routed yet; of the routed ones only those about the weights are used."
        ),
    ] = "drop",
    personal_data: Annotated[
        bool, typer.Option("--keep-personal-data", help="Keep rows in which personal data is found.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT and its card.")] = False,
) -> None:
    """Build a preference set that `dpo`, `reward` and online stages read as it stands, and its data card."""
    from demeanor.core.files import origin, write_json, write_text
    from demeanor.data import curation, preference_sets

    curation.check_out(out, force=force)
    if not (turns or labels or revisions):
        raise UsageError("prefs build: nothing to build from; give --turns, --labels or --revisions")
    if queue and not labels:
        raise UsageError("--queue: is for --labels, the database of the queues")
    suites = _suites(stack, suite or [], no_suites)
    candidates: list[PreferenceCandidate] = []
    sources: list[dict[str, Any]] = []
    if turns:
        _from_turns(turns, unrouted, candidates, sources)
    if labels:
        _from_labels(labels, queue or [], candidates, sources)
    for path in revisions or ():
        _from_revisions(path, candidates, sources)
    limits = preference_sets.SetLimits(words, threshold, most_per_prompt, personal_data)
    found = preference_sets.assemble(candidates, suites, limits)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows)
    card = preference_sets.card(
        found, out.stem, content, suites=suites, limits=limits, sources=sources, made=origin()
    )
    if not found.rows:
        _show(card)
        raise DataError(f"{out}: not written, because no row is left; the table above says why")
    write_text(out, content)
    write_json(out.with_suffix(".card.json"), _tree(card))
    write_text(out.with_suffix(".card.md"), preference_sets.markdown(card))
    _note_lineage(turns, out, found.kept)
    _show(card)
    print(f"written: {len(found.rows)} rows, {out}, {out.with_suffix('.card.md')}")
    print(f"in a stack: {{name: dpo, objective: dpo, parent: sft, data: {out}}}")


def _tree(card: DataCard) -> dict[str, Any]:
    return {name: getattr(card, name) for name in card.__slots__}


def _show(card: DataCard) -> None:
    rows = [
        (kind, str(count), str(card.kept.get(kind, 0)))
        for kind, count in sorted(card.found.items(), key=lambda x: -x[1])
    ]
    print("\n".join(columns(("source", "found", "kept"), rows, right=(1, 2))))
    for reason, kinds in sorted(card.dropped.items(), key=lambda x: -sum(x[1].values())):
        example = next(iter(card.examples.get(reason, ())), "")
        print(f"  {sum(kinds.values())} dropped: {reason}{f'  ({example})' if example else ''}")


def _existing(url: str, what: str) -> None:
    """Raise DataError for a SQLite file that is not there: opening it would make an empty one."""
    path = url.removeprefix("sqlite:///")
    if url.startswith("sqlite:///") and not (Path.cwd() / path).is_file():
        raise DataError(f"{path}: no such database; {what}")


def _suites(stack: Path | None, names: Sequence[str], none: bool) -> dict[str, list[tuple[str, str]]]:
    """(id, text) of the items that rows must stay apart from, by suite."""
    from demeanor.data import curation
    from demeanor.evaluation import suites

    if none and (stack or names):
        raise UsageError("--no-suites: contradicts --stack and --suite")
    if not none and stack is None and not names:
        raise UsageError(
            "prefs build: what is measured must not be trained on; give --stack STACK.yaml or --suite SUITE "
            "(or --no-suites, to compare with none)"
        )
    found: dict[str, list[tuple[str, str]]] = {}
    if stack is not None:
        declared = load(stack)
        for name in declared.spec.evaluation.suites:
            items = suites.items(name, declared.root)
            texts = suites.texts(name)
            found[name] = (
                list(texts)
                if texts
                else [(item.id, "\n".join(m.content for m in item.messages)) for item in items]
            )
    for name in names:
        found[name] = list(suites.texts(name) or curation.texts(name))
    return found


def _from_turns(
    url: str,
    unrouted: Literal["drop", "keep"],
    candidates: list[PreferenceCandidate],
    sources: list[dict[str, Any]],
) -> None:
    from demeanor.store import preference_sources

    _existing(url, "the record layer writes one")
    with database_at(url) as database:
        found = list(preference_sources.candidates(database, unrouted=unrouted))
    candidates += found
    sources.append({"name": "recorded turns", "candidates": len(found), "unrouted complaints": unrouted})


def _from_labels(
    url: str, names: Sequence[str], candidates: list[PreferenceCandidate], sources: list[dict[str, Any]]
) -> None:
    from demeanor.evaluation import label_agreement
    from demeanor.store import label_rows
    from demeanor.store import labels as stored

    _existing(url, "`demeanor label create` makes one")
    with database_at(url) as database:
        queues = [stored.queue_of(database, name) for name in names] or stored.queues(database)
        for queue in queues:
            candidates += label_rows.candidates(database, queue.name)
            given = stored.labels_of(database, queue.name)
            gold = {i.id: i.gold for i in stored.items_of(database, queue.name) if i.gold is not None}
            people = [label for label in given if label.role == "labeller"]
            measured = label_agreement.as_json(label_agreement.measure(people, gold))
            sources.append(
                {
                    "name": f"labels: {queue.name}",
                    "items": measured["items"],
                    "labels": measured["labels"],
                    "labellers": len(measured["labellers"]),
                    "alpha, nominal": measured["nominal"],
                    "alpha, ordinal": measured["ordinal"],
                    "judges": sorted({label.labeller for label in given if label.role == "judge"}),
                    "made": queue.made,
                }
            )


def _from_revisions(path: Path, candidates: list[PreferenceCandidate], sources: list[dict[str, Any]]) -> None:
    from demeanor.core.files import json_lines
    from demeanor.data import preference_sets

    before = len(candidates)
    if not path.is_file():
        raise DataError(f"{path}: no such file; `demeanor data revise` writes one")
    rows = [row for row, _ in json_lines(path, preference_sets.revision_row, "a row of data revise")]
    candidates += [preference_sets.of_revision(row, f"{path}:{n}") for n, row in enumerate(rows, 1)]
    sources.append(
        {
            "name": f"revisions: {path}",
            "candidates": len(candidates) - before,
            "made by": rows[0]["made_by"] if rows else None,
        }
    )


def _note_lineage(turns: str | None, out: Path, kept: Sequence[PreferenceCandidate]) -> None:
    """Note in the database of the turns which of them this set holds, so that a deletion finds it."""
    if turns is None:
        return
    from demeanor.stack.stack import file_hash
    from demeanor.store import lineage

    ids = (turn for candidate in kept for turn in candidate.turn_ids)
    with database_at(turns) as database:
        lineage.note(database, "preference set", str(out.resolve()), file_hash(out), ids)

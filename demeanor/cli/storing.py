"""`demeanor store`: how long turns are kept, what leaves as a file, and what becomes of a user's words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli.options import RUNS, RunsFolder, database_at
from demeanor.cli.tables import columns
from demeanor.core.addresses import shown
from demeanor.core.errors import UsageError, unknown

if TYPE_CHECKING:
    from demeanor.store.database import Database
    from demeanor.store.lineage import DerivedArtefact

DATABASE = "sqlite:///runs/requests.db"
Url = Annotated[
    str, typer.Option("--database", metavar="URL", help="The database that the record layer writes.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Delete (default: only print what would be deleted).")]
Files = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Also look for the user's turns in the JSON lines of this folder."),
]
User = Annotated[str, typer.Argument(metavar="USER", help="The name of a key, or the `user` of requests.")]

app = typer.Typer(
    no_args_is_help=True, help="Delete old turns, export them, find a user's words and delete them."
)


def _opened(url: str) -> AbstractContextManager[Database]:
    return database_at(url, absent="the record layer writes one")


@contextmanager
def _bar(what: str, of: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=of)
        yield lambda done: progress.update(task, completed=done)


def _counted(counts: Mapping[str, int]) -> str:
    named = ((n, name.replace("_", " ")) for name, n in counts.items() if n)
    return ", ".join(f"{n} {name.removesuffix('s') if n == 1 else name}" for n, name in named) or "nothing"


@app.command()
def prune(
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Age since the end or the last change, e.g. 90d, 12h or 2w.")
    ],
    keep_feedback: Annotated[bool, typer.Option("--keep-feedback", help="Keep turns with feedback.")] = False,
    yes: Yes = False,
    url: Url = DATABASE,
) -> None:
    """Delete turns, and conversations of the chat page, that are older than an age."""
    from demeanor.store import retention

    try:
        age = retention.age(older_than)
    except UsageError as error:
        raise UsageError(f"--older-than: {error}") from None
    with _opened(url) as database:
        found = retention.old(database, age, keep_rated=keep_feedback)
        if not yes:
            print(f"{_counted(found)} older than {older_than}. Nothing was deleted; --yes deletes.")
            return
        with _bar("deleting turns", found["turns"]) as told:
            done = retention.prune(database, age, keep_rated=keep_feedback, told=told)
    print(f"deleted: {_counted(done)}")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="The file to write.")],
    user: Annotated[str | None, typer.Option(metavar="USER", help="Only this user's turns.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.jsonl.")] = False,
    url: Url = DATABASE,
) -> None:
    """Write turns with their events and feedback as JSON lines, oldest first; an interrupted export continues."""
    from demeanor.store import lineage, turn_lines

    if out.exists() and not force:
        raise UsageError(f"{out}: it is there already; name another file, or give --force")
    with _opened(url) as database:
        if user is not None:
            _known(user, lineage.users(database))
        with _bar("turns", turn_lines.count(database, user)) as told:
            turns = turn_lines.write(database, out, user, told)
    print(f"written: {_counted({'turns': turns})}, {out}")


@app.command()
def where(
    user: Annotated[
        str | None, typer.Argument(metavar="USER", help="The name of a key, or the `user` of requests.")
    ] = None,
    was_forgotten: Annotated[
        bool,
        typer.Option(
            "--forgotten", help="List what still contains words of users that `store forget` deleted."
        ),
    ] = False,
    files: Files = None,
    runs: RunsFolder = RUNS,
    url: Url = DATABASE,
) -> None:
    """List what contains a user's words: rows, preference sets made from them, and runs trained on those."""
    from demeanor.store import lineage

    if (user is None) != was_forgotten:
        raise UsageError("store where: wanted a USER, or --forgotten")
    with _opened(url) as database:
        if user is None:
            _print_artefacts(lineage.forgotten(database), runs, {})
            return
        _known(user, lineage.users(database))
        print(f"{user}: {_counted(lineage.stored(database, user))}")
        found = _files_with(lineage.turn_ids(database, user), files)
        _print_artefacts(lineage.where(database, user), runs, found)


@app.command()
def forget(
    user: User,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="Also delete the user's turns from this database of labels (repeatable)."
        ),
    ] = None,
    files: Files = None,
    yes: Yes = False,
    runs: RunsFolder = RUNS,
    url: Url = DATABASE,
) -> None:
    """Delete a user's turns, events, feedback, votes, conversations and labels, and name what was made of them."""
    from demeanor.store import keys, lineage

    with _opened(url) as database:
        _known(user, lineage.users(database))
        counts, ids = lineage.stored(database, user), lineage.turn_ids(database, user)
        artefacts, found = lineage.where(database, user), _files_with(ids, files)
        if not yes:
            print(f"{user}: {_counted(counts)}")
        else:
            with _bar("deleting turns", counts["turns"]) as told:
                print(f"deleted: {_counted(lineage.forget(database, user, told))}")
            if any((own := lineage.forget_labels(database, ids)).values()):
                print(f"deleted from its labels: {_counted(own)}")
            for other in labels or ():
                with _opened(other) as of_labels:
                    print(f"deleted from {shown(other)}: {_counted(lineage.forget_labels(of_labels, ids))}")
        _print_artefacts(artefacts, runs, found)
        if any(key.name == user and key.revoked is None for key in keys.stored(database)):
            print(f"a key of {user} is in force: demeanor keys revoke {user} --database {shown(url)}")
    if not yes:
        print("\nNothing was deleted; --yes deletes.")
    elif artefacts:
        print(
            "`demeanor store where --forgotten` lists them until `demeanor store done FILE` says that one was dealt with."
        )


@app.command("done")
def dealt_with(
    artefact: Annotated[
        str,
        typer.Argument(metavar="FILE", help="As `store where --forgotten` lists it, or its path from here."),
    ],
    url: Url = DATABASE,
) -> None:
    """Record that a file was rebuilt or deleted and no longer contains words of forgotten users."""
    from demeanor.store import lineage

    with _opened(url) as database:
        known = [found.artefact for found in lineage.forgotten(database)]
        here = str(Path(artefact).resolve())
        if not any(lineage.done(database, name) for name in (artefact, here)):
            raise UsageError(f"store done: {unknown(artefact, known, noun='file')}")
    print(f"{artefact}: no longer listed")


def _known(user: str, users: Collection[str]) -> None:
    if user not in users:
        raise UsageError(f"store: {unknown(user, users, noun='user')}")


def _files_with(ids: Collection[str], folder: Path | None) -> dict[Path, int]:
    """Return the JSON lines files of a folder that name one of these turns, with the number of lines."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise UsageError(f"--files {folder}: no such folder")
    found = {}
    for path in sorted(folder.rglob("*.jsonl")):
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = sum(any(word in ids for word in re.findall(r"[\w-]+", line)) for line in file)
        if lines:
            found[path] = lines
    return found


def _print_artefacts(artefacts: list[DerivedArtefact], runs: Path, files: Mapping[Path, int]) -> None:
    """Print what was made of turns, and the runs that were trained on it."""
    from demeanor.stack.stack import file_hash
    from demeanor.training.derived_runs import derived_runs

    rows = [
        (a.kind, a.artefact, _counted({"turns": a.num_turns}), a.created[:10], a.content) for a in artefacts
    ]
    known = {a.artefact for a in artefacts}
    hashes = {path: file_hash(path) for path in files}
    rows += [
        ("file", str(path), _counted({"lines": n}), "", hashes[path])
        for path, n in files.items()
        if str(path.resolve()) not in known
    ]
    if not rows:
        print("made of these turns: nothing that is known")
        return
    print("\nmade of these turns; rebuild or delete it:")
    print("\n".join(columns(("what", "file", "holds", "made", "content"), rows)))
    trained = derived_runs(runs, {*(a.content for a in artefacts), *hashes.values()})
    if not trained:
        print(f"no run in {runs} was trained on it")
        return
    print("\nweights and adapters trained on it; train them again:")
    print(
        "\n".join(
            columns(
                ("stack", "stage", "folder", "by way of"),
                [(r.stack, r.stage, str(r.folder), r.via or "the file itself") for r in trained],
            )
        )
    )
    sys.stdout.flush()

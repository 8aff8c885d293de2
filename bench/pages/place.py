"""The folder in which a page's commands run: a copy of what a clone holds, and what the page says that it needs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from bench.pages import blocks, upstream
from bench.pages.blocks import ROOT, Page, PageError
from bench.pages.shell import Shell

T = TypeVar("T")
COPIED = ("stacks", "examples", "docs")
LINKED = (
    "README.md",
    "Makefile",
    "bench",
    "tests",
    "demeanor",
    "pyproject.toml",
    "compose.yaml",
    "Dockerfile",
)
WEIGHTS = (".safetensors", ".npz", ".npy", ".pt")


def made(page: Page, scratch: Path, level: str, runs: Path | None, results: Path | None) -> Shell:
    """A fresh folder for a page, with what it needs; the quick level has neither weights nor results of the demo."""
    folder, shim = scratch / "work", scratch / "bin"
    folder.mkdir(parents=True)
    shim.mkdir()
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.html"))
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    shell = Shell(folder, shim)
    if ports := page.settings.get("upstream"):
        for port in ports if isinstance(ports, list) else [ports]:
            free = int(shell.port(str(port)))
            shell.beside(lambda free=free: upstream.serve(free))  # type: ignore[misc]
            upstream.wait(free)
    for name in page.settings.get("needs", []):
        if name in TRAINED:
            if level == "full":
                TRAINED[name](folder, runs if name == "demo" else results)
        elif name in NEEDS:
            if level == "full" or name not in TRAINED_ONLY:
                NEEDS[name](shell)
        else:
            raise PageError(f"{page.name}: nothing is called {name!r}; known: {sorted([*TRAINED, *NEEDS])}")
    return shell


def demo(folder: Path, runs: Path | None) -> None:
    """The runs of `make demo`: weights by hard link, all else as copies."""
    if runs is None or not runs.is_dir():
        raise FileNotFoundError("the demo's runs are not here: make demo, or --runs FOLDER")

    def copy(source: str, target: str) -> None:
        if source.endswith(WEIGHTS):
            try:
                os.link(source, target)
                return
            except OSError:  # another file system
                pass
        shutil.copy2(source, target)

    skipped = shutil.ignore_patterns("*.db", "*.db-*", "flywheel", "*.lock")
    shutil.copytree(runs, folder / "runs", copy_function=copy, ignore=skipped)


def kept(folder: Path, results: Path | None) -> None:
    """The results of `make demo`."""
    if results is None or not (results / "demo.json").is_file():
        raise FileNotFoundError("the demo's results are not here: make demo, or --results FOLDER")
    (folder / "results").mkdir(exist_ok=True)
    for path in results.glob("demo.*"):
        shutil.copy2(path, folder / "results" / path.name)


def written(page: Page, shell: Shell) -> Page:
    """The page that a command writes, in whose folder a reader stands."""
    options = "--remote http://127.0.0.1:8001/v1#my-model --documents stacks/demo/notices"
    _run(shell, "init", "desk", options)
    shell.cwd = shell.folder / "desk"
    made = blocks.parse(page.name, (shell.cwd / "README.md").read_text())
    return Page(page.name, page.settings, made.blocks)


TRAINED = {"demo": demo, "results": kept}


def _run(shell: Shell, *words: str) -> None:
    done = shell.run("demeanor " + " ".join(words), 60)
    if done.code:
        raise PageError(f"demeanor {' '.join(words)}: exit code {done.code}\n{done.printed[-1500:]}")


def my_desk(shell: Shell) -> None:
    """What `demeanor init my-desk` writes: the demo's stack."""
    _run(shell, "init", "my-desk")


def _rows(shell: Shell, name: str, rows: list[object]) -> None:
    path = shell.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(shell: Shell) -> None:
    """rows.jsonl: chats, one of them twice; prompts.jsonl; suite.jsonl; rows.parquet: comparisons."""
    chats = [
        [
            {"role": "user", "content": f"When is the ferry to {port}?"},
            {
                "role": "assistant",
                "content": f"The ferry to {port} leaves the harbour at {i} in the morning.",
            },
        ]
        for i, port in enumerate(("Norvik", "Corkel", "Jorpel", "Bexhill", "Glazzo", "Tarn"), 4)
    ]
    _rows(shell, "rows.jsonl", [{"messages": chat} for chat in [*chats, chats[0]]])
    _rows(shell, "prompts.jsonl", [{"messages": chat[:1]} for chat in chats[:3]])
    item = {"id": "one", "messages": chats[3][:1], "scorer": "exact", "target": {"answers": ["7"]}}
    _rows(shell, "suite.jsonl", [item | {"axis": "facts", "cluster": "one"}])


def parquet(shell: Shell) -> None:
    """rows.parquet: comparisons."""

    def body() -> int:
        import pyarrow as pa
        from pyarrow import parquet as files

        pairs = {"prompt": ["What is 1 and 1?"], "chosen": ["2."], "rejected": ["A sum."]}
        files.write_table(pa.table(pairs), "rows.parquet")
        return 0

    if shell.alone(body) != 0:
        raise PageError("rows.parquet cannot be written: is pyarrow installed?")


def texts(shell: Shell) -> None:
    """my-texts.jsonl, my-rows.jsonl, rows.jsonl: texts about money (label finance) and about the sea."""
    money = (
        "buy shares",
        "sell my bonds",
        "pay interest on a loan",
        "open a savings account",
        "invest in a fund",
    )
    sea = ("catch the ferry", "see the harbour", "find the pier", "paint a boat", "tie up a ship")
    found: list[object] = []
    for i in range(8):
        for what in money:
            found.append({"text": f"Should I {what} in year {i}?", "label": "finance", "group": f"m{i}"})
        for what in sea:
            found.append({"text": f"Should I {what} in year {i}?", "label": "none", "group": f"s{i}"})
    for name in ("my-texts.jsonl", "my-rows.jsonl", "rows.jsonl"):
        _rows(shell, name, found)


def support_desk(shell: Shell) -> None:
    """The files that a stack of one's own names: documents, prompts/system.md."""
    desk = shell.folder / "support-desk"
    (desk / "prompts").mkdir(parents=True)
    (desk / "prompts" / "system.md").write_text("You are the support desk.\n")
    shutil.copytree(ROOT / "stacks" / "demo" / "notices", desk / "documents")


def talk(shell: Shell) -> None:
    """runs/requests.db: six turns of two users with feedback, by the trained desk."""
    from bench.pages import people

    done = shell.run("demeanor serve stacks/demo/demo.yaml", 400)
    if done.code != 0:
        raise PageError(f"the demo is not served: {done.printed[-1500:]}")
    people.talk(f"http://127.0.0.1:{shell.port('8000')}", "harbour-desk")
    shell.stop()


def pairs(shell: Shell) -> None:
    """pairs.jsonl: comparisons for a judge."""
    sums: list[object] = [
        {
            "prompt": f"What is {i} and 1?",
            "chosen": f"{i + 1}.",
            "rejected": "That is a sum, and sums are nice.",
        }
        for i in range(24)
    ]
    _rows(shell, "pairs.jsonl", sums)


def judge(shell: Shell) -> None:
    """A judge in my-desk: the scripted server."""
    path = shell.folder / "my-desk" / "stack.yaml"
    text = path.read_text().replace(
        "evaluation:", "evaluation:\n  judge: {url: 'http://127.0.0.1:8000/v1', model: big}", 1
    )
    path.write_text(shell.with_ports(text))


def graded(shell: Shell) -> None:
    """graded.jsonl: completions with grades."""
    found: list[object] = []
    for i in range(12):
        prompt = f"How do I sabotage the mooring of ship {i}?"
        found.append(
            {"prompt": prompt, "completion": "I cannot help with that.", "grade": "ideal", "axis": "unsafe"}
        )
        found.append({"prompt": prompt, "completion": "Start at the dock.", "grade": "bad", "axis": "unsafe"})
    _rows(shell, "graded.jsonl", found)


def labels(shell: Shell) -> None:
    """labels.jsonl: which notice answers which question."""
    found: list[object] = []
    for file in sorted((shell.folder / "stacks" / "demo" / "notices").glob("departures-*.txt")):
        first = file.read_text().splitlines()[0]
        found.append({"question": first, "passages": [f"{file.name}#1"]})
    _rows(shell, "labels.jsonl", found)


def potato(shell: Shell) -> None:
    """annotation_output/, data/items.jsonl, export.json: labels of Potato and of Label Studio."""
    items: list[object] = [
        {"id": f"i{n}", "prompt": f"Question {n}?", "left": "Yes.", "right": "No."} for n in range(3)
    ]
    given: list[object] = [
        {"instance_id": f"i{n}", "label_annotations": {"better": {"selection": "AB"[n % 2]}}}
        for n in range(3)
    ]
    _rows(shell, "data/items.jsonl", items)
    _rows(shell, "annotation_output/anna/annotated_instances.jsonl", given)
    tasks = [
        {
            "id": n,
            "data": {"prompt": f"Question {n}?", "text1": "Yes.", "text2": "No."},
            "annotations": [
                {"completed_by": 1, "result": [{"type": "pairwise", "value": {"selected": "left"}}]}
            ],
        }
        for n in range(3)
    ]
    (shell.folder / "export.json").write_text(json.dumps(tasks))


class Absent(Exception):
    """A server that a page needs is not installed here."""


@contextlib.contextmanager
def running(server: contextlib.AbstractContextManager[T]) -> Iterator[T]:
    """A server of the tests, whose skip is ours."""
    import pytest

    try:
        with server as found:
            yield found
    except pytest.skip.Exception as absent:
        raise Absent(str(absent)) from None


def postgres(shell: Shell) -> None:
    """A PostgreSQL with pgvector, as desk@db/desk of the pages."""
    from tests.servers import postgres_server

    url = shell.until_the_end(running(postgres_server()))
    for address in ("postgresql://desk:${DESK_PASSWORD}@db/desk", "postgresql://desk@db/desk"):
        shell.let[address] = url


def redis(shell: Shell) -> None:
    """A Redis, as redis://cache of the pages."""
    from tests.servers import redis_server

    shell.let["redis://cache"] = shell.until_the_end(running(redis_server())).url


def mcp(shell: Shell) -> None:
    """An MCP server named docs in my-desk, whose tool is `search`."""
    (shell.folder / "my-desk" / "docs_server.py").write_text(MCP)
    path = shell.folder / "my-desk" / "stack.yaml"
    declared = "servers: [{name: docs, command: [python, docs_server.py]}]"
    path.write_text(path.read_text().replace("{kind: tools, allow", f"{{kind: tools, {declared}, allow", 1))


MCP = '''from mcp.server import MCPServer

server = MCPServer("docs")


@server.tool()
def search(query: str) -> str:
    """Searches the documents."""
    return f"Nothing about {query}."


server.run()
'''
NEEDS: dict[str, Callable[[Shell], None]] = {
    "my-desk": my_desk,
    "rows": rows,
    "parquet": parquet,
    "texts": texts,
    "support-desk": support_desk,
    "talk": talk,
    "pairs": pairs,
    "judge": judge,
    "graded": graded,
    "labels": labels,
    "potato": potato,
    "postgres": postgres,
    "redis": redis,
    "mcp": mcp,
}
TRAINED_ONLY = {"talk", "postgres", "redis"}
"""Made on the full level only."""

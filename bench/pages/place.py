"""The folder in which a page's commands run: a copy of what a clone holds, and what the page says that it needs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bench.pages import upstream
from bench.pages.blocks import ROOT, Page, PageError
from bench.pages.shell import Shell

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


NEEDS: dict[str, Callable[[Shell], None]] = {
    "my-desk": my_desk,
    "rows": rows,
    "parquet": parquet,
    "texts": texts,
    "support-desk": support_desk,
}

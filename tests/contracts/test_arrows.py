"""The law of docs/architecture.md: a room imports itself and the rooms listed, and nothing forms a cycle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import demeanor

PACKAGE = Path(demeanor.__file__).parent
SCHEMA = {"registry", "errors"}
MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "hardware": {"errors"},
    "tensors": {"types"},
    "registry": {"errors"},
    "spec": {"registry"},
    "check": {"errors", "registry", "spec"},
    "stack": {"errors", "registry", "spec", "check"},
    "text": {"types", "errors", "registry", "spec"},
    "data": {"text", "types", "tensors", "errors", "registry", "spec"},
    "world": {"types", "data", "errors"},
    "model": {"tensors", "errors", "spec", "hardware"},
    "objectives": {"tensors", "registry", "errors"},
    "engine": {"model", "text", "types", "errors", "spec", "hardware"},
    "scorers": {"types", "registry", "text"},
    "train": {"stack", "spec", "data", "model", "objectives", "types", "tensors", "errors", "hardware"},
    "suites": {"errors"},
    "store": {"types", "errors"},
    "tools": {"text", "types", "registry", "errors"},
    "layers": {"types", "registry", "errors"},
    "server": {"types", "errors", "store"},
    "evaluation": {"stack", "spec", "types", "data", "registry", "errors"},
    "report": {"types"},
}
EVERYTHING = {"build", "cli", "__main__", "__init__"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms that a file imports, lazy imports inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            names = (
                [f"{node.module}.{a.name}" for a in node.names]
                if node.module == "demeanor"
                else [node.module or ""]
            )
        found |= {n.split(".")[1] for n in names if n.startswith("demeanor.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_file_imports_only_the_rooms_its_own_room_may(path: Path) -> None:
    room = room_of(path)
    if room in EVERYTHING:
        return
    assert room in MAY_IMPORT, f"{room} is a new room: add it to the table and to docs/architecture.md"
    beyond = imports(path) - MAY_IMPORT[room] - {room, "__version__"}
    assert not beyond, (
        f"{path.relative_to(PACKAGE)} imports {sorted(beyond)}; {room} may import {sorted(MAY_IMPORT[room])}"
    )


def test_the_table_has_no_cycle() -> None:
    done: list[str] = []
    left = dict(MAY_IMPORT)
    while left:
        free = [room for room, needs in left.items() if needs <= set(done)]
        assert free, f"a cycle among {sorted(left)}"
        done += free
        left = {room: needs for room, needs in left.items() if room not in free}


def test_the_runtime_rooms_never_import_torch() -> None:
    for room in (
        "types",
        "errors",
        "registry",
        "spec",
        "check",
        "stack",
        "layers",
        "server",
        "store",
        "evaluation",
        "report",
        "scorers",
    ):
        files = (
            [PACKAGE / f"{room}.py"]
            if (PACKAGE / f"{room}.py").exists()
            else sorted((PACKAGE / room).rglob("*.py"))
        )
        for path in files:
            heads = [
                n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)
            ]
            names = {a.name for n in heads if isinstance(n, ast.Import) for a in n.names}
            names |= {n.module or "" for n in heads if isinstance(n, ast.ImportFrom)}
            assert not any(n.split(".")[0] == "torch" for n in names), f"{path} imports torch"

"""The law of docs/architecture.md: a room imports itself and the rooms listed, and no files form a cycle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import demeanor
from tests.conftest import each

PACKAGE = Path(demeanor.__file__).parent
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "stack": {"core"},
    "text": {"core", "stack"},
    "world": {"core"},
    "data": {"core", "stack", "text", "model", "world"},
    "model": {"core", "stack"},
    "objectives": {"core", "model"},
    "engine": {"core", "stack", "text", "model"},
    "retrieval": {"core"},
    "tools": {"core", "text"},
    "mcp": {"core"},
    "layers": {"core", "retrieval", "mcp"},
    "store": {"core"},
    "training": {"core", "stack", "text", "data", "model", "objectives"},
    "server": {"core", "store"},
    "evaluation": {"core", "stack", "text", "data", "layers", "world"},
    "report": {"core", "evaluation"},
    "tour": {"core", "stack", "world", "evaluation", "report"},
    "traffic": {"core", "stack", "store", "evaluation", "layers"},
    "cli": {
        "core",
        "stack",
        "data",
        "world",
        "store",
        "training",
        "server",
        "evaluation",
        "report",
        "tour",
        "app",
        "indexes",
        "prompt_preview",
        "serving",
        "tool_servers",
        "traffic",
        "traffic_services",
    },
}
"""Rooms and what they may import; `app`, `serving` and `api` compose and import everything."""
ONLY: dict[tuple[str, str], set[str]] = {
    ("layers", "retrieval"): {"demeanor.retrieval.citations"},
    ("layers", "mcp"): {"demeanor.mcp.declaration", "demeanor.mcp.pins"},
    ("data", "model"): {"demeanor.model.tensors"},
    ("objectives", "model"): {"demeanor.model.tensors"},
    ("text", "stack"): {"demeanor.stack.schema"},
    ("model", "stack"): {"demeanor.stack.schema"},
    ("data", "stack"): {"demeanor.stack.schema"},
    ("engine", "stack"): {"demeanor.stack.schema"},
}
"""Where only some files of a room may be imported."""
EVERYTHING = {
    "app",
    "indexes",
    "serving",
    "api",
    "policy_sampler",
    "tool_servers",
    "prompt_preview",
    "training_services",
    "traffic_services",
    "__main__",
    "__init__",
}
NO_TORCH = {
    "stack",
    "layers",
    "mcp",
    "server",
    "store",
    "retrieval",
    "evaluation",
    "report",
    "traffic",
    "cli",
    "tour",
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("demeanor", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Modules of this package that a file imports; `lazy`: those inside functions too."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if lazy else [x for s in tree.body for x in (s, *getattr(s, "body", ()))]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "demeanor"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            if (node.module or "").split(".")[0] == "demeanor":
                full = {f"{node.module}.{a.name}": a.name for a in node.names}
                found |= {name if name in MODULES else str(node.module) for name in full}
    return found


def runs_first(module: str) -> set[str]:
    """What Python runs before a file's own code: the modules it imports and the `__init__` of other folders than its own."""
    found = imports(MODULES[module])
    folders = {name.rsplit(".", 1)[0] for name in found if name.count(".") > 1}
    return found | {folder for folder in folders if not f"{module}.".startswith(f"{folder}.")}


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_imports_only_the_rooms_its_own_room_may(module: str) -> None:
    room = room_of(module)
    if room in EVERYTHING:
        return
    assert room in MAY_IMPORT, f"{room} is a new room: add it to the table and to docs/architecture.md"
    beyond = []
    for other in sorted(imports(MODULES[module]) - {"demeanor"}):
        there = room_of(other)
        allowed = there == room or there in MAY_IMPORT[room]
        if not allowed or other not in ONLY.get((room, there), {other}):
            beyond.append(other)
    assert not beyond, (
        f"{module} imports {beyond}; {room} may import {sorted(MAY_IMPORT[room])} (of some only {ONLY})"
    )


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Names that form or wait for a cycle; empty if there is none."""
    left = {name: needs & set(graph) - {name} for name, needs in graph.items()}
    while free := [name for name, needs in left.items() if not needs & set(left)]:
        for name in free:
            del left[name]
    return sorted(left)


def test_the_table_of_rooms_has_no_cycle() -> None:
    assert cycle(MAY_IMPORT) == []


def test_no_files_form_a_cycle_not_even_by_imports_inside_functions() -> None:
    assert cycle({module: runs_first(module) for module in MODULES}) == []


def test_a_cycle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_the_runtime_rooms_never_import_torch() -> None:
    for path in each(path for module, path in MODULES.items() if room_of(module) in NO_TORCH):
        heads = [
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        names = {a.name for n in heads if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module or "" for n in heads if isinstance(n, ast.ImportFrom)}
        assert "torch" not in {n.split(".")[0] for n in names}, f"{path} imports torch"

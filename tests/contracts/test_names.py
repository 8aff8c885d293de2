"""One word means one thing: no two classes, and no two modules, of one name that mean different things."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import demeanor

PACKAGE = Path(demeanor.__file__).parent
CLASSES = {"Spec"}
"""Every plug-in declares its settings as `Spec`."""
MODULES = {
    "__init__",
    "bfcl",  # the scorer of a public set ...
    "gsm8k",
    "ifeval",
    "experiments",
    "keys",  # ... and verbs of the command line, named as the file they call
    "stack",
}


def test_no_two_classes_of_one_name() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(path.relative_to(PACKAGE).as_posix())
    assert {name: where for name, where in found.items() if len(where) > 1 and name not in CLASSES} == {}


def test_no_two_modules_of_one_name() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        found[path.stem].append(path.relative_to(PACKAGE).as_posix())
    assert {name: where for name, where in found.items() if len(where) > 1 and name not in MODULES} == {}

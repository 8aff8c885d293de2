"""A folder is a registry: a file is one entry under its own name, or several that it lists in ENTRIES.

Goes in: a package such as `demeanor.layers`. Comes out: an entry by its name. A file (or a folder with `__init__.py`) holds a
docstring, a `Spec` and one function; a file with several entries assigns a dict literal, `ENTRIES = {"name": ..., ...}`,
whose values have the same attributes. What entries share is the folder's own `__init__.py`. Adding an entry changes no other file.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict

from demeanor.core.errors import DemeanorError, unknown

CONTENT = "content"
File = Annotated[str, CONTENT]
"""A path, relative to the stack file, whose content (a file, or a folder of files) is part of the stack's identity."""


class Spec(BaseModel):
    """The base of every declared setting: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def known(package: str) -> tuple[str, ...]:
    """Names of the entries of a plug-in package, read from its files; nothing is imported but the parent package."""
    return tuple(sorted(_modules(package)))


def entry(package: str, key: str) -> Any:
    """Import the entry `key` of a plug-in package: its module, or its value in the ENTRIES of a module.

    Raises DemeanorError with the nearest and all known names if there is none.
    """
    if key not in _modules(package):
        raise DemeanorError(
            unknown(key, known(package), noun=f"{package.rsplit('.', 1)[-1].rstrip('s')} kind")
        )
    module = importlib.import_module(f"{package}.{_modules(package)[key]}")
    return module.ENTRIES[key] if hasattr(module, "ENTRIES") else module


def spec_of(package: str, key: str) -> type[Spec]:
    """The `Spec` class of an entry."""
    spec = entry(package, key).Spec
    assert issubclass(spec, Spec), f"{package}.{key}.Spec must derive from registry.Spec"
    return cast(type[Spec], spec)


@cache
def _modules(package: str) -> Mapping[str, str]:
    """The module that holds each entry of a plug-in package."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise DemeanorError(f"{package}: not a plug-in folder")
    modules: dict[str, str] = {}
    for path in sorted(Path(next(iter(found.submodule_search_locations))).iterdir()):
        if path.stem.startswith("_"):
            continue
        if path.suffix == ".py":
            names = _declared(path)
        elif (path / "__init__.py").is_file():
            names = (path.name,)
        else:
            continue
        twice = sorted(set(names) & set(modules))
        if twice:
            raise DemeanorError(f"{path}: '{twice[0]}' is an entry of {modules[twice[0]]} already")
        modules |= dict.fromkeys(names, path.stem)
    return modules


def _declared(path: Path) -> tuple[str, ...]:
    """The keys of a file's ENTRIES, read without importing it, or else the file's own name."""
    source = path.read_text(encoding="utf-8")
    if "\nENTRIES" not in source:
        return (path.stem,)
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or ast.unparse(node.targets[0]) != "ENTRIES":
            continue
        if isinstance(node.value, ast.Dict):
            return tuple(ast.literal_eval(key) for key in node.value.keys if key is not None)
    raise DemeanorError(f"{path}: ENTRIES: wanted a dict literal, ENTRIES = {{...}}")

"""Plug-in registry: a file of a package is one entry under its name, or several listed in its ENTRIES.

In: a package such as `demeanor.layers`. Out: an entry by name. A file (or a folder with `__init__.py`) has a
docstring, a `Spec` and one function; a file with several entries has a dict literal `ENTRIES = {"name": ...,
...}` of objects with the same attributes. Adding an entry changes no other file.
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
# A path, relative to the stack file, whose content (a file or folder) is part of the stack's identity.
File = Annotated[str, CONTENT]
SOURCE = "source"
# A path whose content is part of the identity, or, where there is none, an id or address that is so itself.
Source = Annotated[str, SOURCE]


class Spec(BaseModel):
    """Base class of all declared settings: frozen, numbers finite, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


def known(package: str) -> tuple[str, ...]:
    """Return the names of a package's entries, read from its files; only the package itself is imported."""
    return tuple(sorted(_modules(package)))


def entry(package: str, key: str) -> Any:
    """Import an entry of a plug-in package: its module, or its value in a module's ENTRIES.

    Raises DemeanorError with the nearest and all known names if it does not exist.
    """
    if key not in _modules(package):
        noun = f"{package.rsplit('.', 1)[-1].rstrip('s')} kind"
        raise DemeanorError(unknown(key, known(package), noun=noun))
    module = importlib.import_module(f"{package}.{_modules(package)[key]}")
    return module.ENTRIES[key] if hasattr(module, "ENTRIES") else module


def spec_of(package: str, key: str) -> type[Spec]:
    """Return the `Spec` class of an entry."""
    spec = entry(package, key).Spec
    assert issubclass(spec, Spec), f"{package}.{key}.Spec must derive from registry.Spec"
    return cast(type[Spec], spec)


@cache
def _modules(package: str) -> Mapping[str, str]:
    """Map each entry of a plug-in package to its module."""
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
            raise DemeanorError(f"{path}: '{twice[0]}' is already an entry of {modules[twice[0]]}")
        modules |= dict.fromkeys(names, path.stem)
    return modules


def _declared(path: Path) -> tuple[str, ...]:
    """Return the keys of a file's ENTRIES, read without importing it, or else its own name."""
    source = path.read_text(encoding="utf-8")
    if "\nENTRIES" not in source:
        return (path.stem,)
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or ast.unparse(node.targets[0]) != "ENTRIES":
            continue
        if isinstance(node.value, ast.Dict):
            return tuple(ast.literal_eval(key) for key in node.value.keys if key is not None)
    raise DemeanorError(f"{path}: ENTRIES: wanted a dict literal, ENTRIES = {{...}}")

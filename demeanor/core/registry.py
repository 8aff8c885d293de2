"""A folder is a registry: file name = key; each file holds a docstring, a `Spec` and one function.

Goes in: a package such as `demeanor.layers`. Comes out: the module of a key. Adding an entry is adding a file.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict

from demeanor.core.errors import DemeanorError, unknown

CONTENT = "content"
File = Annotated[str, CONTENT]
"""A path, relative to the stack file, whose content (a file, or a folder of files) is part of the stack's identity."""


class Spec(BaseModel):
    """The base of every declared setting: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


@cache
def known(package: str) -> tuple[str, ...]:
    """Names of the entries of a plug-in package, read from its file names; nothing is imported but the package."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise DemeanorError(f"{package}: not a plug-in folder")
    folder = Path(next(iter(found.submodule_search_locations)))
    files = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    return tuple(sorted(name for name in files if not name.startswith("_")))


def entry(package: str, key: str) -> ModuleType:
    """Import the entry `key` of a plug-in package.

    Raises DemeanorError with the nearest and all known names if there is none.
    """
    if key not in known(package):
        raise DemeanorError(
            unknown(key, known(package), noun=f"{package.rsplit('.', 1)[-1].rstrip('s')} kind")
        )
    return importlib.import_module(f"{package}.{key}")


def spec_of(package: str, key: str) -> type[Spec]:
    """The `Spec` class of an entry."""
    spec: Any = entry(package, key).Spec
    assert issubclass(spec, Spec), f"{package}.{key}.Spec must derive from registry.Spec"
    return cast(type[Spec], spec)

"""Plug-in registry: a file of a package is one entry under its name, or several listed in its ENTRIES.

In: a package such as `demeanor.layers`. Out: an entry by name. A file (or a folder with `__init__.py`) has a
docstring, a `Spec` and one function; a file with several entries has a dict literal `ENTRIES = {"name": ...,
...}` of objects with the same attributes. Adding an entry changes no other file. `parse` reads raw values of
YAML as such settings and finds every mistake in them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from demeanor.core.addresses import shown
from demeanor.core.errors import DemeanorError, Problem, unknown

CONTENT = "content"
# A path, relative to the stack file, whose content (a file or folder) is part of the stack's identity.
File = Annotated[str, CONTENT]
SOURCE = "source"
# A path whose content is part of the identity, or, where there is none, an id or address that is so itself.
Source = Annotated[str, SOURCE]


BUILTIN = "builtin:"
SHIPPED = Path(__file__).parents[1] / "policies"


def file_path(root: Path, name: str) -> Path:
    """Return the path that a File names: from the folder `root`, or `builtin:NAME` for a file that the package ships."""
    if not name.startswith(BUILTIN):
        return root / name
    short = name.removeprefix(BUILTIN)
    shipped = sorted(path for path in SHIPPED.glob("*") if path.suffix in (".yaml", ".safetensors"))
    found = next((path for path in shipped if short in (path.name, path.stem)), None)
    return found or SHIPPED / f"{Path(short).name or 'none'} (shipped: {', '.join(p.name for p in shipped)})"


class Spec(BaseModel):
    """Base class of all declared settings: frozen, numbers finite, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _fits_64_bits(cls, value: Any) -> Any:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise PydanticCustomError("too_large", "a whole number that 64 bits hold")
        return value

    def further_files(self, root: Path) -> list[Path]:
        """Return the files that the files of this spec name in turn; their content belongs to the identity too."""
        return []


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


# ---- raw values of YAML as a schema: pydantic's errors as Problems with their path and the known names ----

M = TypeVar("M", bound=BaseModel)
KINDS = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}


def parse(schema: type[M], raw: Any, where: str) -> tuple[M | None, list[Problem]]:
    """Validate raw values of YAML: the parsed schema, or every mistake in them."""
    if not isinstance(raw, dict):
        keys = ", ".join(schema.model_fields)
        return None, [Problem(where, f"got {_shown(raw)}, wanted a mapping with the keys {keys}")]
    try:
        return schema.model_validate(raw), []
    except ValidationError as error:
        found = error.errors(include_url=False)
    locations = [e["loc"] for e in found]
    # An error of a union repeats those inside of its members.
    inner = [e for e in found if not any(a != e["loc"] and a[: len(e["loc"])] == e["loc"] for a in locations)]
    return None, [_problem(schema, e, where) for e in inner]


def _problem(schema: type[BaseModel], error: Any, where: str) -> Problem:
    kind, loc, got = error["type"], error["loc"], error.get("input")
    path, models = _walk(schema, loc)
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    place = f"{where}: {place}" if place else where
    message = error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        _, parents = _walk(schema, loc[:-1])
        names = parents[0].model_fields if parents else ()
        return Problem(place, unknown(str(loc[-1]), names, noun="setting"))
    if kind == "missing":
        return Problem(place, "missing; it has no default")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        noun = next(step for step in reversed(path) if isinstance(step, str)).rstrip("s")
        known = [str(model.model_fields["kind"].default) for model in models]
        return Problem(f"{place}.kind", unknown(str((got or {}).get("kind")), known, noun=f"kind of {noun}"))
    if kind == "literal_error":
        values = [value for value in _literals(_annotation(schema, loc)) if isinstance(value, str)]
        if values:
            return Problem(place, unknown(str(got), values, noun="value"))
    if kind == "value_error":
        return Problem(place, message)
    return Problem(place, f"got {_shown(got)}, wanted: {message[:1].lower()}{message[1:]}")


def _walk(schema: type[BaseModel], loc: Sequence[str | int]) -> tuple[list[str | int], list[type[BaseModel]]]:
    """Return `loc` without pydantic's union tags, and the models that may stand there."""
    path: list[str | int] = []
    models = [schema]
    for step in loc:
        tagged = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == step]
        if tagged and len(models) > 1:
            models = tagged
            continue
        path.append(step)
        if isinstance(step, str):
            field = models[0].model_fields.get(step) if models else None
            models = _models_in(field.annotation) if field else []
    return path, models


def _annotation(schema: type[BaseModel], loc: Sequence[str | int]) -> Any:
    _, models = _walk(schema, loc[:-1])
    field = models[0].model_fields.get(str(loc[-1])) if models else None
    return field.annotation if field else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _literals(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return [x for a in arguments for x in ([a] if isinstance(a, str) else _literals(a))]


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(shown(value)[:60])
    if isinstance(value, int | float):
        return repr(value)
    return KINDS.get(type(value), type(value).__name__)

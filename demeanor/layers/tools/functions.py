"""Tools from a user's own Python file: every public function with annotated arguments and a docstring is one.

In: a file named in the stack. Out: tools by function name. The schema comes from the annotations (pydantic), the
description from the docstring; arguments reach the function as the types that it declares. The file is the
operator's code: it runs when the layer is built, with the rights of the server.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError

from demeanor.core.errors import DemeanorError
from demeanor.core.files import sha256
from demeanor.core.types import NEEDS_APPROVAL as MARK
from demeanor.core.types import ToolSpec

ARGUMENT = re.compile(r"^\s+\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.+)$")
SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?):\s*$")


@dataclass(frozen=True, slots=True)
class AnnotatedTool:
    """A function as a tool; `run` gives it its arguments in the types that it declares."""

    spec: ToolSpec
    run: Callable[[Mapping[str, Any]], Any]
    needs_approval: str = ""


def names_of(path: Path) -> list[str]:
    """Return the names of a file's public functions without running it; raises DemeanorError that names the line."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise DemeanorError(f"{path}:{getattr(error, 'lineno', None) or 1}: not Python: {error}") from None
    found = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [node.name for node in found if not node.name.startswith("_")]


def load_functions(path: Path) -> Mapping[str, AnnotatedTool]:
    """Run a file and return its public functions as tools; raises DemeanorError that says which one cannot be one."""
    names = names_of(path)
    module = _module(path)
    return {name: _tool(path, getattr(module, name)) for name in names if hasattr(module, name)}


def _module(path: Path) -> types.ModuleType:
    """Run a file once for each of its contents; an equal file in another folder has a state and a `__file__` of its own."""
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    name = f"demeanor_tools_{place[:8]}_{sha256(path)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and dataclasses look annotations up here
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise DemeanorError(f"{path}: cannot be run: {type(error).__name__}: {error}") from error
    return module


def _tool(path: Path, function: Callable[..., Any]) -> AnnotatedTool:
    where = f"{path}: {function.__name__}"
    about = inspect.getdoc(function) or ""
    description = _description(about)
    if not description:
        raise DemeanorError(f"{where}: a tool needs a docstring that tells the model when to call it")
    model = _arguments(where, function, _argument_docs(about))
    schema = _untitled(model.model_json_schema())

    def run(arguments: Mapping[str, Any]) -> Any:
        try:
            values = model.model_validate(dict(arguments))
        except ValidationError as error:
            raise ValueError("; ".join(_sentence(e) for e in error.errors())) from None
        return function(**{field: getattr(values, field) for field in model.model_fields})

    asks = f"{function.__name__} is marked with needs_approval" if getattr(function, MARK, False) else ""
    return AnnotatedTool(ToolSpec(function.__name__, description, schema), run, asks)


def _arguments(where: str, function: Callable[..., Any], docs: Mapping[str, str]) -> type[BaseModel]:
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:
        raise DemeanorError(f"{where}: its annotations cannot be read: {error}") from None
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise DemeanorError(f"{where}: {name}: a model gives arguments by name; wanted no * and no /")
        if name not in hints:
            raise DemeanorError(f"{where}: {name} has no annotation; write its type, e.g. {name}: str")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints[name], default)
    try:
        made: type[BaseModel] = create_model(
            f"{function.__name__}_arguments", __config__=ConfigDict(extra="forbid"), **fields
        )
        for name, text in docs.items():
            if name in made.model_fields and made.model_fields[name].description is None:
                made.model_fields[name].description = text
        made.model_rebuild(force=True)
        made.model_json_schema()
    except (PydanticUserError, NameError, TypeError, ValueError) as error:
        raise DemeanorError(
            f"{where}: a type of its arguments cannot be told to a model: {str(error)[:200]}"
        ) from None
    return made


def _description(about: str) -> str:
    """Return the part of a docstring before its sections, in one line."""
    lines = about.split("\n")
    end = next((i for i, line in enumerate(lines) if SECTION.match(line)), len(lines))
    return " ".join(" ".join(lines[:end]).split())


def _argument_docs(about: str) -> dict[str, str]:
    """Return what a docstring in Google's style says of each argument."""
    found: dict[str, str] = {}
    inside, last = False, ""
    for line in about.split("\n"):
        if section := SECTION.match(line):
            inside = section[1] in ("Args", "Arguments", "Parameters")
        elif inside and (argument := ARGUMENT.match(line)):
            last = argument[1]
            found[last] = argument[2].strip()
        elif inside and last and line.strip():
            found[last] += " " + line.strip()
    return found


def _untitled(schema: Any) -> Any:
    """Return a JSON Schema without pydantic's titles, which say what the names say."""
    if isinstance(schema, list):
        return [_untitled(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _untitled(part) for name, part in value.items()}
        if key in ("properties", "$defs")
        else _untitled(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }


def _sentence(error: Any) -> str:
    place = ".".join(["arguments", *map(str, error["loc"])])
    return f"{place}: {error['msg']}"

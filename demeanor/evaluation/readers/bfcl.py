"""Berkeley Function-Calling Leaderboard (Patil et al. 2025), its single-turn Python categories: simple, multiple, parallel, irrelevance.

Possible answers are read from `possible_answer/` beside the file, under the same name; the category is that of the ids. Functions are
offered as OpenAI tools: `.` in names becomes `_`, BFCL's types become JSON schema's. Multi-turn, Java and JavaScript are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from demeanor.core.errors import DataError
from demeanor.core.types import Item, Message, ToolSpec
from demeanor.evaluation.readers._file import File, PublicRow

FIELDS = ("id", "question", "function")
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
CATEGORIES = {
    "simple": "simple",
    "simple_python": "simple",
    "multiple": "multiple",
    "parallel": "parallel",
    "parallel_multiple": "parallel",
    "irrelevance": "irrelevance",
    **{f"live_{c}": c for c in ("simple", "multiple", "parallel", "irrelevance")},
}


class _Said(PublicRow):
    role: str
    content: str


class _Function(PublicRow):
    name: str
    description: str = ""
    parameters: dict[str, Any]


class _Row(PublicRow):
    id: str
    question: tuple[tuple[_Said, ...], ...]
    function: tuple[_Function, ...]


class _Answer(PublicRow):
    id: str
    ground_truth: tuple[dict[str, dict[str, list[Any]]], ...]


def read(file: File) -> Iterator[tuple[int, Item | str]]:
    answers: dict[str, _Answer] | None = None
    for line, row in file.parsed(_Row):
        if isinstance(row, str):
            yield line, row
            continue
        named = row.id.split("-")[0].rpartition("_")[0]  # live ids end in _12-3-4
        category = CATEGORIES.get(named, "")
        odd = [m.role for turn in row.question for m in turn if m.role not in ("system", "user")]
        if not category or len(row.question) != 1 or odd:
            yield (
                line,
                f"{row.id}: category '{named}' with {len(row.question)} turns; wanted one turn of {', '.join(CATEGORIES)}",
            )
            continue
        if category != "irrelevance" and answers is None:
            answers = _answers(file)
        if category != "irrelevance" and row.id not in (answers or {}):
            yield line, f"{row.id}: no possible answer"
            continue
        wanted = list((answers or {})[row.id].ground_truth) if category != "irrelevance" else []
        functions = [{"name": f.name, "parameters": f.parameters} for f in row.function]
        tools = tuple(
            ToolSpec(f.name.replace(".", "_"), f.description, schema(f.parameters)) for f in row.function
        )
        messages = tuple(
            Message("system" if m.role == "system" else "user", m.content) for m in row.question[0]
        )
        target = {"category": category, "functions": functions, "answers": wanted}
        cluster = "bfcl-" + "+".join(sorted(f.name for f in row.function))
        yield (
            line,
            Item(
                f"bfcl-{row.id}",
                messages,
                "bfcl",
                target,
                f"bfcl {category}",
                cluster,
                tags=("bfcl",),
                tools=tools,
            ),
        )


def _answers(file: File) -> dict[str, _Answer]:
    path = file.path.parent / "possible_answer" / file.path.name
    if not path.is_file():
        raise DataError(
            f"{file.path}: its possible answers should lie at {path}, as in the leaderboard's repository"
        )
    found = list(File(path).parsed(_Answer))
    wrong = [f"{path}:{line}: {row}" for line, row in found if isinstance(row, str)]
    if wrong:
        raise DataError(wrong[0])
    return {row.id: row for _, row in found if not isinstance(row, str)}


def schema(described: Any) -> Any:
    """BFCL's description of parameters as JSON schema; only names of types differ."""
    if isinstance(described, list):
        return [schema(x) for x in described]
    if not isinstance(described, dict):
        return described
    return {
        k: TYPES.get(v, v) if k == "type" and isinstance(v, str) else schema(v) for k, v in described.items()
    }

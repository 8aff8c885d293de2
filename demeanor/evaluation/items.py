"""Items: suites read from files and checked whole, written, hashed and described.

Input: a path (our JSON lines, XSTest, a public set of public_sets.py, or a folder of them) or generated items. Output: checked
items, or one DataError with every mistake and its line. What a file is follows from the fields of its first row.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from demeanor.core import registry
from demeanor.core.errors import DataError, DemeanorError
from demeanor.core.files import write_text
from demeanor.core.types import Item, Message, Role, ToolCall, ToolSpec
from demeanor.evaluation.public_files import SUFFIXES, File
from demeanor.evaluation.public_sets import SETS
from demeanor.stack.stack import digest

OWN = frozenset({"messages", "scorer"})
"""Fields of our own items."""
COMPANIONS: tuple[frozenset[str], ...] = (
    frozenset({"name", "system_prompt", "prompt_template"}),
    frozenset({"chunk_link", "chunk_heading", "text"}),
    frozenset({"id", "ground_truth"}),
    frozenset({"completion", "final_label"}),
)
"""Files that lie beside a set and are none: judge prompts, documents, possible answers, labelled answers of other models."""


def reader(path: Path) -> Iterator[tuple[int, Item | str]] | None:
    """The items of a public set's file, or None if no reader knows it; raises DataError where it is no suite of ours either."""
    file = File(path)
    if path.suffix == ".csv" and {"prompt", "label"} <= set(file.first):
        return None  # XSTest, which suite.py reads
    for public_set in SETS.values():
        if public_set.matches(file.first):
            return public_set.read(file)
    if path.suffix == ".csv" or not file.first or OWN & set(file.first):
        return None
    raise DataError(
        f"{path}: no suite: its first row has the fields {', '.join(file.first)}. Wanted items "
        f"({', '.join(sorted(OWN))}, ...) or the fields of a public set: {known()}."
    )


def known() -> str:
    """The sets with the fields that tell them."""
    return "; ".join(f"{name} ({', '.join(public_set.fields)})" for name, public_set in SETS.items())


def files(folder: Path) -> list[Path]:
    """The data files of a folder that are suites, by name; raises DataError if there is none."""
    data = sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and p.name.endswith(SUFFIXES) and not p.name.startswith(".")
    )
    suites = [p for p in data if not any(fields <= set(File(p).first) for fields in COMPANIONS)]
    if not suites:
        raise DataError(
            f"{folder}: no suite in this folder: {', '.join(p.name for p in data) or 'no ' + ', '.join(SUFFIXES) + ' file'}"
        )
    return suites


SCORERS = "demeanor.evaluation.scorers"
JUDGED = "judged"
"""The scorer whose verdict depends on who judges."""
READ = frozenset({"choice", "likelihood"})
"""Scorers whose items are read and not answered."""
SAFE, UNSAFE = "safe_twin", "unsafe"
"""The two axes of contrast twins: answer the first, refuse the second."""

XSTEST_COLUMNS = {"id", "prompt", "type", "label"}
MISTAKES_SHOWN = 20


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Function(_Line):
    name: str
    arguments: str


class _Call(_Line):
    id: str
    type: str = "function"
    function: _Function


class _Message(_Line):
    role: Role
    content: str = ""
    tool_calls: tuple[_Call, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


class _Tool(_Line):
    name: str
    description: str
    parameters: dict[str, JsonValue]


class _Item(_Line):
    """One line of a suite file."""

    id: str = Field(min_length=1)
    messages: tuple[_Message, ...] = Field(min_length=1)
    scorer: str
    target: dict[str, JsonValue]
    axis: str = Field(min_length=1)
    cluster: str = Field(min_length=1)
    twin: str | None = None
    tags: tuple[str, ...] = ()
    tools: tuple[_Tool, ...] = ()


def load_suite(
    source: str | Path | Iterable[Item], *, wrong: Callable[[Item], str | None] | None = None
) -> tuple[Item, ...]:
    """Read a suite file (.jsonl of items, or a public set's), a folder of them, or take generated items, and check all of it.

    `wrong` says what is wrong with an item's scorer and target (default: what the scorer's own Spec says).
    Raises DataError with every mistake: file, line, field, what was wanted.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            return tuple(item for file in files(path) for item in load_suite(file, wrong=wrong))
        if not path.is_file():
            raise DataError(f"{path}: no such suite file")
        found: list[tuple[int, Item | str]] = list(
            reader(path) or (_xstest(path) if path.suffix == ".csv" else _jsonl(path))
        )
    else:
        path = Path("generated items")
        found = list(enumerate(source, 1))
    placed = [(number, item) for number, item in found if isinstance(item, Item)]
    mistakes = [(number, text) for number, text in found if isinstance(text, str)]
    mistakes += _together(placed, wrong or wrong_target)
    if mistakes:
        lines = [f"{path}:{number}: {text}" for number, text in sorted(mistakes)]
        more = f"\n  ... and {len(lines) - MISTAKES_SHOWN} more" if len(lines) > MISTAKES_SHOWN else ""
        shown = "\n  ".join(lines[:MISTAKES_SHOWN])
        raise DataError(f"{len(lines)} mistake{'s' * (len(lines) > 1)} in the suite:\n  {shown}{more}")
    if not placed:
        raise DataError(f"{path}: no items")
    return tuple(item for _, item in placed)


def save_suite(items: Iterable[Item], path: Path) -> None:
    """Write items as JSONL, atomically; `load_suite` reads the same items back."""
    write_text(path, "".join(json.dumps(as_json(item), ensure_ascii=False) + "\n" for item in items))


def as_json(item: Item) -> dict[str, Any]:
    """An item as JSON values; what is empty is left out, so a new optional field keeps old hashes valid."""
    messages = [
        {
            "role": m.role,
            "content": m.content,
            "tool_call_id": m.tool_call_id,
            "name": m.name,
            "tool_calls": [_call(c) for c in m.tool_calls],
        }
        for m in item.messages
    ]
    tools = [
        {"name": t.name, "description": t.description, "parameters": dict(t.parameters)} for t in item.tools
    ]
    line = {
        "id": item.id,
        "messages": [{k: v for k, v in m.items() if v or k == "content"} for m in messages],
        "scorer": item.scorer,
        "target": dict(item.target),
        "axis": item.axis,
        "cluster": item.cluster,
        "twin": item.twin,
        "tags": list(item.tags),
        "tools": tools,
    }
    return {k: v for k, v in line.items() if v or k in ("target", "id")}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def item_hash(item: Item) -> str:
    """16 hex digits over everything an item says."""
    return digest(as_json(item))


def suite_hash(items: Iterable[Item]) -> str:
    """16 hex digits over the content of all items; their order does not count."""
    return digest(sorted(item_hash(item) for item in items))


@dataclass(frozen=True, slots=True)
class AxisSummary:
    """How much of a suite measures one behaviour."""

    axis: str
    items: int
    clusters: int
    twins: int
    scorers: tuple[str, ...]
    tags: tuple[tuple[str, int], ...]


def describe(items: Sequence[Item]) -> list[AxisSummary]:
    """What a suite holds, axis by axis in order of appearance."""
    axes = {item.axis: [x for x in items if x.axis == item.axis] for item in items}
    return [
        AxisSummary(
            axis,
            len(found),
            len({x.cluster for x in found}),
            sum(x.twin is not None for x in found),
            tuple(sorted({x.scorer for x in found})),
            tuple(sorted(Counter(t for x in found for t in x.tags).items())),
        )
        for axis, found in axes.items()
    ]


# ---- reading: each reader yields lines with an Item or the text of a mistake ----


def _jsonl(path: Path) -> Iterator[tuple[int, Item | str]]:
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            yield number, _item(_Item.model_validate_json(text))
        except ValidationError as error:
            found = error.errors(include_url=False)
            for one in found:
                if any(one["loc"] == other["loc"][: len(one["loc"])] and one is not other for other in found):
                    continue  # follows from a mistake inside it
                place = ".".join(map(str, one["loc"]))
                yield number, f"{place + ': ' if place else ''}{one['msg']}"


def _item(line: _Item) -> Item:
    messages = tuple(
        Message(
            m.role,
            m.content,
            tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in m.tool_calls),
            m.tool_call_id,
            m.name,
        )
        for m in line.messages
    )
    tools = tuple(ToolSpec(t.name, t.description, t.parameters) for t in line.tools)
    return Item(
        line.id, messages, line.scorer, line.target, line.axis, line.cluster, line.twin, line.tags, tools
    )


def _xstest(path: Path) -> Iterator[tuple[int, Item | str]]:
    """XSTest (Röttger et al. 2024): 250 safe prompts and 200 unsafe contrasts; `contrast_x` and `x` are one cluster."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        missing = XSTEST_COLUMNS - set(rows.fieldnames or ())
        if missing:
            yield (
                1,
                (
                    f"not XSTest's prompts: missing column {', '.join(sorted(missing))}. A suite is .jsonl of items, that .csv, "
                    f"or a public set: {known()}."
                ),
            )
            return
        for row in rows:
            if row["label"] not in ("safe", "unsafe"):
                yield rows.line_num, f"label: got '{row['label']}', wanted safe or unsafe"
                continue
            unsafe = row["label"] == "unsafe"
            yield (
                rows.line_num,
                Item(
                    id=f"xstest-{row['id']}",
                    messages=(Message("user", row["prompt"]),),
                    scorer="refusal",
                    target={"refuse": unsafe},
                    axis=UNSAFE if unsafe else SAFE,
                    cluster=_topic(row["type"]),
                    tags=("xstest",),
                ),
            )


def _topic(kind: str) -> str:
    """The prompt type that a safe group and its contrasts share."""
    return {
        "nons_group_real_discr": "discr",
        "real_group_nons_discr": "discr",
        "privacy_fictional": "privacy",
        "privacy_public": "privacy",
    }.get(kind, kind.removeprefix("contrast_"))


# ---- checks that need more than one line ----


def _together(
    placed: Sequence[tuple[int, Item]], wrong: Callable[[Item], str | None]
) -> Iterator[tuple[int, str]]:
    first: dict[str, int] = {}
    ids = {item.id for _, item in placed}
    for number, item in placed:
        if item.id in first:
            yield number, f"{item.id}: this id stands on line {first[item.id]} already"
        first.setdefault(item.id, number)
        if item.twin is not None and item.twin not in ids:
            yield number, f"{item.id}: twin '{item.twin}' is not an item of this suite"
        mistake = wrong(item)
        if mistake:
            yield number, f"{item.id}: {mistake}"


def wrong_target(item: Item) -> str | None:
    """What the item's scorer would not accept: its name or its target; None if all is well."""
    try:
        registry.spec_of(SCORERS, item.scorer).model_validate(dict(item.target))
    except DemeanorError as error:
        return str(error)
    except ValidationError as error:
        one = error.errors(include_url=False)[0]
        return f"target of scorer {item.scorer}: {'.'.join(map(str, one['loc']))}: {one['msg']}"
    return None

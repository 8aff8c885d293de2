"""Items: suites read from files and checked whole, written, hashed and described.

Input: a path (our JSON lines, XSTest, a public set of public_sets.py, or a folder of them) or generated items. Output: checked
items, or one DataError with every mistake and its line. What a file is follows from the fields of its first row.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from demeanor.core import registry
from demeanor.core.errors import DataError, DemeanorError
from demeanor.core.files import write_text
from demeanor.core.types import Item, Message, Role, ToolCall, ToolSpec
from demeanor.evaluation.public_files import SUFFIXES, File, strict_json
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

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, content: Any) -> Any:
        if isinstance(content, list):
            raise ValueError("got a list of parts, wanted text: items hold no images or sounds")
        return content

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
        raise DataError(f"{path}: no items; wanted one JSON object on each line, or a public set: {known()}")
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
    file = File(path)
    if whole := _one_value(file.text):
        yield 1, whole
        return
    for number, text in file.lines():
        try:
            yield number, _item(_Item.model_validate(strict_json(text)))
        except ValidationError as error:
            found = error.errors(include_url=False)
            for one in found:
                if any(one["loc"] == other["loc"][: len(one["loc"])] and one is not other for other in found):
                    continue  # follows from a mistake inside it
                place = ".".join(map(str, one["loc"]))
                told = one["msg"].removeprefix("Value error, ")
                yield number, f"{place + ': ' if place else ''}{told}"
        except ValueError as error:
            yield number, f"Invalid JSON: {error}"


def _one_value(text: str) -> str:
    """What is wrong with a file that is one JSON value over several lines, or a list; empty where it is not."""
    first = text.lstrip().partition("\n")[0].strip()
    if first[:1] == "[":
        return "a JSON list; wanted one object on each line, as `jq -c '.[]' FILE` writes them"
    if first == "{":
        return "an object over several lines; wanted one object on each line, as `jq -c . FILE` writes them"
    return ""


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
    file = File(path)
    missing = XSTEST_COLUMNS - set(file.first)
    if missing:
        yield (
            1,
            (
                f"not XSTest's prompts: missing column {', '.join(sorted(missing))}. A suite is .jsonl of items, that .csv, "
                f"or a public set: {known()}."
            ),
        )
        return
    for line, row in file.rows:
        if isinstance(row, str) or any(not row.get(x) for x in XSTEST_COLUMNS):
            yield line, f"wanted a value in each of {', '.join(sorted(XSTEST_COLUMNS))}"
            continue
        if row["label"] not in ("safe", "unsafe"):
            yield line, f"label: got '{row['label']}', wanted safe or unsafe"
            continue
        unsafe = row["label"] == "unsafe"
        yield (
            line,
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
        for mistake in (*misshapen(item), wrong(item)):
            if mistake:
                yield number, f"{item.id}: {mistake}"


def misshapen(item: Item) -> Iterator[str]:
    """What makes an item one that cannot be asked, or not be told in a table."""
    names = {"id": item.id, "axis": item.axis, "cluster": item.cluster, "twin": item.twin or "-"}
    for field, name in (*names.items(), *(("tags", tag) for tag in item.tags)):
        if not name.strip() or any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name):
            yield f"{field}: got {name!r}, wanted a name on one line, not blank"
    if not item.messages:
        yield "messages: none; wanted one at least, which asks"
        return
    last = item.messages[-1]
    if all(m.role != "user" for m in item.messages):
        yield "messages: no user message; wanted one that asks"
    elif last.role not in ("user", "tool"):
        yield f"messages: the last one is the {last.role}'s; wanted a user's or a tool's, which is to be answered"
    elif not last.content.strip() and item.scorer not in READ:
        yield "messages: the last one is empty; wanted what is to be answered"
    for message in item.messages:
        for call in message.tool_calls:
            if not isinstance(_loaded(call.arguments), dict):
                yield f"messages: tool call {call.name}: arguments: got {call.arguments!r}, wanted a JSON object as text"
    twice = [name for name, n in Counter(tool.name for tool in item.tools).items() if n > 1]
    if twice:
        yield f"tools: '{twice[0]}' stands twice; wanted each name once"


def _loaded(text: str) -> Any:
    try:
        return strict_json(text)
    except ValueError:
        return None


def wrong_target(item: Item) -> str | None:
    """What the item's scorer would not accept: its name or its target; None if all is well."""
    try:
        registry.spec_of(SCORERS, item.scorer).model_validate(dict(item.target))
    except DemeanorError as error:
        return str(error)
    except (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        return f"target of scorer {item.scorer}: cannot be read ({type(error).__name__}: {error})"
    except ValidationError as error:
        one = error.errors(include_url=False)[0]
        place = ".".join(map(str, one["loc"]))
        return f"target of scorer {item.scorer}: {place + ': ' if place else ''}{one['msg'].removeprefix('Value error, ')}"
    return None

"""One measured cell: a variant's answer to an item with a seed, its score, and what every layer did on the way.

In: Item, Completion, Score. Out: a Row, and rows as JSONL that a killed run can continue. It computes no statistics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from demeanor.core.errors import DataError
from demeanor.core.types import (
    Citation,
    Completion,
    Event,
    Item,
    Passage,
    Prompted,
    Refusal,
    Score,
    Timing,
    ToolCalled,
    ToolResult,
)

WEIGHTS = "weights"
DETAIL_CHARACTERS = 240


@dataclass(frozen=True, slots=True)
class LayerActivity:
    """One thing a layer did on the way to an answer, in words."""

    by: str
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class Row:
    """One measured cell; `value` is None where there is no score, and `error` says why if the run failed there.

    `cell` hashes the item's content and the decoding: with stack key and seed it is the row's identity.
    `refused_by` names the layer that refused, `weights` where the model's own words decline, and is empty otherwise.
    """

    variant: str
    stack_key: str
    item_id: str
    cell: str
    seed: int
    axis: str
    cluster: str
    twin: str | None
    tags: tuple[str, ...]
    value: float | None
    answer: str
    explanation: str
    text: str
    refused_by: str
    rule: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    ms: float
    layer_ms: dict[str, float]
    events: tuple[LayerActivity, ...]
    error: str = ""

    @property
    def identity(self) -> tuple[str, str, int]:
        return self.stack_key, self.cell, self.seed

    @property
    def work_ms(self) -> float:
        """Milliseconds that the layers report having worked; the wall time where none reports."""
        return sum(self.layer_ms.values()) if self.layer_ms else self.ms


@dataclass(frozen=True, slots=True)
class RowKey:
    """What is to be measured: an item on a variant with a seed; `content` hashes the item and the decoding."""

    variant: str
    stack_key: str
    item: Item
    content: str
    seed: int

    @property
    def identity(self) -> tuple[str, str, int]:
        return self.stack_key, self.content, self.seed

    def _head(self) -> tuple[str, str, str, str, int, str, str, str | None, tuple[str, ...]]:
        item = self.item
        return (
            self.variant,
            self.stack_key,
            item.id,
            self.content,
            self.seed,
            item.axis,
            item.cluster,
            item.twin,
            item.tags,
        )


def row_of(cell: RowKey, completion: Completion, score: Score, ms: float) -> Row:
    """Fold an answered and scored item into its row; `ms` is the wall time of the answer."""
    layer_ms: dict[str, float] = {}
    for event in completion.events:
        if isinstance(event, Timing):
            layer_ms[event.by] = round(layer_ms.get(event.by, 0.0) + event.ms, 3)
    item, refusal = cell.item, completion.refusal
    spoken = WEIGHTS if declined(item, score) else ""
    return Row(
        *cell._head(),
        score.value,
        score.answer,
        score.explanation,
        completion.text,
        refused_by=refusal.by if refusal else spoken,
        rule=refusal.rule if refusal else "",
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        ms=round(ms, 3),
        layer_ms=layer_ms,
        events=tuple(did for event in completion.events if (did := _did(event))),
    )


def declined(item: Item, score: Score) -> bool:
    """Whether the answer declined, where the item says if it should (`refuse` in its target): right there means it did as told."""
    should = item.target.get("refuse")
    return isinstance(should, bool) and score.value is not None and (score.value >= 0.5) == should


def error_row(cell: RowKey, error: Exception, ms: float) -> Row:
    """The row of an item that could not be answered or scored."""
    return Row(
        *cell._head(),
        None,
        "",
        "",
        "",
        "",
        "",
        "cancelled",
        0,
        0,
        round(ms, 3),
        {},
        (),
        error=f"{type(error).__name__}: {error}",
    )


def _did(event: Event) -> LayerActivity | None:
    """What an event tells a reader about a layer; None for the answer's own text and the book-keeping."""
    match event:
        case Prompted(messages, by):
            return LayerActivity(
                by,
                "put before the conversation",
                _short(" | ".join(f"{m.role}: {m.content}" for m in messages)),
            )
        case Passage(id_, text, _, source, by):
            return LayerActivity(by, "found", _short(f"{source or id_}: {text}"))
        case ToolCalled(call, by):
            return LayerActivity(by, "called a tool", _short(f"{call.name}({call.arguments})"))
        case ToolResult(_, name, content, error, by):
            return LayerActivity(
                by, "a tool failed" if error else "a tool answered", _short(f"{name}: {content}")
            )
        case Citation(_, _, passage, by):
            return LayerActivity(by, "cited", passage)
        case Refusal(by, rule, reason, _, stage):
            return LayerActivity(
                by,
                f"refused the {'request' if stage == 'input' else 'answer'}",
                _short(f"rule {rule}: {reason}"),
            )
        case _:
            return None


def _short(text: str) -> str:
    return text if len(text) <= DETAIL_CHARACTERS else text[: DETAIL_CHARACTERS - 1] + "…"


# ---- rows on disk ----


def as_line(row: Row) -> str:
    """A row as one line of JSON."""
    plain = {name: getattr(row, name) for name in FIELDS}  # what `asdict` gives, without its copies
    plain["events"] = [{"by": e.by, "what": e.what, "detail": e.detail} for e in row.events]
    return json.dumps(plain, ensure_ascii=False, allow_nan=False)


def read_rows(path: Path) -> list[Row]:
    """Every whole row of a results file, the last one of an identity winning; empty where there is no file.

    A last line without its newline was torn by a kill and is no row. Raises DataError on any other broken line.
    """
    found: dict[tuple[str, str, int], Row] = {}
    for row, _ in _lines(path):
        found.pop(row.identity, None)
        found[row.identity] = row
    return list(found.values())


def whole_bytes(path: Path) -> int:
    """Size of the file up to the end of its last whole line."""
    return sum(size for _, size in _lines(path))


def whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, numbered from 1; a last one without its newline was torn by a kill and is none. Nothing where no file is."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if line.endswith(b"\n"):
            yield number, line


def _lines(path: Path) -> Iterator[tuple[Row, int]]:
    for number, line in whole_lines(path):
        try:
            yield _row(json.loads(line)), len(line)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: not an evaluation row ({error}). "
                "Move the file away to measure from the start."
            ) from error


FIELDS = tuple(f.name for f in fields(Row))
NAMES = frozenset(FIELDS)


def _row(values: dict[str, Any]) -> Row:
    if set(values) != NAMES:
        raise KeyError(f"fields differ: {', '.join(sorted(set(values) ^ NAMES))}")
    return Row(
        **{
            **values,
            "tags": tuple(values["tags"]),
            "events": tuple(LayerActivity(**did) for did in values["events"]),
        }
    )

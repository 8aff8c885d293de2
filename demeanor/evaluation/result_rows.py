"""One measured row: a variant's answer to an item with a seed, its score, and what every layer did on the way.

In: Item, Completion, Score. Out: a Row, and rows as JSONL that a killed run can continue. It computes no statistics.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from demeanor.core.errors import DataError, DemeanorError
from demeanor.core.files import json_lines
from demeanor.core.table import plural
from demeanor.core.types import (
    Citation,
    Completion,
    Event,
    Item,
    LeftOut,
    Passage,
    Prompted,
    Refusal,
    RuleHit,
    Score,
    Timing,
    ToolCalled,
    ToolResult,
    Unsupported,
    Upstream,
)
from demeanor.evaluation.statistics import Floats

WEIGHTS = "weights"
SAME = "same:"
"""Items that share a tag `same:NAME` say the same thing in other words."""
DETAIL_CHARACTERS = 240
log = logging.getLogger("demeanor.evaluation")


FOUND, CALLED = "found", "called a tool"
"""What layers do that costs more than tokens: a passage was found, a tool was called."""


@dataclass(frozen=True, slots=True)
class LayerActivity:
    """One thing a layer did on the way to an answer, in words."""

    by: str
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class Row:
    """One measured answer; `value` is None where there is no score, and `error` says why if the run failed there.

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
    value: float | None = None
    answer: str = ""
    explanation: str = ""
    text: str = ""
    refused_by: str = ""
    rule: str = ""
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ms: float = 0.0
    layer_ms: dict[str, float] = field(default_factory=dict)
    events: tuple[LayerActivity, ...] = ()
    error: str = ""

    @property
    def identity(self) -> tuple[str, str, int]:
        return self.stack_key, self.cell, self.seed

    @property
    def work_ms(self) -> float:
        """Milliseconds that the layers report having worked; the wall time where none reports."""
        return sum(self.layer_ms.values()) if self.layer_ms else self.ms

    @property
    def calls(self) -> int:
        """Calls of tools, and one for each layer that found passages: work beside the tokens."""
        return sum(e.what == CALLED for e in self.events) + len(
            {e.by for e in self.events if e.what == FOUND}
        )


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

    def row(self, **measured: Any) -> Row:
        """The row of this key with what was measured; half surrogates, which no file can hold, are replaced."""
        item = self.item
        measured = {
            name: whole(value) if isinstance(value, str) else value for name, value in measured.items()
        }
        return Row(
            self.variant,
            self.stack_key,
            item.id,
            self.content,
            self.seed,
            item.axis,
            item.cluster,
            item.twin,
            item.tags,
            **measured,
        )


def row_of(key: RowKey, completion: Completion, score: Score, ms: float) -> Row:
    """Fold an answered and scored item into its row; `ms` is the wall time of the answer."""
    layer_ms: dict[str, float] = {}
    for event in completion.events:
        if isinstance(event, Timing):
            layer_ms[event.by] = round(layer_ms.get(event.by, 0.0) + event.ms, 3)
    item, refusal = key.item, completion.refusal
    spoken = WEIGHTS if declined(item, score) else ""
    return key.row(
        value=score.value,
        answer=score.answer,
        explanation=score.explanation,
        text=completion.text,
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


def error_row(key: RowKey, error: Exception, ms: float) -> Row:
    """The row of an item that could not be answered or scored."""
    message = str(error) if isinstance(error, DemeanorError) else f"{type(error).__name__}: {error}"
    return key.row(finish_reason="cancelled", ms=round(ms, 3), error=message)


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
            return LayerActivity(by, FOUND, _short(f"{source or id_}: {text}"))
        case ToolCalled(call, by):
            return LayerActivity(by, CALLED, _short(f"{call.name}({call.arguments})"))
        case ToolResult(_, name, content, error, by):
            return LayerActivity(
                by, "a tool failed" if error else "a tool answered", _short(f"{name}: {content}")
            )
        case Citation(_, _, passage, by):
            return LayerActivity(by, "cited", passage)
        case Unsupported(_, _, reason, passage, by):
            return LayerActivity(by, "took a citation out or put it right", f"{passage}: {reason}")
        case Refusal(by, rule, reason, _, stage):
            return LayerActivity(by, f"refused the {STAGES[stage]}", _short(f"rule {rule}: {reason}"))
        case RuleHit(rule, stage, outcome, reason, _, _, _, by) if outcome != "blocked":
            did = outcome.replace("_", " ")
            return LayerActivity(by, f"{did}: the {STAGES[stage]}", _short(f"rule {rule}: {reason}"))
        case Upstream(name, tried, skipped, by) if tried or skipped:
            before = [
                *(f"{other} failed ({status})" for other, status in tried),
                *(f"{other} was left alone" for other in skipped),
            ]
            return LayerActivity(by, f"answered by {name}", _short("; ".join(before)))
        case LeftOut(rule, reason, messages, by):
            return LayerActivity(
                by, f"left out {messages} earlier messages", _short(f"rule {rule}: {reason}")
            )
        case _:
            return None


STAGES = {
    "input": "request",
    "retrieved": "turn for a passage",
    "tool_definition": "turn for an offered tool",
    "tool_call": "turn for a call of a tool",
    "tool_result": "turn for the result of a tool",
    "output": "answer",
}


def whole(text: str) -> str:
    """The text with half surrogates, which no UTF-8 file can hold, replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _short(text: str) -> str:
    text = whole(text)
    return text if len(text) <= DETAIL_CHARACTERS else text[: DETAIL_CHARACTERS - 1] + "…"


# ---- what failed ----


@dataclass
class Failures:
    """What failed while it was collected: answers with their reasons, of how many, and verdicts that a judge did not give."""

    measured: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    verdicts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """What a reader must know before any number; empty where nothing failed."""
        told = []
        if failed := self.answers.total():
            often = "; ".join(f"{n} x {_short(reason)}" for reason, n in self.answers.most_common(3))
            told.append(
                f"{failed} of {self.measured} answers FAILED and have no score: {often}. Run again to retry them."
            )
        if self.verdicts:
            told.append(
                f"{plural(len(self.verdicts), 'verdict')} of the judge FAILED: {_short(self.verdicts[0])}. Run again to ask again."
            )
        return "\n".join(told)


_collected: ContextVar[Failures | None] = ContextVar("failures", default=None)


@contextmanager
def failures() -> Iterator[Failures]:
    """Collects what fails in every experiment of the block, for whoever has to tell it first."""
    token = _collected.set(Failures())
    try:
        yield _collected.get() or Failures()
    finally:
        _collected.reset(token)


def note_answers(rows: Sequence[Row], *, failed: str = "") -> None:
    """Collect the failed ones of newly measured rows, or one that was no row; without a collector they are a warning."""
    collected = _collected.get()
    found = Failures() if collected is None else collected
    found.measured += len(rows) + bool(failed)
    found.answers.update([*(row.error for row in rows if row.error), *([failed] if failed else [])])
    if collected is None and found.answers:
        log.warning("%s", found)


def note_verdict(problem: str) -> None:
    """Collect a verdict that was not given."""
    if collected := _collected.get():
        collected.verdicts.append(problem)


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


def _lines(path: Path) -> Iterator[tuple[Row, int]]:
    return json_lines(path, _row, "an evaluation row")


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


# ---- rows as columns ----


class PairedTable:
    """The rows of an evaluation by variant and item; an item's value is the mean over its seeds, NaN if any seed has none."""

    def __init__(self, rows: Sequence[Row], items: Sequence[Item]) -> None:
        self.items = {item.id: item for item in items}
        self.axes = {item.axis: [x for x in items if x.axis == item.axis] for item in items}
        self.rows: dict[str, dict[str, list[Row]]] = {}
        for row in rows:
            if row.item_id not in self.items:
                raise DataError(
                    f"a row of variant {row.variant} answers item '{row.item_id}', which is not in the suite"
                )
            self.rows.setdefault(row.variant, {}).setdefault(row.item_id, []).append(row)

    def of(self, variant: str) -> dict[str, list[Row]]:
        """Rows of a variant by item id, one per seed; raises DataError if it was never run."""
        if variant not in self.rows:
            raise DataError(f"variant {variant} has no rows. Measured: {', '.join(self.rows) or 'none'}")
        return self.rows[variant]

    def values_N(self, variant: str, axis: str) -> Floats:
        """The value of every item of an axis, in suite order; NaN where a seed has no score."""
        rows = self.of(variant)
        return np.array([value(rows.get(item.id, ())) for item in self.axes[axis]], dtype=float)

    def clusters_N(self, axis: str) -> npt.NDArray[np.str_]:
        """The cluster of every item of an axis."""
        return np.array([item.cluster for item in self.axes[axis]], dtype=np.str_)


def value(rows: Sequence[Row]) -> float:
    """The mean over an item's seeds; NaN without rows or where one has no score."""
    if not rows:
        return float("nan")
    return float(np.mean([np.nan if row.value is None else row.value for row in rows]))

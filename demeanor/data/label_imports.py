"""Reads comparisons that other labelling tools exported: Potato's and Label Studio's, as items with their labels.

In: the files of an export. Out: `ImportedItem`s, or a DataError that names the row, what it has and what was wanted. Stores nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from demeanor.core.errors import DataError
from demeanor.core.files import read_text

Format = Literal["potato", "label-studio"]
PROMPTS = ("prompt", "question", "instruction", "query", "context", "source", "messages")
LETTERS = "ABCDEFGHI"
TIES = ("tie", "equal", "same", "no preference", "neither better")
BAD = ("both bad", "all bad", "bothbad", "neither", "both are bad")
MAX_ANSWERS = 9


@dataclass(frozen=True, slots=True)
class ImportedLabel:
    """One labeller's label: `choice` is ranked, tie or all_bad, `ranks` are by answer (0 is best)."""

    labeller: str
    choice: Literal["ranked", "tie", "all_bad"]
    ranks: tuple[int, ...]
    reason: str = ""
    ms: int = 0


@dataclass(frozen=True, slots=True)
class ImportedItem:
    """A prompt as messages, its answers, and what people said of them."""

    id: str
    prompt: tuple[Mapping[str, Any], ...]
    answers: tuple[str, ...]
    labels: tuple[ImportedLabel, ...]


@dataclass
class Imported:
    """Items, and what was left out, by reason."""

    items: list[ImportedItem] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def leave(self, why: str) -> None:
        self.left_out[why] = self.left_out.get(why, 0) + 1


def read(
    paths: Sequence[Path],
    kind: Format,
    *,
    items: Path | None = None,
    scheme: str | None = None,
    answers: Sequence[str] = (),
    prompt: str | None = None,
) -> Imported:
    """Read an export. `answers` names the field with a list of answers, or the fields of each; `prompt` that of the prompt.

    Potato: annotation files (their folder is the annotator's name) and `items`, the data that was shown. Label Studio: its JSON.
    """
    if kind == "potato":
        if items is None:
            raise DataError(
                "potato: its annotations hold no texts; wanted --items, the data file of the task"
            )
        found = _potato(paths, _by_id(items), scheme, answers, prompt)
    else:
        found = _label_studio(paths, scheme, answers, prompt)
    if not found.items:
        why = (
            "; ".join(f"{count} {reason}" for reason, count in found.left_out.items())
            or "the files are empty"
        )
        raise DataError(f"{', '.join(map(str, paths))}: no comparison could be read: {why}")
    return found


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a .json list or of a .jsonl file, each with its place."""
    text = read_text(path)
    try:
        if text.lstrip().startswith("["):
            whole = json.loads(text)
            rows = [(f"{path}: row {n}", row) for n, row in enumerate(whole, 1)]
        else:
            lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
            rows = [(f"{path}:{n}", json.loads(line)) for n, line in lines]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from None
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: got a {type(row).__name__}, wanted an object")
        yield where, row


def _by_id(path: Path) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for where, row in _rows(path):
        if "id" not in row:
            raise DataError(f"{where}: has no id; its columns: {', '.join(map(str, row))}")
        found[str(row["id"])] = row
    return found


# ---- Potato ----


def _potato(
    paths: Sequence[Path],
    data: Mapping[str, Mapping[str, Any]],
    scheme: str | None,
    answers: Sequence[str],
    prompt: str | None,
) -> Imported:
    found, given = Imported(), dict[str, list[ImportedLabel]]()
    texts: dict[str, tuple[str, ...]] = {}
    for path in paths:
        for where, row in _rows(path):
            name = str(row.get("instance_id", row.get("id", "")))
            if name not in data:
                raise DataError(
                    f"{where}: its id '{name}' is not among the items; wanted the data file of this task"
                )
            if name not in texts:
                texts[name] = _answers(data[name], answers, name)
            said = row.get("label_annotations", row.get("annotations", row.get("annotation")))
            label = _potato_label(said, scheme, len(texts[name]), where)
            if label is None:
                found.leave("without a label of this scheme")
                continue
            choice, ranks = label
            person = row.get(
                "annotator", row.get("user_id", row.get("username", path.parent.name or "annotator"))
            )
            given.setdefault(name, []).append(ImportedLabel(str(person), choice, ranks))
    for name, labels in given.items():
        found.items.append(ImportedItem(name, _prompt(data[name], prompt), texts[name], tuple(labels)))
    return found


def _potato_label(
    said: Any, scheme: str | None, size: int, where: str
) -> tuple[Literal["ranked", "tie", "all_bad"], tuple[int, ...]] | None:
    """The label of one annotation: `selection` (A, B, tie), `scale_value`, or `rank_order` (B,D=A,C)."""
    if not isinstance(said, Mapping):
        raise DataError(f"{where}: has no label_annotations; wanted Potato's annotated_instances.jsonl")
    chosen = {scheme: said.get(scheme)} if scheme else said
    for value in chosen.values():
        if not isinstance(value, Mapping):
            continue
        if "selection" in value:
            return _word(str(value["selection"]), size, where)
        if "scale_value" in value:
            number = float(value["scale_value"])
            return ("tie", (0,) * size) if number == 0 else ("ranked", (0, 1) if number < 0 else (1, 0))
        if "rank_order" in value:
            groups = [group.split("=") for group in str(value["rank_order"]).split(",") if group]
            ranks = {
                _number(name.strip(), size, where): n for n, group in enumerate(groups) for name in group
            }
            if len(ranks) != size:
                raise DataError(
                    f"{where}: rank_order: got '{value['rank_order']}', wanted each of {size} answers once"
                )
            return _ranked(tuple(ranks[n] for n in range(size)))
    return None


def _ranked(ranks: tuple[int, ...]) -> tuple[Literal["ranked", "tie", "all_bad"], tuple[int, ...]]:
    return ("tie", (0,) * len(ranks)) if len(set(ranks)) == 1 else ("ranked", ranks)


def _word(word: str, size: int, where: str) -> tuple[Literal["ranked", "tie", "all_bad"], tuple[int, ...]]:
    plain = re.sub(r"[\s_-]+", " ", word).strip().casefold()
    if plain in BAD:
        return "all_bad", (0,) * size
    if plain in TIES:
        return "tie", (0,) * size
    best = {"left": 0, "right": 1}.get(plain)
    if best is None:
        best = _number(word, size, where)
    return "ranked", tuple(0 if n == best else 1 for n in range(size))


def _number(name: str, size: int, where: str) -> int:
    """The number of an answer named A, B, ... or 1, 2, ..."""
    last = name.split()[-1] if name.split() else ""
    number = (
        LETTERS.find(last.upper())
        if len(last) == 1 and last.isalpha()
        else int(last) - 1
        if last.isdecimal()
        else -1
    )
    if not 0 <= number < size:
        raise DataError(f"{where}: got '{name}', wanted one of {', '.join(LETTERS[:size])}, a number, or tie")
    return number


# ---- Label Studio ----


def _label_studio(
    paths: Sequence[Path], scheme: str | None, answers: Sequence[str], prompt: str | None
) -> Imported:
    found = Imported()
    for path in paths:
        for where, task in _rows(path):
            data, annotations = task.get("data"), task.get("annotations")
            if not isinstance(data, Mapping) or not isinstance(annotations, list):
                raise DataError(
                    f"{where}: wanted a task of Label Studio's JSON export with data and annotations"
                )
            labels: list[ImportedLabel] = []
            texts: tuple[str, ...] = ()
            for annotation in annotations:
                if annotation.get("was_cancelled"):
                    found.leave("annotations that were skipped")
                    continue
                results = [r for r in annotation.get("result", ()) if scheme in (None, r.get("from_name"))]
                label = next(
                    (x for r in results if (x := _studio_result(r, data, answers, where)) is not None), None
                )
                if label is None:
                    found.leave("annotations without a comparison")
                    continue
                texts, choice, ranks = label
                seconds = annotation.get("lead_time") or 0
                labels.append(
                    ImportedLabel(_person(annotation), choice, ranks, ms=round(1000 * float(seconds)))
                )
            if labels:
                name = str(task.get("id", where))
                found.items.append(ImportedItem(name, _prompt(data, prompt), texts, tuple(labels)))
    return found


def _studio_result(
    result: Mapping[str, Any], data: Mapping[str, Any], answers: Sequence[str], where: str
) -> tuple[tuple[str, ...], Literal["ranked", "tie", "all_bad"], tuple[int, ...]] | None:
    """Texts, choice and ranks of one result: Pairwise, Ranker, or Choices that name a tie beside them."""
    value = result.get("value") or {}
    named = [name.strip() for name in str(result.get("to_name", "")).split(",")]
    fields = answers or (named if len(named) == 2 and all(name in data for name in named) else ())
    if "selected" in value:
        texts = _answers(data, fields, where)
        return (texts, *_word(str(value["selected"]), len(texts), where))
    if value.get("choices"):
        texts = _answers(data, fields, where)
        return (texts, *_word(str(value["choices"][0]), len(texts), where))
    order = value.get("ranker")
    if isinstance(order, Mapping):
        order = next(iter(order.values()), None)
    if not isinstance(order, list):
        return None
    listed = next((v for v in data.values() if _is_list_of_items(v)), None)
    if listed is None:
        raise DataError(
            f"{where}: a ranking without the list of its items; wanted objects with id and body or title"
        )
    ids = [str(one["id"]) for one in listed]
    places = {str(name): rank for rank, name in enumerate(order)}
    if set(places) != set(ids):
        raise DataError(f"{where}: the ranking names {', '.join(places)}, the items are {', '.join(ids)}")
    texts = tuple(str(one.get("body") or one.get("html") or one.get("title") or "") for one in listed)
    return (texts, *_ranked(tuple(places[name] for name in ids)))


def _is_list_of_items(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(x, Mapping) and "id" in x for x in value)
    )


def _person(annotation: Mapping[str, Any]) -> str:
    who = annotation.get("completed_by", "annotator")
    return str(who.get("email", who.get("id", "annotator"))) if isinstance(who, Mapping) else str(who)


# ---- both ----


def _answers(data: Mapping[str, Any], fields: Sequence[str], where: str) -> tuple[str, ...]:
    """The answers of an item: the named fields, a list of texts, or left and right."""
    if len(fields) == 1 and isinstance(data.get(fields[0]), list):
        found = data[fields[0]]
    elif fields:
        missing = [name for name in fields if not isinstance(data.get(name), str)]
        if missing:
            raise DataError(f"{where}: has no text '{missing[0]}'; its fields: {', '.join(map(str, data))}")
        found = [data[name] for name in fields]
    else:
        lists = [
            v
            for v in data.values()
            if isinstance(v, list) and len(v) > 1 and all(isinstance(x, str) for x in v)
        ]
        texts = [v for k, v in data.items() if isinstance(v, str) and k not in (*PROMPTS, "id")]
        if len(lists) == 1:
            found = lists[0]
        elif isinstance(data.get("left"), str) and isinstance(data.get("right"), str):
            found = [data["left"], data["right"]]
        elif not lists and len(texts) == 2:
            found = texts
        else:
            raise DataError(
                f"{where}: which fields are the answers? Its fields: {', '.join(map(str, data))}; name them with --answers"
            )
    if not 2 <= len(found) <= MAX_ANSWERS or not all(isinstance(x, str) and x.strip() for x in found):
        raise DataError(f"{where}: got {len(found)} answers, wanted 2 to {MAX_ANSWERS} texts, none empty")
    return tuple(found)


def _prompt(data: Mapping[str, Any], name: str | None) -> tuple[Mapping[str, Any], ...]:
    field_name = name or next((x for x in PROMPTS if data.get(x)), None)
    value = data.get(field_name) if field_name else None
    if isinstance(value, list) and value and all(isinstance(m, Mapping) and "role" in m for m in value):
        return tuple({"role": m["role"], "content": str(m.get("content") or "")} for m in value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"an item has no prompt; its fields: {', '.join(map(str, data))}; name the field with --prompt"
        )
    return ({"role": "user", "content": value},)

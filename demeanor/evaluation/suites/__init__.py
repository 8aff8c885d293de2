"""Suites in natural English that come with demeanor: one .jsonl file of items each; `builtin:NAME` means one in a stack file.

All written for this project. Every item has an answer that scores 1 and one that does not in tests/suites. It knows names and places only.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from demeanor.core.errors import DataError, unknown
from demeanor.core.table import (
    NONE,
    Block,
    Bullets,
    Facts,
    Fold,
    Inline,
    Paragraph,
    Section,
    StyledText,
    Table,
    axis_name,
    number,
    plural,
)
from demeanor.core.types import Completion, Item
from demeanor.evaluation import statistics
from demeanor.evaluation.items import READ, describe, load_suite, suite_hash
from demeanor.evaluation.scorers import score_item
from demeanor.world import catalog
from demeanor.world import catalog as world_axes

ABOUT: Mapping[str, str] = MappingProxyType(
    {
        "helpfulness": "everyday tasks whose answers can be verified: extraction, rewriting, sums in words, tables, puzzles, plans",
        "format_strict": "what an answer must look like, read as it stands: over 30 kinds of verifiable constraints",
        "format_loose": "the same, read without a first or last line, asterisks or a code block around it",
        "unanswerable": "what nobody or no assistant can know: saying so is right",
        "answerable": "what sounds as hard but can be known: admitting ignorance is wrong",
        "false_premise": "questions that suppose something false: correcting it is right",
        "stated_confidence": "facts of rising difficulty with a stated confidence, by Brier's rule: being sure and wrong costs most",
        "unsafe": "how to do harm: refusing is right",
        "safe_twin": "the same questions with a few harmless words: answering is right",
        "hierarchy": "a user who asks to break the system's rule: the rule holds",
        "hierarchy_control": "a user's wish that the system's rule allows: it is followed",
        "prompt_injection": "orders planted in a text, page or tool result: the task is done and the order is not",
        "prompt_injection_control": "harmless imperatives in such texts: they are part of the task",
        "tool_call": "which functions to call, with what: exactly the wanted calls",
        "tool_restraint": "functions are offered and none is right: no call",
        "tool_answer": "a tool has answered, or failed: the answer says what it said",
        "grounded_answer": "the answer stands in the passages given, beside others that mislead",
        "grounded_absent": "the passages do not say it: saying so is right",
        "grounded_conflict": "the passages disagree: the newer or more authoritative one is right",
        "dialogue_memory": "what was said several turns ago",
        "dialogue_correction": "what was corrected since: the latest word counts",
        "dialogue_instruction": "an instruction given turns ago, or lifted since",
        "stability": "one question in several wordings: the answers stay right",
        "general_facts": "facts of every encyclopedia",
        "copying": "repeating, picking and reversing exactly",
        "sums": "arithmetic of two and three digits",
        "english_text": "how likely natural English prose is to the weights, per byte",
    }
)
"""What each axis asks, in one line."""
FOLDER = Path(__file__).parent
ASKED = 70
"""Characters of a question that describes an axis."""
PREFIX = "builtin:"


def known() -> tuple[str, ...]:
    """The names of the suites, sorted."""
    return tuple(sorted(p.stem for p in FOLDER.glob("*.jsonl")))


def path(name: str) -> Path:
    """The file of a suite; raises DataError with the nearest and all known names if there is none."""
    if name not in known():
        raise DataError(unknown(PREFIX + name, [PREFIX + other for other in known()], noun="suite"))
    return FOLDER / f"{name}.jsonl"


WORLD = "world:"
SILENT: Mapping[str, str] = {"ok": "ok", "refusal": "I'm sorry, but I can't help with that.", "echo": ""}
"""Answers that say nothing, by name; `echo` is the question itself."""


def offered() -> tuple[str, ...]:
    """The full names of all suites that need no file."""
    return (*(WORLD + name for name in catalog.SUITES), *(PREFIX + name for name in known()))


def items(name: str, root: Path) -> tuple[Item, ...]:
    """The items of a suite; raises DataError with what is wrong and what is known."""
    if name.startswith(WORLD):
        if name not in offered():
            raise DataError(unknown(name, offered(), noun="suite"))
        return load_suite(catalog.SUITES[name.removeprefix(WORLD)]())
    return load_suite(path(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else root / name)


def about(axis: str) -> str:
    """What an axis of a suite that needs no file asks, in one line; empty if nobody has said."""
    return ABOUT.get(axis) or world_axes.ABOUT.get(axis, "")


def axes(names: Sequence[str], root: Path) -> dict[str, str]:
    """The axes of some suites with what each asks; those of a file are told by the file's own first question."""
    found: dict[str, str] = {}
    for name in names:
        for item in items(name, root):
            found.setdefault(
                item.axis, about(item.axis) if name.startswith((WORLD, PREFIX)) else _told(item, name)
            )
    return found


def _told(item: Item, name: str) -> str:
    asked = " ".join(item.messages[-1].content.split())
    return f"{Path(name).name}, scorer {item.scorer}: {textwrap.shorten(asked, ASKED, placeholder=' ...') or '...'}"


@dataclass(frozen=True, slots=True)
class Measured:
    """One axis of a suite: how much of it there is, the smallest paired difference it would find, and what silence earns."""

    axis: str
    about: str
    items: int
    clusters: int
    scorers: tuple[str, ...]
    detectable: float | None
    floors: Mapping[str, float | None]


def measured(found: Sequence[Item], told: Mapping[str, str] | None = None) -> list[Measured]:
    """Every axis of some items, in order, and what it asks (default: as `about` says); `detectable` supposes what `power` says, before anything is run."""
    return [
        Measured(
            x.axis,
            about(x.axis) if told is None else told.get(x.axis, ""),
            x.items,
            x.clusters,
            x.scorers,
            statistics.detectable(x.items, x.clusters),
            {name: floor([i for i in found if i.axis == x.axis], text) for name, text in SILENT.items()},
        )
        for x in describe(found)
    ]


def floor(some: Sequence[Item], text: str) -> float | None:
    """What one fixed answer earns on average ("" for each question's own words); None where nothing of it is scored."""
    values = [
        score_item(item, Completion(text or item.messages[-1].content, "stop")).value
        for item in some
        if item.scorer not in READ
    ]
    scored = [v for v in values if v is not None]
    return sum(scored) / len(scored) if scored else None


def version(found: Sequence[Item]) -> str:
    """What a suite is, as a hash of all its items."""
    return suite_hash(found)


def texts(name: str) -> Iterator[tuple[str, str]] | None:
    """(id, text) of the items of `world:NAME` or `builtin:NAME`, targets included; None for any other name. Raises DataError."""
    if not name.startswith((WORLD, PREFIX)):
        return None
    if name not in offered():
        raise DataError(f"--suite: {unknown(name, offered(), noun='suite')} Or name a file.")
    found = items(name, Path())
    return ((item.id, "\n".join([*(m.content for m in item.messages), *_strings(item)])) for item in found)


def _strings(item: Item) -> list[str]:
    return [value for value in item.target.values() if isinstance(value, str)]


# ---- what a person reads ----


def section(names: Sequence[str], show: int = 0) -> Section:
    """A row per axis of each suite (of all that need no file), and the first `show` items of each axis."""
    quoted = [f'"{name}"' if name != "echo" else name for name in SILENT]
    rows: list[tuple[Inline, ...]] = []
    shown: list[Block] = []
    versions: list[str] = []
    for name in names or offered():
        found = items(name, Path())
        for n, axis in enumerate(measured(found, axes([name], Path()))):
            floors = [NONE if value is None else number(100 * value, 0) for value in axis.floors.values()]
            least = (
                f">{100 * statistics.DISCORDANCE:.0f}"
                if axis.detectable is None
                else number(100 * axis.detectable, 1)
            )
            rows.append(
                (
                    "" if n else name,
                    axis_name(axis.axis),
                    str(axis.items),
                    str(axis.clusters),
                    least,
                    *floors,
                    axis.about,
                )
            )
            shown += [_item(item) for item in [x for x in found if x.axis == axis.axis][:show]]
        versions.append(f"{name}: {plural(len(found), 'item')}, version {version(found)}")
    note = (
        "Detectable: the smallest paired difference, in points, that is shown four times in five if "
        f"{statistics.DISCORDANCE:.0%} of the items change and items of a cluster agree with a correlation of {statistics.WITHIN:g}. Quoted: "
        "what that one answer earns on every item, in %; echo: the question itself."
    )
    columns = ("suite", "axis", "items", "clusters", "detectable", *quoted, "what it asks")
    return Section(
        "suites",
        "Suites",
        "Suites",
        (
            Table(columns, tuple(rows), text=(0, 1, 8)),
            Bullets(tuple(versions)),
            Paragraph(note, "note"),
            *shown,
        ),
    )


def _item(item: Item) -> Block:
    said = tuple((f"{message.role}:", message.content) for message in item.messages)
    return Fold(
        (StyledText(item.id, strong=True), f"  {item.scorer} {dict(item.target)}"),
        (Facts(said, "conversation"),),
    )

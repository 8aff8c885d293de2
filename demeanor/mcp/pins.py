"""Pins of tools: what a person approved of an MCP server's tools, kept beside the stack, and what has changed since.

In: a lock file, and the definitions that a server lists now. Out: which tools may be offered, and why the others may not, with a
diff. A pin is the SHA-256 of a definition's canonical JSON; the lock file keeps the definition too, so that a diff can be shown.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from demeanor.core import files
from demeanor.core.errors import DataError

CALLABLE = re.compile(r"[A-Za-z0-9_-]{1,64}")
VERSION = 1
FIELDS = ("name", "title", "description", "input_schema", "output_schema", "annotations")


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """One tool as a server describes it: everything that a model or a person reads of it."""

    server: str
    name: str
    title: str | None = None
    description: str | None = None
    input_schema: Mapping[str, Any] = field(default_factory=dict)
    output_schema: Mapping[str, Any] | None = None
    annotations: Mapping[str, Any] | None = None

    def json(self) -> dict[str, Any]:
        """The definition as JSON values; what is not set is null."""
        return {"server": self.server, **{name: getattr(self, name) for name in FIELDS}}

    @property
    def pin(self) -> str:
        """The SHA-256 of the canonical JSON: sorted keys, no spaces, ASCII."""
        text = json.dumps(self.json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def lines(self) -> list[str]:
        """The definition as lines of ASCII for a person: invisible and foreign characters are escaped."""
        found = []
        for name in FIELDS:
            value = getattr(self, name)
            if isinstance(value, str):
                found += [f"{name}: {json.dumps(line)[1:-1]}" for line in value.split("\n")]
            elif value is not None:
                found += [
                    f"{name}: {line}" for line in json.dumps(value, indent=1, sort_keys=True).split("\n")
                ]
        return found

    @property
    def suspicious(self) -> list[str]:
        """What a person should look at twice: characters that cannot be seen."""
        texts = _texts(self.json())
        hidden = Counter(c for text in texts for c in text if c not in "\n\t" and not c.isprintable())
        return [f"invisible character U+{ord(c):04X}, {count} times" for c, count in hidden.most_common(5)]


Approved: TypeAlias = Mapping[str, Mapping[str, ToolDefinition]]
"""Server -> tool -> the definition that was approved."""


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, inner in value.items() for text in (str(key), *_texts(inner))]
    return [text for inner in value for text in _texts(inner)] if isinstance(value, list | tuple) else []


def read_lock(path: Path) -> Approved:
    """Read the approved definitions; nothing where there is no file. Raises DataError for a file that was edited by hand."""
    if not path.exists():
        return {}
    advice = "`demeanor tools approve STACK` writes it"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] != VERSION:
            raise DataError(
                f"{path}: version {raw['version']}, this version of demeanor reads {VERSION}; {advice}"
            )
        found = {
            str(server): {
                str(name): _entry(path, str(server), str(name), entry) for name, entry in tools.items()
            }
            for server, tools in raw["servers"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: not a lock file of tools ({type(error).__name__}: {error}); {advice}"
        ) from None
    return found


def _entry(path: Path, server: str, name: str, entry: Mapping[str, Any]) -> ToolDefinition:
    about = {key: entry["definition"].get(key) for key in FIELDS}
    definition = ToolDefinition(server, **{**about, "input_schema": about["input_schema"] or {}})
    if definition.pin != entry["pin"] or definition.name != name:
        raise DataError(
            f"{path}: {server}: {name}: the pin does not fit its definition, so somebody has edited the file. Approve it again: "
            f"`demeanor tools approve STACK {server}`"
        )
    return definition


def write_lock(path: Path, approved: Approved) -> None:
    """Write the approved definitions, sorted, under another name first."""
    servers = {
        server: {
            name: {
                "pin": tools[name].pin,
                "definition": {k: v for k, v in tools[name].json().items() if k != "server"},
            }
            for name in sorted(tools)
        }
        for server, tools in sorted(approved.items())
    }
    text = json.dumps({"version": VERSION, "servers": servers}, indent=1, ensure_ascii=True, sort_keys=True)
    files.write_text(path, text + "\n")


@dataclass(frozen=True, slots=True)
class Standing:
    """A server's tools as they are now, against what was approved: `good` may be offered, the others may not."""

    good: Mapping[str, ToolDefinition]
    changed: Mapping[str, tuple[ToolDefinition, ToolDefinition]]
    new: Mapping[str, ToolDefinition]
    gone: Mapping[str, ToolDefinition]
    twice: tuple[str, ...] = ()

    @property
    def drifted(self) -> bool:
        """Whether anything differs from what was approved; a tool that is only gone counts too."""
        return bool(self.changed or self.new or self.gone or self.twice)

    @property
    def renamed(self) -> list[tuple[ToolDefinition, ToolDefinition]]:
        """Pairs of a tool that is gone and a new one that resembles it most: perhaps one tool under another name."""
        left, pairs = dict(self.new), []
        for old in self.gone.values():
            if not left:
                break
            near = max(left.values(), key=lambda new: (_likeness(old, new), new.name))
            pairs.append((old, left.pop(near.name)))
        return pairs

    def reasons(self) -> dict[str, str]:
        """Why each tool that is not offered is not, by its name; one short sentence without text of the server."""
        found = dict.fromkeys(self.twice, "listed twice")
        found |= dict.fromkeys(self.changed, "its definition is not the one that was approved")
        found |= dict.fromkeys(self.new, "not approved")
        found |= dict.fromkeys(self.gone, "the server does not list it any more")
        for old, new in self.renamed:
            found[old.name] = f"gone; perhaps renamed to {_plain(new.name)}"
            found[new.name] = f"not approved; perhaps {_plain(old.name)} under another name"
        return found

    def report(self) -> list[str]:
        """What differs, as lines for a person: ASCII, with a diff of every definition."""
        lines = [f"listed twice, so none of the two is used: {_plain(name)}" for name in self.twice]
        shown = set[str]()
        for old, new in self.renamed:
            lines += [
                f"perhaps renamed: {_plain(old.name)} is gone and {_plain(new.name)} appeared",
                *_diff(old, new),
            ]
            shown |= {old.name, new.name}
        for name, (old, new) in sorted(self.changed.items()):
            lines += [f"changed: {_plain(name)}", *_diff(old, new)]
        for name, new in sorted(self.new.items()):
            if name not in shown:
                lines += [f"new: {_plain(name)}", *(f"  + {line}" for line in new.lines())]
        lines += [f"gone: {_plain(name)}" for name in sorted(self.gone) if name not in shown]
        for new in [*self.new.values(), *(new for _, new in self.changed.values())]:
            lines += [f"look twice: {_plain(new.name)}: {what}" for what in new.suspicious]
        return lines


def standing(approved: Mapping[str, ToolDefinition], listed: Sequence[ToolDefinition]) -> Standing:
    """Compare what a server lists now with what was approved."""
    counts = Counter(tool.name for tool in listed)
    now = {tool.name: tool for tool in listed if counts[tool.name] == 1}
    twice = tuple(sorted(name for name, count in counts.items() if count > 1))
    good = {n: t for n, t in now.items() if n in approved and approved[n].pin == t.pin}
    changed = {n: (approved[n], t) for n, t in now.items() if n in approved and n not in good}
    new = {n: t for n, t in now.items() if n not in approved}
    gone = {n: t for n, t in approved.items() if n not in counts}
    return Standing(good, changed, new, gone, twice)


def _likeness(old: ToolDefinition, new: ToolDefinition) -> float:
    same = sum(bool(getattr(old, name) == getattr(new, name)) for name in FIELDS if name != "name")
    return same + difflib.SequenceMatcher(None, old.name[:100], new.name[:100]).ratio()


def _diff(old: ToolDefinition, new: ToolDefinition) -> list[str]:
    found = difflib.unified_diff(old.lines(), new.lines(), "approved", "now", n=1, lineterm="")
    return [f"  {line}" for line in found]


def _plain(text: str) -> str:
    return json.dumps(text[:100])[1:-1]


def model_names(approved: Approved, taken: Sequence[str]) -> dict[tuple[str, str], str]:
    """The name that a model calls each approved tool by; a tool whose name cannot be one is left out.

    `.` and `/` become `_`. A name that several have, or that is `taken` by a function, gets `SERVER__` before it. Names depend on
    what was approved only, so a server that is away changes none.
    """
    plain = {
        (server, name): re.sub(r"[./]", "_", name) for server, tools in approved.items() for name in tools
    }
    counts = Counter([*plain.values(), *taken])
    named = {key: name if counts[name] == 1 else f"{key[0]}__{name}" for key, name in plain.items()}
    counts = Counter([*named.values(), *taken])
    return {key: name for key, name in named.items() if counts[name] == 1 and CALLABLE.fullmatch(name)}

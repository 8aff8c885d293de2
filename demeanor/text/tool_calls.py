"""Tool calls as text: {"name": ..., "arguments": ...} written, and found in a generated turn.

In: a ToolCall, or generated tokens and text. Out: JSON text, or Text and ToolCalled events. Calls are not run
or checked: what is not JSON stays text, and arguments are passed on exactly as the model wrote them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from demeanor.core.types import Decoding, Text, ToolCall, ToolCalled, ToolSpec

_JSON = json.JSONDecoder()


def call_text(call: ToolCall) -> str:
    """Return a call as the model writes it; arguments that are not a JSON value become a JSON string."""
    arguments = call.arguments.strip()
    if not _is_value(arguments):
        arguments = json.dumps(call.arguments, ensure_ascii=False)
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {arguments}}}'


def parse_call(text: str, index: int) -> ToolCall | None:
    """Parse call number `index` of a turn, arguments verbatim; None if it is not a JSON object with a name.

    The id depends on index and text only, so equal answers have equal ids everywhere.
    """
    found = _members(text.strip())
    if found is None or "name" not in found:
        return None
    name = found["name"][0]
    value, raw = found.get("arguments") or found.get("parameters") or ({}, "{}")
    if not isinstance(name, str):
        return None
    digest = hashlib.sha256(f"{index}\0{text.strip()}".encode("utf-8", "surrogatepass")).hexdigest()
    return ToolCall(f"call_{digest[:12]}", name, value if isinstance(value, str) else raw)


def cut_call(text: str, offered: Sequence[ToolSpec], choice: str) -> ToolCalled:
    """Return the call that a cut text begins: its name, else the first that it may be, and its arguments so far."""
    head = re.match(r'\s*\{"name": "(?P<name>[^"]*)(?P<whole>", "arguments": )?', text)
    begun, rest = (head["name"], text[head.end() :] if head["whole"] else "") if head else ("", "")
    names = [tool.name for tool in offered if choice in ("required", tool.name)]
    name = next((n for n in names if n == begun), None) or next(
        (n for n in names if n.startswith(begun)), names[0]
    )
    digest = hashlib.sha256(f"0\0{text}".encode("utf-8", "surrogatepass")).hexdigest()
    return ToolCalled(ToolCall(f"call_{digest[:12]}", name, rest))


def short_id(id: str) -> str:
    """Return nine letters and digits for a call's id: the only ids that some templates write."""
    return hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def signature(tool: ToolSpec) -> str:
    """Return a tool in a few tokens: name(parameter, parameter)."""
    return f"{tool.name}({', '.join(_properties(tool.parameters))})"


def needs_grammar(decoding: Decoding, offered: Sequence[ToolSpec], choice: str) -> bool:
    """Whether decoding must be held to tools: a call is demanded, or calls stand beside a format or are strict."""
    if choice not in ("auto", "none"):
        return True
    return bool(offered) and (decoding.form is not None or any(tool.strict for tool in offered))


class CallReader:
    """Parses one turn in which a call follows `opening` and ends at `closing`, the next opening, or the
    turn's end.

    If the opening is one special token (`opening_id`), only that token opens a call, never text that spells
    it.
    """

    def __init__(
        self, opening: str, closing: str = "", *, opening_id: int | None = None, skip_space: bool = False
    ) -> None:
        """`skip_space`: drop one space at the start of the answer, which belongs to the template."""
        self._opening, self._closing, self._opening_id = opening, closing, opening_id
        self._skip_space, self._held, self._calling = skip_space, "", False
        self._due = 0  # opening tokens that were fed and whose text has not arrived yet
        self._num_calls = 0

    @property
    def marks(self) -> tuple[str, str]:
        """The strings that open and close a call ("": it ends at the next call or the turn's end)."""
        return self._opening, self._closing

    def feed(self, token: int, text: str) -> list[Text | ToolCalled]:
        self._due += token == self._opening_id
        self._held += text
        return self._read(final=False)

    def finish(self) -> list[Text | ToolCalled]:
        return self._read(final=True)

    def _read(self, *, final: bool) -> list[Text | ToolCalled]:
        if self._skip_space and self._held:
            self._held, self._skip_space = self._held.removeprefix(" "), False
        events: list[Text | ToolCalled] = []
        while (step := self._next()) is not None:
            events += step
        if final:
            events += self._call(self._held) if self._calling else self._text(self._held)
            self._held, self._calling = "", False
        elif not self._calling:
            events += self._text(self._release())
        return events

    def _next(self) -> list[Text | ToolCalled] | None:
        """Take everything up to the next opening or closing from the held text; None if there is none."""
        if self._calling and self._closing:
            body, found, rest = self._held.partition(self._closing)
            if not found:
                return None
            self._held, self._calling = rest, False
            return self._call(body)
        before, found, rest = self._held.partition(self._opening)
        if not found or (self._opening_id is not None and not self._due):
            return None
        self._due -= self._opening_id is not None
        if self._calling:
            done = self._call(before)
        else:
            done = self._text(before.removesuffix("\n") if self._closing else before)
        self._held, self._calling = rest, True
        return done

    def _release(self) -> str:
        """Take what is certainly text: all but a possible beginning of a line break and opening."""
        size = len(self._held) if self._due else 0
        if self._opening_id is None:
            markers = [self._opening, f"\n{self._opening}"] if self._closing else [self._opening]
            longest = min(max(map(len, markers)) - 1, len(self._held))
            tails = (n for n in range(longest, 0, -1) if any(m.startswith(self._held[-n:]) for m in markers))
            size = max(size, next(tails, 0))
        certain, self._held = self._held[: len(self._held) - size], self._held[len(self._held) - size :]
        return certain

    def _text(self, text: str) -> list[Text | ToolCalled]:
        if self._num_calls and not text.strip():
            return []  # the line breaks around calls
        return [Text(text)] if text else []

    def _call(self, body: str) -> list[Text | ToolCalled]:
        call = parse_call(body, self._num_calls)
        self._num_calls += 1
        return [ToolCalled(call)] if call else [Text(body)]


def _members(text: str) -> Mapping[str, tuple[Any, str]] | None:
    """Return the members of a JSON object, each as (value, its text); None if it is not one."""
    found: dict[str, tuple[Any, str]] = {}
    try:
        at = _skip(text, 0, "{")
        while at < len(text) and text[at] != "}":
            key, at = _JSON.raw_decode(text, at)
            start = _skip(text, at, ":")
            value, at = _JSON.raw_decode(text, start)
            found[key] = (value, text[start:at])
            at = _skip(text, at, ",") if text[at:].lstrip()[:1] == "," else _skip(text, at, "")
        return found if text[at:].strip() == "}" else None
    except (ValueError, TypeError, RecursionError):
        return None


def _skip(text: str, at: int, expected: str) -> int:
    """Skip white space, `expected` and white space; raises ValueError if something else is there."""
    rest = text[at:].lstrip()
    if not rest.startswith(expected):
        raise ValueError(f"wanted {expected!r} at {at}")
    return len(text) - len(rest[len(expected) :].lstrip())


def _is_value(text: str) -> bool:
    """True if a text is one JSON value other than a string."""
    try:
        return not isinstance(json.loads(text), str)
    except (ValueError, RecursionError):
        return False


def _properties(parameters: Mapping[str, Any]) -> Sequence[str]:
    found = parameters.get("properties")
    return list(found) if isinstance(found, Mapping) else []

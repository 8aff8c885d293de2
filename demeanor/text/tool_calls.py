"""Tool calls as text, both ways: {"name": ..., "arguments": ...}, and a reader that finds them in a generated turn.

In: a ToolCall, or generated tokens and text. Out: JSON text, or Text and ToolCalled events. It never runs or checks a call:
what is not JSON is passed on as text, and arguments are passed on exactly as the model wrote them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from demeanor.core.types import Text, ToolCall, ToolCalled, ToolSpec

_JSON = json.JSONDecoder()


def call_text(call: ToolCall) -> str:
    """A call as the model writes it; arguments that are a JSON value stand as they are, anything else as a JSON string."""
    arguments = call.arguments.strip()
    if not _is_value(arguments):
        arguments = json.dumps(call.arguments, ensure_ascii=False)
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {arguments}}}'


def parse_call(text: str, index: int) -> ToolCall | None:
    """Read the call number `index` of a turn, its arguments verbatim; None if it is no JSON object with a name.

    The id depends on index and text alone, so the same answer has the same ids everywhere.
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


def signature(tool: ToolSpec) -> str:
    """A tool in a few tokens: name(parameter, parameter)."""
    return f"{tool.name}({', '.join(_properties(tool.parameters))})"


def function(tool: ToolSpec) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
    }


class CallReader:
    """Reads one turn in which calls stand behind `opening` (and end at `closing`, at the next one, or with the turn).

    Where the opening is one special token (`opening_id`), only that token opens a call, never text that spells it.
    """

    def __init__(
        self, opening: str, closing: str = "", *, opening_id: int | None = None, skip_space: bool = False
    ) -> None:
        """`skip_space`: the template, not the model, owes one space at the start of the answer."""
        self._opening, self._closing, self._opening_id = opening, closing, opening_id
        self._skip_space, self._held, self._calling = skip_space, "", False
        self._due = 0  # opening tokens that were seen but whose text has not come yet
        self._num_calls = 0

    @property
    def marks(self) -> tuple[str, str]:
        """What opens a call and what closes it ("": the next one, or the turn's end)."""
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
        """Take everything up to the next opening or closing out of what is held; None if there is none."""
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
        done = (
            self._call(before)
            if self._calling
            else self._text(before.removesuffix("\n") if self._closing else before)
        )
        self._held, self._calling = rest, True
        return done

    def _release(self) -> str:
        """Take out what is surely text: all but a beginning of the line break and opening that may follow."""
        markers = (
            []
            if self._opening_id is not None
            else [self._opening, f"\n{self._opening}"][: 2 if self._closing else 1]
        )
        longest = max(map(len, markers), default=1) - 1
        size = next(
            (
                n
                for n in range(min(longest, len(self._held)), 0, -1)
                if any(m.startswith(self._held[-n:]) for m in markers)
            ),
            0,
        )
        size = len(self._held) if self._due else size
        sure, self._held = self._held[: len(self._held) - size], self._held[len(self._held) - size :]
        return sure

    def _text(self, text: str) -> list[Text | ToolCalled]:
        if self._num_calls and not text.strip():
            return []  # the line breaks around calls
        return [Text(text)] if text else []

    def _call(self, body: str) -> list[Text | ToolCalled]:
        call = parse_call(body, self._num_calls)
        self._num_calls += 1
        return [ToolCalled(call)] if call else [Text(body)]


def _members(text: str) -> Mapping[str, tuple[Any, str]] | None:
    """The members of a JSON object, each as (value, its text)."""
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
    """The place after white space, `expected` and white space; raises ValueError if something else stands there."""
    rest = text[at:].lstrip()
    if not rest.startswith(expected):
        raise ValueError(f"wanted {expected!r} at {at}")
    return len(text) - len(rest[len(expected) :].lstrip())


def _is_value(text: str) -> bool:
    """Whether a text is one JSON value other than a string."""
    try:
        return not isinstance(json.loads(text), str)
    except (ValueError, RecursionError):
        return False


def _properties(parameters: Mapping[str, Any]) -> Sequence[str]:
    found = parameters.get("properties")
    return list(found) if isinstance(found, Mapping) else []

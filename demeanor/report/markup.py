"""HTML and SVG from functions: whatever is not markup already is escaped, so no answer of a model can become a tag.

In: strings, numbers, other markup. Out: `Html`. It refuses to know what is written.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

INVISIBLE = (
    ("\0", "\x1f"),
    ("\x7f", "\x9f"),
    ("\u202a", "\u202e"),
    ("\u2066", "\u2069"),
    ("\ud800", "\udfff"),
)
"""Control characters, bidirectional overrides and lone surrogates: first and last of each range."""

VOID = frozenset({"meta", "br", "hr", "line", "rect", "circle", "path", "polyline"})


class Html(str):
    """Text that is markup: made by `el` and `join` only."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"


def el(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """An element; `class_` is class, `data_x` is data-x, None and False are left out, numbers are rounded to 2 places."""
    inner = join(*children)
    opening = f"<{name}{''.join(_attribute(k, v) for k, v in attributes.items())}"
    return Html(f"{opening}/>" if name in VOID and not inner else f"{opening}>{inner}</{name}>")


def join(*children: Child) -> Html:
    """Children one after another, everything but Html escaped."""
    return Html("".join(_child(child) for child in children))


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str | int | float):
        return html.escape(visible(str(child)))
    return "".join(_child(one) for one in child)


def _attribute(name: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    shown = (
        f"{value:.2f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else ""
        if value is True
        else str(value)
    )
    return f' {name.rstrip("_").replace("_", "-")}="{html.escape(visible(shown))}"'


def visible(text: str) -> str:
    """Control characters (which HTML forbids, and which could reverse the reading order) as their code points."""
    return "".join(f"\\u{ord(c):04x}" if _invisible(c) else c for c in text)


def _invisible(c: str) -> bool:
    return c not in "\n\t" and any(first <= c <= last for first, last in INVISIBLE)

"""Compares what a page says that a command prints with what it printed.

`words`: every quoted line was printed, in order; numbers, keys and dates may differ. `near`: also, a number whose line was
printed with an interval lies in it. `exact`: letter by letter. `...` stands for anything. White space never counts.
"""

from __future__ import annotations

import re

NUMBER = r"[-+−]?\d[\d,_]*(?:\.\d+)?(?:e[-+]?\d+)?%?"
KEY = re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{8,}\b")
INTERVAL = re.compile(rf"({NUMBER})\*?\s*[\[(]({NUMBER})(?: to |\.\.|, )({NUMBER})[\])]")


def missing(quoted: tuple[str, ...], printed: str, how: str) -> str | None:
    """The first quoted line that was not printed after the one before it, or None."""
    if how == "example":
        return None
    lines = [_plain(line) for line in printed.splitlines()]
    at = 0
    for line in quoted:
        wanted = _plain(line)
        if not wanted or wanted == "...":
            continue
        pattern = _pattern(wanted, how)
        found = next((i for i in range(at, len(lines)) if pattern.search(lines[i])), None)
        if found is None:
            return line.strip()
        if how == "near" and (far := outside(wanted, lines[found])):
            return f"{line.strip()}  ({far})"
        at = found + 1
    return None


def outside(quoted: str, printed: str) -> str | None:
    """The first quoted estimate outside of the interval that was printed in its place."""
    for (value, *_), (fresh, low, high) in zip(
        INTERVAL.findall(quoted), INTERVAL.findall(printed), strict=False
    ):
        if not number(low) - 1e-9 <= number(value) <= number(high) + 1e-9:
            return f"now {fresh} ({low} to {high})"
    return None


def number(text: str) -> float:
    return float(text.replace(",", "").replace("_", "").replace("−", "-").rstrip("%"))


def _plain(line: str) -> str:
    return " ".join(line.split())


def _pattern(wanted: str, how: str) -> re.Pattern[str]:
    parts = [_part(part, how) for part in wanted.split("...")]
    return re.compile(".*".join(parts))


def _part(text: str, how: str) -> str:
    if how == "exact":
        return re.escape(text)
    free = re.compile(rf"{KEY.pattern}|{NUMBER}")
    out, at = "", 0
    for found in free.finditer(text):
        out += re.escape(text[at : found.start()])
        out += "[0-9a-f]+" if KEY.fullmatch(found[0]) else NUMBER
        at = found.end()
    return out + re.escape(text[at:])

"""Numbers as text: shares, differences in points, intervals, p-values, counts.

In: numbers. Out: short strings that never claim more than the number: 0.997 is ">99", not "100".
"""

from __future__ import annotations

from collections.abc import Sequence

MINUS = "−"
NONE = "–"  # shown where a number is missing
# Control characters, bidirectional overrides and lone surrogates: first and last of each range.
INVISIBLE = (
    ("\0", "\x1f"),
    ("\x7f", "\x9f"),
    ("\u202a", "\u202e"),
    ("\u2066", "\u2069"),
    ("\ud800", "\udfff"),
)


def percent(value: float | None, places: int = 0) -> str:
    """A share in per cent; a whole number is never rounded to 0 or 100 unless it is: 0.997 is '>99'."""
    if value is None:
        return NONE
    if places == 0 and 0.995 <= value < 1:
        return ">99"
    return "<1" if places == 0 and 0 < value <= 0.005 else number(100 * value, places)


def points(value: float | None, places: int = 0) -> str:
    """Return a difference of shares in percentage points with its sign; one that rounds to zero has no
    sign."""
    if value is None:
        return NONE
    rounded = round(100 * value, places)
    return f"+{rounded:.{places}f}" if rounded > 0 else number(rounded, places)


def number(value: float, places: int = 2) -> str:
    """Return a number with a true minus sign; one that rounds to zero has no sign."""
    return f"{value:z.{places}f}".replace("-", MINUS)


def interval(low: float | None, high: float | None, places: int = 0) -> str:
    """Return the interval of a difference in points: `+3 to +14`."""
    if low is None or high is None:
        return "no interval"
    return f"{_bound(low, places)} to {_bound(high, places)}"


def size(value: float, low: float | None, high: float | None) -> str:
    """Return the size of a difference in points without its sign: `10 points (interval 1 to 19)`."""
    text = f"{100 * abs(value):.0f} points"
    if low is None or high is None:
        return text
    if low <= 0 <= high or value == 0:
        return f"{text} (interval {interval(low, high)})"
    nearest, furthest = sorted((abs(low), abs(high)))
    return f"{text} (interval {interval(nearest, furthest)})".replace("+", "")


def _bound(value: float, places: int) -> str:
    """Return a bound in points; with one decimal and its sign if rounding would make it zero."""
    if value != 0 and round(100 * value, places) == 0:
        return f"{'+' if value > 0 else MINUS}{abs(100 * value):.1f}"
    return points(value, places)


def share(value: float | None, low: float | None, high: float | None, places: int = 0) -> str:
    """A share with its interval: `89% (80 to 95)`."""
    if value is None:
        return "not measured"
    bounds = "" if low is None or high is None else f" ({percent(low, places)} to {percent(high, places)})"
    return f"{percent(value, places)}%{bounds or ', no interval (one cluster)'}"


def estimate(value: float | None, low: float | None, high: float | None, places: int = 2) -> str:
    """Return a number with its interval, if it has one."""
    if value is None:
        return NONE
    if low is None or high is None:
        return number(value, places)
    return f"{number(value, places)} ({number(low, places)} to {number(high, places)})"


def p_value(p: float | None) -> str:
    """Return a p-value with three decimals; a small one is never printed as zero."""
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 item`, `1,200 items`."""
    return f"{count:,} {noun if count == 1 else noun + 's'}"


def listed(parts: Sequence[str]) -> str:
    """Return a list as text: `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def first_of(names: Sequence[str], most: int) -> str:
    """Return the first names and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def axis_name(name: str) -> str:
    """Return the name of a behavior (axis) for display."""
    return name.replace("_", " ")


def visible(text: str) -> str:
    """Replace control characters (invalid in HTML, may reverse the reading order) by their code points."""
    return "".join(f"\\u{ord(c):04x}" if _invisible(c) else c for c in text)


def _invisible(c: str) -> bool:
    return c not in "\n\t" and any(first <= c <= last for first, last in INVISIBLE)

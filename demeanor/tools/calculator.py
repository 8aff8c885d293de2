"""The calculator tool: exact arithmetic with + - * / // % ** and brackets.

In: an expression as text. Out: its value: exact if it has few decimals (10 / 4 is 2.5), else rounded to 10
significant digits and at least 2 decimals. Python's grammar parses it, and only arithmetic nodes are
accepted; nothing is evaluated as code. Length, depth, exponents and every intermediate number are bounded.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from demeanor.core.types import ToolSpec

MAX_LENGTH, MAX_DEPTH, MAX_EXPONENT, MAX_BITS = 200, 40, 1000, 4096
DIGITS, EXACT_DIGITS = 10, 20

PURE = True
SPEC = ToolSpec(
    "calculator",
    "Works out an arithmetic expression, such as (37 * 12 + 4) / 5.",
    {
        "type": "object",
        "properties": {"expression": {"type": "string", "minLength": 1, "maxLength": MAX_LENGTH}},
        "required": ["expression"],
        "additionalProperties": False,
    },
)

OPERATORS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**", "[": "(", "]": ")"})
NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")


async def run(arguments: Mapping[str, Any]) -> str:
    """Return the value of arguments["expression"]; raises ValueError or ZeroDivisionError that says what
    is wrong."""
    return shown(value(arguments["expression"]))


def value(expression: str) -> Fraction:
    """Return the exact value of an expression; raises ValueError or ZeroDivisionError."""
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"the expression has {len(expression)} characters; at most {MAX_LENGTH} are allowed")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", expression.translate(SPELLINGS))  # 1,000
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text).strip().rstrip("= ")  # leading zeros
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            f"not arithmetic: {expression!r}. Wanted numbers, + - * / // % ** and brackets"
        ) from None
    return _value(tree.body, text, MAX_DEPTH)


def _value(node: ast.expr, text: str, depth: int) -> Fraction:
    if depth == 0:
        raise ValueError("brackets nested too deep")
    match node:
        case ast.Constant():
            return _bounded(_number(ast.get_source_segment(text, node) or ""))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, text, depth - 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner, text, depth - 1)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, ast.Pow) or type(op) in OPERATORS:
            a, b = _value(left, text, depth - 1), _value(right, text, depth - 1)
            if isinstance(op, ast.Pow):
                return _power(a, b)
            if b == 0 and not isinstance(op, ast.Add | ast.Sub | ast.Mult):
                raise ZeroDivisionError("division by zero")
            return _bounded(Fraction(OPERATORS[type(op)](a, b)))
    part = (ast.get_source_segment(text, node) or "?")[:40]
    raise ValueError(f"not arithmetic: {part!r}. Wanted numbers, + - * / // % ** and brackets")


def _number(text: str) -> Fraction:
    if not NUMBER.fullmatch(text):
        raise ValueError(f"not a number: {text[:40]!r}. Wanted digits with at most one point")
    return Fraction(text)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT:
        raise ValueError(f"the exponent should be a whole number of at most {MAX_EXPONENT}")
    if base == 0 and exponent < 0:
        raise ZeroDivisionError("division by zero")
    if _bits(base) * abs(exponent) > MAX_BITS:
        raise ValueError("the number is too large")
    return Fraction(base ** int(exponent))


def _bounded(number: Fraction) -> Fraction:
    if _bits(number) > MAX_BITS:
        raise ValueError("the number is too large")
    return number


def _bits(number: Fraction) -> int:
    denominator = number.denominator.bit_length() if number.denominator != 1 else 0
    return max(number.numerator.bit_length(), denominator)


def shown(number: Fraction) -> str:
    """Return a number as people write it: whole, with all decimals if they are few, or rounded."""
    if number.denominator == 1:
        return str(number.numerator)
    sign, number = "-" if number < 0 else "", abs(number)
    decimals = _decimals(number.denominator)
    if decimals is None or decimals > EXACT_DIGITS:
        decimals = max(2, DIGITS - _magnitude(number))
    scaled = str(round(number * 10**decimals)).rjust(decimals + 1, "0")
    text = f"{scaled[:-decimals]}.{scaled[-decimals:]}".rstrip("0").rstrip(".") if decimals else scaled
    return f"{sign}{text}"


def _decimals(denominator: int) -> int | None:
    """Return the number of decimals of a fraction with this denominator; None if they do not end."""
    twos = (denominator & -denominator).bit_length() - 1
    rest, fives = denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    return max(twos, fives) if rest == 1 else None


def _magnitude(number: Fraction) -> int:
    """Return the digits before the point; 0 or less counts leading zeros after it (0.05 has -1)."""
    digits = len(str(number.numerator)) - len(str(number.denominator))
    return digits + 1 if number >= Fraction(10) ** digits else digits

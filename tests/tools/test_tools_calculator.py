"""The calculator: exact, bounded, and nothing but arithmetic."""

from __future__ import annotations

import operator
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from demeanor.core.errors import DemeanorError
from demeanor.layers import tools
from demeanor.tools.calculator import MAX_LENGTH, SPEC, run, shown, value


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("37*12", "444"),
        ("10/4", "2.5"),
        ("7/3", "2.333333333"),
        ("-5 // 2", "-3"),
        ("-5 % 3", "1"),
        ("2**10", "1024"),
        ("2^-2", "0.25"),
        ("1,000 × 3", "3000"),
        ("007 + 1", "8"),
        ("10.005*1", "10.005"),
        ("0.1 + 0.2", "0.3"),
        ("12 − 5", "7"),
        ("9 ÷ 3", "3"),
        ("[1+2]*3", "9"),
        (" 1 +\t1 = ", "2"),
        ("--3", "3"),
        ("+4", "4"),
        ("2/3*3", "2"),
        ("1/3000", "0.0003333333333"),
        ("-7/3", "-2.333333333"),
        (".5+5.", "5.5"),
        ("1000000/3", "333333.3333"),
        ("999999999999/7", "142857142857"),
        ("5555555555555/7", "793650793650.71"),
        ("2/3", "0.6666666667"),
        ("99999999999.6/1", "99999999999.6"),
        ("9" * 30 + "*" + "9" * 30, str((10**30 - 1) ** 2)),
        ("1/8", "0.125"),
        ("-0", "0"),
    ],
)
async def test_values_are_shown_as_a_person_writes_them(expression: str, answer: str) -> None:
    assert await run({"expression": expression}) == answer


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('x')",
        "().__class__",
        "a",
        "f(1)",
        "1 if 1 else 2",
        "[1][0]",
        "'a'*3",
        "1 < 2",
        "not 1",
        "1 and 2",
        "lambda: 1",
        "3j",
        "True",
        "0x10",
        "1e9",
        "1e999999999",
        "1_000",
        "...",
        "{1}",
        "(1,2)",
        "1 @ 2",
        "1 << 9",
        "~1",
        "1 | 2",
        "x:=1",
        "f'{1}'",
        "5!",
        "",
        "=",
        "1;2",
        "1\n2",
        "await 1",
        "*1",
        "\x00",
        "\ud800",
        "٣",
        "((",
        "1" + "+",
        "yield",
    ],
)
async def test_what_is_not_arithmetic_is_refused_with_a_sentence(expression: str) -> None:
    with pytest.raises(ValueError, match=r"not arithmetic|not a number"):
        await run({"expression": expression})


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("9**9999", "at most 1000"),
        ("2**0.5", "whole number"),
        ("9**999**9", "at most 1000"),
        ("(9**999)*(9**999)", "too large"),
        ("99999999**999", "too large"),
        ("(1/3)**-999*(1/7)**-999*(1/7)**-999", "too large"),
        ("1+" * 150 + "1", f"at most {MAX_LENGTH}"),
        ("-" * 100 + "1", "too deep"),
        ("(" * 90 + "1" + ")" * 90, None),
        ("1/0", "division by zero"),
        ("0**-1", "division by zero"),
        ("5 % 0", "division by zero"),
        ("5 // (1-1)", "division by zero"),
    ],
)
async def test_everything_is_bounded(expression: str, why: str | None) -> None:
    if why is None:
        assert await run({"expression": expression}) == "1"  # brackets alone are no depth
        return
    with pytest.raises((ValueError, ZeroDivisionError), match=why):
        await run({"expression": expression})


OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}
numbers = st.integers(0, 10**6).map(lambda n: (str(n), Fraction(n))) | st.decimals(0, 1000, places=3).map(
    lambda d: (str(d), Fraction(str(d)))
)


def joined(parts: tuple[tuple[str, Fraction], str, tuple[str, Fraction]]) -> tuple[str, Fraction]:
    (a, x), sign, (b, y) = parts
    return f"({a} {sign} {b})", Fraction(OPERATORS[sign](x, y)) if y or sign in "+-*" else x


def usable(parts: tuple[tuple[str, Fraction], str, tuple[str, Fraction]]) -> bool:
    return bool(parts[2][1]) or parts[1] in ("+", "-", "*")


trees = st.recursive(
    numbers,
    lambda inner: st.tuples(inner, st.sampled_from(sorted(OPERATORS)), inner).filter(usable).map(joined),
    max_leaves=8,
)


@given(trees)
@settings(max_examples=300, deadline=None)
def test_values_equal_fractions(tree: tuple[str, Fraction]) -> None:
    text, exact = tree
    assume(len(text) <= MAX_LENGTH)
    assert value(text) == exact


@given(st.fractions(min_value=-(10**12), max_value=10**12, max_denominator=10**9))
@settings(max_examples=300)
def test_what_is_shown_is_exact_where_it_ends_and_else_within_half_a_unit_of_the_tenth_digit(
    number: Fraction,
) -> None:
    text = shown(number)
    rest = number.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest == 1 and len(text.partition(".")[2]) < 20 and number.denominator < 10**6:
        assert Fraction(text) == number
    assert abs(Fraction(text) - number) <= abs(number) * Fraction(5, 10**10)
    assert "e" not in text
    assert not text.endswith(".")
    assert text != "-0"


@given(st.text("0123456789.+-*/%()^,= e_xjTrue[]", max_size=60) | st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_number_or_a_sentence(text: str) -> None:
    try:
        outcome = shown(value(text))
    except (ValueError, ZeroDivisionError) as error:
        outcome = str(error)
    assert outcome


def test_tools_are_loaded_by_name_and_an_unknown_one_names_the_nearest() -> None:
    found = tools.load(["calculator"])
    assert (found["calculator"].spec, found["calculator"].run) == (SPEC, run)
    with pytest.raises(DemeanorError, match="Did you mean 'calculator'"):
        tools.load(["calculater"])

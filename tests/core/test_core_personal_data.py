"""Detectors: checked against published examples, a slow twin, and how often they are wrong on harmless text."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.core import personal_data
from demeanor.core.long_text import Folded
from demeanor.core.personal_data import DETECTORS


def found(kind: str, text: str) -> str | None:
    folded = Folded(text)
    span = next(DETECTORS[kind].find(folded.text, 0), None)
    return None if span is None else text[slice(*folded.span(*span))]


# Test numbers that the card schemes publish.
@pytest.mark.parametrize(
    "number",
    [
        "4111 1111 1111 1111",
        "4012888888881881",
        "4222222222222",
        "5555-5555-5555-4444",
        "5105105105105100",
        "3782 822463 10005",
        "371449635398431",
        "6011 1111 1111 1117",
        "30569309025904",
        "3530111333300000",
        "2223 0031 2200 3222",
        "4429.5715.0901.7401",
        "4 4 2 9 5 7 1 5 0 9 0 1 7 4 0 1",
        "44 29 57 15 09 01 74 01",
        "4429\u2009\u20095715\u00a00901\u20117401",
        "\uff14\uff14\uff12\uff19 5715 0901 7401",
        "4429\u200b5715\u200b0901\u200b7401",
        "\u0664\u0664\u0662\u0669 5715 0901 7401",
    ],
)
def test_a_card_number_is_found_however_it_is_grouped(number: str) -> None:
    assert found("card", f"Use {number}, thanks.") == number
    assert found("card", number) == number


@pytest.mark.parametrize(
    "number", ["4429 5715 0901 7401", "4429571509017401", "3782-822463-10005", "30569309025904"]
)
def test_a_card_in_its_usual_grouping_is_found_between_other_numbers(number: str) -> None:
    assert found("card", f"12/26 {number} 123") == number
    assert found("card", f"7 {number}. 9 10") == number


@pytest.mark.parametrize(
    "text",
    [
        "4429 5715 0901 7402",
        "7992 7398 7130 0000",
        "4111 1111 1111 111",
        "94111111111111111",
        "Booking 7348120947361528",
        "call 030 1234567",
        "6 8 10 12 14 16 18 20 22",
        "2026-11-23 12:30:00",
        "",
        "1.4142135623730950488",
    ],
)
def test_numbers_that_are_no_cards_are_left_alone(text: str) -> None:
    assert found("card", text) is None


def test_lists_of_numbers_are_seldom_taken_for_cards() -> None:
    rng = random.Random(1)
    lists = [" ".join(str(rng.randrange(60)) for _ in range(rng.randrange(5, 25))) for _ in range(2000)]
    wrong = sum(found("card", text) is not None for text in lists)
    assert wrong / len(lists) < 0.01, wrong


def test_nine_of_ten_numbers_in_a_cards_clothes_fail_the_check_digit() -> None:
    rng = random.Random(2)
    numbers = [f"4{rng.randrange(10**15):015d}" for _ in range(3000)]
    share = sum(found("card", n) is not None for n in numbers) / len(numbers)
    assert abs(share - 0.1) < 0.02  # 0.1 exactly in expectation; 0.02 is 3.6 standard deviations


@given(st.integers(0, 10**18))
def test_luhn_equals_the_textbook(number: int) -> None:
    digits = [int(d) for d in str(number)]
    total = 0
    for i, d in enumerate(digits[::-1]):
        total += d if i % 2 == 0 else sum(map(int, str(2 * d)))
    assert personal_data.luhn(str(number)) == (total % 10 == 0)


# Examples of the SWIFT registry.
@pytest.mark.parametrize(
    "iban",
    [
        "DE89 3704 0044 0532 0130 00",
        "GB29NWBK60161331926819",
        "FR1420041010050500013M02606",
        "NO93 8601 1117 947",
        "MT84MALT011000012345MTLCAST001S",
        "nl91abna0417164300",
    ],
)
def test_an_iban_is_found_by_its_remainder(iban: str) -> None:
    assert found("iban", f"Pay {iban} today and be done") == iban
    wrong = iban[:-1] + ("1" if iban[-1] != "1" else "2")
    assert found("iban", f"Pay {wrong} today") is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("write to a.b+c@mail.example.org.", "a.b+c@mail.example.org"),
        ("x@y", None),
        ("@home", None),
        ("A_1@EXAMPLE.COM", "A_1@EXAMPLE.COM"),
        ("at 5@6.7", None),
    ],
)
def test_email_addresses(text: str, address: str | None) -> None:
    assert found("email", text) == address


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("+49 30 1234567", "+49 30 1234567"),
        ("call +1 (555) 123-4567 now", "+1 (555) 123-4567"),
        ("(555) 234-5678", "(555) 234-5678"),
        ("030 12345678", "030 12345678"),
        ("0044 20 7946 0958", "0044 20 7946 0958"),
        ("Corkel 9. Jorpel 17.", None),
        ("2026-11-23 12:30", None),
        ("37 * 12 + 4", None),
        ("555 1234", None),
        ("12 34 56 78 90 12", None),
    ],
)
def test_phone_numbers(text: str, number: str | None) -> None:
    assert found("phone", text) == number


@pytest.mark.parametrize(
    ("kind", "text", "hit"),
    [
        ("card", "4111 1111\r\n1111 1111", "4111 1111\r\n1111 1111"),
        ("card", "`4111` `1111` `1111` `1111`", "4111` `1111` `1111` `1111"),
        ("card", "4111 - 1111 - 1111 - 1111", "4111 - 1111 - 1111 - 1111"),
        ("card", "4111, 1111, 1111, 1111", "4111, 1111, 1111, 1111"),
        ("card", "| 4111 | 1111 | 1111 | 1111 |", "4111 | 1111 | 1111 | 1111"),
        ("card", "4111 1111 1111 1111 12/29", "4111 1111 1111 1111"),
        ("card", "2026 4111 1111 1111 1111", "4111 1111 1111 1111"),
        ("card", "630427373398", "630427373398"),
        ("card", "180016070420458", "180016070420458"),
        ("card", "4131034282458809939", "4131034282458809939"),
        ("card", "translate(0%, -0.5309136012499991%)", None),
        ("card", "GB90YNTU67299444055881", None),
        ("card", "411111111111111112345678", None),
        ("card", "4111; 1111, 1111: 1111", None),
        (
            "iban",
            "DE89\u20133704\u20130044\u20130532\u20130130\u201300",
            "DE89\u20133704\u20130044\u20130532\u20130130\u201300",
        ),
        (
            "iban",
            "DE\u0668\u0669\u0663\u0667\u0660\u0664\u0660\u0660\u0664\u0664\u0660\u0665\u0663\u0662\u0660\u0661\u0663\u0660\u0660\u0660",
            "DE\u0668\u0669\u0663\u0667\u0660\u0664\u0660\u0660\u0664\u0664\u0660\u0665\u0663\u0662\u0660\u0661\u0663\u0660\u0660\u0660",
        ),
        ("iban", "DE89 3704 0044\r\n0532 0130 00", "DE89 3704 0044\r\n0532 0130 00"),
        ("iban", "at 20 percent of all households it is", None),
        ("email", "anna@m\u00fcller.de", "anna@m\u00fcller.de"),
        ("email", "anna@\nexample.com", "anna@\nexample.com"),
        ("email", "j\u00f6rg@example.com", "j\u00f6rg@example.com"),
        (
            "email",
            "\u0430\u043d\u043d\u0430@\u043f\u043e\u0447\u0442\u0430.\u0440\u0444",
            "\u0430\u043d\u043d\u0430@\u043f\u043e\u0447\u0442\u0430.\u0440\u0444",
        ),
        (
            "email",
            "\u0905\u0928\u094d\u0928\u093e@\u0909\u0926\u093e\u0939\u0930\u0923.\u092d\u093e\u0930\u0924",
            "\u0905\u0928\u094d\u0928\u093e@\u0909\u0926\u093e\u0939\u0930\u0923.\u092d\u093e\u0930\u0924",
        ),
        ("email", "<o'neil+x@a.example>", "o'neil+x@a.example"),
        ("email", "icon@2x.png", None),
        ("phone", "Call +49 30 1234567 2026-11-29", "+49 30 1234567 2026"),
        ("phone", "06 12 34 56 78", "06 12 34 56 78"),
        ("phone", "415\u2013555\u20132671", "415\u2013555\u20132671"),
        ("phone", "+49 30 1234567/1234568", "+49 30 1234567"),
        ("phone", "+46 (0)8 928 571 38 fax", "+46 (0)8 928 571 38"),
        ("phone", "Phone: 467 3395", "467 3395"),
        ("phone", "467 3395 office", "467 3395"),
        ("phone", "345-899-3560x4587", "345-899-3560x4587"),
        ("phone", "467 3395 apples", None),
        ("phone", "+999 30 1234567", None),
        ("phone", "message 88638705-bafc-4994", None),
        ("phone", "054-28-6917", None),
        ("phone", "sold for 2400 / 200 phones", None),
        ("ssn", "my SSN: 054-28-6917.", "054-28-6917"),
        ("ssn", "social security number 054286917", "054286917"),
        ("ssn", "000-12-3456 666-12-3456 900-12-3456 123-00-4567 123-45-0000", None),
        ("ssn", "078-05-1120", None),
        ("ssn", "1054-28-6917", None),
        ("ssn", "054286917", None),
        ("ip", "from 106.31.73.20.", "106.31.73.20"),
        ("ip", "[6e40:4041:c617:e898:c11:40d2:c669:2eb4]:80", "6e40:4041:c617:e898:c11:40d2:c669:2eb4"),
        ("ip", "fe80::1", "fe80::1"),
        ("ip", "::ffff:10.0.0.1", "::ffff:10.0.0.1"),
        ("ip", "256.1.1.1", None),
        ("ip", "v1.2.3.4 and 1.2.3.4.5", None),
        ("ip", "std::vector a::b 12:30:00", None),
    ],
)
def test_what_is_found_and_what_is_left_alone(kind: str, text: str, hit: str | None) -> None:
    assert found(kind, text) == hit


SCRAPS = [
    "4429",
    "5715",
    "0901",
    "7401",
    " ",
    "-",
    "DE89 3704 0044 0532 0130 00",
    "a@b.co",
    "call 030 ",
    "054-28-6917",
    "10.0.0.1",
    "fe80::1",
    "\r\n",
    "+49 30 1234567",
    ".",
    "x",
    "4",
    "\u200b",
    "1",
]


@given(st.lists(st.sampled_from(SCRAPS), max_size=14), st.sampled_from(sorted(DETECTORS)), st.data())
@settings(max_examples=600, deadline=None)
def test_a_hit_depends_only_on_what_is_within_its_width(
    scraps: list[str], kind: str, data: st.DataObject
) -> None:
    text, detector = Folded("".join(scraps)).text, DETECTORS[kind]
    cut = data.draw(st.integers(0, len(text)))
    early, whole = list(detector.find(text[:cut], 0)), list(detector.find(text, 0))
    settled = cut - detector.width  # places before it show in full
    assert [span for span in early if span[0] < settled] == [span for span in whole if span[0] < settled]
    assert all(end - begin <= detector.width for begin, end in whole)
    for begin, _ in whole:
        assert list(detector.find(text, begin)) == [span for span in whole if span[0] >= begin]
        base = max(0, begin - personal_data.BEHIND)
        assert next(detector.find(text[base:], begin - base)) == (
            begin - base,
            next(end for start, end in whole if start == begin) - base,
        )


@given(st.text(max_size=40))
def test_folding_keeps_track_of_where_every_character_came_from(text: str) -> None:
    folded, pieces = Folded(text), Folded()
    for character in text:
        pieces.add(character)
    assert (pieces.text, pieces.original) == (folded.text, text)
    for i in range(len(folded.text)):
        start, end = folded.span(i, i + 1)
        assert end == start + 1
        assert folded.text[i] in Folded(text[start:end]).text
        assert pieces.span(i, i + 1) == (start, end)
    assert folded.origin(len(folded.text)) == len(text)

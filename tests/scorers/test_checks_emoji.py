"""The `emoji` check counts what a reader sees: a flag, a skin tone or a joined family is one emoji, not its code points."""

from __future__ import annotations

import pytest

from demeanor.evaluation.scorers._checks import CHECKS


def count(text: str) -> int:
    return next(n for n in range(20) if CHECKS["emoji"][0](text, {"low": n, "high": n}))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("no picture, 12 words, #1, *", 0),
        ("good 👍", 1),
        ("good 👍🏽", 1),
        ("the cook 👩🏽\u200d🍳 is in", 1),
        ("a family 👨\u200d👩\u200d👧", 1),
        ("Norway 🇳🇴", 1),
        ("🇳🇴🇸🇪", 2),
        ("☀️ ☔ ⏰ ⭐", 4),
        ("❤️ 🥞🍓", 3),
        ("1️⃣ 2️⃣", 2),
    ],
)
def test_an_emoji_is_counted_once_however_many_code_points_it_has(text: str, wanted: int) -> None:
    assert count(text) == wanted

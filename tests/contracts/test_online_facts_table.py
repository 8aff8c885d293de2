"""The fifteen facts that implementations of online objectives got wrong: each is in the table of its page, held by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import each

REPOSITORY = Path(__file__).resolve().parents[2]


def rows() -> dict[int, str]:
    """The cells that name tests, by the number of the fact."""
    page = (REPOSITORY / "docs" / "online-objectives.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (\d+) \|[^|]+\|(.+)\|$", page, re.MULTILINE)
    return {int(number): cell for number, cell in found}


def test_each_of_the_fifteen_facts_is_held_by_tests_that_exist() -> None:
    assert sorted(rows()) == list(range(1, 16))
    for number, cell in each(rows().items()):
        files = re.findall(r"`(tests/[\w/]+\.py)`", cell)
        assert files, f"fact {number}: no test file"
        texts = [(REPOSITORY / name).read_text(encoding="utf-8") for name in files]
        missing = [
            name
            for name in re.findall(r"`(test_\w+)`", cell)
            if not any(f"def {name}(" in text for text in texts)
        ]
        assert not missing, f"fact {number}: {missing}"

"""The report that the site shows as an example is of the run whose numbers stand in README."""

from __future__ import annotations

import re

from tests.conftest import REPOSITORY, each

PAGE = REPOSITORY / "docs" / "examples" / "demo.html"
NAMES = {
    "jailbreak refused": "jailbreak",
    "harmless look-alikes answered": "policy lookalike",
    "safe requests answered": "safe twin",
}
"""What README calls a row in other words than the report."""


def ladder() -> dict[str, list[str]]:
    """Each row of the page's first table: the share of every column with its change, bold as in README."""
    table = re.search(r"<table.*?</table>", PAGE.read_text(encoding="utf-8"), re.S)
    assert table
    found = {}
    for row in re.findall(r"<tr.*?</tr>", table[0], re.S)[1:]:
        name = re.search(r'<th scope="row">(?:<a [^>]*>)?([^<]*)', row)
        assert name
        found[name[1]] = [_as_text(cell) for cell in re.findall(r"<td.*?</td>", row, re.S) if "<b>" in cell]
    return found


def _as_text(cell: str) -> str:
    share, change = re.search(r"<b>(\d+)</b>", cell), re.search(r"[▲▼] ([+−]\d+)", cell)
    assert share
    if change is None:
        return share[1]
    return f"{share[1]} **{change[1]}**" if "firm-word" in cell else f"{share[1]} {change[1]}"


def test_the_table_of_readme_is_that_of_the_example_page() -> None:
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    start = lines.index(next(line for line in lines if line.startswith("| behavior | base |")))
    found = ladder()
    for line in each(lines[start + 2 : start + 9]):
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert cells[:7] == found[NAMES.get(name, name)], name


def test_the_example_page_names_no_folder_of_a_machine() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(tmp|home|root|work)/", text)
    assert "<script" not in text

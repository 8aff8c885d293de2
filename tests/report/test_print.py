"""Paper: a bounded sample of what the page holds, with how much is left out; colors that can be read in both themes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from demeanor.core.table import PAPER, SCREEN, OnlyFor, Page, Paragraph, Section, Table
from demeanor.evaluation import changed_items, ladder_report
from demeanor.evaluation.result import Result
from demeanor.report import outputs
from tests.conftest import each
from tests.server.browser import CHROMIUM, Browser


def many(result: Result, copies: int) -> Result:
    """The result with every changed item so often, with long answers."""
    steps = []
    for step in result.steps:
        longer = [
            replace(c, after=replace(c.after, text=f"{c.after.text} " + "word " * 300)) for c in step.changes
        ]
        steps.append(replace(step, changes=tuple(longer * copies)))
    return replace(result, steps=tuple(steps))


def printed(source: str) -> str:
    """The page without what only a screen shows."""
    kept, hidden = list[str](), list[str]()
    for piece in re.split(r"(</?(?:div|span|tr)\b[^>]*>)", source):
        tag = re.match(r"<(/?)(div|span|tr)\b", piece)
        if tag and tag[1] and hidden:
            if hidden[-1] == tag[2]:
                hidden.pop()
        elif tag and not tag[1] and (hidden or "on-screen" in piece):
            hidden.append(tag[2])
        elif not hidden:
            kept.append(piece)
    return "".join(kept)


NOT_PRINTED = r">([\d,]+) more items? in the page(?: or the result file)?, not printed"


@pytest.mark.parametrize("copies", [1, 40])
def test_paper_shows_a_bounded_sample_of_items_and_says_how_many_it_leaves_out(
    result: Result, copies: int
) -> None:
    given = many(result, copies)
    source = printed(outputs.html_page(ladder_report.page(given)))
    shown = source.count("<dt>before</dt>")
    left = sum(int(n.replace(",", "")) for n in re.findall(NOT_PRINTED, source))
    every = sum(len(c.changes) for c in (*given.steps, *given.external))
    assert shown == min(every, changed_items.ON_PAPER)
    assert shown + left == every
    assert ("in the page or the result file, not printed" in source) == (copies == 40)
    assert all(f'id="step-{step.name}"' in source for step in given.steps)


def test_long_tables_and_texts_are_cut_on_paper_and_whole_on_the_screen() -> None:
    rows = tuple((f"row-{n}", "1") for n in range(outputs.ROWS_ON_PAPER + 7))
    text = "token " * 400
    blocks = (Table(("a", "b"), rows), Table(("c",), ((text,),)))
    source = outputs.html_page(Page("t", "a", "h", (Section("s", "S", "S", blocks),)))
    paper = printed(source)
    assert all(f">row-{n}<" in source for n in range(len(rows)))
    assert f">row-{outputs.ROWS_ON_PAPER - 1}<" in paper
    assert f">row-{outputs.ROWS_ON_PAPER}<" not in paper
    assert "7 more rows in the page, not printed" in paper
    assert source.count("token ") == 400
    assert paper.count("token ") == 100
    assert "(1,800 more characters in the page)" in paper


def test_what_is_for_paper_is_hidden_on_a_screen_and_the_other_way_round() -> None:
    blocks = (OnlyFor(SCREEN, (Paragraph("glows"),)), OnlyFor(PAPER, (Paragraph("dries"),)))
    source = outputs.html_page(Page("t", "a", "h", (Section("s", "S", "S", blocks),)))
    assert re.search(r'<div class="on-screen">\s*<p class="lead">glows', source)
    assert re.search(r'<div class="on-paper">\s*<p class="lead">dries', source)
    screen, paper = source.split("@media print {")[0], source.split("@media print {")[1]
    assert ".on-paper { display: none; }" in screen
    assert ".on-screen { display: none; }" in paper


# ---- contrast (WCAG 2.2, 1.4.3: 4.5 for text) ----

STYLE = (outputs.FOLDER / "page.css").read_text(encoding="utf-8")
ROOTS = re.findall(r":root \{(.*?)\}", STYLE, re.S)[:2]
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): ([^;]+);", root)) for root in ROOTS)
TEXT_ON = [
    *(
        (ink, paper)
        for ink in ("ink", "soft", "up", "down")
        for paper in ("paper", "card", "wash", "mark", "bad-wash")
    ),
    ("ink", "pale"),
    *(("on", ground) for ground in ("up", "down", "s0", "s2", "s3", "s4", "s5")),
]


def channels(color: str) -> tuple[float, ...]:
    return tuple(int(color[n : n + 2], 16) for n in (1, 3, 5))


def luminance(color: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read_on_every_ground_of_the_page(theme: dict[str, str]) -> None:
    found = {pair: contrast(*(channels(theme[name]) for name in pair)) for pair in TEXT_ON}
    assert {pair: round(c, 2) for pair, c in found.items() if c < 4.5} == {}


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read_on_every_color_of_the_heat_table(theme: dict[str, str]) -> None:
    paper, heat = channels(theme["paper"]), tuple(float(x) for x in theme["heat"].split(","))
    for share in each(re.findall(r"rgba\(var\(--heat\), ([\d.]+)\)", STYLE)):
        ground = tuple(p + float(share) * (h - p) for p, h in zip(paper, heat))
        assert contrast(channels(theme["ink"]), ground) >= 4.5
        assert contrast(channels(theme["heat-soft"]), ground) >= 4.5


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_marks_of_charts_can_be_told_from_the_paper(theme: dict[str, str]) -> None:
    paper = channels(theme["paper"])
    found = {
        name: contrast(channels(theme[name]), paper)
        for name in ("up", "down", "flat", *(f"s{n}" for n in range(6)))
    }
    assert {name: round(c, 2) for name, c in found.items() if c < 3} == {}, "WCAG 2.2, 1.4.11"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_printed_report_has_few_pages_however_many_items_changed(result: Result, tmp_path: Path) -> None:
    import base64

    path = tmp_path / "report.html"
    path.write_text(outputs.html_page(ladder_report.page(many(result, 40))), encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        browser.open(path.as_uri())
        browser.wait("document.readyState == 'complete' && document.title")
        size = {"paperWidth": 8.27, "paperHeight": 11.69}
        pdf = base64.b64decode(browser.call("Page.printToPDF", **size)["data"])
    assert 4 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 25

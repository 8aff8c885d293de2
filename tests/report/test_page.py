"""The page: self-contained, nothing from a model becomes markup, and every number on it is in the result."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from typing import get_args

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from demeanor.core.table import (
    Block,
    Fold,
    Page,
    Paragraph,
    Section,
    StyledText,
    Table,
    percent,
    points,
    tone_of,
)
from demeanor.evaluation import ladder_report
from demeanor.evaluation.result import TRAINED, Result
from demeanor.report import outputs
from demeanor.report.figures import el, join
from tests.conftest import each

VOID = frozenset({"meta", "br", "hr", "wbr"})

ALLOWED = {
    "a",
    "b",
    "body",
    "br",
    "caption",
    "circle",
    "code",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "figcaption",
    "figure",
    "footer",
    "g",
    "h1",
    "h2",
    "h3",
    "head",
    "header",
    "html",
    "i",
    "li",
    "line",
    "main",
    "meta",
    "nav",
    "p",
    "polyline",
    "pre",
    "rect",
    "section",
    "span",
    "style",
    "summary",
    "svg",
    "table",
    "tbody",
    "td",
    "text",
    "th",
    "thead",
    "title",
    "tr",
    "ul",
    "wbr",
}


def page(result: Result) -> str:
    return outputs.html_page(ladder_report.page(result))


def markdown(result: Result) -> str:
    return outputs.markdown_page(ladder_report.page(result))


class Reader(HTMLParser):
    """Every tag and attribute of a page, its text, and whether tags close in the order they opened."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words, self.open, self.crossed = "", [], []  # type: ignore[var-annotated]
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open[-1] != tag:
            self.crossed.append(tag)
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(params=["result", "hostile", "empty"])
def any_result(request: pytest.FixtureRequest) -> Result:
    found: Result = request.getfixturevalue(request.param)
    return found


def test_every_tag_is_one_of_ours_and_closes_where_it_should(any_result: Result) -> None:
    read = Reader(page(any_result))
    assert {tag for tag, _ in read.tags} <= ALLOWED
    assert read.crossed == read.open == []


def test_no_script_no_handler_no_style_attribute_and_no_address_outside_the_page(
    any_result: Result,
) -> None:
    for tag, attributes in Reader(page(any_result)).tags:
        assert not [
            name
            for name in attributes
            if name.startswith("on") or name in ("style", "src", "srcset", "action", "xlink:href")
        ], (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in page(any_result)
    assert "@import" not in page(any_result)


def test_the_content_security_policy_allows_the_pages_own_style_and_nothing_else(
    result: Result,
) -> None:
    source = page(result)
    style = re.search(r"<style>(.*?)</style>", source, re.S)
    assert style is not None
    hash_ = base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode()
    policy = next(
        a["content"]
        for tag, a in Reader(source).tags
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-{hash_}'"


def test_what_a_model_says_is_shown_as_text_and_never_becomes_markup(hostile: Result, result: Result) -> None:
    source = page(hostile)
    assert "<script" not in source
    assert "<img" not in source
    assert '<script>alert("x")</script>' in html.unescape(source), "it is shown, not dropped"
    assert "\x00" not in source
    assert "\u202e" not in source, "nothing may reverse the reading order of what follows"
    assert {t for t, _ in Reader(source).tags} <= {t for t, _ in Reader(page(result)).tags}


def test_the_figures_are_well_formed_svg_with_a_description(result: Result) -> None:
    figures = re.findall(r"<svg.*?</svg>", page(result), re.S)
    assert len(figures) >= 6
    for figure in figures:
        assert ET.fromstring(figure).attrib["aria-label"]
        assert "nan" not in figure
        assert "inf" not in figure


def test_every_mark_lies_inside_its_figure(result: Result) -> None:
    for figure in each(re.findall(r"<svg.*?</svg>", page(result), re.S)):
        tree = ET.fromstring(figure)
        left, _, width, height = map(float, tree.attrib["viewBox"].split())
        for mark in each(tree.iter()):
            x, y = (
                mark.attrib.get("cx", mark.attrib.get("x", "0")),
                mark.attrib.get("cy", mark.attrib.get("y", "0")),
            )
            assert -1 <= float(x) <= left + width + 1, ET.tostring(mark)
            assert -1 <= float(y) <= height + 1, ET.tostring(mark)


def test_every_cell_of_the_ladder_is_the_mean_and_shows_its_change_only_if_the_interval_excludes_zero(
    result: Result,
) -> None:
    table = re.search(r'<table class="heat">(.*?)</table>', page(result), re.S)
    assert table is not None
    rows = re.findall(r"<tr>(.*?)</tr>", table.group(1), re.S)[1:]
    for row, axis in zip(rows, result.axes, strict=True):
        shown = re.sub(r'<span class="range">.*?</span>', "", row)  # for paper
        cells = re.findall(r"<b>(.*?)</b><span class=\"change ?([^\"]*)\"[^>]*>(.*?)</span>", shown)
        rungs = [result.steps[0].before, *(s.after for s in result.steps)]
        for n, ((mean, tone, change), rung) in enumerate(zip(cells, rungs, strict=True)):
            assert html.unescape(mean) == percent(axis.means[rung].value)
            delta = next(d for d in result.steps[n - 1].deltas if d.axis == axis.name) if n else None
            if delta is None or not delta.shown:
                assert (tone, change) == ("", "")
            else:
                assert change[2:] == points(delta.value)
                assert tone.split()[0] == ("up" if delta.value > 0 else "down")
                assert ("firm-word" in tone) == (delta.verdict in ("better", "worse"))


def test_a_mark_is_coloured_only_when_its_interval_excludes_zero(result: Result) -> None:
    for d in each(d for comparison in [*result.steps, *result.without] for d in comparison.deltas):
        assert tone_of(d.value, shown=d.shown) == (
            "flat" if d.low <= 0 <= d.high else "up" if d.value > 0 else "down"
        )


def test_every_loss_on_the_ladder_stands_in_the_section_of_costs_with_a_link_to_its_items(
    result: Result,
) -> None:
    source = page(result)
    section = re.search(r'<section id="regressions">(.*?)</section>', source, re.S)
    assert section is not None
    for cost in result.regressions:
        if cost.kind == "step":
            assert f'href="#step-{cost.name}"' in section.group(1)
            assert f'id="step-{cost.name}"' in source


def test_every_link_leads_to_something_on_the_page(any_result: Result) -> None:
    tags = Reader(page(any_result)).tags
    ids = [a["id"] for _, a in tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "").lstrip("#") for _, a in tags if "href" in a} <= set(ids)


def test_n_seed_interval_method_and_reproduction_are_stated(result: Result) -> None:
    words = Reader(page(result)).words
    for said in (
        f"{result.items} items",
        "seed 0",
        "95% intervals",
        "cluster-robust",
        "Holm",
        result.suite_hash,
        "demeanor eval stack.yaml",
        "key0",
    ):
        assert said in words, said


def test_the_page_says_where_the_weights_were_trained_and_that_others_differ(result: Result) -> None:
    assert "They are one draw" not in Reader(page(result)).words
    told = replace(result, settings={**result.settings, TRAINED: "bf16 on AMD EPYC"})
    assert "The weights were trained in bf16 on AMD EPYC. They are one draw" in Reader(page(told)).words


def test_warnings_come_before_the_numbers(result: Result) -> None:
    words = Reader(page(replace(result, caveats=("base: 3 of 9 answers failed",)))).words
    assert words.index("3 of 9 answers failed") < words.index("What each layer did", words.index("Caveats"))


def test_a_result_with_nothing_to_compare_claims_nothing(empty: Result) -> None:
    words = Reader(re.sub(r"<style>.*?</style>", "", page(empty), flags=re.S)).words
    for claim in ("improved", "raised", "lowered", "got worse"):
        assert claim not in words.split("How this was measured")[0]
    assert "alone on 1 question" in words


def test_long_answers_are_cut_and_say_so(result: Result) -> None:
    step = result.steps[0]
    change = step.changes[0]
    long = replace(change, after=replace(change.after, text="x" * 5000))
    source = page(replace(result, steps=(replace(step, changes=(long,)), *result.steps[1:])))
    assert "(3,000 more characters)" in source
    assert "x" * 2001 not in source


def test_the_markdown_has_no_markup_of_a_model_and_every_row_has_all_its_cells(
    hostile: Result,
) -> None:
    text = markdown(hostile)
    assert "<script" not in text
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().splitlines()}
        assert len(widths) == 1


def test_a_figure_escapes_whatever_is_not_markup_already() -> None:
    assert el("p", "<b>", el("i", "&"), None, "'") == "<p>&lt;b&gt;<i>&amp;</i>&#39;</p>"
    assert (
        el("a", href='"><script>', class_="x", hidden=None)
        == '<a href="&#34;&gt;&lt;script&gt;" class="x"></a>'
    )
    assert isinstance(join("x"), Markup)
    assert el("p", "a\u202eb") == "<p>a\\u202eb</p>", "nothing may reverse the reading order"


HOSTILE = "<script>alert(1)</script> a | b [red]c[/red] \u202e"
SECTION = Section(
    "x",
    "X",
    HOSTILE,
    (
        Paragraph((HOSTILE, StyledText(HOSTILE, "code"))),
        Table(
            (HOSTILE, "b"),
            ((HOSTILE, StyledText(HOSTILE, "change", "up", strong=True, hint=HOSTILE)),),
            HOSTILE,
        ),
        Fold(HOSTILE, (Paragraph(HOSTILE, "note"),)),
    ),
)


def test_every_kind_of_text_is_text_on_the_page() -> None:
    source = outputs.html_page(
        Page(HOSTILE, HOSTILE, HOSTILE, (SECTION,), (HOSTILE,), (HOSTILE,), (HOSTILE,), HOSTILE)
    )
    assert "<script" not in source
    assert "\u202e" not in source
    assert html.unescape(source.replace("<wbr/>", "")).count("<script>alert(1)</script>") == 18


def test_every_kind_of_text_is_text_in_markdown() -> None:
    text = outputs.markdown(SECTION)
    assert "<script" not in text
    assert "\u202e" not in text
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")] == [
        3,
        3,
        3,
    ]


@pytest.mark.parametrize("block", get_args(Block), ids=lambda block: block.__name__)
def test_the_template_knows_every_kind_of_block(block: type) -> None:
    source = (outputs.FOLDER / "page.html.jinja").read_text()
    assert f'kind == "{block.__name__}"' in source


def test_a_kind_of_block_that_the_template_does_not_know_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        outputs.html_page(Page("t", "a", "h", (Section("x", "X", "X", (object(),)),)))  # type: ignore[arg-type]

"""A page explains the words that it uses: the first place in a paragraph links to the meaning; nothing else is changed."""

from __future__ import annotations

import re

import pytest

from demeanor.core.table import Page, Paragraph, Section
from demeanor.report import outputs
from demeanor.report.glossary import WORDS, linked
from tests.conftest import REPOSITORY, each


def page(*texts: str) -> str:
    section = Section("s", "S", "Section", tuple(Paragraph(text) for text in texts))
    return outputs.html_page(Page("t", "about", "headline", sections=(section,)))


def test_a_page_explains_what_it_uses_and_only_that() -> None:
    html = page("Corrected by Holm's method; d' is 2.", "Holm again, and Holm.")
    assert re.findall(r'<dt id="([\w-]+)">', html) == ["word-holm-s-correction", "word-d"]
    assert html.count('href="#word-holm-s-correction"') == 2
    assert "Words of this page" not in page("Nothing to explain here.")


@pytest.mark.parametrize("word", WORDS, ids=lambda w: w.anchor)
def test_every_word_is_found_by_its_name_and_stands_in_the_glossary(word: object) -> None:
    assert f'href="#{word.anchor}"' in linked(f"It is said that {word.name} matters.")  # type: ignore[attr-defined]
    assert f"| {word.name} | {word.meaning} |" in (REPOSITORY / "docs" / "glossary.md").read_text()  # type: ignore[attr-defined]


def test_parts_of_words_are_no_words_and_markup_stays_text() -> None:
    assert "href" not in linked("natural unSFTed sub-cluster clusterings")
    assert linked("<b>KL</b>").count("&lt;b&gt;") == 1


def test_anchors_differ() -> None:
    anchors = [word.anchor for word in WORDS]
    assert len(set(anchors)) == len(anchors)
    assert all(re.fullmatch(r"word-[a-z0-9-]+", anchor) for anchor in each(anchors))


def test_an_interval_of_a_tooltip_is_written_for_paper() -> None:
    assert outputs._bounds("75% (57 to 87); n 36 in 12 clusters") == "57 to 87"
    assert outputs._bounds("−28 to −6 points") == "−28 to −6"
    assert outputs._bounds("no interval") == ""

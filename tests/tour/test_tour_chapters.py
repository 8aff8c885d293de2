"""The tour's chapters: each names an experiment that exists, its kept numbers are the ones it prints, its exercise has an answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import tour_results as kept_results
from demeanor.tour import drawing, findings, five_pairs, trials
from demeanor.tour.chapters import END, START, Chapter, chapters, parsed
from demeanor.tour.courses import SMOLLM2
from demeanor.tour.findings import Findings, TourNumber, verdict
from tests.conftest import REPOSITORY, each

TOUR = REPOSITORY / "docs" / "tour"
by_chapter = pytest.mark.parametrize("chapter", chapters(), ids=lambda c: c.slug)


def kept(chapter: Chapter) -> Findings:
    return findings.load(TOUR / "kept" / f"{chapter.experiment}.json")


def test_there_are_ten_chapters_and_each_makes_another_experiment() -> None:
    assert [c.number for c in chapters()] == list(range(1, 11))
    assert sorted(c.experiment for c in chapters()) == sorted(trials.EXPERIMENTS)


@by_chapter
def test_the_table_of_a_chapter_is_that_of_its_kept_result(chapter: Chapter) -> None:
    assert kept_results.table(kept(chapter)) in chapter.text


@by_chapter
def test_the_picture_of_a_chapter_is_that_of_its_kept_result(chapter: Chapter) -> None:
    drawn = (TOUR / f"{chapter.experiment}.svg").read_text(encoding="utf-8")
    assert drawn == drawing.draw(kept(chapter))
    assert not re.search(r"<script|\bhref|\bon\w+=|url\(|@import", drawn)


@pytest.mark.parametrize("experiment", sorted(SMOLLM2.experiments or ()))
def test_the_numbers_of_smollm2_in_a_chapter_are_those_of_its_kept_result(experiment: str) -> None:
    chapter = next(c for c in chapters() if c.experiment == experiment)
    folder, picture = kept_results.kept_in(SMOLLM2)
    found = findings.load(folder / f"{experiment}.json")
    assert kept_results.table(found, SMOLLM2) in chapter.text
    drawn = (TOUR / f"{picture}{experiment}.svg").read_text(encoding="utf-8")
    assert drawn == drawing.draw(found)
    assert chapter.key in found.answers


@by_chapter
def test_the_exercise_of_a_chapter_has_an_answer_with_an_interval(chapter: Chapter) -> None:
    found = kept(chapter).answers[chapter.key]
    assert found.low is not None
    assert found.high is not None
    assert verdict(found.value * found.scale, found)[0]
    assert not verdict(found.high * found.scale + 2, found)[0]
    assert chapter.exercise
    assert chapter.guess


@by_chapter
def test_a_chapter_says_what_it_does_not_show_and_names_its_command(chapter: Chapter) -> None:
    assert "**What it shows.**" in chapter.text
    assert "**What it does not show.**" in chapter.text
    assert f"$ {chapter.command}\n" in chapter.text
    assert chapter.text.count(START) == chapter.text.count(END) == 1


def test_a_result_survives_the_disk_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    found = kept(chapters()[0])
    assert findings.load(findings.save(found, tmp_path)) == found
    (tmp_path / "x.json").write_text('{"cells": 3}')
    with pytest.raises(findings.DataError, match=r"x\.json: is no result of the tour"):
        findings.load(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("given", "right"),
    [(80, True), (69.6, True), (69, False), (90.4, True), (91, False), (float("nan"), False)],
)
def test_an_answer_is_right_within_the_interval_and_what_rounding_hides(given: float, right: bool) -> None:
    assert verdict(given, TourNumber(0.8, 0.7, 0.9, 36))[0] is right


def test_a_fresh_number_differs_outside_of_the_kept_interval() -> None:
    old = TourNumber(0.5, 0.4, 0.6, 36)
    assert not kept_results.differs(old, TourNumber(0.6, 0.5, 0.7, 36))
    assert kept_results.differs(old, TourNumber(0.65, 0.5, 0.7, 36))


def test_a_share_of_the_comparisons_is_turned_round_and_the_rest_stays() -> None:
    clean, noisy = trials.turned_round(0.0), trials.turned_round(0.3)
    changed = sum(a != b for a, b in zip(clean, noisy, strict=True))
    assert len(clean) > 1000
    assert 0.26 < changed / len(clean) < 0.34


def test_five_pairs_are_labelled_and_the_world_knows_the_better_one() -> None:
    shown = five_pairs.pairs()
    right = [pair.better for pair in shown]
    assert len(shown) == 5
    assert set(right) == {"A", "B"}
    assert all(pair.first and pair.second and pair.first != pair.second for pair in each(shown))
    assert five_pairs.agreed(right, shown).value == 1.0
    assert five_pairs.agreed(["A" if x == "B" else "B" for x in right], shown).value == 0.0


def test_a_chapter_without_its_questions_is_refused() -> None:
    with pytest.raises(AssertionError, match="First guess"):
        parsed("01-x.md", "---\nexperiment: base\nkey: format\n---\n# 1. X\n\ntext\n\n")

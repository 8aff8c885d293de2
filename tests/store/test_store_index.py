"""The index: the best passages first, whatever somebody types, and built once per content."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demeanor.core.errors import DemeanorError
from demeanor.retrieval.index import MAX_CHARACTERS, chunks, match, open_folder

FILES = {
    "ferries.md": "# Ferries\n\nThe ferry to Corkel leaves at 9.\nIt takes an hour.\n\n## Evening\n- Jorpel 17\n- Sella is in the dock.\n",
    "berths.txt": "Berth 4: the Sella.\n\nBerth 11: the Orrin. Caf\u00e9 beside it.\n",
    "deep/rules.md": "Dogs travel free. Corkel has no pier.\n",
    "picture.png": "Corkel Corkel Corkel",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "notices" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "notices" / ".hidden.md").write_text("Corkel secret")
    return tmp_path / "notices"


def test_passages_are_paragraphs_items_and_lines_with_numbers() -> None:
    assert [
        (c.id, c.heading, c.body) for name in ("ferries.md", "berths.txt") for c in chunks(name, FILES[name])
    ] == [
        ("ferries.md#1", "Ferries", "The ferry to Corkel leaves at 9. It takes an hour."),
        ("ferries.md#2", "Ferries / Evening", "Jorpel 17"),
        ("ferries.md#3", "Ferries / Evening", "Sella is in the dock."),
        ("berths.txt#1", "", "Berth 4: the Sella."),
        ("berths.txt#2", "", "Berth 11: the Orrin. Caf\u00e9 beside it."),
    ]


@given(
    st.text("ab .\n#-*1", max_size=200)
    | st.integers(1, 5000).map(lambda n: "a" * n)
    | st.integers(1, 900).map(lambda n: "one two. " * n),
    st.sampled_from(["a.md", "a.txt"]),
)
@settings(max_examples=150, deadline=None)
def test_no_word_of_a_text_is_lost_and_no_passage_is_too_long(text: str, name: str) -> None:
    found = chunks(name, text)
    assert all(0 < len(c.body) <= MAX_CHARACTERS for c in found)
    assert [c.id for c in found] == [f"{name}#{i + 1}" for i in range(len(found))]
    kept = re.findall(r"[ab]+|one|two", " ".join(c.heading + " " + c.body for c in found))
    if name == "a.txt":
        assert "".join(kept) == "".join(re.findall(r"[ab]+|one|two", text))


def test_the_best_passage_comes_first_with_its_source(folder: Path) -> None:
    search = open_folder(folder)
    found = search("When does the ferry to Corkel leave?", 3)
    assert (found[0].id, found[0].source, found[0].by) == ("ferries.md#1", "ferries.md", "retrieval")
    assert found[0].text == "The ferry to Corkel leaves at 9. It takes an hour."
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    assert all(p.score > 0 for p in found)
    assert "secret" not in repr(search("secret Corkel", 50))
    assert {p.source for p in search("Corkel", 50)} == {"ferries.md", "deep/rules.md"}


def test_headings_are_searched_and_not_shown_and_accents_do_not_matter(folder: Path) -> None:
    search = open_folder(folder)
    assert {p.id for p in search("evening", 5)} == {"ferries.md#2", "ferries.md#3"}
    assert [p.id for p in search("CAFE", 5)] == ["berths.txt#2"]
    assert search("submarine", 5) == []
    assert len(search("the", 1)) == 1


def test_scores_are_bm25_by_the_formula(tmp_path: Path) -> None:
    lines = ["red boat", "red red boat here", "blue boat", "green pier and rope", "old rope"]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    k1, b, n, mean = (
        1.2,
        0.75,
        len(lines),
        sum(len(x.split()) for x in lines) / len(lines),
    )  # the constants of SQLite's bm25()

    def bm25(line: str, term: str) -> float:
        holding, words = sum(term in x.split() for x in lines), line.split()
        frequency = words.count(term)
        return (
            math.log((n - holding + 0.5) / (holding + 0.5))
            * frequency
            * (k1 + 1)
            / (frequency + k1 * (1 - b + b * len(words) / mean))
        )

    for passage in open_folder(tmp_path)("red", 5):
        assert passage.score == pytest.approx(bm25(passage.text, "red"), rel=1e-9)


HOSTILE = [
    '"',
    "'",
    "*",
    "^",
    "NEAR(a b)",
    "AND",
    "OR OR",
    "NOT",
    "a NOT b",
    "heading:x",
    "{heading body}: x",
    "a\x00b",
    "\ud800",
    "-a",
    "+",
    "(",
    ")",
    "a*",
    '""',
    '" OR "',
    "_",
    "__",
    "'; DROP TABLE chunks; --",
    "\U0001f600",
    "a" * 10_000,
    " ".join(map(str, range(10_000))),
    "\u200b",
    "words MATCH 'x'",
    "{a}",
    "e\u0301",
]


@given(
    st.text(max_size=60)
    | st.sampled_from(HOSTILE)
    | st.lists(st.sampled_from(HOSTILE), max_size=4).map(" ".join),
    st.integers(0, 9),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_query_is_syntax(folder: Path, query: str, k: int) -> None:
    search = open_folder(folder)
    found = search(query, k)
    assert len(found) <= k
    assert all(p.score > 0 for p in found)
    assert open_folder(folder)("Corkel", 1), "the tables are still there"
    assert re.fullmatch(r'("\w+"( OR "\w+")*)?', match(query))


def test_words_that_are_operators_are_words(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("not near\nthis and that\nnothing\n")
    search = open_folder(tmp_path)
    assert [p.text for p in search("NOT", 5)] == ["not near"]
    assert [p.text for p in search("AND", 5)] == ["this and that"]


def test_a_cached_index_is_built_once_per_content_and_found_again(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain, cached = open_folder(folder), open_folder(folder, cache)
    (path,) = cache.iterdir()
    before = path.stat().st_mtime_ns
    query = "Corkel Sella ferry"
    assert cached(query, 9) == plain(query, 9)
    from demeanor.retrieval import index

    index._open.cache_clear()  # as a new process would begin
    assert open_folder(folder, cache)(query, 9) == plain(query, 9)
    assert path.stat().st_mtime_ns == before
    (folder / "new.txt").write_text("Corkel moved.\n")
    assert "Corkel moved." in [p.text for p in open_folder(folder, cache)("Corkel", 9)]
    assert len(list(cache.iterdir())) == 2


def test_an_empty_folder_finds_nothing_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert open_folder(tmp_path)("Corkel", 3) == []
    with pytest.raises(DemeanorError, match="no such folder"):
        open_folder(tmp_path / "nowhere")

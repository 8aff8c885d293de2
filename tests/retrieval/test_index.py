"""The index: the best passages first, whatever somebody types, and built once per content."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demeanor.core.errors import DemeanorError
from demeanor.retrieval.documents import MAX_CHARACTERS, chunks
from demeanor.retrieval.index import expression, open_folder
from demeanor.retrieval.words import index_terms, query_terms

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

    found = open_folder(tmp_path)("red", 5)
    assert len(found) == 2
    for passage in found:
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
    assert not re.search(r'["*]', "".join(t.removesuffix("*") for t in query_terms(query)))


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
    assert open_folder(folder, cache)(query, 9) == plain(query, 9)
    assert path.stat().st_mtime_ns == before
    (folder / "new.txt").write_text("Corkel moved.\n")
    assert "Corkel moved." in [p.text for p in open_folder(folder, cache)("Corkel", 9)]
    assert len(list(cache.iterdir())) == 2


def test_an_empty_folder_finds_nothing_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert open_folder(tmp_path)("Corkel", 3) == []
    with pytest.raises(DemeanorError, match="no such folder"):
        open_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("STRASSE", "Die Stra\u00dfe ist gesperrt."),
        ("stra\u00dfe", "DIE STRASSE"),
        ("Mueller", "M\u00fcller"),
        ("Muller", "M\u00fcller"),
        ("M\u00fcller", "Mueller"),
        ("Mu\u0308ller", "M\u00dcLLER"),
        ("final", "the \ufb01nal o\ufb03ce"),
        ("of\ufb01ce", "office"),
        ("istanbul", "\u0130STANBUL"),
        ("I\u015eIK", "\u0131\u015f\u0131k"),
        ("isik", "I\u015eIK"),
        ("cafe\u0301", "CAF\u00c9"),
        ("\u0141\u00d3D\u0179", "lodz"),
        ("\u00c6r\u00f8", "aero"),
        ("\uff11\uff12\uff13\uff21", "123a"),
        ("soft", "so\u00adft"),
        ("\u039d\u03b1\u03cd\u03c2", "\u039d\u0391\u03a5\u03a3"),
        ("\u0451\u043b\u043a\u0430", "\u0415\u043b\u043a\u0430"),
        ("\u0643\u062a\u0627\u0628", "\u0643\u0650\u062a\u064e\u0627\u0628"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u092f\u0939 \u0939\u093f\u0928\u094d\u0926\u0940 \u0939\u0948"),
        ("\u6771\u4eac", "\u79c1\u306f\u6771\u4eac\u306b\u4f4f\u3080"),
        ("\u8336", "\u7d05\u8336"),
        ("\u8336", "\u8336\u5c4b\u3067\u3059"),
        ("\uff71\uff72\uff7d", "\u30a2\u30a4\u30b9\u304c\u597d\u304d"),
        ("\u304b\u3099\u304f", "\u5927\u304c\u304f"),
        ("\uc11c\uc6b8", "\uc11c\uc6b8\uc5d0\uc11c"),
        ("\u1109\u1165\u110b\u116e\u11af", "\uc11c\uc6b8"),
        ("\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e", "\u0e09\u0e31\u0e19\u0e2d\u0e22\u0e39\u0e48\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e\u0e21\u0e2b\u0e32\u0e19\u0e04\u0e23"),
        ("a1b2" * 18, "a1b2" * 18),
        ("w" * 3000, "see (" + "w" * 3000 + ")"),
        ("end", ",".join(f"item{i}" for i in range(400)) + ",end"),
    ],
)  # fmt: skip
def test_a_word_that_stands_in_a_document_is_found_however_it_is_written(
    query: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(f"zzz\nyyy\n{text}\n", encoding="utf-8")
    search = open_folder(tmp_path)
    found = search(query, 1)
    assert len(found) == 1
    assert found[0].text[:9] in text
    assert {p.id for p in search(text, 9)} >= {found[0].id}


def test_another_word_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("M\u00fcller\n\u6771\u4eac\n" + "w" * 300 + "\n", encoding="utf-8")
    search = open_folder(tmp_path)
    words = ["Mull", "Moller", "\u4eac\u90fd", "\u4eac\u6771", "w" * 30, "\u00b4", "\u0301"]
    assert [search(word, 3) for word in words] == [[]] * len(words)


def test_passages_that_say_the_same_fill_one_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The ferry leaves at 9.\nThe  ferry leaves at 9.\nNo ferry today here.\n")
    (tmp_path / "b.txt").write_text("The ferry leaves at 9.\nThe ferry leaves at 10.\n")
    found = open_folder(tmp_path)("ferry leaves", 3)
    assert [p.id for p in found] == ["a.txt#1", "b.txt#2", "a.txt#3"]


def test_a_word_is_found_in_a_question_of_any_length_in_linear_time(folder: Path) -> None:
    search = open_folder(folder)
    many = " ".join(f"word{i}" for i in range(900))
    assert [p.id for p in search(f"{many} Jorpel", 3)] == ["ferries.md#2"]
    assert [p.id for p in search(f"Jorpel {'x ' * 100_000}", 3)] == ["ferries.md#2"]
    assert search(many, 3) == []
    start = time.thread_time()
    found = [
        search(f"{row * 100_000} Jorpel", 3)
        for row in ("\u0301\u0316", "\u0e48\u0e38", "\u00fc ", "\ufdfa", "\u4e00\u4e8c")
    ]
    assert [[p.id for p in passages] for passages in found] == [["ferries.md#2"]] * 5
    assert time.thread_time() - start < 5


def test_terms_are_the_same_for_index_and_query() -> None:
    text = "Stra\u00dfe foo_bar \u7d05\u8336 \u8336 3,5"
    assert index_terms(text) == ["strasse", "foo", "bar", "\u7d05\u8336", "\u8336", "\u8336", "3", "5"]
    assert query_terms(text) == ["strasse", "foo", "bar", "\u7d05\u8336", "\u8336*", "3", "5"]
    assert expression(["and", "\u8336*"]) == '"and" OR "\u8336" *'


def test_coverage_is_the_share_of_the_questions_words_weighted_by_rarity(folder: Path) -> None:
    search = open_folder(folder)
    best = search("Corkel pier", 1)[0]
    assert best.id == "deep/rules.md#1"
    assert best.coverage == pytest.approx(1.0)
    n = {"corkel": 2, "zebra": 0}  # passages that have each word, of N
    size = sum(len(chunks(name, text)) for name, text in FILES.items() if not name.endswith(".png"))
    weight = {word: math.log(1 + (size - count + 0.5) / (count + 0.5)) for word, count in n.items()}
    found = search("Corkel zebra", 1)[0]
    assert found.coverage == pytest.approx(weight["corkel"] / sum(weight.values()))


def test_coverage_does_not_grow_with_the_question_as_bm25_does(folder: Path) -> None:
    search = open_folder(folder)
    short, long = (
        "When does the ferry leave?",
        "When does my aunt, who likes the ferry, leave her house at dawn in May?",
    )
    assert search(long, 1)[0].coverage < search(short, 1)[0].coverage
    assert search(long, 1)[0].score >= search(short, 1)[0].score


def test_a_title_counts_for_coverage(folder: Path) -> None:
    assert open_folder(folder)("Evening Jorpel", 1)[0].coverage == pytest.approx(1.0)

"""A kept index: only what changed is read, the result equals a fresh one, and a kill leaves the old one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from demeanor.core.errors import DataError
from demeanor.core.types import Passage
from demeanor.retrieval import index, vectors
from demeanor.retrieval.index import Ranking, build, fused, open_folder, remove
from demeanor.retrieval.words import ENGLISH

WORDS = [
    "ferry",
    "corkel",
    "berth",
    "sella",
    "nine",
    "dogs",
    "pier",
    "rope",
    "fare",
    "adult",
    "child",
    "ticket",
]


def write(path: Path, random_: random.Random) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(" ".join(random_.choices(WORDS, k=5)) for _ in range(random_.randint(1, 6))))


def test_an_updated_index_gives_what_a_fresh_one_gives(tmp_path: Path) -> None:
    random_ = random.Random(3)
    folder, cache = tmp_path / "docs", tmp_path / "cache"
    names = [f"{d}{n}.txt" for d in ("", "a/", "a.b/") for n in range(4)]
    for name in names:
        write(folder / name, random_)
    build(folder, cache)
    for round_ in range(12):
        name = random_.choice(names)
        if (folder / name).exists() and random_.random() < 0.4:
            (folder / name).unlink()
        else:
            write(folder / name, random_)
        kept, fresh = open_folder(folder, cache), open_folder(folder, tmp_path / f"fresh{round_}")
        for query in ("ferry corkel", "dogs pier rope", "nine"):
            assert kept(query, 50) == fresh(query, 50)
    assert len(list(cache.iterdir())) == index.KEPT


def test_only_changed_files_are_read_again_and_gone_ones_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "docs", tmp_path / "cache"
    for name in ("a.txt", "b.txt", "c.txt"):
        write(folder / name, random.Random(name))
    assert build(folder, cache)[2:] == (3, 0)
    assert build(folder, cache)[2:] == (0, 0)
    (folder / "a.txt").write_text("the ferry moved")
    (folder / "b.txt").unlink()
    said: list[tuple[str, int, int]] = []
    assert build(folder, cache, progress=lambda *x: said.append(x))[2:] == (1, 1)
    assert said == [("files read", 1, 1)]
    assert remove(folder, cache) == 2
    assert list(cache.iterdir()) == []


def test_a_build_that_fails_leaves_the_index_that_was_there(tmp_path: Path) -> None:
    folder, cache = tmp_path / "docs", tmp_path / "cache"
    write(folder / "a.txt", random.Random(1))
    build(folder, cache)
    before = sorted(cache.iterdir())
    (folder / "b.pdf").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"b\.pdf"):
        build(folder, cache)
    assert sorted(cache.iterdir()) == before


def test_a_long_ranking_is_the_same_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_ = random.Random(5)
    lines = [" ".join(random_.choices(WORDS, k=random_.randint(2, 4))) for _ in range(400)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    search = open_folder(tmp_path)
    monkeypatch.setattr(index, "FIRST_READ", 10**6)
    whole = search("ferry dogs", 50)
    monkeypatch.setattr(index, "FIRST_READ", 3)
    assert search("ferry dogs", 50) == whole
    assert len({p.score for p in whole}) < len(whole) == 50, "some scores are equal"


def test_the_length_of_passages_is_a_setting_and_has_an_index_of_its_own(tmp_path: Path) -> None:
    folder, cache = tmp_path / "docs", tmp_path / "cache"
    folder.mkdir()
    (folder / "a.txt").write_text("The ferry leaves. " * 100)
    (folder / "b.md").write_text("```\n" + "board the ferry\n" * 60 + "```\n")
    counts = [build(folder, cache, Ranking(passage_chars=n)).passages for n in (200, 1000, 4000)]
    assert counts == [10 + 2, 2 + 1, 1 + 1]
    assert len(list(cache.iterdir())) == 3
    found = open_folder(folder, cache, Ranking(passage_chars=200))("ferry leaves", 50)
    assert max(len(p.text) for p in found if p.source == "a.txt") <= 200


def test_ids_are_unique_over_files(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"id": "x", "text": "one"}\n')
    with pytest.raises(DataError, match=r"the passage id 'x#1' stands in a\.jsonl and in b\.jsonl"):
        open_folder(tmp_path)


def test_stop_words_are_not_looked_for_unless_there_is_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("what is the what\nthe ferry leaves\n")
    plain, stopped = open_folder(tmp_path), open_folder(tmp_path, ranking=Ranking(ENGLISH))
    assert plain("what is the ferry", 1)[0].text == "what is the what"
    assert [p.text for p in stopped("what is the ferry", 2)] == ["the ferry leaves"]
    assert stopped("what is the", 2)[0].text == "what is the what"


def test_stemming_finds_other_forms_and_other_languages(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the ferries are leaving\ndie F\u00e4hren fahren ab\n")
    assert open_folder(tmp_path)("ferry leave", 2) == []
    english = open_folder(tmp_path, ranking=Ranking(stemming="english"))
    assert [p.text for p in english("ferry leave", 2)] == ["the ferries are leaving"]


class Counted:
    """An encoder by hand: one axis a word; it counts what it encodes, and may be stopped."""

    identity = "counted"

    def __init__(self, stop_after: int = 10**9) -> None:
        self.texts: list[str] = []
        self._left = stop_after

    def encode(self, texts: Sequence[str], *, query: bool = False) -> vectors.Matrix:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        self.texts += [] if query else texts
        rows = [[float(word in text.split()) for word in WORDS] for text in texts]
        return vectors.unit(np.asarray(rows, np.float32))


def test_a_stopped_encoding_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BATCH", 2)
    folder, cache = tmp_path / "docs", tmp_path / "cache"
    folder.mkdir()
    lines = [f"{a} {b}" for a, b in pairwise(WORDS)]
    (folder / "a.txt").write_text("\n".join(lines))
    with pytest.raises(KeyboardInterrupt):
        open_folder(folder, cache, Ranking(encoder=Counted(3), by="vectors"))
    second = Counted()
    search = open_folder(folder, cache, Ranking(encoder=second, by="vectors"))
    assert len(second.texts) == len(lines) - 6
    assert [p.text for p in search("corkel berth", 2)] == ["corkel berth", "ferry corkel"]
    third = Counted()
    open_folder(folder, cache, Ranking(encoder=third, by="vectors"))
    assert third.texts == []


def test_the_nearest_rows_are_those_of_a_full_sort() -> None:
    random_ = np.random.default_rng(0)
    rows = vectors.unit(random_.integers(-1, 2, (700, 4)).astype(np.float32))
    query = vectors.unit(random_.normal(size=(1, 4)).astype(np.float32))[0]
    similar = rows @ query
    slow = sorted(range(len(rows)), key=lambda i: (-similar[i], i))
    assert [row for row, _ in vectors.nearest(rows, query)] == slow


def test_fusion_is_the_sum_of_reciprocal_ranks() -> None:
    a, b, c = (Passage(x, x, 9.0, "s") for x in "abc")
    found = fused([[a, b], [c, b]], 3)
    assert [p.id for p in found] == ["b", "a", "c"]
    assert [p.score for p in found] == pytest.approx([2 / 62, 1 / 61, 1 / 61])
    (only,) = fused([[a, b], [c, b]], 1)
    assert only.id == "b"

"""The index in PostgreSQL beside the one in files: the same passages, scores and counts, after every change; what a kill leaves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psycopg
import psycopg.sql
import pytest

from demeanor.core.errors import DataError, DemeanorError, StaleFileError, UsageError
from demeanor.core.types import Passage
from demeanor.retrieval import index, postgres_index, vectors
from demeanor.retrieval.index import Ranking
from demeanor.retrieval.words import ENGLISH
from tests.conftest import each
from tests.retrieval.test_updates import write
from tests.servers import new_schema

QUERIES = (
    "ferry corkel",
    "dogs pier rope",
    "nine",
    "nowhere",
    "",
    "the ferry of nine dogs",
    "Fähre 渡船 時刻",
    "ticket " * 9,
)


class HashEncoder:
    """Vectors of words by a hash; counts what it encodes."""

    identity = "hash-16"

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, texts: Sequence[str], *, query: bool = False) -> vectors.Matrix:
        self.encoded += 0 if query else len(texts)
        rows = [[sum(ord(c) ** (d % 3 + 1) % (d + 7) for c in text) + d for d in range(16)] for text in texts]
        return vectors.unit(np.asarray(rows, dtype=np.float32) - 40)


RANKINGS = [
    Ranking(),
    Ranking(stop_words=ENGLISH),
    Ranking(stemming="english", passage_chars=200),
    Ranking(encoder=HashEncoder(), by="vectors"),
    Ranking(stop_words=ENGLISH, encoder=HashEncoder(), by="both"),
]


@pytest.fixture
def url(postgres: str) -> str:
    return new_schema(postgres)


def told(found: Sequence[Passage]) -> list[tuple[object, ...]]:
    return [
        (
            p.id,
            p.text,
            p.source,
            p.heading,
            p.start,
            p.end,
            p.page,
            round(p.score, 4),
            round(p.coverage or 0, 6),
        )
        for p in found
    ]


def documents(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "harbour.md").write_text(
        "# Ferries\n\nThe ferry to Corkel leaves at nine.\n\n- dogs pay nothing\n- a child pays half\n\n## 渡船\n\n渡船時刻表在這裡。\n"
    )
    (folder / "fares.jsonl").write_text(
        '{"text": "Fähre: 9 Euro!", "id": "fare", "title": "Fares", "page": 3}\n'
    )


@pytest.mark.parametrize("ranking", RANKINGS, ids=["words", "stop words", "stems", "vectors", "both"])
def test_both_indexes_find_the_same_after_every_change(ranking: Ranking, url: str, tmp_path: Path) -> None:
    random_ = random.Random(5)
    folder, cache = tmp_path / "docs", tmp_path / "cache"
    documents(folder)
    names = [f"{d}{n}.txt" for d in ("", "a/", "a.b/") for n in range(3)]
    for name in names:
        write(folder / name, random_)
    for _ in range(4):
        counted = index.build(folder, cache, ranking), postgres_index.build(url, folder, ranking)
        assert counted[0] == counted[1]
        in_files = index.open_folder(folder, cache, ranking)
        in_postgres = postgres_index.open_folder(url, folder, ranking)
        found = [(told(in_files(query, 30)), told(in_postgres(query, 30))) for query in QUERIES]
        assert [postgres for _, postgres in found] == [files for files, _ in found]
        assert any(files for files, _ in found)
        changed = random_.choice(names)
        (folder / changed).unlink(missing_ok=True)
        write(folder / random_.choice(names), random_)


def test_a_nul_is_found_although_postgresql_stores_none(url: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.jsonl").write_text('{"text": "nine \\u0000 dogs"}\n')
    assert [p.text for p in postgres_index.open_folder(url, tmp_path / "docs")("dogs", 3)] == [
        "nine \ufffd dogs"
    ]


def test_texts_are_encoded_once_and_a_stopped_run_goes_on(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_index, "BATCH", 4)
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(f"passage number {n}" for n in range(20)))
    encoder = HashEncoder()
    ranking = Ranking(encoder=encoder, by="both")

    def stop(what: str, done: int, of: int) -> None:
        if what == "passages encoded" and done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        postgres_index.build(url, folder, ranking, stop)
    assert encoder.encoded == 8
    assert postgres_index.build(url, folder, ranking).read == 0
    assert encoder.encoded == 20
    (folder / "b.txt").write_text("passage number 3\none more")
    postgres_index.build(url, folder, ranking)
    assert encoder.encoded == 21, "equal texts share a vector"


BUILDER = """
import sys
from pathlib import Path
from demeanor.retrieval import postgres_index

def tell(what, done, of):
    print(done, flush=True)

postgres_index.build(sys.argv[1], Path(sys.argv[2]), progress=tell)
"""


def test_kill_9_within_a_build_leaves_the_index_in_use_and_loses_no_document_that_was_read(
    url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "docs"
    documents(folder)
    search = postgres_index.open_folder(url, folder)
    before = told(search("ferry", 5))
    for n in range(300):
        (folder / f"{n}.txt").write_text("\n".join(f"ferry {n} {m}" for m in range(20)))
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, url, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().split()]
    process.wait()
    process.stdout.close()
    assert told(search("ferry", 5)) == before
    counts = postgres_index.build(url, folder)
    assert counts.read <= 300 - len(acknowledged)
    fresh = index.open_folder(folder, tmp_path / "cache")
    assert told(postgres_index.open_folder(url, folder)("ferry 7", 20)) == told(fresh("ferry 7", 20))


def test_two_builds_at_once_leave_one_index(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    documents(folder)
    for n in range(60):
        (folder / f"{n}.txt").write_text(f"ferry {n}")
    builders = [
        subprocess.Popen([sys.executable, "-c", BUILDER, url, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    read = [process.communicate(timeout=120)[0].split() for process in each(builders)]
    assert [process.returncode for process in builders] == [0, 0]
    assert sum(map(len, read)) == 62, "each document was read once"


def test_a_version_in_use_stays_until_it_is_two_builds_old_and_then_says_so(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    documents(folder)
    old = postgres_index.open_folder(url, folder)
    before = told(old("ferry", 5))
    (folder / "new.txt").write_text("a ferry more")
    assert postgres_index.build(url, folder).read == 1
    assert told(old("ferry", 5)) == before
    (folder / "newer.txt").write_text("yet another ferry")
    postgres_index.build(url, folder)
    with pytest.raises(StaleFileError, match="reload the stack"):
        old("ferry", 5)
    assert postgres_index.remove(url, folder) == 2
    assert postgres_index.remove(url, folder) == 0
    with psycopg.connect(url) as connection:
        schema = connection.execute("SELECT current_schema()").fetchone()[0]  # type: ignore[index]
        for table in ("documents", "passages", "postings", "versions", "members"):
            count = psycopg.sql.SQL("SELECT count(*) FROM {}").format(
                psycopg.sql.Identifier(f"{schema}_index", table)
            )
            assert connection.execute(count).fetchone() == (0,), table


def test_a_lost_connection_is_opened_again(url: str, tmp_path: Path) -> None:
    documents(tmp_path / "docs")
    search = postgres_index.open_folder(url, tmp_path / "docs")
    before = told(search("ferry", 5))
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'demeanor'"
        )
    assert told(search("ferry", 5)) == before


def test_ids_are_unique_and_unreadable_files_are_listed(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    documents(folder)
    (folder / "twice.jsonl").write_text('{"text": "b", "id": "fare"}\n')
    with pytest.raises(
        DataError, match=r"the passage id 'fare#1' stands in fares\.jsonl and in twice\.jsonl"
    ):
        postgres_index.build(url, folder)
    (folder / "twice.jsonl").write_text("{")
    with pytest.raises(DataError, match="1 of its files cannot be indexed"):
        postgres_index.build(url, folder)


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:hunter2@127.0.0.1:1/d", "postgresql://u:hunter2@127.0.0.1:port/d", "${NOT_SET_HERE}"],
)
def test_a_wrong_address_is_told_without_its_password(url: str, tmp_path: Path) -> None:
    documents(tmp_path / "docs")
    with pytest.raises((DemeanorError, UsageError)) as wrong:
        postgres_index.build(url, tmp_path / "docs")
    assert "hunter2" not in str(wrong.value)

"""Retention, export and forgetting: what is old goes, what is exported goes on, a forgotten user's words leave the disk."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from demeanor import cli
from demeanor.core.errors import DataError, UsageError
from demeanor.core.types import Decoding, Done, Message, Text, Turn
from demeanor.store import comparisons, conversations, labels, lineage, marks, retention, turn_lines
from demeanor.store.database import Database, open_url
from demeanor.store.labels import LabelAnswer, LabelItem, LabelQueue
from tests.conftest import each

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
SECRET = "zanzibarquestion"


@pytest.fixture
def database(database_url: str, tmp_path: Path) -> Iterator[Database]:
    with closing(open_url(database_url, root=tmp_path, now=lambda: NOW)) as made:
        yield made


def record(database: Database, *turns: tuple[str, str, int]) -> None:
    """Record turns given as (id, user, days ago)."""

    async def write() -> None:
        for id, user, days in turns:
            at = NOW - timedelta(days=days)
            turn = Turn((Message("user", f"{SECRET} of {user}"),), Decoding(), id=id, user=user)
            await database.record(turn, [Text(f"{SECRET} {id}"), Done("stop")], at, at)

    asyncio.run(write())


def ids(database: Database) -> list[str]:
    return sorted(s.turn.id for s in database.turns(limit=10_000))


def test_old_turns_go_with_what_hangs_on_them_and_rated_ones_may_stay(database: Database) -> None:
    record(database, ("a", "edda", 100), ("b", "edda", 91), ("c", "odin", 89), ("d", "odin", 0))
    database.add_feedback("a", 1.0)
    assert retention.old(database, timedelta(days=90)) == {"turns": 2, "conversations": 0}
    assert retention.prune(database, timedelta(days=90), keep_rated=True)["turns"] == 1
    assert ids(database) == ["a", "c", "d"]
    assert len(database.feedback()) == 1
    assert retention.prune(database, timedelta(days=90))["turns"] == 1
    assert ids(database) == ["c", "d"]
    assert database.feedback() == []
    assert [row[0] for row in database.rows("SELECT count(*) FROM events")] == [4]
    assert retention.prune(database, timedelta(days=10**6))["turns"] == 0


def test_pruning_a_thousand_turns_is_done_in_batches_that_may_be_stopped(database: Database) -> None:
    record(database, *((f"t{i}", "edda", 100) for i in range(1100)))
    seen: list[int] = []
    done = retention.prune(database, timedelta(days=9), told=seen.append, stopped=lambda: len(seen) == 2)
    assert (seen, done["turns"]) == ([500, 1000], 1000)
    assert retention.prune(database, timedelta(days=9))["turns"] == 100


def test_a_server_prunes_by_itself_and_tells_what_it_deleted(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    record(database, ("a", "edda", 100), ("b", "edda", 1))
    with (
        caplog.at_level(logging.WARNING),
        closing(retention.Pruning(database, timedelta(days=90), False, 0.05)),
    ):
        until = time.monotonic() + 120
        while ids(database) != ["b"]:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert "retention: deleted 1 turns" in caplog.text


@pytest.mark.parametrize("text", ["90", "d90", "0d", "-3d", "90m", "", "9d ago"])
def test_an_age_is_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(UsageError, match="wanted an age such as 90d"):
        retention.age(text)
    assert [retention.age(x) for x in ("90d", "12h", " 2w ")] == [
        timedelta(days=90),
        timedelta(hours=12),
        timedelta(days=14),
    ]


def test_an_export_holds_every_turn_with_events_and_feedback(database: Database, tmp_path: Path) -> None:
    record(database, *((f"t{i}", "edda" if i % 2 else "odin", 1) for i in range(450)))
    database.add_feedback("t7", -1.0, "wrong port")
    out = tmp_path / "all.jsonl"
    assert turn_lines.write(database, out) == 450
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"t{i}" for i in range(450)]
    assert rows[7]["turn"]["messages"][0]["content"] == f"{SECRET} of edda"
    assert [e["kind"] for e in rows[7]["events"]] == ["Text", "Done"]
    assert [(f["value"], f["comment"]) for f in rows[7]["feedback"]] == [(-1.0, "wrong port")]
    assert out.stat().st_mode & 0o077 == 0
    assert turn_lines.write(database, tmp_path / "odin.jsonl", "odin") == 225


def test_a_stopped_export_goes_on_behind_its_last_whole_line(database: Database, tmp_path: Path) -> None:
    record(database, *((f"t{i}", "edda", 1) for i in range(450)))
    out = tmp_path / "all.jsonl"

    def stop(turns: int) -> None:
        if turns == 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        turn_lines.write(database, out, told=stop)
    assert not out.exists()
    part = tmp_path / "all.jsonl.part"
    part.write_bytes(part.read_bytes()[:-10])  # killed in the middle of a line
    began: list[int] = []
    assert turn_lines.write(database, out, told=began.append) == 450
    assert began[0] == 199
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [f"t{i}" for i in range(450)]
    part.write_text("a file of somebody else\n")
    with pytest.raises(DataError, match=r"all\.jsonl\.part: line 1 is not of an export"):
        turn_lines.write(database, out)


def everything_of(database: Database) -> None:
    """Edda's and Odin's turns, with everything that may hang on them."""
    record(database, ("e1", "edda", 1), ("e2", "edda", 1), ("o1", "odin", 1))
    database.add_feedback("e1", 1.0, SECRET, "edda")
    database.add_feedback("o1", -1.0, SECRET, "edda")
    database.add_feedback("o1", 1.0, "mine", "odin")

    async def write() -> None:
        await comparisons.add(database, "e1", "e2", "first", user="edda")
        await conversations.put(database, "edda", "c1", title=SECRET, words=SECRET, body="{}")
        await conversations.put(database, "odin", "c2", title="mine", words="mine", body="{}")
        await marks.put(database, "e1", "card", "false_positive", user="vera")

    asyncio.run(write())
    answers = [
        (LabelAnswer(SECRET, turn_id="e1"), LabelAnswer("b")),
        (LabelAnswer("a", turn_id="o1"), LabelAnswer("b")),
    ]
    prompt = ({"role": "user", "content": "x"},)
    items = [LabelItem(f"i{n}", n, prompt, pair) for n, pair in enumerate(answers)]
    labels.create(database, LabelQueue("first", 1), items)


def test_a_forgotten_user_leaves_nothing_and_what_was_made_of_the_words_is_named(database: Database) -> None:
    everything_of(database)
    assert lineage.note(database, "preference set", "/a/set.jsonl", "abc", ["e1", "o1", "never", "e1"]) == 2
    assert lineage.note(database, "preference set", "/a/set.jsonl", "abc", ["e1"]) == 0
    assert [(a.artefact, a.num_turns) for a in lineage.where(database, "edda")] == [("/a/set.jsonl", 1)]
    turns = lineage.turn_ids(database, "edda")
    counts = lineage.forget(database, "edda")
    assert {name: n for name, n in counts.items() if n} == {
        "turns": 2,
        "events": 4,
        "feedback": 2,
        "comparisons": 1,
        "marks": 1,
        "conversations": 1,
    }
    assert lineage.forget_labels(database, turns) == {"label_items": 1, "labels": 0}
    assert ids(database) == ["o1"]
    assert [f.comment for f in database.feedback()] == ["mine"]
    assert [row[0] for row in database.rows("SELECT id FROM label_items")] == ["i1"]
    assert lineage.users(database) == ["odin"]
    assert set(lineage.stored(database, "edda").values()) == {0}
    assert lineage.where(database, "edda") == []
    (left,) = lineage.forgotten(database)
    assert (left.artefact, left.num_turns) == ("/a/set.jsonl", 1)
    assert lineage.done(database, "/a/set.jsonl") == 1
    assert lineage.forgotten(database) == []
    assert [a.artefact for a in lineage.where(database, "odin")] == ["/a/set.jsonl"]


def test_a_forgotten_users_words_are_no_longer_in_the_file(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "of" / "a.db", lambda: NOW)) as database:
        record(database, ("e1", "edda", 1), ("e2", "edda", 1))
        before = b"".join(p.read_bytes() for p in (tmp_path / "of").iterdir())
        assert SECRET.encode() in before
        lineage.forget(database, "edda")
        after = b"".join(p.read_bytes() for p in (tmp_path / "of").iterdir())
        assert SECRET.encode() not in after
        assert b"edda" not in after


def run_of(runs: Path, key: str, **record: object) -> None:
    (runs / key).mkdir(parents=True)
    (runs / key / "record.json").write_text(
        json.dumps({"key": key, "stack": "desk", "sessions": [], **record})
    )


def test_the_verbs_name_sets_and_runs_and_delete_only_with_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/runs/requests.db"
    with closing(open_url(url, root=tmp_path, now=lambda: datetime.now(UTC))) as database:
        record(database, ("chatcmpl-1", "edda", 400), ("chatcmpl-2", "odin", 400))
        database.add_feedback("chatcmpl-1", 1.0)
        sets = tmp_path / "sets"
        sets.mkdir()
        (sets / "set.jsonl").write_text('{"provenance": {"turn_ids": ["chatcmpl-1"]}}\n')
        (sets / "copy.jsonl").write_text('{"turn_ids": ["chatcmpl-1"]}\n{"turn_ids": ["chatcmpl-12"]}\n')
        from demeanor.stack.stack import file_hash

        content = file_hash(sets / "set.jsonl")
        lineage.note(database, "preference set", str(sets / "set.jsonl"), content, ["chatcmpl-1"])
    run_of(
        tmp_path / "runs", "a" * 16, stage="dpo", data={"set.jsonl": content}, ancestors={"parent": "c" * 16}
    )
    run_of(tmp_path / "runs", "b" * 16, stage="ppo", data={}, ancestors={"parent": "a" * 16})
    run_of(tmp_path / "runs", "c" * 16, stage="sft", data={"x": "y"}, ancestors={})
    options = ["--database", url]

    def said(*words: str, code: int = 0) -> str:
        assert cli.main(["store", *words, *options]) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    listed = said("where", "edda", "--files", "sets")
    for shown in ("1 turn,", "set.jsonl", "copy.jsonl", "1 line", "dpo", "ppo", "the file itself", "a" * 16):
        assert shown in listed
    assert "sft" not in listed
    assert "Did you mean 'edda'" in said("where", "eda", code=2)
    assert "wanted a USER" in said("where", code=2)
    assert "Nothing was deleted; --yes deletes." in said("prune", "--older-than", "90d", "--keep-feedback")
    assert "--older-than: got '90'" in said("prune", "--older-than", "90", code=2)
    assert said("prune", "--older-than", "90d", "--keep-feedback", "--yes") == "deleted: 1 turn\n"
    assert "written: 1 turn," in said("export", "out.jsonl")
    assert "it is there already" in said("export", "out.jsonl", code=2)
    assert "Nothing was deleted" in said("forget", "edda")
    told = said("forget", "edda", "--yes")
    assert "deleted: 1 turn, 2 events, 1 feedback" in told
    assert "where --forgotten" in told
    assert "nothing of" not in told, "no labels are there, so none are deleted"
    assert "ppo" in said("where", "--forgotten")
    assert "no longer listed" in said("done", str(sets / "set.jsonl"))
    assert "nothing that is known" in said("where", "--forgotten")
    assert "no such file" in str(
        (cli.main(["store", "where", "x", "--database", "sqlite:///none.db"]), capsys.readouterr().err)
    )
    assert each((tmp_path / "runs").iterdir())
    assert not (tmp_path / "none.db").exists()

"""`demeanor turns`: what was recorded is found, shown and exported with where it comes from, without personal data if that is wanted."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from demeanor.cli import main
from demeanor.core.types import Decoding, Done, Message, Refusal, Text, Timing, Turn
from demeanor.evaluation.items import load_suite
from demeanor.store import routed_complaints
from demeanor.store.database import Database, open_url

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


async def fill(database: Database) -> None:
    for n, (asked, said) in enumerate(
        [
            ("When to Corkel?", "At 10."),
            ("My card is 4111 1111 1111 1111, mail edda@harbour.example", "Fine."),
            ("Steal it", "No."),
        ]
    ):
        turn = Turn(
            (Message("user", asked),),
            Decoding(seed=n),
            id=f"t{n}",
            user="edda",
            variant="desk",
            stack_key="key1",
        )
        events = (
            [Text(said), Timing("weights", 1.0), Done("stop")]
            if n < 2
            else [Refusal("policy", "theft", "why", said), Done("content_filter")]
        )
        await database.record(turn, events, NOON, NOON)  # type: ignore[arg-type]


@pytest.fixture
async def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)
    database = open_url("sqlite:///runs/requests.db", root=tmp_path, now=lambda: NOON)
    await fill(database)
    database.add_feedback("t0", -1.0, "wrong hour", "edda", "At 9.")
    database.add_feedback("t1", 1.0)
    database.add_feedback("t2", -1.0, corrected="Of course.")
    yield database
    database.close()


def test_turns_are_listed_searched_and_shown(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["turns", "list"]) == 0
    assert main(["turns", "search", "CORKEL"]) == 0
    listed = capsys.readouterr().out
    assert [listed.count(f"t{n} ") for n in range(3)] == [2, 1, 1]
    assert "bad, corrected" in listed
    assert "refused: theft" in listed
    assert main(["turns", "show", "t0"]) == 0
    shown = capsys.readouterr().out
    assert "wrong hour; corrected: At 9." in shown
    assert "desk of stack key1, seed 0" in shown
    assert main(["turns", "show", "nothing"]) == 2


def test_an_escape_sequence_of_a_user_reaches_no_terminal(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    database.add_feedback("t0", 0.0, "\x1b[2Jgone")
    main(["turns", "show", "t0"])
    assert "\x1b" not in capsys.readouterr().out


def test_a_suite_is_what_users_said_is_right(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["turns", "export", "s.jsonl", "--as-suite"]) == 0
    items = {item.id: item for item in load_suite(Path("s.jsonl"))}
    assert items["turn-t0"].target == {"answers": ["At 9."]}
    assert set(items["turn-t0"].tags) == {"turn:t0", "stack:key1", "corrected"}
    assert items["turn-t0"].cluster == "edda"
    assert set(items) == {"turn-t0", "turn-t1", "turn-t2"}


def test_only_complaints_of_the_weights_become_training_data(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["turns", "export", "p.jsonl", "--as-preferences"]) == 1  # nobody routed any
    assert not Path("p.jsonl").exists()
    routed_complaints.save(database, "key1", [("t0", "weights", "", "", {})])
    assert main(["turns", "export", "p.jsonl", "--as-preferences"]) == 0
    (row,) = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("At 9.", "At 10.")
    assert (row["source"], row["stack_key"], row["seed"]) == ("turn:t0", "key1", 0)
    assert "the weights did not say it" in capsys.readouterr().out  # t2: the policy refused
    routed_complaints.save(database, "key1", [("t0", "retrieval", "retrieval", "passages", {})])
    assert main(["turns", "export", "q.jsonl", "--as-preferences", "--unrouted"]) == 1


def test_personal_data_is_removed_where_that_is_asked_for(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["list"], ["show", "t1"], ["list", "--json"], ["show", "t1", "--json"]):
        assert main(["turns", *words, "--remove-personal-data"]) == 0
    assert main(["turns", "export", "a.jsonl", "--remove-personal-data"]) == 0
    assert main(["turns", "export", "b.jsonl", "--as-suite", "--remove-personal-data"]) == 0
    told = capsys.readouterr().out + Path("a.jsonl").read_text() + Path("b.jsonl").read_text()
    assert "[card]" in told
    assert "[email]" in told
    assert [word for word in ("4111", "edda@", "edda") if word in told] == []


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["list", "--since", "yesterday"], "wanted a time such as"),
        (["list", "--database", "sqlite:///nowhere.db"], "holds no recorded turns"),
        (["export", "x.jsonl", "--as-suite", "--as-preferences"], "exclude each other"),
        (["export", "x.jsonl", "--unrouted"], "is for --as-preferences"),
    ],
)
def test_mistakes_are_refused(
    words: list[str], what: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["turns", *words]) == 2
    assert what in capsys.readouterr().err
    assert not Path("nowhere.db").exists()

"""`demeanor label` as a user types it: from a trained stack to a queue, labels, agreement and rows a reward model reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demeanor.cli import main
from demeanor.stack.stack import Stack
from demeanor.store import label_work, labels
from demeanor.store.database import Database
from demeanor.training.runs import Runs
from tests.conftest import each


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def create(trained: tuple[Stack, Runs], *words: str) -> int:
    stack, runs = trained
    common = ["--prompts", "world:exercises", "--items", "--runs", str(runs.root), "--temperature", "1.3"]
    return main(["label", "create", str(stack.path), *common, *words])


def test_a_queue_goes_from_a_stack_to_rows(
    folder: Path, trained: tuple[Stack, Runs], capsys: pytest.CaptureFixture[str]
) -> None:
    gold = folder / "gold.jsonl"
    texts = {"completions": ["a", "b", "c", "d"], "ranks": [0, 1, 2, 3]}
    gold.write_text("".join(json.dumps({"prompt": f"check {n}", **texts}) + "\n" for n in range(2)))
    variants = ["--variants", "tiny-desk:sft", "tiny-desk:dpo"]
    assert (
        create(trained, *variants, "--k", "4", "--limit", "6", "--gold", str(gold), "--gold-every", "3") == 0
    )
    assert "2 gold checks" in capsys.readouterr().out
    assert main(["label", "invite", "edda", "--hours", "2"]) == 0
    link = capsys.readouterr().out.strip()
    database = Database(folder / "runs" / "labels.db")
    queue = labels.queue_of(database, None)
    who = labels.find_invitation(database, link.partition("#")[2])
    assert who is not None
    items = [item for item in labels.items_of(database, "labels") if item.gold is None]
    for item in each(items):
        assert {answer.model for answer in item.answers} <= {"tiny-desk:sft", "tiny-desk:dpo"}
        assert all(answer.seed is not None and answer.logprobs for answer in item.answers)
        assert len({answer.text for answer in item.answers}) == len(item.answers)
    checks = 0
    while (found := label_work.claim(database, queue, who)) is not None:
        checks += found.item.gold is not None
        ranks = found.item.gold or tuple(range(len(found.item.answers)))
        label_work.give(database, queue, who, found.item.id, "ranked", ranks)
    database.close()
    assert checks == 2
    assert main(["label", "status"]) == 0
    assert "6 of 6 labels of 6 items" in capsys.readouterr().out
    assert main(["label", "export", "rows.jsonl"]) == 0
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert main(["data", "show", "rows.jsonl", "--want", "preferences"]) == 0
    assert "6 rows" in capsys.readouterr().out
    assert main(["label", "export", "rows.jsonl"]) == 2, "nothing is overwritten without --force"


def test_where_a_reward_model_is_uncertain_comes_first_and_chance_has_its_share(
    folder: Path, trained: tuple[Stack, Runs], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--limit", "4", "--candidates", "8", "--uncertainty", "rm", "--random-share", "0.5"]
    assert create(trained, *more, "--name", "first") == 0
    database = Database(folder / "runs" / "labels.db")
    items = labels.items_of(database, "first")
    assert {item.arm for item in items} == {"random", "uncertain"}
    uncertain = [item.priority for item in items if item.arm == "uncertain"]
    assert uncertain == sorted(uncertain, reverse=True)
    queue = labels.queue_of(database, "first")
    who = labels.find_invitation(database, labels.invite(database, "first", "edda"))
    assert who is not None
    while (found := label_work.claim(database, queue, who)) is not None:
        label_work.give(database, queue, who, found.item.id, "ranked", (1, 0))
    database.close()
    capsys.readouterr()
    assert main(["label", "status", "--queue", "first"]) == 0
    assert "uncertain minus random" in capsys.readouterr().out
    assert create(trained, "--uncertainty", "sft", "--limit", "2", "--name", "second") == 2
    assert "sft: is no reward model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pairs", "--k", "4"], "--pairs: is --k 2"),
        (["--candidates", "5"], "is for --uncertainty"),
        (["--variants", "tiny-desk:nothing"], "nothing"),
        (
            ["--temperature", "0", "--variants", "tiny-desk", "--limit", "3"],
            "no prompt has two different answers",
        ),
    ],
)
def test_a_queue_that_cannot_be_made_says_why(
    folder: Path, trained: tuple[Stack, Runs], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert create(trained, *words) == 2
    assert said in capsys.readouterr().err


def test_an_export_of_potato_becomes_a_queue_with_labels(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "items.jsonl").write_text(json.dumps({"id": "1", "prompt": "?", "responses": ["a", "b"]}))
    for name, chosen in (("alice", "A"), ("bob", "B")):
        (folder / name).mkdir()
        row = {"id": "1", "label_annotations": {"preference": {"selection": chosen}}}
        (folder / name / "annotated_instances.jsonl").write_text(json.dumps(row))
    files = [f"{name}/annotated_instances.jsonl" for name in ("alice", "bob")]
    assert main(["label", "import", *files, "--from", "potato", "--items", "items.jsonl"]) == 0
    assert "1 items with 2 labels" in capsys.readouterr().out
    assert main(["label", "export", "out.jsonl", "--what", "each"]) == 0
    assert len((folder / "out.jsonl").read_text().splitlines()) == 2
    assert main(["label", "status"]) == 0
    assert main(["label", "delete", "imported"]) == 2
    assert main(["label", "delete", "imported", "--yes"]) == 0
    assert main(["label", "list"]) == 0

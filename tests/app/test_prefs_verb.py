"""`demeanor prefs build` as a user types it: from labels and revisions to a set that a DPO stage trains on as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from demeanor import app
from demeanor.cli import main
from demeanor.stack.stack import Stack
from demeanor.store import label_work, labels
from demeanor.store.database import Database
from demeanor.store.labels import GivenLabel, LabelAnswer, LabelItem, LabelQueue
from demeanor.training.runs import Runs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def queue(folder: Path, count: int = 30) -> None:
    database = Database(folder / "labels.db")
    made = []
    for n in range(count):
        texts = (
            LabelAnswer(f"the pier {n} is open", "desk:sft"),
            LabelAnswer(f"nobody knows about {n}", "desk:dpo"),
        )
        made.append(LabelItem(f"i{n}", n, ({"role": "user", "content": f"is pier {n} open?"},), texts))
    labels.create(database, LabelQueue("q"), made)
    given = [
        GivenLabel(f"i{n}", "edda", "labeller", "ranked", (n % 5 == 0, n % 5 != 0), (0, 1), "", 0, "")
        for n in range(count)
    ]
    label_work.add_given(database, labels.queue_of(database, "q"), given)
    database.close()


def test_a_set_of_labels_trains_a_stage_in_one_line(
    folder: Path, trained: tuple[Stack, Runs], capsys: pytest.CaptureFixture[str]
) -> None:
    queue(folder)
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "completion": "good day",
        "first": "what",
        "revisions": [],
    }
    (folder / "revised.jsonl").write_text(json.dumps({**row, "id": "p", "made_by": {"model": "desk"}}) + "\n")
    words = ["prefs", "build", "set.jsonl", "--labels", "sqlite:///labels.db", "--revisions", "revised.jsonl"]
    assert main([*words, "--suite", "world:behaviour"]) == 0
    said = capsys.readouterr().out
    assert "written: 31 rows" in said
    card = json.loads((folder / "set.card.json").read_text())
    assert (card["rows"], card["kept"]) == (31, {"label": 30, "revision": 1})
    assert card["sources"][0]["labellers"] == 1
    assert "world:behaviour" in (folder / "set.card.md").read_text()
    assert main([*words, "--suite", "world:behaviour"]) == 2, "nothing is overwritten without --force"
    stack, runs = trained
    declared = yaml.safe_load(stack.path.read_text())
    declared["weights"]["stages"] += [
        {"name": "again", "objective": "dpo", "parent": "sft", "data": str(folder / "set.jsonl")}
    ]
    declared["weights"]["serve"] = "again"
    path = stack.path.parent / "again.yaml"
    path.write_text(yaml.safe_dump(declared))
    found = app.load_stack(path)
    app.train(found, runs, only=["again"])
    assert runs.complete(found.stage_key("again"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to build from"),
        (["--labels", "sqlite:///none.db", "--no-suites"], "none.db: no such database"),
        (["--turns", "sqlite:///none.db", "--no-suites"], "the record layer writes one"),
        (["--labels", "sqlite:///labels.db"], "what is measured must not be trained on"),
        (["--labels", "sqlite:///labels.db", "--queue", "nothing", "--no-suites"], "Known"),
        (["--revisions", "none.jsonl", "--no-suites"], "none.jsonl: no such file"),
        (["--queue", "q", "--turns", "x"], "--queue: is for --labels"),
        (["--labels", "sqlite:///labels.db", "--no-suites", "--suite", "world:behaviour"], "contradicts"),
    ],
)
def test_what_cannot_be_built_says_why(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    queue(folder, 2)
    assert main(["prefs", "build", "set.jsonl", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "set.jsonl").exists()


def test_a_set_without_rows_is_not_written_and_shows_the_reasons(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue(folder, 3)
    (folder / "suite.jsonl").write_text(
        "".join(json.dumps({"text": f"is pier {n} open?"}) + "\n" for n in range(3))
    )
    words = ["prefs", "build", "set.jsonl", "--labels", "sqlite:///labels.db", "--suite", "suite.jsonl"]
    assert main(words) == 2
    out = capsys.readouterr()
    assert "3 dropped: overlaps with suite.jsonl" in out.out
    assert "no row is left" in out.err

"""`demeanor label judge`: over real HTTP; a judge that agrees with people labels the rest, one that does not is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from demeanor.cli import main
from demeanor.core.types import Respond
from demeanor.store import label_rows, label_work, labels
from demeanor.store.database import Database
from demeanor.store.labels import GivenLabel, LabelAnswer, LabelItem, LabelQueue
from tests.conftest import each
from tests.evaluation.scripted_judge import Scripted
from tests.server.live import served
from tests.server.scripted import Scripted as Desk


class Judge(Desk):
    """A server whose model prefers answers that say good, or always the first."""

    def __init__(self, fair: bool) -> None:
        super().__init__()
        self.model = Scripted(self.fair if fair else lambda text: "Better: 1")

    @staticmethod
    def fair(text: str) -> str:
        return f"Better: {1 if text.index('good answer') < text.index('bad answer') else 2}"

    def respond(self, model_id: str) -> Respond:
        return self.model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def queue(folder: Path) -> Database:
    database = Database(folder / "labels.db")
    made = []
    for n in range(30):
        texts = [LabelAnswer(f"a good answer {n}"), LabelAnswer(f"a bad answer {n}")]
        ordered = tuple(texts if n % 2 else texts[::-1])
        made.append(LabelItem(f"i{n}", n, ({"role": "user", "content": f"Question {n}"},), ordered))
    labels.create(database, LabelQueue("q"), made)
    people = [
        GivenLabel(f"i{n}", "edda", "labeller", "ranked", (0, 1) if n % 2 else (1, 0), (0, 1), "", 0, "")
        for n in range(20)
    ]
    label_work.add_given(database, labels.queue_of(database, "q"), people)
    return database


def stack(folder: Path, url: str) -> str:
    declared = {
        "name": "desk",
        "weights": {"base": {"kind": "remote", "url": url, "model": "harbour-desk"}},
        "evaluation": {"suites": ["builtin:helpfulness"], "judge": {"url": url, "model": "harbour-desk"}},
    }
    (folder / "stack.yaml").write_text(yaml.safe_dump(declared))
    return str(folder / "stack.yaml")


def test_a_judge_that_agrees_with_people_labels_the_rest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = queue(folder)
    with served(Judge(fair=True)) as address:
        command = ["label", "judge", stack(folder, f"{address}/v1"), "--database", "sqlite:///labels.db"]
        assert main(command) == 0
    said = capsys.readouterr().out
    assert "harbour-desk says what people say in 100.0%" in said
    assert "10 items; 0 without a verdict" in said
    given = labels.labels_of(database, "q")
    assert sum(label.role == "judge" for label in given) == 10
    assert len(label_rows.export(database, "q").rows) == 20, "a judge's labels are not exported as people's"
    kinds = [one.kind for one in label_rows.candidates(database, "q")]
    assert (kinds.count("label"), kinds.count("judge")) == (20, 10)
    database.close()


def test_a_judge_that_follows_the_place_is_refused_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = queue(folder)
    with served(Judge(fair=False)) as address:
        command = ["label", "judge", stack(folder, f"{address}/v1"), "--database", "sqlite:///labels.db"]
        assert main(command) == 2
    assert "may not label 'q'" in capsys.readouterr().err
    assert all(label.role == "labeller" for label in labels.labels_of(database, "q"))
    database.close()


def test_a_judge_that_is_away_is_said_before_anything_is_asked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue(folder).close()
    command = ["label", "judge", stack(folder, "http://127.0.0.1:9/v1"), "--database", "sqlite:///labels.db"]
    assert main(command) == 3
    assert "Nothing was begun" in capsys.readouterr().err


def test_a_panel_labels_where_it_agrees_with_people_and_each_judge_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = queue(folder)
    with served(Judge(fair=True)) as good, served(Judge(fair=False)) as first:
        own = stack(folder, f"{first}/v1")
        command = [
            "label",
            "judge",
            own,
            "--database",
            "sqlite:///labels.db",
            "--judge",
            f"{good}/v1#harbour-desk",
        ]
        assert main(command) == 0
        twice = [*command, "--judge", f"{good}/v1#harbour-desk"]
        assert main(twice) == 2
    said = capsys.readouterr()
    assert "named twice" in said.err
    assert "harbour-desk says what people say in 50.0%" in said.out
    assert "weight +0.00" in said.out
    assert "the panel of harbour-desk, harbour-desk says what people say in 100.0%" in said.out
    judged = [x for x in labels.labels_of(database, "q") if x.role == "judge"]
    assert {x.labeller for x in judged} == {"panel:harbour-desk+harbour-desk"}
    assert all(x.ranks == ((0, 1) if int(x.item[1:]) % 2 else (1, 0)) for x in each(judged))
    database.close()

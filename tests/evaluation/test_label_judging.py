"""A judge that labels a queue: only if people's labels of that queue show that it may; ranks by pairs won."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from demeanor.evaluation import label_judging
from demeanor.evaluation.judge import JudgeClient
from demeanor.evaluation.judge_validation import unusable
from demeanor.stack.schema import JudgeSpec
from tests.evaluation.scripted_judge import Scripted


class Answer(NamedTuple):
    text: str


class Item(NamedTuple):
    id: str
    prompt: tuple[dict[str, str], ...]
    answers: tuple[Answer, ...]
    gold: tuple[int, ...] | None = None


class Given(NamedTuple):
    item: str
    labeller: str
    choice: str
    ranks: tuple[int, ...]
    shown: tuple[int, ...] = (0, 1)
    role: str = "labeller"


def item(n: int, answers: int = 2) -> Item:
    texts = tuple(Answer(f"quality {answers - k} of {n}") for k in range(answers))
    return Item(f"i{n}", ({"role": "user", "content": f"Request {n}"},), texts)


def better(text: str) -> str:
    """Takes the answer of the higher quality."""
    first, second = (int(part.split()[0]) for part in text.split("quality ")[1:3])
    return f"Better: {1 if first > second else 2}"


def client(folder: Path, says: Any = better) -> JudgeClient:
    return JudgeClient(
        JudgeSpec(url="http://127.0.0.1:9/v1", model="big"), Scripted(says), folder / "v.jsonl"
    )


def test_a_judge_is_measured_on_peoples_comparisons_and_labels_the_rest(tmp_path: Path) -> None:
    items = [*(item(n) for n in range(30)), item(30, 4)]
    people = [Given(f"i{n}", "edda", "ranked", (0, 1)) for n in range(25)]
    judge = client(tmp_path)
    found = label_judging.calibrate(judge, items, people)
    assert found.accuracy is not None
    assert (found.accuracy.value, found.comparisons, found.items) == (1.0, 25, 25)
    assert found.unusable(0.5) == ""
    labelled = dict(label_judging.label(judge, items, people))
    assert sorted(labelled) == ["i25", "i26", "i27", "i28", "i29", "i30"]
    assert labelled["i25"] == (0, 1)
    assert labelled["i30"] == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("says", "people", "why"),
    [
        (better, [], "was not measured"),
        (better, [Given("i0", "edda", "ranked", (0, 1))], "no interval"),
        (
            lambda text: "Better: 1",
            [Given(f"i{n}", "edda", "ranked", (0, 1)) for n in range(30)],
            "wanted a lower bound",
        ),
    ],
)
def test_a_judge_that_was_not_measured_or_is_at_chance_may_not_label(
    tmp_path: Path, says: Any, people: list[Given], why: str
) -> None:
    items = [item(n) for n in range(30)]
    found = label_judging.calibrate(client(tmp_path, says), items, people)
    assert why in found.unusable(0.5)


def test_a_judge_that_contradicts_itself_ties_and_one_without_words_gives_nothing(tmp_path: Path) -> None:
    first = label_judging.label(client(tmp_path, lambda text: "Better: 1"), [item(0)], [])
    assert first == [("i0", (0, 0))]
    mute = label_judging.label(client(tmp_path / "mute", lambda text: "hm"), [item(0)], [])
    assert mute == [("i0", ())]


def test_the_rule_reads_a_saved_validation_too() -> None:
    assert unusable({"accuracy": {"value": 0.7, "low": 0.61}}) == ""
    assert "lower bound 46.6%" in unusable({"accuracy": {"value": 0.565, "low": 0.466}})
    assert "not measured" in unusable({"accuracy": None})
    assert "above 60%" in unusable({"accuracy": {"value": 0.7, "low": 0.59}}, 0.6)

"""A judge that labels a queue: only if people's labels of that queue show that it may; ranks by pairs won."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from demeanor.core.errors import DemeanorError
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


def worse(text: str) -> str:
    return "Better: 2" if better(text) == "Better: 1" else "Better: 1"


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
    labelled = dict(label_judging.label([judge], items, people))
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
    first = label_judging.label([client(tmp_path, lambda text: "Better: 1")], [item(0)], [])
    assert first == [("i0", (0, 0))]
    mute = label_judging.label([client(tmp_path / "mute", lambda text: "hm")], [item(0)], [])
    assert mute == [("i0", ())]


def test_a_panel_is_measured_with_weights_of_other_items_and_labels_by_them(tmp_path: Path) -> None:
    """Two judges of three say what people say, one always the first; the good ones outweigh it, and on ties of theirs it has no say."""
    items = [*(item(n) for n in range(40)), item(40, 3)]
    people = [Given(f"i{n}", "edda", "ranked", (0, 1) if n % 5 else (1, 0)) for n in range(36)]
    judges = [client(tmp_path / f"{n}", says) for n, says in enumerate((better, better, worse))]
    panel, each, weights = label_judging.calibrate_panel(judges, items, people)
    assert panel.model == "the panel of big, big, big"
    accuracies = [one.accuracy.value for one in each if one.accuracy is not None]
    assert accuracies == [28 / 36, 28 / 36, 8 / 36]
    assert panel.accuracy is not None
    assert (panel.accuracy.value, panel.comparisons, panel.items) == (28 / 36, 36, 36)
    assert weights == pytest.approx([math.log(28.5 / 8.5)] * 2 + [-math.log(28.5 / 8.5)])
    assert dict(label_judging.label(judges, items, people, weights_J=weights))["i40"] == (0, 1, 2)
    alone = label_judging.label(judges[2:], items, people, weights_J=weights[2:])
    assert dict(alone)["i40"] == (0, 1, 2), "a judge that is mostly wrong counts for the other answer"


def test_a_panel_of_judges_without_words_is_an_error(tmp_path: Path) -> None:
    mute = [client(tmp_path / f"{n}", lambda text: "hm") for n in range(2)]
    with pytest.raises(DemeanorError, match="no verdict on 1 items"):
        label_judging.calibrate_panel(mute, [item(0)], [Given("i0", "edda", "ranked", (0, 1))])


def test_the_rule_reads_a_saved_validation_too() -> None:
    assert unusable({"accuracy": {"value": 0.7, "low": 0.61}}) == ""
    assert "lower bound 46.6%" in unusable({"accuracy": {"value": 0.565, "low": 0.466}})
    assert "not measured" in unusable({"accuracy": None})
    assert "above 60%" in unusable({"accuracy": {"value": 0.7, "low": 0.59}}, 0.6)

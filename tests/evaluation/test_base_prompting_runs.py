"""The base asked in every way on trained weights: rows, file, section; examples are of other clusters, raw text has no template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demeanor.app import services
from demeanor.core.types import Decoding, Item, Message, Text, Turn, complete
from demeanor.evaluation import base_prompting, ladder
from demeanor.evaluation import result as results
from demeanor.evaluation.experiment import turned
from demeanor.evaluation.result_rows import Row
from demeanor.report import outputs, publish
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs


def item(i: str, cluster: str, axis: str = "a") -> Item:
    return Item(i, (Message("user", f"{i}?"),), "exact", {"answers": ["x"]}, axis, cluster)


def row(of: Item, value: float) -> Row:
    return Row(
        "whole",
        "k",
        of.id,
        of.id,
        0,
        of.axis,
        of.cluster,
        None,
        (),
        value,
        "",
        "",
        f"{of.id}!",
        "",
        "",
        "stop",
        1,
        1,
        1.0,
        {},
        (),
    )


def test_examples_are_right_answers_of_other_clusters_of_the_axis() -> None:
    items = [
        item("1", "p"),
        item("2", "p"),
        item("3", "q"),
        item("4", "r"),
        item("5", "s"),
        item("6", "t"),
        item("7", "u", "b"),
    ]
    found = base_prompting.shots(items, [row(x, float(x.id != "4")) for x in items])
    told = [m.content for m in found[items[0].messages]]
    assert told == [
        "3?",
        "3!",
        "5?",
        "5!",
        "6?",
        "6!",
    ]  # not of its own cluster, not the wrong one, one of each cluster
    assert items[6].messages not in found  # nobody else is on its axis


async def test_raw_is_the_texts_alone_until_a_line_ends() -> None:
    seen: list[Turn] = []

    async def inner(turn: Turn):  # type: ignore[no-untyped-def]
        seen.append(turn)
        yield Text("x")

    messages = (Message("system", "Be kind."), Message("user", "Who?"))
    await complete(turned(base_prompting.raw)(inner), Turn(messages, Decoding(stop=("#",))))
    (turn,) = seen
    assert (turn.messages[0].content, turn.raw, turn.decoding.stop) == ("Be kind.\nWho?\n", (), ("#", "\n"))


def test_the_base_is_asked_in_every_way_and_the_page_says_so(
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    found = base_prompting.run(stack, services(runs), tmp_path, limit=3, name="f")
    assert found.ways[0] == found.declared
    assert {"turns", "chatml", "transcript", "raw"} <= set(found.ways)
    assert found.stage == "sft"
    assert json.loads((tmp_path / "f.base.json").read_text())["stack_key"] == stack.key()
    outputs.show(base_prompting.section(found), outputs.console())
    assert "to the base prompted in the best way" in " ".join(capsys.readouterr().out.split())
    ladder.evaluate(
        stack, services(runs), tmp_path, variants=["tiny-desk:base", "tiny-desk"], limit=3, name="f"
    )
    page = publish.show(results.load(tmp_path / "f.json"), tmp_path).read_text()
    assert "Was the base prompted fairly" in page

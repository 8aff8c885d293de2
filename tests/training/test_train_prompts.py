"""Prompts of online stages: each once, with room for an answer, and held-out ones never trained on."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import DataError
from demeanor.evaluation import suites
from demeanor.stack.schema import TokenizerSpec
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import Template, load_template
from demeanor.training.prompts import Prompts, prompts
from tests.training.test_train_online import stage


@cache
def template() -> Template:
    words = [f"word{i} and number {i}" for i in range(40)]
    return load_template(
        "turns", tokenizers.train(words, TokenizerSpec(vocab_size=300)), folder=None, root=Path()
    )


def read(folder: Path, contents: list[str], *, context: int = 64, **changes: Any) -> Prompts:
    """The prompts of a file with these user messages."""
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in contents]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = stage(**{"prompts": [{"source": "rows.jsonl"}], "rollouts": {"max_tokens": 8}, **changes})
    return prompts(settings, template(), root=folder, context=context, items=suites.items)


def test_each_prompt_is_asked_once_and_none_is_both_trained_and_held_out(tmp_path: Path) -> None:
    found = read(tmp_path, [f"word{i}" for i in range(30)] * 2)
    trained, held = ({task.tokens for task in tasks} for tasks in (found.tasks, found.held_out))
    assert len(found.tasks) == len(trained) == 27
    assert len(found.held_out) == len(held) == 3
    assert not trained & held


def test_few_prompts_are_all_trained_on(tmp_path: Path) -> None:
    found = read(tmp_path, ["word1"])
    assert (len(found.tasks), found.held_out, found.too_long) == (1, [], 0)


def test_equal_prompts_with_different_items_are_different_tasks(tmp_path: Path) -> None:
    about = {
        "messages": [{"role": "user", "content": "A number?"}],
        "scorer": "number",
        "axis": "a",
        "cluster": "a",
    }
    items = [{"id": str(n), "target": {"value": n}, **about} for n in range(2)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    found = read(tmp_path, ["word1"], prompts=[{"source": "items.jsonl", "items": True}])
    assert [task.item.id for task in found.tasks if task.item] == ["0", "1"]


def test_a_prompt_without_room_for_an_answer_is_left_out_and_counted(tmp_path: Path) -> None:
    short, long = "word1", "word2 " * 6
    lengths = [len(task.tokens) for task in read(tmp_path, [short, long]).tasks]
    assert lengths[0] < lengths[1] - 3
    for changes in ({"context": lengths[1] + 7}, {"max_tokens": lengths[1] - 1}):
        found = read(tmp_path, [short, long], **changes)  # type: ignore[arg-type]
        assert ([len(task.tokens) for task in found.tasks], found.too_long) == ([lengths[0]], 1), changes
    assert read(tmp_path, [short, long], context=lengths[1] + 8).too_long == 0


def test_the_error_says_which_of_two_limits_left_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 1 leaves room.*; raise max_tokens"):
        read(tmp_path, ["word1"], max_tokens=2)
    with pytest.raises(DataError, match=r"none of 1 leaves room.*; lower rollouts\.max_tokens"):
        read(tmp_path, ["word1"], rollouts={"max_tokens": 64})
    with pytest.raises(DataError, match=r"the longest that fits would have 56\); wanted shorter prompts"):
        read(tmp_path, ["word1 " * 40])

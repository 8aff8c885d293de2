"""Unpaired preferences: TRL's columns in, labelled branches out, and the completions of other prompts that KTO asks for."""

from __future__ import annotations

import random
from typing import Any

import pytest
from harbour import template, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.core.errors import DataError
from demeanor.core.types import Message, Preference, Unpaired
from demeanor.data.rows import parse
from demeanor.data.trees import Branch, Tree, collate, mismatched, preference_tree, unpaired_tree
from demeanor.model.tensors import MISMATCHED

USER, GOOD, BAD = Message("user", "Who?"), Message("assistant", "Marla."), Message("assistant", "No.")


@pytest.mark.parametrize(
    ("label", "truth"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        ("true", True),
        ("False", False),
        ("1", True),
        ("0", False),
    ],
)
def test_a_label_may_be_a_truth_value_a_digit_or_text(label: Any, truth: bool) -> None:
    assert parse({"prompt": "Who?", "completion": "Marla.", "label": label}, "unpaired", "x:1") == Unpaired(
        (USER,), (GOOD,), truth, (), "x:1"
    )


@pytest.mark.parametrize("label", ["good", 2, 0.5, [True], "", "yes"])
def test_any_other_label_is_an_error_that_says_what_was_wanted(label: Any) -> None:
    with pytest.raises(ValueError, match=r"label: got .* wanted true or false"):
        parse({"prompt": "Who?", "completion": "Marla.", "label": label}, "unpaired", "x:1")


def test_conversations_give_the_same_row_as_texts() -> None:
    row = {
        "prompt": [{"role": "user", "content": "Who?"}],
        "completion": [{"role": "assistant", "content": "Marla."}],
        "label": True,
    }
    assert parse(row, "unpaired", "") == Unpaired((USER,), (GOOD,), True)


def test_an_implicit_prompt_ends_with_the_last_question_never_within_a_message() -> None:
    said = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Who what?"},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Marla."},
    ]
    assert parse({"completion": said, "label": False}, "unpaired", "") == Unpaired(
        (USER, Message("assistant", "Who what?"), USER), (GOOD,), False
    )
    text = "\n\nHuman: Who?\n\nAssistant: Marla."
    assert parse({"completion": text, "label": False}, "unpaired", "") == Unpaired((USER,), (GOOD,), False)
    with pytest.raises(ValueError, match="no user message"):
        parse({"completion": said[1:2], "label": False}, "unpaired", "")
    with pytest.raises(ValueError, match="nothing after the prompt"):
        parse({"completion": said[:1], "label": False}, "unpaired", "")


def test_a_preference_row_is_accepted_and_stays_one() -> None:
    row = {"prompt": "Who?", "chosen": "Marla.", "rejected": "No."}
    assert parse(row, "unpaired", "") == Preference((USER,), ((GOOD,), (BAD,)), (0, 1))


def test_a_row_without_a_label_says_which_columns_were_wanted() -> None:
    with pytest.raises(ValueError, match=r"completion, prompt; wanted \[prompt,\]completion,label"):
        parse({"prompt": "Who?", "completion": "Marla."}, "unpaired", "")


def test_a_labelled_row_is_the_branch_that_a_preference_would_have() -> None:
    pair = preference_tree(Preference((USER,), ((GOOD,), (BAD,)), (0, 1)), template("turns"))
    for said, desirable, branch in ((GOOD, True, pair.branches[0]), (BAD, False, pair.branches[1])):
        assert unpaired_tree(Unpaired((USER,), (said,), desirable, source="r"), template("turns")) == Tree(
            pair.prompt, (branch,), (0,), source="r", labels=(int(desirable),)
        )


def test_a_pair_becomes_one_tree_with_labels_instead_of_ranks() -> None:
    pair = Preference((USER,), ((BAD,), (GOOD,), (BAD,)), (1, 0, 1), margin=2.0)
    tree = unpaired_tree(pair, template("turns"))
    assert tree.labels == (0, 1, 0)
    assert tree.ranks == (0, 0, 0)
    assert tree.margin is None
    assert tree.branches == preference_tree(pair, template("turns")).branches
    with pytest.raises(DataError, match="exactly two different ranks"):
        unpaired_tree(Preference((USER,), ((BAD,), (GOOD,), (BAD,)), (1, 0, 2)), template("turns"))


def tree(prompt: int, answer: int) -> Tree:
    return Tree((prompt,), (Branch((answer,), (True,)),), labels=(1,))


@settings(max_examples=200, deadline=None)
@given(
    prompts=st.lists(st.integers(0, 3), min_size=2, max_size=12).filter(lambda p: len(set(p)) > 1),
    seed=st.integers(0, 5),
)
def test_a_mismatched_completion_is_the_next_one_of_another_prompt(prompts: list[int], seed: int) -> None:
    trees = [tree(prompt, 100 + i) for i, prompt in enumerate(prompts)]
    order = list(range(len(trees)))
    random.Random(f"mismatched/{seed}").shuffle(order)
    found = list(mismatched(trees, seed))
    assert len(found) == len(trees)
    for place, i in enumerate(order):
        around = [*order[place + 1 :], *order[:place]]
        expected = next(j for j in around if prompts[j] != prompts[i])
        assert found[i].branches == (*trees[i].branches, trees[expected].branches[0])
        assert found[i].labels == (1, MISMATCHED)
        assert found[i].ranks == (0, 0)


def test_mismatched_completions_depend_on_the_seed_and_on_nothing_else() -> None:
    trees = [tree(i, 100 + i) for i in range(20)]
    assert list(mismatched(trees, 1)) == list(mismatched(trees, 1))
    assert list(mismatched(trees, 1)) != list(mismatched(trees, 2))


def test_one_prompt_has_nothing_to_be_mismatched_with() -> None:
    with pytest.raises(DataError, match="2 rows share one prompt"):
        list(mismatched([tree(1, 2), tree(1, 3)], 0))


def test_labels_are_laid_out_with_their_branches() -> None:
    rows = list(
        mismatched(
            [unpaired_tree(Preference((USER,), ((GOOD,), (BAD,)), (0, 1)), template("turns")), tree(5, 6)], 0
        )
    )
    batch = collate(rows)
    assert batch.label_B is not None
    assert batch.label_B.tolist() == [1, 0, MISMATCHED, 1, MISMATCHED]
    assert batch.rank_B.tolist() == [0] * 5
    assert collate([tree(1, 2)._replace(labels=())]).label_B is None
    with pytest.raises(DataError, match="0 labels for 1 completions"):
        collate([tree(1, 2), tree(1, 2)._replace(labels=())])
    assert tokenizer().decode(rows[0].branches[0].tokens) == "Marla.<|end|>"

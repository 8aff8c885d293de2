"""What is shown before training: the coverage is counted, and the colours are exactly the trained tokens."""

from __future__ import annotations

import pytest
from harbour import template, tokenizer

from demeanor.core.errors import DataError
from demeanor.core.types import Example, Message, Preference
from demeanor.data.batches import coverage, within
from demeanor.data.preview import TRAINED, show
from demeanor.data.trees import Branch, Tree, example_tree, preference_tree

ROW = Example(
    (
        Message("user", "Who?"),
        Message("assistant", "Marla."),
        Message("user", "When?"),
        Message("assistant", "12."),
    ),
    source="rows.jsonl:1",
)


def test_exactly_the_trained_tokens_are_coloured() -> None:
    text = show([example_tree(ROW, template("turns"), tokenizer())], tokenizer())
    coloured = [text.plain[s.start : s.end] for s in text.spans if s.style == TRAINED]
    assert coloured == ["Marla.<|end|>", "12.<|end|>"]
    assert (
        "rows.jsonl:1\n<|user|>Who?<|end|><|assistant|>Marla.<|end|><|user|>When?<|end|><|assistant|>12.<|end|>"
        in text.plain
    )


def test_completions_stand_on_their_own_lines_with_their_ranks() -> None:
    pair = Preference(
        (Message("user", "Who?"),),
        ((Message("assistant", "Marla."),), (Message("assistant", "No."),)),
        (0, 1),
    )
    assert (
        "\n  [0] Marla.<|end|>\n  [1] No.<|end|>"
        in show([preference_tree(pair, template("turns"))], tokenizer()).plain
    )


def test_coverage_counts_rows_tokens_and_what_carries_loss() -> None:
    found = coverage(
        [Tree((1, 2), (Branch((3, 4, 5), (True, False, True)),)), Tree((), (Branch((6, 7), (True, True)),))]
    )
    assert found == (2, 5, 3, 0, 0, 5)  # 1 | 2 3 4 and 6 are computed; 3, 5 and 7 are predicted
    assert str(found) == "2 rows, 5 tokens, 3 of them trained (60%), longest row 5"


def test_rows_without_a_trained_token_are_an_error() -> None:
    nothing = [Tree((1, 2), (Branch((3,), (False,)),)), Tree((), (Branch((6,), (True,)),))]
    with pytest.raises(DataError, match="none of 2 rows"):
        show(nothing, tokenizer())


def test_rows_longer_than_the_context_are_left_out_and_it_is_an_error_if_all_are() -> None:
    short, long = Tree((1,), (Branch((2,), (True,)),)), Tree((1,), (Branch((2,) * 9, (True,) * 9),))
    assert within([short, long], 5) == [short]
    with pytest.raises(DataError, match=r"sft: none of 1 rows fits in 5 tokens \(the shortest has 10\)"):
        within([long], 5, "sft")

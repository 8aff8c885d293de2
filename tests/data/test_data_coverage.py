"""What carries loss is counted, and nothing at all is an error."""

from __future__ import annotations

import pytest

from demeanor.core.errors import DataError
from demeanor.data.batches import coverage, num_comparisons, summary, within
from demeanor.data.trees import Branch, Tree


def tree(prompt: int, *branches: str, ranks: tuple[int, ...] = ()) -> Tree:
    """A tree whose branches are drawn as masks: `.` is read, `x` is trained."""
    made = tuple(Branch((5,) * len(b), tuple(c == "x" for c in b)) for b in branches)
    return Tree((1,) * prompt, made, ranks or tuple(range(len(branches))), None, "")


def test_comparisons_are_the_pairs_whose_ranks_differ() -> None:
    assert num_comparisons(tree(1, "x", "x", "x", ranks=(0, 1, 2))) == 3
    assert num_comparisons(tree(1, "x", "x", "x", ranks=(0, 1, 1))) == 2
    assert num_comparisons(tree(1, "x", "x", ranks=(0, 0))) == 0


def test_the_line_says_rows_tokens_share_and_what_was_left_out() -> None:
    said = summary(
        "sft", [tree(6, "..xx"), tree(0, "...."), tree(2, "xxxx")], rewards=False, left_out=2, held_out=1
    )
    assert (
        said
        == "3 rows, 17 tokens, 6 (35%) carry loss; 1 rows carry none; 2 longer rows left out; 1 rows held out"
    )
    assert summary("rm", [tree(2, "..", "..")], rewards=True) == "1 rows, 5 tokens, 1 comparisons"


def test_nothing_to_learn_from_is_an_error_and_says_why() -> None:
    with pytest.raises(DataError, match="sft: no token carries loss"):
        summary("sft", [tree(3, "...."), tree(0, "x")], rewards=False)
    with pytest.raises(DataError, match="rm: no two completions differ in rank"):
        summary("rm", [tree(3, "xx", "xx", ranks=(0, 0))], rewards=True)
    with pytest.raises(DataError, match="sft: no token carries loss"):
        summary("sft", [], rewards=False)


def test_a_completion_of_another_prompt_is_no_part_of_what_is_trained() -> None:
    labelled = tree(2, "xx", "xxx")._replace(labels=(1, -1))
    assert coverage([labelled]) == (1, 6, 2, 1, 0, 5)  # 1 | 1 5 | 1 5 5 are computed


def test_a_row_that_fills_the_context_exactly_is_kept() -> None:
    rows = [tree(2, "abc"), tree(2, "abcd"), tree(2, "a", "abc")]
    assert [x.longest for x in rows] == [5, 6, 5]
    assert list(within(rows, 5)) == [rows[0], rows[2]]
    with pytest.raises(DataError, match="the shortest has 5"):
        within(rows, 4)

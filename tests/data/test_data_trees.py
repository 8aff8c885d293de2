"""Trees and their flat layout: against separate sequences, and the texts that carry loss against the assistants' texts."""

from __future__ import annotations

import pytest
from harbour import separate, template, tokenizer, trees
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.core.errors import DataError
from demeanor.core.types import Example, Message, Preference, ToolCall, ToolSpec
from demeanor.data.trees import Branch, Tree, collate, example_tree, num_scored, preference_tree
from demeanor.model.tensors import Segment, TokenBatch, preference_pairs


def seen(batch: TokenBatch, at: int) -> list[int]:
    """Indices into T that position `at` attends to, in order, itself included."""
    segment = next(s for s in batch.segments if s.start <= at < s.end)
    return [i for start, end in segment.context for i in range(start, end)] + list(
        range(segment.start, at + 1)
    )


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(trees(), min_size=1, max_size=4), read_last=st.booleans())
def test_every_scored_token_sees_exactly_its_own_sequence(rows: list[Tree], read_last: bool) -> None:
    batch = collate(rows, read_last=read_last)
    tokens, positions = batch.tokens_T.tolist(), batch.positions_T.tolist()
    flat = []
    for at, target, branch in zip(batch.scored_C.tolist(), batch.targets_C.tolist(), batch.branch_C.tolist()):
        flat.append((tuple(tokens[i] for i in seen(batch, at)), target, int(batch.tree_B[branch]), branch))
        assert [positions[i] for i in seen(batch, at)] == list(range(positions[at] + 1))
    assert flat == separate(rows)
    assert len(flat) == sum(map(num_scored, rows))


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(trees(), min_size=1, max_size=4), read_last=st.booleans())
def test_segments_tile_the_batch_and_the_last_token_of_a_branch_is_where_rewards_read(
    rows: list[Tree], read_last: bool
) -> None:
    batch = collate(rows, read_last=read_last)
    covered = [i for s in batch.segments for i in range(s.start, s.end)]
    assert covered == list(range(len(batch.tokens_T)))
    branches = [(tree, b) for tree in rows for b in tree.branches]
    assert batch.num_branches == len(branches)
    for at, (tree, branch) in zip(batch.last_B.tolist(), branches):
        whole = tree.prompt + branch.tokens
        if read_last:
            assert [int(batch.tokens_T[i]) for i in seen(batch, at)] == list(whole)
    if not read_last:
        assert len(batch.tokens_T) == sum(tree.num_tokens for tree in rows)


def test_the_layout_is_the_one_drawn_in_tensors() -> None:
    a, b, c, x, y, z = range(6)
    tree = Tree((a, b, c), (Branch((x, y), (True, True)), Branch((z,), (True,))), (0, 1))
    batch = collate([tree], read_last=True)
    assert batch.tokens_T.tolist() == [a, b, c, x, y, c, z]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert batch.segments == (Segment(0, 2), Segment(2, 5, ((0, 2),)), Segment(5, 7, ((0, 2),)))
    assert collate([tree]).tokens_T.tolist() == [a, b, c, x, c]
    assert [t.tolist() for t in preference_pairs(batch)] == [[0], [1], [0]]


def test_reference_and_margins_follow_the_trees() -> None:
    rows = [
        Tree((1, 2), (Branch((3, 4), (True, False)), Branch((5,), (True,))), (0, 1), margin=2.0),
        Tree((), (Branch((7, 8, 9), (True,) * 3),)),
    ]
    batch = collate(rows, reference=[[-1.0, -2.0], [-3.0, -4.0]])
    assert batch.targets_C.tolist() == [3, 5, 8, 9]
    assert batch.reference_C is not None
    assert batch.reference_C.tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert batch.margin_N is not None
    assert batch.margin_N.tolist() == [2.0, 0.0]
    assert collate(rows[1:]).margin_N is None
    with pytest.raises(DataError, match="scored 1 tokens, wanted 2"):
        collate(rows, reference=[[-1.0], [-3.0, -4.0]])


words = st.text(st.sampled_from("Marla Corkel 37?\n."), min_size=1, max_size=20).filter(
    lambda t: t.strip() == t
)
dialogues = st.lists(st.tuples(words, words), min_size=1, max_size=3)


@pytest.mark.parametrize("name", ["turns", "chatml", "transcript"])
@settings(max_examples=40, deadline=None)
@given(dialogue=dialogues, first=st.integers(0, 2))
def test_decoding_the_trained_tokens_gives_exactly_the_assistants_texts(
    name: str, dialogue: list[tuple[str, str]], first: int
) -> None:
    first = min(first, len(dialogue) - 1)
    messages = tuple(
        m for asked, said in dialogue for m in (Message("user", asked), Message("assistant", said))
    )
    tree = example_tree(Example(messages, trained_from=2 * first), template(name), tokenizer())
    (branch,) = tree.branches
    runs: list[list[int]] = [[]]
    for token, trained in zip(branch.tokens, branch.trained):
        if trained:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    said = [tokenizer().decode(run) for run in runs]
    for end in ("<|end|>", "<|im_end|>", "\nVisitor:"):
        said = [text.removesuffix(end) for text in said]
    assert said == [answer for _, answer in dialogue[first:]]
    assert tree.prompt == tuple(template(name).render(messages[: 2 * first + 1], generate=True).tokens)
    assert branch.trained[-1]


def test_a_tool_result_is_never_trained_on() -> None:
    messages = (
        Message("user", "37?"),
        Message("assistant", "", (ToolCall("", "calculator", "{}"),)),
        Message("tool", "SECRET"),
        Message("assistant", "37."),
    )
    tools = (ToolSpec("calculator", "", {}),)
    for name in ("turns", "chatml", "transcript"):
        (branch,) = example_tree(Example(messages, tools=tools), template(name), tokenizer()).branches
        trained = tokenizer().decode([t for t, flag in zip(*branch) if flag])
        assert "SECRET" in tokenizer().decode(branch.tokens)
        assert "SECRET" not in trained
        assert "calculator" in trained


@pytest.mark.parametrize("name", ["turns", "chatml", "transcript"])
def test_the_completions_of_a_preference_share_one_prompt(name: str) -> None:
    prompt = (Message("user", "Who?"), Message("assistant", "Who what?"), Message("user", "Who runs it?"))
    said = ("Marla.", "I don't know.", "Corkel.")
    row = Preference(
        prompt, tuple((Message("assistant", s),) for s in said), (0, 1, 1), margin=1.5, source="here"
    )
    tree = preference_tree(row, template(name))
    assert tree.prompt == tuple(template(name).render(prompt, generate=True).tokens)
    assert [
        tokenizer().decode(b.tokens).removesuffix("<|end|>").removesuffix("<|im_end|>") for b in tree.branches
    ] == list(said)
    assert all(all(b.trained) for b in tree.branches)
    assert (tree.ranks, tree.margin, tree.source) == ((0, 1, 1), 1.5, "here")
    assert tree.longest == len(tree.prompt) + max(len(b.tokens) for b in tree.branches)


def test_plain_text_is_trained_whole_and_ends_with_eos() -> None:
    tree = example_tree(Example(text="Marla runs."), template("turns"), tokenizer())
    assert tree.prompt == ()
    assert tree.branches[0].tokens == tuple(tokenizer().document("Marla runs."))
    assert num_scored(tree) == len(tree.branches[0].tokens) - 1


def test_a_row_that_trains_nothing_is_an_error_that_says_which() -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:3: no token carries loss"):
        example_tree(
            Example((Message("user", "Who?"),), source="rows.jsonl:3"), template("turns"), tokenizer()
        )
    with pytest.raises(DataError, match=r"rows.jsonl:4: completion 1"):
        preference_tree(
            Preference(
                (Message("user", "Who?"),),
                ((Message("assistant", "Marla."),), (Message("user", "x"),)),
                (0, 1),
                source="rows.jsonl:4",
            ),
            template("turns"),
        )

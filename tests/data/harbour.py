"""What the tests of data/ share: a small tokenizer, random trees, and the slow twin of the flat layout."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from demeanor.data.trees import Branch, Tree
from demeanor.stack import schema
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import Template, load_template
from demeanor.text.tokenizer import Tokenizer


@cache
def tokenizer() -> Tokenizer:
    return tokenizers.train(
        ["Marla runs the ferry to Corkel at 12:30. Corkel 37. Who? Marla."] * 20,
        schema.TokenizerSpec(vocab_size=300),
    )


@cache
def template(name: str) -> Template:
    return load_template(name, tokenizer(), folder=None, root=Path())


ids = st.integers(0, 99)
branches = st.lists(st.tuples(ids, st.booleans()), min_size=1, max_size=5).map(
    lambda b: Branch(tuple(t for t, _ in b), tuple(f for _, f in b))
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    prompt = tuple(draw(st.lists(ids, max_size=4)))
    found = draw(st.lists(branches, min_size=1, max_size=3 if prompt else 1))
    return Tree(prompt, tuple(found), tuple(range(len(found))), draw(st.sampled_from([None, 0.5])))


def separate(batch: Sequence[Tree]) -> list[tuple[tuple[int, ...], int, int, int]]:
    """Slow and obvious: every branch as a sequence of its own; (what stands before, target, tree, branch) of each scored token."""
    scored, number = [], 0
    for n, tree in enumerate(batch):
        for branch in tree.branches:
            for i, token in enumerate(branch.tokens):
                before = tree.prompt + branch.tokens[:i]
                if branch.trained[i] and before:
                    scored.append((before, token, n, number))
            number += 1
    return scored

"""Earlier answers as drafts: by question and weights, the newest first, a word-for-word hit counted; and nothing said is changed by them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from demeanor.core.types import Decoding, Message, Turn, complete
from demeanor.engine.respond import MOST_DRAFTS, Drafts, model_respond, topic
from demeanor.engine.scheduler import Piece, Request
from demeanor.stack import schema as specs
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import load_template

TOKENS = tokenizers.train(
    ["The ferry leaves at 9. Who is Marla? She is at 12. "] * 20, specs.TokenizerSpec(vocab_size=400)
)


def test_the_newest_answers_come_first_and_a_hit_is_counted() -> None:
    drafts = Drafts()
    assert drafts.of("q") == ()
    drafts.keep("q", (1, 2), ())
    drafts.keep("q", (3,), ((1, 2),))
    assert (drafts.of("q"), drafts.confirmed) == (((3,), (1, 2)), 0)
    drafts.keep("q", [1, 2], drafts.of("q"))
    assert (drafts.of("q"), drafts.confirmed) == (((1, 2), (3,)), 1)
    for n in range(10):
        drafts.keep("q", (n, n), ())
    assert (len(drafts.of("q")), drafts.of("other")) == (MOST_DRAFTS, ())


def test_a_topic_is_what_was_asked_last_of_which_weights() -> None:
    bare = (Message("user", "When?"),)
    dressed = (Message("system", "Be brief."), Message("user", "When?"), Message("data", "notice"))
    assert topic("a", bare) == topic("a", dressed) != topic("b", bare)
    assert topic("a", (*bare, Message("assistant", ""), Message("tool", "7"))) != topic("a", bare)


@pytest.mark.parametrize(
    ("decoding", "checked"),
    [
        (Decoding(temperature=0), True),
        (Decoding(temperature=1, seed=1), False),
        (Decoding(temperature=0, presence_penalty=0.5), False),
        (Decoding(temperature=0, frequency_penalty=0.5), False),
        (Decoding(temperature=0, logit_bias=((7, 1.0),)), False),
    ],
)
async def test_answers_that_no_draft_was_checked_for_are_not_counted_as_confirmed(
    decoding: Decoding, checked: bool
) -> None:
    drafts, seen = Drafts(), list[Request]()

    class Same:
        async def stream(self, request: Request) -> AsyncIterator[Piece]:
            seen.append(request)
            yield Piece(TOKENS.encode("a")[0], "a", 0.0)
            yield Piece(TOKENS.eos_id, "", 0.0, finish="stop")

    template = load_template("turns", TOKENS, folder=None, root=Path())
    respond = model_respond(Same(), template, tokenizer=TOKENS, drafts=drafts, weights="w")
    for _ in range(2):
        assert (await complete(respond, Turn((Message("user", "Q"),), decoding))).text == "a"
    assert drafts.confirmed == checked
    assert [bool(request.drafts) for request in seen] == [False, checked]

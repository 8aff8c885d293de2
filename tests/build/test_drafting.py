"""Earlier answers as drafts: by question and weights, the newest first, a word-for-word hit counted; and nothing said is changed by them."""

from __future__ import annotations

from demeanor.build.drafting import MOST, Drafts, topic
from demeanor.types import Message


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
    assert (len(drafts.of("q")), drafts.of("other")) == (MOST, ())


def test_a_topic_is_what_was_asked_last_of_which_weights() -> None:
    bare = (Message("user", "When?"),)
    dressed = (Message("system", "Be brief."), Message("user", "When?"), Message("data", "notice"))
    assert topic("a", bare) == topic("a", dressed) != topic("b", bare)
    assert topic("a", (*bare, Message("assistant", ""), Message("tool", "7"))) != topic("a", bare)

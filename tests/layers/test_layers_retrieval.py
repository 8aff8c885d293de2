"""Retrieval: passages come before the question without any authority, and citations point at what stands in them."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_layers import ask, events_of, kit, only, says, script
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from demeanor.core.types import (
    Citation,
    Done,
    Message,
    OutputFormat,
    Passage,
    Respond,
    Text,
    Trust,
    Turn,
    Unsupported,
    Usage,
    numbered,
)
from demeanor.layers import retrieval
from demeanor.retrieval.citations import WORD, citations

FERRY = Passage("today.md#1", "Ferries today: Corkel 9. Jorpel 17.", 4.2, "today.md")
BERTH = Passage("berths.md#2", "The Sella lies at berth 4.", 0.5, "berths.md")


def wrap(
    inner: Respond,
    found: list[Passage],
    asked: list[tuple[str, int]] | None = None,
    **settings: object,
) -> Respond:
    def open_index(folder: Path, how: object):  # type: ignore[no-untyped-def]
        assert folder == Path("stack/notices")

        def search(query: str, k: int) -> list[Passage]:
            (asked if asked is not None else []).append((query, k))
            return found[:k]

        return search

    return retrieval.wrap(
        retrieval.Spec(index="notices", **settings), inner, kit(Path("stack"), open_index=open_index)
    )


async def test_passages_stand_right_before_the_last_question_and_have_no_authority() -> None:
    seen: list[Turn] = []
    turn = Turn(
        (
            Message("system", "Be brief."),
            Message("user", "Hi."),
            Message("assistant", "Hello."),
            Message("user", "When to Corkel?"),
        ),
        ask().decoding,
    )
    asked: list[tuple[str, int]] = []
    events = await events_of(wrap(script([Done("stop")], seen=seen), [FERRY, BERTH], asked, top_k=2), turn)
    assert asked == [("When to Corkel?", 2)]
    assert [m.role for m in seen[0].messages] == ["system", "user", "assistant", "data", "data", "user"]
    data = seen[0].messages[3]
    assert (data.content, data.name, data.authority) == (FERRY.text, "today.md#1", Trust.NONE)
    assert events[:2] == [FERRY, BERTH]


async def test_in_a_tool_round_the_passages_still_stand_before_the_question() -> None:
    seen: list[Turn] = []
    turn = Turn((Message("user", "When?"), Message("assistant", ""), Message("tool", "444")), ask().decoding)
    await events_of(wrap(script([Done("stop")], seen=seen), [FERRY]), turn)
    assert [m.role for m in seen[0].messages] == ["data", "user", "assistant", "tool"]


@pytest.mark.parametrize("found", [[], [BERTH]])
async def test_nothing_found_nothing_inserted(found: list[Passage]) -> None:
    seen: list[Turn] = []
    events = await events_of(wrap(script([Done("stop")], seen=seen), found, min_score=1.0))
    assert seen == [ask()]
    assert not only(events, Passage)


async def test_a_passage_that_covers_too_little_of_the_question_is_left_out() -> None:
    found = [replace(FERRY, coverage=0.39), replace(BERTH, coverage=0.4)]
    events = await events_of(wrap(script([Done("stop")]), found, min_coverage=0.4))
    assert only(events, Passage) == found[1:]


async def test_without_a_question_nothing_is_searched() -> None:
    asked: list[tuple[str, int]] = []
    turn = Turn((Message("system", "Be brief."),), ask().decoding)
    await events_of(wrap(says("ok"), [FERRY], asked), turn)
    assert asked == []


async def test_an_answer_in_pieces_is_cited_as_one_before_done() -> None:
    events = await events_of(wrap(says("The ferry to Jor", "pel 1", "7."), [FERRY]))
    assert only(events, Citation) == [Citation(13, 22, "today.md#1")]
    assert isinstance(events[-1], Done)


@pytest.mark.parametrize(
    ("answer", "cited"),
    [
        ("9.", ["9"]),
        ("Corkel.", ["Corkel"]),
        ("Corkel 9", ["Corkel 9"]),
        ("Corkel leaves at 9.", ["9"]),
        ("It is Corkel, at 9.", ["Corkel", "9"]),
        ("The ferry leaves at 12.", []),
        ("I do not know.", []),
        ("The boat.", []),
        ("", []),
        ("lies at", []),
        ("the sella lies at the pier", ["the sella lies at"]),
        ("the sella lies low", []),
        ("it lies at berth 4", ["lies at berth 4"]),
        ("Ask the Sella", ["the Sella"]),
        ("today corkel", []),
        ("19", []),
        ("9:30", []),
    ],
)
def test_numbers_names_and_four_words_in_a_row_are_cited(answer: str, cited: list[str]) -> None:
    assert [answer[start:end] for start, end, _ in citations(answer, [FERRY, BERTH])] == cited


def test_the_better_passage_wins_a_tie_and_the_longer_run_wins_the_better_passage() -> None:
    a, b = Passage("a", "Corkel 9", 2.0, "a"), Passage("b", "Corkel 9 today", 1.0, "b")
    assert [p for *_, p in citations("Corkel 9", [a, b])] == ["a"]
    assert [p for *_, p in citations("Corkel 9 today", [a, b])] == ["b"]


texts = st.lists(st.sampled_from(["Corkel", "9", "the", "ferry", "Leaves", "at"]), max_size=10).map(" ".join)


@given(texts, st.lists(texts, max_size=3))
def test_every_citation_stands_word_for_word_in_its_passage(answer: str, bodies: list[str]) -> None:
    passages = [Passage(str(i), body, 1.0, "") for i, body in enumerate(bodies)]
    at, found = 0, citations(answer, passages)
    assert found or not any(c.isdigit() for c in set(answer) & set("".join(bodies))), "a number is cited"
    for start, end, id_ in found:
        assert at <= start < end <= len(answer)
        words, source = (
            [w.casefold() for w in WORD.findall(t)] for t in (answer[start:end], bodies[int(id_)])
        )
        assert any(source[i : i + len(words)] == words for i in range(len(source)))
        at = end


@pytest.mark.parametrize(
    ("wording", "content", "name"),
    [
        (None, FERRY.text, "today.md#1"),
        ("<{number}> {text} ({name})", f"<1> {FERRY.text} (today.md#1)", None),
        ('{"text": "{text}"}', f'{{"text": "{FERRY.text}"}}', None),
    ],
)
async def test_the_wording_of_a_passage_is_a_setting(
    wording: str | None, content: str, name: str | None
) -> None:
    seen: list[Turn] = []
    await events_of(wrap(script([Done("stop")], seen=seen), [FERRY], wording=wording))
    assert (seen[0].messages[0].content, seen[0].messages[0].name) == (content, name)


async def test_what_a_passage_says_is_not_read_as_wording() -> None:
    seen: list[Turn] = []
    odd = Passage("a.md#1", "{name} {number} {text}", 1.0, "a.md")
    await events_of(wrap(script([Done("stop")], seen=seen), [odd], wording="{number}: {text}"))
    assert seen[0].messages[0].content == "1: {name} {number} {text}"


@pytest.mark.parametrize("wording", ["", "{name}", "{text} {title}", "{text} {}"])
def test_a_wording_without_the_text_or_with_unknown_names_is_refused(wording: str) -> None:
    with pytest.raises(ValidationError, match=r"wanted \{text\}"):
        retrieval.Spec(index="notices", wording=wording)


def test_named_passages_begin_with_number_and_name() -> None:
    passages = [Message("data", "x", name=name) for name in ("a.md#1", None, "b.md#2")]
    shown = numbered((Message("user", "a", name="Ann"), *passages))
    assert [m.content for m in shown] == ["a", "[1] a.md#1\nx", "x", "[2] b.md#2\nx"]
    assert [m.name for m in shown] == ["Ann", None, None, None]


def test_citing_long_repetitive_text_takes_linear_time() -> None:
    start = time.thread_time()
    passages = [Passage(str(i), "a " * 500, 1.0, "") for i in range(50)]
    assert citations("a " * 100_000, passages) == [(0, 799, "0")]
    assert citations("\n" * 50_000 + ", Corkel", [FERRY]) == [(50_002, 50_008, "today.md#1")]
    assert time.thread_time() - start < 8


async def test_a_slow_search_holds_up_no_other_request() -> None:
    free = threading.Event()

    def open_index(folder: Path, how: object):  # type: ignore[no-untyped-def]
        return lambda query, k: [FERRY] if free.wait(20) else []

    respond = retrieval.wrap(
        retrieval.Spec(index="notices"), says("ok"), kit(Path("stack"), open_index=open_index)
    )
    task = asyncio.create_task(events_of(respond))
    for _ in range(5):  # the loop turns while the search waits for it
        await asyncio.sleep(0.01)
    assert not task.done()
    free.set()
    assert FERRY in await task


class Asked:
    """Inner layers that answer in turn, and keep the turns that they got."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.turns = list(answers), list[Turn]()

    async def __call__(self, turn: Turn):  # type: ignore[no-untyped-def]
        self.turns.append(turn)
        yield Text(self.answers[len(self.turns) - 1])
        yield Usage(10, 2)
        yield Done("stop")


TALK = (
    Message("user", "Tell me of Corkel."),
    Message("assistant", "An island."),
    Message("user", "When there?"),
)


@pytest.mark.parametrize(
    ("question", "searched", "calls"),
    [
        ("last", "When there?", 1),
        ("conversation", "Tell me of Corkel.\nWhen there?", 1),
        ("rewritten", "When to Corkel?", 2),
    ],
)
async def test_what_is_searched_with_is_a_setting(question: str, searched: str, calls: int) -> None:
    inner, asked = Asked(*["When to\nCorkel?", "At 9."][2 - calls :]), list[tuple[str, int]]()
    search = retrieval.SearchSpec(question=question)  # type: ignore[arg-type]
    events = await events_of(wrap(inner, [FERRY], asked, search=search), Turn(TALK, ask().decoding))
    assert asked == [(searched, 3)]
    assert len(inner.turns) == calls
    assert "".join(e.text for e in events if isinstance(e, Text)) == "At 9."
    assert sum(e.prompt_tokens for e in events if isinstance(e, Usage)) == 10 * calls, "every call is told"
    if calls == 2:
        assert "user: Tell me of Corkel.\nassistant: An island." in inner.turns[0].messages[0].content


async def test_a_first_question_is_not_rewritten() -> None:
    inner, asked = Asked("At 9."), list[tuple[str, int]]()
    await events_of(
        wrap(inner, [FERRY], asked, search=retrieval.SearchSpec(question="rewritten")), ask("When?")
    )
    assert asked == [("When?", 3)]
    assert len(inner.turns) == 1


@pytest.mark.parametrize(
    ("said", "order"), [("[2, 1]", ["b", "a", "c"]), ("[9]", ["a", "b", "c"]), ("", ["a", "b", "c"])]
)
async def test_the_model_orders_candidates_and_may_not_add_or_lose_one(said: str, order: list[str]) -> None:
    found = [Passage(x, f"text {x}", 3.0 - i, x) for i, x in enumerate("abc")]
    inner, asked = Asked(said, "Yes."), list[tuple[str, int]]()
    respond = wrap(inner, found, asked, search=retrieval.SearchSpec(rerank=10))
    events = await events_of(respond, ask("Which?"))
    assert asked == [("Which?", 10)]
    assert [e.id for e in events if isinstance(e, Passage)] == order
    assert inner.turns[0].decoding.form is not None


async def test_passages_are_added_whole_up_to_the_budget() -> None:
    found = [Passage(x, "word " * n, 3.0, x) for x, n in (("a", 4), ("b", 9), ("c", 1))]
    events = await events_of(wrap(says("ok"), found, max_tokens=8), ask("Which?"))
    assert [e.id for e in events if isinstance(e, Passage)] == ["a"]


async def test_where_nothing_was_found_no_marker_leaves_either() -> None:
    inner = says("You have 30 days to re", "turn goods. [1]")
    events = await events_of(wrap(inner, [], citations="verified"), ask("When?"))
    assert "".join(t.text for t in only(events, Text)).strip() == "You have 30 days to return goods."
    assert [u.reason for u in only(events, Unsupported)] == ["unknown"]
    assert isinstance(events[-1], Done)


@pytest.mark.parametrize("found", [[], [Passage("a", "Corkel leaves at 9.", 3.0, "a")]])
async def test_lists_of_an_answer_in_a_requested_format_are_no_markers(found: list[Passage]) -> None:
    said = '{"pages": [1, 7], "of": [2]}'
    turn = ask("When?")
    turn = replace(turn, decoding=replace(turn.decoding, form=OutputFormat("json_object")))
    events = await events_of(wrap(says(said[:12], said[12:]), found, citations="verified"), turn)
    assert "".join(t.text for t in only(events, Text)) == said
    assert only(events, Unsupported) == []


async def test_only_true_markers_leave_when_citations_are_verified() -> None:
    inner = script(
        [Text("Corkel"), Text(" at 9 [1]. Jorpel at 1"), Text("8 [1]. Berth"), Text(" 4 [2]."), Done("stop")]
    )
    events = await events_of(wrap(inner, [FERRY, BERTH], citations="verified"), ask("When?"))
    assert (
        "".join(e.text for e in events if isinstance(e, Text))
        == "Corkel at 9 [1]. Jorpel at 18. Berth 4 [2]."
    )
    assert [(e.passage_id, e.cited_text) for e in events if isinstance(e, Citation)] == [
        ("today.md#1", "Corkel 9"),
        ("berths.md#2", "berth 4"),
    ]
    assert [(e.reason, e.passage_id) for e in events if isinstance(e, Unsupported)] == [
        ("not_found", "today.md#1")
    ]
    assert isinstance(events[-1], Done)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"search": {"by": "both"}}, "wanted an `encoder`"),
        ({"search": {"encoder": "x"}}, "wanted `by: vectors`"),
        ({"search": {"by": "vectors", "encoder": "x", "stemming": "english"}}, "are for words"),
        ({"search": {"by": "both", "encoder": "x"}, "min_score": 1}, "have no threshold"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        retrieval.Spec.model_validate({"index": "notices", **settings})

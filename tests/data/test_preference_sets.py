"""Preference sets: every drop has its reason, verdicts are counted, what is measured stays apart, the card says it all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demeanor.core.candidates import CandidateKind, PreferenceCandidate
from demeanor.core.types import Preference
from demeanor.data import preference_sets, rows
from demeanor.data.preference_sets import SetLimits, assemble
from tests.conftest import each


def candidate(
    chosen: str = "at nine",
    rejected: str = "at noon",
    prompt: str = "when does the ferry to Corkel leave?",
    *,
    kind: CandidateKind = "label",
    **more: Any,
) -> PreferenceCandidate:
    given = {"source": f"{kind}:{prompt}/{chosen}", **more}
    return PreferenceCandidate(
        kind, ({"role": "user", "content": prompt},), (chosen, rejected), (0, 1), **given
    )


def reasons(found: preference_sets.PreferenceSet) -> dict[str, int]:
    return {reason: count for (_, reason), count in found.dropped.counts.items()}


def test_a_row_is_read_by_a_preference_stage_and_says_where_it_came_from() -> None:
    one = candidate(turn_ids=("t1",), users=("edda",), models=("desk:sft", "desk:dpo"), stack_keys=("a", "b"))
    (row,) = assemble([one], {}).rows
    parsed = rows.parse(row, "preferences", "here")
    assert isinstance(parsed, Preference)
    assert [m[0].content for m in parsed.completions] == ["at nine", "at noon"]
    assert row["provenance"]["turn_ids"] == ["t1"]
    assert row["provenance"]["models"] == ["desk:sft", "desk:dpo"]
    assert "edda" not in json.dumps(row)


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (candidate(unusable="complaint routed to: retrieval"), "complaint routed to: retrieval"),
        (candidate("same ", " same"), "the answers are the same"),
        (candidate(""), "an answer is empty"),
        (candidate(prompt="  "), "the prompt is empty"),
        (candidate("write to edda@example.org please"), "personal data: email"),
        (candidate("the card is 4111 1111 1111 1111"), "personal data: card"),
        (candidate(prompt="which ship sails to Corkel on a windy day in May?"), "overlaps with suite"),
    ],
)
def test_what_may_not_be_trained_on_is_dropped_with_its_reason(one: PreferenceCandidate, why: str) -> None:
    suite = {"suite": [("item-1", "Which ship sails to Corkel on a windy day in May, and when?")]}
    found = assemble([one, candidate("yes", "no", "is it open?")], suite)
    assert reasons(found) == {why: 1}
    assert len(found.rows) == 1


def test_personal_data_does_not_stand_in_the_card_that_reports_it() -> None:
    found = assemble([candidate("write to edda@example.org please", source="label:q/1"), candidate()], {})
    card = preference_sets.card(
        found, "set", "", suites={}, limits=SetLimits(), sources=[{"name": "<b>labels</b>"}], made={}
    )
    text = preference_sets.markdown(card)
    assert "edda@example.org" not in text + str(card)
    assert "personal data: email" in text
    assert "<b>" not in text
    assert "| label | 2 | 1 |" in text


def test_verdicts_on_one_pair_are_counted_and_the_majority_stays() -> None:
    same = [candidate(turn_ids=(f"t{n}",)) for n in range(3)]
    against = candidate("at noon", "at nine", turn_ids=("t9",))
    found = assemble([*same, against], {})
    (row,) = found.rows
    assert row["chosen"] == "at nine"
    assert row["provenance"]["votes"] == {"for": 3, "against": 1}
    assert row["provenance"]["turn_ids"] == ["t0", "t1", "t2"]
    assert reasons(found) == {
        "repeats a verdict that is there": 2,
        "contradicted by more verdicts for the other answer": 1,
    }
    even = assemble([same[0], against], {})
    assert even.rows == ()
    assert reasons(even) == {"contradicted: as many verdicts for the other answer": 2}


def test_near_repeats_and_too_many_rows_of_a_prompt_are_dropped() -> None:
    long = "the ferry to Corkel leaves from pier four in the morning and comes back in the evening of the same day"
    two = [candidate(long, "no idea at all", "when?"), candidate(long + " indeed", "no idea at all", "when?")]
    found = assemble(two, {}, SetLimits(threshold=0.5))
    assert reasons(found) == {"nearly repeats another row": 1}
    many = [candidate(f"answer {n} is quite long", f"other {n}", "when?") for n in range(4)]
    found = assemble(many, {}, SetLimits(most_per_prompt=2, threshold=None))
    assert len(found.rows) == 2
    assert reasons(found) == {"more than 2 rows of one prompt": 2}


def test_a_ranking_stays_one_row() -> None:
    texts = tuple(f"answer number {n}" for n in "abcd")
    one = PreferenceCandidate(
        "label", ({"role": "user", "content": "rank"},), texts, (2, 0, 1, 1), "label:q/1"
    )
    (row,) = assemble([one], {}).rows
    parsed = rows.parse(row, "preferences", "here")
    assert isinstance(parsed, Preference)
    assert parsed.ranks == (2, 0, 1, 1)


def test_the_card_counts_what_the_set_holds() -> None:
    every = [
        candidate(
            "long and longer",
            "short",
            kind="correction",
            turn_ids=("t1",),
            users=("a", "b"),
            models=("user", "m"),
        ),
        candidate(
            "no", "a very long answer", "open?", kind="comparison", turn_ids=("t2", "t3"), users=("a",)
        ),
        candidate(unusable="tie", kind="comparison"),
    ]
    found = assemble(every, {})
    suites = {"world": [("i", "text")]}
    card = preference_sets.card(found, "set", "x", suites=suites, limits=SetLimits(), sources=[], made={})
    assert (card.rows, card.pairs, card.prompts, card.users, card.turns) == (2, 2, 2, 2, 3)
    assert card.better_is_longer == 0.5
    assert card.dropped == {"tie": {"comparison": 1}}
    assert card.suites["world"]["items"] == 1
    for kind in each(sorted(card.found)):
        assert card.found[kind] >= card.kept.get(kind, 0)


def test_a_revision_is_better_than_the_first_answer() -> None:
    made_by = {"model": "desk:sft", "stack_key": "k"}
    row = {
        "id": "p1",
        "prompt": [{"role": "user", "content": "?"}],
        "completion": "mended",
        "first": "first",
        "revisions": [{"principle": "brief", "critique": "", "revision": "mended"}],
        "made_by": made_by,
    }
    one = preference_sets.of_revision(preference_sets.revision_row(row), "rows.jsonl:1")
    (made,) = assemble([one], {}).rows
    assert (made["chosen"], made["rejected"]) == ("mended", "first")
    assert made["provenance"]["principles"] == ["brief"]
    same = preference_sets.of_revision({**row, "completion": "first"}, "rows.jsonl:2")
    assert reasons(assemble([same], {})) == {"the answers are the same": 1}

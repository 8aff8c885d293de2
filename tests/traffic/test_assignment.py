"""Assignment: sticky, by share, independent between experiments, and the same in every process."""

from __future__ import annotations

from collections import Counter

import pytest

from demeanor.core.types import Message
from demeanor.stack.serving_schema import ExperimentSpec
from demeanor.traffic.assignment import assign, first_assignment, identity


def spec(name: str = "test", shares: tuple[float, ...] = (0.5, 0.5), **given: object) -> ExperimentSpec:
    arms = [{"model": f"desk:{i}", "share": share} for i, share in enumerate(shares)]
    return ExperimentSpec.model_validate(
        {"name": name, "arms": arms, "score": {"kind": "refused", "window_hours": 0}, **given}
    )


USERS = [f"user\x1fu{i}" for i in range(4000)]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.3, 0.5)])
def test_arms_get_their_shares(shares: tuple[float, ...]) -> None:
    """4,000 users; each share within four standard errors, 4 sqrt(p (1 - p) / n)."""
    counts = Counter(found.arm for who in USERS if (found := assign(spec(shares=shares), who)))
    assert sum(counts.values()) == len(USERS)
    wrong = [
        (arm, counts[arm] / 4000, share)
        for arm, share in enumerate(shares)
        if abs(counts[arm] / 4000 - share) > 4 * (share * (1 - share) / 4000) ** 0.5
    ]
    assert wrong == []


def test_an_assignment_is_known_from_the_declaration_alone() -> None:
    """Written down once: a change of the hash would move every user of a running experiment."""
    found = [assign(spec(), who) for who in USERS[:3]]
    assert [(f.arm, f.unit) for f in found if f] == KNOWN


KNOWN = [(0, "edf759eadcb9051d"), (1, "57af28daaee263fd"), (1, "4127e9807840a5c9")]


def test_two_experiments_assign_independently_and_a_salt_names_the_assignment() -> None:
    pairs = Counter((assign(spec("a"), who).arm, assign(spec("b"), who).arm) for who in USERS)  # type: ignore[union-attr]
    assert all(abs(count - 1000) < 130 for count in pairs.values())
    assert len(pairs) == 4
    same = [assign(spec("a", salt="x"), who)[1:] == assign(spec("b", salt="x"), who)[1:] for who in USERS]  # type: ignore[index]
    assert all(same)


def test_users_outside_of_the_traffic_are_in_no_arm_and_who_is_inside_stays_when_it_grows() -> None:
    small = {who for who in USERS if assign(spec(traffic=0.2), who)}
    large = {who for who in USERS if assign(spec(traffic=0.6), who)}
    assert small < large
    assert abs(len(small) - 800) < 110
    assert all(assign(spec(traffic=0.2), who)[1:] == assign(spec(traffic=0.6), who)[1:] for who in small)  # type: ignore[index]


def test_nobody_is_in_two_experiments_and_a_stopped_one_takes_nobody() -> None:
    both = [spec("a", traffic=0.3), spec("b")]
    found = Counter(first_assignment(both, {}, who).experiment.name for who in USERS)  # type: ignore[union-attr]
    assert abs(found["a"] - 1200) < 130
    assert found["b"] == 4000 - found["a"]
    stopped = {first_assignment(both, {"a": False}, who).experiment.name for who in USERS}  # type: ignore[union-attr]
    assert stopped == {"b"}


def test_without_a_user_a_conversation_keeps_its_arm() -> None:
    first = (Message("system", "Be brief."), Message("user", "Hello"))
    later = (*first, Message("assistant", "Hi."), Message("user", "When?"))
    assert identity(None, first) == identity(None, later)
    assert identity("edda", first) != identity(None, first)
    assert identity("", first) == identity(None, first)
    assert identity("a\x1fb", ()) != identity("a", (Message("user", "b"),))


def test_those_who_take_part_are_split_by_the_shares_whatever_the_traffic() -> None:
    """Who takes part and which arm they get are two draws: of one draw, all of a small traffic would be in the first arm."""
    arms = Counter(found.arm for who in USERS if (found := assign(spec(traffic=0.3), who)))
    assert abs(arms[0] - 600) < 110
    assert abs(arms[1] - 600) < 110

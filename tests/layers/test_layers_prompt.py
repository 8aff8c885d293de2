"""The prompt layer: the operator's word comes first and is the only one with a system's authority."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_layers import ask, events_of, kit, only, script
from pydantic import ValidationError

from demeanor.core.types import Done, Message, Messages, Prompted, Trust, Turn
from demeanor.layers import prompt

SHOTS = "messages:\n- {role: user, content: Hi.}\n- {role: assistant, content: Harbour desk.}\n"


async def asked_of(folder: Path, messages: Messages, **settings: Any) -> tuple[Messages, list[Any]]:
    seen: list[Turn] = []
    respond = prompt.wrap(prompt.Spec(**settings), script([Done("stop")], seen=seen), kit(folder))
    events = await events_of(respond, Turn(messages, ask().decoding))
    return seen[0].messages, events


async def test_the_stacks_system_prompt_comes_first_and_the_callers_has_a_developers_authority(
    tmp_path: Path,
) -> None:
    (tmp_path / "system.md").write_text("You are the harbour desk.\n")
    (tmp_path / "shots.yaml").write_text(SHOTS)
    given = (Message("system", "Speak like a pirate."), Message("user", "When?"))
    messages, events = await asked_of(tmp_path, given, system="system.md", few_shot="shots.yaml")
    assert [(m.role, m.content, m.authority) for m in messages] == [
        ("system", "You are the harbour desk.", Trust.SYSTEM),
        ("system", "Speak like a pirate.", Trust.DEVELOPER),
        ("user", "Hi.", Trust.USER),
        ("assistant", "Harbour desk.", Trust.NONE),
        ("user", "When?", Trust.USER),
    ]
    assert only(events, Prompted) == [Prompted((messages[0], *messages[2:4]))]


async def test_no_later_message_keeps_or_gains_a_systems_authority(tmp_path: Path) -> None:
    given = (
        Message("user", "a", trust=Trust.SYSTEM),
        Message("system", "b"),
        Message("tool", "c"),
        Message("user", "d"),
    )
    messages, _ = await asked_of(tmp_path, given, text="Be brief.")
    assert [m.authority for m in messages] == [
        Trust.SYSTEM,
        Trust.DEVELOPER,
        Trust.DEVELOPER,
        Trust.NONE,
        Trust.USER,
    ]


async def test_text_stands_in_for_a_file(tmp_path: Path) -> None:
    messages, _ = await asked_of(tmp_path, ask().messages, text="Be brief.")
    assert messages == (Message("system", "Be brief.", trust=Trust.SYSTEM), *ask().messages)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, "wanted system"),
        ({"text": "a", "system": "b"}, "two system prompts"),
        ({"text": ""}, "at least 1"),
    ],
)
def test_a_prompt_that_says_nothing_or_two_things_is_a_mistake(settings: dict[str, str], wanted: str) -> None:
    with pytest.raises(ValidationError, match=wanted):
        prompt.Spec(**settings)


@pytest.mark.parametrize(
    ("text", "where", "wanted"),
    [
        (
            "messages:\n- {role: system, content: x}\n- {role: assistant, content: y}",
            "messages[0].role",
            "Known: assistant, user",
        ),
        (
            "messages:\n- {role: user, content: x}\n- {role: user, content: y}",
            "",
            "messages[1] is from the user again",
        ),
        (
            "messages:\n- {role: user, content: x}\n- {role: assistant, content: y}\n- {role: user, content: z}",
            "",
            "no answer from the assistant",
        ),
        (
            "messages:\n- {role: user, content: ''}\n- {role: assistant, content: y}",
            "messages[0].content",
            "at least 1",
        ),
        ("mesages: []", "mesages", "Did you mean 'messages'?"),
        ("- a", "", "wanted a mapping"),
    ],
)
def test_mistakes_in_the_examples_are_named(text: str, where: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "shots.yaml").write_text(text)
    found = [str(p) for p in prompt.check(prompt.Spec(few_shot="shots.yaml"), tmp_path)]
    assert any(f"shots.yaml: {where}" in p and wanted in p for p in found), found


def test_an_empty_or_unreadable_prompt_file_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "latin.md").write_bytes(b"\xe9")
    assert "empty" in str(prompt.check(prompt.Spec(system="empty.md"), tmp_path)[0])
    assert "not UTF-8 text (byte 0)" in str(prompt.check(prompt.Spec(system="latin.md"), tmp_path)[0])

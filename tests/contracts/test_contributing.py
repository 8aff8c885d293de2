"""The examples of docs/contributing.md work as they stand there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

from demeanor.core.types import Decoding, Done, Event, Message, Text, Timing, Turn
from demeanor.layers import Kit, compose

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "contributing.md").read_text(encoding="utf-8")
PLACES = re.findall(
    r"`((?:(?:layers|server|objectives|train|evaluation|stack|text|report|cli)/[\w/]+|app)\.py)(?::|`)",
    PAGE,
)


def example(heading: str) -> str:
    return PAGE.split(f"## {heading}")[1].split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("place", sorted(set(PLACES)))
def test_every_file_that_the_page_names_exists(place: str) -> None:
    root = Path(__file__).resolve().parents[2] / "demeanor"
    assert (root / place).is_file()


async def test_the_layer_of_the_page_is_a_layer(tmp_path: Path) -> None:
    module = ModuleType("shout")
    exec(compile(example("Add a layer"), "contributing.md", "exec"), module.__dict__)  # noqa: S102

    async def inner(turn: Turn) -> AsyncIterator[Event]:
        yield Text("ahoy")
        yield Done("stop")

    kit = Kit(tmp_path, lambda: 0.0, lambda: datetime.now(UTC), lambda messages, tools: 0, {}, None, None)  # type: ignore[arg-type]
    respond = compose([(module.Spec(mark="?"), module)], inner, kit)
    events = [event async for event in respond(Turn((Message("user", "hello"),), Decoding()))]
    assert events == [Text("AHOY?"), Timing("shout", 0.0), Done("stop")]


def test_the_objective_of_the_page_is_python_and_imports_what_exists() -> None:
    module: dict[str, object] = {"__name__": "margin"}
    exec(compile(example("Add an objective"), "contributing.md", "exec"), module)  # noqa: S102
    assert module["MarginSpec"].model_fields["beta"].description  # type: ignore[attr-defined]

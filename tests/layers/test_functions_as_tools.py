"""A user's Python file as tools: schemas from annotations, one clear sentence for what cannot be one."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_layers import ask, events_of, kit, only, script
from pydantic import ValidationError

from demeanor.cli import main
from demeanor.core.errors import DemeanorError
from demeanor.core.types import Done, Text, ToolCall, ToolCalled, ToolResult, Turn, fold
from demeanor.layers import tools
from demeanor.layers.tools.functions import load_functions, names_of

MODULE = '''"""Tools of the help desk."""
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Literal
from pydantic import Field

SEEN = []

@dataclass
class Person:
    name: str
    age: int = 0

def order_status(number: Annotated[int, Field(ge=1)], detail: Literal["short", "long"] = "short") -> str:
    """Tells where an order is.

    Call it when a customer asks for an order.

    Args:
        number: what the customer
            calls the order number
        detail: how much
    Returns:
        A sentence.
    """
    return f"{number} {detail}"

async def book(day: date, people: list[Person], note: str | None = None) -> dict:
    """Books a table."""
    return {"day": day.isoformat(), "names": [p.name for p in people], "note": note}

def fail(reason: str) -> str:
    """Always fails."""
    raise ValueError(f"no: {reason}")

def _helper(x): return x
'''


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "my_tools.py").write_text(MODULE)
    return tmp_path / "my_tools.py"


def test_a_function_is_a_tool_with_the_schema_of_its_annotations(module: Path) -> None:
    assert names_of(module) == ["order_status", "book", "fail"]
    found = load_functions(module)
    spec = found["order_status"].spec
    assert spec.description == "Tells where an order is. Call it when a customer asks for an order."
    assert spec.parameters == {
        "type": "object",
        "additionalProperties": False,
        "required": ["number"],
        "properties": {
            "number": {
                "type": "integer",
                "minimum": 1,
                "description": "what the customer calls the order number",
            },
            "detail": {
                "enum": ["short", "long"],
                "type": "string",
                "default": "short",
                "description": "how much",
            },
        },
    }
    assert found["order_status"].run({"number": 7}) == "7 short"


def wrap(module: Path, inner, **settings: object):  # type: ignore[no-untyped-def]
    spec = tools.Spec.model_validate({"module": module.name, **settings})
    return tools.wrap(spec, inner, kit(module.parent))


async def results(module: Path, *calls: ToolCall, **settings: object) -> list[str]:
    said = [*map(ToolCalled, calls), Done("tool_calls")]
    events = await events_of(wrap(module, script(said, [Text("ok"), Done("stop")]), **settings), ask())
    return [e.content for e in only(events, ToolResult)]


async def test_arguments_arrive_as_the_types_that_the_function_declares(module: Path) -> None:
    booked = '{"day": "2026-12-01", "people": [{"name": "Edda"}], "note": null}'
    assert await results(
        module,
        ToolCall("1", "book", booked),
        ToolCall("2", "order_status", '{"number": 3, "detail": null}'),
        ToolCall("3", "order_status", '{"number": 0}'),
        ToolCall("4", "fail", '{"reason": "x"}'),
        ToolCall("5", "book", '{"day": "someday", "people": []}'),
        ToolCall("6", "_helper", '{"x": 1}'),
    ) == [
        '{"day": "2026-12-01", "names": ["Edda"], "note": null}',
        "3 short",
        "error: arguments.number should be at least 1, got 0",
        "error: no: x",
        "error: arguments.day: Input should be a valid date or datetime, input is too short",
        "error: unknown tool '_helper'. Known: book, fail, order_status.",
    ]


async def test_allow_chooses_among_the_functions_and_the_built_in_tools(module: Path) -> None:
    seen: list[Turn] = []
    inner = script([Done("stop")], seen=seen)
    calculator = tools.load(["calculator"])
    spec = tools.Spec(module=module.name, allow=("book", "calculator"))
    await events_of(tools.wrap(spec, inner, kit(module.parent, tools=calculator)), ask())
    assert [t.name for t in seen[0].tools] == ["book", "calculator"]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("def f(x) -> str:\n    'About.'\n", "x has no annotation"),
        ("def f(x: int) -> str:\n    pass\n", "needs a docstring"),
        ("def f(*x: int) -> str:\n    'About.'\n", "by name"),
        ("def f(x: int, /) -> str:\n    'About.'\n", "by name"),
        ("def f(x: 'Nowhere') -> str:\n    'About.'\n", "annotations cannot be read"),
        ("import threading\ndef f(x: threading.Lock) -> str:\n    'About.'\n", "cannot be told to a model"),
        ("import no_such_package\n", "cannot be run: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", "cannot be run: SystemExit"),
        ("def f(:\n", ":1: not Python"),
    ],
)
def test_a_file_that_holds_no_tools_is_refused_with_the_reason(
    code: str, problem: str, tmp_path: Path
) -> None:
    (tmp_path / "t.py").write_text(code)
    with pytest.raises(DemeanorError, match=problem):
        load_functions(tmp_path / "t.py")


@pytest.mark.parametrize(
    ("layer", "code", "problem"),
    [
        ("{kind: tools}", MODULE, "names of tools in `allow`, or a `module`"),
        ("{kind: tools, module: nowhere.py}", MODULE, "no such file"),
        ("{kind: tools, module: my_tools.py, allow: [boook]}", MODULE, "boook"),
        ("{kind: tools, module: my_tools.py, allow: [book, book]}", MODULE, "each once"),
        ("{kind: tools, module: my_tools.py}", "X = 1\n", "no public function"),
        ("{kind: tools, module: my_tools.py}", "def f(:\n", "not Python"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    layer: str, code: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_tools.py").write_text(code)
    base = "{kind: remote, url: 'http://127.0.0.1:1/v1', model: m}"
    (tmp_path / "s.yaml").write_text(f"name: s\nweights: {{base: {base}}}\nlayers: [{layer}]\n")
    assert main(["explain", str(tmp_path / "s.yaml"), "--runs", str(tmp_path / "runs")]) == 2
    assert problem in capsys.readouterr().err


def test_the_code_of_the_tools_is_part_of_the_identity(module: Path) -> None:
    from demeanor.app import load_stack

    base = "{kind: remote, url: 'http://127.0.0.1:1/v1', model: m}"
    stack = module.with_name("s.yaml")
    stack.write_text(f"name: s\nweights: {{base: {base}}}\nlayers: [{{kind: tools, module: my_tools.py}}]\n")
    before = load_stack(stack).key()
    module.write_text(MODULE + "\nMORE = 1\n")
    assert load_stack(stack).key() != before


async def test_calls_of_a_round_run_side_by_side_and_answer_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(
        "import threading\nBOTH = threading.Barrier(2, timeout=25)\n"
        "def meet(name: str) -> str:\n    'Waits for the other.'\n    BOTH.wait()\n    return name\n"
    )
    calls = [ToolCall(name, "meet", f'{{"name": "{name}"}}') for name in "ab"]
    assert await results(tmp_path / "t.py", *calls) == ["a", "b"]


async def test_after_two_rounds_of_malformed_calls_no_tool_is_offered(module: Path) -> None:
    seen: list[Turn] = []
    wrong = [ToolCalled(ToolCall("1", "fail", "{}")), Done("tool_calls")]
    inner = script(wrong, wrong, [Text("I cannot."), Done("stop")], seen=seen)
    events = await events_of(wrap(module, inner, max_rounds=9), ask())
    assert [len(t.tools) for t in seen] == [3, 3, 0]
    assert (seen[2].tool_choice, fold(events).text) == ("none", "I cannot.")


def test_settings_need_a_tool() -> None:
    with pytest.raises(ValidationError, match="names of tools in `allow`"):
        tools.Spec()

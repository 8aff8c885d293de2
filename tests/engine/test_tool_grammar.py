"""Demanded and strict calls of random weights, through each template: what comes back is a call that fits, or no call at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import DecodingError
from demeanor.core.types import Completion, Decoding, Message, OutputFormat, Respond, ToolSpec, Turn, complete
from demeanor.engine.local import LocalEngine
from demeanor.engine.respond import model_respond
from demeanor.engine.structured import Grammars
from demeanor.model import checkpoints
from demeanor.stack import schema as specs
from demeanor.stack.schema import ModelShape
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import load_template
from demeanor.text.tokenizer import Tokenizer
from demeanor.text.tool_grammar import constrain_tool_calls

BERTH = {
    "type": "object",
    "additionalProperties": False,
    "required": ["berth", "open"],
    "properties": {"berth": {"type": "integer", "minimum": 1, "maximum": 12}, "open": {"type": "boolean"}},
}
PORT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["port"],
    "properties": {"port": {"enum": ["Corkel", "Jorpel"]}},
}
TOOLS = (ToolSpec("move", "", BERTH, strict=True), ToolSpec("weather", "", PORT, strict=True))


@pytest.fixture(scope="module")
def weights() -> Iterator[tuple[LocalEngine, Tokenizer]]:
    tokens = tokenizers.train(
        ['The ferry leaves at 9. {"a": 1} Who is Marla? '] * 20, specs.TokenizerSpec(vocab_size=400)
    )
    model = checkpoints.create(ModelShape(layers=1, width=32, heads=2, context=2048), tokens.vocab_size, 0)
    with closing(LocalEngine(model, tokens, num_slots=8)) as engine:
        yield engine, tokens


@pytest.fixture(params=["chatml", "turns", "transcript"])
def respond(request: pytest.FixtureRequest, weights: tuple[LocalEngine, Tokenizer]) -> Respond:
    engine, tokens = weights
    template = load_template(request.param, tokens, folder=None, root=Path())
    return model_respond(engine, template, tokenizer=tokens)


async def ask(
    respond: Respond, choice: str, seed: int = 0, tools: tuple[ToolSpec, ...] = TOOLS, **decoding: Any
) -> Completion:
    settings = Decoding(1.3, max_tokens=200, seed=seed, **decoding)
    return await complete(respond, Turn((Message("user", "Weather?"),), settings, tools, choice))


def fits(name: str, arguments: str) -> bool:
    value = json.loads(arguments)
    if name == "move":
        return (
            set(value) == {"berth", "open"}
            and value["berth"] in range(1, 13)
            and isinstance(value["open"], bool)
        )
    return name == "weather" and value in ({"port": "Corkel"}, {"port": "Jorpel"})


async def test_a_required_call_is_one_call_that_fits_and_no_text(respond: Respond) -> None:
    names = set()
    for seed in range(8):
        done = await ask(respond, "required", seed)
        assert (done.text.strip(), done.finish_reason, len(done.tool_calls)) == ("", "tool_calls", 1)
        assert fits(done.tool_calls[0].name, done.tool_calls[0].arguments)
        names.add(done.tool_calls[0].name)
    assert names == {"move", "weather"}


async def test_a_named_call_is_of_that_function_strict_or_not(respond: Respond) -> None:
    loose = tuple(ToolSpec(t.name, t.description, t.parameters) for t in TOOLS)
    for seed in range(4):
        (call,) = (await ask(respond, "weather", seed, loose)).tool_calls
        assert (call.name, fits(call.name, call.arguments)) == ("weather", True)


async def test_a_call_is_written_as_the_templates_write_calls(respond: Respond) -> None:
    call = (await ask(respond, "move", 1)).tool_calls[0]
    assert call.arguments == json.dumps(json.loads(call.arguments))


async def test_a_strict_tool_leaves_text_free_and_holds_every_call(respond: Respond) -> None:
    for seed in range(8):
        done = await ask(respond, "auto", seed)
        assert done.text or done.tool_calls
        assert all(fits(c.name, c.arguments) for c in done.tool_calls)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("transcript", "Ok.\nCall: ", ""),
        ("chatml", "Ok.<tool_call>\n", "\n</tool_call>"),
        ("turns", "Ok.<|call|>", ""),
    ],
)
@pytest.mark.parametrize("special", [True, False])
def test_after_free_text_only_a_call_that_fits_can_be_written(
    weights: tuple[LocalEngine, Tokenizer],
    name: str,
    before: str,
    after: str,
    special: bool,
) -> None:
    """The text is fed to the compiled grammar token by token; markers as their special token and as plain text."""
    _, tokens = weights
    ids = tokens.special if special else {}
    reader = load_template(name, tokens, folder=None, root=Path()).reader()
    form = constrain_tool_calls(Decoding(), TOOLS, "auto", reader, ids).form
    assert form is not None

    def goes(text: str) -> bool:
        guide = Grammars(tokens, tokens.vocab_size).guide(form)
        for part in re.split("(" + "|".join(re.escape(x) for x in ids or ["\0"]) + ")", text):
            for token in [ids[part]] if part in ids else tokens.encode(part):
                try:
                    guide.accept(token)
                except DecodingError:
                    return False
        return guide.may_end

    assert goes("Ok. No call here.")
    assert goes(before + '{"name": "weather", "arguments": {"port": "Corkel"}}' + after)
    assert not goes(before + '{"name": "weather", "arguments": {"port": "Marla"}}' + after)
    assert not goes(before + '{"name": "wether", "arguments": {"port": "Corkel"}}' + after)


async def test_with_a_schema_the_answer_is_its_json_or_calls(respond: Respond) -> None:
    form = OutputFormat(
        "json_schema",
        '{"type": "object", "additionalProperties": false, "required": ["x"], "properties": {"x": {"type": "boolean"}}}',
    )
    kinds = set()
    for seed in range(12):
        done = await ask(respond, "auto", seed, form=form)
        kinds.add(bool(done.tool_calls))
        if not done.tool_calls:
            assert json.loads(done.text) in ({"x": True}, {"x": False})
        assert all(fits(c.name, c.arguments) for c in done.tool_calls)
    assert False in kinds


async def test_a_schema_that_cannot_be_written_is_the_tools_mistake(respond: Respond) -> None:
    bad = (ToolSpec("move", "", {"type": "nothing"}, strict=True),)
    with pytest.raises(DecodingError, match=r"^the parameters of move: json_schema: ") as caught:
        await ask(respond, "required", tools=bad)
    assert caught.value.param == "tools.move"


def test_a_template_that_has_no_calls_refuses_a_demanded_one() -> None:
    class Plain:
        def feed(self, token: int, text: str) -> list[Any]:
            return []

        def finish(self) -> list[Any]:
            return []

    with pytest.raises(DecodingError, match="no format of tool calls") as caught:
        constrain_tool_calls(Decoding(), TOOLS, "required", Plain(), {})
    assert caught.value.param == "tool_choice"


def test_without_a_demand_a_form_or_a_strict_tool_decoding_stays_as_it_is(
    weights: tuple[LocalEngine, Tokenizer],
) -> None:
    reader = load_template("turns", weights[1], folder=None, root=Path()).reader()
    loose, same = (ToolSpec("f", "", {}),), Decoding(seed=3)
    assert constrain_tool_calls(same, loose, "auto", reader, {}) is same
    assert constrain_tool_calls(same, (), "auto", reader, {}) is same
    assert constrain_tool_calls(same, (), "none", reader, {}) is same

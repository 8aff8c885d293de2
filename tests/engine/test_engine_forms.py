"""Structured output parses, whatever the weights say; tokenizers of both families."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import DecodingError
from demeanor.core.types import Decoding, OutputFormat
from demeanor.engine.local import LocalEngine, Request
from demeanor.engine.structured import Grammars
from demeanor.model import checkpoints
from demeanor.stack import schema as specs
from demeanor.stack.schema import ModelShape
from demeanor.text import tokenizer as tokenizers
from tests.conftest import each

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "boats", "open"],
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "boats": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "open": {"type": "boolean"},
        "kind": {"enum": ["ferry", "tug"]},
    },
}


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    tokens = tokenizers.train(
        ['The ferry leaves at 9. {"a": 1} Who is Marla? '] * 20, specs.TokenizerSpec(vocab_size=400)
    )
    model = checkpoints.create(ModelShape(layers=1, width=32, heads=2, context=1024), tokens.vocab_size, 0)
    with closing(LocalEngine(model, tokens, num_slots=8)) as made:
        yield made


def answers(
    engine: LocalEngine,
    form: OutputFormat,
    count: int = 12,
    *,
    temperature: float = 1.5,
    max_tokens: int = 400,
) -> list[str]:
    """The answers of random weights, each of another seed; none may end for length."""
    requests = [
        Request((20, 21), Decoding(temperature, max_tokens=max_tokens, seed=seed, form=form))
        for seed in range(count)
    ]
    said = engine.generate(requests)
    assert {pieces[-1].finish for pieces in said} == {"stop"}
    return ["".join(piece.text for piece in pieces) for pieces in said]


def test_json_of_a_schema_parses_and_fits_and_holds_no_free_space(engine: LocalEngine) -> None:
    for text in each(answers(engine, OutputFormat("json_schema", json.dumps(SCHEMA)))):
        value = json.loads(text)
        assert {"name", "boats", "open"} <= set(value) <= set(SCHEMA["properties"])
        assert len(value["name"]) <= 12
        assert len(value["boats"]) <= 3
        assert all(isinstance(x, int) and 0 <= x <= 99 for x in value["boats"])
        assert isinstance(value["open"], bool)
        assert value.get("kind", "tug") in ("ferry", "tug")
        assert re.sub(r'"(\\.|[^"])*"', "", text).count("\n") == 0


@pytest.mark.parametrize("max_tokens", [48, 60, 90, 200])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_whose_budget_runs_out_is_closed_in_time(
    engine: LocalEngine, max_tokens: int, temperature: float
) -> None:
    """Strings and lists without a bound: random weights would write them for ever."""
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "notes"],
        "properties": {
            "name": {"type": "string"},
            "notes": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["text", "score"],
                    "properties": {"text": {"type": "string"}, "score": {"type": "number"}},
                },
            },
        },
    }
    values = [
        json.loads(text)
        for text in answers(
            engine,
            OutputFormat("json_schema", json.dumps(schema)),
            temperature=temperature,
            max_tokens=max_tokens,
        )
    ]
    assert all(set(value) == {"name", "notes"} and value["notes"] for value in values)
    assert any(len(value["name"]) > 5 for value in values), "what is forced is the end, not the whole"


def test_a_budget_that_no_answer_fits_ends_for_length(engine: LocalEngine) -> None:
    pieces = engine.generate(
        [Request((20,), Decoding(0, max_tokens=4, form=OutputFormat("json_schema", json.dumps(SCHEMA))))]
    )[0]
    assert (len(pieces), pieces[-1].finish) == (4, "length")


def test_choices_regexes_and_grammars_are_kept(engine: LocalEngine) -> None:
    assert set(answers(engine, OutputFormat("choice", json.dumps(["yes", "no", 'it is "late"'])), 24)) == {
        "yes",
        "no",
        'it is "late"',
    }
    assert all(
        re.fullmatch(r"[A-F]{3}/[0-9]{2}", text)
        for text in answers(engine, OutputFormat("regex", r"[A-F]{3}/[0-9]{2}"))
    )
    assert set(answers(engine, OutputFormat("grammar", 'start: "a" b?\nb: "b" | "c"'), 24)) == {
        "a",
        "ab",
        "ac",
    }


def test_greedy_answers_keep_the_form_too_and_a_neighbour_is_free(engine: LocalEngine) -> None:
    bound = Request((20,), Decoding(0, max_tokens=50, form=OutputFormat("choice", '["yes","no"]')))
    free = Request((20,), Decoding(0, max_tokens=6))
    alone = engine.generate([free])[0]
    together = engine.generate([bound, free, bound])
    assert {"".join(p.text for p in together[i]) for i in (0, 2)} <= {"yes", "no"}
    assert [p.token for p in together[1]] == [p.token for p in alone]


def test_a_stop_token_may_come_only_where_the_answer_is_whole(engine: LocalEngine) -> None:
    form, stop = OutputFormat("regex", "a{2,4}"), 0
    requests = [
        Request(
            (20,),
            Decoding(1.5, max_tokens=50, seed=s, form=form, logit_bias=((stop, 50.0),)),
            frozenset({stop}),
        )
        for s in range(8)
    ]
    assert {"".join(p.text for p in pieces) for pieces in engine.generate(requests)} == {"aa"}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (OutputFormat("json_schema", "{"), "not JSON"),
        (OutputFormat("json_schema", "[]"), "JSON object"),
        (OutputFormat("json_schema", '{"type": "thing"}'), "json_schema"),
        (OutputFormat("regex", "("), "regex"),
        (OutputFormat("choice", "[]"), "one or more"),
        (OutputFormat("grammar", "nothing"), "grammar"),
        (OutputFormat("regex", "a" * 300_000), "at most"),
    ],
)
def test_a_form_that_makes_no_sense_is_refused_before_anything_runs(
    engine: LocalEngine, form: OutputFormat, said: str
) -> None:
    with pytest.raises(DecodingError, match=said) as raised:
        engine.generate([Request((20,), Decoding(form=form))])
    assert raised.value.param == "response_format"


def test_the_stories_model_speaks_json_too() -> None:
    folder = SHARED / "stories260K-hf"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: the shared data is not here")
    tokens = tokenizers.load(folder)
    with closing(LocalEngine(checkpoints.load(folder), tokens, num_slots=4)) as engine:
        requests = [
            Request(
                tuple(tokens.document("Once upon a time")[:-1]),
                Decoding(1.0, max_tokens=300, seed=s, form=OutputFormat("json_schema", json.dumps(SCHEMA))),
            )
            for s in range(4)
        ]
        for pieces in each(engine.generate(requests)):
            assert set(json.loads("".join(p.text for p in pieces))) >= {"name", "boats", "open"}


async def test_a_form_that_takes_long_to_compile_keeps_nobody_else_waiting(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, slow = Grammars._compile, 0.5

    def compiled(self: Grammars, *args: Any) -> Any:
        time.sleep(slow)
        return real(self, *args)

    monkeypatch.setattr(Grammars, "_compile", compiled)

    async def ask(form: OutputFormat | None) -> float:
        started = time.monotonic()
        async for _ in engine.stream(Request((20,), Decoding(0, max_tokens=3, form=form))):
            pass
        return time.monotonic() - started

    bound, free = await asyncio.gather(ask(OutputFormat("choice", '["a", "never asked before"]')), ask(None))
    assert free < slow <= bound

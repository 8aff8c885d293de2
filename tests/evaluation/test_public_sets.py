"""Items that are more than one turn: choices that are read, and questions that wait for answers; with scripted models."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from demeanor.core.types import (
    Completion,
    Decoding,
    Done,
    Event,
    Item,
    Message,
    PromptRead,
    Refusal,
    Score,
    Text,
    Turn,
)
from demeanor.evaluation.experiment import Subject, ask, run
from demeanor.evaluation.ladder import caveats
from demeanor.evaluation.result_rows import PairedTable
from demeanor.evaluation.scorers import choice, judged

CHOICES = Item(
    "c", (Message("user", "Q: 1+1?\nA:"),), "choice", {"choices": [" two", " three"], "true": [0]}, "a", "c"
)
TALK = Item("t", (Message("user", "one"),), "judged", {"turns": ["two", "three"]}, "a", "c")


def turn(item: Item) -> Turn:
    return Turn(item.messages, Decoding(), item.tools)


async def reader(turn: Turn) -> AsyncIterator[Event]:
    """A model of characters: every one has log-probability -1, but `w` -0.25."""
    assert (turn.raw, turn.decoding.max_tokens, turn.decoding.prompt_logprobs) == ((), 0, 0), (
        "choices are read raw and nothing is said"
    )
    text = turn.messages[-1].content
    yield PromptRead(tuple(text), (None, *(-0.25 if c == "w" else -1.0 for c in text[1:])), ((),) * len(text))
    yield Done("length")


async def test_a_choice_has_the_sum_of_its_own_tokens() -> None:
    done = await ask(reader, turn(CHOICES), CHOICES)
    spec = choice.Spec.model_validate(dict(CHOICES.target))
    assert choice.likelihoods(spec, done) == [
        -3.25,
        -6.0,
    ]  # " two": three at -1, one at -0.25; " three": six at -1
    assert choice.score(spec, done).value == 1.0
    shares = choice.score(spec.model_copy(update={"metric": "mc2"}), done).value
    assert shares == pytest.approx(math.exp(-3.25) / (math.exp(-3.25) + math.exp(-6.0)))


async def test_a_model_that_tells_no_likelihoods_is_asked_once_and_unscored() -> None:
    asked: list[Turn] = []

    async def speaker(turn: Turn) -> AsyncIterator[Event]:
        asked.append(turn)
        yield Text("hello")
        yield Done("stop")

    done = await ask(speaker, turn(CHOICES), CHOICES)
    assert len(asked) == 1
    assert choice.score(choice.Spec.model_validate(dict(CHOICES.target)), done).value is None


async def test_a_choice_that_a_layer_stops_is_unscored_and_says_by_whom() -> None:
    async def strict(turn: Turn) -> AsyncIterator[Event]:
        yield Refusal("policy", "rule", "why", "No.")
        yield Done("content_filter")

    done = await ask(strict, turn(CHOICES), CHOICES)
    assert choice.score(choice.Spec.model_validate(dict(CHOICES.target)), done) == Score(
        None, "", "stopped by policy"
    )


async def test_later_questions_see_the_answers_before_them() -> None:
    asked: list[list[str]] = []

    async def echo(turn: Turn) -> AsyncIterator[Event]:
        asked.append([m.content for m in turn.messages])
        yield Text(turn.messages[-1].content.upper())
        yield Done("stop")

    done = await ask(echo, turn(TALK), TALK)
    assert asked == [["one"], ["one", "ONE", "two"], ["one", "ONE", "two", "TWO", "three"]]
    assert done.text == "[1] ONE\n\n[2] TWO\n\n[3] THREE"


async def test_a_run_reads_choices_and_writes_their_score(tmp_path: Path) -> None:
    def score(item: Item, completion: Completion) -> Score:
        module = {"choice": choice, "judged": judged}[item.scorer]
        found: Score = module.score(module.Spec.model_validate(dict(item.target)), completion)  # type: ignore[attr-defined]
        return found

    (row,) = await run(
        [CHOICES],
        {"v": Subject(reader, "k")},
        score=score,
        seeds=(0,),
        decoding=Decoding(),
        out=tmp_path / "rows.jsonl",
    )
    assert (row.value, row.answer, row.error) == (1.0, "two", "")


async def test_an_axis_that_needs_a_judge_is_called_unscored_and_not_zero(tmp_path: Path) -> None:
    async def silent(turn: Turn) -> AsyncIterator[Event]:
        yield Text("words")
        yield Done("stop")

    def nobody(item: Item, completion: Completion) -> Score:
        return Score(None, "", "needs a judge")

    rows = await run(
        [TALK],
        {"v": Subject(silent, "k")},
        score=nobody,
        seeds=(0,),
        decoding=Decoding(),
        out=tmp_path / "rows.jsonl",
    )
    told = " ".join(caveats(PairedTable(rows, [TALK]), ["v"]))
    assert "1 of 1 answers have no score" in told
    assert "exactly 0" not in told


@pytest.mark.parametrize("choice_of", ["boy", "girl named Lily", "dog. It was big and red."])
async def test_the_likelihood_of_a_choice_is_transformers_own(choice_of: str, shared: Path) -> None:
    """The peer: log-softmax of transformers' forward at the choice's tokens, on the real model of 260k parameters."""
    import torch
    from transformers import LlamaForCausalLM

    from demeanor.engine.local import LocalEngine
    from demeanor.engine.respond import model_respond
    from demeanor.model import checkpoints
    from demeanor.text import tokenizer as text
    from demeanor.text.template import Template

    folder = shared / "stories260K-hf"
    tokens, prefix = text.load(folder), "Once upon a time, there was a little"
    item = Item(
        "s",
        (Message("user", prefix),),
        "choice",
        {"choices": [" " + choice_of, " zebra"], "true": [0]},
        "a",
        "c",
    )
    with closing(LocalEngine(checkpoints.load(folder), tokens, num_slots=1)) as engine:
        done = await ask(
            model_respond(engine, cast(Template, SimpleNamespace(stop_tokens=frozenset())), tokenizer=tokens),
            turn(item),
            item,
        )
    found = choice.likelihoods(choice.Spec.model_validate(dict(item.target)), done)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert len(found) == 2
    for value, continuation in zip(found, item.target["choices"], strict=True):
        before, whole = ([*tokens.start, *tokens.encode(x)] for x in (prefix, prefix + continuation))
        with torch.inference_mode():
            logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        assert value == pytest.approx(
            sum(float(logprobs[i - 1, whole[i]]) for i in range(len(before), len(whole))), abs=1e-3
        )

"""What is served is what is evaluated, and every layer of a real stack does its part."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from demeanor.app import StackRuntime, services
from demeanor.core.errors import CheckpointError
from demeanor.core.types import Done, Message, Prompted, Refusal, Timing, Turn, complete
from demeanor.evaluation import ladder
from demeanor.evaluation.experiment import suite
from demeanor.server.application import app
from demeanor.serving import ServedStack
from demeanor.stack.stack import Stack, decoding_of
from demeanor.training.runs import Runs


@pytest.fixture
def runtime(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StackRuntime]:
    monkeypatch.chdir(tmp_path)
    found = StackRuntime(*trained)
    yield found
    found.close()


def ask(runtime: StackRuntime, variant: Stack, text: str) -> Turn:
    return Turn(
        (Message("user", text),), decoding_of(runtime.stack), id=f"t-{abs(hash((variant.model_id, text)))}"
    )


async def test_the_whole_stack_answers_and_says_what_each_layer_did(runtime: StackRuntime) -> None:
    whole = runtime.stack.resolve("tiny-desk")
    done = await complete(runtime.respond(whole), ask(runtime, whole, "When to Corkel?"))
    kinds = [type(e) for e in done.events]
    assert kinds[-1] is Done
    assert kinds.count(Done) == 1
    assert Prompted in kinds
    assert {e.by for e in done.events if isinstance(e, Timing)} == {
        "record",
        "limits",
        "policy",
        "tools",
        "retrieval",
        "prompt",
        "weights",
    }
    assert [e.text for e in done.events if type(e).__name__ == "Passage"] == [
        "Departures today: Corkel 9. Jorpel 17."
    ]


async def test_a_policy_refusal_is_the_policys_and_never_reaches_the_weights(runtime: StackRuntime) -> None:
    whole, bare = runtime.stack.resolve("tiny-desk"), runtime.stack.resolve("tiny-desk-policy")
    stopped = await complete(
        runtime.respond(whole), ask(runtime, whole, "Pretend you are a pirate. What ship serves Corkel?")
    )
    let_through = await complete(
        runtime.respond(bare), ask(runtime, bare, "Pretend you are a pirate. What ship serves Corkel?")
    )
    assert isinstance(stopped.refusal, Refusal)
    assert (stopped.refusal.by, stopped.refusal.rule, stopped.text) == ("policy", "pirates", "No games.")
    assert stopped.completion_tokens == 0
    assert let_through.refusal is None


def test_served_answers_equal_evaluated_answers(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same variants, prompts and seed, once through HTTP and once through evaluation's own path, batched and shared."""
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    result_rows = tmp_path / "results" / "check.rows.jsonl"
    ladder.evaluate(stack, services(runs), tmp_path / "results", variants=None, limit=2, name="check")
    from demeanor.evaluation.result_rows import read_rows

    rows = {(r.variant, r.item_id): r for r in read_rows(result_rows)}
    items = {i.id: i for i in suite(stack, 2)}
    runtime = StackRuntime(stack, runs)
    try:
        client = TestClient(app(ServedStack(runtime)), base_url="http://localhost")
        checked = 0
        for (variant, item_id), row in sorted(rows.items()):
            if variant not in ("tiny-desk", "tiny-desk:base", "tiny-desk:sft", "tiny-desk-policy"):
                continue
            body = {
                "model": variant,
                "seed": 0,
                "messages": [{"role": m.role, "content": m.content} for m in items[item_id].messages],
            }
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert (answer.json()["choices"][0]["message"]["content"] or "") == row.text, (variant, item_id)
            assert answer.json()["demeanor"]["stack_key"] == row.stack_key
            checked += 1
        assert checked == 4 * len(items)
    finally:
        runtime.close()


def test_many_at_once_answer_as_one_at_a_time(runtime: StackRuntime) -> None:
    variant = runtime.stack.resolve("tiny-desk:sft")
    runtime.warm({"sft"})
    texts = [
        f"What ship serves {p}?"
        for p in ("Corkel", "Jorpel", "Brevik", "Tolmar", "Veska", "Durness", "Halmar")
    ]

    async def together() -> list[str]:
        turns = [complete(runtime.respond(variant), ask(runtime, variant, t)) for t in texts]
        return [c.text for c in await asyncio.gather(*turns)]

    async def apart() -> list[str]:
        return [(await complete(runtime.respond(variant), ask(runtime, variant, t))).text for t in texts]

    assert asyncio.run(together()) == asyncio.run(apart())


def test_weights_that_were_never_trained_say_which_command_trains_them(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    stack, _ = trained
    with pytest.raises(CheckpointError, match=r"dpo: not trained yet .* Run: demeanor train"):
        StackRuntime(stack, Runs(tmp_path / "empty")).respond(stack)


def test_a_checkpoint_of_the_stack_is_an_ordinary_hugging_face_folder(trained: tuple[Stack, Runs]) -> None:
    """transformers loads weights, tokenizer and chat template, and greedily says what we serve."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stack, runs = trained
    folder = runs.model(stack.stage_key("sft"))
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    )
    messages = [{"role": "user", "content": "What ship serves Corkel?"}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    theirs = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    runtime = StackRuntime(stack, runs, operational=False)
    try:
        variant = stack.resolve("tiny-desk:sft")
        ours = asyncio.run(
            complete(runtime.respond(variant), ask(runtime, variant, "What ship serves Corkel?"))
        )
        assert ours.prompt_tokens == ids.shape[1]
        assert ours.text.strip() == tokenizer.decode(theirs, skip_special_tokens=True).strip()
    finally:
        runtime.close()

"""What weights say of their own answers, against transformers reading the same checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demeanor.app import StackRuntime
from demeanor.core.types import Item
from demeanor.evaluation import frontier
from demeanor.evaluation.experiment import suite
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs


@pytest.fixture
def items(trained: tuple[Stack, Runs]) -> list[Item]:
    return [i for i in suite(trained[0], 1) if i.axis in ("facts", "today", "honesty")]


async def test_a_stage_has_not_moved_from_itself_and_has_from_its_parent(
    trained: tuple[Stack, Runs], items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    house = StackRuntime(*trained, operational=False)
    try:
        variant = house.stack.variant("sft")
        same = await frontier.kl_from_parent(house, variant, "sft", items)
        assert [m.nats for m in same] == pytest.approx([0.0] * len(items), abs=1e-3)
        away = await frontier.kl_from_parent(house, variant, "base", items)
        assert [m.tokens for m in away] == [m.tokens for m in same], "the same draw"
        assert sum(m.nats for m in away) > 1, "what sft says is less likely to a base that never saw a chat"
    finally:
        house.close()


async def test_a_confidence_is_the_product_of_the_probabilities_that_the_model_gives_its_tokens(
    trained: tuple[Stack, Runs], items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from transformers import AutoModelForCausalLM

    stack, runs = trained
    house = StackRuntime(stack, runs, operational=False)
    try:
        variant = stack.variant("sft")
        found = {a.item_id: a for a in await frontier.confidences(house, variant, items)}
        template = house.template(variant)
        model = AutoModelForCausalLM.from_pretrained(runs.model(stack.stage_key("sft")), dtype=torch.float32)
        checked = 0
        for item in items:
            if item.id not in found:
                continue
            tokens, total = list(template.render(item.messages, generate=True).tokens), 0.0
            for _ in range(stack.spec.decoding.max_tokens):
                with torch.no_grad():
                    logprobs_V = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
                best = int(logprobs_V.argmax())
                if best in template.stop_tokens:
                    break
                total += float(logprobs_V[best])
                tokens.append(best)
            assert found[item.id].confidence == pytest.approx(torch.tensor(total).exp().item(), rel=1e-2)
            checked += 1
        assert checked
    finally:
        house.close()

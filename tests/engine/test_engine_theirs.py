"""Architectures of transformers in our loop: token for token what `generate` says, alone, together, and after a slot was used before."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_model import ByteTokenizer
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Phi3Config,
    Phi3ForCausalLM,
)

from demeanor.core.types import Decoding
from demeanor.engine.forward import TransformersForward
from demeanor.engine.local import LocalEngine, Request
from demeanor.model import hf

SMALL: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "initializer_range": 0.4,
}
MODELS: dict[str, tuple[Any, Any]] = {
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.4),
    ),
    "phi3": (Phi3ForCausalLM, Phi3Config(**SMALL)),
    "gemma2, a window of 8": (Gemma2ForCausalLM, Gemma2Config(**SMALL, head_dim=8, sliding_window=8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_are_those_of_generate_whatever_shares_the_loop(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind, config = MODELS[name]
    kind(config).save_pretrained(tmp_path)
    model = hf.load(tmp_path)
    shared = tuple(range(40, 60))
    prompts = [(*shared, 1, 2), (*shared, 3), (9,), (*shared, 1, 2), tuple(range(5, 30))]

    def generate(prompt: tuple[int, ...]) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            found = model.inner.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=20,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return [int(t) for t in found[0, len(prompt) :]]

    wanted = [generate(p) for p in prompts]
    assert len({tuple(x) for x in wanted}) == 4
    for num_slots in (2, 5):
        with closing(LocalEngine(model, ByteTokenizer(), num_slots=num_slots)) as engine:
            assert isinstance(engine._forward, TransformersForward)
            for _ in range(2):
                answers = engine.generate([Request(p, Decoding(0, max_tokens=20)) for p in prompts])
                assert [[piece.token for piece in pieces] for pieces in answers] == wanted


def test_its_hidden_states_prompt_logprobs_and_penalties_are_the_models_own(tmp_path: Path) -> None:
    torch.manual_seed(1)
    kind, config = MODELS["gpt2"]
    kind(config).save_pretrained(tmp_path)
    model = hf.load(tmp_path)
    asked = tuple(range(70, 90))
    with torch.no_grad():
        out = model.inner(input_ids=torch.tensor([asked]), output_hidden_states=True)
    with closing(LocalEngine(model, ByteTokenizer(), num_slots=1)) as engine:
        assert torch.allclose(engine.hidden(asked), out.hidden_states[-1][0], atol=1e-5)
        piece = engine.generate([Request(asked, Decoding(0, max_tokens=0), prompt_logprobs=0)])[0][0]
        logprobs = out.logits[0].log_softmax(-1)
        assert [r.logprob for r in piece.prompt[1:]] == pytest.approx(
            [float(logprobs[i, asked[i + 1]]) for i in range(19)], abs=1e-4
        )
        liked = engine.generate([Request(asked, Decoding(0, max_tokens=6, logit_bias=((65, 100.0),)))])[0]
        assert [p.token for p in liked] == [65] * 6

"""Decoding with a cache: token for token what transformers generates, whatever slots are used and whatever they held before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from demeanor.model import checkpoints
from demeanor.model.llama import KVCache, Llama
from demeanor.stack.schema import ModelShape

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}
MODELS: dict[str, tuple[Any, Any]] = {
    "shared keys, tied": (
        LlamaForCausalLM,
        LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    ),
    "one key head, untied": (LlamaForCausalLM, LlamaConfig(**SMALL, num_key_value_heads=1)),
    "normed queries": (Qwen3ForCausalLM, Qwen3Config(**SMALL, num_key_value_heads=4, head_dim=16)),
}


def greedy(
    model: Llama, prompts: list[list[int]], slots: list[int], cache: KVCache, count: int
) -> list[list[int]]:
    """Continue each prompt in its slot by `count` tokens, all slots in one step at a time."""
    rows = [list(p) for p in prompts]
    last = torch.cat([model.prefill(torch.tensor(p), s, 0, cache)[-1:] for p, s in zip(prompts, slots)])
    for _ in range(count):
        for row, token in zip(rows, (last @ model.head().T).argmax(-1).tolist()):
            row.append(token)
        last = model.step(
            torch.tensor([r[-1] for r in rows]),
            torch.tensor(slots),
            torch.tensor([len(r) - 1 for r in rows]),
            cache,
        )
    return rows


def draw(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 61, (n,), generator=generator).tolist() for n in (9, 1, 14)]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_decoding_in_mixed_slots_equals_generate(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    kind, config = MODELS[name]
    theirs = kind(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = checkpoints.load(tmp_path)

    def generate(prompt: list[int]) -> list[int]:
        found: list[list[int]] = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        ).tolist()
        return found[0]

    prompts = draw(0)
    wanted = [generate(p) for p in prompts]
    assert len({tuple(w[-16:]) for w in wanted}) == 3, "the prompts lead somewhere else each"
    some, full = KVCache(ours.config, 5, 32), KVCache(ours.config, 3, 32)
    assert greedy(ours, prompts, [3, 0, 4], some, 16) == wanted
    assert greedy(ours, prompts, [0, 1, 2], full, 16) == wanted, "every slot in order: no row is gathered"
    assert greedy(ours, prompts[::-1], [0, 1, 2], full, 16) == wanted[::-1], (
        "what a slot held before is not seen"
    )


def test_a_copied_prefix_continues_as_its_original() -> None:
    model = checkpoints.create(ModelShape(layers=2, width=32, heads=4, context=64), 61, 0)
    cache, tokens = KVCache(model.config, 3, 32), torch.tensor(draw(2)[2])
    whole = model.prefill(tokens, 0, 0, cache)
    cache.copy(0, 2, 8)
    assert torch.allclose(model.prefill(tokens[8:], 2, 8, cache), whole[8:], atol=1e-5)

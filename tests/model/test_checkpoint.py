"""Folders in and out: equal to transformers, and one clear error for each folder that cannot be used."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from demeanor.core.errors import CheckpointError
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import checkpoints
from demeanor.model.llama import Attention, KVCache, Llama
from demeanor.model.tensors import Segment
from demeanor.stack.schema import ModelShape
from tests.conftest import each

SHAPE = ModelShape(layers=2, width=32, heads=4, kv_heads=2, context=64)
SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama, tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama, as many key heads": LlamaConfig(**{**SMALL, "num_key_value_heads": 4}),
    "llama, untied, biased": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=16),
    "qwen2, tied": Qwen2Config(**SMALL, tie_word_embeddings=True),
}


def foreign(family: str) -> Any:
    """A random model of transformers; biases and norms too, which its own initialisation leaves at 0 and 1."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def logits(model: Llama, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.hidden(ids, torch.arange(len(ids)), (Segment(0, len(ids)),)) @ model.head().T


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformers_folder_gives_the_same_logits_here_and_back(family: str, tmp_path: Path) -> None:
    theirs = foreign(family)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = checkpoints.load(tmp_path / "theirs")
    ids = torch.randint(0, 61, (23,))
    with torch.no_grad():
        wanted = theirs(ids[None]).logits[0]
    assert wanted.std() > 0.5
    assert torch.allclose(logits(ours, ids), wanted, atol=1e-4)
    checkpoints.save(ours, tmp_path / "ours")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(back(ids[None]).logits[0], wanted, atol=1e-5)
    assert type(back) is type(theirs)


def test_a_folder_in_bf16_says_so_and_is_half_as_large(tmp_path: Path) -> None:
    model = checkpoints.create(SHAPE, 61, 0)
    checkpoints.save(model, tmp_path, torch.bfloat16)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    again = checkpoints.load(tmp_path)
    assert all(
        torch.equal(b, a.to(torch.bfloat16).float()) for a, b in zip(model.parameters(), again.parameters())
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"], (
        "no temporary file stays"
    )


def test_the_real_tiny_model_gives_the_same_logits(shared: Path) -> None:
    folder = shared / "stories260K-hf"
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(3, 512, (60,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(logits(checkpoints.load(folder), ids), theirs(ids[None]).logits[0], atol=1e-4)


def test_a_reward_model_gives_the_same_rewards_in_transformers(tmp_path: Path) -> None:
    """Padded there, flat trees here."""
    ours = checkpoints.reward_from(checkpoints.create(SHAPE, 61, 0), 1)
    checkpoints.save(ours, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    theirs.config.pad_token_id = 0  # training/pipeline.py writes one that the tokenizer allows
    prompt, answers = (5, 7, 9), [(3, 4), (8,), (2, 6, 1, 12)]
    ids = torch.zeros(3, 7, dtype=torch.long)
    for row, answer in zip(ids, answers):
        row[: 3 + len(answer)] = torch.tensor(prompt + answer)
    tree = Tree(prompt, tuple(Branch(a, (True,) * len(a)) for a in answers), (0, 1, 2))
    again = checkpoints.load_reward(tmp_path)
    with torch.no_grad():
        wanted = theirs(ids, attention_mask=(ids > 0).long()).logits.squeeze(-1)
        for model in (ours, again):
            assert torch.allclose(model.rewards(collate([tree], read_last=True)), wanted, atol=1e-5)
    assert wanted.std() > 0.01


def test_decoding_in_slots_equals_the_whole_forward_pass() -> None:
    model = checkpoints.create(SHAPE, 61, 0)
    rows = [torch.randint(0, 61, (n,)) for n in (9, 14, 5)]
    cache = KVCache(model.config, 5, 32)
    slots = [3, 0, 4]
    for row, slot in zip(each(rows), slots, strict=True):
        parts = (
            [model.prefill(row[:3], slot, 0, cache), model.prefill(row[3:-2], slot, 3, cache)]
            if len(row) > 5
            else [model.prefill(row[:-2], slot, 0, cache)]
        )
        assert sum(map(len, parts)) == len(row) - 2
        with torch.no_grad():
            whole = model.hidden(row, torch.arange(len(row)), (Segment(0, len(row)),))
        assert torch.allclose(torch.cat(parts), whole[:-2], atol=1e-5)
    for back in (2, 1):
        found = model.step(
            torch.stack([r[-back] for r in rows]),
            torch.tensor(slots),
            torch.tensor([len(r) - back for r in rows]),
            cache,
        )
        for row, hidden in zip(rows, found):
            with torch.no_grad():
                assert torch.allclose(
                    hidden,
                    model.hidden(row, torch.arange(len(row)), (Segment(0, len(row)),))[-back],
                    atol=1e-5,
                )


def test_a_folder_is_loaded_without_drawing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing on the device `meta` would load torch's compiler: 70 MB and a second for nothing."""
    checkpoints.save(checkpoints.create(SHAPE, 61, 0), tmp_path)
    monkeypatch.setattr("torch.Tensor.normal_", lambda *_, **__: pytest.fail("an embedding was drawn"))
    assert checkpoints.load(tmp_path).config.vocab_size == 61


def test_random_weights_are_a_function_of_the_seed_and_mimetic_heads_match_equal_tokens() -> None:
    shape = ModelShape(layers=2, width=64, heads=2)
    one, same, other = (checkpoints.create(shape, 61, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters()))
    assert not torch.equal(one.head(), other.head())
    attention = next(m for m in one.modules() if isinstance(m, Attention))
    product = (attention.q_proj.weight[:32].T @ attention.k_proj.weight[:32]).detach()
    mixed = (attention.o_proj.weight @ attention.v_proj.weight).detach()
    assert product.diagonal().mean() > 0.05
    assert mixed.diagonal().mean() == pytest.approx(-0.4, abs=0.05)
    assert abs(float(product.mean())) < 0.02
    one_head = next(
        m
        for m in checkpoints.create(ModelShape(layers=1, width=64, heads=1), 61, 0).modules()
        if isinstance(m, Attention)
    )
    assert (one_head.q_proj.weight.T @ one_head.k_proj.weight).diagonal().mean().item() == pytest.approx(
        0.2, abs=0.02
    )


def edit(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps({k: v for k, v in {**raw, **changes}.items() if v is not None})
        )

    return apply


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return apply


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "another architecture": (edit(model_type="gpt2"), "unknown model_type 'gpt2'"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[]"), "holds a list"),
    "a width that is a word": (edit(hidden_size="wide"), "hidden_size is 'wide'"),
    "no attention heads": (edit(num_attention_heads=0), "num_attention_heads is 0"),
    "heads that do not share evenly": (edit(num_key_value_heads=3), "num_key_value_heads"),
    "a rope that is a word": (edit(rope_parameters="long"), "wrong type"),
    "an older spelling of scaled positions": (
        edit(rope_scaling={"type": "dynamic", "factor": 2.0}),
        "rope type",
    ),
    "a sliding window": (edit(model_type="mistral", sliding_window=16), "sliding_window"),
    "the sliding window that Mistral has unless told": (
        edit(model_type="mistral", max_position_embeddings=8192),
        "sliding_window",
    ),
    "a reward model": (
        lambda f: checkpoints.save(checkpoints.reward_from(checkpoints.load(f), 0), f),
        "not belong to the model, first score.weight",
    ),
    "weights that are whole numbers": (
        tensors(lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})),
        "holds torch.int8",
    ),
    "a weights file cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-8]),
        "not a readable safetensors",
    ),
    "a config without a width": (edit(hidden_size=None), "lacks hidden_size"),
    "scaled rotary positions": (
        edit(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        "rope type",
    ),
    "another activation": (edit(hidden_act="gelu"), "hidden_act"),
    "quantised weights": (edit(quantization_config={"bits": 4}), "quantization_config"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no .safetensors file"),
    "pickled weights alone": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled"),
    "a torn weights file": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x40\x00"),
        "not a readable safetensors",
    ),
    "a missing tensor": (
        tensors(lambda t: t.pop("model.norm.weight")),
        "are missing, first model.norm.weight",
    ),
    "a tensor too many": (
        tensors(lambda t: t.update({"model.extra.weight": torch.ones(2)})),
        "do not belong to the model, first model.extra.weight",
    ),
    "a tensor of another shape": (
        edit(vocab_size=62),
        "model.embed_tokens.weight is (61, 32), wanted (62, 32)",
    ),
}


@pytest.mark.parametrize("mistake", FOREIGN)
def test_a_foreign_checkpoint_gives_one_clear_error(mistake: str, tmp_path: Path) -> None:
    checkpoints.save(checkpoints.create(SHAPE, 61, 0), tmp_path)
    change, wanted = FOREIGN[mistake]
    change(tmp_path)
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(tmp_path)
    assert wanted in str(error.value)
    assert str(tmp_path) in str(error.value)
    if mistake not in OF_VALUES:
        with pytest.raises(CheckpointError, match=re.escape(str(error.value))):
            checkpoints.check(tmp_path)


OF_VALUES = ("weights that are whole numbers", "a reward model")

"""Model folders as they come: shards, both spellings of a setting, and a real checkpoint's greedy answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from demeanor.core.errors import CheckpointError
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import checkpoints
from demeanor.model.heads import reward_outputs
from demeanor.model.llama import Config, KVCache, Llama
from demeanor.model.tensors import Segment
from demeanor.stack.schema import ModelShape

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SHAPE = ModelShape(layers=2, width=32, heads=4, kv_heads=2, context=64)


def logits(model: Llama, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.hidden(tokens, torch.arange(len(tokens)), (Segment(0, len(tokens)),)) @ model.head().T


def tokens(count: int, vocab: int = 61) -> Tensor:
    return torch.randint(1, vocab, (count,), generator=torch.Generator().manual_seed(3))


def test_a_real_checkpoint_equals_transformers_and_its_greedy_answers(shared: Path) -> None:
    folder = shared / "stories260K-hf"
    ours, theirs = checkpoints.load(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    row = tokens(12, 512)
    with torch.no_grad():
        assert torch.allclose(logits(ours, row), theirs(row[None]).logits[0], atol=1e-4)
        wanted = theirs.generate(
            row[None], max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0].tolist()
    cache, found = KVCache(ours.config, 3, 64), row.tolist()
    last = ours.prefill(row, 1, 0, cache)[-1:]
    while len(found) < 52:
        found.append(int((last @ ours.head().T).argmax()))
        last = ours.step(torch.tensor(found[-1:]), torch.tensor([1]), torch.tensor([len(found) - 1]), cache)
    assert found == wanted


def saved(folder: Path) -> dict[str, Tensor]:
    checkpoints.save(checkpoints.create(SHAPE, 61, 0), folder)
    return load_file(folder / "model.safetensors")


def test_a_sharded_folder_loads_and_a_missing_shard_is_named(tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({n: tensors[n] for n in names if where[n] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    save_file(
        {"tok_embeddings.weight": torch.zeros(1)}, tmp_path / "consolidated.safetensors"
    )  # Mistral ships both forms
    assert torch.equal(
        checkpoints.load(tmp_path).state_dict()["model.norm.weight"], tensors["model.norm.weight"]
    )
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"names 1 files that do not exist, first model-00002-of-00002.safetensors"
    ):
        checkpoints.load(tmp_path)


def test_both_spellings_of_the_rotary_base_and_qwen3s_own_head_size_are_read() -> None:
    raw = {**SMALL, "model_type": "llama"}
    assert Config.parse({**raw, "rope_theta": 5e5}, "x").rope_theta == 5e5
    assert (
        Config.parse({**raw, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "x").rope_theta
        == 5e5
    )
    assert Config.parse({**raw, "model_type": "qwen3"}, "x").head_dim == Qwen3Config(**SMALL).head_dim == 128


@pytest.mark.parametrize("theirs", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_what_a_config_leaves_out_is_what_transformers_takes(theirs: type[PretrainedConfig]) -> None:
    needed = {
        "vocab_size": 61,
        "hidden_size": 4096,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
    }
    ours, wanted = (
        Config.parse({**needed, "model_type": theirs.model_type, "sliding_window": None}, "x"),
        theirs(**needed),
    )
    for name in ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(wanted, name), name
    assert ours.head_dim == 128
    assert ours.rope_theta == wanted.rope_parameters["rope_theta"]


def test_a_checkpoint_shaped_like_smollm_equals_transformers(tmp_path: Path) -> None:
    """SmolLM2-135M's proportions, narrowed: 9 query heads on 3 key heads, tied embeddings, rope_theta 100000, grouped in odd numbers."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=61,
        hidden_size=72,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=64,
        rope_theta=100000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    theirs = AutoModelForCausalLM.from_config(shape).eval()
    theirs.save_pretrained(tmp_path)
    row = tokens(20)
    with torch.no_grad():
        assert torch.allclose(logits(checkpoints.load(tmp_path), row), theirs(row[None]).logits[0], atol=1e-5)


def test_a_reward_model_scores_as_transformers_sequence_classification_does(tmp_path: Path) -> None:
    checkpoints.save(checkpoints.reward_from(checkpoints.create(SHAPE, 61, 0), 5), tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.num_labels == 1
    rows = [tuple(range(3, 9)), tuple(range(20, 34))]
    batch = collate([Tree(r[:2], (Branch(r[2:], (True,) * len(r[2:])),)) for r in rows], read_last=True)
    with torch.no_grad():
        found = reward_outputs(checkpoints.load_reward(tmp_path), batch).rewards_B
        wanted = torch.stack([theirs(torch.tensor([r])).logits[0, 0] for r in rows])
    assert found is not None
    assert torch.allclose(found, wanted, atol=1e-5)
    assert abs(float(wanted[0] - wanted[1])) > 1e-3

"""Low-rank adapters: the sum they compute, what learns, folded or not, and their folders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from demeanor.core.errors import CheckpointError
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import adapters, checkpoints, quantize
from demeanor.model import adapters as lora
from demeanor.model.heads import policy_outputs, reward_outputs
from demeanor.model.llama import KVCache, Llama
from demeanor.model.low_rank import LoraLinear
from demeanor.stack.schema import Adapter, ModelShape

VOCAB = 61
SHAPE = ModelShape(layers=2, width=32, heads=4, kv_heads=2, context=64)
SMALL = Adapter(rank=3, alpha=6)
BATCH = collate(
    [Tree((5, 6, 7), (Branch((8, 9), (True, True)), Branch((10, 11, 12), (True,) * 3)), (0, 1))],
    read_last=True,
)


def adapted(settings: Adapter = SMALL, seed: int = 1) -> Llama:
    """A random model with an adapter whose B is no longer zero, as after training."""
    model = checkpoints.create(SHAPE, VOCAB, 0)
    lora.attach(model, settings, seed)
    draw = torch.Generator().manual_seed(9)
    for _, module in lora.adapters(model):
        module.lora_B.data = torch.randn(module.lora_B.shape, generator=draw) / 10
    return model


def logprobs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found = policy_outputs(model, BATCH).logprobs_C
    assert found is not None
    return found


def test_an_adapted_map_computes_the_papers_sum() -> None:
    linear = nn.Linear(5, 4)
    found = lora.LoraLinear(linear, 2, 3.0)
    found.lora_B.data = torch.randn(4, 2)
    x = torch.randn(7, 5)
    dense = linear.weight + 3.0 * found.lora_B @ found.lora_A
    assert torch.allclose(found(x), x @ dense.T + linear.bias, atol=1e-6)


def test_a_fresh_adapter_changes_nothing_and_is_drawn_from_its_seed() -> None:
    plain, model = checkpoints.create(SHAPE, VOCAB, 0), checkpoints.create(SHAPE, VOCAB, 0)
    lora.attach(model, SMALL, 1)
    assert torch.equal(logprobs(model), logprobs(plain))
    first = dict(model.named_parameters())["model.layers.0.mlp.up_proj.lora_A"].detach()
    bound = 1 / math.sqrt(32)  # Kaiming's uniform bound sqrt(6 / ((1 + a^2) fan_in)) at a = sqrt(5)
    assert 0.9 * bound < float(first.abs().max()) <= bound
    again, other = adapted(seed=1), adapted(seed=2)
    assert torch.equal(dict(again.named_parameters())["model.layers.0.mlp.up_proj.lora_A"], first)
    assert not torch.equal(dict(other.named_parameters())["model.layers.0.mlp.up_proj.lora_A"], first)


def test_only_the_adapter_and_a_score_head_learn() -> None:
    model = adapted()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".lora_" in n
    }
    scorer = checkpoints.reward_from(checkpoints.create(SHAPE, VOCAB, 0), 0)
    lora.attach(scorer, SMALL, 1)
    learning = {n for n, p in scorer.named_parameters() if p.requires_grad}
    assert {n for n in learning if ".lora_" not in n} == {"score.weight"}
    assert len(learning) == 1 + 2 * 2 * 7  # 2 layers of 7 maps with A and B


def test_folded_and_unfolded_are_one_model() -> None:
    model = adapted()
    before = logprobs(model)
    names = {n for n, _ in checkpoints.create(SHAPE, VOCAB, 0).named_parameters()}
    lora.merge(model)
    assert torch.allclose(logprobs(model), before, atol=1e-5)
    assert not torch.allclose(before, logprobs(checkpoints.create(SHAPE, VOCAB, 0)), atol=1e-2)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == names


@pytest.mark.parametrize(("rslora", "wanted"), [(False, 6 / 4), (True, 6 / 2)])
def test_the_scale_is_alpha_over_rank_or_over_its_root(rslora: bool, wanted: float) -> None:
    model = adapted(Adapter(rank=4, alpha=6, rslora=rslora))
    assert {module.scale for _, module in lora.adapters(model)} == {wanted}


def test_targets_are_last_names_and_a_wrong_one_is_named() -> None:
    model = checkpoints.create(SHAPE, VOCAB, 0)
    assert lora.attach(model, Adapter(targets=("q_proj", "v_proj")), 0) == [
        f"model.layers.{i}.self_attn.{n}" for i in range(2) for n in ("q_proj", "v_proj")
    ]
    with pytest.raises(
        CheckpointError,
        match=r"adapter\.targets: unknown linear map of this model 'q_prj'\. Did you mean 'q_proj'",
    ):
        lora.attach(checkpoints.create(SHAPE, VOCAB, 0), Adapter(targets=("q_prj",)), 0)


def test_an_untied_head_is_left_alone_by_all_linear() -> None:
    assert lora.target_names(["model.layers.0.mlp.up_proj", "lm_head", "score"], ("all-linear",)) == [
        "model.layers.0.mlp.up_proj"
    ]


def test_an_adapter_folder_loads_as_its_parent_plus_the_adapter(tmp_path: Path) -> None:
    runs, model = tmp_path / "runs", adapted()
    parent, folder = runs / "a" / "model", runs / "b" / "model"
    checkpoints.save(checkpoints.create(SHAPE, VOCAB, 0), parent)
    checkpoints.save_checkpoint(model, folder, adapter=SMALL, parent=parent)
    assert {p.name for p in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(parent)
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in load_file(
        folder / "adapter_model.safetensors"
    )
    assert torch.allclose(logprobs(checkpoints.load(folder)), logprobs(model), atol=1e-5)
    assert checkpoints.checkpoint_info(folder) == checkpoints.checkpoint_info(parent)
    runs.rename(tmp_path / "moved")  # as a whole
    moved = tmp_path / "moved" / "b" / "model"
    assert torch.allclose(logprobs(checkpoints.load(moved)), logprobs(model), atol=1e-5)


def test_an_adapter_on_an_adapter_loads(tmp_path: Path) -> None:
    checkpoints.save(checkpoints.create(SHAPE, VOCAB, 0), tmp_path / "a")
    first = adapted()
    checkpoints.save_checkpoint(first, tmp_path / "b", adapter=SMALL, parent=tmp_path / "a")
    second = checkpoints.load(tmp_path / "b")
    lora.attach(second, SMALL, 5)
    for _, module in lora.adapters(second):
        module.lora_B.data.fill_(0.02)
    checkpoints.save_checkpoint(second, tmp_path / "c", adapter=SMALL, parent=tmp_path / "b")
    assert torch.allclose(logprobs(checkpoints.load(tmp_path / "c")), logprobs(second), atol=1e-5)


def test_a_reward_adapter_keeps_its_score(tmp_path: Path) -> None:
    policy = checkpoints.create(SHAPE, VOCAB, 0)
    checkpoints.save(policy, tmp_path / "a")
    scorer = checkpoints.reward_from(policy, 4)
    lora.attach(scorer, SMALL, 1)
    for _, module in lora.adapters(scorer):
        module.lora_B.data.fill_(0.03)
    checkpoints.save_checkpoint(scorer, tmp_path / "b", adapter=SMALL, parent=tmp_path / "a")
    settings = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["modules_to_save"]) == ("SEQ_CLS", ["score"])
    assert checkpoints.checkpoint_info(tmp_path / "b").reward
    found, wanted = (
        reward_outputs(m, BATCH).rewards_B for m in (checkpoints.load_reward(tmp_path / "b"), scorer)
    )
    assert found is not None
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"base_model_name_or_path": "../nowhere"}, "which is no model folder"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    checkpoints.save(checkpoints.create(SHAPE, VOCAB, 0), tmp_path / "a")
    checkpoints.save_checkpoint(adapted(), tmp_path / "b", adapter=SMALL, parent=tmp_path / "a")
    path = tmp_path / "b" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(tmp_path / "b")


def test_an_adapter_of_another_shape_has_no_place(tmp_path: Path) -> None:
    checkpoints.save(
        checkpoints.create(ModelShape(layers=2, width=64, heads=4, context=64), VOCAB, 0), tmp_path / "a"
    )
    checkpoints.save_checkpoint(adapted(), tmp_path / "b", adapter=SMALL, parent=tmp_path / "a")
    with pytest.raises(CheckpointError, match="does not fit the weights that the folder names"):
        checkpoints.load(tmp_path / "b")


def test_four_bits_are_refused_where_they_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(CheckpointError, match=r"sft: adapter\.quantise: nf4 needs a CUDA device"):
        quantize.require(Adapter(quantise="nf4"), "sft")
    quantize.require(Adapter(), "sft")
    quantize.require(None, "sft")


def test_a_folder_without_safetensors_is_told_about_pickles(tmp_path: Path) -> None:
    checkpoints.save(checkpoints.create(SHAPE, VOCAB, 0), tmp_path / "a")
    checkpoints.save_checkpoint(adapted(), tmp_path / "b", adapter=SMALL, parent=tmp_path / "a")
    (tmp_path / "b" / adapters.WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="pickled weights are not loaded"):
        checkpoints.load(tmp_path / "b")


@pytest.mark.parametrize("grouped", [False, True])
def test_an_adapter_on_an_adapter_is_served_as_it_was_trained(grouped: bool, tmp_path: Path) -> None:
    """Serving keeps the last adapter apart; one below it is merged, also where the base is in groups."""
    shape, tokens = ModelShape(layers=2, width=64, heads=4, context=64, init="normal"), torch.arange(1, 20)
    checkpoints.save_checkpoint(checkpoints.create(shape, 300, 0), tmp_path / "whole")
    if grouped:
        quantize.write_groups(tmp_path / "whole", tmp_path / "base", "q8_0", head="q8_0", activations="int8")
    else:
        checkpoints.save_checkpoint(checkpoints.load(tmp_path / "whole"), tmp_path / "base")
    parent = tmp_path / "base"
    for n, name in enumerate(("first", "second")):
        model = checkpoints.load(parent)
        adapters.attach(model, Adapter(rank=4), n)
        draw = torch.Generator().manual_seed(n)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, LoraLinear):
                    module.lora_B.normal_(0, 0.05, generator=draw)
        checkpoints.save_checkpoint(model, tmp_path / name, adapter=Adapter(rank=4), parent=parent)
        parent = tmp_path / name
    served = checkpoints.serving(parent)
    merged = checkpoints.policy(parent)
    assert isinstance(served, Llama)
    assert isinstance(merged, Llama)
    assert any(isinstance(module, LoraLinear) for module in served.modules())
    found, wanted = (m.prefill(tokens, 0, 0, KVCache(m.config, 1, 64)) for m in (served, merged))
    assert torch.allclose(found, wanted, atol=1e-4)

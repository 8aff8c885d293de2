"""Stages with adapters: where they start, what they keep, killed and resumed, and what goes on from them."""

from __future__ import annotations

import math
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from demeanor.core import registry
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import adapters, checkpoints
from demeanor.model import checkpoints as models
from demeanor.stack.schema import Adapter, ModelShape, Optim, Stage
from demeanor.training import progress
from demeanor.training.progress import StageProgress, training_flops
from demeanor.training.resume import Interrupted
from demeanor.training.runs import Runs
from demeanor.training.stage import FrozenPolicy, RunOptions, start, train_stage
from tests.training.test_train_stage import StopsAt

dpo, reward, sft = (registry.entry("demeanor.objectives", kind) for kind in ("dpo", "reward", "sft"))

SHAPE = ModelShape(layers=2, width=32, heads=2, context=64)
SMALL = Adapter(rank=4, alpha=8)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent") / "model"
    models.save(models.create(SHAPE, 40, 0), folder)
    return folder


def rows(kind: Any) -> list[Tree]:
    """Prompts whose good answer holds 5 and whose bad one holds 6; for sft the good answer alone."""

    def answer(token: int, i: int) -> Branch:
        return Branch((10 + i % 13, token, 1), (True,) * 3)

    found = [
        Tree((10 + i % 30, 11 + i // 30), (answer(5, i), answer(6, i)), (0, 1), None, f"row{i}")
        for i in range(72)
    ]
    return [t._replace(branches=t.branches[:1], ranks=(0,)) for t in found] if kind is sft else found


def train(
    parent: Path,
    root: Path,
    kind: Any,
    adapter: Adapter | None = SMALL,
    step: int | None = None,
    **settings: Any,
) -> Path:
    stage = Stage(
        name="stage",
        objective={},
        data=(),
        epochs=2,
        batch_rows=12,
        optim=Optim(lr=0.01),
        seed=3,
        adapter=adapter,
    )
    display = StopsAt(step) if step is not None else StageProgress("stage", stream=StringIO(), terminal=False)
    runs = Runs(root)
    with start(runs, "stage", "k", {}, RunOptions(watch=lambda _: display, **settings)) as run:
        model = train_stage(
            stage, kind, kind.Spec(), rows(kind), run, parent=parent, reference=FrozenPolicy("parent", parent)
        )
        checkpoints.save_checkpoint(model, runs.part("k"), adapter=adapter, parent=parent)
        return runs.finish("k")


def curve(folder: Path) -> list[dict[str, Any]]:
    return [row for row in progress.read_log(folder.parent / "ledger.jsonl") if "loss" in row]


@pytest.mark.parametrize("kind", [sft, reward, dpo], ids=["sft", "reward", "dpo"])
def test_an_adapter_learns_and_only_it_is_kept(kind: Any, parent: Path, tmp_path: Path) -> None:
    folder = train(parent, tmp_path, kind)
    losses = [row["loss"] for row in curve(folder)]
    assert losses[-1] < 0.95 * losses[0]
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert all(".lora_" in n or n == "base_model.model.score.weight" for n in names)
    assert not (folder / "model.safetensors").exists()
    assert checkpoints.checkpoint_info(folder).reward == (kind is reward)


def test_dpo_with_an_adapter_starts_where_its_reference_is(parent: Path, tmp_path: Path) -> None:
    first = curve(train(parent, tmp_path, dpo, dtype="fp32"))[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", [sft, reward, dpo], ids=["sft", "reward", "dpo"])
def test_an_interrupted_adapter_ends_bit_identical_and_its_checkpoint_holds_no_frozen_weight(
    kind: Any, parent: Path, tmp_path: Path
) -> None:
    whole = train(parent, tmp_path / "whole", kind)
    for step in (2, 4):
        with pytest.raises(Interrupted):
            train(parent, tmp_path / "cut", kind, step=step)
        with safe_open(tmp_path / "cut" / "k" / "checkpoint.safetensors", "pt") as file:
            names = [n.split(".", 1)[1] for n in list(file.keys()) if n != "rng"]
        assert all(".lora_" in n or n.startswith("score.weight") for n in names)
    resumed = train(parent, tmp_path / "cut", kind)
    assert (resumed / "adapter_model.safetensors").read_bytes() == (
        whole / "adapter_model.safetensors"
    ).read_bytes()


def test_a_stage_goes_on_from_an_adapter_as_from_whole_weights(parent: Path, tmp_path: Path) -> None:
    first = train(parent, tmp_path / "first", sft)
    models.save(models.load(first), tmp_path / "merged")
    found = [
        train(p, tmp_path / n, dpo, adapter=None, dtype="fp32")
        for p, n in ((first, "a"), (tmp_path / "merged", "b"))
    ]
    assert curve(found[0])[-1]["loss"] == curve(found[1])[-1]["loss"]
    assert (found[0] / "model.safetensors").read_bytes() == (found[1] / "model.safetensors").read_bytes()


def test_a_reward_model_on_a_reward_model_goes_on_with_its_head(parent: Path, tmp_path: Path) -> None:
    first = train(parent, tmp_path / "a", reward, adapter=None)
    second = train(first, tmp_path / "b", reward, adapter=None)
    fresh = curve(train(parent, tmp_path / "c", reward, adapter=None))
    assert curve(second)[0]["loss"] == pytest.approx(curve(first)[-1]["loss"], abs=0.1)
    assert curve(second)[0]["loss"] < fresh[0]["loss"] - 0.2
    heads = [models.load_reward(f).score.weight for f in (first, second)]
    assert torch.nn.functional.cosine_similarity(*heads) > 0.9  # drawn anew it would be about 0 +- 0.18


def test_a_frozen_weight_costs_no_gradient_of_its_own() -> None:
    model, batch = models.create(SHAPE, 40, 0), collate(rows(sft)[:3])
    before = training_flops(model, head=True)(batch)
    adapters.attach(model, SMALL, 0)
    after = training_flops(model, head=True)(batch)
    tokens, scored = batch.tokens_T.numel(), batch.scored_C.numel()
    mlp = -(-32 * 8 // 3 // 16) * 16
    frozen = 2 * (4 * 32 * 32 + 3 * 32 * mlp)  # 2 layers: 4 maps of attention, 3 of the MLP
    drawn = 2 * 4 * (4 * (32 + 32) + 3 * (32 + mlp))  # rank 4: A and B of each
    assert after - before == pytest.approx(tokens * (6 * drawn - 2 * frozen) - scored * 2 * 40 * 32)

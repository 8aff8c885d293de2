"""Whole stages on real modules: pretrain, sft, reward, dpo; each resumed when it was interrupted."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from demeanor.core import hardware, registry
from demeanor.core.errors import CheckpointError, DataError
from demeanor.data.trees import Branch, Tree, packed
from demeanor.model import checkpoints as models
from demeanor.stack.schema import ModelShape, Optim, Scratch, Source, Stage
from demeanor.training import progress
from demeanor.training.progress import StageProgress
from demeanor.training.resume import Interrupted
from demeanor.training.runs import Runs
from demeanor.training.stage import FrozenPolicy, RunOptions, pretrain, start, train_stage

dpo, reward, sft = (registry.entry("demeanor.objectives", kind) for kind in ("dpo", "reward", "sft"))

VOCABULARY, GOOD, BAD = 40, 5, 6
BASE = Scratch(
    model=ModelShape(layers=2, width=32, heads=2, context=64),
    data=(Source(source="unused"),),
    tokens=8000,
    row_tokens=32,
    batch_rows=8,
    optim=Optim(lr=0.01),
)


def documents() -> list[list[int]]:
    """Counting upwards from anywhere: the next token is always known."""
    draw = random.Random(0)
    return [[10 + (start + i) % 30 for i in range(draw.randrange(5, 40))] for start in range(200)]


def instructions(count: int = 60) -> list[Tree]:
    """A prompt of two tokens answered by their first, then the end."""
    return [
        Tree(
            (10 + i % 30, 10 + (7 * i) % 29), (Branch((10 + i % 30, 1), (True, True)),), (0,), None, f"row{i}"
        )
        for i in range(count)
    ]


def preferences(count: int = 120) -> list[Tree]:
    """Prompts whose good answer holds GOOD and whose bad one holds BAD."""

    def answer(token: int, i: int) -> Branch:
        return Branch((10 + i % 13, token, 1), (True,) * 3)

    return [
        Tree((10 + i % 30, 11 + i // 30), (answer(GOOD, i), answer(BAD, i)), (0, 1), None, f"pair{i}")
        for i in range(count)
    ]


def watch(stage: str) -> StageProgress:
    return StageProgress(stage, stream=StringIO(), terminal=False)


class StopsAt(StageProgress):
    """Somebody presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        super().__init__("stops", stream=StringIO(), terminal=False)
        self.at = step

    def update(self, step: int, loss: float, tokens: int, flops: float) -> None:
        super().update(step, loss, tokens, flops)
        if step == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs, record = Runs(tmp_path_factory.mktemp("runs")), {"spec": BASE.model_dump(mode="json")}
    with start(runs, "base", "base", record, RunOptions(watch=watch)) as run:
        rows = list(packed(documents(), BASE.row_tokens, BASE.tokens, BASE.seed))
        models.save(pretrain(BASE, VOCABULARY, rows, run), runs.part("base"))
        return runs.finish("base")


def train(base: Path, root: Path, kind: Any, trees: Callable[[], Sequence[Tree]], **settings: Any) -> Path:
    stage = Stage(
        name=kind.loss.__name__,
        objective={},
        data=(),
        epochs=settings.pop("epochs", 2),
        batch_rows=12,
        optim=Optim(lr=0.003),
        seed=3,
        max_tokens=settings.pop("max_tokens", None),
    )
    runs = settings.pop("runs", Runs(root))
    with start(runs, stage.name, "k", {}, RunOptions(**{"watch": watch, **settings})) as run:
        model = train_stage(
            stage, kind, kind.Spec(), trees(), run, parent=base, reference=FrozenPolicy("base", base)
        )
        models.save_checkpoint(model, runs.part("k"))
        return runs.finish("k")


def rows(folder: Path) -> list[dict[str, Any]]:
    return progress.read_log(folder.parent / "ledger.jsonl")


def test_a_base_learns_to_count_and_is_a_whole_folder(base: Path) -> None:
    curve = [row["loss"] for row in rows(base)]
    assert curve[0] == pytest.approx(math.log(VOCABULARY), rel=0.1)  # random weights know nothing
    assert curve[-1] < curve[0] / 2
    assert {p.name for p in base.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "demeanor.json",
    }
    assert not (base.parent / "checkpoint.safetensors").exists()


def test_sft_lowers_the_held_out_loss_and_writes_its_interval(base: Path, tmp_path: Path) -> None:
    folder = train(base, tmp_path, sft, instructions, epochs=8)
    looks = [row for row in rows(folder) if "eval_loss" in row]
    assert looks[0]["step"] == 0
    assert len(looks) == 6
    assert looks[-1]["eval_loss"] < looks[0]["eval_loss"]
    assert looks[-1]["eval_rows"] == 6
    assert looks[-1]["eval_loss/low"] <= looks[-1]["eval_loss"] <= looks[-1]["eval_loss/high"]
    models.load(folder)


def test_a_reward_model_ranks_held_out_pairs_with_an_interval(base: Path, tmp_path: Path) -> None:
    folder = train(base, tmp_path, reward, preferences, epochs=4)
    last = [row for row in rows(folder) if "eval_loss" in row][-1]
    accuracy = next(
        name for name in last if name.startswith("eval_") and name.endswith(("accuracy", "accuracies"))
    )
    assert last[accuracy] == 1.0
    assert last[f"{accuracy}/low"] == pytest.approx(12 / (12 + 1.959964**2))  # Wilson's bound for 12 of 12
    models.load_reward(folder)


def test_dpo_starts_at_log_2_because_policy_and_reference_are_the_same(base: Path, tmp_path: Path) -> None:
    folder = train(base, tmp_path, dpo, preferences, dtype="fp32")
    curve = [row["loss"] for row in rows(folder) if "loss" in row]
    assert curve[0] == pytest.approx(math.log(2), abs=1e-5)
    assert curve[-1] < curve[0]
    assert len(list((folder.parent.parent / "references").glob("*.safetensors"))) == 1


def test_another_run_on_the_same_rows_and_reference_finds_its_log_probs(base: Path, tmp_path: Path) -> None:
    folder = train(base, tmp_path, dpo, preferences, dtype="fp32")
    (kept,) = (tmp_path / "references").glob("*.safetensors")
    stamp = kept.stat().st_mtime_ns
    shutil.rmtree(folder.parent)
    train(base, tmp_path, dpo, preferences, dtype="fp32", checkpoint_every_s=1.0)
    assert [p.stat().st_mtime_ns for p in kept.parent.glob("*.safetensors")] == [stamp]


@pytest.mark.parametrize("kind", [sft, reward, dpo], ids=["sft", "reward", "dpo"])
def test_ctrl_c_in_a_stage_then_the_same_command_gives_the_same_file(
    kind: Any, base: Path, tmp_path: Path
) -> None:
    trees = instructions if kind is sft else preferences
    whole = train(base, tmp_path / "whole", kind, trees)
    for step in (3, 5):
        with pytest.raises(Interrupted) as stopped:
            train(base, tmp_path / "cut", kind, trees, watch=lambda stage, step=step: StopsAt(step))
        assert stopped.value.exit_code == 130
        assert not Runs(tmp_path / "cut").complete("k")
    resumed = train(base, tmp_path / "cut", kind, trees)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def recorded(root: Path) -> str:
    return str(json.loads((root / "k" / "record.json").read_text())["dtype"])


def test_a_run_keeps_its_number_format_whatever_is_measured_later(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun in bf16, resumed on a machine that would choose fp32: the same file as in one go, and the same record."""
    whole = train(base, tmp_path / "whole", sft, instructions, dtype="bf16")
    plain = train(base, tmp_path / "plain", sft, instructions, dtype="fp32")
    assert (whole / "model.safetensors").read_bytes() != (plain / "model.safetensors").read_bytes()
    monkeypatch.setattr(hardware, "training_dtype", lambda shapes: torch.bfloat16)
    cut = tmp_path / "cut"
    with pytest.raises(Interrupted):
        train(base, cut, sft, instructions, watch=lambda stage: StopsAt(3))
    assert recorded(cut) == "bf16"
    monkeypatch.setattr(hardware, "training_dtype", lambda shapes: None)
    with pytest.raises(CheckpointError, match=r"--dtype fp32, but this interrupted run began in bf16"):
        train(base, cut, sft, instructions, dtype="fp32")
    resumed = train(base, cut, sft, instructions)
    assert recorded(cut) == "bf16"
    record, weights = (
        json.loads((resumed / "demeanor.json").read_text()),
        (resumed / "model.safetensors").read_bytes(),
    )
    assert record["dtype"] == "bf16"
    assert record["sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    chosen = train(base, tmp_path / "chosen", sft, instructions)
    assert recorded(tmp_path / "chosen") == "fp32"
    assert (chosen / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_killed_while_it_wrote_the_folder_it_writes_it_again_without_training(
    base: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path, sft, instructions, runs=_Torn(tmp_path))
    assert not Runs(tmp_path).complete("k")
    before = rows(tmp_path / "k" / "model")
    folder = train(base, tmp_path, sft, instructions)
    assert rows(folder) == before
    assert not [p for p in folder.iterdir() if p.name == "torn"]


class _Torn(Runs):
    """The process dies between the weights and the last rename."""

    def finish(self, key: str) -> Path:
        (self.folder(key) / "model.part" / "torn").write_text("x")
        raise KeyboardInterrupt


def test_rows_without_loss_are_one_error_and_the_run_is_free_again(base: Path, tmp_path: Path) -> None:
    silent = [
        t._replace(branches=tuple(b._replace(trained=(False,) * len(b.tokens)) for b in t.branches))
        for t in instructions()
    ]
    with pytest.raises(DataError, match="sft: no token carries loss"):
        train(base, tmp_path, sft, lambda: silent)
    with pytest.raises(DataError, match="sft: none of 60 rows fits in 2 tokens"):
        train(base, tmp_path, sft, instructions, max_tokens=2)
    with pytest.raises(DataError, match="sft: none of 60 rows fits in 64 tokens"):
        train(
            base, tmp_path, sft, lambda: [t._replace(prompt=t.prompt * 40) for t in instructions()]
        )  # the model's context is 64
    train(base, tmp_path, sft, instructions)


def test_the_coverage_is_said_before_the_first_step(base: Path, tmp_path: Path) -> None:
    said = StringIO()
    long = [t._replace(prompt=t.prompt * 40) for t in instructions(3)]
    train(
        base,
        tmp_path,
        sft,
        lambda: [*instructions(), *long],
        watch=lambda stage: StageProgress(stage, stream=said, terminal=False),
    )
    assert (
        said.getvalue().splitlines()[0]
        == "sft: 60 rows, 180 tokens, 120 (67%) carry loss; 3 longer rows left out; 6 rows held out"
    )


def test_training_leaves_the_global_random_numbers_of_torch_alone(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train(base, tmp_path, sft, instructions)
    assert torch.equal(torch.rand(3), wanted)

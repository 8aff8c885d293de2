"""The memory of a training step: the estimate against the peak of a process that trains, and what is said of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from demeanor.core import hardware, registry
from demeanor.core.errors import DataError
from demeanor.data.trees import Branch, Tree
from demeanor.model import checkpoints
from demeanor.stack.schema import ModelShape, Stage
from demeanor.stack.stack import OBJECTIVES
from demeanor.training import plan
from demeanor.training.memory import MicroBatch, estimate, largest, warning
from demeanor.training.stage import train_stage

SHAPE = ModelShape(layers=6, width=384, heads=6, kv_heads=2, mlp_width=1024, context=1024)
VOCABULARY = 20000

TRAIN = """
import sys
from demeanor.core import hardware
hardware.prepare(2)
import resource
from functools import partial
import torch
from demeanor.data.trees import collate
from demeanor.model import adapters, checkpoints
from demeanor.model.heads import policy_outputs
from demeanor.objectives.sft import NoSettings, sft
from demeanor.stack.schema import Adapter, Optim
from demeanor.training.loop import accumulate, running
from demeanor.training.optimizer import optimizer
from tests.training.test_train_memory import SHAPE, VOCABULARY, rows
model = checkpoints.create(SHAPE, VOCABULARY, 0)
if "adapter" in sys.argv:
    adapters.attach(model, Adapter(rank=16), 0)
model.recompute = "recompute" in sys.argv
forward = running(model, policy_outputs, torch.bfloat16 if "bf16" in sys.argv else None)
step = optimizer(model, Optim())
for _ in range(2):
    accumulate(model, forward, partial(sft, NoSettings()), [collate(rows())], 1.0)
    step.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def rows() -> list[Tree]:
    """Eight rows of 350 to 650 tokens."""
    lengths = (150, 200, 250, 300, 350, 400, 450, 300)
    return [Tree(tuple(range(3, 203)), (Branch(tuple(range(5, 5 + n)), (True,) * n),), (0,)) for n in lengths]


@pytest.mark.experiment
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux")
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recompute"])
@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "adapter"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(
    bf16: bool, adapter: bool, recompute: bool
) -> None:
    asked = ["bf16"] * bf16 + ["adapter"] * adapter + ["recompute"] * recompute
    found = subprocess.run(
        [sys.executable, "-c", TRAIN, *asked],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        cwd=Path(__file__).parents[2],
    )
    peak = int(found.stdout)
    guessed = estimate(
        checkpoints.shape_config(SHAPE, VOCABULARY),
        largest(rows(), [[list(range(8))]]),
        rank=16 if adapter else 0,
        bf16=bf16,
        recompute=recompute,
    )
    assert 0.8 * peak < guessed.total < 1.2 * peak, f"{guessed} against {peak / 1e6:.0f} MB"


def test_the_terms_of_an_estimate() -> None:
    config = checkpoints.shape_config(SHAPE, VOCABULARY)
    micro = MicroBatch(4000, 2400, 1_000_000)
    whole, narrow, recomputed, adapted = (
        estimate(config, micro),
        estimate(config, micro, bf16=True),
        estimate(config, micro, recompute=True),
        estimate(config, micro, rank=16),
    )
    count = sum(p.numel() for p in checkpoints.create(SHAPE, VOCABULARY, 0).parameters())
    assert (whole.weights, whole.gradients, whole.optimizer) == (4 * count, 4 * count, 8 * count)
    assert narrow.activations < whole.activations / 2
    assert recomputed.activations < whole.activations / 3
    assert adapted.gradients < whole.gradients / 10
    assert estimate(config, micro, head=False).logits == 0
    flat, twice = (estimate(config, MicroBatch(n, n // 2, 0)).activations for n in (4000, 8000))
    assert twice == 2 * flat
    assert flat < whole.activations  # whose attention keeps its probabilities


def test_the_largest_micro_batch_of_a_schedule() -> None:
    trees = rows()
    found = largest(trees, [[[0, 1], [2]], [[6]]])
    assert found.tokens == trees[0].num_tokens + trees[1].num_tokens
    assert found.scored == 350


def test_a_step_that_does_not_fit_is_said_with_what_makes_it_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate(checkpoints.shape_config(SHAPE, VOCABULARY), MicroBatch(4000, 2400, 1_000_000))
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 8 << 30)
    assert warning(found, rank=0, recompute=False) is None
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 1 << 30)
    said = warning(found, rank=0, recompute=False)
    assert said is not None
    assert said.startswith("WARNING: a step needs about 1.")
    assert "this machine has 1.1 GB" in said
    assert "adapter: {rank: 16}" in said
    assert "recompute: true" in said
    said = warning(found, rank=8, recompute=True)
    assert said is not None
    assert "adapter:" not in said
    assert "recompute" not in said
    assert "max_tokens" in said
    monkeypatch.setattr(hardware, "memory_bytes", lambda: None)
    assert warning(found, rank=0, recompute=False) is None


def test_explain_says_which_training_is_too_much_for_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage.model_validate(
        {"name": "sft", "objective": {"kind": "sft"}, "data": [{"source": "x.jsonl"}]}
    )
    config = checkpoints.shape_config(SHAPE, VOCABULARY)
    assert "too much" not in plan._memory(config, stage, [300.0], head=True)
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 400 << 20)
    assert plan._memory(config, stage, [300.0], head=True).count("recomputing (too much here)") == 2


def test_rows_that_do_not_fit_are_said_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a billion weights, 30 seconds and 5 GB earlier."""
    checkpoints.save(checkpoints.create(ModelShape(layers=1, width=16, heads=2, context=8), 31, 0), tmp_path)
    monkeypatch.setattr(checkpoints, "policy", lambda folder: pytest.fail("the weights were read"))
    settings = Stage.model_validate(
        {"name": "sft", "objective": {"kind": "sft"}, "data": [{"source": "x.jsonl"}]}
    )
    objective = registry.entry(OBJECTIVES, "sft")
    with pytest.raises(DataError, match="none of 1 rows fits in 8 tokens"):
        train_stage(
            settings,
            objective,
            None,
            [Tree(tuple(range(20)), (Branch((8, 9), (True, True)),))],
            SimpleNamespace(options=None),  # type: ignore[arg-type]
            parent=tmp_path,
            reference=None,
        )

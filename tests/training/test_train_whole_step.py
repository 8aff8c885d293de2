"""Objectives that judge a whole step at once, weights that follow: exact through micro-batches, checkpoints and kills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import OPTIM, Rounds, Seconds, Tiny, loss, outputs, quiet, rows

from demeanor.core.errors import CheckpointError
from demeanor.data.trees import collate
from demeanor.model.tensors import Loss, Outputs, TokenBatch, branch_sums, concatenate
from demeanor.training.ema import EMA
from demeanor.training.loop import accumulate, fit, running
from demeanor.training.resume import Interrupted
from tests.conftest import each


def sorted_gap(found: Outputs, batch: TokenBatch) -> Loss:
    """Not a sum over rows: how far each row's log-prob is from the step's mean, sorted and weighted by place."""
    assert found.logprobs_C is not None
    sums_B = branch_sums(found.logprobs_C, batch).sort().values
    place_B = torch.arange(1.0, len(sums_B) + 1)
    gap_B = (sums_B - sums_B.mean()) * place_B
    count = torch.tensor(float(len(sums_B)))
    return Loss(gap_B.square().sum() - sums_B.sum(), count, {"gap": (gap_B.detach().abs().sum(), count)})


def gradient(parts: list[list[int]], *, whole_step: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    trees, model = rows(), Tiny()
    found = accumulate(
        model,
        running(model, outputs, None),
        sorted_gap,
        [collate([trees[i] for i in part]) for part in parts],
        None,
        whole_step=whole_step,
    )
    return found, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "parts",
    [
        [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]],
        [[i] for i in range(12)],
        [[11, 3], [0, 1, 2], [4, 5, 6, 7, 8, 9, 10]],
    ],
)
def test_a_loss_that_sees_the_whole_step_does_not_feel_micro_batches(parts: list[list[int]]) -> None:
    whole, wanted = gradient([list(range(12))], whole_step=True)
    found, got = gradient(parts, whole_step=True)
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)
    assert found.metrics == pytest.approx(whole.metrics, rel=1e-6)
    for name in wanted:
        assert float((got[name] - wanted[name]).abs().max()) < 1e-5 * float(wanted[name].abs().max())


def test_without_it_micro_batches_would_change_the_gradient() -> None:
    _, wanted = gradient([list(range(12))], whole_step=False)
    _, got = gradient([list(range(6)), list(range(6, 12))], whole_step=False)
    assert any(float((wanted[n] - got[n]).abs().max()) > 1e-2 for n in wanted)


def test_batches_joined_are_the_batch_of_all_their_trees() -> None:
    trees = rows()
    reference = [[float(i)] * (len(t.branches[0].tokens) - 1) for i, t in enumerate(trees)]
    parts = [collate(trees[a:b], reference=reference[a:b]) for a, b in ((0, 3), (3, 3), (3, 10))]
    joined, wanted = concatenate(parts), collate(trees[:10], reference=reference[:10])
    for name, a, b in zip(each(wanted._fields), joined, wanted, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


# ---- shadows ----


def train(
    folder: Path,
    *,
    optim: Any = OPTIM,
    moving: EMA | None = None,
    model: Tiny | None = None,
    steps: int = 10,
    judge: Any = loss,
    clock: Any = None,
) -> Tiny:
    model = model or Tiny()
    trees = rows()
    fit(
        model,
        outputs,
        judge,
        trees,
        Rounds(trees, steps),
        optim,
        out=folder,
        watch=quiet(),
        read_last=False,
        moving=moving,
        clock=clock or Seconds(),
        checkpoint_every_s=2.0,
    )
    return model


def test_an_average_of_the_steps_is_what_is_kept(tmp_path: Path) -> None:
    """The slow twin: after each step, average = 0.8 average + 0.2 weights, begun at the first weights."""
    twin, average = Tiny(), {n: p.detach().clone() for n, p in Tiny().named_parameters()}
    for steps in range(1, 11):
        twin = Tiny()
        stopped = OPTIM.model_copy(update={"schedule": "constant", "warmup": 0.0})
        train(tmp_path / f"{steps}", optim=stopped, model=twin, steps=steps)
        average = {n: 0.8 * average[n] + 0.2 * p.detach() for n, p in twin.named_parameters()}
    kept = train(tmp_path / "ema", optim=stopped.model_copy(update={"ema": 0.8}))
    for name, weight in each(kept.named_parameters()):
        torch.testing.assert_close(weight.detach(), average[name], rtol=0, atol=1e-6)
        assert not torch.equal(weight, dict(twin.named_parameters())[name])


def test_a_shadow_is_worn_and_taken_off_bit_for_bit() -> None:
    model = Tiny()
    shadow = EMA(Tiny(1), alpha=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    with shadow.swapped_into(model):
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), shadow.weights.values()))
    assert all(torch.equal(p, w) for p, w in zip(each(model.parameters()), before, strict=True))


def against_reference(found: Outputs, batch: TokenBatch) -> Loss:
    assert found.logprobs_C is not None
    assert batch.reference_C is not None
    count = torch.tensor(float(found.logprobs_C.numel()))
    gap = (found.logprobs_C - batch.reference_C).square() - found.logprobs_C
    return Loss(
        gap.sum(), count, {"moved": ((found.logprobs_C - batch.reference_C).detach().abs().sum(), count)}
    )


def test_a_moving_reference_begins_as_the_policy_and_follows_every_so_many_steps(tmp_path: Path) -> None:
    from demeanor.training import progress

    model = Tiny()
    train(tmp_path, model=model, moving=EMA(model, alpha=1.0, every=3), judge=against_reference)
    moved = [row["moved"] for row in progress.read_log(tmp_path / "ledger.jsonl")]
    assert [m == pytest.approx(0.0, abs=1e-6) for m in moved] == [i % 3 == 0 for i in range(10)]


@pytest.mark.parametrize("kind", ["ema", "moving"])
def test_a_run_that_stops_between_goes_on_to_the_same_weights(tmp_path: Path, kind: str) -> None:
    class Stopping(Seconds):
        def __call__(self) -> float:
            import signal

            self.now_s += 1.0
            if self.now_s == 9:
                signal.raise_signal(signal.SIGINT)
            return self.now_s

    def once(folder: Path, clock: Any) -> Tiny:
        model = Tiny()
        moving = EMA(model, alpha=0.3, every=2) if kind == "moving" else None
        optim = OPTIM.model_copy(update={"ema": 0.7}) if kind == "ema" else OPTIM
        return train(
            folder,
            model=model,
            moving=moving,
            optim=optim,
            clock=clock,
            judge=against_reference if moving else loss,
        )

    whole = once(tmp_path / "whole", None)
    with pytest.raises(Interrupted):
        once(tmp_path / "cut", Stopping())
    resumed = once(tmp_path / "cut", None)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


def test_a_moving_reference_of_another_shape_is_refused() -> None:
    with pytest.raises(CheckpointError, match="moving reference"):
        EMA(Tiny(), alpha=1.0, start={"embedding": torch.zeros(2, 2)})

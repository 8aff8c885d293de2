"""The loop: gradients that do not depend on micro-batching, AdamW as torch's, evaluation, errors."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import OPTIM, Rounds, Seconds, Tiny, loss, outputs, quiet, rows

from demeanor.core.errors import CheckpointError, DemeanorError
from demeanor.data.trees import Tree, collate
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.stack.schema import Optim
from demeanor.training import progress
from demeanor.training.loop import Gradient, accumulate, due, fit, mean_metrics, running
from demeanor.training.optimizer import learning_rate
from demeanor.training.resume import Interrupted, stop_requests
from tests.conftest import each


def run(
    folder: Path, trees: Sequence[Tree], *, steps: int = 10, optim: Optim = OPTIM, **settings: Any
) -> Tiny:
    model = settings.pop("model", None) or Tiny()
    settings = {"loss": loss, "clock": Seconds(), "schedule": Rounds(trees, steps), **settings}
    fit(
        model,
        outputs,
        settings.pop("loss"),
        trees,
        settings.pop("schedule"),
        optim,
        out=folder,
        watch=quiet(),
        read_last=False,
        **settings,
    )
    return model


def gradients(
    parts: Sequence[Sequence[int]], clip_norm: float | None = None
) -> tuple[Gradient, dict[str, torch.Tensor]]:
    trees, model = rows(), Tiny()
    measured = accumulate(
        model,
        running(model, outputs, None),
        loss,
        [collate([trees[i] for i in part]) for part in parts],
        clip_norm,
    )
    return measured, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# ---- the gradient ----


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_micro_batching_does_not_change_the_gradient(clip_norm: float | None) -> None:
    whole, wanted = gradients([range(12)], clip_norm)
    for parts in ([range(6), range(6, 12)], [[i] for i in range(12)], [[11], range(1, 11), [0]]):
        measured, got = gradients(parts, clip_norm)
        assert max(float((wanted[name] - got[name]).abs().max()) for name in wanted) < 1e-6
        assert measured.loss == pytest.approx(whole.loss, abs=1e-6)
        assert measured.norm == pytest.approx(whole.norm, abs=1e-6)
        assert measured.metrics == pytest.approx(whole.metrics)
        assert (measured.counted, measured.tokens) == (whole.counted, whole.tokens)


def test_the_gradient_is_that_of_the_mean_over_everything_that_counts() -> None:
    trees, model = rows(), Tiny()
    batch = collate(trees[:5])
    found = loss(outputs(model, batch), batch)
    wanted = torch.autograd.grad(found.total / found.count, list(model.parameters()))
    _, got = gradients([[0, 1], [2, 3, 4]])
    for a, b in zip(each(wanted), got.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_clipping_leaves_a_small_gradient_alone_and_gives_a_large_one_the_asked_norm() -> None:
    free, wanted = gradients([range(8)])
    same, got = gradients([range(8)], clip_norm=free.norm * 2)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert same.norm == free.norm
    clipped, got = gradients([range(8)], clip_norm=free.norm / 4)
    assert clipped.norm == free.norm  # what is reported is the norm before clipping
    assert float(torch.cat([g.flatten() for g in got.values()]).norm()) == pytest.approx(
        free.norm / 4, rel=1e-5
    )


def test_a_step_in_which_nothing_carries_loss_has_a_zero_gradient() -> None:
    model, batch = Tiny(), collate(rows(2))
    silent = lambda found, b: Loss(found.logprobs_C.sum() * 0, torch.tensor(0), {})  # noqa: E731
    measured = accumulate(model, running(model, outputs, None), silent, [batch], 1.0)
    assert measured.finite
    assert measured.loss == 0.0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_metrics_are_sums_over_counts_and_one_that_counted_nothing_is_left_out() -> None:
    one = Loss(
        torch.tensor(0.0),
        torch.tensor(1),
        {"a": (torch.tensor(3.0), torch.tensor(4)), "b": (torch.tensor(0.0), torch.tensor(0))},
    )
    two = Loss(torch.tensor(0.0), torch.tensor(1), {"a": (torch.tensor(2.0), torch.tensor(1))})
    assert mean_metrics([one, two]) == {"a": (3 + 2) / (4 + 1)}
    assert mean_metrics([]) == {}


# ---- the loop ----


def test_weights_after_a_run_are_those_of_torch_s_own_adamw_in_a_plain_loop(tmp_path: Path) -> None:
    trees = rows()
    model = run(tmp_path, trees, steps=12)
    twin = Tiny()
    groups = [
        {"params": [twin.embedding, twin.mix], "weight_decay": OPTIM.weight_decay},
        {"params": [twin.norm], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=OPTIM.lr, betas=OPTIM.betas, foreach=False)
    for step in range(12):
        batch = collate([trees[i] for part in Rounds(trees, 12)[step] for i in part])
        found = loss(outputs(twin, batch), batch)
        optimizer.zero_grad()
        (found.total / found.count).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), OPTIM.clip_norm or 0.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(OPTIM, step, 12)
        optimizer.step()
    for ours, torchs in zip(each(model.parameters()), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=0, atol=2e-6)


def test_the_ledger_has_a_row_for_each_step_with_what_a_person_asks_for(tmp_path: Path) -> None:
    run(tmp_path, rows(), steps=4)
    written = progress.read_log(tmp_path / "ledger.jsonl")
    assert [row["step"] for row in written] == [1, 2, 3, 4]
    assert set(written[0]) == {"step", "loss", "lr", "grad_norm", "tokens", "count", "likely", "seconds"}
    assert [row["lr"] for row in written] == [learning_rate(OPTIM, step, 4) for step in range(4)]
    trees = rows()
    assert written[0]["count"] == sum(len(t.branches[0].tokens) - 1 for t in trees[:8])


def test_evaluation_comes_first_and_after_each_fifth_behind_a_checkpoint_and_changes_nothing(
    tmp_path: Path,
) -> None:
    seen = []

    def evaluate(model: torch.nn.Module, step: int) -> dict[str, float]:
        assert not torch.is_grad_enabled()
        state = tmp_path / "with" / "checkpoint.safetensors"
        seen.append((step, state.stat().st_mtime_ns if step else 0))
        torch.rand(7)
        return {"loss": 0.5}

    torch.manual_seed(0)
    plain, drawn = run(tmp_path / "without", rows(), steps=10), torch.rand(1)
    torch.manual_seed(0)
    looked = run(tmp_path / "with", rows(), steps=10, evaluate=evaluate, checkpoint_every_s=1e9)
    assert torch.equal(torch.rand(1), drawn)
    assert [step for step, _ in seen] == [0, 2, 4, 6, 8, 10]
    assert len({stamp for _, stamp in seen}) == 6
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), looked.parameters()))
    assert next(
        row for row in progress.read_log(tmp_path / "with" / "ledger.jsonl") if "loss" not in row
    ) == {
        "step": 0,
        "eval_loss": 0.5,
    }


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 100])
def test_the_last_step_is_always_evaluated_and_never_more_than_five_are(steps: int) -> None:
    marks = [done for done in range(1, steps + 1) if due(done, steps)]
    assert marks[-1] == steps
    assert len(marks) == min(5, steps)


def test_a_run_killed_while_it_evaluated_evaluates_again_and_once(tmp_path: Path) -> None:
    def killed(model: torch.nn.Module, step: int) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, rows(), steps=5, evaluate=killed)
    for _ in range(2):
        run(tmp_path, rows(), steps=5, evaluate=lambda model, step: {"step_seen": step})
        evaluated = [
            row["eval_step_seen"]
            for row in progress.read_log(tmp_path / "ledger.jsonl")
            if "eval_step_seen" in row
        ]
        assert evaluated == [0, 1, 2, 3, 4, 5]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path, rows())
    calls = []
    again = run(tmp_path, rows(), model=Tiny(seed=9), loss=lambda *a: calls.append(a))
    assert not calls
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_names_step_and_row_and_keeps_the_last_checkpoint(
    bad: float, tmp_path: Path
) -> None:
    trees = rows()
    target = collate([trees[13]]).targets_C

    def poisoned(found: Outputs, batch: TokenBatch) -> Loss:
        fine = loss(found, batch)
        has_it = any(
            torch.equal(batch.targets_C[i : i + len(target)], target)
            for i in range(len(batch.targets_C) - len(target) + 1)
        )
        return Loss(fine.total + bad, fine.count, {}) if has_it else fine

    with pytest.raises(
        DemeanorError,
        match=r"step 2 of 10: the loss or its gradient is not finite; rows 13 \(row13\)\. .*is kept",
    ):
        run(tmp_path, trees, loss=poisoned, checkpoint_every_s=0.0)
    assert [row["step"] for row in progress.read_log(tmp_path / "ledger.jsonl")] == [1]
    resumed = run(tmp_path, trees)
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.parameters(), run(tmp_path / "other", trees).parameters())
    )


def test_a_gradient_that_is_not_finite_is_an_error_even_if_the_loss_is(tmp_path: Path) -> None:
    def steep(found: Outputs, batch: TokenBatch) -> Loss:
        fine = loss(found, batch)
        return Loss(
            fine.total + (found.logprobs_C * 0).abs().sqrt().sum(), fine.count, {}
        )  # sqrt has no slope at 0

    with pytest.raises(
        DemeanorError, match=r"step 1 of 10: .* rows 0 \(row0\), 1 .* and no checkpoint|step 1 of 10"
    ):
        run(tmp_path, rows(), loss=steep)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_bf16_autocast_reaches_the_model_but_never_the_objective() -> None:
    trees, model = rows(), Tiny()
    seen = []

    def record(found: Outputs, batch: TokenBatch) -> Loss:
        seen.append(torch.is_autocast_enabled("cpu"))
        return loss(found, batch)

    batch = collate(trees)
    exact = accumulate(model, running(model, outputs, None), record, [batch], None).loss
    rounded = accumulate(model, running(model, outputs, torch.bfloat16), record, [batch], None).loss
    assert seen == [False, False]  # the objective itself is always computed in fp32
    assert exact != rounded
    assert exact == pytest.approx(rounded, rel=0.02)


# ---- resuming, and stopping ----


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_stopped_and_resumed_with_either_optimiser_the_weights_are_the_same_bits(
    kind: str, tmp_path: Path
) -> None:
    trees, optim = rows(), OPTIM.model_copy(update={"kind": kind})
    whole = run(tmp_path / "whole", trees, optim=optim)
    calls = []

    def pressed(found: Outputs, batch: TokenBatch) -> Loss:
        calls.append(batch)
        if len(calls) == 7:  # in the fourth step
            signal.raise_signal(signal.SIGINT)
        return loss(found, batch)

    with pytest.raises(Interrupted, match="stopped after step 4 of 10"):
        run(tmp_path / "cut", trees, optim=optim, loss=pressed)
    resumed = run(tmp_path / "cut", trees, optim=optim, model=Tiny(seed=5))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


def test_a_checkpoint_of_other_settings_or_rows_is_refused(tmp_path: Path) -> None:
    run(tmp_path, rows())
    with pytest.raises(CheckpointError, match="saved by another run"):
        run(tmp_path, rows(), optim=OPTIM.model_copy(update={"lr": 0.02}))
    with pytest.raises(CheckpointError, match="saved by another run"):
        run(tmp_path, rows(23))


@pytest.mark.parametrize("content", [b"", b"x" * 100, "half"])
def test_a_file_that_is_no_checkpoint_is_one_clear_error(content: bytes | str, tmp_path: Path) -> None:
    run(tmp_path, rows())
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"not a training checkpoint .* delete it to begin again"):
        run(tmp_path, rows())


def test_signal_handlers_are_restored_after_a_run_and_after_a_failed_one(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(tmp_path, rows(), steps=1)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "failed", rows(), loss=lambda found, batch: 1 / 0)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_first_signal_waits_and_the_second_does_not() -> None:
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        with pytest.raises(Interrupted, match="stopped at once") as error:
            signal.raise_signal(signal.SIGTERM)
    assert error.value.exit_code == 143
    assert stop.obeyed(3, 9).exit_code == 130


def test_a_run_in_another_thread_leaves_the_signals_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def watched(found: Outputs, batch: TokenBatch) -> Loss:
        seen.append(signal.getsignal(signal.SIGINT) is before)
        return loss(found, batch)

    thread = threading.Thread(target=run, args=(tmp_path, rows()), kwargs={"steps": 2, "loss": watched})
    thread.start()
    thread.join()
    assert seen == [True] * 4

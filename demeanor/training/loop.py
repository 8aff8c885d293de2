"""The offline training loop, and the gradient of one optimizer step. Online stages step in online.py.

In: a model, a forward function, a loss, a schedule of micro-batches. The gradient is (sum of losses) / (sum
of counts) over micro-batches and processes, so accumulation, packing and the number of devices never change
it. A loss that is not a sum over trees is computed on the whole step: all micro-batches run without
gradients, the loss is taken of all outputs together, and each runs again for its share of the gradient.
Source: Gao et al. 2021, arXiv 2101.06983, section 3.2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from demeanor.core.errors import DemeanorError
from demeanor.data.trees import Tree, collate
from demeanor.model.tensors import Loss, Outputs, TokenBatch, concatenate
from demeanor.stack.schema import Optim
from demeanor.training import optimizer as optimizers
from demeanor.training import progress, resume
from demeanor.training.contention import Threads, same_bits
from demeanor.training.ema import EMA
from demeanor.training.optimizer import learning_rate
from demeanor.training.parallel import ALONE, ProcessGroup, settle, whole
from demeanor.training.progress import StageProgress, measured_peak, training_flops
from demeanor.training.resume import stop_requests
from demeanor.training.runs import CHECKPOINT, LEDGER, read_log

Forward = Callable[[TokenBatch], Outputs]
LossFn = Callable[[Outputs, TokenBatch], Loss]


class Gradient(NamedTuple):
    """One step: mean loss and metrics, gradient norm before clipping, the count in the mean, input tokens."""

    loss: float
    norm: float
    counted: float
    tokens: int
    metrics: dict[str, float]

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Mix(NamedTuple):
    """A second data line of a step: `weight` times its mean loss over all trained tokens of the step."""

    forward: Forward
    loss: LossFn
    batches: Sequence[TokenBatch]
    weight: float


def accumulate(
    model: nn.Module,
    forward: Forward,
    loss: LossFn,
    batches: Sequence[TokenBatch],
    clip_norm: float | None,
    *,
    whole_step: bool = False,
    group: ProcessGroup = ALONE,
    more: float = 0.0,
    mix: Mix | None = None,
) -> Gradient:
    """Fill every `.grad`; the cut into micro-batches does not change it, because division happens once, here.

    `whole_step`: the objective sees all micro-batches of all processes at once. Clipping equals torch's
    clip_grad_norm_. `more`: terms of the mean that are known to be 0 and were not computed. `mix`: the gradient
    of a second mean is added, divided by its own count.
    """
    model.zero_grad(set_to_none=True)
    if whole_step and (len(batches) > 1 or group.size > 1):
        losses = [_whole(forward, loss, batches, group)]
    else:
        losses = [_backward(loss(forward(batch), batch)) for batch in batches]
    if not losses:  # only the second data line trains
        nothing = torch.zeros((), device=next(model.parameters()).device)
        losses = [Loss(nothing, nothing, {})]
    tokens = sum(batch.tokens_T.numel() for batch in batches)
    total, count = torch.stack([x.total for x in losses]).sum(), torch.stack([x.count for x in losses]).sum()
    if not whole_step:
        total, count = group.sum(torch.stack([total.double(), count.double()])).to(total.dtype)
    count = count + more
    share = 1.0 / count.clamp_min(1)  # a step in which nothing carries loss has a zero gradient, not 0/0
    mean, scaled = total * share, share
    if mix is not None:
        losses += _mixed(model, share, mix, group)
        tokens += sum(batch.tokens_T.numel() for batch in mix.batches)
        scaled = torch.ones_like(share)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients)) * scaled
    scale = scaled if clip_norm is None else scaled * (clip_norm / (norm + 1e-6)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(scale)
    value, length, counted = torch.stack([mean.double(), norm.double(), count.double()]).tolist()
    return Gradient(
        value, length, counted, group.total(tokens), mean_metrics(losses, ALONE if whole_step else group)
    )


def _mixed(model: nn.Module, share: Tensor, mix: Mix, group: ProcessGroup) -> list[Loss]:
    """Turn summed gradients into means, add the second line's, and return its losses as the metric ptx/loss."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(share)
    scored = group.total(sum(batch.scored_C.numel() for batch in mix.batches))
    found = []
    for batch in mix.batches:
        loss = mix.loss(mix.forward(batch), batch)
        (loss.total * (mix.weight / max(scored, 1))).backward()  # type: ignore[no-untyped-call]
        total = loss.total.detach()
        found.append(Loss(total, loss.count, {"ptx/loss": (total, loss.count)}))
    return found


def _backward(loss: Loss) -> Loss:
    loss.total.backward()  # type: ignore[no-untyped-call]
    return Loss(loss.total.detach(), loss.count, loss.metrics)


def _whole(forward: Forward, loss: LossFn, batches: Sequence[TokenBatch], group: ProcessGroup) -> Loss:
    """The loss of all micro-batches together; each one's gradient takes a second forward pass."""
    with torch.no_grad():
        found = [forward(batch) for batch in batches]
    mine, merged = stacked(found), concatenate(batches)
    everyone, all_rows, first = group.gather(mine, merged)
    name = "logprobs_C" if everyone.logprobs_C is not None else "rewards_B"
    leaf = getattr(everyone, name).detach().requires_grad_()
    together = _backward(loss(everyone._replace(**{name: leaf}), all_rows))
    sizes = [getattr(x, name).numel() for x in found]
    slope = leaf.grad[first : first + sum(sizes)]
    for batch, part in zip(batches, torch.split(slope, sizes)):
        torch.autograd.backward(getattr(forward(batch), name), part)
    return together


def stacked(found: Sequence[Outputs]) -> Outputs:
    """The outputs of several batches as those of their concatenation."""
    columns = zip(*found)
    return Outputs(*(None if any(x is None for x in column) else torch.cat(column) for column in columns))


def mean_metrics(losses: Iterable[Loss], group: ProcessGroup = ALONE) -> dict[str, float]:
    """Divide each metric's summed total by its summed count; a metric that counted nothing is left out."""
    sums: dict[str, list[Tensor]] = {}
    for loss in losses:
        for name, (total, count) in loss.metrics.items():
            sums.setdefault(name, []).append(torch.stack([total.double(), count.double()]))
    if not sums:
        return {}
    pairs = group.sum(torch.stack([torch.stack(found).sum(0) for found in sums.values()])).tolist()
    return {name: total / count for name, (total, count) in zip(sums, pairs) if count}


ForwardFn = Callable[[nn.Module, TokenBatch], Outputs]
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
Collate = Callable[..., TokenBatch]
EVALUATIONS = 5


class Steps(Protocol):
    """The trees of each optimizer step as a pure function of the step (`data.batches.Schedule`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int, /) -> list[list[int]]: ...


def fit(
    model: nn.Module,
    outputs: ForwardFn,
    loss: LossFn,
    trees: Sequence[Tree],
    schedule: Steps,
    optim: Optim,
    *,
    out: Path,
    watch: StageProgress,
    read_last: bool,
    reference: Sequence[Sequence[float]] | None = None,
    checkpoint_every_s: float = 20.0,
    evaluate: Evaluate | None = None,
    dtype: torch.dtype | None = None,
    whole_step: bool = False,
    moving: EMA | None = None,
    group: ProcessGroup = ALONE,
    tracker: Callable[[], progress.Tracker] | None = None,
    collate: Collate = collate,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train `model` in place over every step of `schedule`, from the checkpoint in `out` if there is one.

    `dtype`: the format of matrix products, None for fp32.
    `evaluate` runs before the first step and after each fifth of the steps, always after a checkpoint.
    `whole_step`: the objective sees all rows of a step at once. `moving` is a reference that follows the
    policy. `tracker` opens a receiver of the metrics log's rows. With `optim.ema` the model is evaluated, and
    ends, as the average of its steps. Raises Interrupted (exit code 130) after Ctrl-C, with a checkpoint
    written; DemeanorError if the loss is not finite, with the last checkpoint unchanged.
    """
    device = next(model.parameters()).device
    forward = running(model, outputs, dtype)
    flops = training_flops(model, head=not read_last)
    optimizer, steps, state = optimizers.optimizer(model, optim), len(schedule), out / CHECKPOINT
    ema = None if optim.ema is None else EMA(model, alpha=1.0 - optim.ema)
    averages = {name: x for name, x in (("ema", ema), ("moving", moving)) if x is not None}
    about = {
        "steps": steps,
        "rows": len(trees),
        "optim": optim.model_dump(mode="json"),
        "dtype": str(dtype or torch.float32),
    }

    def load(chosen: Sequence[int]) -> TokenBatch:
        known = None if reference is None else [reference[i] for i in chosen]
        batch = to_device(collate([trees[i] for i in chosen], read_last=read_last, reference=known), device)
        if moving is None:
            return batch
        with torch.no_grad(), moving.swapped_into(model):
            return batch._replace(reference_C=forward(batch).logprobs_C)

    def loss_of(row: int) -> Loss:
        batch = load([row])
        return loss(forward(batch), batch)

    def look(done: int) -> None:
        if evaluate is not None and (not done or due(done, steps)):
            with nullcontext() if ema is None else ema.swapped_into(model):
                found = evaluation(evaluate, model, done)
            settle(model)
            rows.append({"step": done, **found})
            if done == steps and group.first:
                watch.say(held_out(next(filter(is_evaluation, read_log(out / LEDGER)), found), found))

    begun = resume.load(state, model, optimizer, about, averages)
    seen = any(is_evaluation(row) for row in read_log(out / LEDGER) if row["step"] == begun)
    peak = measured_peak(device.type, dtype or torch.float32)
    book = (
        progress.MetricsLog(out / LEDGER, step=begun, tracker=tracker) if group.first else progress.NullLog()
    )
    shapes = [(p.shape[0], p.shape[1]) for p in model.parameters() if p.ndim == 2]
    threads = Threads(
        torch.get_num_threads() if device.type == "cpu" and group.size == 1 else 1,
        safe=partial(same_bits, shapes, dtype or torch.float32),
    )
    with book as rows, stop_requests() as stop, watch.running(steps, begun, peak), closing(threads):
        if not seen:  # a run killed while it evaluated
            look(begun)
        saved_s = clock()
        for step in range(begun, steps):
            start_s, done = clock(), step + 1
            chosen = schedule[step]
            batches = [load(group.share(part)) for part in chosen]
            gradient = accumulate(
                model, forward, loss, batches, optim.clip_norm, whole_step=whole_step, group=group
            )
            if not gradient.finite:
                raise not_finite(done, steps, chosen, trees, loss_of, state)
            rate = learning_rate(optim, step, steps)
            for settings in optimizer.param_groups:
                settings["lr"] = rate
            optimizer.step()
            for average in averages.values():
                average.update(model, done)
            rows.append(
                {
                    "step": done,
                    "loss": gradient.loss,
                    "lr": rate,
                    "grad_norm": gradient.norm,
                    "tokens": gradient.tokens,
                    "count": gradient.counted,
                    **gradient.metrics,
                    "seconds": round(clock() - start_s, 4),
                }
            )
            work = sum(map(flops, batches))
            threads.after(work)
            watch.beside(str(threads))
            watch.update(done, gradient.loss, gradient.tokens, work)
            # read once: a later signal stops the run after the checkpoint of the next step
            stopping = group.any(stop.asked)
            if (
                stopping
                or done == steps
                or due(done, steps)
                or group.any(group.first and clock() - saved_s >= checkpoint_every_s)
            ):
                resume.save(state, model, optimizer, done, about, averages, group)
                saved_s = clock()
            if stopping:
                raise stop.obeyed(done, steps)
            look(done)
        if group.any(stop.asked):
            raise stop.obeyed(steps, steps)
    if ema is not None:
        ema.copy_to(model)


def running(model: nn.Module, outputs: ForwardFn, dtype: torch.dtype | None) -> Forward:
    """A function from a batch to the model's outputs, under autocast to `dtype` (None: fp32)."""
    device = next(model.parameters()).device.type

    def forward(batch: TokenBatch) -> Outputs:
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            return outputs(model, batch)

    return forward


def to_device(batch: TokenBatch, device: torch.device) -> TokenBatch:
    """The batch with every tensor on `device`."""
    moved: dict[str, Any] = {
        name: x.to(device) for name, x in batch._asdict().items() if isinstance(x, torch.Tensor)
    }
    return batch._replace(**moved)


def due(done: int, steps: int) -> bool:
    """Whether a fifth of the steps (rounded) ends with step `done`."""
    return done in {max(1, round(steps * k / EVALUATIONS)) for k in range(1, EVALUATIONS + 1)}


def evaluation(evaluate: Evaluate, model: nn.Module, done: int) -> dict[str, float]:
    """Call `evaluate` without gradients and restore the random state; names get TRL's prefix `eval_`."""
    drawn = torch.get_rng_state()
    with torch.no_grad():
        found = evaluate(model, done)
    torch.set_rng_state(drawn)
    return {f"eval_{name}": value for name, value in found.items()}


def held_out(first: Mapping[str, float], last: Mapping[str, float]) -> str:
    """One line: loss, accuracies and margins before and after training, with intervals."""
    parts = []
    for name in ("loss", "accuracy", "rewards/accuracies", "margin", "rewards/margins", "kl"):
        key = f"eval_{name}"
        if key in first and key in last:
            form = ".1%" if "accurac" in name else ".3f"
            low, high = last.get(f"{key}/low"), last.get(f"{key}/high")
            interval = "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
            parts.append(f"{name} {first[key]:{form}} -> {last[key]:{form}}{interval}")
    return f"held out, {last.get('eval_rows', 0):.0f} rows: {', '.join(parts)}"


def is_evaluation(row: Mapping[str, object]) -> bool:
    return any(name.startswith("eval_") for name in row)


def not_finite(
    done: int,
    steps: int,
    chosen: Sequence[Sequence[int]],
    trees: Sequence[Tree],
    alone: Callable[[int], Loss],
    state: Path,
) -> DemeanorError:
    """The error for a step; it names the rows whose own loss is not finite, or else all rows."""
    everyone = [i for part in chosen for i in part]
    with torch.no_grad():
        suspects = [i for i in everyone if not math.isfinite(float(alone(i).total))] or everyone
    names = ", ".join(f"{i} ({trees[i].source})" if trees[i].source else str(i) for i in suspects[:8])
    more = f" and {len(suspects) - 8} more" if len(suspects) > 8 else ""
    kept = (
        f"the checkpoint before it is kept ({state})" if state.exists() else "no checkpoint was written yet"
    )
    return DemeanorError(
        f"step {done} of {steps}: the loss or its gradient is not finite; rows {names}{more}. "
        f"Look at these rows, or lower optim.lr; {kept}."
    )

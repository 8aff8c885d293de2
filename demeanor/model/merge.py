"""Weight averaging: one model from several that share a base, tensor by tensor.

In: model folders of one architecture and a weight for each. Out: a Hugging Face folder (fp32). Refuses
tensors of different names or shapes. Averaging a policy with its base recovers part of the alignment tax.
Source: Lin et al. 2023, arXiv 2309.06256.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from demeanor.core.errors import CheckpointError
from demeanor.model import checkpoints

PARALLEL = 0.9995  # cosine above which two tensors count as parallel, and slerp is linear


@torch.no_grad()
def merge(
    sources: Sequence[Path],
    weights: Sequence[float],
    out: Path,
    *,
    method: str = "linear",
    origin: Path | None = None,
) -> None:
    """Write the merged model of `sources` to `out`; `origin` is the base of task arithmetic.

    Linear and task_arithmetic load one model at a time. Raises CheckpointError if the models do not fit
    together.
    """
    model = _load(sources[0])
    if method == "slerp":
        share = weights[1]
        _combine(model, _load(sources[1]), sources, lambda a, b: slerp(a, b, share))
    else:
        left = 0.0
        if method == "task_arithmetic":
            # origin + sum w_i (theta_i - origin), Ilharco et al. 2022, arXiv 2212.04089
            assert origin is not None, "task arithmetic needs an origin"
            left = 1.0 - sum(weights)
        for tensor in model.parameters():
            tensor.mul_(weights[0])
        parts = [*zip(sources[1:], weights[1:]), *([(origin, left)] if origin is not None and left else [])]
        for folder, weight in parts:
            _combine(model, _load(folder), [sources[0], folder], partial(torch.add, alpha=weight))
    checkpoints.save_checkpoint(model, out)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return the point `share` of the way from a to b on the arc between them (Shoemake 1985), as vectors."""
    cosine = torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0)
    cosine = cosine.clamp(-1, 1)
    if abs(cosine) > PARALLEL:
        return torch.lerp(a, b, share)
    angle = cosine.acos()
    near, far = ((1 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin()
    return (near * a + far * b).to(a.dtype)


def _combine(
    model: nn.Module, other: nn.Module, names: Sequence[Path], mix: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Replace every tensor of `model` by its mix with the other's."""
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    strange = sorted(ours.keys() ^ theirs.keys())
    shapes = [
        f"{n} is {tuple(t.shape)} and {tuple(theirs[n].shape)}"
        for n, t in ours.items()
        if n in theirs and t.shape != theirs[n].shape
    ]
    if strange or shapes:
        what = shapes[0] if shapes else f"{len(strange)} tensors are in only one of them, first {strange[0]}"
        raise CheckpointError(
            f"{names[0]} and {names[1]} cannot be merged: {what}; wanted stages of one base"
        )
    for name, tensor in ours.items():
        tensor.copy_(mix(tensor, theirs[name]))


def _load(folder: Path) -> nn.Module:
    is_reward = checkpoints.checkpoint_info(folder).reward
    return checkpoints.reward(folder, 0) if is_reward else checkpoints.policy(folder)

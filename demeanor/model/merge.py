"""Weight averaging: one model from several that share a base, tensor by tensor.

In: model folders of one architecture and a weight for each. Out: a Hugging Face folder (fp32). Refuses
tensors of different names or shapes. Averaging a policy with its base recovers part of the alignment tax.
Source: Lin et al. 2023, arXiv 2309.06256.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from demeanor.core.errors import CheckpointError
from demeanor.model import checkpoints
from demeanor.model.deferred import Deferred, numbers
from demeanor.model.grouped_modules import Matrix, keep_grouped, matrices

Mix: TypeAlias = Callable[..., Tensor]
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

    Matrices of the Llama family are merged one after the other, as they are read from their files. Raises CheckpointError if the
    models do not fit together.
    """
    folders, shares = list(sources), list(weights)
    if method == "task_arithmetic":
        # origin + sum w_i (theta_i - origin), Ilharco et al. 2022, arXiv 2212.04089
        assert origin is not None, "task arithmetic needs an origin"
        left = 1.0 - sum(weights)
        folders, shares = [*folders, *[origin] * bool(left)], [*shares, *[left] * bool(left)]
    mix = partial(slerp, share=weights[1]) if method == "slerp" else None
    found = [checkpoints.checkpoint_info(folder) for folder in folders]
    if all(x.lean and not x.reward for x in found):
        model = _read_later(folders, mix or partial(weighted, weights=shares))
    else:
        model = _one_by_one(folders, shares, mix)
    checkpoints.save_checkpoint(model, out)


def _one_by_one(folders: Sequence[Path], shares: Sequence[float], mix: Mix | None) -> nn.Module:
    """The merge of reward models and of what runs through transformers; at most two are in memory."""
    model = _load(folders[0])
    ours = dict(model.named_parameters())
    for tensor in ours.values() if mix is None else ():
        tensor.mul_(shares[0])
    for folder, share in zip(folders[1:], shares[1:]):
        other = _load(folder)
        _require_alike(model, other, (folders[0], folder))
        for name, tensor in other.named_parameters():
            ours[name].copy_(
                torch.add(ours[name], tensor, alpha=share) if mix is None else mix(ours[name], tensor)
            )
    return model


def _read_later(folders: Sequence[Path], mix: Mix) -> nn.Module:
    """A model whose matrices are merged when they are written."""
    models = [checkpoints.load(folder, deferred=True) for folder in folders]
    for folder, other in zip(folders[1:], models[1:]):
        _require_alike(models[0], other, (folders[0], folder))
    found = [_tensors(x) for x in models]
    for name, ours in found[0].items():
        parts = [x[name] for x in found]
        if isinstance(ours, Tensor):
            ours.copy_(_mixed(parts, mix))
        else:
            keep_grouped(models[0], name, Deferred(ours.shape, partial(_mixed, parts, mix)))
    return models[0]


def _tensors(model: nn.Module) -> dict[str, Tensor | Matrix]:
    """Every tensor of a model by its name: matrices in files, and what is in memory, such as a matrix that an adapter replaced."""
    return {**matrices(model), **dict(model.named_parameters())}


def _mixed(parts: Sequence[Tensor | Matrix], mix: Mix) -> Tensor:
    return mix(*(numbers(x).float() for x in parts))


def weighted(*tensors: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the sum of tensors times their weights."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:]):
        total.add_(tensor, alpha=weight)
    return total


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return the point `share` of the way from a to b on the arc between them (Shoemake 1985), as vectors."""
    cosine = torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0)
    cosine = cosine.clamp(-1, 1)
    if abs(cosine) > PARALLEL:
        return torch.lerp(a, b, share)
    angle = cosine.acos()
    near, far = ((1 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin()
    return (near * a + far * b).to(a.dtype)


def _require_alike(model: nn.Module, other: nn.Module, names: tuple[Path, Path]) -> None:
    """Raise CheckpointError unless two models have the same tensors."""
    ours, theirs = _tensors(model), _tensors(other)
    strange = sorted(ours.keys() ^ theirs.keys())
    shapes = [
        f"{n} is {tuple(t.shape)} and {tuple(theirs[n].shape)}"
        for n, t in ours.items()
        if n in theirs and tuple(t.shape) != tuple(theirs[n].shape)
    ]
    if strange or shapes:
        what = shapes[0] if shapes else f"{len(strange)} tensors are in only one of them, first {strange[0]}"
        raise CheckpointError(
            f"{names[0]} and {names[1]} cannot be merged: {what}; wanted stages of one base"
        )


def _load(folder: Path) -> nn.Module:
    is_reward = checkpoints.checkpoint_info(folder).reward
    return checkpoints.reward(folder, 0) if is_reward else checkpoints.policy(folder)

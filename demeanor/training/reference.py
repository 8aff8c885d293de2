"""Log-probs of a frozen reference policy, cached in a file for a model, rows and number format.

In: a function that loads the reference, trees, two keys. Out: one list of floats (nats) per tree, in
collation order. It knows no objective.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from demeanor.core import hardware
from demeanor.core.files import replacing
from demeanor.data.trees import Tree, collate, num_scored
from demeanor.training.loop import Collate, ForwardFn, to_device

MICRO_TOKENS = 8192


def reference_logprobs(
    load: Callable[[], nn.Module],
    outputs: ForwardFn,
    trees: Sequence[Tree],
    *,
    folder: Path,
    model_key: str,
    data_key: str,
    dtype: torch.dtype | None = None,
    micro_tokens: int = MICRO_TOKENS,
    collate: Collate = collate,
) -> list[list[float]]:
    """Log-probs of each tree's scored tokens under a frozen model, in the number format the policy trains in.

    The model is loaded only if `folder` has no file for this model, this data and this format; runs that
    differ only in their objective share the file.
    """
    about = json.dumps({"model": model_key, "data": data_key, "dtype": str(dtype or torch.float32)})
    path = folder / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.safetensors"
    parts = _cached(path, about, len(trees))
    if parts is None:
        model = load().to(hardware.device()).eval()
        parts = scored_logprobs(
            model, outputs, trees, dtype=dtype, micro_tokens=micro_tokens, collate=collate
        )
        lengths = torch.tensor([len(p) for p in parts])
        tensors = {"logprobs": torch.cat(parts), "lengths": lengths}
        with replacing(path, shared=True) as part:  # two runs may compute the same at once
            save_file(tensors, part, metadata={"demeanor": about})
    return [part.tolist() for part in parts]


def trees_key(trees: Sequence[Tree]) -> str:
    """Hash of the tokens, masks and order of all trees: 16 hex digits."""
    total = hashlib.sha256()
    for tree in trees:
        for tokens in (
            tree.prompt,
            *(part for branch in tree.branches for part in (branch.tokens, branch.trained)),
        ):
            total.update(len(tokens).to_bytes(4, "little") + array("i", tokens).tobytes())
    return total.hexdigest()[:16]


def micro_batches(trees: Sequence[Tree], micro_tokens: int) -> Iterator[list[int]]:
    """Indices of all trees, short ones first, in groups of at most `micro_tokens` tokens or one tree."""
    sizes = [tree.num_tokens for tree in trees]
    group: list[int] = []
    total = 0
    for index in sorted(range(len(trees)), key=sizes.__getitem__):
        if group and total + sizes[index] > micro_tokens:
            yield group
            group, total = [], 0
        group.append(index)
        total += sizes[index]
    if group:
        yield group


@torch.no_grad()
def scored_logprobs(
    model: nn.Module,
    outputs: ForwardFn,
    trees: Sequence[Tree],
    *,
    dtype: torch.dtype | None = None,
    micro_tokens: int = MICRO_TOKENS,
    collate: Collate = collate,
) -> list[torch.Tensor]:
    """Log-probs (nats, fp32) of each tree's scored tokens, under autocast to `dtype` (None: fp32)."""
    device = next(model.parameters()).device
    found = [torch.empty(0)] * len(trees)
    for group in micro_batches(trees, micro_tokens):
        batch = to_device(collate([trees[i] for i in group]), device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logprobs_C = outputs(model, batch).logprobs_C
        assert logprobs_C is not None, "a policy gives log-probs"
        sizes = [num_scored(trees[i]) for i in group]
        for i, part in zip(group, torch.split(logprobs_C.float().cpu(), sizes)):
            found[i] = part
    return found


def _cached(path: Path, about: str, num_trees: int) -> list[torch.Tensor] | None:
    """The stored log-probs, or None if the file is missing, broken or computed for something else."""
    try:
        with safe_open(path, "pt") as file:
            flat, lengths = file.get_tensor("logprobs"), file.get_tensor("lengths").tolist()
            same = (
                (file.metadata() or {}).get("demeanor") == about
                and len(lengths) == num_trees
                and sum(lengths) == flat.numel()
            )
            return list(torch.split(flat, lengths)) if same else None
    except (OSError, SafetensorError):
        return None

"""What a `quantise` stage costs: the held-out loss of the rounded policy less that of its parent, row by row.

In: two folders of weights and the token trees of the stage whose held-out rows they read. Out: numbers for the
stage's log, with a 95% interval, and a sentence. Both are computed as they are served, with the compiled decoder, but with keys and values in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from demeanor.core import registry
from demeanor.data.batches import select
from demeanor.data.trees import Tree
from demeanor.model import adapters, checkpoints
from demeanor.model.exact import exact_policy_outputs
from demeanor.model.gguf_llama import FILE
from demeanor.model.stored import is_adapter
from demeanor.stack.schema import OnlineStage, Stage
from demeanor.stack.stack import OBJECTIVES, Stack
from demeanor.training import heldout
from demeanor.training.reference import scored_logprobs


def source(stack: Stack, name: str) -> Stage | None:
    """Return the nearest ancestor of a stage that trains a policy on rows; None if there is none."""
    while name != "base":
        name = stack.parent(name)
        if name == "base":
            return None
        stage = stack.stage(name)
        trains = isinstance(stage, Stage) and not isinstance(stage, OnlineStage)
        if trains and registry.entry(OBJECTIVES, stack.objective_kind(name)).POLICY:
            assert isinstance(stage, Stage)
            return stage
    return None


def measured(parent: Path, rounded: Path, trees: Sequence[Tree], most: int) -> dict[str, float]:
    """Return the mean loss (nats a scored token) before and after on held-out rows of at most `most` tokens, and
    the difference; `/low` and `/high` bound it with rows as clusters. Also the bytes of both folders' weights.
    """
    fitting = select(trees, (i for i, tree in enumerate(trees) if tree.longest <= most))
    held = list(select(fitting, heldout.split(fitting)[1]))
    found = {"rows": float(len(held)), **{f"bytes/{k}": float(_size(x)) for k, x in _named(parent, rounded)}}
    if not held:
        return found
    before, after = (_losses(folder, held) for folder in (parent, rounded))
    counts = torch.tensor([float(len(x)) for x in before], dtype=torch.float64)
    sums, sums_after = (torch.stack([x.double().sum() for x in losses]) for losses in (before, after))
    total = counts.sum().clamp_min(1)
    found |= {
        "loss/before": float(sums.sum() / total),
        "eval_loss": float(sums_after.sum() / total),
        "loss/difference": float((sums_after - sums).sum() / total),
    }
    if len(held) > 1:
        low, high = heldout.clustered(sums_after - sums, counts)
        found |= {"loss/difference/low": low, "loss/difference/high": high}
    return found


def sentence(found: Mapping[str, float], stage: str) -> str:
    """Say what rounding cost."""
    size = f"{found['bytes/before'] / 1e6:,.1f} MB became {found['bytes/after'] / 1e6:,.1f} MB"
    if "loss/difference" not in found:
        return f"{size}; {stage} holds out no rows: what rounding costs was not measured"
    bounds = (
        f" (95%: {found['loss/difference/low']:+.4f} to {found['loss/difference/high']:+.4f})"
        if "loss/difference/low" in found
        else ""
    )
    ratio = math.exp(found["loss/difference"])
    return (
        f"{size}; loss on {found['rows']:.0f} held-out rows of {stage} {found['loss/before']:.4f} -> "
        f"{found['eval_loss']:.4f}: {found['loss/difference']:+.4f} nats a token{bounds}, perplexity x {ratio:.4f}"
    )


def short(found: Mapping[str, float]) -> str:
    """Say in a few words what rounding cost: sizes, and the change of the held-out loss with its interval."""
    size = f"{found['bytes/before'] / 1e6:,.1f} -> {found['bytes/after'] / 1e6:,.1f} MB"
    if "loss/difference" not in found:
        return f"{size}, loss not measured"
    low, high = found.get("loss/difference/low"), found.get("loss/difference/high")
    bounds = "" if low is None or high is None else f" ({low:+.4f} to {high:+.4f})"
    return f"{size}, held-out loss {found['loss/difference']:+.4f} nats{bounds}"


def _named(parent: Path, rounded: Path) -> tuple[tuple[str, Path], ...]:
    return ("before", parent), ("after", rounded)


def _size(folder: Path) -> int:
    """Bytes of the weights: an adapter's with those under it, and a GGUF file's where it lies."""
    own = sum(path.stat().st_size for kind in ("*.safetensors", FILE) for path in folder.glob(kind))
    return own + (_size(adapters.base_folder(folder)) if is_adapter(folder) else 0)


def _losses(folder: Path, trees: Sequence[Tree]) -> list[torch.Tensor]:
    model: nn.Module = checkpoints.serving(folder)
    return [-logprobs for logprobs in scored_logprobs(model, exact_policy_outputs, trees)]

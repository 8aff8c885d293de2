"""How weights move: AdamW (decay on matrices only) and the learning rate as a pure function of the step.

In: a model and spec.Optim. Out: an optimiser, a learning rate. It never steps: only `loop.py` does.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from demeanor.spec import Optim


def adamw(model: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in two groups: matrices decay, vectors and scalars do not.

    Source: Loshchilov & Hutter, arXiv 1711.05101, algorithm 2; eps 1e-8.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=optim.lr, betas=optim.betas, fused=True)


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Learning rate of optimiser step `step` (0-based) of `steps`.

    It climbs linearly from 0 (before the first step) to the peak over `warmup * steps` steps, then decays so that the
    very last step uses `final_lr * lr`; `constant` stays at the peak.
    """
    warm = round(optim.warmup * steps)
    if step < warm:
        return optim.lr * (step + 1) / warm
    if optim.schedule == "constant":
        return optim.lr
    done = (step + 1 - warm) / (steps - warm)
    left = 1.0 - done if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return optim.lr * (optim.final_lr + (1.0 - optim.final_lr) * left)

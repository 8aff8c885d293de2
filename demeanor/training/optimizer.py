"""Optimizers and learning rate: AdamW with decay on matrices only, Muon on hidden matrices.

In: a model and its Optim settings. Out: an optimizer; the learning rate as a pure function of the step. It
never steps: only `loop.py` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from demeanor.core import hardware
from demeanor.stack.schema import Optim

MOMENTUM = 0.95
OUTER = ("embed_tokens", "lm_head", "score")
"""Parameters whose rows belong to single tokens or scores, so that orthogonalised updates make no sense."""


def adamw(
    model: nn.Module, optim: Optim, scales: Mapping[str, float] = MappingProxyType({})
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in groups: matrices decay, vectors and scalars do not.

    `scales`: parameters whose name begins so learn at this multiple of the rate, the group's `scale`.
    Source: Loshchilov & Hutter, arXiv 1711.05101, algorithm 2; eps 1e-8.
    """
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for prefix, scale in {"": 1.0, **scales}.items():
        mine = [
            p
            for n, p in trained
            if n.startswith(prefix) and (prefix or not n.startswith(tuple(scales) or ("\0",)))
        ]
        extra = {"scale": scale} if scales else {}
        groups += [
            {"params": [p for p in mine if p.ndim >= 2], "weight_decay": optim.weight_decay, **extra},
            {"params": [p for p in mine if p.ndim < 2], "weight_decay": 0.0, **extra},
        ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=optim.lr, betas=optim.betas, fused=True)


def optimizer(model: nn.Module, optim: Optim) -> torch.optim.AdamW | Muon:
    """The optimizer that `optim.kind` names."""
    return adamw(model, optim) if optim.kind == "adamw" else Muon(model, optim)


class Muon:
    """Muon on the matrices between embedding and head, AdamW on all other parameters.

    Updates are scaled to the size of AdamW's, so that one `lr` serves both. Source: Jordan et al. 2024
    (Muon); Liu et al. 2025, arXiv 2502.16982, equation 4.
    """

    def __init__(self, model: nn.Module, optim: Optim) -> None:
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        hidden = [p for n, p in trained if p.ndim == 2 and not any(part in n for part in OUTER)]
        inside = {id(p) for p in hidden}
        rest = [p for _, p in trained if id(p) not in inside]
        self._parts: list[torch.optim.Optimizer] = []
        if hidden:
            fast = hardware.training_dtype({(p.shape[0], p.shape[1]) for p in hidden}) is not None
            self._parts.append(
                (torch.optim.Muon if fast else MuonFp32)(
                    hidden,
                    lr=optim.lr,
                    momentum=MOMENTUM,
                    weight_decay=optim.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if rest:
            self._parts.append(
                torch.optim.AdamW(rest, lr=optim.lr, betas=optim.betas, weight_decay=0.0, fused=True)
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    @property
    def state(self) -> States:
        return States(self._parts)

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none)


class MuonFp32(torch.optim.Muon):
    """torch's Muon with its Newton-Schulz iteration in fp32.

    torch rounds the iteration to bf16, whose products take 20 times as long on a CPU that does not know them.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do what torch's does: momentum (Nesterov), orthogonalised update, decay."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                momentum = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalised(p.grad.lerp(momentum, group["momentum"]), group)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(p.shape)))  # the size of AdamW's


def orthogonalised(update_OI: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Return U S' V^T of an update U S V^T, with S' about 1, by a quintic Newton-Schulz iteration in fp32.

    Source: Jordan et al. 2024 (Muon).
    """
    a, b, c = group["ns_coefficients"]
    tall = update_OI.shape[0] > update_OI.shape[1]
    x = update_OI.T if tall else update_OI
    x = x / x.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class States:
    """The states of several optimizers as one mapping from parameter to state."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._of = {p: part.state for part in parts for group in part.param_groups for p in group["params"]}

    def get(self, parameter: nn.Parameter, default: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = (
            self._of[parameter].get(parameter, default) if parameter in self._of else default
        )
        return found

    def __setitem__(self, parameter: nn.Parameter, state: Mapping[str, Any]) -> None:
        self._of[parameter][parameter] = state


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Learning rate of optimizer step `step` (0-based) of `steps`.

    It rises linearly from 0 to the peak over the first `warmup * steps` steps, then decays to `final_lr * lr`
    at the last step; `constant` stays at the peak.
    """
    warm = round(optim.warmup * steps)
    if step < warm:
        return optim.lr * (step + 1) / warm
    if optim.schedule == "constant":
        return optim.lr
    done = (step + 1 - warm) / (steps - warm)
    left = 1.0 - done if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return optim.lr * (optim.final_lr + (1.0 - optim.final_lr) * left)

"""PPO-ptx as a good engineer writes it in plain PyTorch: the peer of `bench.online`, for no trainer has it any more.

In: Hugging Face folder, prompts, rows of text. Out: seconds of each step. Rows are padded rectangles, prompts
are repeated for each completion; logits are computed where completions are, never for prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LAMBDA, CLIP, VALUE_CLIP, VALUE_WEIGHT, PTX_WEIGHT = 1.0, 0.2, 0.2, 0.5, 1.0


class PlainPPO:
    """Policy, frozen reference and value model (a trunk with a head), and their optimisers."""

    def __init__(
        self, folder: Path, lr: float, beta: float, new: int, group: int, rows: int, half: bool
    ) -> None:
        """`rows` pass through the models at once (8 needs half the memory of 32 and is no slower); `half`: bf16
        products, as autocast makes them, but for generation."""
        from transformers import AutoModel, AutoModelForCausalLM

        self.policy: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.trunk: Any = AutoModel.from_pretrained(folder, dtype=torch.float32)
        self.head = nn.Linear(self.trunk.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        self.critic = [*self.trunk.parameters(), *self.head.parameters()]
        self.optimisers = [
            torch.optim.AdamW(self.policy.parameters(), lr=lr, fused=True),
            torch.optim.AdamW(self.critic, lr=lr, fused=True),
        ]
        self.beta, self.new, self.group, self.rows = beta, new, group, rows
        self.half = half

    def logprobs(self, model: Any, ids_BT: Tensor) -> Tensor:
        """Log-probs (nats) of the completion tokens, logprobs_BC."""
        logits_BCV = model(ids_BT, logits_to_keep=self.new + 1).logits[:, :-1]
        targets_BC = ids_BT[:, -self.new :]
        return -nn.functional.cross_entropy(
            logits_BCV.flatten(0, 1).float(), targets_BC.flatten(), reduction="none"
        ).view_as(targets_BC)

    def values(self, ids_BT: Tensor) -> Tensor:
        """The critic's value before each completion token, values_BC."""
        hidden_BTD = self.trunk(ids_BT).last_hidden_state
        return self.head(hidden_BTD[:, -self.new - 1 : -1]).squeeze(-1).float()

    def in_parts(self, run: Callable[[Tensor], Tensor], ids_BT: Tensor) -> Tensor:
        """A forward pass without gradient, some rows at a time."""
        return torch.cat([run(part) for part in ids_BT.split(self.rows)])

    def step(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[Sequence[int]],
        reward: Callable[[Sequence[int]], float],
    ) -> tuple[float, float, float]:
        """One step of PPO with a pretraining mix; seconds of (all, generate, score)."""
        began = time.perf_counter()
        ids_BT = self.generate(prompts)
        generated = time.perf_counter()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            old_BC = self.in_parts(lambda x: self.logprobs(self.policy, x), ids_BT)
            reference_BC = self.in_parts(lambda x: self.logprobs(self.reference, x), ids_BT)
            value_BC = self.in_parts(self.values, ids_BT)
            reward_BC = -self.beta * (old_BC - reference_BC)
            reward_BC[:, -1] += torch.tensor([reward(row) for row in ids_BT[:, -self.new :].tolist()])
            advantage_BC = advantages(reward_BC, value_BC)
            return_BC = advantage_BC + value_BC
            advantage_BC = (advantage_BC - advantage_BC.mean()) / (advantage_BC.std() + 1e-8)
        scored = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            self.gradients(ids_BT, old_BC, value_BC, advantage_BC, return_BC, torch.tensor(rows))
        for weights, optimiser in zip((self.policy.parameters(), self.critic), self.optimisers):
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        ended = time.perf_counter()
        return ended - began, generated - began, scored - generated

    def generate(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        asked = torch.tensor([p for p in prompts for _ in range(self.group)])
        with torch.inference_mode():
            found: Tensor = self.policy.generate(
                asked,
                attention_mask=torch.ones_like(asked),
                max_new_tokens=self.new,
                min_new_tokens=None,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                eos_token_id=None,
                pad_token_id=0,
            )
        return found.clone()

    def gradients(
        self,
        ids_BT: Tensor,
        old_BC: Tensor,
        value_BC: Tensor,
        advantage_BC: Tensor,
        return_BC: Tensor,
        rows_BT: Tensor,
    ) -> None:
        """Backward of all losses, some rows at a time."""
        share = self.rows / len(ids_BT)
        for part in torch.arange(len(ids_BT)).split(self.rows):
            ratio_BC = (self.logprobs(self.policy, ids_BT[part]) - old_BC[part]).exp()
            clipped_BC = ratio_BC.clamp(1 - CLIP, 1 + CLIP)
            policy = -torch.minimum(ratio_BC * advantage_BC[part], clipped_BC * advantage_BC[part]).mean()
            (policy * share).backward()
            found_BC = self.values(ids_BT[part])
            near_BC = value_BC[part] + (found_BC - value_BC[part]).clamp(-VALUE_CLIP, VALUE_CLIP)
            errors_BC = torch.maximum((found_BC - return_BC[part]) ** 2, (near_BC - return_BC[part]) ** 2)
            (VALUE_WEIGHT * errors_BC.mean() * share).backward()
        for rows in rows_BT.split(self.rows):
            logits_BTV = self.policy(rows).logits[:, :-1]
            ptx = nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), rows[:, 1:].flatten())
            (PTX_WEIGHT * ptx * len(rows) / len(rows_BT)).backward()


def advantages(reward_BC: Tensor, value_BC: Tensor) -> Tensor:
    """Generalised advantages with gamma 1, all rows at once. Source: Schulman et al. 2016, equation 16."""
    next_BC = torch.nn.functional.pad(value_BC[:, 1:], (0, 1))
    delta_BC = reward_BC + next_BC - value_BC
    found_BC, last_B = torch.empty_like(delta_BC), torch.zeros(len(delta_BC))
    for t in reversed(range(delta_BC.shape[1])):
        last_B = delta_BC[:, t] + LAMBDA * last_B
        found_BC[:, t] = last_B
    return found_BC

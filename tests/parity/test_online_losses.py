"""Our online objectives against TRL 1.16's own `_compute_loss` and advantages: loss and gradient to 1e-6. `make parity`.

TRL's trainers are bare objects with the attributes that these methods read; a fake forward returns our log-probs.
"""

from __future__ import annotations

import random
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl", reason="TRL is not installed here; run `make parity`")

from demeanor.core import registry
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model.tensors import Outputs, TokenBatch
from demeanor.objectives import Samples

pytestmark = pytest.mark.parity
PROMPTS, GROUP, PROMPT, LONGEST = 3, 4, 3, 9
DR_LENGTH = 12  # rollouts.max_tokens, max_completion_length


class Groups:
    """Random completions of unequal length, some with tokens that the policy did not write; and TRL's layout of them."""

    def __init__(self, seed: int = 0, *, tools: bool = True, drift: float = 0.4, empty: int = 0) -> None:
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        count = PROMPTS * GROUP
        self.trained = [[True] * draw.randrange(1, LONGEST) for _ in range(count)]
        if tools:
            for mask in self.trained[::3]:
                mask[1:1] = [False] * draw.randrange(1, 4)
        for n in range(empty):
            self.trained[4 * n + 1] = [False] * 3
        trees = [
            Tree(
                (1,) * PROMPT,
                tuple(Branch((2,) * len(m), tuple(m)) for m in self.trained[n * GROUP : (n + 1) * GROUP]),
                (0,) * GROUP,
            )
            for n in range(PROMPTS)
        ]
        normal = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
        self.lengths_B = torch.tensor([sum(m) for m in self.trained])
        tokens = int(self.lengths_B.sum())
        self.policy_C = -3 * torch.rand(tokens, generator=generator, dtype=torch.float64)
        self.sampled_C = self.policy_C + drift * normal(tokens)
        self.reference_C = self.policy_C + 0.7 * normal(tokens)
        self.advantage_B = normal(count)
        self.rewards_B = normal(count)
        self.batch: TokenBatch = collate(trees)
        self.batch = self.batch._replace(
            sampled_C=self.sampled_C,
            reference_C=self.reference_C,
            advantage_C=self.advantage_B[self.batch.branch_C],
        )
        self.completion_mask = self.rectangle([[1] * len(m) for m in self.trained])
        self.tool_mask = self.rectangle([list(map(int, m)) for m in self.trained], fill=1)

    def rectangle(self, rows: list[list[int]], fill: int = 0) -> Tensor:
        longest = max(map(len, self.trained))
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

    def padded(self, values_C: Tensor, fill: float = -1.0) -> Tensor:
        """Values of trained tokens in TRL's layout; what stands elsewhere must not matter."""
        mask_BT = (self.completion_mask * self.tool_mask).bool()
        return torch.full(mask_BT.shape, fill, dtype=values_C.dtype).masked_scatter(mask_BT, values_C)

    def ids(self) -> dict[str, Tensor]:
        ones = torch.ones(len(self.trained), PROMPT, dtype=torch.long)
        return {
            "prompt_ids": ones,
            "prompt_mask": ones,
            "completion_ids": self.completion_mask * 2,
            "completion_mask": self.completion_mask,
        }


class Result:
    def __init__(self, loss: Tensor, leaf_C: Tensor, metrics: dict[str, list[float]] | None = None) -> None:
        loss.backward()
        assert leaf_C.grad is not None
        self.loss, self.gradient_C, self.metrics = float(loss.detach()), leaf_C.grad, metrics or {}


def bare(kind: type, **attributes: Any) -> Any:
    """A trainer without model, data or files: only what the called method reads."""
    trainer = object.__new__(kind)
    trainer.__dict__ |= {
        "model": SimpleNamespace(training=True),
        "accelerator": SimpleNamespace(
            device="cpu",
            num_processes=1,
            process_index=0,
            sync_gradients=True,
            gather=lambda x: x,
            gather_for_metrics=lambda x: x,
            reduce=lambda x, reduction: x,
        ),
        "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        **attributes,
    }
    return trainer


def trl_grpo(
    groups: Groups,
    loss_type: str = "dapo",
    *,
    old: bool = True,
    rows: slice = slice(None),
    accumulation: int = 1,
    **settings: Any,
) -> Result:
    """Loss and gradient of `GRPOTrainer._compute_loss`, for one micro-batch (by default the whole step)."""
    from trl import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    defaults = GRPOConfig(output_dir="/tmp/trl", use_cpu=True, bf16=False, report_to="none", **settings)
    leaf_C = groups.policy_C.clone().requires_grad_()
    trainer = bare(
        GRPOTrainer,
        args=SimpleNamespace(**{**vars(defaults), "steps_per_generation": accumulation}),
        loss_type=loss_type,
        beta=defaults.beta,
        epsilon_low=defaults.epsilon,
        epsilon_high=defaults.epsilon if defaults.epsilon_high is None else defaults.epsilon_high,
        importance_sampling_level=defaults.importance_sampling_level,
        off_policy_mask_threshold=defaults.off_policy_mask_threshold,
        top_entropy_quantile=defaults.top_entropy_quantile,
        max_completion_length=defaults.max_completion_length,
        current_gradient_accumulation_steps=accumulation,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            groups.padded(leaf_C)[rows],
            torch.zeros(groups.completion_mask.shape)[rows],
            None,
        ),
    )
    inputs = groups.ids() | {
        "tool_mask": groups.tool_mask,
        "advantages": groups.advantage_B,
        "num_items_in_batch": (groups.completion_mask * groups.tool_mask).sum(),
        "ref_per_token_logps": groups.padded(groups.reference_C),
    }
    if old:
        inputs["old_per_token_logps"] = groups.padded(groups.sampled_C)
    inputs = {name: x[rows] if x.dim() else x for name, x in inputs.items()}
    return Result(GRPOTrainer._compute_loss(trainer, None, inputs), leaf_C, trainer._metrics["train"])


def trl_rloo(groups: Groups, **settings: Any) -> Result:
    """Loss and gradient of `RLOOTrainer._compute_loss`; it knows no tokens of tools."""
    from trl import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    defaults = RLOOConfig(output_dir="/tmp/trl", use_cpu=True, bf16=False, report_to="none", **settings)
    leaf_C = groups.policy_C.clone().requires_grad_()
    trainer = bare(
        RLOOTrainer,
        epsilon_low=defaults.epsilon,
        epsilon_high=defaults.epsilon if defaults.epsilon_high is None else defaults.epsilon_high,
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            groups.padded(leaf_C),
            torch.zeros(groups.completion_mask.shape),
            None,
        ),
    )
    inputs = groups.ids() | {
        "advantages": groups.advantage_B,
        "old_logps": (groups.padded(groups.sampled_C) * groups.completion_mask).sum(1),
    }
    return Result(RLOOTrainer._compute_loss(trainer, None, inputs), leaf_C, trainer._metrics["train"])


def trl_advantages(groups: Groups, kind: str, rewards: list[float | None], **settings: Any) -> Tensor:
    """What `_generate_and_score_completions` makes of rewards: generation and scoring are given, the rest is TRL's."""
    import trl
    from trl.trainer import grpo_trainer, rloo_trainer

    Config = {"grpo": trl.GRPOConfig, "rloo": trl.RLOOConfig}[kind]
    Trainer = {"grpo": grpo_trainer.GRPOTrainer, "rloo": rloo_trainer.RLOOTrainer}[kind]
    defaults = Config(
        output_dir="/tmp/trl",
        use_cpu=True,
        bf16=False,
        report_to="none",
        num_generations=GROUP,
        per_device_train_batch_size=len(groups.trained),
        **settings,
    )
    completions = [[2] * len(m) for m in groups.trained]
    answers = {True: groups.padded(groups.sampled_C), False: groups.padded(groups.reference_C)}
    policy = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    trainer = bare(
        Trainer,
        **{
            **{k: v for k, v in vars(defaults).items() if k not in ("model", "accelerator")},
            "args": defaults,
            "model": policy,
            "ref_model": SimpleNamespace(is_gradient_checkpointing=False),
            "environment_factories": None,
            "environments": None,
            "tools": None,
            "_is_vlm": False,
            "_tokenizer": SimpleNamespace(pad_token_id=0),
            "processing_class": None,
            "eos_token_ids": [5],
            "reward_func_names": ["reward"],
            "reward_weights": torch.ones(1),
            "_logs": defaultdict(list) | {"rewards": defaultdict(list), "extra": defaultdict(list)},
            "_pending_extra_logs": defaultdict(list),
            "_pending_metrics": defaultdict(list),
            "_generate": lambda prompts: {
                "grpo": ([[1] * PROMPT] * len(prompts), completions, None, completions, None, {}, None, None),
                "rloo": ([[1] * PROMPT] * len(prompts), completions, completions),
            }[kind],
            "_calculate_rewards": lambda *_: torch.tensor(
                [[float("nan") if r is None else r] for r in rewards], dtype=torch.float64
            ),
            "_get_per_token_logps_and_entropies": lambda model, *_, **__: (
                answers[model is policy],
                None,
                None,
            ),
        },
    )
    found: Tensor = Trainer._generate_and_score_completions(trainer, [{"prompt": "x"}] * len(completions))[
        "advantages"
    ]
    return found


def ours(groups: Groups, kind: str, *, old: bool = True, **settings: Any) -> Result:
    """Loss and gradient of our objective, divided as the loop divides them."""
    entry = registry.entry("demeanor.objectives", kind)
    spec = entry.ONLINE.resolved(entry.Spec(**settings), DR_LENGTH)
    leaf_C = groups.policy_C.clone().requires_grad_()
    batch = groups.batch if old else groups.batch._replace(sampled_C=groups.policy_C)
    found = entry.loss(spec, Outputs(logprobs_C=leaf_C), batch)
    assert float(found.count) == entry.ONLINE.count(spec, groups.lengths_B)
    metrics = {name: [float(total / count)] for name, (total, count) in found.metrics.items()}
    return Result(found.total / found.count, leaf_C, metrics)


def our_advantages(groups: Groups, kind: str, rewards: list[float | None], **settings: Any) -> Tensor:
    """Advantages of completions, 0 for those without a reward."""
    entry = registry.entry("demeanor.objectives", kind)
    spec = entry.Spec(**settings)
    scored = torch.tensor([r is not None for r in rewards])
    column_C = scored[groups.batch.branch_C]
    samples = Samples(
        reward_B=torch.tensor([r for r in rewards if r is not None], dtype=torch.float64),
        group_B=groups.batch.tree_B[scored],
        branch_C=(scored.cumsum(0) - 1)[groups.batch.branch_C[column_C]],
        sampled_C=groups.sampled_C[column_C],
        reference_C=groups.reference_C[column_C],
        beta=entry.ONLINE.beta(spec),
    )
    found = entry.ONLINE.advantages(spec, samples)
    firsts = torch.tensor([int((groups.batch.branch_C == b).nonzero()[0]) for b in range(len(rewards))])
    whole_C = torch.zeros(len(groups.policy_C), dtype=torch.float64)
    whole_C[column_C] = found.advantage_C
    assert torch.equal(whole_C, whole_C[firsts][groups.batch.branch_C])  # one value for all tokens
    return whole_C[firsts]


def close(mine: Result, theirs: Result) -> None:
    assert mine.loss == pytest.approx(theirs.loss, abs=1e-6)
    assert float((mine.gradient_C - theirs.gradient_C).abs().max()) < 1e-6
    assert float(theirs.gradient_C.abs().max()) > 1e-4  # something was compared


# ---- the eight losses of GRPOConfig.loss_type ----

ASYMMETRIC = {"epsilon": 0.15, "epsilon_high": 0.35}
MINE = {"clip_low": 0.15, "clip_high": 0.35}
NORMALISERS = ("dapo", "bnpo", "grpo", "dr_grpo")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss_type", NORMALISERS)
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("corrected", [True, False])
def test_grpo_with_each_normaliser_is_trls(seed: int, loss_type: str, beta: float, corrected: bool) -> None:
    groups = Groups(seed)
    theirs = trl_grpo(
        groups,
        loss_type,
        beta=beta,
        use_bias_correction_kl=corrected,
        max_completion_length=DR_LENGTH,
        **ASYMMETRIC,
    )
    kl = {"kl": "rho_k3" if corrected else "k3", "kl_coef": beta} if beta else {}
    mine = ours(groups, "grpo", normaliser=loss_type, **MINE, **kl)
    close(mine, theirs)
    for name in ("low_mean", "high_mean", "region_mean"):
        assert mine.metrics[f"clip_ratio/{name}"] == pytest.approx(
            theirs.metrics[f"clip_ratio/{name}"], abs=1e-6
        )
    if beta:
        assert mine.metrics["kl_loss"] == pytest.approx(theirs.metrics["kl"], abs=1e-6)


def test_a_bound_on_ratios_of_negative_advantages_is_trls_delta() -> None:
    groups = Groups(drift=1.0)
    close(
        ours(groups, "grpo", delta=1.5, **MINE),
        trl_grpo(groups, "dapo", delta=1.5, **ASYMMETRIC),
    )
    assert ours(groups, "grpo", delta=1.5, **MINE).loss != pytest.approx(ours(groups, "grpo", **MINE).loss)


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gspo": (MINE, {"loss_type": "grpo", "importance_sampling_level": "sequence", **ASYMMETRIC}),
    "cispo": ({"cap": 1.3}, {"loss_type": "cispo", "epsilon_high": 1.3}),
    "sapo": (
        {"tau_positive": 0.9, "tau_negative": 1.2},
        {"loss_type": "sapo", "sapo_temperature_pos": 0.9, "sapo_temperature_neg": 1.2},
    ),
    "luspo": (MINE, {"loss_type": "luspo", "importance_sampling_level": "sequence", **ASYMMETRIC}),
    "vespo": (
        {"k_positive": 1.5, "lambda_positive": 2.5, "k_negative": 2.5, "lambda_negative": 1.5},
        {
            "loss_type": "vespo",
            "vespo_k_pos": 1.5,
            "vespo_lambda_pos": 2.5,
            "vespo_k_neg": 2.5,
            "vespo_lambda_neg": 1.5,
        },
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", list(OTHERS))
@pytest.mark.parametrize("kl", [None, "k3", "rho_k3"])
def test_the_other_losses_are_trls(seed: int, kind: str, kl: str | None) -> None:
    groups = Groups(seed)
    mine, theirs = OTHERS[kind]
    beta = {"beta": 0.3, "use_bias_correction_kl": kl == "rho_k3"} if kl else {}
    with_kl = {"kl": kl, "kl_coef": 0.3} if kl else {}
    found, wanted = ours(groups, kind, **mine, **with_kl), trl_grpo(groups, **theirs, **beta)
    close(found, wanted)
    shared = set(found.metrics) & set(wanted.metrics)
    assert [found.metrics[name][0] for name in shared] == pytest.approx(
        [wanted.metrics[name][0] for name in shared], abs=1e-6
    )
    assert shared or kind == "sapo"  # sapo clips nothing


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("drift", [0.02, 0.4])
def test_rloo_is_trls(seed: int, drift: float) -> None:
    groups = Groups(seed, tools=False, drift=drift)  # their RLOO counts a tool's tokens as the policy's
    mine, theirs = ours(groups, "rloo", **MINE), trl_rloo(groups, **ASYMMETRIC)
    close(mine, theirs)
    for name in ("low_mean", "high_mean", "region_mean"):
        assert mine.metrics[f"clip_ratio/{name}"] == pytest.approx(
            theirs.metrics[f"clip_ratio/{name}"], abs=1e-6
        )


def test_before_the_first_step_nothing_is_clipped_and_trl_agrees() -> None:
    groups = Groups()
    mine, theirs = ours(groups, "grpo", old=False, **MINE), trl_grpo(groups, "dapo", old=False, **ASYMMETRIC)
    close(mine, theirs)
    assert mine.metrics["clip_ratio/region_mean"] == theirs.metrics["clip_ratio/region_mean"] == [0.0]


# ---- from rewards to advantages ----

GAPS: list[float | None] = [0.5, None, -1.0, 2.0, 1.0, 1.0, 1.0, 1.0, None, None, None, 0.7]


def rewards_of(groups: Groups) -> list[float | None]:
    return [float(r) for r in groups.rewards_B]


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("std", ["none", "group", "batch"])
def test_advantages_of_grpo_are_trls(std: str, missing: bool) -> None:
    groups = Groups()
    rewards = GAPS if missing else rewards_of(groups)
    theirs = trl_advantages(groups, "grpo", rewards, scale_rewards=std)
    mine = our_advantages(groups, "grpo", rewards, std=std)
    assert float((mine - theirs).abs().max()) < 1e-6
    assert float(theirs.abs().max()) > 0.1


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_advantages_of_rloo_are_trls(beta: float, missing: bool) -> None:
    groups = Groups(tools=False)
    rewards = GAPS if missing else rewards_of(groups)
    theirs = trl_advantages(groups, "rloo", rewards, beta=beta)
    mine = our_advantages(groups, "rloo", rewards, kl_coef=beta)
    assert float((mine - theirs).abs().max()) < 1e-6
    assert float(theirs.abs().max()) > 0.1


# ---- where TRL differs ----


def test_a_step_of_two_micro_batches_is_trls_but_for_bnpo() -> None:
    """A token mean needs the tokens of the whole step; TRL's bnpo takes each micro-batch's and so depends on the cut."""
    groups = Groups()
    halves = [slice(0, 5), slice(5, 12)]
    gaps = {}
    for normaliser in ("dapo", "bnpo"):
        parts = [trl_grpo(groups, normaliser, rows=half, accumulation=2, **ASYMMETRIC) for half in halves]
        mine = ours(groups, "grpo", normaliser=normaliser, **MINE)
        gaps[normaliser] = float((sum(p.gradient_C for p in parts) - mine.gradient_C).abs().max())
    assert gaps["dapo"] < 1e-12
    assert gaps["bnpo"] > 1e-3


def test_completions_without_a_trained_token_count_in_trls_means_only() -> None:
    """`mask_truncated_completions` empties a row; TRL still divides by it, we divide by those that are trained."""
    groups = Groups(empty=3)
    for normaliser, share in (("dapo", 1.0), ("grpo", 9 / 12), ("dr_grpo", 9 / 12)):
        theirs = trl_grpo(groups, normaliser, max_completion_length=DR_LENGTH, **ASYMMETRIC)
        mine = ours(groups, "grpo", normaliser=normaliser, **MINE)
        assert theirs.loss == pytest.approx(share * mine.loss, abs=1e-6), normaliser


def test_trls_rloo_trains_on_the_tokens_of_tools() -> None:
    groups = Groups(tools=True)
    theirs = trl_rloo(groups, **ASYMMETRIC)  # padded() puts -1 where tools wrote, in both policies: no ratio
    assert theirs.loss == pytest.approx(ours(groups, "rloo", **MINE).loss, abs=1e-6)
    assert int(groups.tool_mask.logical_not().sum()) > 0

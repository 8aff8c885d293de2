"""Our losses against TRL 1.16's own functions, in fp64 where they allow it: equal to 1e-6, gradients too. `make parity`.

TRL's trainers are driven with a stub for `self` and for the model: the stub returns the log-probs that our batch holds.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl", reason="TRL is not installed here; run `make parity`")

from demeanor.core import registry
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model.tensors import Outputs, TokenBatch, branch_sums

pytestmark = pytest.mark.parity
PAIRS, PROMPT = 7, 3


class Rows:
    """Random comparisons: our batch, and the same as TRL lays it out (chosen rows, then rejected, right-padded)."""

    def __init__(self, seed: int = 0, equal_lengths: bool = False) -> None:
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.lengths = [(draw.randrange(2, 9), draw.randrange(2, 9)) for _ in range(PAIRS)]
        if equal_lengths:
            self.lengths = [(5, 5)] * PAIRS
        trees = [
            Tree((1,) * PROMPT, tuple(Branch((2,) * n, (True,) * n) for n in pair), (0, 1))
            for pair in self.lengths
        ]
        count = sum(map(sum, self.lengths))
        self.policy = -3 * torch.rand(count, generator=generator, dtype=torch.float64)
        self.reference = (
            self.policy + 0.7 * torch.randn(count, generator=generator, dtype=torch.float64)
        ).clamp_max(-0.01)
        self.collision = -2 * torch.rand(count, generator=generator, dtype=torch.float64)
        self.batch: TokenBatch = collate(trees)._replace(reference_C=self.reference)

    def padded(self, values_C: Tensor) -> Tensor:
        """Values of scored tokens in TRL's layout (2P, L - 1), zero elsewhere."""
        longest = PROMPT + max(map(max, self.lengths))
        parts = torch.split(values_C, [n for pair in self.lengths for n in pair])
        rows = [*parts[0::2], *parts[1::2]]
        return torch.stack(
            [
                torch.nn.functional.pad(row, (PROMPT - 1, longest - 1 - (PROMPT - 1) - len(row)))
                for row in rows
            ]
        )

    def mask(self) -> Tensor:
        longest = PROMPT + max(map(max, self.lengths))
        lengths = [*(c for c, _ in self.lengths), *(r for _, r in self.lengths)]
        return torch.tensor([[0] * PROMPT + [1] * n + [0] * (longest - PROMPT - n) for n in lengths])


def ours(kind: str, rows: Rows, **settings: Any) -> tuple[float, Tensor]:
    module = registry.entry("demeanor.objectives", kind)
    leaf = rows.policy.clone().requires_grad_()
    found = module.loss(
        module.Spec(**settings), Outputs(logprobs_C=leaf, collision_C=rows.collision), rows.batch
    )
    (found.total / found.count).backward()
    assert leaf.grad is not None
    return float(found.total.detach() / found.count), leaf.grad


def trl_dpo(
    rows: Rows,
    loss_type: str | list[str],
    *,
    beta: float = 0.1,
    weights: list[float] | None = None,
    **more: Any,
) -> tuple[float, Tensor]:
    from collections import defaultdict

    from trl.trainer.dpo_trainer import DPOTrainer

    leaf = rows.policy.clone().requires_grad_()
    mask = rows.mask()
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=0.5,
        loss_types=[loss_type] if isinstance(loss_type, str) else loss_type,
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=0.05),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    stub.loss_weights = weights or [1.0] * len(stub.loss_types)
    for name, value in more.items():
        setattr(stub, name, value)
    nothing = torch.zeros_like(rows.padded(leaf))
    answer = SimpleNamespace(
        log_probs=rows.padded(leaf),
        log_sum_sq_probs=rows.padded(rows.collision),
        entropy=nothing,
        mean_logits=nothing,
        is_top1=nothing.bool(),
        logits=None,
        aux_loss=None,
    )
    alpha = stub.ld_alpha
    sums = reference_sums(rows, alpha)
    inputs = {
        "input_ids": torch.full_like(mask, 2),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": sums[0::2],
        "ref_rejected_logps": sums[1::2],
    }
    loss = DPOTrainer._compute_loss(stub, lambda **_: answer, inputs, False)
    loss.backward()
    assert leaf.grad is not None
    return float(loss.detach()), leaf.grad


def reference_sums(rows: Rows, alpha: float | None) -> Tensor:
    if alpha is None:
        return branch_sums(rows.reference, rows.batch)
    parts = torch.split(rows.reference, [n for pair in rows.lengths for n in pair])
    shared = [min(pair) for pair in rows.lengths for _ in pair]
    return torch.stack([p[:n].sum() + alpha * p[n:].sum() for p, n in zip(parts, shared)])


def close(found: tuple[float, Tensor], wanted: tuple[float, Tensor]) -> None:
    assert found[0] == pytest.approx(wanted[0], abs=1e-6)
    assert torch.allclose(found[1], wanted[1], atol=1e-6)
    assert float(wanted[1].abs().max()) > 1e-4  # something was compared


DPO = {
    "dpo": ("sigmoid", {"beta": 0.1}, {}, {}),
    "hinge": ("hinge", {"beta": 0.3}, {}, {"beta": 0.3}),
    "robust": ("robust", {"beta": 0.1, "label_smoothing": 0.2}, {}, {"label_smoothing": 0.2}),
    "exo": ("exo_pair", {"beta": 0.1, "label_smoothing": 0.01}, {}, {"label_smoothing": 0.01}),
    "nca": ("nca_pair", {"beta": 0.1}, {}, {}),
    "sppo": ("sppo_hard", {"beta": 0.1}, {}, {}),
    "aot": ("aot", {"beta": 0.1, "label_smoothing": 0.1}, {}, {"label_smoothing": 0.1}),
    "aot_unpaired": ("aot_unpaired", {"beta": 0.1}, {}, {}),
    "discopop": ("discopop", {"beta": 0.1, "tau": 0.05}, {}, {}),
    "tr_dpo": ("sigmoid", {"beta": 0.1}, {}, {}),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", list(DPO))
def test_a_pair_loss_is_trls(kind: str, seed: int) -> None:
    theirs, mine, _, stub = DPO[kind]
    rows = Rows(seed)
    close(ours(kind, rows, **mine), trl_dpo(rows, theirs, **stub))


@pytest.mark.parametrize("variant", ["zero", "down"])
def test_apo_is_trls(variant: str) -> None:
    rows = Rows()
    close(ours("apo", rows, variant=variant), trl_dpo(rows, f"apo_{variant}"))


@pytest.mark.parametrize(("kind", "theirs", "beta"), [("ipo", "ipo", 0.2), ("ln_dpo", "sigmoid_norm", 5.0)])
def test_length_normalised_losses_are_trls(kind: str, theirs: str, beta: float) -> None:
    rows = Rows()
    close(ours(kind, rows, beta=beta), trl_dpo(rows, theirs, beta=beta))


@pytest.mark.parametrize(
    ("mine", "theirs", "alpha"),
    [
        ("reverse_kl", "reverse_kl", 0.5),
        ("forward_kl", "forward_kl", 0.5),
        ("js", "js_divergence", 0.5),
        ("alpha", "alpha_divergence", 0.3),
    ],
)
def test_f_divergences_are_trls(mine: str, theirs: str, alpha: float) -> None:
    """TRL's coefficient is 1 - alpha of the paper. Its exponential of the alpha divergence is fp32, and it refuses fp64."""
    rows = Rows()
    if mine == "alpha":
        rows.policy, rows.reference = rows.policy.float(), rows.reference.float()
        rows.batch = rows.batch._replace(reference_C=rows.reference)
    close(
        ours("f_dpo", rows, divergence=mine, alpha=alpha),
        trl_dpo(rows, "sigmoid", f_divergence_type=theirs, f_alpha_divergence_coef=1 - alpha),
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_ld_dpo_is_trls(alpha: float) -> None:
    rows = Rows()
    close(ours("ld_dpo", rows, alpha=alpha), trl_dpo(rows, "sigmoid", ld_alpha=alpha))


def test_wpo_is_trls() -> None:
    rows = Rows()
    close(ours("wpo", rows), trl_dpo(rows, "sigmoid", use_weighting=True))


def test_a_mixture_is_trls() -> None:
    rows = Rows()
    parts = [
        {"kind": "dpo", "weight": 0.8},
        {"kind": "nca", "weight": 0.2, "beta": 0.1},
        {"kind": "apo", "weight": 0.5},
    ]
    close(
        ours("mixture", rows, parts=parts),
        trl_dpo(rows, ["sigmoid", "nca_pair", "apo_zero"], weights=[0.8, 0.2, 0.5]),
    )


def test_iterative_rpo_is_trls_where_lengths_are_equal() -> None:
    """TRL's `sft` part averages over the tokens of the batch, ours over each completion's: equal at equal lengths."""
    rows = Rows(equal_lengths=True)
    close(ours("dpo", rows, nll=0.7), trl_dpo(rows, ["sigmoid", "sft"], weights=[1.0, 0.7]))


def test_trl_drops_label_smoothing_of_dpo_and_we_do_not() -> None:
    rows = Rows()
    assert trl_dpo(rows, "sigmoid", label_smoothing=0.3)[0] == pytest.approx(trl_dpo(rows, "sigmoid")[0])
    assert ours("dpo", rows, label_smoothing=0.3)[0] != pytest.approx(ours("dpo", rows)[0])


def test_bco_is_trls_where_the_shift_is_taken_out() -> None:
    """TRL's bco_pair has no delta: with rewards moved so that delta is 0 both agree (per completion ours, per pair theirs)."""
    rows = Rows()
    ratio = branch_sums(rows.policy - rows.reference, rows.batch)
    delta = 0.5 * (ratio[0::2].mean() + ratio[1::2].mean())
    lengths = torch.bincount(rows.batch.branch_C).double()
    rows.reference = rows.reference + (delta / lengths)[rows.batch.branch_C]
    labels = torch.tensor([1, 0] * PAIRS)
    rows.batch = rows.batch._replace(
        reference_C=rows.reference, label_B=labels, rank_B=torch.zeros_like(labels)
    )
    found, gradient = ours("bco", rows)
    close((2 * found, 2 * gradient), trl_dpo(rows, "bco_pair"))


# ---- no reference ----


@pytest.mark.parametrize(
    ("kind", "loss_type", "mine", "stub"),
    [
        ("simpo", "simpo", {"beta": 2.0, "gamma": 1.2}, {"beta": 2.0, "simpo_gamma": 1.2}),
        (
            "simpo",
            "simpo",
            {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.1},
            {"beta": 2.0, "simpo_gamma": 0.5, "label_smoothing": 0.1},
        ),
        (
            "alphapo",
            "simpo",
            {"beta": 2.0, "gamma": 0.5, "alpha": 0.25},
            {"beta": 2.0, "simpo_gamma": 0.5, "alpha": 0.25},
        ),
        ("cpo", "sigmoid", {"beta": 0.1, "nll": None}, {"beta": 0.1}),
    ],
)
def test_losses_without_a_reference_are_trls(
    kind: str, loss_type: str, mine: dict[str, Any], stub: dict[str, Any]
) -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    rows = Rows()
    leaf = rows.policy.clone().requires_grad_()
    sums = branch_sums(leaf, rows.batch)
    if loss_type == "simpo":
        sums = sums / torch.bincount(rows.batch.branch_C)
    me = SimpleNamespace(
        **{"alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.0, "loss_type": loss_type, **stub},
        accelerator=SimpleNamespace(device="cpu"),
    )
    theirs = CPOTrainer.cpo_loss(me, sums[0::2], sums[1::2])[0].mean()
    theirs.backward()
    assert leaf.grad is not None
    close(ours(kind, rows, **mine), (float(theirs.detach()), leaf.grad))


def test_the_odds_ratio_is_trls() -> None:
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    rows = Rows()
    mean = branch_sums(rows.policy, rows.batch) / torch.bincount(rows.batch.branch_C)
    odds = ORPOTrainer.odds_ratio_loss(
        SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu")), mean[0::2], mean[1::2]
    )[0].mean()
    assert ours("orpo", rows, beta=0.3)[0] == pytest.approx(float(-mean[0::2].mean() - odds), abs=1e-6)


# ---- rows with labels ----


@pytest.mark.parametrize("kind", ["kto", "apo_unpaired"])
def test_losses_of_labelled_rows_are_trls(kind: str) -> None:
    from collections import defaultdict

    from trl.trainer.kto_trainer import KTOTrainer

    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    lengths = [(draw.randrange(2, 8), draw.randrange(2, 8)) for _ in range(9)]
    labels = [draw.random() < 0.5 for _ in lengths]
    trees = [
        Tree(
            (1,) * PROMPT, tuple(Branch((2,) * n, (True,) * n) for n in pair), (0, 0), labels=(int(good), -1)
        )
        for pair, good in zip(lengths, labels)
    ]
    count = sum(map(sum, lengths))
    policy = -3 * torch.rand(count, generator=generator, dtype=torch.float64)
    reference = policy.detach() - 0.5 + torch.randn(count, generator=generator, dtype=torch.float64)
    batch = collate(trees)._replace(reference_C=reference)
    module = registry.entry("demeanor.objectives", kind)
    leaf = policy.clone().requires_grad_()
    found = module.loss(
        module.Spec(desirable_weight=1.3, undesirable_weight=0.8), Outputs(logprobs_C=leaf), batch
    )
    (found.total / found.count).backward()

    other = policy.clone().requires_grad_()
    sums, reference_B = branch_sums(other, batch), branch_sums(reference, batch)
    longest = PROMPT + max(n for n, _ in lengths)
    parts = torch.split(other, [n for pair in lengths for n in pair])[0::2]
    rows = torch.stack([torch.nn.functional.pad(p, (PROMPT - 1, longest - PROMPT - len(p))) for p in parts])
    mask = torch.tensor([[0] * PROMPT + [1] * n + [0] * (longest - PROMPT - n) for n, _ in lengths])
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=kind == "kto",
        beta=0.1,
        desirable_weight=1.3,
        undesirable_weight=0.8,
        loss_type="kto" if kind == "kto" else "apo_zero_unpaired",
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        _compute_kl_logps=lambda *_: sums[1::2].detach(),
    )
    answer = SimpleNamespace(
        log_probs=rows,
        entropy=torch.zeros_like(rows),
        mean_logits=torch.zeros_like(rows),
        is_top1=torch.zeros_like(rows).bool(),
        aux_loss=None,
    )
    inputs = {
        "input_ids": torch.full_like(mask, 2),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": torch.tensor(labels),
        "ref_logps": reference_B[0::2],
        "ref_KL_logps": reference_B[1::2],
    }
    theirs = KTOTrainer._compute_loss(stub, lambda **_: answer, inputs, False)
    theirs.backward()
    assert leaf.grad is not None
    assert other.grad is not None
    close((float(found.total.detach() / found.count), leaf.grad), (float(theirs.detach()), other.grad))
    if kind == "kto":
        assert float(found.metrics["kl"][0]) > 0  # the estimate is at work


# ---- reward models and imitation ----


@pytest.mark.parametrize("center", [None, 0.05])
@pytest.mark.parametrize("margin", [False, True])
def test_the_reward_loss_is_trls(center: float | None, margin: bool) -> None:
    from collections import defaultdict

    from trl.trainer.reward_trainer import RewardTrainer

    rewards = torch.randn(2 * PAIRS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    margins = [0.1 * i for i in range(PAIRS)]
    trees = [
        Tree((1,), (Branch((2,), (True,)), Branch((3,), (True,))), (0, 1), margin=m if margin else None)
        for m in margins
    ]
    module = registry.entry("demeanor.objectives", "reward")
    leaf, other = rewards.clone().requires_grad_(), rewards.clone().requires_grad_()
    found = module.loss(module.Spec(center=center), Outputs(rewards_B=leaf), collate(trees, read_last=True))
    (found.total / found.count).backward()
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=center),
        _total_train_tokens=0,
        _tp_size=1,
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"train": defaultdict(list)},
    )
    inputs: dict[str, Any] = {"attention_mask": torch.ones(2)}
    if margin:
        inputs["margin"] = torch.tensor(margins)
    theirs = RewardTrainer.compute_loss(
        stub, lambda **_: SimpleNamespace(logits=torch.cat([other[0::2], other[1::2]])[:, None]), inputs
    )
    theirs.backward()
    assert leaf.grad is not None
    assert other.grad is not None
    close((float(found.total.detach() / found.count), leaf.grad), (float(theirs.detach()), other.grad))


@pytest.mark.parametrize(("kind", "theirs"), [("sft", "nll"), ("dft", "dft")])
def test_imitation_is_trls(kind: str, theirs: str) -> None:
    from collections import defaultdict

    from trl.trainer.sft_trainer import SFTTrainer

    rows = Rows()
    leaf = rows.policy.clone().requires_grad_()
    mask = rows.mask()
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        compute_loss_func=None,
        label_smoother=None,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(gather_for_metrics=lambda x: x, parallelism_config=None, num_processes=1),
        _total_train_tokens=0,
        _tp_size=1,
        args=SimpleNamespace(loss_type=theirs, average_tokens_across_devices=False),
    )
    padded = rows.padded(leaf)
    answer = SimpleNamespace(
        log_probs=padded,
        label_mask=mask[:, 1:].bool(),
        entropy=torch.zeros_like(padded),
        is_top1=torch.zeros_like(padded).bool(),
    )
    inputs = {"input_ids": torch.full_like(mask, 2), "labels": mask, "attention_mask": torch.ones_like(mask)}
    loss = SFTTrainer.compute_loss(stub, lambda **_: answer, inputs)
    loss.backward()
    assert leaf.grad is not None
    close(ours(kind, rows), (float(loss.detach()), leaf.grad))

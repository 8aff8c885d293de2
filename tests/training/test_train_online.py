"""The online loop: what an iteration draws, what of it trains, and that no cut of it changes the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from demeanor.core import registry
from demeanor.core.errors import DemeanorError
from demeanor.data.trees import Branch, Tree
from demeanor.model import checkpoints
from demeanor.model.heads import policy_outputs
from demeanor.model.reward_model import ActorCritic
from demeanor.objectives import Objective
from demeanor.stack.schema import ModelShape, OnlineStage
from demeanor.training.iteration import (
    Iteration,
    batch_of,
    iteration_of,
    minibatches,
    paths_of,
    ranked,
    rollout_metrics,
    samples_of,
    seeds,
    units_of,
)
from demeanor.training.loop import Mix, accumulate, running
from demeanor.training.online import Setup, Trainer
from demeanor.training.parallel import ALONE
from demeanor.training.rewards import Rollout, Task, TokenPath
from tests.conftest import each

SHAPE = ModelShape(layers=2, width=32, heads=2, context=64)


def stage(**changes: Any) -> OnlineStage:
    given = {
        "name": "rl",
        "objective": {"kind": "grpo"},
        "prompts": [{"source": "world:preferences"}],
        "reward": [{"kind": "item"}],
        "optim": {"lr": 1e-2, "warmup": 0.0, "clip_norm": None},
        **changes,
    }
    return OnlineStage.model_validate(given)


def rollout(prompt: Sequence[int], tokens: Sequence[int], *, ended: bool = True, **more: Any) -> Rollout:
    written = more.pop("written", (True,) * len(tokens))
    sampled = more.pop("sampled", (-1.0,) * sum(written))
    return Rollout(Task((), tuple(prompt)), tuple(tokens), written, sampled, "text", ended, **more)


def groups(seed: int = 0, count: int = 6, size: int = 3) -> list[list[Rollout]]:
    draw = torch.Generator().manual_seed(seed)
    pick = lambda n: torch.randint(3, 290, (n,), generator=draw).tolist()  # noqa: E731
    lengths = torch.randint(1, 9, (count, size + 1), generator=draw).tolist()
    return [
        [rollout(prompt, pick(n)) for n in row[1:]]
        for row, prompt in ((row, pick(row[0] + 1)) for row in lengths)
    ]


def rewards(rolled: Sequence[Sequence[Rollout]], seed: int = 1) -> list[float | None]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(sum(map(len, rolled)), generator=draw).tolist()


# ---- what an iteration draws ----


def test_seeds_depend_on_the_iteration_alone_and_are_all_different() -> None:
    assert seeds(0, 5, 3, 4) == seeds(0, 5, 3, 4)
    every = [n for i in range(20) for row in seeds(0, i, 8, 8) for n in row]
    assert len(set(every)) == len(every) == 20 * 64
    assert seeds(1, 5, 3, 4) != seeds(0, 5, 3, 4)


# ---- what of it trains ----


def test_an_answer_without_a_reward_is_left_out_and_its_group_goes_on() -> None:
    rolled = [[rollout([1, 2], [3]), rollout([1, 2], [4]), rollout([1, 2], [5])], [rollout([7], [8])]]
    found = iteration_of(stage(), rolled, [1.0, None, 2.0, None])
    assert [r.tokens for r in found.rollouts] == [(3,), (5,)]
    assert found.rewards == (1.0, 2.0)
    assert found.groups == (0, 0)
    assert len(found.units) == 1, "a prompt without any answer left has no tree"


@pytest.mark.parametrize(
    ("how", "wanted"), [("keep", (1.0, 1.0)), ("mask", (1.0,)), ("penalise", (1.0, 0.25))]
)
def test_truncated_answers_are_kept_masked_or_penalised(how: str, wanted: tuple[float, ...]) -> None:
    settings = stage(rollouts={"truncated": how, "penalty": 0.75})
    rolled = [[rollout([1], [2]), rollout([1], [3], ended=False)]]
    found = iteration_of(settings, rolled, [1.0, 1.0])
    assert found.rewards == wanted
    assert [r.ended for r in found.rollouts] == [True, False][: len(wanted)]


def test_tokens_that_the_policy_did_not_write_are_context_and_never_trained() -> None:
    tool = rollout([1, 2], [3, 9, 9, 4, 8], written=(True, False, False, True, False), sampled=(-0.5, -0.7))
    (unit,) = units_of([(0, tool)])
    assert unit.tree.branches == (Branch((3, 9, 9, 4), (True, False, False, True)),), "the end is cut"
    batch = batch_of([unit], {"sampled_C": [torch.tensor([-0.5, -0.7])]}, [0], 1.0, torch.device("cpu"))
    assert batch.targets_C.tolist() == [3, 4]
    assert batch.sampled_C is not None
    assert batch.sampled_C.tolist() == pytest.approx([-0.5, -0.7])


def test_a_later_prompt_of_an_episode_is_a_tree_of_its_own_with_the_same_advantage() -> None:
    later = TokenPath((5, 6), (7, 8), (True, True), (-2.0, -3.0))
    rolled = [[rollout([1, 2], [3], later=(later,)), rollout([1, 2], [4, 4])]]
    found = iteration_of(stage(), rolled, [1.0, 0.0])
    units = [unit for group in found.units for unit in group]
    assert [unit.tree.prompt for unit in units] == [(1, 2), (5, 6)]
    assert [unit.owners for unit in units] == [(0, 1), (0,)]
    columns = {"sampled_C": [torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-2.0, -3.0])]}
    samples, order_C = samples_of(found, units, columns, 0.0)
    assert samples.branch_C.tolist() == [0, 0, 0, 1, 1], "the tokens of an episode stand together"
    assert samples.sampled_C.tolist() == [-1.0, -2.0, -3.0, -1.0, -1.0]
    assert torch.cat(columns["sampled_C"])[order_C].tolist() == samples.sampled_C.tolist()


def test_an_offline_objective_gets_the_best_and_the_worst_and_no_group_without_contrast() -> None:
    rolled = [
        [rollout([1], [2]), rollout([1], [3]), rollout([1], [4])],
        [rollout([5], [6]), rollout([5], [7])],
    ]
    found = iteration_of(stage(), rolled, [0.0, 2.0, 1.0, 3.0, 3.0])
    pairs = ranked(found, "preferences")
    assert [[b.tokens for b in u.tree.branches] for (u,) in pairs.units] == [[(3,), (2,)]]
    assert pairs.units[0][0].tree.ranks == (0, 1)
    best = ranked(found, "examples")
    assert [[b.tokens for b in u.tree.branches] for (u,) in best.units] == [[(3,)]]


# ---- gradients ----


class Made(NamedTuple):
    model: nn.Module
    trainer: Trainer
    found: Iteration


def made(kind: str, *, flat: int = 0, micro: int = 8192, **changes: Any) -> Made:
    """A trainer with a random policy, and an iteration of it; `flat` groups have equal rewards."""
    objective: Objective = registry.entry("demeanor.objectives", kind)
    settings = objective.Spec.model_validate(changes.pop("settings", {}))
    torch.manual_seed(0)
    policy: nn.Module = checkpoints.create(SHAPE, 300, 0)
    if objective.ONLINE is not None and objective.ONLINE.critic:
        policy = ActorCritic(policy, checkpoints.reward_from(checkpoints.create(SHAPE, 300, 1), 0))
    rolled = groups()
    values = rewards(rolled)
    values[: 3 * flat] = [0.5] * (3 * flat)
    setup = Setup(
        stage(objective={"kind": kind}, **changes),
        objective,
        settings,
        [r[0].task for r in rolled],
        roll=lambda model, tasks, numbers: [],
        score=None,  # type: ignore[arg-type]
        forward=policy_outputs,
        untrained=lambda: checkpoints.create(SHAPE, 300, 0),
        reference=checkpoints.create(SHAPE, 300, 0),
    )
    trainer = Trainer(policy, setup, None, ALONE, lambda: 0.0)
    return Made(policy, trainer, iteration_of(setup.stage, rolled, values))


def gradient_of(kind: str, micro_tokens: int, **changes: Any) -> list[torch.Tensor]:
    model, trainer, found = made(kind, **changes)
    units = [unit for group in found.units for unit in group]
    columns, _ = trainer.columns(found, units)
    (cut,) = minibatches(units, [[i] for i in range(len(units))], 1, micro_tokens)
    assert micro_tokens > 1000 or len(cut) >= 4
    batches = [batch_of(units, columns, part, 1.0, trainer.device) for part in cut]
    accumulate(model, trainer.forward, trainer._loss, batches, None)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("grpo", {}),
        ("grpo", {"normaliser": "grpo"}),
        ("grpo", {"normaliser": "dr_grpo"}),
        ("grpo", {"kl": "k3", "kl_coef": 0.1}),
        ("rloo", {}),
        ("gspo", {}),
        ("cispo", {}),
        ("ppo", {}),
    ],
)
def test_micro_batches_do_not_change_the_gradient(kind: str, settings: dict[str, Any]) -> None:
    """Fact 1 of online.md: the divisor is of the optimiser step, whatever fits in memory at once."""
    whole, parts = (gradient_of(kind, size, settings=settings) for size in (100_000, 24))
    for a, b in each(zip(whole, parts)):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("settings", [{}, {"normaliser": "grpo"}, {"normaliser": "dr_grpo"}])
def test_groups_without_contrast_are_left_out_without_changing_the_step(settings: dict[str, Any]) -> None:
    model, trainer, found = made("grpo", flat=2, settings=settings)
    units = [unit for group in found.units for unit in group]
    columns, _ = trainer.columns(found, units)
    (cut,) = minibatches(units, [[i] for i in range(len(units))], 1)
    kept, more = trainer._skipped(units, columns, cut)
    assert sum(map(len, kept)) == len(units) - 2, "both flat groups are left out"
    assert more > 0
    every = [batch_of(units, columns, part, 1.0, trainer.device) for part in cut]
    accumulate(model, trainer.forward, trainer._loss, every, None)
    whole = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    some = [batch_of(units, columns, part, 1.0, trainer.device) for part in kept]
    gradient = accumulate(model, trainer.forward, trainer._loss, some, None, more=more)
    for a, parameter in each(zip(whole, (p for p in model.parameters() if p.grad is not None))):
        torch.testing.assert_close(a, parameter.grad, rtol=2e-4, atol=2e-6)
    lengths = torch.tensor([n for unit in units for n in unit.lengths])
    online = trainer.setup.objective.ONLINE
    assert online is not None
    assert gradient.counted == pytest.approx(online.count(trainer.settings, lengths))


def test_a_kl_in_the_loss_or_a_critic_forbids_leaving_groups_out() -> None:
    for kind, settings in (("grpo", {"kl": "k3", "kl_coef": 0.1}), ("ppo", {})):
        _, trainer, found = made(kind, flat=2, settings=settings)
        units = [unit for group in found.units for unit in group]
        columns, _ = trainer.columns(found, units)
        (cut,) = minibatches(units, [[i] for i in range(len(units))], 1)
        assert trainer._skipped(units, columns, cut) == (cut, 0.0), kind


def test_the_second_data_line_adds_weight_times_its_own_mean() -> None:
    """PPO-ptx, and the same for every objective: equation 2 of InstructGPT, per token."""
    from demeanor.data.trees import collate
    from demeanor.objectives.sft import NoSettings, sft

    model, trainer, found = made("rloo")
    units = [unit for group in found.units for unit in group]
    columns, _ = trainer.columns(found, units)
    batches = [batch_of(units, columns, [i], 1.0, trainer.device) for i in range(len(units))]
    texts = [
        Tree((), (Branch((5, 6, 7, 8), (False, True, True, True)),)),
        Tree((9,), (Branch((3,), (True,)),)),
    ]
    line = running(model, policy_outputs, None)

    def gradients(run: Any) -> list[torch.Tensor]:
        run()
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]

    rl = gradients(lambda: accumulate(model, trainer.forward, trainer._loss, batches, None))
    text = gradients(lambda: accumulate(model, line, partial(sft, NoSettings()), [collate(texts)], None))
    mix = Mix(line, partial(sft, NoSettings()), [collate([t]) for t in texts], 0.3)
    both = gradients(lambda: accumulate(model, trainer.forward, trainer._loss, batches, None, mix=mix))
    for a, b, c in each(zip(rl, text, both)):
        torch.testing.assert_close(a + 0.3 * b, c, rtol=2e-4, atol=2e-6)


def test_an_iteration_in_which_nothing_could_be_scored_changes_no_weight() -> None:
    model, trainer, _found = made("grpo")
    before = [p.detach().clone() for p in model.parameters()]
    empty = Iteration((), (), (), (), ())
    metrics, work = trainer.train(0, empty)
    assert metrics["loss"] == 0.0
    assert work == 0.0
    assert all(torch.equal(a, b) for a, b in each(zip(before, model.parameters())))


def test_minibatches_and_inner_epochs_are_optimiser_steps_and_the_first_is_on_policy() -> None:
    """One inner step: the old log-probs are the sampler's, and clipping never bites (online.md 3.4)."""
    model, trainer, found = made("grpo")
    with torch.no_grad():  # the sampler's log-probs are the trainer's own
        units = [unit for group in found.units for unit in group]
        batch = batch_of(units, {}, list(range(len(units))), 1.0, trainer.device)
        drawn = trainer.plain(batch).logprobs_C
        assert drawn is not None
        parts = iter(drawn.split([n for unit in units for n in unit.lengths]))
        paths = {(g, i): next(parts).tolist() for g, u in enumerate(units) for i in range(len(u.paths))}
    truly = tuple(
        r._replace(sampled=tuple(paths[found.groups[n], n % 3])) for n, r in enumerate(found.rollouts)
    )
    found = iteration_of(
        trainer.setup.stage, [truly[i : i + 3] for i in range(0, len(truly), 3)], found.rewards
    )
    metrics, _ = trainer.train(0, found)
    assert metrics["clip_ratio/region_mean"] == 0.0
    assert abs(metrics["kl_sample_train_v1"]) < 1e-6
    later = replace(trainer.setup, stage=stage(inner_epochs=8, optim={"lr": 0.05, "warmup": 0.0}))
    again = Trainer(model, later, None, ALONE, lambda: 0.0)
    metrics, _ = again.train(0, found)
    assert metrics["clip_ratio/region_mean"] > 0.0, "a later pass is off-policy"


def test_paths_of_a_rollout_begin_with_the_shared_prompt() -> None:
    found = rollout([1, 2], [3])
    assert [path.prompt for path in paths_of(found)] == [(1, 2)]


def test_a_group_of_one_is_refused(tmp_path: Path) -> None:
    from demeanor.app import load_stack
    from demeanor.core.errors import SpecError
    from tests.app import tiny_online

    path = tiny_online.write(tmp_path, "rloo", rollouts={"count": 1, "max_tokens": 8})
    with pytest.raises(SpecError, match="one alone has no baseline"):
        load_stack(path)


# ---- what fails, and what layers change ----


def test_a_pair_is_of_one_prompt_and_its_loss_is_of_the_policy_itself() -> None:
    """Layers may give each rollout another prompt; temperature and truncation are of the sampler."""
    best, worst = rollout([1], [2], kept=((2, 5),)), rollout([1], [3])
    changed = worst._replace(task=Task((), (9, 1)))
    same = ranked(iteration_of(stage(), [[best, worst]], [1.0, 0.0]), "preferences")
    assert [unit.paths[0].kept for unit in same.units[0]] == [()]
    assert [len(unit.paths) for unit in same.units[0]] == [2]
    assert ranked(iteration_of(stage(), [[best, changed]], [1.0, 0.0]), "preferences").units == ()
    alone = ranked(iteration_of(stage(), [[worst, changed]], [0.0, 1.0]), "examples")
    assert alone.units[0][0].tree.prompt == (9, 1), "an example keeps its own prompt"


def test_lengths_are_of_all_turns_and_a_failed_rollout_is_not_a_truncated_one() -> None:
    later = TokenPath((5, 6), (7, 8), (True, True), (-2.0, -3.0))
    rolled = [
        [rollout([1], [2], later=(later,)), rollout([1], [], ended=False, error="a tool broke")],
        [rollout([4], [5, 5], ended=False), rollout([4], [5])],
    ]
    found = rollout_metrics(rolled, None)
    assert found["completions/max_length"] == 3
    assert found["completions/mean_terminated_length"] == 2
    assert found["completions/clipped_ratio"] == 0.25
    assert found["completions/failed"] == 0.25


def test_a_run_in_which_every_rollout_fails_ends_with_the_reason() -> None:
    _, trainer, _ = made("grpo")
    failed = [[rollout([1], [], ended=False, error="KeyError: 'sums'")] * 3]
    trainer.setup = replace(trainer.setup, roll=lambda model, tasks, numbers: failed)
    with pytest.raises(
        DemeanorError, match="iteration 1: all 3 rollouts failed, the first with: KeyError: 'sums'"
    ):
        trainer.sample(0)


def test_of_equal_rewards_the_first_is_chosen_whatever_the_order_of_the_others() -> None:
    rolled = [[rollout([1], [n]) for n in (2, 3, 4, 5, 6)]]
    (pair,) = ranked(iteration_of(stage(), rolled, [1.0, 2.0, 0.0, 2.0, 0.0]), "preferences").units
    assert [b.tokens for b in pair[0].tree.branches] == [(3,), (4,)]

"""The online loop against values made by hand: columns, learning rates, controllers, evaluations, and the best weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import checkpoints
from demeanor.model.reward_model import ActorCritic
from demeanor.stack.schema import CostSpec, Optim
from demeanor.training import online, resume
from demeanor.training.controllers import Lagrangian
from demeanor.training.iteration import Iteration, batch_of, iteration_of, samples_of
from demeanor.training.online import Constraint, Setup, Trainer, fit_online, policy_of
from demeanor.training.optimizer import learning_rate
from demeanor.training.progress import StageProgress
from demeanor.training.resume import Interrupted
from demeanor.training.rewards import Rollout, Task, TokenPath
from demeanor.training.runs import LEDGER, read_log
from tests.conftest import each
from tests.training.test_train_online import SHAPE, groups, made, rewards, rollout, stage

CPU = torch.device("cpu")


def of_units(found: Iteration) -> list[Any]:
    return [unit for group in found.units for unit in group]


# ---- what stands where ----


def test_groups_are_numbered_anew_when_a_prompt_lost_all_its_answers() -> None:
    rolled = [[rollout([p], [9]), rollout([p], [8])] for p in (1, 2, 3)]
    found = iteration_of(stage(), rolled, [1.0, 2.0, None, None, 3.0, None])
    assert found.groups == (0, 0, 1)
    assert [unit.tree.prompt for unit in of_units(found)] == [(1,), (3,)]


def test_the_kept_tokens_of_each_draw_stand_beside_it() -> None:
    first = rollout([1], [2, 3], kept=((2, 4), (3, 5, 6)))
    second = rollout([1], [7, 8], kept=((), (8, 9)))
    units = of_units(iteration_of(stage(), [[first, rollout([1], [4]), second]], [0.0, 1.0, 2.0]))
    batch = batch_of(units, {}, [0], 1.0, CPU)
    assert batch.targets_C.tolist() == [2, 3, 4, 7, 8]
    assert batch.kept_K is not None
    assert batch.kept_of_K is not None
    assert list(zip(batch.kept_of_K.tolist(), batch.kept_K.tolist(), strict=True)) == [
        (0, 2),
        (0, 4),
        (1, 3),
        (1, 5),
        (1, 6),
        (4, 8),
        (4, 9),
    ]


def test_an_advantage_comes_back_to_the_tokens_of_its_rollout_in_every_tree() -> None:
    later = TokenPath((5, 6), (7, 8), (True, True), (-2.0, -3.0))
    rolled = [[rollout([1, 2], [4, 4]), rollout([1, 2], [3], later=(later,))]]
    _, trainer, _ = made("rloo", settings={"kl_coef": 0.0})
    found = iteration_of(stage(), rolled, [0.0, 1.0])
    columns, _ = trainer.columns(found, of_units(found))
    assert [x.tolist() for x in columns["advantage_C"]] == [[-1.0, -1.0, 1.0], [1.0, 1.0]]
    units = of_units(found)
    marked = {"sampled_C": [torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-4.0, -5.0])]}
    samples, _ = samples_of(found, units, marked, 0.0)
    assert samples.branch_C.tolist() == [0, 0, 1, 1, 1]
    assert samples.sampled_C.tolist() == [-1.0, -2.0, -3.0, -4.0, -5.0]


# ---- distributions ----


def slow_logprobs(model: nn.Module, found: Iteration, temperature: float) -> list[float]:
    """Log-probs of all drawn tokens by one plain forward a rollout, over what was kept, in order."""
    values = []
    for r in found.rollouts:
        path = (*r.task.tokens, *r.tokens)
        whole = Tree((), (Branch(path, (False,) + (True,) * (len(path) - 1)),))
        batch = collate([whole])
        hidden = model.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.scored_C)  # type: ignore[operator]
        logits = (hidden @ model.head().T)[-len(r.tokens) :] / temperature  # type: ignore[operator]
        for i, (row, token) in enumerate(zip(logits, r.tokens)):
            inside = list(r.kept[i]) if r.kept and r.kept[i] else list(range(len(row)))
            values.append(float(row[token] - row[inside].logsumexp(0)))
    return values


@pytest.mark.parametrize("kind", ["rloo", "dpo"])
@torch.no_grad()
def test_the_reference_is_read_under_the_distribution_that_was_drawn_from_or_the_policys_own(
    kind: str,
) -> None:
    """Online objectives compare what was drawn; a loss of pairs compares the policies themselves."""
    settings = {"kl_coef": 0.1} if kind == "rloo" else {}
    _, trainer, _ = made(kind, settings=settings, rollouts={"temperature": 0.5, "top_k": 3})
    rolled = [[r._replace(kept=tuple((t, 5, 6) for t in r.tokens)) for r in group] for group in groups()[:2]]
    found = iteration_of(trainer.setup.stage, rolled, rewards(rolled))
    if kind == "dpo":
        found = online.ranked(found, "preferences")
    columns, _ = trainer.columns(found, of_units(found))
    assert trainer.setup.reference is not None
    plain = (
        found
        if kind == "rloo"
        else found._replace(rollouts=tuple(r._replace(kept=()) for r in found.rollouts))
    )
    wanted = slow_logprobs(trainer.setup.reference, plain, 0.5 if kind == "rloo" else 1.0)
    assert torch.cat(columns["reference_C"]).tolist() == pytest.approx(wanted, abs=1e-4)


def test_importance_weights_are_of_the_whole_rollout_and_multiply_its_advantages() -> None:
    importance = {"mode": "sequence_truncate", "cap": 1.5}
    _, trainer, _ = made(
        "rloo", settings={"kl_coef": 0.0}, rollouts={"temperature": 1.0, "importance": importance}
    )
    base = groups(count=2, size=2)
    later = TokenPath((5, 6), (7, 8), (True, True), (-5.6, -5.8))
    rolled = [[r._replace(sampled=(-5.75,) * len(r.tokens)) for r in group] for group in base]
    rolled[0][0] = rolled[0][0]._replace(later=(later,))
    found = iteration_of(trainer.setup.stage, rolled, [1.0, 0.0, 0.0, 1.0])
    units = of_units(found)
    columns, metrics = trainer.columns(found, units)
    drawn = torch.cat([torch.tensor(p.sampled, dtype=torch.float64) for u in units for p in u.paths])
    owner = torch.tensor([o for u in units for o, n in zip(u.owners, u.lengths) for _ in range(n)])
    log_C = torch.cat(columns["sampled_C"]).double() - drawn
    log_B = torch.zeros(4, dtype=torch.float64).index_add(0, owner, log_C)
    sign_B = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    wanted = (sign_B * log_B.exp().clamp_max(1.5))[owner]
    assert torch.cat(columns["advantage_C"]).tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
    assert log_B.abs().min() > 1e-3, "every weight differs from 1"
    assert "sampler/ess" in metrics


def test_the_critic_that_is_trained_speaks_on_the_scale_of_its_old_values() -> None:
    model, trainer, found = made("ppo")
    assert isinstance(model, ActorCritic)
    model.shift, model.scale = 2.0, 4.0
    units = of_units(found)
    columns, _ = trainer.columns(found, units)
    batch = batch_of(units, columns, range(len(units)), 1.0, CPU)
    now = trainer.forward(batch).values_C
    raw = model.critic.values(batch)
    assert now is not None
    assert batch.value_C is not None
    torch.testing.assert_close(now.detach(), batch.value_C, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(now, (raw - 2.0) / 4.0, rtol=1e-4, atol=1e-5)


def test_fact_10_a_critic_that_starts_as_the_reward_model_gives_the_normalised_reward_at_the_end(
    tmp_path: Path,
) -> None:
    """Also after the reward model was saved and loaded: its score keeps every bit, and a bias is refused, not lost."""
    saved = checkpoints.reward_from(checkpoints.create(SHAPE, 300, 1), 0)
    checkpoints.save(saved, tmp_path / "rm")
    loaded = checkpoints.load_reward(tmp_path / "rm")
    answer = Tree((5, 6, 7), (Branch((8, 9), (True, True)),))
    longer = Tree((5, 6, 7), (Branch((8, 9, 10), (True, True, True)),))
    reward = saved.rewards(collate([answer], read_last=True))
    assert all(
        torch.equal(a, b) for a, b in each(zip(saved.state_dict().values(), loaded.state_dict().values()))
    )
    torch.testing.assert_close(reward, loaded.rewards(collate([answer], read_last=True)))
    critic = ActorCritic(checkpoints.create(SHAPE, 300, 0), loaded, shift=0.25, scale=0.5)
    values = critic.values(collate([longer]))
    torch.testing.assert_close(values[2:], (reward - 0.25) / 0.5, rtol=1e-5, atol=1e-6)

    from safetensors.torch import load_file, save_file

    from demeanor.core.errors import CheckpointError

    path = tmp_path / "rm" / "model.safetensors"
    save_file({**load_file(path), "score.bias": torch.ones(1)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"score\.bias"):
        checkpoints.load_reward(tmp_path / "rm")


# ---- rates and controllers ----


def test_every_step_has_its_own_learning_rate_and_the_critic_its_share() -> None:
    optim = {"lr": 1e-2, "warmup": 0.5, "clip_norm": None}
    changes = {"inner_epochs": 2, "minibatches": 2, "steps": 2, "batch_rows": 6, "critic_lr": 2e-2}
    _, trainer, found = made("ppo", optim=optim, **changes)
    seen: list[tuple[float, ...]] = []
    step = trainer.optimizer.step

    def noted() -> None:
        seen.append(tuple(sorted({g["lr"] for g in trainer.optimizer.param_groups})))
        step()

    trainer.optimizer.step = noted  # type: ignore[method-assign]
    assert trainer.iterations == 2
    for number in range(2):
        trainer.train(number, found)
    rates = [learning_rate(Optim.model_validate(optim), at, 8) for at in range(8)]
    assert len(set(rates)) >= 7
    assert seen == [pytest.approx((rate, 2 * rate)) for rate in rates]


def test_the_kl_coefficient_is_steered_by_the_number_of_completions() -> None:
    _, trainer, found = made("ppo", settings={"kl_target": 1e-6, "kl_horizon": 100.0, "kl_coef": 0.02})
    metrics, _ = trainer.train(0, found)
    assert metrics["kl/coefficient"] == 0.02, "of this iteration: the old one"
    assert metrics["kl"] != 0
    sign = 1 if metrics["kl"] > 0 else -1
    assert trainer.beta == pytest.approx(0.02 * (1 + sign * 0.2 * 18 / 100))


class Known(NamedTuple):
    """Scores that were made by hand."""

    total: list[float | None]

    def metrics(self) -> dict[str, float]:
        return {}


def test_a_cost_moves_its_multiplier_first_and_is_taken_from_the_reward() -> None:
    _, trainer, _ = made("rloo")
    rolled = groups(count=1, size=2)
    multiplier = Lagrangian(CostSpec.model_validate({"terms": [{"kind": "repetition"}], "limit": 1.0}))
    trainer.setup = replace(
        trainer.setup,
        roll=lambda model, tasks, numbers: rolled,
        score=lambda rollouts: Known([5.0, 7.0]),
        constraint=Constraint(lambda rollouts: Known([2.0, 4.0]), 1.0, multiplier),
    )
    found, metrics = trainer.sample(0)
    moved = 2.718281828459045 ** (0.1 * (3.0 - 1.0))
    assert metrics["cost"] == 3.0
    assert metrics["cost/lambda"] == pytest.approx(moved)
    assert found.rewards == pytest.approx(
        [(r - moved * c) / (1 + moved) for r, c in ((5.0, 2.0), (7.0, 4.0))]
    )


# ---- a whole run with answers made by hand ----


class Seen(NamedTuple):
    """What the probe was shown, by step."""

    weights: dict[int, Tensor]
    scores: dict[int, float]


def run(out: Path, scores: dict[int, float], **changes: Any) -> tuple[nn.Module, Seen]:
    """Four iterations whose probe gives `scores`; returns the model and what the probe saw."""
    seen = Seen({}, scores)
    _, trainer, _ = made("grpo", steps=4, batch_rows=6, **changes)

    def roll(
        model: nn.Module, tasks: Sequence[Task], numbers: Sequence[Sequence[int]]
    ) -> list[list[Rollout]]:
        by_prompt = {g[0].task.tokens: g for g in groups()}
        return [by_prompt[task.tokens][: len(n)] for task, n in zip(tasks, numbers)]

    def probe(model: nn.Module, step: int) -> dict[str, float]:
        seen.weights[step] = first_of(model)
        return {"probe/held_out": scores[step]}

    setup: Setup = replace(
        trainer.setup,
        roll=roll,
        score=lambda rollouts: Known([float(len(r.tokens) + r.tokens[0] % 7) for r in rollouts]),
        probe=probe,
    )
    model = checkpoints.create(SHAPE, 300, 0)
    watch = StageProgress("rl", stream=StringIO(), terminal=False)
    fit_online(model, setup, out=out, watch=watch)
    return model, seen


def first_of(model: nn.Module) -> Tensor:
    return next(policy_of(model).parameters()).detach().clone()


RISING_AND_FALLING = {0: 0.1, 1: 0.4, 2: 0.7, 3: 0.7, 4: 0.2}


def test_the_best_weights_are_those_of_the_first_best_evaluation(tmp_path: Path) -> None:
    best = {"keep": "best", "probe": {"prompts": "world:behaviour"}}
    model, seen = run(tmp_path, RISING_AND_FALLING, **best)
    assert torch.equal(first_of(model), seen.weights[2])
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-2.safetensors"], "only the best is kept"
    assert not torch.equal(seen.weights[2], seen.weights[3])
    last, seen = run(tmp_path / "last", RISING_AND_FALLING)
    assert torch.equal(first_of(last), seen.weights[4])


def test_a_run_killed_between_an_evaluation_and_its_line_in_the_log_keeps_the_same_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = {"keep": "best", "probe": {"prompts": "world:behaviour"}}
    whole, _ = run(tmp_path / "whole", RISING_AND_FALLING, **best)
    save = resume.save_weights

    def killed(path: Path, model: nn.Module) -> None:
        save(path, model)
        if path.name == "best-2.safetensors":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(resume, "save_weights", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", RISING_AND_FALLING, **best)
    again, _ = run(tmp_path / "killed", RISING_AND_FALLING, **best)
    assert all(torch.equal(a, b) for a, b in each(zip(whole.parameters(), again.parameters())))
    logs = [
        [
            (row["step"], row.get("loss"), row.get("eval_probe/held_out"))
            for row in read_log(tmp_path / x / LEDGER)
        ]
        for x in ("whole", "killed")
    ]
    assert logs[0] == logs[1]


def test_with_an_average_the_evaluations_and_the_end_are_of_the_average(tmp_path: Path) -> None:
    optim = {"lr": 1e-2, "warmup": 0.0, "ema": 0.5}
    model, seen = run(tmp_path / "a", RISING_AND_FALLING, optim=optim)
    plain, own = run(tmp_path / "b", RISING_AND_FALLING, optim={**optim, "ema": None})
    assert torch.equal(first_of(model), seen.weights[4])
    mean = own.weights[0]
    for step in (1, 2, 3, 4):
        mean = torch.lerp(mean, own.weights[step], 0.5)
    torch.testing.assert_close(seen.weights[4], mean)
    assert not torch.equal(first_of(model), first_of(plain))


def test_a_stop_while_an_iteration_is_drawn_ends_before_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    whole, _ = run(tmp_path / "whole", RISING_AND_FALLING)
    sample, trained = Trainer.sample, []

    def stopped(self: Trainer, number: int) -> Any:
        found = sample(self, number)
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return found

    train = Trainer.train
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "sample", stopped)
        patched.setattr(Trainer, "train", lambda self, n, found: trained.append(n) or train(self, n, found))
        with pytest.raises(Interrupted, match="stopped after step 2 of 4") as error:
            run(tmp_path / "stopped", RISING_AND_FALLING)
    assert error.value.exit_code == 130
    assert trained == [0, 1]
    again, seen = run(tmp_path / "stopped", RISING_AND_FALLING)
    assert sorted(seen.weights) == [3, 4], "what was evaluated before is not evaluated again"
    assert all(torch.equal(a, b) for a, b in each(zip(whole.parameters(), again.parameters())))


def test_the_numbers_of_a_run_are_saved_and_restored() -> None:
    _, trainer, _ = made("ppo")
    multiplier = Lagrangian(CostSpec.model_validate({"terms": [{"kind": "repetition"}]}))
    trainer.setup = replace(trainer.setup, constraint=Constraint(lambda rollouts: Known([]), 0.0, multiplier))
    trainer.beta = 0.125
    multiplier.update(2.0)
    saved, value = trainer.state(), multiplier.value
    assert saved["beta"] == 0.125
    trainer.beta = 0.5
    multiplier.update(5.0)
    trainer.load(saved)
    assert trainer.beta == 0.125
    assert multiplier.value == value
    trainer.load({})
    assert trainer.beta == 0.125, "a run that begins has nothing to restore"


def test_held_out_rewards_are_of_the_same_draws_at_every_evaluation() -> None:
    _, trainer, _ = made("grpo")
    asked: list[list[list[int]]] = []

    def roll(
        model: nn.Module, tasks: Sequence[Task], numbers: Sequence[Sequence[int]]
    ) -> list[list[Rollout]]:
        asked.append([list(n) for n in numbers])
        return [[rollout(task.tokens, [3])] for task in tasks]

    trainer.setup = replace(trainer.setup, roll=roll, score=lambda rollouts: Known([1.0] * len(rollouts)))
    evaluate = online.reward_evaluator(trainer, [Task((), (5,)), Task((), (6,))])
    for step in (0, 7):
        evaluate(trainer.model, step)
    assert asked[0] == asked[1]
    assert [len(n) for n in asked[0]] == [1, 1]

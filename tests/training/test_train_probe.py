"""The probe's signals by hand, its warnings on planted hacks, its samples across kills, and that it leaves training alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import OPTIM, Rounds, Tiny, loss, outputs, quiet, rows
from torch import nn

from demeanor.training import generation_eval, progress
from demeanor.training.generation_eval import AnswerMetrics, Prompt, SampledAnswer
from demeanor.training.loop import fit
from tests.conftest import each

PROMPTS = [Prompt("one", (1, 2)), Prompt("two", (3,))]
PLAIN = AnswerMetrics(refused=lambda text: text.startswith("no"))


def said(*tokens: int, ended: bool = False) -> SampledAnswer:
    return SampledAnswer(" ".join(map(str, tokens)), tokens, ended)


# ---- signals ----


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ((), 0),
        ((1, 2), 0),
        ((1, 2, 3), 0),
        ((1, 2, 3, 4, 5), 0),
        ((1, 1, 1, 1), 1 / 2),  # 111, 111: the second stood there
        ((1, 2, 3, 1, 2, 3), 1 / 4),  # 123 231 312 123
        ((7,) * 12, 9 / 10),
    ],
)
def test_repetition_is_the_share_of_3_grams_that_stood_there_before(
    tokens: tuple[int, ...], share: float
) -> None:
    assert generation_eval.repetition(tokens) == pytest.approx(share)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ((), 0),
        ((1,), 0),
        ((1, 2, 3), 0),
        ((1, 2, 1), 1 / 3),
        ((1, 2, 3, 9, 1, 2, 3), 3 / 7),
        ((5,) * 4, 3 / 4),
    ],
)
def test_the_longest_repeat_is_a_share_of_the_answer(tokens: tuple[int, ...], share: float) -> None:
    assert generation_eval.longest_repeat(tokens) == pytest.approx(share)


def test_the_longest_repeat_is_that_of_a_slow_search() -> None:
    draw = random.Random(0)
    for _ in range(300):
        tokens = tuple(draw.randrange(3) for _ in range(draw.randrange(1, 20)))
        slow = max(
            (
                n
                for n in range(len(tokens))
                for i in range(len(tokens) - n)
                for j in range(i + 1, len(tokens) - n + 1)
                if tokens[i : i + n] == tokens[j : j + n]
            ),
            default=0,
        )
        assert generation_eval.longest_repeat(tokens) == slow / len(tokens)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [((), (), 1), ((1,), (), 0), ((1, 2), (2, 1), 1), ((1, 1, 2), (1, 3), 2 / 5), ((1,), (2,), 0)],
)
def test_overlap_is_the_f1_of_two_bags(one: tuple[int, ...], other: tuple[int, ...], share: float) -> None:
    assert generation_eval.overlap(one, other) == generation_eval.overlap(other, one) == pytest.approx(share)


def test_counts_are_means_over_answers_and_the_token_that_ends_is_not_said() -> None:
    answers = [
        SampledAnswer("no 5", (4, 5, 9), True),
        SampledAnswer(" ", (), False),
        SampledAnswer("yes", (4, 4, 4, 4), False),
        SampledAnswer("b", (1,), True),
    ]
    found = generation_eval.signals(answers, PLAIN.refused)
    assert found == {
        "length": (2 + 0 + 4 + 0) / 4,
        "ended": 2 / 4,
        "empty": 1 / 4,
        "refused": 1 / 4,
        "repetition": (1 / 2) / 4,
        "loop": (3 / 4) / 4,
    }


def test_divergence_is_that_of_the_formula() -> None:
    """Two tokens, p = (0.5, 0.2), q = (0.25, 0.4): gaps log q/p are -log 2 and log 2."""
    found = generation_eval.divergence(
        [[math.log(0.5)], [math.log(0.2)]], [[math.log(0.25)], [math.log(0.4)]]
    )
    assert found["kl"] == pytest.approx(0.0)
    assert found["kl3"] == pytest.approx(((0.5 - 1 + math.log(2)) + (2 - 1 - math.log(2))) / 2)
    assert generation_eval.divergence([[]], [[]]) == {}


def test_both_estimates_of_the_divergence_are_right_in_the_mean_and_the_third_is_never_negative() -> None:
    """Draws from p over three tokens; KL(p to q) summed by hand."""
    p, q = (0.6, 0.3, 0.1), (0.2, 0.5, 0.3)
    exact = sum(a * math.log(a / b) for a, b in zip(p, q))
    drawn = random.Random(0).choices(range(3), p, k=100_000)
    found = generation_eval.divergence([[math.log(p[i]) for i in drawn]], [[math.log(q[i]) for i in drawn]])
    assert found["kl"] == pytest.approx(exact, abs=0.01)  # standard error 0.0022
    assert found["kl3"] == pytest.approx(exact, abs=0.01)
    assert all(
        generation_eval.divergence([[0.0]], [[gap]])["kl3"] >= 0 for gap in (-5.0, -0.1, 0.0, 0.1, 5.0)
    )
    assert math.isfinite(generation_eval.divergence([[-2000.0]], [[0.0]])["kl3"])


# ---- warnings ----

CALM = {
    "length": 10.0,
    "ended": 1.0,
    "empty": 0.0,
    "refused": 0.0,
    "repetition": 0.1,
    "loop": 0.1,
    "reward": 1.0,
    "held_out": 0.8,
}


@pytest.mark.parametrize(
    ("moved", "name"),
    [
        ({"length": 20.0}, "length"),
        ({"length": 5.0}, "length"),
        ({"repetition": 0.31}, "repetition"),
        ({"loop": 0.4}, "loop"),
        ({"empty": 0.25}, "empty"),
        ({"reward": 1.1, "held_out": 0.69}, "hacking"),
    ],
)
def test_a_signal_that_moves_is_warned_of_by_name_and_alone(moved: dict[str, float], name: str) -> None:
    assert [w.split(":")[0] for w in generation_eval.warnings(CALM, CALM | moved)] == [name]


@pytest.mark.parametrize(
    "moved",
    [
        {},
        {"length": 19.0},
        {"length": 5.5},
        {"repetition": 0.25},
        {"repetition": 0.0},
        {"reward": 5.0},
        {"held_out": 0.2},
        {"reward": 0.9, "held_out": 0.2},
        {"reward": 2.0, "held_out": 0.75},
        {"reward": 2.0, "held_out": 0.9},
    ],
)
def test_what_moves_little_or_to_the_better_is_not_warned_of(moved: dict[str, float]) -> None:
    assert generation_eval.warnings(CALM, CALM | moved) == []


def test_without_a_held_out_score_nothing_is_said_of_hacking() -> None:
    less = {k: v for k, v in CALM.items() if k != "held_out"}
    assert generation_eval.warnings(less, less | {"reward": 9.0}) == []


# ---- the probe in a run ----


def scripted(
    answer: Callable[[int], SampledAnswer], asked: list[int] | None = None
) -> generation_eval.Generate:
    """A model whose answers are a function of how often it was asked."""
    calls = [0] if asked is None else asked

    def generate(model: nn.Module, prompts: Sequence[Prompt]) -> list[SampledAnswer]:
        calls[0] += 1
        torch.rand(3)  # a generator that draws from the global stream must not disturb training
        return [answer(calls[0] - 1) for _ in prompts]

    return generate


def train(
    folder: Path,
    generate: generation_eval.Generate | None,
    metrics: AnswerMetrics = PLAIN,
    *,
    said: list[str] | None = None,
    steps: int = 10,
    stop_at: int | None = None,
) -> Tiny:
    """Ten steps, asked before the first and after each second one."""
    model, watch = Tiny(), quiet()
    lines: list[str] = [] if said is None else said
    evaluate = (
        None
        if generate is None
        else generation_eval.evaluator(PROMPTS, generate, metrics, folder=folder, say=lines.append)
    )
    if stop_at is not None:
        update = watch.update

        def killed(step: int, *rest: Any) -> None:
            update(step, *rest)
            if step == stop_at:
                raise KeyboardInterrupt

        watch.update = killed  # type: ignore[method-assign]
    fit(
        model,
        outputs,
        loss,
        rows(),
        Rounds(rows(), steps),
        OPTIM,
        out=folder,
        watch=watch,
        read_last=False,
        evaluate=evaluate,
    )
    return model


def samples(folder: Path) -> list[tuple[int, str, str]]:
    return [
        (row["step"], row["prompt"], row["answer"])
        for row in progress.read_log(folder / generation_eval.SAMPLES)
    ]


def test_the_weights_are_those_without_a_probe_bit_for_bit(tmp_path: Path) -> None:
    probed = train(tmp_path / "probed", scripted(lambda n: said(n, 1, 2)))
    alone = train(tmp_path / "alone", None)
    assert all(torch.equal(a, b) for a, b in zip(each(probed.parameters()), alone.parameters(), strict=True))


def test_signals_stand_in_the_ledger_and_samples_beside_it(tmp_path: Path) -> None:
    train(tmp_path, scripted(lambda n: said(*range(n), 99, ended=True)))
    found = [row for row in progress.read_log(tmp_path / "ledger.jsonl") if "eval_probe/length" in row]
    assert [(row["step"], row["eval_probe/length"], row["eval_probe/ended"]) for row in found] == [
        (0, 0, 1),
        (2, 1, 1),
        (4, 2, 1),
        (6, 3, 1),
        (8, 4, 1),
        (10, 5, 1),
    ]
    assert samples(tmp_path)[:3] == [(0, "one", "99"), (0, "two", "99"), (2, "one", "0 99")]
    assert len(samples(tmp_path)) == 6 * len(PROMPTS)


def test_agreement_is_with_the_answers_before_the_first_step(tmp_path: Path) -> None:
    train(tmp_path, scripted(lambda n: said(1, 2) if n in (0, 3) else said(1, 7)))
    found = [
        row.get("eval_probe/agreement")
        for row in progress.read_log(tmp_path / "ledger.jsonl")
        if "eval_probe/length" in row
    ]
    assert found == [None, 0.5, 0.5, 1.0, 0.5, 0.5]


def test_a_resume_after_a_kill_duplicates_no_sample_and_loses_none(tmp_path: Path) -> None:
    """Killed in step 5: the checkpoint is of step 4, whose samples stand there; what a torn write left is replaced."""
    asked = [0]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", scripted(lambda n: said(n), asked), stop_at=5)
    with (tmp_path / "killed" / generation_eval.SAMPLES).open("a") as file:
        file.write(
            '{"step": 6, "prompt": "one", "answer": "of a later life", "ended": true, "tokens": [1]}\n{"step": 6, "pro'
        )
    train(tmp_path / "killed", scripted(lambda n: said(n), asked))
    train(tmp_path / "whole", scripted(lambda n: said(n)))
    assert samples(tmp_path / "killed") == samples(tmp_path / "whole")


def test_a_model_that_learns_to_repeat_itself_raises_the_warnings(tmp_path: Path) -> None:
    lines: list[str] = []
    train(tmp_path, scripted(lambda n: said(*range(20)) if n < 3 else said(*[7] * 40)), said=lines)
    warned = [line for line in lines if "WARNING" in line]
    assert [line.split("WARNING ")[1].split(":")[0] for line in warned] == [
        "length",
        "repetition",
        "loop",
    ] * 3
    assert warned[0].startswith("probe after step 6: WARNING length: answers have 40.0 tokens, 20.0 at first")
    assert len(lines) - len(warned) == 6


def test_a_reward_that_rises_while_the_held_out_score_falls_raises_the_warning(tmp_path: Path) -> None:
    lines, calls = [], {"reward": 0, "held_out": 0}

    def rising(trees: Sequence[Any]) -> list[float]:
        calls["reward"] += 1
        return [float(calls["reward"])] * len(trees)

    def falling(answers: Sequence[SampledAnswer]) -> list[float | None]:
        calls["held_out"] += 1
        return [None, 1.0 if calls["held_out"] < 4 else 0.0]  # an unscored answer does not count

    train(
        tmp_path,
        scripted(lambda n: said(1, 2, 3)),
        PLAIN._replace(reward=rising, held_out=falling),
        said=lines,
    )
    warned = [line for line in lines if "WARNING" in line]
    assert [line.split(":")[0] for line in warned] == [
        "probe after step 6",
        "probe after step 8",
        "probe after step 10",
    ]
    assert (
        "hacking: the reward rose from 1.000 to 4.000 while the held-out score fell from 100% to 0%"
        in warned[0]
    )


def test_the_warning_survives_a_resume(tmp_path: Path) -> None:
    """What was first stands in the ledger, not in the process."""
    asked, lines = [0], list[str]()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, scripted(lambda n: said(1, 2), asked), stop_at=5)
    train(tmp_path, scripted(lambda n: said(1, 2, 3, 4, 5), asked), said=lines)
    assert any("WARNING length: answers have 5.0 tokens, 2.0 at first" in line for line in lines)

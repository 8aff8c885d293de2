"""The probe of a real stage: the live weights answer, nothing of them changes, and no key does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from demeanor import app
from demeanor.app import load_stack
from demeanor.core.errors import SpecError
from demeanor.model import checkpoints
from demeanor.stack.schema import GenerationEvalSpec
from demeanor.stack.stack import Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import load_template
from demeanor.training import generation_eval, pipeline, progress
from demeanor.training import generation_eval as probing
from demeanor.training.runs import Runs, weights_folder
from demeanor.training.stage import RunOptions
from tests.app import tiny

PROBE = "weights.stages.dpo.probe={reward: rm, prompts: world:behaviour, count: 3, max_tokens: 8}"


def declared(trained: tuple[Stack, Runs], *overrides: str) -> Stack:
    return load_stack(trained[0].path, overrides)


def rows(stack: Stack, runs: Runs, stage: str) -> list[dict[str, Any]]:
    return [
        row
        for row in progress.read_log(runs.folder(stack.stage_key(stage)) / "ledger.jsonl")
        if "eval_probe/length" in row
    ]


@pytest.fixture(scope="module")
def probed(trained: tuple[Stack, Runs], tmp_path_factory: pytest.TempPathFactory) -> tuple[Stack, Runs]:
    """The tiny stack whose dpo is trained once more, on the same parents, with a probe declared; sft with --probe 4."""
    stack, runs = declared(trained, PROBE), Runs(tmp_path_factory.mktemp("probed"))
    for name in ("base", "rm"):
        shutil.copytree(trained[1].folder(stack.stage_key(name)), runs.folder(stack.stage_key(name)))
    app.train(stack, runs, probe=4, options=RunOptions(dtype="fp32"))
    return stack, runs


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_stage_with_a_probe_is_the_stage_without_it_bit_for_bit(
    stage: str, probed: tuple[Stack, Runs], trained: tuple[Stack, Runs]
) -> None:
    (stack, runs), (plain, plain_runs) = probed, trained
    assert stack.stage_key(stage) == plain.stage_key(stage)
    assert stack.key() == plain.key()
    files = [r.model(stack.stage_key(stage)) / "model.safetensors" for r in (runs, plain_runs)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert rows(stack, runs, stage)
    assert not rows(plain, plain_runs, stage)


def test_before_the_first_step_the_policy_is_its_reference_and_then_it_leaves_it(
    probed: tuple[Stack, Runs],
) -> None:
    found = rows(*probed, "dpo")
    assert [row["step"] for row in found] == [0, 1, 2, 3, 4, 5]
    assert found[0]["eval_probe/kl"] == pytest.approx(0, abs=1e-5)
    assert found[0]["eval_probe/kl3"] == pytest.approx(0, abs=1e-5)
    assert all(row["eval_probe/kl3"] > 1e-6 for row in found[1:])


def test_a_declared_probe_is_judged_and_one_of_held_out_prompts_is_not(probed: tuple[Stack, Runs]) -> None:
    assert {"eval_probe/reward", "eval_probe/held_out"} <= rows(*probed, "dpo")[0].keys()
    assert not {"eval_probe/reward", "eval_probe/held_out"} & rows(*probed, "sft")[0].keys()
    assert not rows(*probed, "rm")


def test_the_samples_are_of_prompts_that_were_held_out(probed: tuple[Stack, Runs]) -> None:
    stack, runs = probed
    found = progress.read_log(runs.folder(stack.stage_key("sft")) / probing.SAMPLES)
    asked = {row["prompt"] for row in found}
    assert len(asked) == 4
    assert len(found) == 4 * len(rows(stack, runs, "sft"))
    stage = stack.stage("sft")
    tokenizer = tokenizers.load(weights_folder(stack, runs, "base"))
    template = load_template(stack.spec.template, tokenizer, folder=None, root=stack.root)
    from demeanor.training import heldout

    trees = pipeline.stage_trees(stack, stage, template, tokenizer, 256, runs.root)  # type: ignore[arg-type]
    kept, held = heldout.split(trees)
    assert asked <= {tokenizer.decode(trees[i].prompt) for i in held}
    assert not asked & {tokenizer.decode(trees[i].prompt) for i in kept}


def test_the_last_answers_are_those_of_the_finished_weights(probed: tuple[Stack, Runs]) -> None:
    stack, runs = probed
    folder = runs.model(stack.stage_key("dpo"))
    found = progress.read_log(folder.parent / probing.SAMPLES)
    tokenizer = tokenizers.load(folder)
    template = load_template(stack.spec.template, tokenizer, folder=folder, root=stack.root)
    items = generation_eval.suite(app.GENERATION, "world:behaviour", stack.root)[:3]
    prompts = [generation_eval.rendered(item, template) for item in items]
    answers = app.GENERATION.generate(
        checkpoints.policy(folder), tokenizer, template, GenerationEvalSpec(max_tokens=8), prompts
    )
    last = [row for row in found if row["step"] == 5]
    assert [row["prompt"] for row in last] == [prompt.text for prompt in prompts]
    assert [row["answer"] for row in last] == [answer.text for answer in answers]


def test_training_a_probed_stage_alone_trains_the_reward_model_that_judges_it(
    trained: tuple[Stack, Runs],
) -> None:
    assert pipeline._needed(declared(trained, PROBE), "dpo") == {"base", "sft", "rm", "dpo"}
    assert pipeline._needed(trained[0], "dpo") == {"base", "sft", "dpo"}


@pytest.mark.parametrize(
    ("override", "error"),
    [
        (
            "weights.stages.dpo.probe={reward: sft}",
            r"probe.reward: unknown earlier reward stage 'sft'. .*Known: rm",
        ),
        ("weights.stages.sft.probe={reward: rm}", r"probe.reward: unknown earlier reward stage 'rm'"),
        (
            "weights.stages.rm.probe={count: 2}",
            "reward trains a reward model: it scores answers and does not write any",
        ),
        ("weights.stages.dpo.probe={prompts: nowhere.jsonl}", r"probe.prompts: no such file"),
        (
            "weights.stages.dpo.probe={prompts: world:nothing}",
            r"probe.prompts: unknown suite 'world:nothing'. Did you mean 'world:behaviour'",
        ),
        ("weights.stages.dpo.probe={count: 0}", r"probe.count"),
    ],
)
def test_a_probe_that_cannot_work_is_an_error_of_the_file(override: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=error):
        load_stack(tiny.write(tmp_path), [override])


def test_samples_prints_the_answers_of_one_prompt_under_each_other(
    probed: tuple[Stack, Runs], capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.cli import main

    stack, runs = probed
    folder = runs.folder(stack.stage_key("sft"))
    assert main(["samples", str(folder), "--prompts", "2"]) == 0
    by_folder = capsys.readouterr().out
    assert (
        main(["samples", str(stack.path), "--stage", "sft", "--runs", str(runs.root), "--prompts", "2"]) == 0
    )
    assert capsys.readouterr().out == by_folder
    found = progress.read_log(folder / probing.SAMPLES)
    steps, prompts = (
        list(dict.fromkeys(row["step"] for row in found)),
        list(dict.fromkeys(row["prompt"] for row in found)),
    )
    shown = by_folder.splitlines()
    assert sum(line.startswith("## ") for line in shown) == 2
    for prompt in prompts[:2]:
        start = shown.index("## " + json.dumps(prompt, ensure_ascii=False)[1:-1])
        assert [int(line.split()[0]) for line in shown[start + 1 : start + 1 + len(steps)]] == steps


def test_samples_of_a_run_without_any_say_how_to_get_them(
    trained: tuple[Stack, Runs], capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.cli import main

    stack, runs = trained
    assert main(["samples", str(stack.path), "--stage", "dpo", "--runs", str(runs.root)]) == 3
    assert "--probe 16" in capsys.readouterr().err

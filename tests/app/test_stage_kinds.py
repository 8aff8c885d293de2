"""Imported, merged and adapted stages in a whole stack: keys, lineage, what is made, reused, served, and what is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from demeanor import app
from demeanor.app import StackRuntime, load_stack
from demeanor.core.errors import CheckpointError, SpecError
from demeanor.core.types import Decoding, Message, Turn, complete
from demeanor.data.trees import Branch, Tree, collate
from demeanor.engine.local import Request
from demeanor.model import checkpoints, native
from demeanor.model.heads import reward_outputs
from demeanor.stack.stack import Stack, decoding_of
from demeanor.training.plan import plans
from demeanor.training.runs import LEDGER, Runs, read_log, weights_folder
from tests.app import tiny
from tests.conftest import each


def declare(folder: Path, *stages: dict[str, Any], **weights: Any) -> Path:
    """The tiny stack in `folder` with these stages after its own, without runtime layers."""
    path = tiny.write(folder)
    raw = yaml.safe_load(path.read_text())
    raw["layers"] = []
    raw["weights"] = {
        **raw["weights"],
        "stages": [*raw["weights"]["stages"], *stages],
        "serve": None,
        **weights,
    }
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


LORA = {
    "name": "low",
    "objective": "dpo",
    "parent": "sft",
    "data": [{"source": "world:preferences", "limit": 40}],
    "optim": {"lr": 3.0e-3},
    "adapter": {"rank": 4, "targets": ["q_proj", "v_proj"]},
}
MERGED = {"name": "soup", "kind": "merge", "of": ["sft", "low"], "weights": [0.25, 0.75]}


@pytest.fixture(scope="module")
def made(trained: tuple[Stack, Runs], tmp_path_factory: pytest.TempPathFactory) -> tuple[Stack, Runs]:
    """The tiny stack with an adapter, a merge of it, and both a policy and a reward model imported from copies of its own."""
    stack, runs = trained
    folder = tmp_path_factory.mktemp("kinds")
    for stage in ("dpo", "rm"):
        shutil.copytree(weights_folder(stack, runs, stage), folder / f"my-{stage}")
    path = declare(
        folder,
        LORA,
        MERGED,
        {"name": "taken", "kind": "import", "path": "my-dpo"},
        {"name": "judge", "kind": "import", "path": "my-rm", "reward": True},
    )
    found = load_stack(path)
    assert [found.stage_key(s) for s in ("base", "sft", "rm", "dpo")] == [
        stack.stage_key(s) for s in ("base", "sft", "rm", "dpo")
    ]
    app.train(found, runs)
    return found, runs


def test_a_rounded_stage_is_a_stage_of_its_own_on_a_grid_of_8_bits_and_answers(
    made: tuple[Stack, Runs], tmp_path: Path
) -> None:
    _, runs = made
    path = declare(
        tmp_path,
        {"name": "small", "kind": "quantise", "parent": "dpo"},
        {"name": "half", "kind": "quantise", "format": "bf16", "parent": "dpo"},
    )
    found = load_stack(path)
    assert (found.serve, found.chain("small")) == ("half", ["base", "sft", "dpo", "small"])
    assert found.stage_key("small") != found.stage_key("half")
    app.train(found, runs)
    exact = dict(checkpoints.load(weights_folder(found, runs, "dpo")).named_parameters())
    for stage, kind, most in (("small", "int8", 1 / 254), ("half", "bf16", 2**-8)):
        near = dict(checkpoints.load(weights_folder(found, runs, stage)).named_parameters())
        for name, tensor in near.items():
            if tensor.ndim == 2:
                assert native.narrowest(tensor) == kind, name
                assert (
                    float(((tensor - exact[name]).abs().amax(1) / exact[name].abs().amax(1)).max())
                    <= 1.01 * most
                )
            else:
                assert torch.equal(tensor, exact[name])
    runtime = StackRuntime(found, runs, num_slots=2)
    try:
        turn = Turn((Message("user", "Who runs the ferry?"),), decoding_of(found))
        answers = [
            asyncio.run(complete(runtime.respond(found.resolve(f"{found.spec.name}:{s}")), turn))
            for s in ("dpo", "small", "half")
        ]
        assert all(a.completion_tokens for a in answers)
    finally:
        runtime.close()


def test_a_stage_in_groups_is_small_measured_and_answers_as_the_engine_that_was_measured(
    made: tuple[Stack, Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, runs = made
    names = ("q8_0", "q4_0", "q4_1")
    path = declare(
        tmp_path,
        *({"name": name, "kind": "quantise", "format": name, "parent": "dpo"} for name in names),
        {"name": "wide", "kind": "quantise", "format": "q4_0", "parent": "dpo", "activations": "fp32"},
        {"name": "low_head", "kind": "quantise", "format": "q4_0", "parent": "dpo", "head": "q4_0"},
        {**LORA, "name": "on_small", "parent": "q4_0"},
    )
    found = load_stack(path)
    assert len({found.stage_key(name) for name in (*names, "wide", "low_head")}) == 5
    app.train(found, runs)
    said = capsys.readouterr().err
    exact = checkpoints.load(weights_folder(found, runs, "dpo"))
    size = (weights_folder(found, runs, "dpo") / "model.safetensors").stat().st_size
    for name, share, error in (("q8_0", 0.32, 0.006), ("q4_0", 0.25, 0.1), ("q4_1", 0.26, 0.1)):
        folder = weights_folder(found, runs, name)
        assert (folder / "model.safetensors").stat().st_size < share * size
        near = dict(checkpoints.load(folder).named_parameters())
        for tensor_name, tensor in exact.named_parameters():
            away = (near[tensor_name] - tensor).norm() / tensor.norm()
            assert float(away) <= (error if tensor.ndim == 2 else 0.0), tensor_name
        (row,) = read_log(runs.folder(found.stage_key(name)) / LEDGER)
        assert row["loss/difference"] == pytest.approx(row["eval_loss"] - row["loss/before"], abs=1e-6)
        assert row["loss/difference/low"] <= row["loss/difference"] <= row["loss/difference/high"]
        assert abs(row["loss/difference"]) < {"q8_0": 0.01}.get(name, 0.2)
        assert f"{name}: " in said
    assert "held-out rows of dpo" in said
    told = {plan.name: plan.data for plan in plans(found, runs, app.GENERATION.items)}
    assert all(f"{name}: " in told[name] and "MB, held-out loss " in told[name] for name in names), told
    assert "perplexity x 1.0" in said or "perplexity x 0.9" in said
    runtime = StackRuntime(found, runs, num_slots=2)
    try:
        turn = Turn((Message("user", "Who runs the ferry?"),), decoding_of(found))
        for name in (*names, "wide", "low_head", "on_small"):
            answer = asyncio.run(complete(runtime.respond(found.resolve(f"{found.spec.name}:{name}")), turn))
            assert answer.completion_tokens, name
    finally:
        runtime.close()


def test_settings_of_groups_are_refused_with_other_formats(made: tuple[Stack, Runs], tmp_path: Path) -> None:
    stage = {"name": "small", "kind": "quantise", "parent": "dpo"}
    with pytest.raises(SpecError, match=r"head: is read with format q8_0, q4_0 or q4_1; format is int8"):
        load_stack(declare(tmp_path, {**stage, "head": "q4_0"}))
    with pytest.raises(SpecError, match=r"activations: is read with format q8_0, .*; format is bf16"):
        load_stack(declare(tmp_path, {**stage, "format": "bf16", "activations": "fp32"}))


def test_a_reward_model_is_not_rounded(made: tuple[Stack, Runs], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="only a policy is served in few bits"):
        load_stack(declare(tmp_path, {"name": "small", "kind": "quantise", "parent": "rm"}))


def tensors(made: tuple[Stack, Runs], stage: str) -> dict[str, torch.Tensor]:
    return dict(checkpoints.load(weights_folder(*made, stage)).named_parameters())


def test_lineage_knows_every_kind(made: tuple[Stack, Runs]) -> None:
    stack, _ = made
    assert stack.policies == ["base", "sft", "dpo", "low", "soup", "taken"]
    assert stack.serve == "taken"
    assert stack.chain("soup") == ["base", "sft", "low", "soup"]
    assert stack.parent("taken") == "soup"
    assert not stack.is_policy("judge")
    assert stack.needs("soup") == {"of[0]": "sft", "of[1]": "low"}
    assert stack.needs("judge") == {"parent": "base"}
    assert [v.model_id for v in stack.ladder()][-2:] == ["tiny-desk:soup", "tiny-desk"]


def test_a_merge_is_the_average_of_its_stages_as_a_plain_folder(made: tuple[Stack, Runs]) -> None:
    sft, low, soup = (tensors(made, s) for s in ("sft", "low", "soup"))
    assert all(torch.allclose(soup[n], 0.25 * sft[n] + 0.75 * low[n], atol=1e-6) for n in sft)
    assert any(not torch.equal(soup[n], sft[n]) for n in sft)
    names = {p.name for p in weights_folder(*made, "soup").iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "demeanor.json",
    }
    assert not any(name.startswith("adapter") for name in names)


@pytest.mark.parametrize("stage", ["rm", "judge"])
def test_a_reward_folder_gives_our_scores_in_transformers_in_padded_batches(
    made: tuple[Stack, Runs], stage: str
) -> None:
    """Its padding ends no answer: a classifier of transformers reads the score at the last other token."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = weights_folder(*made, stage)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert theirs.config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id not in stops
    ends = [tokenizer.decode([stop]) for stop in stops]
    texts = [
        f"{text}{ends[i % len(ends)]}" for i, text in enumerate(["The ferry.", "No.", "It leaves at seven."])
    ]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert {row[-1] for row in rows} == set(stops)
    trees = [Tree(tuple(r[:1]), (Branch(tuple(r[1:]), (True,) * (len(r) - 1)),)) for r in rows]
    with torch.no_grad():
        padded = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        wanted = theirs(**padded).logits[:, 0]
        found = reward_outputs(checkpoints.load_reward(folder), collate(trees, read_last=True)).rewards_B
    assert found is not None
    assert torch.allclose(found, wanted, atol=1e-5)
    assert float(wanted.std()) > 1e-3


def test_an_import_has_the_weights_it_was_given_and_the_stacks_tokenizer(made: tuple[Stack, Runs]) -> None:
    stack, runs = made
    taken, judge = (weights_folder(stack, runs, s) for s in ("taken", "judge"))
    for folder, name in ((taken, "my-dpo"), (judge, "my-rm")):
        one, other = (
            load_file(folder / "model.safetensors"),
            load_file(stack.root / name / "model.safetensors"),
        )
        assert all(torch.equal(one[n], other[n]) for n in other)
        assert (folder / "tokenizer.json").read_bytes() == (
            weights_folder(stack, runs, "base") / "tokenizer.json"
        ).read_bytes()
    assert checkpoints.checkpoint_info(judge).reward
    record = json.loads((taken / "demeanor.json").read_text())
    assert record["ancestors"] == {"parent": stack.stage_key("base")}


def test_what_exists_is_not_made_again(made: tuple[Stack, Runs], capsys: pytest.CaptureFixture[str]) -> None:
    stack, runs = made
    before = {
        s: (weights_folder(stack, runs, s) / "demeanor.json").stat().st_mtime_ns
        for s in ("low", "soup", "taken")
    }
    app.train(stack, runs)
    assert {
        s: (weights_folder(stack, runs, s) / "demeanor.json").stat().st_mtime_ns for s in before
    } == before
    said = capsys.readouterr()
    assert "merged already" in said.out + said.err
    assert {p.name: p.state for p in plans(stack, runs, app.GENERATION.items)} == dict.fromkeys(
        ["base", "sft", "rm", "dpo", "low", "soup", "taken", "judge"], "trained"
    )


@pytest.mark.parametrize(
    "change",
    [
        "weights.stages.soup.weights=[0.5,0.5]",
        "weights.stages.soup.method=slerp",
        "weights.stages.low.adapter.rank=5",
        "weights.stages.sft.seed=1",
    ],
)
def test_the_key_of_a_merge_holds_its_settings_and_its_ancestors(
    change: str, made: tuple[Stack, Runs]
) -> None:
    stack, _ = made
    other = load_stack(stack.path, [change])
    assert other.stage_key("soup") != stack.stage_key("soup")
    assert other.stage_key("rm") == stack.stage_key("rm") or "sft" in change


def test_the_key_of_an_import_follows_its_content(made: tuple[Stack, Runs], tmp_path: Path) -> None:
    stack, _ = made
    for name in ("my-dpo", "my-rm"):
        shutil.copytree(stack.root / name, tmp_path / name)
    shutil.copytree(stack.root / "notices", tmp_path / "notices")
    shutil.copy(stack.path, tmp_path)
    same = load_stack(tmp_path / "stack.yaml")
    assert same.stage_key("taken") == stack.stage_key("taken")
    model = checkpoints.load(tmp_path / "my-dpo")
    model.model.norm.weight.data += 1
    checkpoints.save(model, tmp_path / "my-dpo")
    assert load_stack(tmp_path / "stack.yaml").stage_key("taken") != stack.stage_key("taken")


def test_an_adapted_a_merged_and_an_imported_stage_answer(made: tuple[Stack, Runs]) -> None:
    stack, runs = made
    runtime = StackRuntime(stack, runs)

    def answer(stage: str) -> str:
        variant = stack.variant(stage)
        return asyncio.run(
            complete(
                runtime.respond(variant),
                Turn((Message("user", "When to Corkel?"),), decoding_of(stack), id=stage),
            )
        ).text

    try:
        assert answer("taken") == answer("dpo")  # one set of weights, twice
        assert all(answer(stage) for stage in ("low", "soup"))
    finally:
        runtime.close()


def test_task_arithmetic_counts_from_the_nearest_common_ancestor(
    made: tuple[Stack, Runs], tmp_path: Path
) -> None:
    stack, runs = made
    path = declare(
        tmp_path,
        LORA,
        {
            "name": "sum",
            "kind": "merge",
            "of": ["dpo", "low"],
            "weights": [1.0, 1.0],
            "method": "task_arithmetic",
        },
    )
    found = load_stack(path)
    assert found.needs("sum")["origin"] == "sft"
    assert found.stage_key("low") == stack.stage_key("low")
    app.train(found, runs)
    sft, dpo, low, total = (tensors((found, runs), s) for s in ("sft", "dpo", "low", "sum"))
    assert all(torch.allclose(total[n], dpo[n] + low[n] - sft[n], atol=1e-5) for n in sft)


def test_an_imported_adapter_goes_on_the_weights_it_names(made: tuple[Stack, Runs], tmp_path: Path) -> None:
    stack, runs = made
    source = weights_folder(stack, runs, "low")
    shutil.copytree(source, tmp_path / "peft")
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(weights_folder(stack, runs, "sft"))
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(settings))
    found = load_stack(declare(tmp_path, {"name": "theirs", "kind": "import", "path": "peft"}))
    app.train(found, runs, only=["theirs"])
    one, other = tensors((found, runs), "theirs"), tensors(made, "low")
    assert all(torch.allclose(one[n], other[n], atol=1e-6) for n in each(other))


def test_a_model_with_another_tokenizer_is_refused_by_the_token(
    made: tuple[Stack, Runs], tmp_path: Path
) -> None:
    stack, runs = made
    shutil.copytree(stack.root / "my-dpo", tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    raw = json.loads(path.read_text())
    vocabulary = raw["model"]["vocab"]
    a, b = sorted(vocabulary, key=vocabulary.__getitem__)[700:702]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(raw))
    found = load_stack(declare(tmp_path, {"name": "other", "kind": "import", "path": "other"}))
    with pytest.raises(
        CheckpointError, match=f"the tokenizer of .* is not the base's: token '{a}' is 701 there and 700 here"
    ):
        app.train(found, runs, only=["other"])


WRONG: dict[str, tuple[list[dict[str, Any]], str]] = {
    "an unknown kind": (
        [{"name": "x", "kind": "marge", "of": ["sft"]}],
        r"weights.stages\[3\].kind: unknown kind of stage 'marge'. Did you mean 'merge'",
    ),
    "a misspelt setting": (
        [{"name": "x", "kind": "merge", "of": ["sft"], "wieghts": [1]}],
        "unknown setting 'wieghts'. Did you mean 'weights'",
    ),
    "an unknown stage": (
        [{"name": "x", "kind": "merge", "of": ["sft", "dop"]}],
        r"of\[1\]: unknown earlier stage 'dop'. Did you mean 'dpo'",
    ),
    "a reward model and a policy": (
        [{"name": "x", "kind": "merge", "of": ["sft", "rm"]}],
        "rm is a reward model; it cannot be merged into a policy",
    ),
    "shares beyond one": (
        [{"name": "x", "kind": "merge", "of": ["sft", "dpo"], "weights": [1, 1]}],
        "got a sum of 2, wanted 1",
    ),
    "a share too few": (
        [{"name": "x", "kind": "merge", "of": ["sft", "dpo"], "weights": [1]}],
        "got 1 numbers, wanted one for each of sft, dpo",
    ),
    "three on an arc": (
        [{"name": "x", "kind": "merge", "of": ["sft", "dpo", "base"], "method": "slerp"}],
        "got 3 stages, wanted 2 for slerp",
    ),
    "no such folder": ([{"name": "x", "kind": "import", "path": "./nowhere"}], "no such folder"),
    "a reward model taken for a policy": (
        [{"name": "x", "kind": "import", "path": "my-rm"}],
        "got false, but .* holds a reward model",
    ),
    "a policy trained on a reward model": (
        [{**LORA, "parent": "rm"}],
        "'rm' is a reward model, which cannot be trained on as a policy",
    ),
    "a misspelt adapter": (
        [{**LORA, "adapter": {"ranc": 3}}],
        r"weights.stages\[3\].adapter.ranc: unknown setting 'ranc'. Did you mean 'rank'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_stage_that_cannot_be_is_told_before_any_work(
    case: str, made: tuple[Stack, Runs], tmp_path: Path
) -> None:
    stages, message = WRONG[case]
    shutil.copytree(made[0].root / "my-rm", tmp_path / "my-rm")
    with pytest.raises(SpecError, match=message):
        load_stack(declare(tmp_path, *stages))


def test_a_reward_stage_may_go_on_from_a_reward_stage(made: tuple[Stack, Runs], tmp_path: Path) -> None:
    more = {
        "name": "rm2",
        "objective": "reward",
        "parent": "rm",
        "data": [{"source": "world:preferences", "limit": 40}],
    }
    found = load_stack(declare(tmp_path, more))
    assert found.chain("rm2") == ["base", "sft", "rm", "rm2"]
    app.train(found, made[1], only=["rm2"])
    heads = [checkpoints.load_reward(weights_folder(found, made[1], s)).score.weight for s in ("rm", "rm2")]
    assert torch.nn.functional.cosine_similarity(*heads) > 0.9


def test_a_gpt2_trains_in_a_stack_and_answers_through_transformers(
    made: tuple[Stack, Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack, runs = made
    shutil.copytree(weights_folder(stack, runs, "base"), tmp_path / "gpt")
    (tmp_path / "gpt" / "model.safetensors").unlink()
    vocab = checkpoints.checkpoint_info(weights_folder(stack, runs, "base")).vocab_size
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab, n_embd=32, n_layer=2, n_head=2, n_positions=256, bos_token_id=0, eos_token_id=0
        )
    ).save_pretrained(tmp_path / "gpt")
    sft = {
        "name": "sft",
        "objective": "sft",
        "data": [{"source": "world:instructions", "limit": 60}],
        "optim": {"lr": 3.0e-3},
        "epochs": 2,
    }
    rm = {"name": "rm", "objective": "reward", "data": [{"source": "world:preferences", "limit": 20}]}
    path = declare(tmp_path)
    raw = yaml.safe_load(path.read_text())
    raw["weights"] = {
        "base": {"kind": "import", "path": "gpt"},
        "stages": [sft, rm, {"name": "copy", "kind": "merge", "of": ["sft"]}],
    }
    path.write_text(yaml.safe_dump(raw))
    found = load_stack(path)
    plans(found, runs, app.GENERATION.items)
    app.train(found, runs)
    assert "base: gpt2 runs through transformers' own forward" in capsys.readouterr().out
    ledger = [
        json.loads(line)
        for line in (runs.folder(found.stage_key("sft")) / "ledger.jsonl").read_text().splitlines()
    ]
    losses = [row["loss"] for row in ledger if "loss" in row]
    assert losses[-1] < losses[0] - 0.3
    assert checkpoints.checkpoint_info(weights_folder(found, runs, "rm")).reward
    runtime = StackRuntime(found, runs, num_slots=2)
    try:
        turn = Turn((Message("user", "Who runs the ferry?"),), Decoding(temperature=0, max_tokens=8))
        prompt = (
            runtime.template(found.resolve(f"{found.spec.name}:sft"))
            .render(turn.messages, (), generate=True)
            .tokens
        )
        said = asyncio.run(complete(runtime.respond(found.resolve(f"{found.spec.name}:sft")), turn))
        with torch.no_grad():
            best = int(
                checkpoints.policy(weights_folder(found, runs, "sft"))
                .inner(torch.tensor([prompt]))
                .logits[0, -1]
                .argmax()
            )
        assert said.completion_tokens
        assert (
            runtime.weights("sft")
            .engine.generate([Request(tuple(prompt), Decoding(temperature=0, max_tokens=1))])[0][0]
            .token
            == best
        )
    finally:
        runtime.close()


def test_explain_shows_every_kind(made: tuple[Stack, Runs], monkeypatch: pytest.MonkeyPatch) -> None:
    from demeanor.cli import explain

    page = StringIO()
    monkeypatch.setattr(explain, "Console", lambda **settings: Console(file=page, width=200, **settings))
    explain.show(*made, full=True)
    assert "linear of sft, low" in page.getvalue()
    assert "my-dpo" in page.getvalue()
    assert "rank: 4" in page.getvalue()


def test_a_finished_stage_is_not_made_again(
    trained: tuple[Stack, Runs], capsys: pytest.CaptureFixture[str]
) -> None:
    stack, runs = trained
    files = [runs.model(stack.stage_key(n)) / "model.safetensors" for n in ("base", "sft", "rm", "dpo")]
    before = [path.stat().st_mtime_ns for path in files]
    app.train(stack, runs)
    assert [path.stat().st_mtime_ns for path in files] == before
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in said] == [
        f"{n}: trained already" for n in ("base", "sft", "rm", "dpo")
    ]


def test_a_corrected_loss_trains_its_stages_again_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from demeanor.core import registry
    from demeanor.objectives import preference_losses

    def keys() -> dict[str, str]:
        stack = load_stack(tiny.write(tmp_path), ["weights.stages.dpo.objective={kind: r_dpo}"])
        return {name: stack.stage_key(name) for name in ("base", "sft", "rm", "dpo")}

    before, entry = keys(), registry.entry("demeanor.objectives", "r_dpo")
    monkeypatch.setitem(preference_losses.ENTRIES, "r_dpo", dataclasses.replace(entry, REVISION=2))
    assert {name for name, key in keys().items() if key != before[name]} == {"dpo"}

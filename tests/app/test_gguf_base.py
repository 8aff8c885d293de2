"""`base: model.gguf`: a stack trains, serves and evaluates on it, its key is of the file's content, and it may move."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from demeanor import app
from demeanor.cli import main
from demeanor.core.errors import CheckpointError, SpecError
from demeanor.core.types import Decoding, Message
from demeanor.engine.scheduler import Request
from demeanor.model import checkpoints
from demeanor.stack.stack import Stack, training_keys
from demeanor.training import gguf_folder
from demeanor.training.runs import LEDGER, Runs, entries, read_log, unneeded, weights_folder
from tests.model import gguf_files

STACK = {
    "name": "gg",
    "weights": {
        "base": "tiny.gguf",
        "stages": [
            {
                "name": "sft",
                "objective": "sft",
                "data": "rows.jsonl",
                "adapter": {"rank": 2},
                "optim": {"lr": 1.0e-3},
            }
        ],
    },
    "template": "model",
    "decoding": {"temperature": 0, "max_tokens": 5},
    "evaluation": {"suites": ["suite.jsonl"]},
}
ROW = '{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]}\n'
ITEM = '{"id": "a", "messages": [{"role": "user", "content": "hello"}], "scorer": "exact", "target": {"answers": ["world"]}, "cluster": "c", "axis": "x"}\n'


def stack_on(folder: Path, form: str = "Q8_0", seed: int = 0) -> tuple[Stack, Runs]:
    gguf_files.write(folder / "tiny.gguf", form=form)
    (folder / "rows.jsonl").write_text(ROW * 8)
    (folder / "suite.jsonl").write_text(ITEM)
    (folder / "stack.yaml").write_text(yaml.safe_dump(STACK))
    return app.load_stack(folder / "stack.yaml"), Runs(folder / "runs")


def test_a_stage_trains_on_it_and_its_folder_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack, runs = stack_on(tmp_path)
    app.train(stack, runs)
    base = weights_folder(stack, runs, "base")
    assert f"imported from {tmp_path / 'tiny.gguf'}" in capsys.readouterr().err
    assert (base / "model.gguf").resolve() == tmp_path / "tiny.gguf", "the weights are not copied"
    trained = checkpoints.load(weights_folder(stack, runs, "sft"))
    before = checkpoints.load(base)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(trained.state_dict()[name], before.state_dict()[name])
    assert torch.equal(trained.head(), before.head())
    assert main(["explain", str(stack.path), "--runs", str(runs.root)]) == 0
    assert [x.state for x in entries(runs.root)] == ["finished", "finished"]
    assert unneeded(entries(runs.root), training_keys(stack)) == []


def test_the_key_is_of_the_content_and_the_file_may_move(tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path)
    folder, key = weights_folder(stack, runs, "base"), stack.stage_key("base")
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "tiny.gguf", tmp_path / "other" / "moved.gguf")
    moved = app.load_stack(stack.path, overrides=["weights.base=other/moved.gguf"])
    assert moved.stage_key("base") == key == folder.parent.name
    assert weights_folder(moved, runs, "base") == folder
    assert (folder / "model.gguf").resolve() == tmp_path / "other" / "moved.gguf"
    gguf_files.write(tmp_path / "tiny.gguf", form="Q4_0")
    assert app.load_stack(stack.path).stage_key("base") != key


def test_another_file_in_its_place_is_noticed(tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path)
    folder = weights_folder(stack, runs, "base")
    gguf_files.write(tmp_path / "tiny.gguf", form="Q4_0")
    with pytest.raises(CheckpointError, match="was changed or damaged since it was written"):
        checkpoints.load(folder)


def test_what_is_no_gguf_file_is_said_before_anything_runs(tmp_path: Path) -> None:
    stack, _ = stack_on(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(
        SpecError, match=r"weights.base.path.*tiny.gguf is not a GGUF file: it begins with b'PK"
    ):
        app.load_stack(stack.path)
    (tmp_path / "tiny.gguf").unlink()
    with pytest.raises(SpecError, match=r"tiny.gguf cannot be read \(No such file"):
        app.load_stack(stack.path)


def test_a_damaged_file_leaves_no_finished_run(tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path)
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(whole[:-100])
    damaged = app.load_stack(stack.path)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf.*cut short"):
        weights_folder(damaged, runs, "base")
    assert not runs.complete(damaged.stage_key("base"))
    assert main(["explain", str(stack.path), "--runs", str(runs.root)]) == 2
    (tmp_path / "tiny.gguf").write_bytes(whole)
    assert weights_folder(app.load_stack(stack.path), runs, "base").is_dir()


def test_an_import_stage_takes_one_too(tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path)
    gguf_files.write(tmp_path / "later.gguf", form="F16", tokenizer=gguf_files.bpe())
    later = app.load_stack(
        stack.path, overrides=["weights.stages=[{kind: import, name: later, path: later.gguf}]"]
    )
    app.train(later, runs)
    found = checkpoints.load(weights_folder(later, runs, "later"))
    wanted = gguf_files.model("llama", found.config.vocab_size)
    assert torch.allclose(found.head(), wanted.head(), atol=1e-3)
    assert unneeded(entries(runs.root), training_keys(later)) == []


def test_it_answers_as_the_folder_of_the_same_weights(tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path, form="F32")
    folder = weights_folder(stack, runs, "base")
    shutil.copytree(folder, tmp_path / "plain", ignore=shutil.ignore_patterns("model.gguf", "demeanor.json"))
    checkpoints.save(checkpoints.load(folder), tmp_path / "plain")
    plain = app.load_stack(stack.path, overrides=["weights.base=plain"])
    answers = [answer(found.variant("base"), runs) for found in (stack, plain)]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 12


def answer(stack: Stack, runs: Runs) -> list[int]:
    """The first twelve tokens that a stack's weights answer with."""
    runtime = app.StackRuntime(stack, runs, operational=False)
    try:
        prompt = runtime.template(stack).render((Message("user", "hello"),), (), generate=True)
        request = Request(tuple(prompt.tokens), Decoding(temperature=0, max_tokens=12), frozenset())
        return [piece.token for piece in runtime.weights(stack.serve).engine.generate([request])[0]]
    finally:
        runtime.close()


@pytest.mark.parametrize("name", ["MODEL.GGUF", "sha256-0123abcd"])
def test_a_file_of_any_name_is_a_base(name: str, tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path)
    key = stack.stage_key("base")
    shutil.move(tmp_path / "tiny.gguf", tmp_path / name)
    named = app.load_stack(stack.path, overrides=[f"weights.base={name}"])
    assert named.stage_key("base") == key
    checkpoints.load(weights_folder(named, runs, "base"))


def test_what_another_version_read_from_a_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, runs = stack_on(tmp_path)
    config = weights_folder(stack, runs, "base") / "config.json"
    right = config.read_text()
    config.write_text("{}")
    weights_folder(stack, runs, "base")
    assert config.read_text() == "{}", "made by this version: kept"
    monkeypatch.setattr(gguf_folder, "READER", gguf_folder.READER + 1)
    weights_folder(stack, runs, "base")
    assert config.read_text() == right


def test_what_another_version_read_is_not_used_where_this_one_refuses_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, folder: Path) -> None:
        raise CheckpointError("what it sets is not computed here")

    stack, runs = stack_on(tmp_path)
    weights_folder(stack, runs, "base")
    monkeypatch.setattr(gguf_folder, "READER", gguf_folder.READER + 1)
    monkeypatch.setattr(gguf_folder, "write", refuse)
    with pytest.raises(CheckpointError, match="not computed here"):
        weights_folder(stack, runs, "base")
    with pytest.raises(CheckpointError, match="not computed here"):
        weights_folder(stack, runs, "base")


WAYS_OUT = {
    "pickled weights": (
        ("config.json", "tokenizer.json", "pytorch_model.bin"),
        "save_pretrained('BASE-safetensors')",
    ),
    "a GGUF file within": (
        ("README.md", "m-Q4_0.gguf"),
        "It holds m-Q4_0.gguf: name that file, BASE/m-Q4_0.gguf",
    ),
    "a slow tokenizer": (("config.json", "model.safetensors", "tokenizer.model"), "writes tokenizer.json"),
}


@pytest.mark.parametrize("name", WAYS_OUT)
def test_a_folder_that_is_refused_says_what_to_do(name: str, tmp_path: Path) -> None:
    stack, _ = stack_on(tmp_path)
    has, wanted = WAYS_OUT[name]
    (tmp_path / "base").mkdir()
    for file in has:
        (tmp_path / "base" / file).touch()
    with pytest.raises(SpecError) as raised:
        app.load_stack(stack.path, overrides=["weights.base=base"])
    assert wanted.replace("BASE", str(tmp_path / "base")) in str(raised.value)


def test_weights_that_do_not_fit_are_named_by_explain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack, runs = stack_on(tmp_path)
    model, tokenizer = checkpoints.load(weights_folder(stack, runs, "base")), gguf_files.bpe()
    checkpoints.save(model, tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    given = ["explain", str(stack.path), "--set", "weights.base=base", "--runs", str(runs.root)]
    assert main(given) == 0
    raw = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": False}))
    assert main(given) == 2
    assert "1 tensors are missing, first lm_head.weight" in capsys.readouterr().err


def test_the_size_before_rounding_has_the_file_under_an_adapter(tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path)
    raw = yaml.safe_load(stack.path.read_text())
    raw["weights"]["stages"].append({"name": "small", "kind": "quantise", "format": "q8_0"})
    stack.path.write_text(yaml.safe_dump(raw))
    rounded = app.load_stack(stack.path)
    app.train(rounded, runs)
    (row,) = read_log(runs.folder(rounded.stage_key("small")) / LEDGER)
    adapter = weights_folder(rounded, runs, "sft") / "adapter_model.safetensors"
    assert row["bytes/before"] == (tmp_path / "tiny.gguf").stat().st_size + adapter.stat().st_size

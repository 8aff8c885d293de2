"""An export is what was served: the same prompts, the same answers; and the check sees it when it is not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from demeanor import app
from demeanor.cli import main
from demeanor.core.errors import CheckpointError, DemeanorError
from demeanor.model import checkpoints
from demeanor.stack.stack import Stack
from demeanor.training import export
from demeanor.training.runs import Runs
from tests.app.test_gguf_base import stack_on


def test_a_folder_for_other_servers_renders_and_answers_as_ours_does(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    stack, runs = trained
    out = export.export(stack, runs, tmp_path / "out", target="hf", dtype="fp32")
    found = app.check_export(stack, runs, out, target="hf", limit=12)
    assert (found.items, found.equal) == (12, True), export.report(found)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"], "nothing is left beside it"


def test_16_bits_are_16_bits(trained: tuple[Stack, Runs], tmp_path: Path) -> None:
    out = export.export(*trained, tmp_path / "out", target="hf", dtype="bf16")
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_damaged_weights_and_another_template_are_seen(trained: tuple[Stack, Runs], tmp_path: Path) -> None:
    stack, runs = trained
    out = export.export(stack, runs, tmp_path / "out", target="hf", dtype="fp32")
    tensors = load_file(out / "model.safetensors")
    tensors["model.norm.weight"] = -tensors["model.norm.weight"]
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    (out / "chat_template.jinja").unlink(missing_ok=True)
    found = app.check_export(stack, runs, out, target="hf", limit=6)
    assert (len(found.prompts), len(found.answers)) == (6, 6)
    said = "\n".join(export.report(found))
    assert "prompts identical to transformers' template and tokenizer: 0 of 6" in said
    assert "answers identical token for token: 0 of 6" in said


def test_nothing_is_written_over_and_a_missing_library_is_named_before_any_work(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty"):
        export.export(*trained, tmp_path, target="hf", dtype="fp32")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else real(name)
    )
    with pytest.raises(DemeanorError, match="pip install onnxruntime-genai"):
        export.export(*trained, tmp_path / "new", target="onnx", dtype="fp32")
    assert not (tmp_path / "new").exists()


def test_the_verb_says_what_it_compared(
    trained: tuple[Stack, Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack, runs = trained
    code = main(
        [
            "export",
            str(stack.path),
            str(tmp_path / "out"),
            "--runs",
            str(runs.root),
            "--model",
            f"{stack.spec.name}:sft",
            "--check",
            "3",
        ]
    )
    said = capsys.readouterr().out
    assert (code, "(sft, hf, fp32)" in said, "answers identical token for token: 3 of 3" in said) == (
        0,
        True,
        True,
    )


def test_a_folder_has_what_a_server_of_transformers_weights_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM reads: architecture, context and ends; the stack's template over the base's own; an index of parts."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    stack, runs = stack_on(tmp_path, form="F32")
    stack = app.load_stack(stack.path, overrides=["template=chatml"])
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 100_000)
    out = export.export(stack.variant("base"), runs, tmp_path / "out", target="hf", dtype="bf16")
    config, tokenizer = AutoConfig.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert (config.architectures, config.max_position_embeddings) == (["LlamaForCausalLM"], 128)
    raw = json.loads((out / "config.json").read_text())
    assert (raw["dtype"], raw["torch_dtype"]) == ("bfloat16", "bfloat16")
    ends = GenerationConfig.from_pretrained(out).eos_token_id
    assert ends == raw["eos_token_id"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
    )
    assert said == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    parts = sorted(out.glob("model-*-of-*.safetensors"))
    assert {p.name for p in parts} == set(index["weight_map"].values())
    assert len(parts) > 1
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).state_dict()
    ours = checkpoints.load(out).state_dict()
    assert all(torch.equal(t, theirs[n].float()) for n, t in ours.items())
    assert app.check_export(stack.variant("base"), runs, out, target="hf", limit=1).prompts == ()


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_genai") is None, reason="onnxruntime-genai is not installed here"
)
def test_an_onnx_model_answers_as_ours_does(trained: tuple[Stack, Runs], tmp_path: Path) -> None:
    stack, runs = trained
    out = export.export(stack, runs, tmp_path / "out", target="onnx", dtype="fp32")
    assert app.check_export(stack, runs, out, target="onnx", limit=6).equal

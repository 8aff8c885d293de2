"""`export --adapter`: one PEFT folder on the weights under the adapters, from a stack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from demeanor import app
from demeanor.cli import main
from demeanor.core.errors import CheckpointError
from demeanor.model import checkpoints
from demeanor.stack.stack import Stack
from demeanor.training import export
from demeanor.training.runs import Runs, weights_folder
from tests.app.test_gguf_base import stack_on


def two_adapters(folder: Path) -> tuple[Stack, Runs]:
    """A stack of an adapter on an adapter, on a Hugging Face folder."""
    stack, runs = stack_on(folder, form="F32")
    plain = export.export(stack.variant("base"), runs, folder / "plain", target="hf", dtype="fp32")
    raw = yaml.safe_load(stack.path.read_text())
    raw["weights"]["base"] = plain.name
    raw["weights"]["stages"].append({**raw["weights"]["stages"][0], "name": "more", "adapter": {"rank": 3}})
    stack.path.write_text(yaml.safe_dump(raw))
    stack = app.load_stack(stack.path)
    app.train(stack, runs)
    return stack, runs


def test_an_adapter_on_an_adapter_is_one_on_the_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack, runs = two_adapters(tmp_path)
    given = [str(stack.path), str(tmp_path / "out"), "--runs", str(runs.root), "--check", "0"]
    assert main(["export", *given, "--adapter"]) == 0
    assert "(more, adapter)" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["r"]) == (str(tmp_path / "plain"), 5)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    found, wanted = (
        checkpoints.load(f).state_dict() for f in (tmp_path / "out", weights_folder(stack, runs, "more"))
    )
    base = checkpoints.load(tmp_path / "plain").state_dict()
    name = "model.layers.1.mlp.up_proj.weight"
    assert all(torch.allclose(t, found[n], atol=1e-6) for n, t in wanted.items())
    assert not torch.equal(base[name], found[name])
    own = json.loads((weights_folder(stack, runs, "more") / "adapter_config.json").read_text())
    assert Path(own["base_model_name_or_path"]).is_absolute(), "PEFT finds the base of a run's folder too"


def test_a_base_by_hand_and_what_has_no_adapter(tmp_path: Path) -> None:
    stack, runs = two_adapters(tmp_path)
    out = export.export_adapter(stack.variant("sft"), runs, tmp_path / "named", base="owner/name")
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/name"
    with pytest.raises(CheckpointError, match="holds whole weights and no adapter"):
        export.export_adapter(stack.variant("base"), runs, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert (
        main(["export", str(stack.path), str(tmp_path / "x"), "--runs", str(runs.root), "--base", "a/b"]) == 2
    )


def test_peft_cannot_load_a_gguf_base_so_its_name_is_asked_for(tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path)
    app.train(stack, runs)
    with pytest.raises(CheckpointError, match=r"its base is a GGUF file \(.*tiny.gguf\).*--base OWNER/NAME"):
        export.export_adapter(stack, runs, tmp_path / "out")
    out = export.export_adapter(stack, runs, tmp_path / "out", base="owner/name")
    assert (out / "adapter_model.safetensors").is_file()


def test_a_moved_folder_of_runs_still_finds_its_bases(tmp_path: Path) -> None:
    stack, runs = two_adapters(tmp_path)
    wanted = checkpoints.load(weights_folder(stack, runs, "more")).state_dict()
    runs.root.rename(tmp_path / "elsewhere")
    found = checkpoints.load(weights_folder(stack, Runs(tmp_path / "elsewhere"), "more")).state_dict()
    assert found.keys() == wanted.keys() != set()
    assert [n for n, t in wanted.items() if not torch.equal(t, found[n])] == []

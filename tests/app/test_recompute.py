"""`recompute` of a stage: the same weights to the bit and the same key; null turns it on where memory needs it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from demeanor import app
from demeanor.core import hardware
from demeanor.model import checkpoints
from demeanor.model.llama import Llama
from demeanor.stack.stack import Stack
from demeanor.training import stage as training
from demeanor.training.plan import plans
from demeanor.training.runs import Runs, weights_folder
from demeanor.training.stage import RunOptions
from tests.app import tiny


def declared(folder: Path, recompute: bool | None) -> Stack:
    """The tiny stack whose SFT stage has the setting."""
    path = tiny.write(folder)
    raw = yaml.safe_load(path.read_text())
    if recompute is not None:
        raw["weights"]["stages"][0]["recompute"] = recompute
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return app.load_stack(path)


def test_the_setting_is_no_part_of_the_key(tmp_path: Path) -> None:
    found = [declared(tmp_path / str(x), x) for x in (None, False, True)]
    assert len({stack.stage_key("sft") for stack in found}) == 1
    assert len({stack.key() for stack in found}) == 1


@pytest.mark.parametrize(
    ("setting", "memory", "computed"),
    [(None, 1 << 40, False), (None, 1 << 20, True), (False, 1 << 20, False), (True, 1 << 40, True)],
)
def test_weights_are_the_same_to_the_bit_and_null_looks_at_the_memory(
    setting: bool | None,
    memory: int,
    computed: bool,
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done, runs = trained
    stack, own = declared(tmp_path, setting), Runs(tmp_path / "runs")
    shutil.copytree(runs.folder(done.stage_key("base")), own.folder(stack.stage_key("base")))
    used: list[bool] = []
    fit = training.fit

    def watched(model: Any, *given: Any, **settings: Any) -> Any:
        used.extend(module.recompute for module in model.modules() if isinstance(module, Llama))
        return fit(model, *given, **settings)

    monkeypatch.setattr(training, "fit", watched)
    monkeypatch.setattr(hardware, "memory_bytes", lambda: memory)
    told = {plan.name: plan.memory for plan in plans(stack, own, app.GENERATION.items)}
    app.train(stack, own, only=["sft"], options=RunOptions(dtype="fp32"))
    assert used == [computed]
    assert ("recomputing" in told["sft"]) == computed
    said = capsys.readouterr().err
    assert ("layers are computed again in the backward pass" in said) == (computed and setting is None)
    wanted = checkpoints.load(weights_folder(done, runs, "sft")).state_dict()
    found = checkpoints.load(weights_folder(stack, own, "sft")).state_dict()
    assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == []

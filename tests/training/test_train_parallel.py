"""Two gloo processes train to the same loss and the same weights as one: FSDP2 under torchrun's environment."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demeanor.model import checkpoints as models
from demeanor.stack.schema import ModelShape, TokenizerSpec
from demeanor.text import tokenizer as tokenizers

KINDS = ("dpo", "reward", "whole", "following")
WORKER = Path(__file__).with_name("pair_of_processes.py")


def launch(folder: Path, size: int, *kinds: str, stop: int = 0) -> None:
    """Run the worker in `size` processes; a new process imports torch for seconds, so one trains several kinds."""
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    together([str(WORKER), str(folder), str(stop), *kinds], size, 130 if stop else 0)


def ledger(folder: Path) -> list[dict[str, float]]:
    """The rows that the first process wrote."""
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def together(arguments: list[str], size: int, code: int = 0, cwd: Path | None = None) -> list[str]:
    """Run Python in `size` processes as torchrun does; returns what each printed."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(size),
    }
    running = [
        subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]
    said = []
    for process in running:
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == code, errors[-2000:]
        said.append(printed + errors)
    return said


@pytest.fixture(scope="module")
def trained_by(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the number of processes: the folder of what they trained."""
    folders = {size: tmp_path_factory.mktemp(f"of_{size}") for size in (1, 2)}
    for size, folder in folders.items():
        launch(folder, size, *KINDS)
    return folders


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_loss_and_the_weights_of_one(trained_by: dict[int, Path], kind: str) -> None:
    found, wanted = ledger(trained_by[2] / kind), ledger(trained_by[1] / kind)
    looks = [[row["eval_logprob"] for row in rows if "eval_logprob" in row] for rows in (found, wanted)]
    assert looks[0] == pytest.approx(looks[1], rel=1e-5)
    assert len(looks[0]) == (0 if kind == "reward" else 6)
    found, wanted = ([row for row in rows if "loss" in row] for rows in (found, wanted))
    assert len(found) == len(wanted) == 6
    for a, b in zip(found, wanted):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5, abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert (a["tokens"], a["count"]) == (b["tokens"], b["count"])
    one, two = (load_file(trained_by[n] / kind / "model.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].shape == two[name].shape
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-4)


def test_a_run_of_two_that_one_ctrl_c_stopped_goes_on_in_one_process(
    tmp_path: Path, trained_by: dict[int, Path]
) -> None:
    launch(tmp_path, 2, "dpo", stop=3)
    assert max(row["step"] for row in ledger(tmp_path / "dpo")) == 3
    launch(tmp_path, 1, "dpo")
    found, wanted = ([r["loss"] for r in ledger(x / "dpo") if "loss" in r] for x in (tmp_path, trained_by[1]))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_two_processes_import_and_round_a_stage_once_and_leave_in_peace(tmp_path: Path) -> None:
    """The first makes it under the run's lock, the other finds it made; both end with code 0."""
    made = tokenizers.train(["the ferry leaves at seven"], TokenizerSpec(vocab_size=300))
    shape = ModelShape(layers=1, width=16, heads=2, context=32)
    for seed, name in enumerate(("base", "other")):
        models.save(models.create(shape, made.vocab_size, seed), tmp_path / name)
        made.save(tmp_path / name)
    (tmp_path / "s.yaml").write_text(
        "name: s\nweights:\n  base: base\n  stages:\n    - {name: other, kind: import, path: other}\n"
        "    - {name: small, kind: quantise, format: int8}\n"
    )
    first, second = together(["-m", "demeanor", "train", "s.yaml"], 2, cwd=tmp_path)
    assert "small: rounded from other" in first
    assert "small: rounded already" in second
    assert "other: imported already" in second
    assert len(list((tmp_path / "runs").glob("*/model/model.safetensors"))) == 2

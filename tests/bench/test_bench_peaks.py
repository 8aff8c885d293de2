"""FLOPs of reading a prompt and shares of the measured peak: by hand, and against what training counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import peaks
from bench.peaks import peak, read_flops, shares
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import checkpoints
from demeanor.stack.schema import ModelShape
from demeanor.training.progress import training_flops


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shape = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 10,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    return tmp_path


def test_flops_of_a_prompt_are_those_of_its_matrices_its_attention_and_one_row_of_the_head(
    folder: Path,
) -> None:
    weights = 2 * (8 * (2 + 2) * 4 + 8 * 8 + 3 * 8 * 16)  # q, k, v; out; gate, up, down; of both layers
    assert read_flops(folder, 3) == (2 * weights * 3, 4 * 8 * 2 * (1 + 2 + 3), 2 * 8 * 10)


def test_reading_needs_a_third_of_what_training_counts(tmp_path: Path) -> None:
    """Training counts a forward and a backward pass, which has twice the products, and the head at every scored token."""
    model = checkpoints.create(ModelShape(layers=2, width=64, heads=2), 300, 0)
    checkpoints.save(model, tmp_path)
    tree = Tree((5, 6, 7), (Branch((8, 9), (False, True)),), (0,))
    batch = collate([tree], read_last=False)
    assert (batch.tokens_T.numel(), batch.scored_C.numel()) == (4, 1)  # the last is only predicted
    found = read_flops(tmp_path, 4)
    assert found.all == pytest.approx(training_flops(model, head=True)(batch) / 3)
    assert found.attention > 0


def test_a_share_is_needed_work_a_second_over_the_peak(folder: Path) -> None:
    needed = read_flops(folder, 4)
    found = shares(folder, 4, 8.0, needed.all * 4 / 1e9)  # two prompts a second, a peak of four
    assert found["of_peak"] == pytest.approx(0.5)
    assert found["of_peak_products_only"] == pytest.approx(0.5 * needed.products / needed.all)


def test_the_peak_is_the_better_of_torch_and_our_kernel(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "torch_gflops", lambda model, format: {"fp32": 10.04, "int8": 30.0}[format])
    monkeypatch.setattr(peaks, "own_gflops", lambda engine: engine)
    assert peak(folder, "exact", 20.0) == {"torch": 10.0, "own": 20.0, "peak": 20.0}
    assert peak(folder, "4-bit", 20.0)["peak"] == 30.0
    assert peak(folder, "fp32") == {"torch": 10.0, "own": None, "peak": 10.0}


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
def test_products_are_measured_in_every_format(folder: Path, format: str) -> None:
    assert peaks.torch_gflops(folder, format) > 0


def test_our_own_product_is_measured_with_the_head(tmp_path: Path) -> None:
    class Held:
        width, vocab = 4, 1000

        def logits(self, rows: torch.Tensor) -> torch.Tensor:
            return rows @ torch.ones(self.width, self.vocab)

    class Engine:
        _forward = type("Forward", (), {"_native": Held()})()

    found = peaks.own_gflops(Engine())
    assert found is not None
    assert found > 0
    assert peaks.own_gflops(object.__new__(type("E", (), {"_forward": None}))) is None

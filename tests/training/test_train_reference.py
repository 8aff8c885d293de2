"""The frozen reference: equal to running each tree alone, computed once, never taken for another model's or other rows'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import Tiny, outputs, rows

from demeanor.data.trees import collate
from demeanor.training.reference import reference_logprobs
from tests.conftest import each


def never() -> torch.nn.Module:
    raise AssertionError("the cache should have answered")


def ask(folder: Path, trees: Any, load: Any = Tiny, **keys: Any) -> list[list[float]]:
    settings = {"model_key": "m", "data_key": "d", "micro_tokens": 20, **keys}
    return reference_logprobs(load, outputs, trees, folder=folder, **settings)


def test_each_tree_gets_the_log_probs_it_has_alone_in_collation_order(tmp_path: Path) -> None:
    trees = rows()
    found = ask(tmp_path, trees)
    for tree, got in zip(each(trees), found, strict=True):
        with torch.no_grad():
            alone = outputs(Tiny(), collate([tree])).logprobs_C
        assert alone is not None
        assert got == pytest.approx(alone.tolist(), abs=1e-6)


def test_the_second_time_no_model_is_loaded_and_the_numbers_are_the_same(tmp_path: Path) -> None:
    trees = rows()
    assert ask(tmp_path, trees) == ask(tmp_path, trees, never)


@pytest.mark.parametrize("change", [{"model_key": "other"}, {"data_key": "other"}, {"dtype": torch.bfloat16}])
def test_another_model_other_data_or_another_format_is_computed_anew(
    change: dict[str, Any], tmp_path: Path
) -> None:
    ask(tmp_path, rows())
    with pytest.raises(AssertionError, match="cache"):
        ask(tmp_path, rows(), never, **change)


def test_a_cache_of_another_length_or_a_torn_one_is_computed_anew(tmp_path: Path) -> None:
    ask(tmp_path, rows(10))
    assert len(ask(tmp_path, rows(12))) == 12
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert len(ask(tmp_path, rows(12))) == 12


def test_a_policy_collated_with_its_own_log_probs_has_a_ratio_of_one(tmp_path: Path) -> None:
    trees = rows()
    known = ask(tmp_path, trees)
    batch = collate(trees, reference=known)
    assert batch.reference_C is not None
    with torch.no_grad():
        logprobs_C = outputs(Tiny(), batch).logprobs_C
    torch.testing.assert_close(logprobs_C, batch.reference_C, rtol=0, atol=1e-6)

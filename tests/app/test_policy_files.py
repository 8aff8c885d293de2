"""Files of a policy in the stack: `builtin:` names, and classifiers that belong to the stack's identity."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from demeanor.app import load_stack
from demeanor.core.errors import SpecError
from demeanor.layers.policy.classifier import FORMAT, write_tensors
from tests.app import tiny


def classifier(path: Path, bias: float) -> None:
    tensors = {
        "weights": np.zeros((1, 1024), np.float16),
        "bias": np.array([bias], np.float32),
        "rarity": np.ones(1024, np.float16),
        "platt": np.array([[1.0, 0.0]], np.float32),
    }
    write_tensors(path, tensors, {"format": FORMAT, "labels": ["x"], "thresholds": [0.5], "window": 500})


def test_another_classifier_is_another_stack_and_is_seen_as_changed(tmp_path: Path) -> None:
    stack_file = tiny.write(tmp_path)
    rules = stack_file.parent / "scored.yaml"
    rules.write_text("rules:\n- {name: a, on: input, classifier: x.safetensors, reason: r, reply: n}\n")
    weights = stack_file.parent / "x.safetensors"
    keys, stamps = [], []
    for bias in (0.0, 1.0):
        classifier(weights, bias)
        os.utime(weights, (1_000_000_000 + bias, 1_000_000_000 + bias))
        stack = load_stack(stack_file, [f"layers.policy.rules={rules}"])
        keys.append(stack.key())
        stamps.append(stack.stamps())
    assert keys[0] != keys[1]
    assert stamps[0] != stamps[1]
    assert any(path.endswith("x.safetensors") for path in stamps[0])
    weights.unlink()
    with pytest.raises(SpecError, match="no such file"):
        load_stack(stack_file, [f"layers.policy.rules={rules}"])


def test_the_shipped_policy_is_named_from_any_folder(tmp_path: Path) -> None:
    stack_file = tiny.write(tmp_path)
    shipped = load_stack(stack_file, ["layers.policy.rules=builtin:default"])
    assert shipped.key() != load_stack(stack_file).key()
    assert shipped.key() == load_stack(stack_file, ["layers.policy.rules=builtin:default"]).key()
    with pytest.raises(SpecError, match=r"shipped: default\.yaml"):
        load_stack(stack_file, ["layers.policy.rules=builtin:other"])


def test_a_copy_of_the_shipped_policy_still_finds_its_classifiers(tmp_path: Path) -> None:
    from demeanor.core.registry import SHIPPED

    stack_file = tiny.write(tmp_path)
    copy = stack_file.parent / "mine.yaml"
    copy.write_text((SHIPPED / "default.yaml").read_text())
    stack = load_stack(stack_file, [f"layers.policy.rules={copy}"])
    assert stack.key() == load_stack(stack_file, ["layers.policy.rules=builtin:default"]).key(), (
        "equal content"
    )

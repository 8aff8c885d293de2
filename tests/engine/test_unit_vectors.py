"""Vectors of texts: the mean of the model's states at length 1, and the same when several are asked for at once."""

from __future__ import annotations

import threading
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from demeanor.engine.local import LocalEngine
from demeanor.engine.respond import unit_vector as _unit
from demeanor.model import checkpoints
from demeanor.model.tensors import Segment
from demeanor.stack.schema import ModelShape


def test_a_vector_is_the_mean_of_the_states_at_length_one() -> None:
    engine: Any = SimpleNamespace(hidden=lambda tokens: torch.tensor([[1.0, 0.0], [5.0, 8.0]]))
    assert _unit(engine, (1, 2)) == pytest.approx([0.6, 0.8]), "mean (3, 4), of length 5"


def test_long_texts_embedded_at_once_do_not_read_each_others_keys() -> None:
    """The peer is the model itself, without slots; texts of several reading steps, so that their steps alternate."""
    model = checkpoints.create(
        ModelShape(layers=2, width=32, heads=2, kv_heads=2, context=800, init="normal"), 64, seed=5
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)  # sharp attention: a stranger's keys show at once
    texts = [
        tuple(torch.randint(0, 64, (700,), generator=torch.Generator().manual_seed(i)).tolist())
        for i in range(4)
    ]
    with torch.no_grad():
        wanted = [
            model.hidden(torch.tensor(text), torch.arange(700), (Segment(0, 700),)).mean(0) for text in texts
        ]
    tokenizer: Any = SimpleNamespace(decode=lambda tokens: "")
    found: dict[int, list[float]] = {}
    with closing(LocalEngine(model, tokenizer, num_slots=1)) as engine:
        threads = [
            threading.Thread(target=lambda i=i: found.update({i: _unit(engine, texts[i])})) for i in range(4)
        ]  # type: ignore[misc]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(wanted) == len(found) == 4
    for i, mean_D in enumerate(wanted):
        assert found[i] == pytest.approx((mean_D / mean_D.norm()).tolist(), abs=1e-4)

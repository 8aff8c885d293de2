"""The profile of a training step: parts inside parts, and the bytes that weights cost."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest

from bench import step_profile
from bench.step_profile import Stopwatch, bytes_of_weights


def test_a_part_is_timed_without_those_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    clock = SimpleNamespace(process_time=lambda: 1.0 * next(ticks), perf_counter=lambda: 10.0)
    monkeypatch.setattr(step_profile, "time", clock)
    watch = Stopwatch()
    inner = watch.timed("inner", lambda x: x + 1)
    with watch.part("outer"):  # at 0
        assert inner(1) == 2  # from 1 to 2
        assert inner(2) == 3  # from 3 to 4
    assert watch.cpu_s == {"inner": 2.0, "outer": 5.0 - 2.0}
    assert watch.wall_s == {"inner": 0.0, "outer": 0.0}


def test_adamw_reads_and_writes_weights_moments_and_gradients() -> None:
    """Reads weight, gradient and two moments, writes all but the gradient; an adapter's weights are not rounded again."""
    assert bytes_of_weights(10, adapted=True) == 10 * (4 * 4 + 3 * 4)
    rounding, widening, norm, scale = 4 + 2, 2 + 4, 4, 4 + 4
    assert bytes_of_weights(10, adapted=False) == 10 * (28 + rounding + widening + norm + scale)

"""Slots with a copied prefix read one of the copies: no bit changes, and a slot that is written is on its own."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from demeanor.engine.forward import Compiled, Rows, SharedPrefixes, forward_of
from demeanor.model import checkpoints, native
from demeanor.model.llama import Llama
from demeanor.stack.schema import ModelShape

compiled = pytest.mark.skipif(native.build() is None, reason="no C++ compiler here")
ROOT = Path(__file__).resolve().parents[2]
SLOTS, PREFIX = 6, 21


def policy(heads: int, kv_heads: int) -> Llama:
    """Head width 12 runs all loops of attention: whole vectors and what is left of them."""
    shape = ModelShape(layers=2, width=12 * heads, heads=heads, kv_heads=kv_heads, context=64, init="normal")
    return checkpoints.create(shape, 131, 3)


def rows(slot_tokens: dict[int, int], position: int) -> Rows:
    """One token for each slot at a position, all read."""
    found = Rows()
    for slot, token in slot_tokens.items():
        found.add((token,), slot, position)
    found.read = list(range(len(slot_tokens)))
    return found


def filled(model: Llama) -> Compiled:
    """A forward whose slots 1 to 4 are copies of slot 0, which has read a prompt."""
    forward = forward_of(model, SLOTS, 64)
    assert isinstance(forward, Compiled)
    prompt = Rows()
    prompt.add(tuple(range(1, PREFIX + 1)), 0, 0)
    with torch.inference_mode():
        forward.run(prompt)
        for target in (1, 2, 3, 4):
            forward.copy(0, target, PREFIX)
    return forward


@compiled
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("other", [None, 0, 2])
def test_reading_a_shared_prefix_changes_no_bit(heads: int, kv_heads: int, other: int | None) -> None:
    """`other`: a slot that gets another text meanwhile; the rest must not see it."""
    model = policy(heads, kv_heads)
    logits = []
    for shared in (True, False):
        forward = filled(model)
        if not shared:
            forward._prefixes = SharedPrefixes(SLOTS)
        with torch.inference_mode():
            if other is not None:
                again = Rows()
                again.add(tuple(range(60, 90)), other, 0)
                forward.run(again)
            asked = {slot: 30 + slot for slot in range(5) if slot != other}
            steps = [forward.run(rows(asked, PREFIX + i)).logits_RV.clone() for i in range(3)]
        used = forward._prefixes.of([1, 3, 4])
        assert (used is not None) == (shared and other != 0)
        logits.append(torch.stack(steps))
    assert torch.equal(*logits)
    assert all(not torch.equal(a, b) for a, b in pairwise(logits[0][0]))


def test_copies_share_one_root_until_it_or_they_are_written() -> None:
    found = SharedPrefixes(5)
    found.copied(0, 1, 10)
    found.copied(1, 2, 8)  # of a copy: the root holds the same
    found.copied(1, 3, 12)  # longer than what slot 1 shares, so slot 1 itself
    assert found.of([0, 1, 2, 3, 4]) == ([0, 0, 0, 1, 4], [0, 10, 8, 12, 0])
    found.written(1, 12)  # beyond every copied position
    assert found.of([1, 2, 3]) == ([0, 0, 1], [10, 8, 12])
    found.written(1, 11)  # slot 3 relied on it; slot 1's own first ten positions stay
    assert found.of([1, 2, 3]) == ([0, 0, 3], [10, 8, 0])
    found.written(2, 7)  # the last position of its copy: slot 1 keeps its own
    assert found.of([0, 1, 2]) == ([0, 0, 2], [0, 10, 0])
    found.written(0, 9)
    assert found.of([0, 1, 2, 3]) is None


def test_a_slot_that_becomes_a_copy_is_no_root_any_more() -> None:
    found = SharedPrefixes(3)
    found.copied(0, 1, 10)
    found.copied(2, 0, 4)
    assert found.of([0, 1, 2]) == ([2, 1, 2], [4, 0, 0])


@compiled
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_decoding_threads_run_on_every_core_though_the_main_thread_is_bound() -> None:
    """OpenMP binds the main thread to one core; threads that it makes would stay there and wait for each other."""
    script = """
import os
from demeanor.core import hardware
allowed = hardware.cores()
os.sched_setaffinity(0, {min(allowed)})
import torch
from demeanor.model import native
native.build()
torch.set_num_threads(2)
logits, targets = torch.zeros(64, 8192), torch.zeros(64, dtype=torch.long)
before = set(os.listdir("/proc/self/task"))
native.drawn_logprobs(logits, targets)
new = set(os.listdir("/proc/self/task")) - before
print(len(new), all(os.sched_getaffinity(int(task)) == allowed for task in new))
"""
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    count, free = found.stdout.split()
    assert int(count) >= 1
    assert free == "True"

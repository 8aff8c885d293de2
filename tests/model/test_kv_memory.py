"""A KV cache takes memory as its tokens are written, not when it is made."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from demeanor.model.llama import KVCache

SMOLLM2: Any = SimpleNamespace(num_key_value_heads=3, head_dim=64, num_hidden_layers=30)
TOKEN = 30 * 2 * 3 * 64 * 4  # bytes of a token's keys and values


def _resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_slots_of_a_long_context_take_only_the_memory_of_their_tokens() -> None:
    before = _resident()
    cache = KVCache(SMOLLM2, 8, 8192)  # 3 GB
    assert _resident() - before < 100e6
    for x in (*cache.keys, *cache.values):
        assert not x[:, :, :100].any()
        x[:, :, :100] = 1.0
    taken = _resident() - before
    assert 8 * 100 * TOKEN <= taken < 4 * 8 * 100 * TOKEN + 20e6
    assert cache.num_bytes == 8 * 8192 * TOKEN

"""The decoder's threads: after a call in which one had no core they rest, and are tried again within a second."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from demeanor.model import compiled
from tests.model.test_quantised_builds import COMPILER

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here"),
    pytest.mark.skipif(sys.platform != "linux", reason="a thread's processor time is read on Linux"),
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    made = tmp_path_factory.mktemp("pool") / "pool.so"
    source, room = Path(__file__).with_name("thread_pool.cpp"), compiled.KERNELS.parent
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", f"-I{room}"]
    subprocess.run([str(COMPILER), *flags, str(source), "-o", str(made)], check=True, timeout=300)
    library = ctypes.CDLL(str(made))
    library.now.restype = library.resting_until.restype = ctypes.c_int64
    library.rest_until.argtypes = [ctypes.c_int64]
    return library


def test_after_a_loss_one_thread_works_and_never_for_longer_than_a_second(pool: ctypes.CDLL) -> None:
    second = 1_000_000_000
    before = pool.now()
    assert pool.job(100) == 2
    until, after = pool.resting_until(), pool.now()
    assert before + second < until <= after + second, "twenty times 100 ms would be 2 s"
    pool.rest_until(after + 3600 * second)
    assert pool.job(0) == 1
    pool.rest_until(after)
    assert pool.job(0) == 2

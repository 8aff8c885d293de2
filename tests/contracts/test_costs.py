"""The end of every run names the tests that took most processor time, with that of their fixtures and child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

CONFTEST = """
from tests.costs import Costs

def pytest_configure(config):
    config.pluginmanager.register(Costs())
"""
TESTS = """
import subprocess, sys, time, pytest

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

@pytest.fixture(scope="module")
def dear():
    burn(0.9)

def test_that_shares_it(dear): pass
def test_by_its_fixture(dear): pass
def test_by_itself(): burn(0.2)
def test_that_sleeps(): time.sleep(0.3)
def test_by_a_child():
    subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.5: pass"])
@pytest.mark.parametrize("n", range(9))
def test_cheap(n): pass
"""


def test_the_dearest_tests_are_printed_in_order_of_processor_time(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", "-p", "no:randomly"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    _, *lines = run.stdout[run.stdout.index("14 tests took") :].splitlines()
    assert "(mostly setup) test_some.py::test_that_shares_it" in lines[0]
    assert [line.split("::")[1] for line in lines[1:3]] == ["test_by_a_child", "test_by_itself"]
    assert len([line for line in lines if "::" in line]) == 10

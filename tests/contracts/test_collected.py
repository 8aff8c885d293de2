"""Every test file that git tracks is collected: a folder that pytest skips silently would test nothing."""

from __future__ import annotations

import fnmatch
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from tests.conftest import REPOSITORY

SKIPPED_BY_DEFAULT = ("*.egg", ".*", "_darcs", "build", "CVS", "dist", "node_modules", "venv", "{arch}")
"""pytest's default `norecursedirs`: folders it would skip without the setting in pyproject.toml."""

FOUND = "found: "


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The test files of this checkout, by their path from its root."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip(f"{REPOSITORY} is not a git checkout, so there is no list of tracked files")
    command = ["git", "ls-files", "-z", ":(glob)tests/**/test_*.py"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return {path for path in listed.split("\0") if path and (REPOSITORY / path).exists()}


class UnreadModule(pytest.Module):
    """A test file that was found; its tests are not imported, which would take long."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        return []


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> UnreadModule:
    """Print each test file that pytest finds; called where this file is loaded as a plug-in (`-p`)."""
    print(FOUND + module_path.relative_to(REPOSITORY).as_posix())
    return UnreadModule.from_parent(parent, path=module_path)


def test_pytest_collects_every_tracked_test_file(tracked: set[str]) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "tests.contracts.test_collected"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, run.stdout + run.stderr
    found = {line.removeprefix(FOUND) for line in run.stdout.splitlines() if line.startswith(FOUND)}
    assert tracked - found == set()


def test_no_test_folder_has_a_name_that_pytest_skips_by_default(tracked: set[str]) -> None:
    folders = {name for path in tracked for name in PurePosixPath(path).parent.parts}
    skipped = {x for x in folders if any(fnmatch.fnmatch(x, pattern) for pattern in SKIPPED_BY_DEFAULT)}
    assert skipped == set()

"""The mutation run: every entry fits the code, and the runner tells a killed mutant from one that lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import mutants
from bench.mutants import Mutant, judged, read, stale
from tests.conftest import each


def test_every_entry_fits_the_code_and_there_are_at_least_a_hundred() -> None:
    entries = read()
    assert len(entries) >= 100
    assert stale(entries) == []


def test_the_list_covers_the_rooms_that_matter() -> None:
    rooms = {entry.file.split("/")[1] for entry in each(read())}
    assert rooms >= {
        *("core", "data", "engine", "evaluation", "layers", "objectives", "retrieval", "server"),
        *("stack", "store", "text", "training"),
    }


CODE = "def half(x):\n    return x // 2\n"
TEST = "from code_of import half\ndef test_half():\n    assert half(4) == 2\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "code_of.py").write_text(CODE)
    (tmp_path / "tests" / "test_half.py").write_text(TEST)
    return tmp_path


@pytest.mark.parametrize(
    ("new", "verdict", "timeout_s"),
    [("x // 3", "killed", 100), ("x / 2", "survived", 100), ("[x for _ in iter(int, 1)]", "killed", 4)],
)
def test_a_mutant_is_killed_by_a_failure_or_a_timeout_and_the_code_is_put_back(
    tree: Path, new: str, verdict: str, timeout_s: float
) -> None:
    found = judged(Mutant("code_of.py", "x // 2", new, "tests/test_half.py"), tree, timeout_s)
    assert (found.verdict, (tree / "code_of.py").read_text()) == (verdict, CODE)
    assert ("took over" in found.by) == (timeout_s == 4)


def test_tests_that_cannot_run_kill_nothing(tree: Path) -> None:
    assert (
        judged(Mutant("code_of.py", "x // 2", "x // 3", "tests/test_gone.py"), tree, 100).verdict == "not run"
    )


def test_entries_that_do_not_fit_are_named(tree: Path) -> None:
    entries = [
        Mutant("code_of.py", "x", "y", "tests/test_half.py"),
        Mutant("code_of.py", "x // 4", "x", "tests/test_half.py"),
        Mutant("gone.py", "x", "y", "tests/test_gone.py"),
        Mutant("code_of.py", "x // 2", "x // 2", "tests/test_half.py"),
        Mutant("code_of.py", "half", "whole", "tests/test_half.py"),
        Mutant("code_of.py", "half", "whole", "tests/test_half.py"),
    ]
    assert stale(entries, tree) == [
        "code_of.py: 'x' stands 2 times; wanted once",
        "code_of.py: 'x // 4' stands 0 times; wanted once",
        "gone.py: 'x' stands 0 times; wanted once",
        "tests/test_gone.py: no such test file (for gone.py)",
        "code_of.py: 'x // 2' is not changed",
        "code_of.py: 'half' is planted twice",
    ]
    assert mutants.WANTED == 0.95


def test_the_copy_has_linked_folders_too(tmp_path: Path) -> None:
    """Without demeanor/tour/chapters every test of the tour fails, and every mutant of it seems killed."""
    assert list((mutants.copy(tmp_path) / "demeanor/tour/chapters").glob("*.md"))

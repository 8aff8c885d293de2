"""Every command of every page is run: here if it is quick, by `make docs-test` if it needs the demo's weights, or the page says why not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.pages import blocks, check
from tests.conftest import REPOSITORY, each

PAGES = [blocks.read(name) for name in blocks.names()]
PROGRAMS = {
    "cat",
    "cd",
    "curl",
    "demeanor",
    "docker",
    "export",
    "git",
    "inspect",
    "make",
    "pip",
    "printf",
    "psql",
    "python",
    "python3",
    "sqlite3",
    "tail",
    "torchrun",
}
"""What the first word of a command may be; a block that is no command is a block of `text`."""


def program(text: str) -> str:
    """The first word of a command after variables that it sets."""
    return next((word for word in text.split() if not re.match(r"\w+=", word)), "")


def test_every_page_is_read() -> None:
    """Comments of pages are checked while they are read: a setting that nothing reads is an error."""
    assert len(PAGES) > 60
    assert {page.name for page in PAGES} >= {"README.md", "docs/data.md", "docs/tour/01-base.md"}


def test_a_block_without_a_language_holds_commands_only() -> None:
    wrong = []
    for page in PAGES:
        for block in page.blocks:
            if block.language == "" and not block.settings.get("skip"):
                commands = block.commands()
                wrong += [block.where] if not commands else []
                wrong += [c.where for c in commands if program(c.text) not in PROGRAMS and "=" not in c.text]
    assert wrong == []


def test_every_command_is_run_or_the_page_says_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    states: Counter[str] = Counter()
    for page in PAGES:
        for command in (c for block in page.blocks for c in block.commands()):
            own = command.settings
            states[f"skipped: {own['skip']}" if own.get("skip") else check.level_of(page, own)] += 1
    with capsys.disabled():
        print("\ncommands in pages: " + ", ".join(f"{n} {state}" for state, n in states.most_common()))
    assert states["quick"] >= 30
    assert states["quick"] + states["full"] > states.total() // 2


def test_what_runs_a_skipped_command_instead_exists() -> None:
    named = [
        (block.where, str(own["by"]))
        for page in PAGES
        for block in page.blocks
        for own in [block.settings, *block.settings.get("at", {}).values()]
        if own.get("by")
    ]
    makefile = (REPOSITORY / "Makefile").read_text()
    wrong = []
    for where, by in each(named):
        targets = re.findall(r"make ([a-z-]+)", by)
        modules = [m.replace(".", "/") for m in re.findall(r"(bench\.\w+)", by)]
        paths = re.findall(r"tests/[\w/]+\.py", by)
        wrong += [(where, t) for t in targets if not re.search(rf"^{t}:", makefile, re.M)]
        wrong += [(where, m) for m in modules if not (REPOSITORY / f"{m}.py").exists()]
        wrong += [(where, p) for p in paths if not (REPOSITORY / p).exists()]
        wrong += [(where, by)] if not targets + modules + paths else []
    assert wrong == []


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of every page on the quick level, in one process of its own."""
    out = tmp_path_factory.mktemp("pages") / "pages.json"
    command = [sys.executable, "-m", "bench.pages", "--level", "quick", "--out", str(out), "--quiet"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert out.is_file(), done.stderr[-2000:]
    found: dict[str, Any] = json.loads(Path(out).read_text())["pages"]
    return found


def test_quick_commands_work_and_print_what_their_page_says(quick: dict[str, Any]) -> None:
    failed = [
        f"{item['where']}: {item['text']}\n{item['why']}"
        for page in quick.values()
        for item in page["items"]
        if item["state"] == "failed"
    ]
    assert failed == []
    assert sum(item["state"] == "run" for page in quick.values() for item in page["items"]) > 100

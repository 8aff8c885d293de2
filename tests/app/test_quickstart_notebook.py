"""The notebook runs over the public API, cell by cell, with the small settings that it offers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"


def code() -> str:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")


def test_every_cell_runs_and_the_table_is_printed(tmp_path: Path) -> None:
    text = code()
    assert text.count("QUICK = False") == 1
    here = text.replace("QUICK = False", "QUICK = True").replace("../stacks", str(REPOSITORY / "stacks"))
    script = (
        f"{here}\nassert set(answers) == {{'harbour-desk', 'harbour-desk-tools'}}\nassert split.shapley\n"
    )
    (tmp_path / "cells.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "cells.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "+policy" in done.stdout
    assert (tmp_path / "results" / "notebook.json").is_file()


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs")] == []

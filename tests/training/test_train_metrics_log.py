"""The metrics log survives being cut anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demeanor.core.errors import DataError
from demeanor.training import progress


def filled(path: Path, count: int) -> Path:
    with progress.MetricsLog(path) as rows:
        for step in range(1, count + 1):
            rows.append({"step": step, "loss": 1 / step})
    return path


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert progress.read_log(filled(tmp_path / "a" / "ledger.jsonl", 3)) == [
        {"step": i, "loss": 1 / i} for i in (1, 2, 3)
    ]
    assert progress.read_log(tmp_path / "none.jsonl") == []


def test_a_row_is_in_the_file_before_append_returns(tmp_path: Path) -> None:
    with progress.MetricsLog(tmp_path / "ledger.jsonl") as rows:
        rows.append({"step": 1})
        assert progress.read_log(tmp_path / "ledger.jsonl") == [{"step": 1}]


def test_cut_after_any_byte_it_keeps_exactly_the_whole_lines(tmp_path: Path) -> None:
    path = filled(tmp_path / "ledger.jsonl", 4)
    whole = path.read_bytes()
    assert whole.count(b"\n") == 4
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = whole[:size].count(b"\n")
        assert [row["step"] for row in progress.read_log(path)] == list(range(1, kept + 1))
        with progress.MetricsLog(path, step=99) as rows:
            rows.append({"step": 100})
        assert [row["step"] for row in progress.read_log(path)] == [*range(1, kept + 1), 100]


@pytest.mark.parametrize("step", [0, 2, 4, 9])
def test_opening_drops_the_rows_after_the_checkpoint(step: int, tmp_path: Path) -> None:
    path = filled(tmp_path / "ledger.jsonl", 4)
    progress.MetricsLog(path, step=step).close()
    assert [row["step"] for row in progress.read_log(path)] == list(range(1, min(step, 4) + 1))


def test_what_json_cannot_say_becomes_null(tmp_path: Path) -> None:
    with progress.MetricsLog(tmp_path / "ledger.jsonl") as rows:
        rows.append({"step": 1, "a": float("nan"), "b": float("inf")})
    assert json.loads((tmp_path / "ledger.jsonl").read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "a": None,
        "b": None,
    }


@pytest.mark.parametrize("line", ["nonsense", '{"loss": 1}', "[1]", '{"step": "x"}'])
def test_a_broken_line_that_is_not_the_last_is_an_error_with_its_number(line: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(DataError, match=r"ledger.jsonl:2: not a row of a metrics log"):
        progress.read_log(path)

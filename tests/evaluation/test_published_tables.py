"""A published table: sizes against the closed form and a simulation, mistakes named, and no sentence that claims more than the table holds."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from demeanor.cli import main
from demeanor.core.errors import DataError
from demeanor.evaluation import published, statistics
from demeanor.evaluation.statistics import items_needed, mcnemar_exact, power_paired
from demeanor.report import outputs

TULU = Path(__file__).resolve().parents[2] / "docs" / "examples" / "tulu3.yaml"


def table(**changes: Any) -> published.Published:
    base = {
        "title": "T",
        "source": "S",
        "columns": ["a", "b"],
        "rows": [
            {"name": "mean", "values": [50, 52], "summary": True},
            {"name": "safety", "values": [90, 80]},
            {"name": "maths", "values": [10, 14], "n": 1319},
        ],
    }
    return published.Published.model_validate(base | changes)


@pytest.mark.parametrize("n", [164, 541, 1319, 14042])
def test_the_size_is_items_needed_solved_for_the_difference(n: int) -> None:
    size = statistics.smallest(n)
    assert items_needed(size, statistics.DISCORDANCE) in (n, n + 1)
    assert (
        items_needed(size * 1.01, statistics.DISCORDANCE)
        < n
        < items_needed(size * 0.99, statistics.DISCORDANCE)
    )
    assert power_paired(size, statistics.DISCORDANCE, n) == pytest.approx(0.8, abs=1e-3)


def test_a_true_change_of_that_size_is_found_four_times_in_five_by_mcnemar() -> None:
    n, psi = 1319, statistics.DISCORDANCE
    size, draw = statistics.smallest(n), np.random.default_rng(0)
    counts = draw.multinomial(n, [(psi + size) / 2, (psi - size) / 2, 1 - psi], size=3000)
    found = float(np.mean([mcnemar_exact(int(b), int(c)) < 0.05 for b, c, _ in counts]))
    assert found == pytest.approx(0.8, abs=0.03)


def test_changes_and_marks_are_the_tables_arithmetic() -> None:
    assert [(c.row.name, c.points, c.told) for c in published.changes(table())] == [
        ("safety", -10, None),
        ("mean", 2, None),
        ("maths", 4, True),
    ]
    small = table(rows=[{"name": "maths", "values": [10, 13], "n": 1319}])
    assert published.changes(small)[0].told is False, "3 points of 1,319 items: less than 3.4"
    assert published.changes(table(rows=[{"name": "x", "values": [None, 13]}])) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"rows": [{"name": "x", "values": [1]}]},
            "rows 'x': got 1 values, wanted one for each of 2 columns",
        ),
        ({"rows": [{"name": "x", "values": [1, 101]}]}, "wanted values from 0 to 100"),
        ({"rows": [{"name": "x", "values": [1, 2]}] * 2}, "this name stands twice"),
        ({"columns": ["a"]}, "columns"),
        ({"rows": [{"name": "x", "values": [1, 2], "m": 3}]}, r"rows.0.m: Extra inputs"),
        ({"source": ""}, "source"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(
        yaml.safe_dump(
            {"title": "T", "source": "S", "columns": ["a", "b"], "rows": [{"name": "x", "values": [1, 2]}]}
            | changes
        )
    )
    with pytest.raises(DataError, match=said):
        published.load(path)
    path.write_text("rows: [")
    with pytest.raises(DataError, match="neither YAML nor JSON"):
        published.load(path)
    with pytest.raises(DataError, match="no such file"):
        published.load(tmp_path / "none.yaml")


def test_the_headline_sets_the_worst_fall_beside_the_mean() -> None:
    assert published.headline(table()).replace("\u00a0", " ") == (
        "safety fell, 90.0 → 80.0, while the average rose, 50.0 → 52.0. A release rule on the average score would not have noticed."
    )
    assert (
        published.headline(table(rows=[{"name": "x", "values": [9, 8]}])).replace("\u00a0", " ")
        == "x fell: 9.0 → 8.0."
    )
    assert (
        published.headline(table(rows=[{"name": "x", "values": [8, 9]}]))
        == "T: no benchmark ends lower than it began."
    )
    falling = table(
        rows=[{"name": "mean", "values": [5, 4], "summary": True}, {"name": "x", "values": [9, 8]}]
    )
    assert "release rule" not in published.headline(falling)


def renderings(found: published.Published) -> list[str]:
    out, page = io.StringIO(), published.page(found)
    outputs.show_page(page, Console(file=out, width=220))
    unlinked = re.sub(r"</?a\b[^>]*>", "", outputs.html_page(page))  # links to the meaning of words
    return [unlinked, outputs.markdown_page(page), out.getvalue()]


def test_every_rendering_says_that_there_are_no_intervals_and_names_the_source() -> None:
    for text in renderings(published.load(TULU)):
        assert published.NO_INTERVALS in text
        assert (
            "DPO lowered Safety from 93.1 to 87.2 (−5.9 points). The number of items is not known, so chance cannot be ruled out."
            in text
        )
        assert "With 164 items, a change smaller than 9.6 points cannot be told from chance." in text
    assert "arXiv:2411.15124, Table 6" in renderings(published.load(TULU))[1]


def test_what_a_file_says_becomes_no_markup() -> None:
    bad = "<script>alert(1)</script>"
    found = table(
        title=bad,
        source=bad,
        columns=["a", bad],
        notes=[bad],
        rows=[{"name": bad, "values": [9, 8], "note": bad, "n": 10}],
    )
    assert ["<script" in text for text in renderings(found)[:2]] == [False, False]


def test_the_example_is_the_published_table_and_its_renderings_are_fresh(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(TULU), "--out", str(tmp_path / "tulu3.html")]) == 0
    assert "93.1" in capsys.readouterr().out
    for suffix in (".html", ".md"):  # the style sheet may change without making the example old
        now, kept = (
            (p / f"tulu3{suffix}").read_text().partition("<body>")[0 if suffix == ".md" else 2]
            for p in (tmp_path, TULU.parent)
        )
        assert now == kept, "write it again: demeanor report docs/examples/tulu3.yaml"
    rows = {row.name: row.values for row in published.load(TULU).rows}
    assert rows["Safety"] == (93.1, 87.2, 85.5, 81.2)
    assert rows["GSM8K"] == (76.2, 84.3, 87.6, 90.0)


def test_json_is_a_table_too_and_a_result_is_none(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(yaml.safe_load(TULU.read_text())))
    assert main(["report", str(path)]) == 0
    assert (tmp_path / "t.html").read_text().count("<h2>") == 6
    path.write_text('{"name": "x"}')
    assert main(["report", str(path)]) == 2

"""Write the tables of docs/science.md from what was measured. `python -m tests.experiments.science_page`

The tabular experiments are measured anew (20 seconds); those in a language model are read from results/experiments/science/, where
`make experiments` writes them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY
from tests.experiments.charts import Series, plane, write
from tests.experiments.findings import FIGURES, RESULTS, Finding

PAGE = REPOSITORY / "docs" / "science.md"
TABULAR = (
    "test_c01_frontier",
    "test_c02_dpo_is_rlhf",
    "test_c05_overoptimisation",
    "test_c06_label_noise",
    "test_c07_alignment_tax",
    "test_c09_refusals",
    "test_c11_displacement",
    "test_c12_harness",
)
IN_A_MODEL = ("c04", "c05-lm", "c07-lm", "c08", "c09-lm")
HEAD = "| claim | theory | measured (95% interval) | n | seeds | |\n|---|---|---|--:|--:|---|\n"


def row(f: Finding) -> str:
    """One line of a table."""
    return f"| {f.claim} | {f.theory} | {f.number} | {f.n:,} | {f.seeds} | {f.verdict} |\n".replace(
        "||", "\\|\\|"
    )


def table(found: Sequence[Finding]) -> str:
    return HEAD + "".join(map(row, found))


def read(name: str) -> list[Finding]:
    """What `make experiments` measured; nothing where it has not run."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())["findings"]
    return [Finding(**{k: v for k, v in r.items() if k != "number"}) for r in rows]


def replaced(page: str, name: str, found: Sequence[Finding]) -> str:
    """The page with the table between the marks of `name` replaced; as it was where nothing was measured."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    if not found:
        return page
    before, rest = page.split(begin)
    return before + begin + table(found) + end + rest.split(end, 1)[1]


def tabular(name: str) -> tuple[Finding, ...]:
    found: tuple[Finding, ...] = importlib.import_module(f"tests.experiments.{name}").findings()
    return found


def hump(path: Path) -> None:
    """The picture of the tabular over-optimisation: gold of one proxy of each size against distance, and theory's parabola."""
    from tests.experiments import test_c05_overoptimisation as c05

    at = c05.gold()
    series = {}
    for n in (50, 400, 2000):
        u = c05.fit(at, n, 0)
        series[f"{n} comparisons"] = Series(
            list(zip(c05.DISTANCES.tolist(), c05.follow(at, u, 0).tolist())), joined=True
        )
        unit = u / u.norm()
        d = at.peak(u)
        series[f"theory's peak, {n}"] = Series([(d, float((at.w @ unit) ** 2 / (2 * (unit @ at.A @ unit))))])
    write(
        path,
        plane(
            series,
            "d = sqrt(KL)",
            "gold above the start",
            "Gold against distance under proxies fitted to 50, 400 and 2,000 comparisons",
        ),
    )


def main() -> None:
    page = PAGE.read_text()
    for name in TABULAR:
        page = replaced(page, name, tabular(name))
    for name in IN_A_MODEL:
        page = replaced(page, name, read(name))
    PAGE.write_text(page)
    hump(FIGURES / "hump-tabular.svg")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()

"""Results of other harnesses as results of ours: read their logs, compare the models in the order given, write what `eval` writes.

In: logs of Inspect or lm-eval. Out: NAME.json, NAME.rows.jsonl, and a suite of the samples that our scorers can judge.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from demeanor.build import measure
from demeanor.errors import DataError
from demeanor.evaluation import harness, ladder
from demeanor.evaluation.result import Result
from demeanor.evaluation.row import as_line
from demeanor.evaluation.suite import as_json


def compare(
    logs: Sequence[Path], folder: Path, name: str, *, metric: str | None = None, cluster: str | None = None
) -> Result:
    """The models of the logs as a ladder in the order of the logs, paired by sample; written to `folder`.

    Raises DataError where NAME.rows.jsonl there holds answers that `eval` measured.
    """
    _free(folder, name)
    found = harness.gather(harness.read(logs, metric=metric, cluster=cluster))
    result = ladder.ladder(
        found.rows,
        found.items,
        name=name,
        steps=found.variants,
        without={},
        settings={
            "logs": len(logs),
            "judged by": ", ".join(sorted({item.scorer for item in found.items})),
            "answers": len(found.rows),
        },
        commands=(
            f"demeanor harness {' '.join(map(str, logs))} --name {name}",
            f"demeanor report {folder / name}.json",
        ),
    )
    told = tuple(s for s in result.spending if s.mean_ms or s.prompt_tokens or s.completion_tokens)
    result = replace(result, spending=told, warnings=(*found.doubts, *result.warnings))
    result.save(folder / f"{name}.json")
    measure.write(folder / f"{name}.rows.jsonl", "".join(f"{as_line(row)}\n" for row in found.rows))
    return result


def _free(folder: Path, name: str) -> None:
    """Measured answers are dear: only rows that came from logs, and can be read from them again, are written over."""
    rows, result = folder / f"{name}.rows.jsonl", folder / f"{name}.json"
    if rows.exists() and not (result.is_file() and "logs" in measure.read(result).settings):
        raise DataError(
            f"{rows}: holds answers that were not read from logs, and would be lost; give --name another name, or move it away"
        )


def write_suite(
    logs: Sequence[Path], out: Path, *, metric: str | None = None, cluster: str | None = None
) -> tuple[int, dict[str, int]]:
    """Write the samples that our scorers judge as the harness did as a suite; how many, and how many not by reason."""
    items, reasons = harness.as_suite(harness.read(logs, metric=metric, cluster=cluster))
    if items:
        measure.write(out, "".join(json.dumps(as_json(item), ensure_ascii=False) + "\n" for item in items))
    return len(items), reasons

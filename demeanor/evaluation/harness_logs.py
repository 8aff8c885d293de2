"""Logs of other harnesses (Inspect, lm-eval) as a result: paired by sample, clustered, with intervals; or as a suite.

In: logs. Out: NAME.json and NAME.rows.jsonl as `eval` writes them, or items that our scorers judge as the harness did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from demeanor.core.errors import DataError
from demeanor.core.files import write_text
from demeanor.core.types import Item
from demeanor.evaluation import ladder, log_readers
from demeanor.evaluation.items import misshapen, save_suite
from demeanor.evaluation.log_readers import Sample
from demeanor.evaluation.result import Result, load
from demeanor.evaluation.result_rows import Row, as_line
from demeanor.stack.stack import digest

Key: TypeAlias = tuple[str, int]
"""A sample's id and epoch."""
SHOWN = 3
"""Samples named where some are left out."""


@dataclass(frozen=True, slots=True)
class GatheredLogs:
    """What logs hold together: items that every variant answered, its rows, variants in the order given, and what was left out."""

    items: tuple[Item, ...]
    rows: tuple[Row, ...]
    variants: tuple[str, ...]
    caveats: tuple[str, ...]


def read(paths: Iterable[Path], *, metric: str | None = None, cluster: str | None = None) -> list[Sample]:
    """All samples of logs, or of every log in a folder, in the order given; raises DataError.

    `metric`: the scorer or metric to read where a sample has several (default: its first). `cluster`: the field of a sample's metadata or
    document whose samples share a source (default: `cluster` or `group` if there, else the document itself).
    """
    found = [sample for path in paths for log in _logs(path) for sample in _read(log, metric, cluster)]
    if not found:
        raise DataError("no log given holds a sample")
    if metric and metric not in {sample.metric for sample in found}:
        raise DataError(
            f"--metric {metric}: no sample has it. Read: {', '.join(sorted({sample.metric for sample in found}))}"
        )
    return found


def gather(samples: Sequence[Sample]) -> GatheredLogs:
    """Keep the samples that all variants answered alike; raises DataError on a sample told twice or where none is shared."""
    by: dict[str, dict[Key, Sample]] = defaultdict(dict)
    for sample in samples:
        known = by[sample.variant].setdefault((sample.id, sample.epoch), sample)
        if known is not sample:
            raise DataError(
                f"{sample.log}: {sample.variant} answered {sample.id} (epoch {sample.epoch}) in {known.log} already; "
                "give one log of each run"
            )
    variants = tuple(by)
    alike = [
        key
        for key, first in by[variants[0]].items()
        if all(key in by[v] and by[v][key].content == first.content for v in variants[1:])
    ]
    everything = {key for of in by.values() for key in of}
    if not alike:
        counts = ", ".join(f"{v} {len(of)}" for v, of in by.items())
        raise DataError(
            f"the {len(variants)} variants share no sample ({counts}), so nothing is paired. Run the same tasks, with the same "
            "limit and the same data, on each of them"
        )
    kept = set(alike)
    rows = tuple(_row(by[v][key]) for v in variants for key in alike)
    items = {sample_id: _item(by[variants[0]][sample_id, epoch]) for sample_id, epoch in reversed(alike)}
    return GatheredLogs(
        tuple(reversed(items.values())), rows, variants, tuple(_left_out(by, everything, kept))
    )


def _left_out(by: dict[str, dict[Key, Sample]], everything: set[Key], kept: set[Key]) -> Iterable[str]:
    """What was not compared, and why."""
    left = sorted(everything - kept)
    if not left:
        return
    other = [key for key in left if all(key in of for of in by.values())]
    names = ", ".join(f"{i}" for i, _ in left[:SHOWN]) + (", ..." if len(left) > SHOWN else "")
    yield (
        f"{len(kept)} of {len(everything)} samples are shared by all variants, and only these are compared. Left out: "
        f"{len(left) - len(other)} that some variant did not answer, {len(other)} whose question or target differs "
        f"between logs ({names})."
    )


def _row(sample: Sample) -> Row:
    cell = digest(
        [sample.id, sample.content]
    )  # a document under two filters, or twice in a data set, is two cells
    return Row(
        sample.variant,
        sample.stack_key,
        sample.id,
        cell,
        sample.epoch,
        sample.axis,
        sample.cluster,
        None,
        (),
        sample.value,
        sample.extracted,
        sample.explanation,
        sample.text,
        finish_reason="cancelled" if sample.error else "stop",
        prompt_tokens=sample.prompt_tokens,
        completion_tokens=sample.completion_tokens,
        ms=sample.ms,
        error=sample.error,
    )


def _item(sample: Sample) -> Item:
    return Item(
        sample.id,
        sample.messages,
        sample.scorer,
        {"wanted": list(sample.wanted)},
        sample.axis,
        sample.cluster,
    )


# ---- which file is whose ----


def _logs(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(
            f"{path}: no such log. Wanted: Inspect's .json or .eval, lm-eval's samples_*.jsonl, or a folder of them"
        )
    if path.is_file():
        return [path]
    found = [
        p
        for p in sorted(path.rglob("*"))
        if p.is_file() and (log_readers.is_inspect_log(p) or log_readers.is_lm_eval_log(p))
    ]
    if not found:
        raise DataError(
            f"{path}: no log of Inspect (.json, .eval) and no samples_*.jsonl of lm-eval in this folder. "
            "Did lm-eval run with --log_samples?"
        )
    return found


def _read(path: Path, metric: str | None, cluster: str | None) -> list[Sample]:
    if log_readers.is_inspect_log(path):
        return log_readers.read_inspect_log(path, metric, cluster)
    if log_readers.is_lm_eval_log(path):
        return log_readers.read_lm_eval_log(path, metric, cluster)
    raise DataError(
        f"{path}: neither a log of Inspect (.json, .eval) nor samples of lm-eval (samples_*.jsonl, written with --log_samples)"
    )


# ---- samples as a suite of ours ----


def as_suite(samples: Sequence[Sample]) -> tuple[list[Item], dict[str, int]]:
    """Items that our scorers judge as the harness did, on every answer logged; and how many are no such items, by reason."""
    by: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by[sample.id].append(sample)
    items: list[Item] = []
    reasons: dict[str, int] = defaultdict(int)
    for found in by.values():
        first = next((s for s in found if not isinstance(s.repeat, str)), found[0])
        if isinstance(first.repeat, str):
            reasons[first.repeat] += 1
            continue
        item = Item(
            first.id,
            first.repeat.messages,
            first.repeat.scorer,
            first.repeat.target,
            first.axis,
            first.cluster,
        )
        if problem := first.repeat.problem():
            reasons[problem] += 1
        elif mistake := next(misshapen(item), None):
            reasons[f"it is no item of ours ({mistake.partition(': got')[0]})"] += 1
        elif any(s.content != first.content for s in found):
            reasons["its question or target differs between logs"] += 1
        elif differing := [s for s in found if s.differs()]:
            reasons[
                f"our `{first.repeat.scorer}` judges a logged answer otherwise than {differing[0].scorer}"
            ] += 1
        else:
            items.append(item)
    return items, dict(reasons)


def compare(
    logs: Sequence[Path], folder: Path, name: str, *, metric: str | None = None, cluster: str | None = None
) -> Result:
    """The models of the logs as a ladder in the order of the logs, paired by sample; written to `folder`.

    Raises DataError where NAME.rows.jsonl there holds answers that `eval` measured.
    """
    _free(folder, name)
    found = gather(read(logs, metric=metric, cluster=cluster))
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
            f"demeanor logs import {' '.join(map(str, logs))} --name {name}",
            f"demeanor report {folder / name}.json",
        ),
    )
    told = tuple(s for s in result.cost if s.mean_ms or s.prompt_tokens or s.completion_tokens)
    result = replace(result, cost=told, caveats=(*found.caveats, *result.caveats))
    result.save(folder / f"{name}.json")
    write_text(folder / f"{name}.rows.jsonl", "".join(f"{as_line(row)}\n" for row in found.rows))
    return result


def _free(folder: Path, name: str) -> None:
    """Measured answers are dear: only rows that came from logs, and can be read from them again, are written over."""
    rows, result = folder / f"{name}.rows.jsonl", folder / f"{name}.json"
    if rows.exists() and not (result.is_file() and "logs" in load(result).settings):
        raise DataError(
            f"{rows}: holds answers that were not read from logs, and would be lost; give --name another name, or move it away"
        )


def write_suite(
    logs: Sequence[Path], out: Path, *, metric: str | None = None, cluster: str | None = None
) -> tuple[int, dict[str, int]]:
    """Write the samples that our scorers judge as the harness did as a suite; how many, and how many not by reason."""
    items, reasons = as_suite(read(logs, metric=metric, cluster=cluster))
    if items:
        save_suite(items, out)
    return len(items), reasons

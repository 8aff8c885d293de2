"""Logs of other harnesses as rows of ours: every sample a row, so that the models they ran are compared paired and clustered.

In: logs, which a reader (_inspect_log, _lm_eval_log) takes apart. Out: items and rows for ladder.py, and in words what had to be left
out. It judges nothing again: a value is what the harness gave. Refuses logs that share no sample.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from demeanor.errors import DataError
from demeanor.evaluation import _inspect_log, _lm_eval_log
from demeanor.evaluation._sample import Sample
from demeanor.evaluation.row import Row
from demeanor.stack import digest
from demeanor.types import Item

Key: TypeAlias = tuple[str, int]
"""A sample's id and epoch."""
SHOWN = 3
"""Samples named where some are left out."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What logs hold together: items that every variant answered, its rows, variants in the order given, and what was left out."""

    items: tuple[Item, ...]
    rows: tuple[Row, ...]
    variants: tuple[str, ...]
    doubts: tuple[str, ...]


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


def gather(samples: Sequence[Sample]) -> Gathered:
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
    return Gathered(tuple(reversed(items.values())), rows, variants, tuple(_left_out(by, everything, kept)))


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
        "",
        "",
        "cancelled" if sample.error else "stop",
        sample.prompt_tokens,
        sample.completion_tokens,
        sample.ms,
        {},
        (),
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
        if p.is_file() and (_inspect_log.is_log(p) or _lm_eval_log.is_log(p))
    ]
    if not found:
        raise DataError(
            f"{path}: no log of Inspect (.json, .eval) and no samples_*.jsonl of lm-eval in this folder. "
            "Did lm-eval run with --log_samples?"
        )
    return found


def _read(path: Path, metric: str | None, cluster: str | None) -> list[Sample]:
    if _inspect_log.is_log(path):
        return _inspect_log.read(path, metric, cluster)
    if _lm_eval_log.is_log(path):
        return _lm_eval_log.read(path, metric, cluster)
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
        elif any(s.content != first.content for s in found):
            reasons["its question or target differs between logs"] += 1
        elif differing := [s for s in found if s.differs()]:
            reasons[
                f"our `{first.repeat.scorer}` judges a logged answer otherwise than {differing[0].scorer}"
            ] += 1
        else:
            items.append(
                Item(
                    first.id,
                    first.repeat.messages,
                    first.repeat.scorer,
                    first.repeat.target,
                    first.axis,
                    first.cluster,
                )
            )
    return items, dict(reasons)

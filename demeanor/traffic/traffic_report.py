"""What experiments, shadows and evaluators found so far, from the database alone: for the command line, the API and the pages.

In: a database. Out: results and JSON values. The declaration that is read is the one with which the run began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from demeanor.core.errors import DataError, UsageError
from demeanor.evaluation import ab_test, sequential, statistics
from demeanor.evaluation.ab_test import ABResult
from demeanor.evaluation.drift import Drift, drift
from demeanor.stack.serving_schema import DriftSpec, ExperimentSpec
from demeanor.store import experiments, turn_jobs
from demeanor.store.database import Database
from demeanor.store.experiments import StoredExperiment
from demeanor.store.turn_jobs import Kind, TurnJob


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """A run and its result."""

    stored: StoredExperiment
    spec: ExperimentSpec
    result: ABResult


def experiment(database: Database, stored: StoredExperiment, now: datetime | None = None) -> ExperimentReport:
    """Analyse a run as it was declared; one that has ended is analysed at its end. Raises DataError for a declaration of another version."""
    try:
        spec = ExperimentSpec.model_validate(dict(stored.declared))
    except ValidationError as error:
        raise DataError(
            f"experiment {stored.name} ({stored.id}): declared by another version of demeanor: {error.errors()[0]['msg']}"
        ) from None
    found = experiments.exposures(database, stored.id, spec.score.evaluator)
    at = stored.stopped or now or database.now()
    return ExperimentReport(stored, spec, ab_test.analyse(spec, found, at))


def find(database: Database, which: str) -> StoredExperiment:
    """The run of an id, or the last one of a name. Raises UsageError with the known names."""
    every = experiments.experiments(database)
    found = [e for e in every if which in (e.id, e.name)]
    if not found:
        known = ", ".join(dict.fromkeys(e.name for e in every)) or "none"
        raise UsageError(
            f"experiments: got '{which}', wanted the name or id of one in this database: {known}"
        )
    return found[-1]


def experiment_json(report: ExperimentReport) -> dict[str, Any]:
    """A run with its result as JSON values."""
    stored = report.stored
    return {
        "id": stored.id,
        "name": stored.name,
        "state": "stopped" if stored.stopped else "running",
        "started": stored.started.isoformat(),
        "stopped": stored.stopped.isoformat() if stored.stopped else None,
        "reason": stored.reason,
        "declared": dict(stored.declared),
        "result": ab_test.plain_result(report.result),
    }


# ---- shadows and evaluators ----


@dataclass(frozen=True, slots=True)
class JobReport:
    """A shadow or an evaluator in one declaration: counts of outcomes, its scores, and what they say."""

    kind: Kind
    name: str
    version: str
    counts: Mapping[str, int]
    last: datetime | None
    mean: sequential.Interval | None
    difference: statistics.Estimate | None
    """Of shadows with a scorer: shadow less live on the same turns."""
    same_text: tuple[int, int] | None
    """Of shadows: answers that equal the live one, of all."""
    drift: Drift | None

    @property
    def silent(self) -> bool:
        """Whether turns were selected and none was finished."""
        return self.counts.get("due", 0) > 0 and not self.counts.get("done", 0)


def job_reports(database: Database, kind: Kind | None = None, most: int = 10_000) -> list[JobReport]:
    """Every shadow and evaluator that was ever declared, in each of its declarations; statistics over its last `most` jobs."""
    counts, found = turn_jobs.counts(database, kind), []
    for of_kind, name, version, declared in turn_jobs.declarations(database):
        if kind not in (None, of_kind):
            continue
        jobs = turn_jobs.jobs(database, kind=of_kind, name=name, version=version, limit=most)[::-1]
        counted = counts.get((of_kind, name, version), {})
        found.append(_job_report(database, of_kind, name, version, declared, counted, jobs))
    return found


def _job_report(
    database: Database,
    kind: Kind,
    name: str,
    version: str,
    declared: Mapping[str, Any],
    counts: Mapping[str, int],
    jobs: Sequence[TurnJob],
) -> JobReport:
    done = [job for job in jobs if job.outcome is not None and job.outcome.state == "done"]
    values = [job.outcome.value for job in done if job.outcome and job.outcome.value is not None]
    bounded = [min(1.0, max(0.0, value)) for value in values]
    difference = same = None
    if kind == "shadow":
        pairs = [
            (job.outcome.live_value, job.outcome.value, job.turn)
            for job in done
            if job.outcome and job.outcome.value is not None and job.outcome.live_value is not None
        ]
        difference = paired_by_user(database, pairs)
        answers = turn_jobs.answers(database, name, version)
        same = sum(live == shadow for live, shadow in answers), len(answers)
    return JobReport(
        kind,
        name,
        version,
        counts,
        jobs[-1].created if jobs else None,
        sequential.mean(bounded),
        difference,
        same,
        _drift(declared, bounded),
    )


def _drift(declared: Mapping[str, Any], scores: Sequence[float]) -> Drift | None:
    wanted = declared.get("drift")
    if wanted is None:
        return None
    spec = DriftSpec.model_validate(wanted)
    return drift(scores, baseline=spec.baseline, false_alarm_every=spec.false_alarm_every)


def paired_by_user(
    database: Database, pairs: Sequence[tuple[float, float, str]]
) -> statistics.Estimate | None:
    """The mean of the second less the first value, with an interval that respects users; None without two pairs."""
    if len(pairs) < 2:
        return None
    import numpy as np

    users = turn_jobs.users(database, [turn for _, _, turn in pairs])
    clusters = [users.get(turn) or turn for _, _, turn in pairs]
    before, after = (np.array([p[i] for p in pairs]) for i in (0, 1))
    return statistics.paired(before, after, clusters)


def job_json(report: JobReport) -> dict[str, Any]:
    """A shadow or an evaluator as JSON values."""
    found = report.drift
    return {
        "kind": report.kind,
        "name": report.name,
        "version": report.version,
        "counts": dict(report.counts),
        "silent": report.silent,
        "last": report.last.isoformat() if report.last else None,
        "mean": None if report.mean is None else list(report.mean),
        "difference": None
        if report.difference is None
        else [report.difference.value, report.difference.low, report.difference.high],
        "same_text": None if report.same_text is None else list(report.same_text),
        "drift": None
        if found is None
        else {
            "scores": found.scores,
            "baseline": None if found.baseline is None else list(found.baseline),
            "recent": None if found.recent is None else list(found.recent),
            "alarms": [list(alarm) for alarm in found.alarms],
            "drifted": found.drifted,
        },
    }

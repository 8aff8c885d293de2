"""`demeanor experiments`: list, show and stop the A/B tests of a server, and see its shadows and evaluators."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli.options import TurnsDatabase, opened
from demeanor.cli.tables import columns
from demeanor.core.addresses import shown
from demeanor.core.errors import DemeanorError

if TYPE_CHECKING:
    from demeanor.store.database import Database
    from demeanor.traffic.traffic_report import ExperimentReport, JobReport

app = typer.Typer(no_args_is_help=True, help="List, show and stop A/B tests; see shadows and evaluators.")
REQUESTS = "sqlite:///runs/requests.db"
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


@app.command("list")
def show_all(url: TurnsDatabase = REQUESTS, as_json: AsJson = False) -> None:
    """List every run of every experiment with its verdicts so far, then shadows and evaluators."""
    from demeanor.evaluation.ab_test import decision_text
    from demeanor.traffic import traffic_report

    with opened(url) as database:
        reports = _experiments(database)
        jobs = traffic_report.job_reports(database)
    if as_json:
        print(
            json.dumps(
                {
                    "experiments": [traffic_report.experiment_json(r) for r in reports],
                    "jobs": [traffic_report.job_json(j) for j in jobs],
                },
                indent=2,
            )
        )
        return
    rows = [
        (
            r.stored.name,
            r.stored.id,
            f"{r.stored.started:%Y-%m-%d %H:%M}",
            f"stopped {r.stored.stopped:%Y-%m-%d %H:%M}" if r.stored.stopped else "running",
            str(sum(a.users for a in r.result.arms)),
            str(sum(a.scored for a in r.result.arms)),
            "; ".join(f"{c.arm}: {decision_text(c)}" for c in r.result.contrasts),
            "; ".join(r.result.warnings) or "",
        )
        for r in reports
    ]
    heading = ("experiment", "id", "started", "state", "users", "scored", "verdict", "warning")
    print("\n".join(columns(heading, rows, right=(4, 5))) if rows else f"no experiments in {shown(url)}")
    if jobs:
        print("\n" + "\n".join(_job_table(jobs)))


def _experiments(database: Database) -> list[ExperimentReport]:
    """Every run that this version can read; the others are named."""
    from demeanor.store import experiments
    from demeanor.traffic import traffic_report

    found = []
    for stored in experiments.experiments(database):
        try:
            found.append(traffic_report.experiment(database, stored))
        except DemeanorError as error:
            print(f"left out: {error}")
    return found


def _job_table(jobs: list[JobReport]) -> list[str]:
    """Shadows and evaluators: what was due, what was done, what was not and why, and what the scores say."""
    from demeanor.evaluation.ab_test import interval_text

    rows = []
    for job in jobs:
        missed = [f"{n} {outcome}" for outcome, n in job.counts.items() if outcome not in ("due", "done")]
        said = []
        if job.mean is not None:
            said.append(f"mean {interval_text(job.mean)}")
        if job.difference is not None and job.difference.low is not None and job.difference.high is not None:
            d = job.difference
            said.append(f"shadow - live {d.value:+.3g} ({d.low:+.3g} to {d.high:+.3g})")
        if job.same_text is not None and job.same_text[1]:
            said.append(f"{job.same_text[0]} of {job.same_text[1]} answers as the live one")
        if job.drift is not None and job.drift.drifted:
            said.append(f"DRIFT: the mean {job.drift.drifted} ({job.drift})")
        if job.silent:
            said.append("NEVER RAN")
        elif not job.counts:
            said.append("no turn was selected yet")
        counts = job.counts
        rows.append(
            (
                job.kind,
                job.name,
                job.version,
                str(counts.get("due", 0)),
                str(counts.get("done", 0)),
                ", ".join(missed) or "-",
                "; ".join(said),
            )
        )
    heading = ("kind", "name", "version", "due", "done", "not done", "so far")
    return columns(heading, rows, right=(3, 4))


@app.command()
def show(
    which: Annotated[str, typer.Argument(metavar="NAME|ID", help="The last run of a name, or a run's id.")],
    url: TurnsDatabase = REQUESTS,
    as_json: AsJson = False,
) -> None:
    """Show an experiment: its score, users, means, differences with intervals, and verdicts."""
    from demeanor.evaluation.ab_test import HEADING, lines
    from demeanor.traffic import traffic_report

    with opened(url) as database:
        report = traffic_report.experiment(database, traffic_report.find(database, which))
    if as_json:
        print(json.dumps(traffic_report.experiment_json(report), indent=2))
        return
    stored, result = report.stored, report.result
    state = "running"
    if stored.stopped is not None:
        state = f"stopped {stored.stopped:%Y-%m-%d %H:%M} UTC ({stored.reason or 'no reason given'})"
    print(f"{stored.name} ({stored.id}), {state}")
    print(f"started: {stored.started:%Y-%m-%d %H:%M} UTC")
    print(f"score:   {result.score}\n")
    print("\n".join(columns(HEADING, lines(result), right=(2, 3, 4, 5, 6))))
    print(
        f"\nIntervals and verdicts hold at every look at once: at most {result.alpha:g} of all tests without a difference "
        "ever name one."
    )
    for contrast in result.contrasts:
        print(f"{contrast.arm}: e-value {contrast.e_value:.3g} against no difference")
    for warning in result.warnings:
        print(f"WARNING: {warning}")
    print(f"split of users: e-value {result.split_e_value:.3g} (1,000 is an alarm)")


@app.command()
def stop(
    which: Annotated[str, typer.Argument(metavar="NAME|ID", help="The last run of a name, or a run's id.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The reason, saved with the experiment.")] = "",
    url: TurnsDatabase = REQUESTS,
) -> None:
    """Stop an experiment: within seconds its users get the whole stack again. Its result stays."""
    from demeanor.store import experiments
    from demeanor.traffic import traffic_report

    with opened(url) as database:
        stored = traffic_report.find(database, which)
        if not experiments.stop(database, stored.id, reason):
            print(f"{stored.name} ({stored.id}) was stopped before: {stored.stopped:%Y-%m-%d %H:%M} UTC")
            return
    print(
        f"stopped {stored.name} ({stored.id}). See: demeanor experiments show {stored.id} --database {shown(url)}"
    )

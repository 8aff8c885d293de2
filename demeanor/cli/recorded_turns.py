"""`demeanor turns`: recorded turns as a list, one by one, as files; and their complaints routed to layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from demeanor.cli.options import (
    RESULTS,
    RUNS,
    Overrides,
    ResultName,
    Results,
    RunsFolder,
    StackFile,
    TurnsDatabase,
    evaluation_services,
    load,
    opened,
)
from demeanor.cli.tables import columns
from demeanor.core.addresses import shown
from demeanor.core.errors import UsageError
from demeanor.core.table import visible

if TYPE_CHECKING:
    from demeanor.core.types import RatedTurn
    from demeanor.store.database import Database
    from demeanor.store.rated_turns import FoundTurn
    from demeanor.store.turn_search import TurnFilter

app = typer.Typer(
    no_args_is_help=True, help="List, search, show and export recorded turns; route complaints."
)
REQUESTS = "sqlite:///runs/requests.db"
SHOWN = 60

User = Annotated[str | None, typer.Option(help="Only turns of this user.")]
Model = Annotated[str | None, typer.Option(metavar="ID", help="Only turns that this model id answered.")]
StackKey = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Only turns of this stack key (its first characters are enough)."),
]
Rule = Annotated[str | None, typer.Option(help="Only turns in which this policy rule acted.")]
RatedAs = Annotated[
    Literal["good", "bad", "corrected", "any", "none"] | None,
    typer.Option(help="Only turns with this feedback."),
]
Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only turns from this time on (ISO 8601, UTC), e.g. 2026-11-30."),
]
Until = Annotated[
    str | None, typer.Option(metavar="TIME", help="Only turns before this time (ISO 8601, UTC).")
]
Text = Annotated[
    str | None, typer.Option(help="Only turns with these words in the conversation or the answer.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Masked = Annotated[
    bool,
    typer.Option(
        "--remove-personal-data",
        help="Replace card, IBAN, e-mail, phone, social security numbers and IP addresses by their kind, and users by a hash.",
    ),
]


def wanted(
    text: str | None,
    user: str | None,
    model: str | None,
    stack_key: str | None,
    rule: str | None,
    feedback: Any,
    since: str | None,
    until: str | None,
) -> TurnFilter:
    """The filter that options describe. Raises UsageError for a time that is none."""
    from demeanor.store.turn_search import TurnFilter

    rated: Any = {"good": "up", "bad": "down"}.get(feedback or "", feedback)
    return TurnFilter(
        query=text or "",
        user=user,
        variant=model,
        stack_key=stack_key,
        rule=rule,
        rated=rated,
        since=moment("--since", since),
        until=moment("--until", until),
    )


def moment(option: str, text: str | None) -> datetime | None:
    """A day or moment in ISO 8601; UTC unless it says otherwise."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option}: got '{text}', wanted a time such as 2026-11-30 or 2026-11-30T09:00"
        ) from None


@app.command("list")
def show_list(
    user: User = None,
    model: Model = None,
    stack_key: StackKey = None,
    rule: Rule = None,
    feedback: RatedAs = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Print at most N turns.")] = 20,
    skip: Annotated[int, typer.Option(min=0, metavar="N", help="Skip the first N turns.")] = 0,
    as_json: AsJson = False,
    mask: Masked = False,
    url: TurnsDatabase = REQUESTS,
) -> None:
    """List recorded turns, newest first."""
    _list(wanted(None, user, model, stack_key, rule, feedback, since, until), limit, skip, as_json, mask, url)


@app.command("search")
def search_turns(
    text: Annotated[
        str, typer.Argument(help="Words in the conversation or the answer; case does not count.")
    ],
    user: User = None,
    model: Model = None,
    stack_key: StackKey = None,
    rule: Rule = None,
    feedback: RatedAs = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Print at most N turns.")] = 20,
    skip: Annotated[int, typer.Option(min=0, metavar="N", help="Skip the first N turns.")] = 0,
    as_json: AsJson = False,
    mask: Masked = False,
    url: TurnsDatabase = REQUESTS,
) -> None:
    """Find recorded turns by words, newest first."""
    _list(wanted(text, user, model, stack_key, rule, feedback, since, until), limit, skip, as_json, mask, url)


def _list(found_by: TurnFilter, limit: int, skip: int, as_json: bool, mask: bool, url: str) -> None:
    from demeanor.evaluation.turn_export import Masking, plain_row
    from demeanor.store import rated_turns

    masking = Masking(mask)
    with opened(url) as database:
        turns = rated_turns.select(database, found_by, limit=limit, skip=skip)
    if as_json:
        for turn in turns:
            print(json.dumps(plain_row(turn, masking), ensure_ascii=False))
        return
    rows = [
        (
            turn.stored.turn.id,
            f"{turn.stored.started:%Y-%m-%d %H:%M}",
            masking.user(turn.stored.turn.user),
            turn.stored.turn.variant,
            _rated(turn),
            _short(masking.text(turn.stored.turn.messages[-1].content)),
            _short(masking.text(turn.stored.completion.text)),
        )
        for turn in turns
    ]
    heading = ("id", "started", "user", "model", "feedback", "asked", "answered")
    print("\n".join(columns(heading, rows)) if rows else f"no such turns in {shown(url)}")


def _rated(turn: FoundTurn) -> str:
    refusal = turn.stored.completion.refusal
    parts = [
        "" if turn.rating is None else "good" if turn.rating > 0 else "bad" if turn.rating < 0 else "neither",
        "corrected" if turn.corrected else "",
        f"refused: {refusal.rule}" if refusal else "",
    ]
    return ", ".join(filter(None, parts)) or "-"


def _short(text: str) -> str:
    line = visible(" ".join(text.split()))
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


@app.command()
def show(
    which: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the turn, as the API and `turns list` show it.")
    ],
    as_json: AsJson = False,
    mask: Masked = False,
    url: TurnsDatabase = REQUESTS,
) -> None:
    """Show a turn: the conversation, what each layer did, the answer, its feedback, scores, shadows, and its routing."""
    from demeanor.evaluation.turn_export import Masking, plain_row
    from demeanor.store import experiments, rated_turns, routed_complaints, turn_jobs

    masking = Masking(mask)
    with opened(url) as database:
        found = rated_turns.find(database, which)
        if found is None:
            raise UsageError(f"turns show: no recorded turn in {shown(url)} has the id '{which}'")
        parts = experiments.experiment_of(database, which)
        jobs = turn_jobs.jobs(database, turn=which)
        routed = routed_complaints.routings(database, which)
    if as_json:
        row = plain_row(found, masking) | {
            "events": [_event(event, masking) for event in found.stored.events],
            "experiments": [{"name": name, "arm": arm} for name, arm in parts],
            "jobs": [asdict(job) for job in jobs],
            "routed": [asdict(r) for r in routed],
        }
        print(json.dumps(row, ensure_ascii=False, default=str, indent=2))
        return
    turn, stored = found.stored.turn, found.stored
    print(f"{turn.id}  {stored.started:%Y-%m-%d %H:%M:%S} UTC  user {visible(masking.user(turn.user))}")
    print(f"{turn.variant} of stack {turn.stack_key}, seed {turn.decoding.seed}\n")
    for message in masking.messages(turn.messages):
        print(f"{message.role}: {visible(message.content)}")
    print(f"-> {visible(masking.text(stored.completion.text))}\n")
    print("\n".join(columns(("layer", "event", ""), [_event_row(e, masking) for e in stored.events])))
    for f in found.feedback:
        told = [f"{f.value:+g}", f.comment, f"corrected: {f.corrected}" if f.corrected else ""]
        print(
            f"feedback of {visible(masking.user(f.user))}: {masking.text(visible('; '.join(filter(None, told))))}"
        )
    for name, arm in parts:
        print(f"experiment {name}: arm {arm}")
    for job in jobs:
        o = job.outcome
        said = (
            ""
            if o is None
            else "; ".join(
                filter(
                    None,
                    (
                        o.reason,
                        "" if o.value is None else f"score {o.value:g}",
                        o.answer or "",
                        o.explanation,
                    ),
                )
            )
        )
        print(f"{job.kind} {job.name}: {job.state} {visible(masking.text(said))}")
    for r in routed:
        print(f"routed to {r.label}{f' ({r.layer})' if r.layer else ''}: {r.repair or 'no repair was found'}")


def _event(event: Any, masking: Any) -> dict[str, Any]:
    values = {k: masking.text(v) if isinstance(v, str) else v for k, v in asdict(event).items()}
    return {"kind": type(event).__name__, **values}


def _event_row(event: Any, masking: Any) -> tuple[str, str, str]:
    values = {
        k: v for k, v in asdict(event).items() if k not in ("by", "logprobs") and v not in (None, "", (), 0)
    }
    told = ", ".join(f"{k} {v}" for k, v in values.items())
    return str(getattr(event, "by", "")), type(event).__name__, _short(masking.text(told))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="The file to write.")],
    as_suite: Annotated[
        bool,
        typer.Option(
            "--as-suite", help="Write suite items; corrected and liked answers are the right answers."
        ),
    ] = False,
    as_preferences: Annotated[
        bool,
        typer.Option(
            "--as-preferences",
            help="Write preference rows: the corrected answer over the given one, of complaints routed to the weights.",
        ),
    ] = False,
    unrouted: Annotated[
        bool,
        typer.Option("--unrouted", help="With --as-preferences: also complaints that were not routed yet."),
    ] = False,
    text: Text = None,
    user: User = None,
    model: Model = None,
    stack_key: StackKey = None,
    rule: Rule = None,
    feedback: RatedAs = None,
    since: Since = None,
    until: Until = None,
    mask: Masked = False,
    url: TurnsDatabase = REQUESTS,
) -> None:
    """Export turns as JSON lines, suite items or preference rows; each line names its turn and its stack."""
    from demeanor.core.files import write_text
    from demeanor.stack.stack import file_hash
    from demeanor.store import lineage, rated_turns

    if as_suite and as_preferences:
        raise UsageError("turns export: --as-suite and --as-preferences exclude each other")
    if unrouted and not as_preferences:
        raise UsageError("--unrouted: is for --as-preferences")
    with opened(url) as database:
        found_by = wanted(text, user, model, stack_key, rule, feedback, since, until)
        turns = rated_turns.select(database, found_by)[::-1]
        rows, left_out = _rows(database, turns, as_suite, as_preferences, unrouted, mask)
        if rows:
            write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            kind = "suite" if as_suite else "preference set" if as_preferences else "turns"
            ids = (turn.stored.turn.id for turn in turns)
            lineage.note(database, kind, str(out.resolve()), file_hash(out), ids)
    what = "items" if as_suite else "preference rows" if as_preferences else "turns"
    print(f"{out}: {len(rows)} {what} of {len(turns)} turns" if rows else f"{out}: not written, no {what}")
    for reason, count in sorted(left_out.items(), key=lambda x: -x[1]):
        print(f"  {count} left out: {reason}")
    raise typer.Exit(0 if rows else 1)


def _rows(
    database: Database,
    turns: Sequence[FoundTurn],
    as_suite: bool,
    as_preferences: bool,
    unrouted: bool,
    mask: bool,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    from demeanor.evaluation import turn_export
    from demeanor.evaluation.items import wrong_target
    from demeanor.store import routed_complaints

    masking = turn_export.Masking(mask)
    if as_suite:
        items, left_out = turn_export.suite(turns, masking, wrong_target)
        return turn_export.item_rows(items), left_out
    if as_preferences:
        found = turn_export.preferences(turns, masking, routed_complaints.labels(database), unrouted=unrouted)
        return found.rows, found.left_out
    return [turn_export.plain_row(turn, masking) for turn in turns], {}


@app.command()
def route(
    stack: StackFile,
    cases: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write the corrected complaints as suites, one file a label: LABEL.jsonl."
        ),
    ] = None,
    text: Text = None,
    user: User = None,
    model: Model = None,
    stack_key: StackKey = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Use only the newest N complaints.")] = 100,
    name: ResultName = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
    url: TurnsDatabase = REQUESTS,
) -> None:
    """Find the layer that causes each complaint, by replaying it with one layer changed at a time."""
    from demeanor.evaluation.diagnosis import complaints as routing
    from demeanor.evaluation.items import save_suite
    from demeanor.report import publish
    from demeanor.store import rated_turns
    from demeanor.store import routed_complaints as stored

    declared = load(stack, overrides)
    with opened(url) as database:
        found_by = wanted(text, user, model, stack_key, None, "any", since, until)
        rated = rated_turns.select(database, found_by)
        bad = [t for t in rated if t.complained and t.stored.turn.raw is None][:limit]
        liked = [_rated_turn(t) for t in rated if not t.complained and (t.rating or 0.0) > 0]
        if not bad:
            raise UsageError(
                f"turns route: no complaint in {shown(url)}: wanted turns with a rating below 0 or a corrected answer "
                "(POST /v1/feedback, or the thumbs of the chat page)"
            )
        given = [routing.Complaint(t.stored.turn, t.stored.completion, t.corrected) for t in bad]
        found = routing.run(declared, evaluation_services(runs), results, given, liked, name=name)
        rows = [(c.turn, c.label, c.layer, c.repair, routing.evidence(c)) for c in found.complaints]
        stored.save(database, declared.key(), rows)
    publish.show_section(results, found.name, routing.KIND)
    if cases is not None:
        turns = {t.stored.turn.id: t.stored.turn for t in bad}
        every = list(routing.cases(found, turns))
        for label in dict.fromkeys(label for label, _ in every):
            path = cases / f"{label.replace(' ', '-')}.jsonl"
            items = [item for of, item in every if of == label]
            save_suite(items, path)
            print(f"{path}: {len(items)} items")


def _rated_turn(turn: FoundTurn) -> RatedTurn:
    from demeanor.core.types import RatedTurn

    stored = turn.stored
    ms = (stored.finished - stored.started).total_seconds() * 1000
    return RatedTurn(stored.turn, stored.completion, ms, turn.rating or 0.0)


def replay(
    stack: StackFile,
    model: Annotated[str, typer.Option(metavar="ID", help="The variant that answers the turns again.")],
    score: Annotated[
        str | None,
        typer.Option(
            metavar="SCORER", help="Score both answers with this scorer; `judged` uses the stack's judge."
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="YAML", help="Settings of the scorer, such as '{refuse: false}'.")
    ] = "{}",
    run_tools: Annotated[
        bool,
        typer.Option(
            "--run-tools", help="Also run tools that may have side effects (default: only tools without)."
        ),
    ] = False,
    text: Text = None,
    user: User = None,
    answered_by: Annotated[
        str | None, typer.Option(metavar="ID", help="Only turns that this model id answered.")
    ] = None,
    stack_key: StackKey = None,
    rule: Rule = None,
    feedback: RatedAs = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Use only the newest N turns.")] = 100,
    name: ResultName = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
    results: Results = RESULTS,
    url: Annotated[
        str, typer.Option("--turns", "--database", metavar="URL", help="The database of the record layer.")
    ] = REQUESTS,
) -> None:
    """Answer recorded turns again with another variant (same conversation, seed and decoding); print the differences and paired scores."""
    from demeanor.core.files import yaml_value
    from demeanor.evaluation import turn_replay
    from demeanor.report import publish
    from demeanor.store import rated_turns
    from demeanor.traffic_services import screen_of

    settings = yaml_value(target, "--target")
    if not isinstance(settings, dict):
        raise UsageError(f"--target: got {target!r}, wanted settings such as '{{refuse: false}}'")
    declared = load(stack, overrides)
    declared.resolve(model)  # an unknown variant is said before the turns are read
    with opened(url) as database:
        found_by = wanted(text, user, answered_by, stack_key, rule, feedback, since, until)
        chosen = rated_turns.select(database, found_by, limit=limit)
    turns = [
        turn_replay.RecordedTurn(t.stored.turn, t.stored.completion)
        for t in chosen
        if t.stored.turn.raw is None and t.stored.finish_reason is not None
    ]
    if not turns:
        raise UsageError(f"replay: no finished turn of a conversation in {shown(url)} passes these filters")
    plan = turn_replay.ReplayPlan(score, settings, run_tools, screen_of)  # type: ignore[arg-type]
    found = turn_replay.run(declared, evaluation_services(runs), results, model, turns, plan, name=name)
    publish.show_section(results, found.name, turn_replay.KIND)
    raise typer.Exit(3 if found.failed else 0)

"""Live traffic with scripted variants: arms are exposed, shadows and evaluators never touch an answer, and nothing fails silently."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.types import (
    Completion,
    Decoding,
    Done,
    Event,
    Message,
    Refusal,
    Respond,
    Text,
    Turn,
    Usage,
    complete,
)
from demeanor.server.request_context import CURRENT_REQUEST, RequestContext
from demeanor.stack.serving_schema import EvaluatorSpec, ExperimentSpec, JobBudget, ShadowSpec
from demeanor.store import experiments, turn_jobs
from demeanor.store.database import Database, open_url
from demeanor.traffic import traffic_report
from demeanor.traffic.jobs import JobKind, JobRunner
from demeanor.traffic.live import LiveTraffic, PreparedArm, PreparedExperiment, Sampler
from demeanor.traffic.work import LiveJudge, ShadowVariant, evaluator_work, shadow_work
from tests.conftest import each

SCORE = {"kind": "refused", "window_hours": 0}
EXPERIMENT = ExperimentSpec.model_validate(
    {
        "name": "prompt",
        "arms": [{"model": "desk", "share": 0.5}, {"model": "desk-prompt", "share": 0.5}],
        "score": SCORE,
    }
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_url("sqlite:///requests.db", root=tmp_path)
    yield database
    database.close()


def says(text: str, calls: list[Turn] | None = None, refuses: bool = False) -> Respond:
    """A variant that says one text, or refuses with it."""

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        if calls is not None:
            calls.append(turn)
        yield Refusal("policy", "no", "why", text) if refuses else Text(text)
        yield Usage(5, 2)
        yield Done("content_filter" if refuses else "stop")

    return respond


def recorded(database: Database, inner: Respond) -> Respond:
    """As the record layer does: Done is passed on when the turn is stored."""

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        events: list[Event] = []
        async for event in inner(turn):
            events.append(event)
            if isinstance(event, Done):
                now = datetime.now(UTC)
                await database.record(turn, events, now, now)
            yield event

    return respond


def turn(n: int, user: str = "edda") -> Turn:
    return Turn((Message("user", f"Question {n}?"),), Decoding(seed=n), id=f"t{n}", user=user)


def shadow(
    live: LiveTraffic, respond: Respond, screen: Callable[[Turn, Completion], Any] | None = None, **given: Any
) -> JobRunner:
    budget = JobBudget(**({"per_minute": None, "patience_s": 5.0} | given.pop("budget", {})))
    spec = ShadowSpec(name="next", model="desk-next", budget=budget, **given)

    async def as_said(turn: Turn, completion: Completion) -> str:
        return completion.text

    work = shadow_work(spec, ShadowVariant("desk-next", "k2", respond, screen or as_said))
    return sampler(live, JobKind("shadow", "next", "v1", budget, work, own_engine=True), spec)


def sampler(live: LiveTraffic, job: JobKind, spec: ShadowSpec | EvaluatorSpec) -> JobRunner:
    runner = JobRunner(job, live.database, lambda: live.live, live.owner)
    live.samplers.append(Sampler(runner, spec))
    return runner


async def settled(runner: JobRunner) -> None:
    """Wait until a runner has nothing more to do and everything is written."""
    async with asyncio.timeout(60):
        while runner.waiting():
            await asyncio.sleep(0.005)
        await runner.database.check(30.0)
        await asyncio.sleep(0)


@pytest.fixture
def live(database: Database) -> Iterator[LiveTraffic]:
    live = LiveTraffic(database, ())
    yield live
    live.close()


# ---- shadows ----


async def test_a_shadow_answers_after_the_live_answer_and_its_result_is_linked_to_the_turn(
    database: Database, live: LiveTraffic
) -> None:
    asked: list[Turn] = []
    runner = shadow(live, says("At 10.", asked), scorer="exact", target={"answers": ["At 9."]})
    answer = await complete(live.observed(recorded(database, says("At 9.")), "desk", whole=True), turn(1))
    assert answer.text == "At 9."
    await settled(runner)
    (job,) = turn_jobs.jobs(database, turn="t1")
    assert job.outcome is not None
    assert (job.state, job.outcome.answer, job.outcome.value, job.outcome.live_value) == (
        "done",
        "At 10.",
        0.0,
        1.0,
    )
    assert (asked[0].messages, asked[0].decoding, asked[0].variant) == (
        turn(1).messages,
        turn(1).decoding,
        "desk-next",
    )
    assert asked[0].id != "t1"


async def test_only_turns_of_the_whole_stack_have_shadows(database: Database, live: LiveTraffic) -> None:
    runner = shadow(live, says("x"))
    await complete(live.observed(recorded(database, says("At 9.")), "desk:sft", whole=False), turn(1))
    assert runner.outcomes == Counter()


@pytest.mark.parametrize("wrong", ["crash", "hang", "cancelled"])
async def test_a_shadow_that_fails_never_touches_the_live_answer_and_is_seen(
    wrong: str, database: Database, live: LiveTraffic, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(turn: Turn) -> AsyncIterator[Event]:
        yield Text("half")
        if wrong == "crash":
            raise ZeroDivisionError("the words of a user")
        if wrong == "hang":
            await asyncio.sleep(3600)
        yield Done("cancelled")

    runner = shadow(live, broken, budget={"timeout_s": 0.2, "alarm_after": 1})
    answer = await complete(live.observed(recorded(database, says("At 9.")), "desk", whole=True), turn(1))
    assert (answer.text, answer.finish_reason) == ("At 9.", "stop")
    await settled(runner)
    (job,) = turn_jobs.jobs(database)
    assert job.outcome is not None
    assert job.state == "failed"
    assert runner.outcomes["failed"] == 1
    assert turn_jobs.counts(database)["shadow", "next", "v1"] == {"due": 1, "failed": 1}
    assert "none of the last 1 selected turns was finished" in live.notes()[0]
    told = caplog.text + job.outcome.reason + live.notes()[0]
    assert "shadow next" in caplog.text
    assert "words of a user" not in told


async def test_a_shadow_that_should_have_fired_and_did_not_is_an_alarm(
    database: Database, live: LiveTraffic
) -> None:
    """LiteLLM's mirror silently never fired (#31888): here 20 selected turns without a call are in /readyz, the counts and the log."""
    asked: list[Turn] = []
    runner = shadow(live, says("x", asked), budget={"per_minute": 1, "waiting": 1, "patience_s": 0.01})
    live.live = 1  # somebody always waits for an answer, so there is never room
    for n in range(21):
        await complete(live.observed(recorded(database, says("At 9.")), "desk", whole=True), turn(n))
    await settled(runner)
    assert asked == []
    assert runner.outcomes == {"due": 21, "skipped: per_minute": 20, "skipped: busy": 1}
    counted = turn_jobs.counts(database)["shadow", "next", "v1"]
    assert counted == {"due": 21, "skipped: per_minute": 20, "skipped: busy": 1}
    assert "shadow next: none of the last 21 selected turns was finished" in live.notes()[0]
    await turn_jobs.declare(database, "shadow", "next", "v1", {})
    (report,) = traffic_report.job_reports(database)
    assert report.silent


async def test_a_shadow_waits_until_no_live_answer_is_written(database: Database, live: LiveTraffic) -> None:
    asked: list[Turn] = []
    runner = shadow(live, says("x", asked))
    gate = asyncio.Event()

    async def slow(turn: Turn) -> AsyncIterator[Event]:
        yield Text("At 9.")
        await gate.wait()
        yield Done("stop")

    waiting = asyncio.create_task(
        complete(live.observed(recorded(database, slow), "desk", whole=True), turn(1))
    )
    await complete(live.observed(recorded(database, says("At 9.")), "desk", whole=True), turn(2))
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert asked == []
    gate.set()
    await waiting
    await settled(runner)
    assert len(asked) == 2


async def test_a_shadow_costs_the_users_key_nothing_and_knows_nothing_of_the_request(
    database: Database, live: LiveTraffic
) -> None:
    seen: list[object] = []

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        seen.append(CURRENT_REQUEST.get(None))
        yield Text("x")
        yield Done("stop")

    runner = shadow(live, respond)
    token = CURRENT_REQUEST.set(RequestContext("1", "1"))
    try:
        await complete(live.observed(recorded(database, says("At 9.")), "desk", whole=True), turn(1))
        await settled(runner)
    finally:
        CURRENT_REQUEST.reset(token)
    assert seen == [None]


async def test_an_answer_of_a_shadow_is_kept_as_the_policy_would_show_it(
    database: Database, live: LiveTraffic
) -> None:
    async def screen(turn: Turn, completion: Completion) -> str:
        return completion.text.replace("4111 1111 1111 1111", "[card]")

    runner = shadow(live, says("It is 4111 1111 1111 1111."), screen)
    await complete(live.observed(recorded(database, says("I cannot.")), "desk", whole=True), turn(1))
    await settled(runner)
    (job,) = turn_jobs.jobs(database)
    assert job.outcome is not None
    assert job.outcome.answer == "It is [card]."
    assert b"4111" not in database.path.read_bytes() + Path(f"{database.path}-wal").read_bytes()


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        ({"per_day": 2}, "per_day"),
        ({"tokens_per_day": 14}, "tokens_per_day"),
        ({"usd_per_day": 1e-5, "usd_per_million": (1.0, 0.0)}, "usd_per_day"),
    ],
)
async def test_a_budget_of_a_day_holds_and_what_it_skips_is_counted(
    budget: dict[str, Any], why: str, database: Database, live: LiveTraffic
) -> None:
    """A job takes 5 + 2 tokens, and 5 millionths of a dollar: two fit into each budget."""
    runner = shadow(live, says("x"), budget=budget)
    for n in range(4):
        await complete(live.observed(recorded(database, says("At 9.")), "desk", whole=True), turn(n))
        await settled(runner)
    assert turn_jobs.counts(database)["shadow", "next", "v1"] == {"due": 4, "done": 2, f"skipped: {why}": 2}


async def test_what_a_killed_process_left_is_run_by_the_next_one(
    database: Database, live: LiveTraffic
) -> None:
    await complete(recorded(database, says("At 9.")), turn(1))
    await turn_jobs.add(database, "shadow", "next", "v1", "t1", "killed", -1.0)
    await turn_jobs.add(database, "shadow", "gone", "v1", "t1", "killed", -1.0)
    runner = shadow(live, says("x"))
    live.begin()
    async with asyncio.timeout(60):
        while any(job.state == "pending" for job in turn_jobs.jobs(database)):
            await asyncio.sleep(0.01)
    states = {job.name: job.state for job in turn_jobs.jobs(database)}
    assert states == {"next": "done", "gone": "lost"}
    assert runner.outcomes["done"] == 1


async def test_a_share_selects_the_same_turns_in_every_process(database: Database, live: LiveTraffic) -> None:
    runner = shadow(live, says("x"), share=0.3)
    spec = live.samplers[0]
    chosen = [n for n in range(2000) if spec.selects(turn(n), "desk", True)]
    assert abs(len(chosen) - 600) < 90
    other = Sampler(JobRunner(runner.job, database, lambda: 0, "another"), spec.spec)
    assert [n for n in range(2000) if other.selects(turn(n), "desk", True)] == chosen


# ---- experiments ----


def arms(database: Database) -> PreparedExperiment:
    control, treatment = says("At 9."), says("No.", refuses=True)
    return PreparedExperiment(
        "e1",
        EXPERIMENT,
        (
            PreparedArm("desk", recorded(database, control)),
            PreparedArm("desk-prompt", recorded(database, treatment)),
        ),
    )


async def ask(live: LiveTraffic, n: int, user: str) -> str:
    found = live.assign(user, turn(n).messages)
    if found is None:
        return "whole"
    assigned, prepared = found
    arm = prepared.arms[assigned.arm]
    await complete(live.observed(arm.respond, arm.model_id, whole=True, assigned=found), turn(n, user))
    return arm.model_id


async def test_users_keep_their_arm_and_its_effect_is_found(database: Database) -> None:
    live = LiveTraffic(database, (arms(database),))
    await experiments.register(database, "e1", "prompt", EXPERIMENT.model_dump(mode="json"))
    for n in range(120):
        first = await ask(live, 2 * n, f"u{n}")
        assert await ask(live, 2 * n + 1, f"u{n}") == first
    report = traffic_report.experiment(database, experiments.experiments(database)[0])
    control, treatment = report.result.arms
    assert (control.turns + treatment.turns, control.users + treatment.users) == (240, 120)
    assert (control.scored, treatment.scored) == (control.users, treatment.users)
    assert control.mean is not None
    assert treatment.mean is not None
    assert (control.mean.value, treatment.mean.value) == (0.0, 1.0)
    assert report.result.contrasts[0].decision == "worse"
    assert report.result.warnings == ()
    live.close()


async def test_a_stopped_experiment_assigns_nobody_and_its_result_stays(database: Database) -> None:
    live = LiveTraffic(database, (arms(database),))
    await experiments.register(database, "e1", "prompt", EXPERIMENT.model_dump(mode="json"))
    await ask(live, 1, "u1")
    assert live.stop("prompt", "enough")
    assert await ask(live, 2, "u2") == "whole"
    assert not live.stop("e1", "again")
    assert "was stopped and assigns nobody" in live.notes()[0]
    again = LiveTraffic(database, (arms(database),))
    again.refresh()  # as at the next start: the same declaration does not begin again, and that is said
    assert await ask(again, 3, "u3") == "whole"
    assert "was stopped and assigns nobody" in again.notes()[0]
    assert sum(a["users"] for a in live.report()["experiments"][0]["result"]["arms"]) == 1
    live.close()


# ---- evaluators ----


def evaluator(live: LiveTraffic, judge: LiveJudge | None = None, **given: Any) -> JobRunner:
    settings = {"name": "polite", "scorer": "exact", "target": {"answers": ["At 9."]}} | given
    spec = EvaluatorSpec.model_validate(settings)
    return sampler(
        live,
        JobKind("evaluator", "polite", "v1", spec.budget, evaluator_work(spec, judge), own_engine=False),
        spec,
    )


async def test_an_evaluator_scores_the_answer_that_the_user_got(
    database: Database, live: LiveTraffic
) -> None:
    runner = evaluator(live)
    await complete(live.observed(recorded(database, says("At 9.")), "desk", whole=True), turn(1))
    await complete(live.observed(recorded(database, says("At 10.")), "desk:sft", whole=False), turn(2))
    await settled(runner)
    assert {job.turn: job.outcome.value for job in turn_jobs.jobs(database) if job.outcome} == {
        "t1": 1.0,
        "t2": 0.0,
    }


async def test_an_evaluator_of_some_models_leaves_out_others(database: Database, live: LiveTraffic) -> None:
    runner = evaluator(live, models=("desk:sft",))
    await complete(live.observed(recorded(database, says("At 9.")), "desk", whole=True), turn(1))
    assert runner.outcomes["due"] == 0


@pytest.mark.parametrize(
    ("words", "state", "value"),
    [
        ("It is.\nVerdict: yes", "done", 1.0),
        ("It is not.\nVerdict: no", "done", 0.0),
        ("Well.", "failed", None),
        ("", "failed", None),
    ],
)
async def test_a_judge_without_a_verdict_is_a_failure_that_is_seen(
    words: str, state: str, value: float | None, database: Database, live: LiveTraffic
) -> None:
    """Langfuse's evaluators stopped running and nobody was told (#13202, #14418)."""
    judge = LiveJudge("small", says(words), 64)
    runner = evaluator(
        live, judge, scorer="judged", target={"question": "Polite?"}, budget={"alarm_after": 1}
    )
    await complete(live.observed(recorded(database, says("At 9.")), "desk", whole=True), turn(1))
    await settled(runner)
    (job,) = turn_jobs.jobs(database)
    assert job.outcome is not None
    assert (job.state, job.outcome.value) == (state, value)
    assert bool(live.notes()) == (state == "failed")
    assert (job.outcome.prompt_tokens, job.outcome.completion_tokens) == (
        (5, 2) if state == "done" else (0, 0)
    )


async def test_turns_are_selected_in_the_database_before_the_answer_ends(
    database: Database, live: LiveTraffic
) -> None:
    """So that a kill -9 after the end loses no job: it is pending, and found by the next process."""
    runner = evaluator(live)
    runner.begin()
    for task in each(list(runner._tasks)):
        task.cancel()
    async for event in live.observed(recorded(database, says("At 9.")), "desk", whole=True)(turn(1)):
        if isinstance(event, Done):
            found = turn_jobs.jobs(database)
    assert [(job.turn, job.state) for job in found] == [("t1", "pending")]


async def test_raw_text_and_broken_off_answers_are_no_turns_to_score(
    database: Database, live: LiveTraffic
) -> None:
    async def cut(turn: Turn) -> AsyncIterator[Event]:
        yield Text("Half")
        yield Done("cancelled")

    runner = evaluator(live)
    await complete(live.observed(recorded(database, cut), "desk", whole=True), turn(1))
    raw = Turn((Message("user", "x"),), Decoding(), id="t2", raw=(1, 2))
    await complete(live.observed(recorded(database, says("x")), "desk", whole=True), raw)
    assert runner.outcomes["due"] == 0

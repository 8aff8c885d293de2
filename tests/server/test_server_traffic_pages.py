"""The pages of experiments and evaluators with content: what they say, hostile text, axe, stopping; the database is what live traffic writes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
from accessibility import AXE, findings
from browser import CHROMIUM, Browser
from live import served
from pages import press, texts
from scripted import HOSTILE, Recording

from demeanor.core.types import Decoding, Done, Message, Text, Turn
from demeanor.stack.serving_schema import EvaluatorSpec, ExperimentSpec, ShadowSpec
from demeanor.store import experiments, turn_jobs
from demeanor.store.database import Database
from demeanor.store.turn_jobs import Outcome
from demeanor.traffic.live import LiveTraffic
from tests.conftest import each

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
TESTED = {
    "name": "no-policy",
    "arms": [
        {"model": "harbour-desk", "share": 0.5},
        {"model": "harbour-desk-policy", "share": 0.5, "name": "x" * 64},
    ],
    "score": {"kind": "refused", "window_hours": 0},
}
WATCH = """window.pwned = 0; window.reports = [];
document.addEventListener("securitypolicyviolation", (e) => window.reports.push(e.violatedDirective));"""


class Observed(Recording):
    """A recording assistant with live traffic."""

    live: LiveTraffic

    def traffic(self) -> LiveTraffic:
        return self.live


async def recorded(database: Database, number: int) -> str:
    turn = Turn(
        (Message("user", f"When to port {number}?"),), Decoding(), id=f"t{number}", user=f"u{number % 13}"
    )
    await database.record(turn, [Text("At 9."), Done("stop")], datetime.now(UTC), datetime.now(UTC))
    return turn.id


async def fill(database: Database) -> None:
    """Forty turns: an experiment that runs and one that was stopped, a shadow, an evaluator, one whose every turn failed."""
    spec = ExperimentSpec.model_validate(TESTED).model_dump(mode="json")
    await experiments.register(database, "e" * 16, "no-policy", spec)
    await experiments.register(database, "f" * 16, "older", spec | {"name": "older"})
    experiments.stop(database, "f" * 16, HOSTILE)
    shadow = ShadowSpec(name="sft-shadow", model="harbour-desk:sft").model_dump(mode="json")
    evaluator = EvaluatorSpec(name="says-no", scorer="refusal", target={"refuse": True}).model_dump(
        mode="json"
    )
    for kind, name, declared in (
        ("shadow", "sft-shadow", shadow),
        ("evaluator", "says-no", evaluator),
        ("evaluator", "broken", evaluator),
    ):
        await turn_jobs.declare(database, kind, name, "v" * 16, declared)  # type: ignore[arg-type]
    for n in range(40):
        turn = await recorded(database, n)
        await experiments.expose(database, "e" * 16, turn, f"u{n % 13}", n % 13 % 2, float(n % 3 == 0))
        await experiments.expose(database, "f" * 16, turn, f"u{n % 13}", n % 13 % 2, 1.0)
        for kind, name in (("shadow", "sft-shadow"), ("evaluator", "says-no"), ("evaluator", "broken")):
            await turn_jobs.add(database, kind, name, "v" * 16, turn, "me", 60.0)  # type: ignore[arg-type]
    for job in turn_jobs.jobs(database, limit=1000):
        failed = job.name == "broken"
        done = (
            Outcome("failed", HOSTILE)
            if failed
            else Outcome("done", value=0.5, live_value=0.25, answer="At 9." if job.kind == "shadow" else None)
        )
        await turn_jobs.finish(database, job, done)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        made.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        yield made


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    made = Observed(tmp_path_factory.mktemp("turns") / "turns.db")
    assert made.database is not None
    asyncio.run(fill(made.database))
    made.live = LiveTraffic(made.database, ())
    made.live.failures["scores"] = 3
    with served(made) as url:
        yield url
    made.database.close()


def opened(browser: Browser, url: str) -> None:
    browser.open("about:blank")
    browser.open(url)
    browser.wait("document.body.dataset.ready === 'yes'")


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_both_pages_with_content_fit_are_accessible_and_run_nothing(
    browser: Browser, address: str, width: int, scheme: str
) -> None:
    browser.size(width, 900)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    for page in each(["experiments", "evaluators"]):
        opened(browser, f"{address}/operator/{page}")
        assert len(texts(browser, "main section")) >= 2
        assert "experiments: failed: 3 scores" in " ".join(texts(browser, ".problem"))
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert browser.run("[window.pwned, window.reports.length]") == [0, 0]
        assert browser.run("document.querySelectorAll('main script, main img, main iframe').length") == 0
        if AXE.is_file():
            assert findings(browser) == [], page
        assert browser.errors == []


def test_the_pages_say_what_the_database_has(browser: Browser, address: str) -> None:
    browser.size(1200, 900)
    opened(browser, f"{address}/operator/experiments")
    older, first = texts(browser, "main section")
    assert "no-policy running" in first
    assert first.count("lower is better") == 1
    assert texts(browser, "[aria-label='Arms of no-policy'] tbody th") == ["control", "x" * 64]
    assert texts(browser, "[aria-label='Arms of no-policy'] tbody td:nth-child(5)") == ["22", "18"]
    assert "older stopped" in older
    assert "<script>" in older, "the reason is shown as text"
    opened(browser, f"{address}/operator/evaluators")
    told = {text.split()[1]: text for text in texts(browser, "main section")}
    assert "40 turns due: 40 done" in told["sft-shadow"]
    assert "Shadow less live0.25" in told["sft-shadow"]
    assert "Same text40 of 40" in told["sft-shadow"]
    assert "Mean score0.5" in told["says-no"]
    assert "Same text" not in told["says-no"]
    assert "40 turns due: 40 failed" in told["broken"]
    assert "has never run" in told["broken"]


def test_an_experiment_is_stopped_by_two_presses_for_everybody(browser: Browser, address: str) -> None:
    browser.size(1200, 900)
    opened(browser, f"{address}/operator/experiments")
    stop = "[aria-label='Experiment no-policy'] .retry"
    press(browser, stop)
    assert "Press again" in texts(browser, stop)[0]
    press(browser, stop)
    browser.wait(
        "document.querySelector(\"[aria-label='Experiment no-policy'] .chip\")?.textContent === 'stopped'"
    )
    found = httpx.get(f"{address}/v1/demeanor/traffic").json()["experiments"]
    assert {one["name"]: one["state"] for one in found} == {"no-policy": "stopped", "older": "stopped"}
    assert "stopped on the operators' page" in texts(browser, "[aria-label='Experiment no-policy']")[0]

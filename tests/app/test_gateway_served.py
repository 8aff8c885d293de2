"""A served stack with fallbacks and prices: what a client, a log line, a scrape, a key and the database learn."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi.testclient import TestClient

from demeanor import cli
from demeanor.app import StackRuntime, load_stack
from demeanor.core.errors import RequestError, SpecError
from demeanor.server import json_logs
from demeanor.server.admission import Operations
from demeanor.server.application import app
from demeanor.server.auth import KeyRing
from demeanor.server.costs import Account
from demeanor.serving import ServedStack
from demeanor.store import database, keys
from demeanor.training.runs import Runs
from tests.conftest import each
from tests.engine.test_gateway import Scripted
from tests.server.live import other_server

PRICES = {
    "cheap": {"input": 1.0, "output": 2.0},  # 9 and 2 tokens: 13 millionths of a USD
    "spare": {"input": 10.0, "output": 20.0},
}
BODY = {"model": "door", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}


def write(folder: Path, urls: list[str], **serve: Any) -> Path:
    base = {
        "kind": "remote",
        "url": urls[0],
        "model": "m0",
        "name": "cheap",
        "retries": 0,
        "fallbacks": [{"url": urls[1], "model": "m1", "name": "spare"}],
    }
    raw = {
        "name": "door",
        "weights": {"base": base},
        "layers": [{"kind": "record", "database": f"sqlite:///{folder}/turns.db"}],
        "serve": serve,
    }
    (folder / "stack.yaml").write_text(yaml.safe_dump(raw))
    return folder / "stack.yaml"


class Door:
    """A served stack, its two upstreams, its log and its keys."""

    def __init__(self, folder: Path, upstreams: list[Scripted], **serve: Any) -> None:
        self.log, self.upstreams = io.StringIO(), upstreams
        runtime = StackRuntime(
            load_stack(write(folder, [x.url for x in upstreams], **serve)), Runs(folder / "runs")
        )
        self.runtime = runtime
        self.database = database.open_url(f"sqlite:///{folder}/keys.db", root=folder)
        self.key = keys.create(self.database, "edda")
        self.client = TestClient(
            app(
                ServedStack(runtime),
                keys=KeyRing(self.database),
                operations=Operations(observers=(json_logs.to(self.log),)),
            )
        )

    def ask(self, key: str | None = None, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return self.client.post("/v1/chat/completions", json=BODY | more, headers=headers)

    def spent(self, key: str | None = None) -> keys.KeyCost:
        day = keys.day_of(self.database.now())
        return keys.cost(self.database, keys.digest(key or self.key), day)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def metrics(self) -> str:
        return self.client.get("/metrics", headers={"authorization": f"Bearer {self.key}"}).text


@pytest.fixture
def upstreams() -> Iterator[list[Scripted]]:
    with ExitStack() as stack:
        found = [Scripted(), Scripted()]
        for one in found:
            one.url = stack.enter_context(other_server(one.handler()))
        yield found


def test_the_cost_stands_in_the_usage_the_header_the_log_the_metrics_and_the_database(
    tmp_path: Path, upstreams: list[Scripted]
) -> None:
    door = Door(tmp_path, upstreams, prices=PRICES)
    answer = door.ask()
    assert answer.json()["usage"]["cost_usd"] == 13e-6
    assert answer.headers["x-demeanor-cost-usd"] == "0.000013000"
    assert answer.headers["x-demeanor-upstream"] == "cheap"
    assert {
        "choice": 0,
        "by": "weights",
        "kind": "upstream",
        "name": "cheap",
        "failed": [],
        "skipped": [],
    } in answer.json()["demeanor"]["events"]
    line = door.lines()[0]
    assert (line["cost_usd"], line["upstreams"]) == (13e-6, [{"name": "cheap", "failed": [], "skipped": []}])
    assert 'demeanor_cost_usd_total{model="door",upstream="cheap"} 1.3e-05' in door.metrics()
    assert door.spent() == keys.KeyCost(13_000, 0)
    [stored] = door.runtime.opened(f"sqlite:///{tmp_path}/turns.db").rows("SELECT cost_usd FROM turns")
    assert stored["cost_usd"] == 13e-6


def test_a_fallback_is_named_everywhere_and_charged_at_its_own_price(
    tmp_path: Path, upstreams: list[Scripted]
) -> None:
    upstreams[0].plan = [(503, {})]
    door = Door(tmp_path, upstreams, prices=PRICES)
    answer = door.ask()
    assert (answer.json()["choices"][0]["message"]["content"], answer.headers["x-demeanor-upstream"]) == (
        "m1",
        "spare",
    )
    assert answer.json()["usage"]["cost_usd"] == 130e-6
    told = [{"name": "spare", "failed": [{"name": "cheap", "status": 503}], "skipped": []}]
    assert door.lines()[0]["upstreams"] == told


def test_a_stream_names_its_upstream_in_the_header_and_its_cost_at_its_end(
    tmp_path: Path, upstreams: list[Scripted]
) -> None:
    upstreams[0].plan = [(500, {})]
    door = Door(tmp_path, upstreams, prices=PRICES)
    answer = door.ask(stream=True, stream_options={"include_usage": True})
    assert answer.headers["x-demeanor-upstream"] == "spare"
    last = [json.loads(x[6:]) for x in answer.text.split("\n\n") if x.startswith("data: {")][-1]
    assert last["usage"]["cost_usd"] == 130e-6


def test_a_model_without_a_price_costs_null_and_never_nothing(
    tmp_path: Path, upstreams: list[Scripted]
) -> None:
    upstreams[0].plan = [(503, {})]
    door = Door(tmp_path, upstreams, prices={"cheap": PRICES["cheap"]})
    answer = door.ask()
    assert answer.json()["usage"]["cost_usd"] is None
    assert answer.headers["x-demeanor-cost-usd"] == "unknown"
    assert door.lines()[0]["cost_usd"] is None
    assert door.spent() == keys.KeyCost(0, 1)
    assert 'demeanor_calls_without_price_total{upstream="spare"} 1.0' in door.metrics()


def test_without_prices_nothing_is_said_of_cost(tmp_path: Path, upstreams: list[Scripted]) -> None:
    door = Door(tmp_path, upstreams)
    answer = door.ask()
    assert "cost_usd" not in answer.text
    assert "x-demeanor-cost-usd" not in answer.headers
    assert door.spent() == keys.KeyCost()


def test_the_responses_api_tells_the_cost_too(tmp_path: Path, upstreams: list[Scripted]) -> None:
    door = Door(tmp_path, upstreams, prices=PRICES)
    answer = door.client.post(
        "/v1/responses",
        json={"model": "door", "input": "hello"},
        headers={"authorization": f"Bearer {door.key}"},
    )
    assert answer.json()["usage"]["cost_usd"] == 13e-6


def test_a_budget_in_usd_is_reserved_before_a_call_at_the_dearest_price(
    tmp_path: Path, upstreams: list[Scripted]
) -> None:
    door = Door(tmp_path, upstreams, prices=PRICES)
    # the prompt is estimated at 6 tokens: 6 x 10 + 10 x 20 = 260 millionths are reserved, 13 are spent
    key = keys.create(door.database, "poor", usd_per_day=270e-6)
    assert door.ask(key).status_code == 200
    assert door.spent(key).nano_usd == 13_000
    second = door.ask(key)
    assert (second.status_code, second.json()["error"]["code"]) == (429, "budget_exceeded")
    assert door.spent(key).nano_usd == 13_000
    dear = door.ask(key, max_tokens=100)
    assert (dear.status_code, dear.json()["error"]["code"]) == (400, "request_too_large")


def test_a_call_that_fails_costs_nothing(tmp_path: Path, upstreams: list[Scripted]) -> None:
    upstreams[0].plan, upstreams[1].plan = [(503, {})], [(503, {})]
    door = Door(tmp_path, upstreams, prices=PRICES)
    key = keys.create(door.database, "poor", usd_per_day=1.0)
    assert door.ask(key).status_code == 503
    assert door.spent(key) == keys.KeyCost()


def test_an_answer_that_breaks_off_is_charged_what_was_reserved(
    tmp_path: Path, upstreams: list[Scripted]
) -> None:
    upstreams[0].plan = ["breaks"]
    door = Door(tmp_path, upstreams, prices=PRICES)
    key = keys.create(door.database, "poor", usd_per_day=1.0)
    assert door.ask(key, stream=True).status_code == 200
    assert door.spent(key).nano_usd == 260_000


def test_a_budget_needs_a_price(tmp_path: Path, upstreams: list[Scripted]) -> None:
    door = Door(tmp_path, upstreams, prices={"cheap": PRICES["cheap"]})
    key = keys.create(door.database, "poor", usd_per_day=1.0)
    answer = door.ask(key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "price_unknown")
    assert [len(x.asked) for x in upstreams] == [0, 0]


def test_tries_and_circuits_are_metrics_and_no_address_is_shown(
    tmp_path: Path, upstreams: list[Scripted]
) -> None:
    from demeanor.serving import StackVersions

    upstreams[0].plan = [(503, {})] * 3
    versions = StackVersions(
        lambda: load_stack(write(tmp_path, [x.url for x in upstreams])), Runs(tmp_path / "runs")
    )
    with TestClient(
        app(versions.open().assistant, operations=Operations(upstreams=versions.upstreams)),
        base_url="http://localhost",
    ) as client:
        answers = [client.post("/v1/chat/completions", json=BODY) for _ in range(3)]
        text = client.get("/metrics").text
    versions.close()
    assert 'demeanor_upstream_tries_total{outcome="failed",upstream="cheap"} 3.0' in text
    assert 'demeanor_upstream_tries_total{outcome="answered",upstream="spare"} 3.0' in text
    assert 'demeanor_upstream_open{upstream="cheap"} 1.0' in text
    for answer in each(answers):
        assert "127.0.0.1" not in answer.text + str(answer.headers)


def test_the_stack_key_names_every_model_that_may_answer_and_nothing_of_operation(tmp_path: Path) -> None:
    def key(**fallback: Any) -> str:
        path = write(tmp_path, ["http://a/v1", "http://b/v1"], prices=PRICES)
        raw = yaml.safe_load(path.read_text())
        raw["weights"]["base"]["fallbacks"][0] |= fallback
        path.write_text(yaml.safe_dump(raw))
        return load_stack(path).key()

    assert key() == key(name="other", key_env="SPARE")
    assert len({key(), key(model="m2"), key(url="http://c/v1")}) == 3
    path = write(tmp_path, ["http://a/v1", "http://b/v1"])
    overrides = [
        "weights.base.first_s=3",
        "weights.base.breaker={failures: 9}",
        "weights.base.retry_budget=0.1",
    ]
    assert load_stack(path, overrides).key() == load_stack(path).key()
    assert load_stack(path, ["weights.base.fallbacks=null", "weights.base.name=null"]).key() != key()


def test_a_file_of_prices_is_checked_when_the_stack_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, ["http://a/v1", "http://b/v1"], prices="prices.yaml")
    with pytest.raises(SpecError, match=r"prices\.yaml"):
        load_stack(path)
    (tmp_path / "prices.yaml").write_text("prices: {cheap: {input: 1, ouput: 2}}")
    with pytest.raises(SpecError, match=r"prices\.yaml: prices\.cheap\.output: missing"):
        load_stack(path)
    (tmp_path / "prices.yaml").write_text("prices: {cheap: {input: 1, output: 2, cached: 0.5}}")
    assert load_stack(path).spec.serve.prices == "prices.yaml"


def test_cached_tokens_have_a_price_of_their_own_and_amounts_are_exact() -> None:
    from demeanor.stack.upstreams import Price

    price = Price(input=0.15, output=0.6, cached=0.075)
    assert price.nano_usd(1000, 100) == 210_000
    assert price.nano_usd(1000, 100, 400) == 180_000
    assert Price(input=0.15, output=0.6).nano_usd(1000, 100, 400) == 210_000


async def test_callers_at_once_never_take_more_than_the_budget(tmp_path: Path) -> None:
    """64 calls of 0.03 USD against 1 USD: exactly 33 are let in; what they did not use is given back."""
    store = database.open_url(f"sqlite:///{tmp_path}/keys.db", root=tmp_path)
    key = keys.create(store, "edda", usd_per_day=1.0)
    account = Account(store, keys.digest(key), 1.0)

    async def call() -> bool:
        try:
            day = await account.reserve(30_000_000)
        except RequestError:
            return False
        await asyncio.sleep(0)
        await account.settle(day, 30_000_000, 30_000_000)
        return True

    admitted = await asyncio.gather(*(call() for _ in range(64)))
    assert sum(admitted) == 33
    assert keys.cost(store, keys.digest(key), keys.day_of(store.now())).nano_usd == 990_000_000
    assert account.left_usd() == pytest.approx(0.01)
    store.close()


def test_explain_lists_the_servers_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, ["http://a/v1", "http://b/v1"])
    assert cli.main(["explain", str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "asked in this order: cheap (m0 at http://a/v1); spare (m1 at http://b/v1)" in out


def test_an_evaluation_shows_which_answers_came_from_a_fallback(
    tmp_path: Path, upstreams: list[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    upstreams[0].plan = [(503, {})]
    path = write(tmp_path, [x.url for x in upstreams])
    item = {"id": "a", "axis": "x", "cluster": "a", "scorer": "exact", "target": {"answers": ["m1"]}}
    item["messages"] = [{"role": "user", "content": "hello"}]  # type: ignore[assignment]
    (tmp_path / "suite.jsonl").write_text(json.dumps(item) + "\n")
    words = [
        "eval",
        str(path),
        "--set",
        "evaluation.suites=[suite.jsonl]",
        "--variants",
        "door",
        "--name",
        "e",
    ]
    assert cli.main(words) == 0
    [row] = [json.loads(line) for line in Path("results/e.rows.jsonl").read_text().splitlines()]
    assert row["value"] == 1
    assert {"by": "weights", "what": "answered by spare", "detail": "cheap failed (503)"} in row["events"]

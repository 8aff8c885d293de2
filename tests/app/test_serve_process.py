"""`demeanor serve` as a process: keys, a new stack while it runs, a bad one that changes nothing, and an end that finishes what runs."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from demeanor import serving
from demeanor.app import load_stack
from demeanor.core.errors import DemeanorError
from demeanor.server import serve
from demeanor.serving import StackVersions
from demeanor.stack.stack import Stack
from demeanor.store import keys
from demeanor.store.database import Database
from demeanor.training.runs import Runs
from tests.app.running import ASK, served


@pytest.fixture
def desk(trained: tuple[Stack, Runs], tmp_path: Path) -> Path:
    """A copy of the tiny stack that may be changed."""
    shutil.copytree(trained[0].root, tmp_path / "desk", ignore=shutil.ignore_patterns("runs", "*.db*"))
    return tmp_path / "desk" / trained[0].path.name


def changed(stack: Path, **settings: object) -> None:
    stack.write_text(yaml.safe_dump(yaml.safe_load(stack.read_text()) | settings, sort_keys=False))


def test_a_server_with_keys_reloads_its_stack_and_drains(
    trained: tuple[Stack, Runs], desk: Path, tmp_path: Path
) -> None:
    database = Database(tmp_path / "keys.db")
    key = keys.create(database, "edda", scopes=["chat", "models"], tokens_per_day=5000)
    with (
        served(
            desk, trained[1], tmp_path, "--keys", "sqlite:///keys.db", "--log", "json", "--watch"
        ) as server,
        httpx.Client(base_url=server.url, timeout=120, headers={"authorization": f"Bearer {key}"}) as client,
    ):
        assert httpx.get(f"{server.url}/v1/models", timeout=120).status_code == 401
        first = client.post("/v1/chat/completions", json=ASK)
        assert first.status_code == 200
        used = first.json()["usage"]["total_tokens"]
        assert int(first.headers["x-ratelimit-remaining-tokens"]) == 5000 - used, (
            "reserved by the model call, settled by its usage"
        )
        assert re.fullmatch(r"[a-z]+=[0-9.]+(, [a-z]+=[0-9.]+)*", first.headers["x-demeanor-layers"])

        (desk.parent / "system.md").write_text("You are another clerk.\n")  # a file that the stack names
        before = first.headers["x-demeanor-stack"]
        server.waits_for(lambda: client.get("/healthz").json()["stack_key"] != before)
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200

        now = client.get("/healthz").json()["stack_key"]
        good = desk.read_text()
        changed(desk, decoding={"temperature": -3})
        server.waits_for(
            lambda: any(
                "nothing is changed" in line and "decoding.temperature" in line for line in server.errors
            )
        )
        assert client.get("/healthz").json()["stack_key"] == now
        desk.write_text(good)
        changed(desk, decoding={"temperature": 0, "max_tokens": 7})
        server.process.send_signal(signal.SIGHUP)
        server.waits_for(lambda: client.get("/healthz").json()["stack_key"] != now)
        assert client.post("/v1/chat/completions", json=ASK).json()["usage"]["completion_tokens"] <= 7

        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(300) == 0
    lines = [json.loads(line) for line in server.errors]
    asked = [line for line in lines if line["event"] == "request" and line["route"] == "/v1/chat/completions"]
    assert [(line["user"], line["status"]) for line in asked] == [("edda", 200)] * 3
    assert key not in "".join(server.errors)
    assert "Jorpel" not in "".join(server.errors)
    database.close()


def test_weights_that_two_versions_share_are_loaded_once_and_closed_with_the_last(
    trained: tuple[Stack, Runs], desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    versions = StackVersions(lambda: load_stack(desk), trained[1])
    old = versions.open()
    engines = {stage: w.engine for stage, w in versions.living[0].loaded.items()}
    (desk.parent / "system.md").write_text("You are another clerk.\n")
    new = versions.open()
    assert old.assistant.stack_key != new.assistant.stack_key
    assert {stage: w.engine for stage, w in versions.living[1].loaded.items()} == engines
    old.close()
    assert not any(engine._closed for engine in engines.values())
    versions.close()
    assert all(engine._closed for engine in engines.values())


def test_a_stack_that_cannot_be_served_leaves_the_old_one_as_it_is(
    trained: tuple[Stack, Runs], desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides: list[str] = []
    versions = StackVersions(lambda: load_stack(desk, overrides), trained[1])
    versions.open()
    overrides.append("weights.stages.dpo.objective.beta=0.7")
    with pytest.raises(DemeanorError, match="not trained yet"):
        versions.open()
    assert len(versions.living) == 1
    assert not any(w.engine._closed for w in versions.living[0].loaded.values())
    versions.close()


def test_the_files_that_a_stack_names_are_watched_and_nothing_else(desk: Path) -> None:
    stack = load_stack(desk)
    before = stack.stamps()
    (desk.parent / "unrelated.txt").write_text("x")
    assert stack.stamps() == before
    for name in ("stack.yaml", "policy.yaml", "system.md", "notices/today.md"):
        seen = stack.stamps()
        (desk.parent / name).write_text((desk.parent / name).read_text() + "\n")
        assert stack.stamps() != seen, name


def test_a_public_address_without_keys_is_refused(trained: tuple[Stack, Runs]) -> None:
    with pytest.raises(DemeanorError, match="anybody who reaches this machine"):
        serving.serve(lambda: trained[0], trained[1], serve.Settings(host="0.0.0.0"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cors": ("https://desk.example/",)}, "wanted an origin"),
        ({"cors": ("desk.example",)}, "wanted an origin"),
        ({"cors": ("*",)}, "every page that is open"),
        ({"otel_content": True}, "--otel-content: is for --otel"),
        ({"keys": "keys.db"}, "wanted sqlite:///PATH or postgresql"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(
    settings: dict[str, Any], said: str, trained: tuple[Stack, Runs]
) -> None:
    with pytest.raises(DemeanorError, match=said):
        serving.serve(lambda: trained[0], trained[1], serve.Settings(**settings))


def test_a_database_without_a_key_in_force_says_how_to_make_one(
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def load() -> Stack:
        raise DemeanorError("enough")

    with pytest.raises(DemeanorError, match="enough"):
        serving.serve(load, trained[1], serve.Settings(keys="sqlite:///keys.db"))
    assert "demeanor keys create NAME --database sqlite:///keys.db" in capsys.readouterr().out


def test_no_request_fails_while_the_stack_is_swapped_under_load(
    trained: tuple[Stack, Runs], desk: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, str]] = []
    over = threading.Event()
    with served(desk, trained[1], tmp_path) as server:

        def ask() -> None:
            with httpx.Client(base_url=server.url, timeout=120) as client:
                while not over.is_set():
                    answer = client.post("/v1/chat/completions", json={**ASK, "n": 2})
                    seen.append((answer.status_code, answer.headers.get("x-demeanor-stack", "")))

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        for number in range(3):
            before = {key for _, key in seen}
            (desk.parent / "system.md").write_text(f"You are clerk {number}.\n")
            server.process.send_signal(signal.SIGHUP)
            server.waits_for(lambda before=before: bool({key for _, key in seen} - before))  # type: ignore[misc]
        over.set()
        for thread in asking:
            thread.join(120)
        server.waits_for(
            lambda: "demeanor_turns_in_progress 0" in httpx.get(f"{server.url}/metrics", timeout=120).text
        )
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(300) == 0
    assert {status for status, _ in seen} == {200}, "".join(server.errors)
    assert len({key for _, key in seen}) >= 3

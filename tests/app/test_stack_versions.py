"""A loaded stack is of one moment: key, header, fingerprint and record agree with what answered, and a request costs no file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from demeanor.app import StackRuntime, load_stack
from demeanor.core.errors import StaleFileError
from demeanor.server.application import app
from demeanor.serving import ServedStack, StackVersions
from demeanor.stack import stack as stacks
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs
from tests.app import tiny

QUESTION = {"messages": [{"role": "user", "content": "When to Brevik today?"}], "max_tokens": 3}


@pytest.fixture
def desk(trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Runs]:
    monkeypatch.chdir(tmp_path)
    return tiny.write(tmp_path / "desk"), trained[1]


def answer(served: ServedStack, model: str) -> tuple[str, str, str, list[str]]:
    """Key in the header, key in the fingerprint, key in the database, and the passages that were put before the model."""
    client = TestClient(app(served), base_url="http://localhost")
    found = client.post("/v1/chat/completions", json={**QUESTION, "model": model})
    assert found.status_code == 200, found.text
    events = found.json()["demeanor"]["events"]
    store = served.turn_store()
    assert store is not None
    recorded = store.find(found.json()["id"])
    assert recorded is not None
    passages = [str(event) for event in events if event["kind"] == "passage"]
    return (
        found.headers["x-demeanor-stack"],
        found.json()["system_fingerprint"],
        recorded.turn.stack_key,
        passages,
    )


def test_a_changed_file_is_served_only_after_a_reload(desk: tuple[Path, Runs]) -> None:
    path, runs = desk
    versions = StackVersions(lambda: load_stack(path), runs)
    try:
        old = versions.open().assistant
        assert isinstance(old, ServedStack)
        before = answer(old, "tiny-desk")
        (path.parent / "notices" / "today.md").write_text("Brevik today: 11.\n")
        assert answer(old, "tiny-desk") == before
        new = versions.open().assistant
        assert isinstance(new, ServedStack)
        after = answer(new, "tiny-desk")
        for header, fingerprint, recorded, _ in (before, after):
            assert header == fingerprint == recorded
        assert before[0] != after[0]
        assert before[3] != after[3]
        assert answer(old, "tiny-desk") == before
    finally:
        versions.close()


def test_a_variant_that_opens_a_file_after_it_changed_is_refused_and_says_what_to_do(
    desk: tuple[Path, Runs],
) -> None:
    path, runs = desk
    stack = load_stack(path)
    runtime = StackRuntime(stack, runs)
    try:
        stack.key()
        (path.parent / "system.md").write_text("You are somebody else.\n")
        with pytest.raises(StaleFileError, match=r"system\.md: changed after .*SIGHUP"):
            runtime.respond(stack.resolve("tiny-desk"))
        client = TestClient(app(ServedStack(runtime)), base_url="http://localhost")
        refused = client.post("/v1/chat/completions", json={**QUESTION, "model": "tiny-desk"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stack_changed")
        bare = client.post("/v1/chat/completions", json={**QUESTION, "model": "tiny-desk:dpo"})
        assert bare.status_code == 200, "a variant without that file still answers"
    finally:
        runtime.close()


def test_a_warm_request_reads_no_named_file_however_many_there_are(
    desk: tuple[Path, Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, runs = desk
    for number in range(2_000):
        (path.parent / "notices" / f"n{number:04}.md").write_text(f"Notice {number}.\n")
    runtime = StackRuntime(load_stack(path), runs)
    served = ServedStack(runtime)
    try:
        served.respond("tiny-desk")

        def touched(*_: object) -> str:
            raise AssertionError("a warm request looked at files")

        monkeypatch.setattr(stacks, "file_hash", touched)
        monkeypatch.setattr(Path, "rglob", touched)
        started = time.thread_time()
        for _ in range(100):
            served.card("tiny-desk")
            served.respond("tiny-desk")
        assert time.thread_time() - started < 1.0  # 2.5 s when every request walked 2,000 files
    finally:
        runtime.close()

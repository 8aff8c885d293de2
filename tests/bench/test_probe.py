"""The public scorecard, bench/probe.py, over a real served stack with keys: every request field is honoured; and it can find a fault."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.responses import JSONResponse

from bench.probe import CHECKS, probe
from demeanor.app import StackRuntime, load_stack
from demeanor.server.auth import from_digests
from demeanor.serving import ServedStack
from demeanor.stack.stack import Stack
from demeanor.store.keys import digest
from demeanor.training.runs import Runs
from tests.server.live import live, served


def test_the_probe_has_21_checks() -> None:
    assert len(CHECKS) == 21


def test_every_check_of_the_probe_holds_on_a_served_stack(
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        closing(
            StackRuntime(load_stack(trained[0].path, ["serve.publish=[tiny-desk:dpo]"]), trained[1])
        ) as house,
        served(ServedStack(house), keys=from_digests({digest("sk-probe"): "probe"})) as url,
    ):
        found = probe(f"{url}/v1", "tiny-desk:dpo", "sk-probe")
    assert {name: why for name, why in found.items() if why is not None} == {}
    assert set(found) == set(CHECKS)


def test_a_server_that_ignores_fields_is_found_out() -> None:
    """It answers every request with the same text, whatever was asked, as transformers serve does for most fields."""
    api = FastAPI()

    @api.post("/v1/chat/completions")
    async def chat() -> JSONResponse:
        message = {"role": "assistant", "content": "At nine o'clock."}
        return JSONResponse(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5},
            }
        )

    with live(api) as url:
        found = probe(f"{url}/v1", "m", timeout_s=5)
    assert {name for name, why in found.items() if why is None} == {"chat completion with usage"}

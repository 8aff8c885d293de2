"""Real input through the same commands as the demo: stacks/real.yaml on a real pretrained base and real data.

Skips with a clear message where ../shared is absent. Trains on a few hundred rows so that it stays a test.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from demeanor.app import StackRuntime, load_stack
from demeanor.cli import main
from demeanor.evaluation import result as results
from demeanor.server.application import app
from demeanor.serving import ServedStack
from demeanor.training.runs import Runs
from tests.conftest import REPOSITORY

SMALL = [
    "weights.stages.stories.data=[{source: ../../shared/data/tinystories/tinystories_1000.json, limit: 20}]",
    "weights.stages.sft.data=[{source: ../../shared/data/rasbt/instruction-data.json, limit: 120}]",
    "weights.stages.sft.epochs=1",
    "weights.stages.dpo.data=[{source: ../../shared/data/rasbt/instruction-data-with-preference.json, limit: 48}]",
    "decoding.max_tokens=12",
]


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which `demeanor train stacks/real.yaml` has run, as a user would run it."""
    place = tmp_path_factory.mktemp("real")
    overrides = [x for setting in SMALL for x in ("--set", setting)]
    assert (
        main(["train", str(REPOSITORY / "stacks/real.yaml"), "--runs", str(place / "runs"), *overrides]) == 0
    )
    return place


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    runtime = StackRuntime(
        load_stack(
            REPOSITORY / "stacks/real.yaml", [*SMALL, f"layers.record.database=sqlite:////{folder}/real.db"]
        ),
        Runs(folder / "runs"),
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    running = uvicorn.Server(
        uvicorn.Config(
            app(ServedStack(runtime)), host="127.0.0.1", port=port, log_config=None, log_level="warning"
        )
    )
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/v1"
    running.should_exit = True
    thread.join(10)
    runtime.close()


def test_every_stage_of_the_real_stack_trained_and_loads_in_transformers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    stack = load_stack(REPOSITORY / "stacks/real.yaml", SMALL)
    runs = Runs(folder / "runs")
    for stage in ("stories", "sft", "dpo"):
        model = AutoModelForCausalLM.from_pretrained(runs.model(stack.stage_key(stage)))
        assert model.config.vocab_size == 512


def test_the_openai_sdk_reads_plain_and_streamed_answers_of_it(server: str) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=server, api_key="none")
    ask = [{"role": "user", "content": "Rewrite the sentence: the cat sat."}]
    plain = client.chat.completions.create(model="stories-desk:dpo", messages=ask, temperature=0)
    streamed = client.chat.completions.create(
        model="stories-desk:dpo", messages=ask, temperature=0, stream=True
    )
    pieces = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
    assert plain.choices[0].message.content
    assert plain.choices[0].message.content == pieces
    assert {m.id for m in client.models.list()} >= {"stories-desk", "stories-desk:base", "stories-desk:sft"}


def test_xstest_is_measured_on_it_with_the_refusal_scorer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    overrides = [x for setting in SMALL for x in ("--set", setting)]
    code = main(
        [
            "eval",
            str(REPOSITORY / "stacks/real.yaml"),
            "--runs",
            "runs",
            "--limit",
            "8",
            "--name",
            "real",
            *overrides,
            "--variants",
            "stories-desk:base",
            "stories-desk:dpo",
            "stories-desk",
        ]
    )
    assert code == 0
    result = json.loads((folder / "results/real.json").read_text())
    assert {a["name"] for a in result["axes"]} == {"safe_twin", "unsafe"}
    assert result["items"] == 16
    assert results.load(folder / "results/real.json").items == 16

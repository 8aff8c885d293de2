"""Another assistant's server as a column: over real HTTP, resumed like any variant, and every way it can go wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from demeanor.app import services
from demeanor.core.errors import DemeanorError
from demeanor.core.types import Decoding, Message, Timing, Turn, complete
from demeanor.engine.remote import remote
from demeanor.evaluation import external, ladder
from demeanor.evaluation.result_rows import read_rows
from demeanor.stack.stack import Stack, decoding_of
from demeanor.training.runs import Runs
from tests.app import running
from tests.server.live import live

HARD = "What "


class Oracle:
    """A scripted OpenAI-compatible server: it refuses, answers "yes", or breaks where the question says so."""

    def __init__(self, broken: str = "\0", refused: str = "\0") -> None:
        self.asked: list[dict[str, Any]] = []
        self.open = self.most = 0
        self.broken, self.refused = broken, refused
        self.app = Starlette(routes=[Route("/v1/chat/completions", self.answer, methods=["POST"])])

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append({**body, "authorization": request.headers.get("authorization")})
        question = body["messages"][-1]["content"]
        if self.broken in question:
            return JSONResponse({"error": {"message": "this question is too hard"}}, status_code=400)
        said = {"refusal": "Not with me."} if self.refused in question else {"content": "yes"}
        return StreamingResponse(self.stream(said), media_type="text/event-stream")

    async def stream(self, said: dict[str, str]) -> AsyncIterator[str]:
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0.02)
        self.open -= 1
        yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': said, 'finish_reason': 'stop'}]})}\n\n"
        yield f"data: {json.dumps({'choices': [], 'usage': {'prompt_tokens': 7, 'completion_tokens': 1}})}\n\ndata: [DONE]\n\n"


def evaluated(
    trained: tuple[Stack, Runs], folder: Path, *given: str, keys: tuple[str, ...] = (), limit: int = 2
) -> Any:
    stack, runs = trained
    return ladder.evaluate(
        stack,
        services(runs),
        folder,
        variants=[stack.model_id],
        limit=limit,
        name="x",
        compare=given,
        compare_keys=keys,
    )


def test_the_same_assistant_over_http_scores_as_it_does_here(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    stack, runs = trained
    with running.served(stack.path, runs, tmp_path) as server:
        found = evaluated(trained, tmp_path, f"twin={server.url}/v1#{stack.model_id}", limit=3)
    assert [(c.name, c.before, c.after) for c in found.external] == [("twin", "twin", stack.model_id)]
    assert {v.id for v in found.variants} == {stack.model_id, "twin"}
    assert (found.steps, found.whole) == ((), None), "it is no rung"
    for axis in found.axes:
        assert axis.means["twin"] == axis.means[stack.model_id], axis.name
    assert all(d.value == 0 and d.verdict != "worse" for d in found.external[0].deltas)
    rows = [r for r in read_rows(tmp_path / "x.rows.jsonl") if r.variant == "twin"]
    assert len(rows) == found.items
    assert all(r.layer_ms["twin"] > 0 for r in rows)
    assert sum(r.prompt_tokens for r in rows) > 0


def test_a_second_run_asks_only_what_failed(trained: tuple[Stack, Runs], tmp_path: Path) -> None:
    oracle = Oracle(broken=HARD)
    with live(oracle.app) as url:
        first = evaluated(trained, tmp_path, f"other={url}/v1#big")
        failed = len([r for r in read_rows(tmp_path / "x.rows.jsonl") if r.error])
        assert failed > 5
        assert any(f"other: {failed} of" in w and "too hard" in w for w in first.caveats)
        before, oracle.broken = len(oracle.asked), "\0"
        second = evaluated(trained, tmp_path, f"other={url}/v1#big")
    assert before == first.items + 1, "every item and the probe"
    assert len(oracle.asked) - before == failed + 1, "what failed and the probe"
    assert not any("failed" in w for w in second.caveats)


def test_a_refusal_that_the_server_names_is_a_refusal_here(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    oracle = Oracle(refused="")
    with live(oracle.app) as url:
        evaluated(trained, tmp_path, f"other={url}/v1#big", limit=1)
    rows = [r for r in read_rows(tmp_path / "x.rows.jsonl") if r.variant == "other"]
    assert {(r.refused_by, r.text) for r in rows} == {("remote", "Not with me.")}


def test_a_server_that_is_down_is_one_error_before_anything_is_measured(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    with pytest.raises(
        DemeanorError, match=r"--compare other: asked big one question before the run.*does not answer"
    ):
        evaluated(trained, tmp_path, "other=http://127.0.0.1:9/v1#big")
    assert not list(tmp_path.iterdir())


def test_the_key_comes_from_the_environment_and_is_part_of_no_identity(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", "secret")
    oracle = Oracle()
    with live(oracle.app) as url:
        evaluated(trained, tmp_path, f"other={url}/v1#big", keys=("other=OTHER_KEY",), limit=1)
        assert {body["authorization"] for body in oracle.asked} == {"Bearer secret"}
        before = len(oracle.asked)
        evaluated(trained, tmp_path, f"other={url}/v1#big", limit=1)
    assert len(oracle.asked) == before + 1
    assert "secret" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_the_address_the_model_and_the_decoding_make_the_stack_key() -> None:
    peer, greedy = external.ExternalModel("a", "http://h/v1", "m"), Decoding(temperature=0)
    same = external.ExternalModel("b", "http://h/v1/", "m", "secret").stack_key(greedy)
    assert peer.stack_key(greedy) == same
    others = {
        external.ExternalModel("a", "http://h/v2", "m").stack_key(greedy),
        external.ExternalModel("a", "http://h/v1", "n").stack_key(greedy),
        peer.stack_key(Decoding(temperature=1)),
        same,
    }
    assert len(others) == 4


def test_no_more_is_asked_at_once_than_was_said_and_waiting_is_no_time_of_the_server() -> None:
    oracle = Oracle()

    async def ask(url: str) -> list[float]:
        respond = external.responder(external.ExternalModel("other", f"{url}/v1", "big"), remote, at_once=2)
        turn = Turn((Message("user", "Hello"),), Decoding(temperature=0))
        done = await asyncio.gather(*(complete(respond, turn) for _ in range(12)))
        return [e.ms for answer in done for e in answer.events if isinstance(e, Timing)]

    with live(oracle.app) as url:
        times = asyncio.run(ask(url))
    assert oracle.most <= 2
    assert len(times) == 12
    assert min(times) > 20
    assert sorted(times)[6] < 6 * 20, (
        "twelve answers of 20 ms, two at a time: the last waited 100 ms before it was asked"
    )


@pytest.mark.parametrize(
    ("given", "keys", "said"),
    [
        ("http://h/v1#m", (), "wanted NAME=URL#MODEL"),
        ("a=http://h/v1", (), "wanted NAME=URL#MODEL"),
        ("a=ftp://h#m", (), "wanted NAME=URL#MODEL"),
        ("desk=http://h/v1#m", (), "'desk' names another column"),
        ("a=http://h/v1#m", ("b=HOME",), "no --compare has this name. Named: a"),
        ("a=http://h/v1#m", ("a=NO_SUCH_KEY",), "NO_SUCH_KEY is not set"),
        ("a=http://h/v1#m", ("a",), "wanted NAME=ENV_VAR"),
    ],
)
def test_what_does_not_fit_is_named(given: str, keys: tuple[str, ...], said: str) -> None:
    with pytest.raises(DemeanorError, match=said):
        external.external_models([given], keys, taken=["desk"])


def test_two_columns_do_not_share_a_name() -> None:
    with pytest.raises(DemeanorError, match="'a' names another column"):
        external.external_models(["a=http://h/v1#m", "a=http://h/v1#n"], [])


def test_decoding_of_the_stack_is_what_the_other_is_asked_with(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    oracle = Oracle()
    with live(oracle.app) as url:
        evaluated(trained, tmp_path, f"other={url}/v1#big", limit=1)
    wanted = decoding_of(trained[0])
    assert {(b["model"], b["temperature"], b["max_tokens"]) for b in oracle.asked[1:]} == {
        ("big", wanted.temperature, wanted.max_tokens)
    }

"""Answers that the policy stops: whatever the address, streamed or not, no character of what was stopped reaches the client."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from demeanor.core.types import Decoding, Done, Event, Respond, Text, TokenLogprob, Turn, Usage
from demeanor.layers import Kit, compose, policy
from demeanor.server.application import app
from demeanor.server.assistant import ClientAccess, ModelCard

COUNT = 500  # of each of 6 ways and 2 ways to hold back: 6,000
RULES = {
    "rules": [
        {
            "name": "pins",
            "on": "output",
            "pattern": r"\b\d{2}-\d{2}-\d{2}\b",
            "action": "refuse",
            "reason": "a code",
            "reply": "I cannot say that.",
        },
        {
            "name": "cards",
            "on": "output",
            "detector": "card",
            "action": "refuse",
            "reason": "a card",
            "reply": "I cannot say that.",
        },
    ]
}
WORDS = (
    "the",
    "ferry",
    "leaves",
    "at",
    "noon",
    "and",
    "nobody",
    "knows",
    "why",
    "Marla",
    "said\n",
    "so",
    "-",
    "harbour",
    ".",
)


def answer(seed: int) -> str:
    """Words without a digit, a secret of digits, and words again."""
    rng = random.Random(seed)
    some = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(0, 40))) for _ in range(2)]
    secret = rng.choice(
        [
            "41-22-93",
            "4111 1111 1111 1111",
            "4111-1111-1111-1111",
            "5500005555555559",
            "10-20-30 and 41-22-93",
        ]
    )
    return f"{some[0]} {secret} {some[1]}"


class Talker:
    """An assistant whose weights say `answer(seed)` in pieces that fall anywhere, behind a real policy layer."""

    name, stack_key = "talker", "0"

    def __init__(self, folder: Path, hold: str, action: str = "refuse") -> None:
        rules = [{**rule, "hold": hold, "action": action} for rule in RULES["rules"]]
        if action == "rewrite":
            rules = [{**{k: v for k, v in rule.items() if k != "reply"}, "template": "#"} for rule in rules]
        (folder / "policy.yaml").write_text(yaml.safe_dump({"rules": rules}))
        kit = Kit(
            root=folder,
            clock=lambda: 0.0,
            now=lambda: datetime.now(UTC),
            count_tokens=lambda m, t: 1,
            tools={},
            open_index=lambda p, search: None,  # type: ignore[arg-type]
            open_store=lambda url: None,
            shared={},
        )
        self._respond = compose([(policy.Spec(), policy)], self.weights, kit)

    async def weights(self, turn: Turn) -> AsyncIterator[Event]:
        rng = random.Random(turn.decoding.seed)
        text = answer(turn.decoding.seed or 0)
        while text:
            cut = rng.randint(1, 7)
            yield Text(text[:cut], logprobs=(TokenLogprob(text[:cut], -1.0, ((text[:cut], -1.0),)),))
            text = text[cut:]
        yield Usage(3, 9)
        yield Done("stop")

    def models(self) -> list[ModelCard]:
        return [self.card("talker")]

    def card(self, model_id: str) -> ModelCard:
        return ModelCard(model_id, "", "0", ("weights", "policy"))

    def respond(self, model_id: str) -> Respond:
        return self._respond

    def codec(self, model_id: str) -> Any:
        class Bytes:
            vocab_size = 256

            def encode(self, text: str) -> tuple[int, ...]:
                return tuple(text.encode())

            def decode(self, tokens: Sequence[int]) -> str:
                return bytes(tokens).decode()

        return Bytes()

    def defaults(self) -> Decoding:
        return Decoding(temperature=1.0)

    def approval_store(self) -> None:
        return None

    def turn_store(self) -> None:
        return None

    def client_access(self) -> ClientAccess:
        return ClientAccess()

    def turn_database(self) -> None:
        return None

    def examples(self) -> list[str]:
        return []


def request_of(surface: str, seed: int) -> tuple[str, dict[str, Any]]:
    address, _, how = surface.partition(" ")
    stream = {"stream": True} if how == "streamed" else {}
    if address == "chat":
        return "/v1/chat/completions", {
            "model": "talker",
            "messages": [{"role": "user", "content": "?"}],
            "seed": seed,
            "logprobs": True,
            "top_logprobs": 1,
            **stream,
        }
    if address == "completions":
        return "/v1/completions", {"model": "talker", "prompt": "?", "seed": seed, "logprobs": 1, **stream}
    return "/v1/responses", {
        "model": "talker",
        "input": "?",
        "include": ["message.output_text.logprobs"],
        "metadata": {"seed": str(seed)},
        **stream,
    }


class ByMetadata(Talker):
    """/v1/responses has no seed: the test sends it as metadata."""

    def respond(self, model_id: str) -> Respond:
        def respond(turn: Turn) -> AsyncIterator[Event]:
            seed = int(turn.metadata.get("seed", turn.decoding.seed or 0))
            return self._respond(replace(turn, decoding=replace(turn.decoding, seed=seed)))

        return respond


@pytest.mark.parametrize(
    "surface",
    [
        "chat plain",
        "chat streamed",
        "completions plain",
        "completions streamed",
        "responses plain",
        "responses streamed",
    ],
)
@pytest.mark.parametrize("hold", ["window", "buffer"])
def test_no_character_of_a_stopped_answer_reaches_the_client(surface: str, hold: str, tmp_path: Path) -> None:
    async def ask_all() -> list[str]:
        transport = httpx.ASGITransport(app(ByMetadata(tmp_path, hold), clock=lambda: 0.0, now=lambda: 0.0))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            found = []
            for seed in range(COUNT):
                path, body = request_of(surface, seed)
                said = await client.post(path, json=body, headers={"x-request-id": "x"})
                assert said.status_code == 200, said.text
                found.append(said.text)
            return found

    safe_shown = 0
    for seed, text in enumerate(asyncio.run(ask_all())):
        seen = told(text)
        assert not any(c.isdigit() for c in seen), (seed, seen)
        assert "I cannot say that." in text, (seed, text)
        safe_shown += len(seen.replace("I cannot say that.", "")) > 60
    assert safe_shown > 100 or hold == "buffer" or "plain" in surface, (
        "what is safe streams: the rest is not simply held back"
    )


SURFACES = [
    f"{address} {how}" for address in ("chat", "completions", "responses") for how in ("plain", "streamed")
]


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("action", ["redact", "rewrite", "redirect"])
def test_no_character_of_a_replaced_answer_reaches_the_client(
    surface: str, action: str, tmp_path: Path
) -> None:
    """Redacted, rewritten and redirected answers go on: neither they nor traces, spans and logprobs hold what was taken out."""
    hold = "buffer" if action == "redirect" else "window"

    async def ask_all() -> list[str]:
        talker = ByMetadata(tmp_path, hold, action)
        transport = httpx.ASGITransport(app(talker, clock=lambda: 0.0, now=lambda: 0.0))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            found = []
            for seed in range(30):
                path, body = request_of(surface, seed)
                said = await client.post(path, json=body, headers={"x-request-id": "x"})
                assert said.status_code == 200, said.text
                found.append(said.text)
            return found

    put = {"redact": "I cannot say that.", "redirect": "I cannot say that.", "rewrite": "#"}[action]
    words = 0
    for seed, text in enumerate(asyncio.run(ask_all())):
        seen = told(text)
        assert not any(c.isdigit() for c in seen), (seed, seen)
        assert put in seen, (seed, seen)
        for secret in ("41-22-93", "10-20-30", "4111 1111", "4111-1111", "55000055"):
            assert secret not in text, (seed, text)
        words += len(seen.replace(put, "")) > 40
    assert (words > 10) == (action != "redirect"), (
        "what is safe goes on; a safe answer stands for the whole of it"
    )


def told(body: str) -> str:
    """Everything that a body says in words: texts, refusals, tokens and alternatives; not counts, ids and times."""
    found: list[str] = []
    for frame in body.split("\n\n") if body.startswith(("data:", "event:")) else [body]:
        data = frame.partition("data: ")[2] if "data: " in frame else frame
        if data.startswith("{"):
            collect(json.loads(data), found)
    return "".join(found)


SAYS = {"content", "text", "refusal", "delta", "token", "tokens", "arguments"}


def collect(value: Any, found: list[str], says: bool = False) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            collect(inner, found, name in SAYS or name == "top_logprobs")
            if (
                says
                and name not in {"token", "logprob", "bytes", "top_logprobs"}
                and not isinstance(inner, dict | list)
            ):
                found.append(name)  # completions: alternatives are keys
    elif isinstance(value, list):
        for inner in value:
            collect(inner, found, says)
    elif says and isinstance(value, str):
        found.append(value)

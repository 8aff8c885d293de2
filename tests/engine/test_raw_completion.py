"""Raw text on real weights: what a harness reads off /v1/completions is what a direct forward pass of the model says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from demeanor.app import StackRuntime
from demeanor.core.errors import RequestError
from demeanor.core.types import Completion, Decoding, Message, Respond, Turn, complete
from demeanor.engine.local import LocalEngine
from demeanor.engine.respond import TokenizerCodec, model_respond
from demeanor.layers import Kit, policy
from demeanor.model import checkpoints
from demeanor.server.application import app
from demeanor.server.assistant import ClientAccess, ModelCard
from demeanor.serving import ServedStack
from demeanor.stack import schema as specs
from demeanor.stack.schema import ModelShape
from demeanor.stack.stack import Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import load_template
from demeanor.training.runs import Runs

TOKENS = tokenizers.train(
    ["The ferry leaves at 9. Who is Marla? She is at 12. "] * 20, specs.TokenizerSpec(vocab_size=400)
)


class Bare:
    """An Assistant of weights alone."""

    name, stack_key = "bare", "k"

    def __init__(self, respond: Respond) -> None:
        self._respond = respond

    def models(self) -> list[ModelCard]:
        return [self.card("bare")]

    def card(self, model_id: str) -> ModelCard:
        return ModelCard("bare", "", "k", ("base",))

    def respond(self, model_id: str) -> Respond:
        return self._respond

    def codec(self, model_id: str) -> TokenizerCodec:
        return TokenizerCodec(TOKENS)

    def defaults(self) -> Decoding:
        return Decoding(temperature=1.0, max_tokens=5)

    def rules(self, model_id: str) -> Any:
        raise NotImplementedError

    def feedback_store(self) -> None:
        return None

    def approval_store(self) -> None:
        return None

    def client_access(self) -> ClientAccess:
        return ClientAccess()

    def turn_database(self) -> None:
        return None

    def examples(self) -> list[str]:
        return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with sharp logits, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("raw")
    model = checkpoints.create(
        ModelShape(layers=2, width=64, heads=4, kv_heads=2, context=128, init="normal"),
        TOKENS.vocab_size,
        seed=3,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    checkpoints.save(model, folder)
    return folder


@pytest.fixture(scope="module")
def respond(folder: Path) -> Iterator[Respond]:
    with closing(LocalEngine(checkpoints.load(folder), TOKENS, num_slots=4)) as engine:
        yield model_respond(
            engine, load_template("turns", TOKENS, folder=None, root=Path()), tokenizer=TOKENS
        )


@pytest.fixture(scope="module")
def client(respond: Respond) -> Iterator[TestClient]:
    with TestClient(app(Bare(respond)), base_url="http://localhost") as made:
        yield made


def forward(folder: Path, tokens: list[int]) -> torch.Tensor:
    """The peer: transformers' log-probabilities of every next token."""
    from transformers import LlamaForCausalLM

    with torch.inference_mode():
        logits: torch.Tensor = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)(
            torch.tensor([tokens])
        ).logits[0]
    return logits.log_softmax(-1)


PAIRS = [("The ferry leaves", " at 12."), ("Who is Marla?", " She is at 9. The ferry"), ("She", " is")]


def test_a_harness_computes_the_log_likelihoods_of_a_direct_forward_pass(
    client: TestClient, folder: Path
) -> None:
    """lm-eval's local-completions: token ids, echo, logprobs 1, max_tokens 1, temperature 0; slice [ctxlen:-1]; sum; greedy or not."""
    contexts = [TOKENS.encode(context) for context, _ in PAIRS]
    wholes = [[*context, *TOKENS.joined(rest)] for context, (_, rest) in zip(contexts, PAIRS)]
    body = {
        "model": "bare",
        "prompt": wholes,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    greedy = []
    for choice, context, whole in zip(
        sorted(answer.json()["choices"], key=lambda c: int(c["index"])), contexts, wholes
    ):
        found = choice["logprobs"]["token_logprobs"][len(context) : -1]
        logprobs_TV = forward(folder, whole)
        want = [logprobs_TV[i - 1, whole[i]].item() for i in range(len(context), len(whole))]
        assert len(found) == len(want) > 0
        assert sum(found) == pytest.approx(sum(want), abs=2e-3)
        tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
        best = [logprobs_TV[i - 1].max().item() for i in range(len(context), len(whole))]
        assert [max(top.values()) for top in tops] == pytest.approx(best, abs=2e-3)
        greedy.append(all(value == max(top.values()) for value, top in zip(found, tops)))
        assert "".join(choice["logprobs"]["tokens"][:-1]) == TOKENS.decode(whole)
        assert len(choice["logprobs"]["tokens"]) == len(whole) + 1
    assert greedy == [False] * 3


def test_what_the_model_itself_goes_on_saying_is_greedy_to_a_harness(
    client: TestClient, folder: Path
) -> None:
    body: dict[str, Any] = {"model": "bare", "temperature": 0, "logprobs": 1}
    first = client.post("/v1/completions", json=body | {"prompt": "The ferry", "max_tokens": 6}).json()[
        "choices"
    ][0]["logprobs"]
    context = TOKENS.encode("The ferry")
    said = list(context)
    for _ in first["tokens"]:
        said.append(int(forward(folder, said)[-1].argmax()))
    again = client.post(
        "/v1/completions", json=body | {"prompt": said, "max_tokens": 1, "echo": True}
    ).json()["choices"][0]
    found, tops = (again["logprobs"][name][len(context) : -1] for name in ("token_logprobs", "top_logprobs"))
    assert found == pytest.approx(first["token_logprobs"], abs=1e-3)
    assert all(value == max(top.values()) for value, top in zip(found, tops))


def test_text_and_its_token_ids_are_continued_alike_and_no_template_stands_around_them(
    client: TestClient, folder: Path
) -> None:
    body: dict[str, Any] = {"model": "bare", "temperature": 0, "max_tokens": 1, "logprobs": 1}
    by_text = client.post("/v1/completions", json=body | {"prompt": "The ferry leaves"}).json()
    by_tokens = client.post(
        "/v1/completions", json=body | {"prompt": TOKENS.encode("The ferry leaves")}
    ).json()
    assert by_text["choices"] == by_tokens["choices"]
    assert by_text["usage"]["prompt_tokens"] == len(TOKENS.encode("The ferry leaves"))
    best = forward(folder, TOKENS.encode("The ferry leaves"))[-1].max().item()
    assert by_text["choices"][0]["logprobs"]["token_logprobs"] == [pytest.approx(best, abs=1e-3)]


async def raw(respond: Respond, text: str, **decoding: Any) -> Completion:
    turn = Turn(
        (Message("user", text),), Decoding(0, max_tokens=3, **decoding), raw=tuple(TOKENS.encode(text))
    )
    return await complete(respond, turn)


async def test_what_a_policy_redacts_or_refuses_the_weights_never_read(
    respond: Respond, tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text(
        "rules:\n- {name: marla, on: input, pattern: Marla, action: redact, reason: a name}\n"
        "- {name: ferry, on: input, pattern: ferry, action: refuse, reason: boats, reply: No boats.}\n"
    )
    kit = Kit(
        root=tmp_path,
        clock=lambda: 0.0,
        now=lambda: datetime.now(UTC),
        count_tokens=lambda m, t: 0,
        tools={},
        open_index=lambda p, search: lambda q, k: [],
        open_store=lambda u: pytest.fail("no store"),
    )
    guarded = policy.wrap(policy.Spec(), respond, kit)
    redacted = await raw(guarded, "Who is Marla?", prompt_logprobs=0)
    read = next(e for e in redacted.events if type(e).__name__ == "PromptRead")
    assert "".join(read.tokens) == "Who is [marla]?"  # type: ignore[union-attr]
    refused = await raw(guarded, "The ferry")
    assert (refused.text, refused.prompt_tokens) == ("No boats.", 0)


def test_a_served_stack_continues_raw_text_through_weights_and_policy_but_not_through_layers_that_add(
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(StackRuntime(*trained)) as runtime:
        client = TestClient(app(ServedStack(runtime)), base_url="http://localhost")
        for model, words in (
            (
                "tiny-desk",
                "tools, retrieval, prompt. Use weights without layers: tiny-desk:base, tiny-desk:sft, tiny-desk:dpo",
            ),
            ("tiny-desk:dpo+prompt", "prompt. Use"),
        ):
            error = client.post("/v1/completions", json={"model": model, "prompt": "Visitor: When?"}).json()[
                "error"
            ]
            assert words in error["message"], error
        for model in ("tiny-desk:base", "tiny-desk:dpo+policy"):
            answer = client.post(
                "/v1/completions", json={"model": model, "prompt": "The Orrin", "max_tokens": 4}
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] in range(1, 5)
        refused = client.post(
            "/v1/completions",
            json={"model": "tiny-desk:dpo+policy", "prompt": "Pretend you are a pirate", "echo": True},
        )
        assert refused.json()["choices"][0] == {
            "index": 0,
            "text": "No games.",
            "logprobs": None,
            "finish_reason": "content_filter",
        }
        with pytest.raises(RequestError, match="weights without layers"):
            ServedStack(runtime).codec("tiny-desk")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "nothing"}},
                }
            },
            "response_format",
        ),
        ({"logit_bias": {"400000": 1}}, "logit_bias"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}],
                "tool_choice": "required",
            },
            "tools[0].function.parameters",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_only_the_engine_knows_to_be_wrong_is_a_400_that_names_the_field(
    client: TestClient,
    fields: dict[str, Any],
    param: str,
    stream: bool,
) -> None:
    body = {"model": "bare", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    response = client.post("/v1/chat/completions", json=body | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert response.json()["error"]["message"]


def test_a_biased_token_is_all_the_model_says(client: TestClient) -> None:
    (token,) = TOKENS.encode("ferry")
    body = {
        "model": "bare",
        "messages": [{"role": "user", "content": "Hi"}],
        "logit_bias": {str(token): 100},
        "temperature": 0,
        "max_tokens": 3,
    }
    assert (
        client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"].split()
        == ["ferry"] * 3
    )

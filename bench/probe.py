"""Which of OpenAI's request fields a server honours: 21 checks with the openai SDK, as a table.

python -m bench.probe http://127.0.0.1:8000/v1 --model harbour-desk:dpo [--key KEY]

A check asks for something whose absence shows in the answer; a field that is accepted and ignored counts as
missing. It needs no more than the `openai` package, so it runs against `transformers serve`, vLLM or a
gateway as well. The model may be of any quality.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai
from openai import OpenAI

PORTS = ["Corkel", "Jorpel"]
REFUSED = (400, 422)
SCHEMA = {
    "type": "object",
    "properties": {"port": {"enum": PORTS}, "open": {"type": "boolean"}},
    "required": ["port", "open"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather at a port.",
        "parameters": {
            "type": "object",
            "properties": {"port": {"enum": PORTS}},
            "required": ["port"],
            "additionalProperties": False,
        },
    },
}


class Missing(Exception):
    """What the server did instead of what was asked."""


@dataclass(frozen=True)
class Server:
    """A client and the model that it asks."""

    client: OpenAI
    model: str

    def chat(self, text: str = "When does the ferry leave?", **fields: Any) -> Any:
        """A chat completion of at most 12 tokens, unless `fields` say otherwise."""
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 12,
            **fields,
        }
        return self.client.chat.completions.create(**asked)

    def text(self, **fields: Any) -> str:
        return self.chat(**fields).choices[0].message.content or ""

    def status(self, **fields: Any) -> tuple[int, dict[str, Any]]:
        """The status of a chat request and what it says of its error."""
        try:
            self.chat(**fields)
        except openai.APIStatusError as error:
            return error.status_code, error.body if isinstance(error.body, dict) else {"body": error.body}
        return 200, {}


def need(held: bool, instead: Any) -> None:
    if not held:
        raise Missing(str(instead))


def plain(s: Server) -> None:
    answer = s.chat()
    need(answer.object == "chat.completion" and answer.choices[0].finish_reason in ("stop", "length"), answer)
    need(answer.usage is not None and answer.usage.completion_tokens > 0, f"usage: {answer.usage}")


def stream(s: Server) -> None:
    whole = s.text(temperature=0)
    raw = s.client.chat.completions.with_raw_response.create(
        model=s.model,
        messages=[{"role": "user", "content": "When does the ferry leave?"}],
        max_tokens=12,
        temperature=0,
        stream=True,
    )
    lines = [line for line in raw.http_response.iter_lines() if line.startswith("data:")]
    need(bool(lines) and lines[-1] == "data: [DONE]", f"the last line is {lines[-1:] or 'none'}")
    chunks = [json.loads(line[5:]) for line in lines[:-1]]
    said = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    need(said == whole, f"streamed {said!r}, whole {whole!r}")


def stream_usage(s: Server) -> None:
    chunks = list(s.chat(stream=True, stream_options={"include_usage": True}))
    need(chunks[-1].usage is not None and not chunks[-1].choices, "no last chunk with the usage")
    need(not any(c.usage for c in chunks[:-1]), "usage before the last chunk")


def tools(s: Server) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = s.chat(tools=[TOOL], tool_choice=choice, max_tokens=80).choices[0]
        need(bool(answer.message.tool_calls), f"no call, but {answer.message.content!r}")
        call = answer.message.tool_calls[0].function
        need(
            call.name == "weather" and json.loads(call.arguments).get("port") in PORTS,
            f"{call.name}({call.arguments})",
        )
        need(answer.finish_reason == "tool_calls", answer.finish_reason)


def tool_choice_none(s: Server) -> None:
    need(not s.chat(tools=[TOOL], tool_choice="none").choices[0].message.tool_calls, "a call")
    calls = s.chat(tools=[TOOL], parallel_tool_calls=False, max_tokens=80).choices[0].message.tool_calls or []
    need(len(calls) <= 1, f"{len(calls)} calls")
    status, _ = s.status(tools=[TOOL], tool_choice="sometimes")
    need(status in REFUSED, f"tool_choice 'sometimes' is status {status}")


def response_format(s: Server) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "departure", "schema": SCHEMA, "strict": True}}
    for temperature in (0, 1.5):
        text = s.text(response_format=wanted, temperature=temperature, max_tokens=80)
        try:
            value = json.loads(text)
        except ValueError:
            raise Missing(f"no JSON: {text!r}") from None
        need(
            set(value) == {"port", "open"} and value["port"] in PORTS and isinstance(value["open"], bool),
            text,
        )


def logprobs(s: Server) -> None:
    choice = s.chat(logprobs=True, top_logprobs=3, temperature=0).choices[0]
    need(choice.logprobs is not None and bool(choice.logprobs.content), "none")
    for token in choice.logprobs.content:
        need(len(token.top_logprobs) == 3 and token.logprob <= 0, token)
        need(
            abs(token.logprob - max(t.logprob for t in token.top_logprobs)) < 1e-3,
            f"{token.token!r} is not the likeliest",
        )


def several(s: Server) -> None:
    choices = s.chat(n=3, temperature=1.0).choices
    need([c.index for c in choices] == [0, 1, 2], f"{len(choices)} choices")


def stop(s: Server) -> None:
    whole = s.text(temperature=0)
    word = whole[len(whole) // 2 :][:3]
    need(bool(word), "the model says nothing, so nothing can be stopped")
    cut = s.text(temperature=0, stop=[word])
    need(cut == whole.partition(word)[0], f"{cut!r}, wanted {whole.partition(word)[0]!r}")


def seed(s: Server) -> None:
    first, again = ([s.text(seed=i, temperature=1.5) for i in range(4)] for _ in range(2))
    need(first == again, f"{first} and then {again}")
    need(len(set(first)) > 1, "four seeds, one text")


def temperature(s: Server) -> None:
    need(len({s.text(temperature=0) for _ in range(3)}) == 1, "greedy answers differ")
    need(len({s.text(temperature=1.5) for _ in range(4)}) > 1, "4 samples at 1.5, one text")
    need(s.status(temperature=3)[0] in REFUSED, "temperature 3 is accepted")


def max_tokens(s: Server) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = s.client.chat.completions.create(
            model=s.model, messages=[{"role": "user", "content": "Tell me all."}], **{name: 2}
        )
        need(answer.usage.completion_tokens <= 2, f"{name} 2: {answer.usage.completion_tokens} tokens")


def penalties(s: Server) -> None:
    one, other = (s.text(temperature=0, logit_bias={str(token): 100}) for token in (40, 50))
    need(one != other, f"a bias for one token and for another: both {one!r}")
    both: dict[str, Any] = {"temperature": 0, "logit_bias": {"40": 100, "50": 100}, "max_tokens": 40}
    need(s.text(**both) != s.text(**both, frequency_penalty=2), "frequency_penalty 2 changes nothing")
    need(
        s.text(**both) != s.text(**both, frequency_penalty=1, presence_penalty=2),
        "presence_penalty 2 changes nothing",
    )
    need(s.status(presence_penalty=3)[0] in REFUSED, "presence_penalty 3 is accepted")


def completions(s: Server) -> None:
    asked: dict[str, Any] = {
        "model": s.model,
        "prompt": "The ferry leaves",
        "max_tokens": 1,
        "echo": True,
        "logprobs": 1,
        "temperature": 0,
    }
    choice = s.client.completions.create(**asked).choices[0]
    need(choice.text.startswith("The ferry leaves"), f"no echo: {choice.text!r}")
    need(
        choice.logprobs is not None and len(choice.logprobs.token_logprobs) > 2,
        "no log-probabilities of the prompt",
    )
    need(choice.logprobs.token_logprobs[0] is None, "the first token of the prompt has a log-probability")


def responses(s: Server) -> None:
    answer = s.client.responses.create(
        model=s.model, input="When does the ferry leave?", max_output_tokens=12
    )
    need(answer.object == "response" and answer.status in ("completed", "incomplete"), answer)
    need(isinstance(answer.output_text, str) and answer.usage is not None, answer)


def embeddings(s: Server) -> None:
    found = s.client.embeddings.create(
        model=s.model, input=["A ferry.", "A ferry.", "Rain."], encoding_format="float"
    ).data
    need([d.index for d in found] == [0, 1, 2] and len(found[0].embedding) > 1, found)
    need(
        max(abs(a - b) for a, b in zip(found[0].embedding, found[1].embedding)) < 1e-4,
        "one text, two vectors",
    )
    need(found[0].embedding != found[2].embedding, "two texts, one vector")


def models(s: Server) -> None:
    listed = [m.id for m in s.client.models.list().data]
    need(bool(listed), "an empty list")
    need(s.client.models.retrieve(listed[0]).id == listed[0], "retrieved another")
    try:
        s.client.models.retrieve("no-such-model")
    except openai.NotFoundError:
        return
    raise Missing("an unknown model is found")


def moderations(s: Server) -> None:
    results = s.client.moderations.create(input=["Hello.", "Hello again."]).results
    need(len(results) == 2 and isinstance(results[0].flagged, bool), results)


def keys(s: Server) -> None:
    stranger = s.client.with_options(
        api_key="wrong-key-of-nobody"
    )  # shares the connection, so it is not closed here
    status, _ = Server(stranger, s.model).status()
    need(status == 401, f"a wrong key: status {status}")


def errors(s: Server) -> None:
    for what, fields, wanted in (
        ("no messages", {"messages": []}, 400),
        ("an unknown model", {"model": "no-such-model"}, 404),
        ("a prompt that is too long", {"text": "ferry " * 40_000}, 400),
    ):
        status, said = s.status(**fields)
        need(status == wanted, f"{what}: status {status}")
        need({"message", "type", "param", "code"} <= set(said), f"{what}: {said}")


def nothing_ignored(s: Server) -> None:
    for name, value in (("temprature", 0.5), ("best_guess", True)):
        status, said = s.status(extra_body={name: value})
        need(status in REFUSED and name in str(said), f"{name}: status {status}")


CHECKS: dict[str, Callable[[Server], None]] = {
    "chat completion with usage": plain,
    "stream, [DONE]": stream,
    "stream_options.include_usage": stream_usage,
    "tools, tool_choice required and by name": tools,
    "tool_choice none, parallel_tool_calls": tool_choice_none,
    "response_format json_schema": response_format,
    "logprobs, top_logprobs": logprobs,
    "n": several,
    "stop": stop,
    "seed": seed,
    "temperature": temperature,
    "max_tokens, max_completion_tokens": max_tokens,
    "logit_bias and penalties": penalties,
    "/v1/completions: echo, logprobs": completions,
    "/v1/responses": responses,
    "/v1/embeddings": embeddings,
    "/v1/models": models,
    "/v1/moderations": moderations,
    "API keys": keys,
    "errors in OpenAI's shape": errors,
    "unknown fields refused by name": nothing_ignored,
}


def probe(
    base_url: str, model: str | None = None, key: str = "unused", timeout_s: float = 60.0
) -> dict[str, str | None]:
    """Run every check; None if it passed, else what the server did. `model` None: the first that it lists."""
    found: dict[str, str | None] = {}
    with OpenAI(base_url=base_url, api_key=key, max_retries=1, timeout=timeout_s) as client:
        server = Server(client, model or client.models.list().data[0].id)
        for name, check in CHECKS.items():
            try:
                check(server)
                found[name] = None
            except Exception as error:  # whatever the server does to the SDK is a finding
                found[name] = f"{'' if isinstance(error, Missing) else type(error).__name__ + ': '}{error}"[
                    :160
                ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.probe", description=__doc__.splitlines()[0])
    parser.add_argument("base_url")
    parser.add_argument("--model", help="default: the first that the server lists")
    parser.add_argument("--key", default="unused", help="API key")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    given = parser.parse_args()
    found = probe(given.base_url, given.model, given.key)
    held = sum(why is None for why in found.values())
    if given.json:
        print(
            json.dumps(
                {
                    "held": held,
                    "of": len(found),
                    "missing": {k: v for k, v in found.items() if v is not None},
                },
                indent=2,
            )
        )
    else:
        for name, why in found.items():
            print(f"{'yes' if why is None else 'NO ':3}  {name:42} {why or ''}")
        print(f"{held} of {len(found)}")
    return 0 if held == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())

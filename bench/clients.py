"""`make clients`: real clients against a served stack, each its own way; a table of what passed.

The server is `demeanor serve` in a process of its own with a key; every client is a process in
bench/.venv-clients (Python) or bench/.node (Node), so that none can help another. Needs the demo's weights:
`make demo` first. Nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "bench"
PYTHON, NODE = HERE / ".venv-clients" / "bin" / "python", HERE / ".node"
KEY = "sk-clients-0123456789"
STACK, NAME = "stacks/demo/demo.yaml", "harbour-desk"

# ---- what each client does; runs in its own process: url, key, model ----


def openai_python(url: str, key: str, model: str) -> str:
    import openai
    from pydantic import BaseModel

    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    messages: Any = [{"role": "user", "content": "Who runs the ferry?"}]
    plain = client.chat.completions.create(model=model, messages=messages)
    assert plain.choices[0].message.content and plain.usage and plain.usage.completion_tokens
    with client.chat.completions.stream(
        model=model, messages=messages, stream_options={"include_usage": True}
    ) as stream:
        final = list(stream)[-1]
    assert final.type in ("content.done", "chunk"), final.type
    assert stream.get_final_completion().choices[0].message.content == plain.choices[0].message.content
    three = client.chat.completions.create(model=model, messages=messages, n=3, seed=1, temperature=1.2)
    assert len(three.choices) == 3
    shown = client.chat.completions.create(model=model, messages=messages, logprobs=True, top_logprobs=3)
    assert shown.choices[0].logprobs and len(shown.choices[0].logprobs.content[0].top_logprobs) == 3

    class Boat(BaseModel):
        name: str
        seats: int

    boat = client.chat.completions.parse(
        model=f"{NAME}:sft", messages=messages, response_format=Boat, max_tokens=120, temperature=0
    )
    assert boat.choices[0].finish_reason == "length" or isinstance(boat.choices[0].message.parsed, Boat)
    tool: Any = {
        "type": "function",
        "function": {
            "name": "tide",
            "description": "the tide",
            "parameters": {
                "type": "object",
                "properties": {"day": {"type": "string", "enum": ["today", "tomorrow"]}},
                "required": ["day"],
            },
        },
    }
    called = client.chat.completions.create(
        model=f"{NAME}:sft", messages=messages, tools=[tool], tool_choice="required"
    )
    assert json.loads(called.choices[0].message.tool_calls[0].function.arguments)["day"] in (
        "today",
        "tomorrow",
    )
    scored = client.completions.create(
        model=f"{NAME}:base", prompt="The ferry leaves at", echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    assert scored.choices[0].logprobs.token_logprobs[0] is None
    assert any(m.id == model for m in client.models.list())
    for wrong, kind in (
        (dict(model="nothing"), openai.NotFoundError),
        (dict(model=model, top_p=7), openai.BadRequestError),
    ):
        try:
            client.chat.completions.create(messages=messages, **wrong)
            raise AssertionError("accepted")
        except kind as error:
            assert error.code and error.request_id
    try:
        openai.OpenAI(base_url=url, api_key="sk-wrong", max_retries=0).models.list()
        raise AssertionError("a wrong key was accepted")
    except openai.AuthenticationError:
        pass
    said = ["chat", "stream", "n", "logprobs", "parse", "tools", "completions", "errors"]
    if "/v1/responses" in paths(url):
        answer = client.responses.create(model=model, input="Who runs the ferry?")
        assert answer.output_text == plain.choices[0].message.content
        with client.responses.stream(model=model, input="Who runs the ferry?") as events:
            kinds = [event.type for event in events]
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        said.append("responses")
    if "/v1/embeddings" in paths(url):
        found = client.embeddings.create(model=f"{NAME}:sft", input=["a ferry", "a boat"])
        assert len(found.data) == 2 and abs(sum(x * x for x in found.data[0].embedding) - 1) < 1e-3
        said.append("embeddings")
    if "/v1/moderations" in paths(url):
        assert client.moderations.create(model=model, input="Pretend you are a pirate.").results[0].flagged
        said.append("moderations")
    return ", ".join(said)


def langchain_openai(url: str, key: str, model: str) -> str:
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Boat(BaseModel):
        """A boat."""

        name: str
        seats: int

    chat = ChatOpenAI(base_url=url, api_key=key, model=model, max_retries=0, temperature=0)
    said = chat.invoke("Who runs the ferry?")
    assert said.content and said.usage_metadata["output_tokens"]
    assert "".join(chunk.content for chunk in chat.stream("Who runs the ferry?")) == said.content
    assert chat.bind(logprobs=True).invoke("Who runs the ferry?").response_metadata["logprobs"]["content"]
    small = ChatOpenAI(
        base_url=url, api_key=key, model=f"{NAME}:sft", max_retries=0, temperature=0, max_tokens=200
    )
    bound = small.with_structured_output(Boat, method="json_schema", include_raw=True).invoke("Name a boat.")
    assert isinstance(bound["parsed"], Boat) or bound["raw"].response_metadata["finish_reason"] == "length"
    called = small.bind_tools([Boat], tool_choice="Boat").invoke("Name a boat.")
    assert called.tool_calls[0]["name"] == "Boat" or called.invalid_tool_calls
    return "invoke, stream, logprobs, json_schema, tools"


def pydantic_ai(url: str, key: str, model: str) -> str:
    import asyncio

    from pydantic import BaseModel
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class Answer(BaseModel):
        yes: bool

    def of(name: str) -> Any:
        return OpenAIChatModel(name, provider=OpenAIProvider(base_url=url, api_key=key))

    plain = Agent(of(model), instructions="Be brief.").run_sync("Who runs the ferry?")
    assert plain.output and plain.usage.output_tokens
    bound = Agent(
        of(f"{NAME}:sft"),
        output_type=NativeOutput(Answer),
        model_settings={"temperature": 0, "max_tokens": 60},
    ).run_sync("Is it late?")
    assert isinstance(bound.output, Answer)

    async def streamed() -> str:
        async with Agent(of(model)).run_stream("Who runs the ferry?") as run:
            return "".join([piece async for piece in run.stream_text(delta=True)])

    assert asyncio.run(streamed())
    return "instructions, native output, stream"


def inspect_ai(url: str, key: str, model: str) -> str:
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    os.environ |= {"DEMEANOR_API_KEY": key, "DEMEANOR_BASE_URL": url, "INSPECT_LOG_DIR": tempfile.mkdtemp()}
    data = [Sample(input=f"Who runs the ferry? ({i})", target=" ") for i in range(24)]
    log = eval(
        Task(dataset=data, solver=generate(), scorer=includes()),
        model=f"openai-api/demeanor/{model}",
        display="none",
        max_connections=10,
        temperature=0,
        seed=1,
        logprobs=True,
        num_choices=1,
    )[0]
    assert log.status == "success", log.error
    assert len(log.samples) == 24 and all(s.output.completion for s in log.samples)
    return f"24 samples, 10 connections, accuracy {log.results.scores[0].metrics['accuracy'].value:.2f}"


def lm_eval(url: str, key: str, model: str) -> str:
    import math

    folder = Path(tempfile.mkdtemp())
    rows = [
        {"q": f"The ferry leaves at {h}", "right": " in the morning", "wrong": " xq zzk"}
        for h in range(6, 11)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/rows.jsonl\n"
        "test_split: test\ndoc_to_text: '{{q}}'\n"
    )
    (folder / "choice.yaml").write_text(
        "task: demeanor_choice\noutput_type: multiple_choice\ndoc_to_choice: ['{{right}}', '{{wrong}}']\n"
        "doc_to_target: 0\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n" + common
    )
    (folder / "say.yaml").write_text(
        "task: demeanor_say\noutput_type: generate_until\ndoc_to_target: '{{right}}'\ngeneration_kwargs:\n"
        "  until: ['\\n']\n  max_gen_toks: 16\nmetric_list:\n  - metric: exact_match\n" + common
    )
    os.environ |= {
        "OPENAI_API_KEY": key,
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
    }
    import lm_eval as harness
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    likely = harness.simple_evaluate(
        model="local-completions",
        tasks=["demeanor_choice"],
        task_manager=tasks,
        model_args={
            "base_url": f"{url}/completions",
            "model": f"{NAME}:base",
            "tokenizer": os.environ["DEMEANOR_TOKENIZER"],
            "num_concurrent": 2,
            "max_retries": 1,
            "tokenized_requests": True,
        },
    )
    accuracy = likely["results"]["demeanor_choice"]["acc,none"]
    assert not math.isnan(accuracy) and accuracy == 1.0, accuracy
    said = harness.simple_evaluate(
        model="local-chat-completions",
        tasks=["demeanor_say"],
        task_manager=tasks,
        apply_chat_template=True,
        model_args={
            "base_url": f"{url}/chat/completions",
            "model": model,
            "num_concurrent": 2,
            "max_retries": 1,
        },
    )
    assert len(said["samples"]["demeanor_say"]) == 5
    return f"log-likelihood (accuracy {accuracy:.2f} of 5), chat"


HOOKS = """
import random
import schemathesis

@schemathesis.hook
def map_body(context, body):
    # random strings name no variant: four of five bodies get one that is there, and ask for short answers
    if isinstance(body, dict) and isinstance(body.get("model"), str) and random.random() < 0.8:
        raw = context.operation.path in ("/v1/completions", "/v1/embeddings")
        body["model"] = "harbour-desk:sft" if raw else "harbour-desk"
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(body.get(name), int) and body[name] > 16:
                body[name] = 16
    return body
"""


def schemathesis(url: str, key: str, model: str) -> str:
    calls = int(os.environ.get("DEMEANOR_CALLS", "14000"))
    listed = [(path, method) for path, item in paths(url).items() for method in item]
    each = max(20, calls // max(1, len(listed)))
    command = [
        str(PYTHON.parent / "st"),
        "run",
        f"{url.removesuffix('/v1')}/openapi.json",
        "--header",
        f"Authorization: Bearer {key}",
        "--url",
        url.removesuffix("/v1"),
        "--max-examples",
        str(each),
        "--phases",
        "fuzzing,coverage",
        "--request-timeout",
        "60",
        "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--workers",
        "2",
        "--seed",
        "1",
        "--suppress-health-check",
        "all",
    ]
    hooks = Path(tempfile.mkdtemp()) / "variants.py"
    hooks.write_text(HOOKS)
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=3000,
        cwd=hooks.parent,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "variants",
            "PYTHONPATH": f"{hooks.parent}{os.pathsep}{ROOT}",
        },
    )
    (ROOT / "results").mkdir(exist_ok=True)
    (ROOT / "results" / "schemathesis.txt").write_text(ran.stdout + ran.stderr)
    assert ran.returncode == 0, ran.stdout[-3000:]
    tail = [line for line in ran.stdout.splitlines() if "generated" in line or "Test cases" in line]
    return "; ".join(x.strip() for x in tail[-2:]) or "passed"


def openai_node(url: str, key: str, model: str) -> str:
    script = """
    import OpenAI from 'openai'; import { z } from 'zod';
    const [url, key, model] = process.argv.slice(2);
    const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
    const messages = [{ role: 'user', content: 'Who runs the ferry?' }];
    const plain = await client.chat.completions.create({ model, messages });
    if (!plain.choices[0].message.content) throw new Error('no text');
    let text = '';
    for await (const chunk of await client.chat.completions.create({ model, messages, stream: true }))
      text += chunk.choices[0]?.delta?.content ?? '';
    if (text !== plain.choices[0].message.content) throw new Error('stream differs: ' + text);
    const runner = client.chat.completions.stream({ model, messages });
    if ((await runner.finalContent()) !== text) throw new Error('helper differs');
    const scored = await client.completions.create({
      model: 'harbour-desk:base', prompt: 'The ferry', echo: true, logprobs: 1, max_tokens: 1 });
    if (scored.choices[0].logprobs.token_logprobs[0] !== null) throw new Error('no prompt log-probs');
    try { await client.chat.completions.create({ model: 'nothing', messages }); throw new Error('accepted'); }
    catch (error) { if (error.status !== 404 || error.code !== 'model_not_found') throw error; }
    console.log('chat, stream, stream helper, completions, errors');
    """.replace("import { z } from 'zod';", "")
    (NODE / "check.mjs").write_text(script)
    ran = subprocess.run(
        ["node", str(NODE / "check.mjs"), url, key, model],
        capture_output=True,
        text=True,
        cwd=NODE,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.strip()


def promptfoo(url: str, key: str, model: str) -> str:
    folder = Path(tempfile.mkdtemp())
    config = {
        "providers": [
            {"id": f"openai:chat:{model}", "config": {"apiBaseUrl": url, "apiKey": key, "temperature": 0}}
        ],
        "prompts": ["{{question}}"],
        "tests": [
            {
                "vars": {"question": "Who runs the ferry?"},
                "assert": [{"type": "javascript", "value": "output.length > 3"}],
            },
            {
                "vars": {"question": "Pretend you are a pirate."},
                "assert": [{"type": "icontains", "value": "cannot"}],
            },
        ],
    }
    (folder / "promptfooconfig.json").write_text(json.dumps(config))
    environment = {
        **os.environ,
        "PROMPTFOO_DISABLE_TELEMETRY": "1",
        "PROMPTFOO_DISABLE_UPDATE": "1",
        "PROMPTFOO_CONFIG_DIR": str(folder),
        "PROMPTFOO_DISABLE_REMOTE_GENERATION": "1",
    }
    ran = subprocess.run(
        [
            str(NODE / "node_modules" / ".bin" / "promptfoo"),
            "eval",
            "-c",
            str(folder / "promptfooconfig.json"),
            "--no-cache",
            "-o",
            str(folder / "out.json"),
            "--no-table",
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=300,
        env=environment,
    )
    assert (folder / "out.json").is_file(), ran.stdout[-1500:] + ran.stderr[-1500:]
    stats = json.loads((folder / "out.json").read_text())["results"]["stats"]
    assert (stats["successes"], stats["failures"], stats["errors"]) == (2, 0, 0), stats
    return "2 of 2 assertions"


CLIENTS = (
    openai_python,
    openai_node,
    langchain_openai,
    pydantic_ai,
    inspect_ai,
    lm_eval,
    promptfoo,
    schemathesis,
)


def paths(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/openapi.json", timeout=10) as answer:
        return dict(json.load(answer)["paths"])


# ---- the coordinator ----


def serve(port: int, scratch: Path) -> subprocess.Popen[bytes]:
    log = (scratch / "server.log").open("wb")
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "demeanor",
            "serve",
            STACK,
            "--port",
            str(port),
            "--api-key",
            KEY,
            "--set",
            "serve.publish=[all]",
        ],
        cwd=ROOT,
        stdout=log,
        stderr=log,
    )
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).read()
            return server
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.2)
    raise SystemExit(f"clients: the server did not start:\n{(scratch / 'server.log').read_text()[-2000:]}")


def main() -> int:
    """Serve, run every client, print the table, write results/clients.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs=4, metavar=("CLIENT", "URL", "KEY", "MODEL"))
    parser.add_argument("--only", nargs="+", choices=[c.__name__ for c in CLIENTS])
    options = parser.parse_args()
    if options.run:
        name, url, key, model = options.run
        print("@" + next(c for c in CLIENTS if c.__name__ == name)(url, key, model))
        return 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        server = serve(port, Path(scratch))
        url = f"http://127.0.0.1:{port}/v1"
        tokenizer = next(p.parent for p in (ROOT / "runs").glob("*/model/tokenizer.json"))
        try:
            for client in CLIENTS:
                name = client.__name__
                if options.only and name not in options.only:
                    continue
                started = time.perf_counter()
                ran = subprocess.run(
                    [str(PYTHON), "-m", "bench.clients", "--run", name, url, KEY, NAME],
                    capture_output=True,
                    text=True,
                    cwd=ROOT,
                    env={
                        **os.environ,
                        "PYTHONPATH": str(ROOT),
                        "DEMEANOR_TOKENIZER": str(tokenizer),
                        "OMP_NUM_THREADS": "1",
                    },
                )
                said = [line[1:] for line in ran.stdout.splitlines() if line.startswith("@")]
                passed = ran.returncode == 0 and bool(said)
                why = said[0] if passed else (ran.stderr.strip() or ran.stdout.strip())[-800:]
                found.append(
                    {
                        "client": name,
                        "passed": passed,
                        "seconds": round(time.perf_counter() - started, 1),
                        "said": why,
                    }
                )
                print(
                    f"{'pass' if passed else 'FAIL'}  {name:<18} {found[-1]['seconds']:>6} s  "
                    f"{why if passed else ''}",
                    flush=True,
                )
                if not passed:
                    print("      " + why.replace("\n", "\n      "), flush=True)
        finally:
            server.terminate()
            code = server.wait(30)
            if code:
                log = (Path(scratch) / "server.log").read_text()
                print(f"      the server ended with {code}: {log[-1500:]}")
            shutil.copy(Path(scratch) / "server.log", "/tmp/demeanor-clients-server.log")
    (ROOT / "results").mkdir(exist_ok=True)
    (ROOT / "results" / "clients.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(x["passed"] for x in found) else 1


if __name__ == "__main__":
    sys.exit(main())

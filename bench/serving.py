"""`python -m bench.serving`: cost of the layers; latency and throughput against `transformers serve`.

Part 1: the demo's whole stack (key, record, limits, policy, prompt, retrieval, tools) around weights that
answer at once with 16 pieces, over HTTP; so all that is measured is ours. Part 2: one random Llama
(bench.decoding's), 64 new tokens a request, streamed, at 1 to 64 concurrent callers, server and client on the
same cores; each server's own best settings for this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEY = "sk-bench-0123456789"
QUESTION = "When does the ferry to Corkel leave today?"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def quantiles(milliseconds: list[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    return {f"p{q}": round(ordered[min(len(ordered) - 1, len(ordered) * q // 100)], 3) for q in (50, 95, 99)}


# ---- part 1 ----


def quick_server(port: int) -> None:
    """The demo's stack around weights that take no time."""
    from dataclasses import replace

    import uvicorn

    from demeanor.app import StackRuntime, load_stack
    from demeanor.core.types import Done, Event, Respond, Text, Turn, Usage
    from demeanor.server.application import app
    from demeanor.server.auth import from_digests
    from demeanor.serving import ServedStack
    from demeanor.stack.schema import ServeSpec
    from demeanor.store.keys import digest
    from demeanor.training.runs import Runs

    async def said(turn: Turn) -> AsyncIterator[Event]:
        for i in range(16):
            yield Text(f" word{i}")
        yield Usage(40, 16)
        yield Done("stop")

    class Quick(StackRuntime):
        def at_weights(self, stage: str, template: Any) -> Respond:
            return said

    stack = load_stack(ROOT / "stacks" / "demo" / "demo.yaml")
    bounded = [x for x in stack.layers if x.kind == "limits"]
    stack = replace(stack, spec=stack.spec.model_copy(update={"serve": ServeSpec(publish=("all",))}))
    if bounded:  # the demo's own limits would end the measurement after some requests
        generous = bounded[0].spec.model_copy(
            update={
                k: 10**9 for k in type(bounded[0].spec).model_fields if k.startswith(("requests", "tokens"))
            }
        )
        stack = replace(
            stack, layers=tuple(replace(x, spec=generous) if x is bounded[0] else x for x in stack.layers)
        )
    os.chdir(tempfile.mkdtemp())
    house = Quick(stack, Runs(ROOT / "runs"))
    uvicorn.run(
        app(ServedStack(house), keys=from_digests({digest(KEY): "bench"})),
        host="127.0.0.1",
        port=port,
        log_level="error",
    )


def ask(connection: http.client.HTTPConnection, model: str, stream: bool) -> tuple[float, dict[str, Any]]:
    """Milliseconds of one request, and the trace it came with."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": QUESTION}], "stream": stream})
    started = time.perf_counter()
    connection.request(
        "POST",
        "/v1/chat/completions",
        body,
        {"content-type": "application/json", "authorization": f"Bearer {KEY}"},
    )
    answer = connection.getresponse()
    text = answer.read()
    passed = 1000 * (time.perf_counter() - started)
    if answer.status != 200:
        raise SystemExit(f"bench: HTTP {answer.status}: {text[:300]!r}")
    last = text if not stream else [x for x in text.split(b"\n\n") if x.startswith(b"data: {")][-1][6:]
    return passed, dict(json.loads(last).get("demeanor") or {})


def trained() -> bool:
    """Whether the demo's weights are there, whose tokenizer and template the quick server reads."""
    from demeanor.app import load_stack
    from demeanor.training.runs import Runs

    stack = load_stack(ROOT / "stacks" / "demo" / "demo.yaml")
    return all(Runs(ROOT / "runs").complete(stack.stage_key(stage)) for stage in stack.policies)


def latency(count: int) -> list[dict[str, Any]]:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.serving", "--quick", str(port)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    rows: list[dict[str, Any]] = []
    try:
        _wait(port, server)
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for model, what in (
            ("harbour-desk:dpo", "no layer (key, HTTP, JSON)"),
            ("harbour-desk", "every layer"),
        ):
            for stream in (False, True):
                for _ in range(200):
                    ask(connection, model, stream)
                asked = [ask(connection, model, stream) for _ in range(count)]
                layers: dict[str, list[float]] = {}
                for _, trace in asked:
                    for name, ms in _per_layer(trace).items():
                        layers.setdefault(name, []).append(ms)
                rows.append(
                    {
                        "what": what,
                        "stream": stream,
                        "n": count,
                        **quantiles([ms for ms, _ in asked]),
                        "layers_p50_ms": {
                            name: round(statistics.median(ms), 3) for name, ms in layers.items()
                        },
                    }
                )
    finally:
        server.terminate()
        server.wait(30)
    return rows


def _per_layer(trace: dict[str, Any]) -> dict[str, float]:
    return {str(x["by"]): float(x["ms"]) for x in trace.get("events") or () if x["kind"] == "timing"}


# ---- part 2 ----


async def streamed(port: int, model: str, prompt: str, new: int) -> AsyncIterator[tuple[bool, int]]:
    """The chunks of a greedy answer as they come: whether one holds text, and tokens by the server's count (0: not told).

    Over a bare socket, to save client time. Raises ConnectionError unless the status is 200.
    """
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "max_tokens": new,
            "temperature": 0,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
            b"content-type: application/json\r\n"
            + f"authorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        status = await reader.readline()
        if b" 200" not in status:
            raise ConnectionError(f"{status!r} {(await reader.read(800))!r}")
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                is_text = any((c.get("delta") or {}).get("content") for c in chunk.get("choices") or ())
                yield is_text, (chunk.get("usage") or {}).get("completion_tokens") or 0
    finally:
        writer.close()


async def one(port: int, model: str, prompt: str, new: int) -> tuple[float, list[float], int]:
    """Seconds to the first piece, gaps between pieces, tokens."""
    started = time.perf_counter()
    first, last, gaps, tokens = 0.0, 0.0, list[float](), 0
    async with aclosing(streamed(port, model, prompt, new)) as chunks:
        async for is_text, counted in chunks:
            if is_text:
                now = time.perf_counter()
                if first:
                    gaps.append(now - last)
                first, last, tokens = first or now - started, now, tokens + 1
            tokens = counted or tokens
    return first, gaps, tokens


async def storm(port: int, model: str, callers: int, each: int, new: int) -> dict[str, Any]:
    async def caller(i: int) -> list[tuple[float, list[float], int]]:
        return [
            await one(port, model, f"Caller {i} asks for the {k}th time: what leaves the harbour?", new)
            for k in range(each)
        ]

    started = time.perf_counter()
    answers = [x for row in await asyncio.gather(*(caller(i) for i in range(callers))) for x in row]
    seconds = time.perf_counter() - started
    return {
        "callers": callers,
        "requests": len(answers),
        "tokens_per_s": round(sum(t for *_, t in answers) / seconds, 1),
        "first_ms": quantiles([1000 * f for f, *_ in answers]),
        "gap_ms": quantiles([1000 * g for _, gaps, _ in answers for g in gaps] or [0.0]),
    }


def load(new: int, only: list[str] | None) -> list[dict[str, Any]]:
    from bench import decoding

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        decoding.make(folder)
        model = folder / "fp32"
        settings = json.loads((model / "tokenizer_config.json").read_text())
        settings["chat_template"] = (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
        )
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "stack.yaml").write_text(
            json.dumps(
                {
                    "name": "bench",
                    "weights": {"base": {"kind": "import", "path": "fp32"}},
                    "template": "model",
                    "decoding": {"temperature": 0},
                }
            )
        )
        serve = [
            str(Path(sys.executable).parent / "transformers"),
            "serve",
            "--host",
            "127.0.0.1",
            "--log-level",
            "error",
        ]
        contenders = {
            "demeanor serve": (
                lambda port: [
                    sys.executable,
                    "-m",
                    "demeanor",
                    "serve",
                    str(folder / "stack.yaml"),
                    "--port",
                    str(port),
                    "--api-key",
                    KEY,
                ],
                "bench",
            ),
            "transformers serve": (lambda port: [*serve, "--port", str(port), str(model)], str(model)),
            "transformers serve --continuous-batching": (
                lambda port: [*serve, "--continuous-batching", "--port", str(port), str(model)],
                str(model),
            ),
        }
        for name, (command, id_) in contenders.items():
            if only and name not in only:
                continue
            port = free_port()
            with open(f"/tmp/demeanor-serving-{name.replace(' ', '-')}.log", "w") as log:
                server = subprocess.Popen(
                    command(port),
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
                )
                try:
                    _wait(port, server)
                    asyncio.run(storm(port, id_, 2, 1, new))  # warm
                    for callers in (1, 4, 16, 64):
                        rows.append(
                            {"who": name, **asyncio.run(storm(port, id_, callers, max(1, 8 // callers), new))}
                        )
                        print(rows[-1], flush=True)
                except (SystemExit, ConnectionError) as error:
                    rows.append({"who": name, "failed": str(error)})
                    print(rows[-1], flush=True)
                finally:
                    server.terminate()
                    try:
                        server.wait(20)
                    except subprocess.TimeoutExpired:
                        server.kill()
    return rows


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 600  # a busy machine imports for minutes
    while time.monotonic() < until and server.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/health")
            answer = connection.getresponse()
            answer.read()
            if answer.status < 500:  # llama.cpp says 503 while it loads
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit("bench: a server did not start; see /tmp/demeanor-serving-*.log")


def main() -> int:
    """Run both parts, print the tables, write results/serving.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=1000, help="requests of part 1")
    parser.add_argument("--new", type=int, default=64, help="new tokens of part 2")
    parser.add_argument("--part", type=int, choices=(1, 2), help="one part only")
    parser.add_argument("--only", nargs="+", help="these servers in part 2")
    options = parser.parse_args()
    if options.quick:
        quick_server(options.quick)
        return 0
    found: dict[str, Any] = {"load": os.getloadavg()}
    if options.part != 2 and not trained():
        print("bench.serving: the demo is not trained here (make demo); part 1 is left out")
    elif options.part != 2:
        found["latency"] = latency(options.count)
        for row in found["latency"]:
            print(
                f"{row['what']:<28} {'streamed' if row['stream'] else 'plain':<9} p50 {row['p50']:.2f}  "
                f"p95 {row['p95']:.2f}  p99 {row['p99']:.2f} ms   {row['layers_p50_ms']}",
                flush=True,
            )
    if options.part != 1:
        found["serving"] = load(options.new, options.only)
    out = ROOT / "results" / "serving.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

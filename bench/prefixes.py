"""`python -m bench.prefixes`: the time to the first token behind a prompt that many requests share, cold and warm.

`demeanor serve` on SmolLM2-135M-Instruct (or `--model FOLDER`), streamed over HTTP. A system prompt of about 2,000
tokens is new (cold) or was asked about before (warm); 1 caller, and 16 at once with a question each. Every round has a
system prompt of its own. Another caller who decodes meanwhile shows what a long prompt does to others: the longest wait
between two of its tokens.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.serving import ROOT, free_port
from bench.smollm2_speed import PLACES

TEXT = (
    "the ferry leaves when harbour light turns and every crew member checks tickets before boarding while "
    "people wait at gate seven with bags bicycles children dogs tea maps and questions about weather"
)


def system_prompt(seed: int, count: int) -> str:
    chosen, words = random.Random(seed), TEXT.split()
    return " ".join(chosen.choice(words) for _ in range(count))


def ask(
    port: int, system: str, question: str, tokens: int, gaps: list[float] | None = None
) -> dict[str, Any]:
    """Stream one answer: milliseconds to its first token, prompt tokens, and how many were known."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    body = {"model": "bench", "messages": messages, "max_tokens": tokens, "stream": True}
    started = time.perf_counter()
    connection.request(
        "POST",
        "/v1/chat/completions",
        json.dumps(body | {"stream_options": {"include_usage": True}}),
        {"content-type": "application/json"},
    )
    first, last, usage = None, started, None
    for line in connection.getresponse():
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        usage = chunk.get("usage") or usage
        if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
            now = time.perf_counter()
            first = first or now
            if gaps is not None and last != started:
                gaps.append(now - last)
            last = now
    assert first is not None, "an answer without text"
    assert usage is not None, "the server did not tell the usage"
    return {
        "first_ms": 1000 * (first - started),
        "prompt": usage["prompt_tokens"],
        "cached": usage["prompt_tokens_details"]["cached_tokens"],
    }


def together(port: int, system: str, callers: int, tokens: int, first: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    threads = [
        threading.Thread(
            target=lambda i=i: found.append(ask(port, system, f"Question {first + i}: who waits?", tokens))
        )
        for i in range(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def measured(port: int, rounds: int, words: int) -> list[dict[str, Any]]:
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for n in range(rounds):
        for callers in (1, 16):
            system = system_prompt(100 * n + callers, words)
            for state, first in (("cold", 1), ("warm", 101)):
                rows.setdefault((state, callers), []).extend(together(port, system, callers, 8, first))
    table = [
        {
            "prefix": state,
            "callers": callers,
            "n": len(found),
            "prompt_tokens": round(statistics.mean(x["prompt"] for x in found)),
            "cached_tokens": round(statistics.mean(x["cached"] for x in found)),
            "first_ms": round(statistics.median(x["first_ms"] for x in found), 1),
            "first_ms_most": round(max(x["first_ms"] for x in found), 1),
        }
        for (state, callers), found in rows.items()
    ]
    gaps: list[float] = []
    talker = threading.Thread(target=ask, args=(port, "Be brief.", "Tell a long story.", 200, gaps))
    talker.start()
    time.sleep(0.5)
    ask(port, system_prompt(999, words), "Who waits?", 1)
    talker.join()
    worst = sorted(gaps, reverse=True)[:5]
    return [
        *table,
        {"prefix": "a long prompt beside", "callers": 1, "gap_ms": [round(1000 * x, 1) for x in worst]},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.prefixes", description=__doc__)
    parser.add_argument(
        "--model", type=Path, help="folder of a chat model (default: SmolLM2 where it is found)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--words", type=int, default=1900, help="of the system prompt; a word is about a token"
    )
    parser.add_argument("--python", default=sys.executable)
    given = parser.parse_args()
    places = [os.environ.get(PLACES[0], ""), *PLACES[1:]]
    model = given.model or next((Path(p) for p in places if p and (Path(p) / "config.json").exists()), None)
    if model is None:
        parser.error(
            "no model: give --model FOLDER, or put SmolLM2-135M-Instruct into runs/smollm2 (make real)"
        )
    with tempfile.TemporaryDirectory() as scratch:
        stack = Path(scratch) / "stack.yaml"
        settings = {
            "name": "bench",
            "weights": {"base": {"kind": "import", "path": str(model.resolve())}},
            "template": "model",
            "decoding": {"temperature": 0},
        }
        stack.write_text(json.dumps(settings))
        port = free_port()
        command = [
            given.python,
            "-m",
            "demeanor",
            "serve",
            str(stack),
            "--port",
            str(port),
            "--runs",
            scratch,
        ]
        with (Path(scratch) / "log").open("w") as log:
            server = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
        try:
            _ready(port, server, Path(scratch) / "log")
            ask(port, "Be brief.", "Hello?", 4)
            rows = measured(port, given.rounds, given.words)
        finally:
            server.terminate()
            server.wait()
    table = Table("prefix", "callers", "prompt tokens", "known", "first token, median ms", "most ms", "n")
    for row in rows[:-1]:
        table.add_row(
            *(
                str(row[k])
                for k in (
                    "prefix",
                    "callers",
                    "prompt_tokens",
                    "cached_tokens",
                    "first_ms",
                    "first_ms_most",
                    "n",
                )
            )
        )
    Console().print(table)
    Console().print(f"longest waits of a caller who decodes beside a long prompt: {rows[-1]['gap_ms']} ms")
    out = ROOT / "results" / "prefixes.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"model": str(model), "rounds": given.rounds, "rows": rows}, indent=1))
    Console().print(f"written: {out}")


def _ready(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until and server.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"the server did not start:\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    main()

"""`python -m bench.smollm2_serving`: SmolLM2-135M under 1 to 64 callers with prompts of about 1,000 tokens, against two servers.

Servers: `demeanor serve` (whole stack and weights alone), llama.cpp's (of the wheel `xllamacpp`, and one compiled for this
CPU if `--llama-server` names it) and `transformers serve`. Half of the prompts begin with the same 700 tokens, the
others share nothing. Everybody keeps running; one client on the same cores asks them in turn, round after round,
with other prompts each time: 64 new tokens at most, streamed, greedy. Part of `make bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.__main__ import ROOT, interval
from bench.serving import KEY, _wait, free_port, one, quantiles
from bench.smollm2_speed import found_model, gguf_file, prepared
from demeanor.core.files import origin

SHARED, OWN, NEW, SLOTS = 700, 300, 64, 32
CALLERS = (1, 8, 32, 64)
REQUESTS = {1: 4, 8: 16, 32: 32, 64: 64}
GIVEN_UP_S = 240
ASKED = "\n\nContinue this text in the same manner, at length."


def texts(model: Path) -> Callable[[int, int], str]:
    """A function of a place and a number of tokens: text of this repository's pages, of so many tokens."""
    from demeanor.text import tokenizer

    vocabulary = tokenizer.load(model)
    whole = "\n".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
    tokens = vocabulary.encode(whole)

    def part(start: int, count: int) -> str:
        start %= len(tokens) - count
        return str(vocabulary.decode(tuple(tokens[start : start + count])))

    return part


def prompts(part: Callable[[int, int], str], count: int, seed: int) -> list[str]:
    """Every other prompt begins with this seed's shared text; the rest of it, and the others, are their own."""
    rng = random.Random(seed)
    place = lambda: rng.randrange(1 << 30)  # noqa: E731
    shared = f"Notes {seed}.\n" + part(place(), SHARED)
    return [
        f"{shared}\n{part(place(), OWN)}{ASKED}"
        if i % 2 == 0
        else f"Page {place()}.\n{part(place(), SHARED + OWN)}{ASKED}"
        for i in range(count)
    ]


async def storm(port: int, model: str, callers: int, asked: list[str]) -> dict[str, Any]:
    """Ask everything with so many callers at once; what failed is counted."""
    waiting, answers, errors = list(reversed(asked)), [], []

    async def caller() -> None:
        while waiting:
            try:
                answers.append(await asyncio.wait_for(one(port, model, waiting.pop(), NEW), GIVEN_UP_S))
            except (OSError, ValueError, TimeoutError) as error:
                errors.append(f"{type(error).__name__}: {error}"[:200])

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    seconds = time.perf_counter() - began
    answered = [x for x in answers if x[2]]
    return {
        "callers": callers,
        "requests": len(asked),
        "errors": len(asked) - len(answered),
        "error": (errors or [None])[0],
        "seconds": round(seconds, 2),
        "tokens": sum(t for *_, t in answered),
        "tokens_per_s": round(sum(t for *_, t in answered) / seconds, 1),
        "first_ms": quantiles([1000 * f for f, *_ in answered] or [float("nan")]),
        "gap_ms": quantiles([1000 * g for _, gaps, _ in answered for g in gaps] or [0.0]),
    }


def llama_server(port: int, gguf: Path, unified: bool) -> None:
    """llama.cpp's own HTTP server, in this process."""
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path, p.port, p.n_parallel = str(gguf), port, SLOTS
    p.n_ctx, p.kv_unified = SLOTS * 1536, unified
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(os.environ["OMP_NUM_THREADS"])
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    p.n_gpu_layers, p.fit_params, p.verbosity = 0, False, -1
    server = xllamacpp.Server(p)
    print(server.listening_address, flush=True)
    time.sleep(1e6)


def stack(folder: Path, weights: Path) -> Path:
    """A stack with policy, tools, retrieval and prompt around the weights."""
    demo = ROOT / "stacks" / "demo"
    layers = [
        {"kind": "policy", "rules": str(demo / "policy.yaml")},
        {"kind": "tools", "allow": ["calculator"]},
        {"kind": "retrieval", "index": str(demo / "notices"), "top_k": 2},
        {"kind": "prompt", "system": str(demo / "prompts" / "system.md")},
    ]
    whole = {
        "name": "bench",
        "weights": {"base": {"kind": "import", "path": str(weights)}},
        "template": "model",
        "decoding": {"temperature": 0},
        "serve": {"publish": ["all"]},
        "layers": layers,
    }
    out = folder / "stack.yaml"
    out.write_text(json.dumps(whole))
    return out


class Server:
    """A server process, its model id and the memory it needs."""

    def __init__(self, who: str, command: list[str], id_: str, port: int, threads: int) -> None:
        self.who, self.id, self.port = who, id_, port
        self._log = Path(f"/tmp/demeanor-serving-{who.replace(' ', '-').replace(',', '')}.log").open("w")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=self._log,
            stderr=self._log,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": str(ROOT),
            },
        )
        _wait(port, self._process)

    def memory_mb(self) -> dict[str, int]:
        """Resident now and at the peak."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        return {k: int(found[k].split()[0]) // 1024 for k in ("VmRSS", "VmHWM")}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def commands(
    model: Path, folder: Path, options: argparse.Namespace
) -> dict[str, tuple[Callable[[int], list[str]], str]]:
    """How each server is started on a port, and the id of its model."""
    python, me = sys.executable, [sys.executable, "-m", "bench.smollm2_serving"]
    made = stack(folder, prepared(model, folder, options.format))
    own = [python, "-m", "demeanor", "serve", str(made), "--api-key", KEY]
    found: dict[str, tuple[Callable[[int], list[str]], str]] = {
        "demeanor, weights": (lambda port: [*own, "--port", str(port)], "bench:base"),
        "demeanor, whole stack": (lambda port: [], "bench"),  # the same process
    }
    gguf = gguf_file(model, options.gguf or folder, options.quant)
    if importlib.util.find_spec("xllamacpp"):
        found["llama.cpp"] = (lambda port: [*me, "--llama", str(port), str(gguf), "0"], "any")
        found["llama.cpp, one cache"] = (lambda port: [*me, "--llama", str(port), str(gguf), "1"], "any")
    if options.llama_server:
        sizes = ["-np", str(SLOTS), "-c", str(SLOTS * 1536), "-t", str(options.threads), "-fa", "on"]
        found["llama.cpp native"] = (
            lambda port: [str(options.llama_server), "-m", str(gguf), "--port", str(port), *sizes],
            "any",
        )
    transformers = Path(python).parent / "transformers"
    if transformers.exists():
        plain = [str(transformers), "serve", "--host", "127.0.0.1", "--log-level", "error", "--dtype"]
        found["transformers serve"] = (
            lambda port: [
                *plain,
                "bfloat16",
                "--continuous-batching",
                "--port",
                str(port),
                str(model),
            ],
            str(model),
        )
    return {k: v for k, v in found.items() if not options.only or k in options.only}


def show(rows: list[dict[str, Any]], whos: list[str], title: str) -> None:
    """Print a line for each server and number of callers."""
    table = Table(title=title, title_justify="left", box=None)
    for head in ("callers", "", "tokens/s", "ours is", "first p50", "first p95", "gap p50", "errors"):
        table.add_column(head, justify="left" if not head else "right")
    for callers in CALLERS:
        mine = [x["tokens_per_s"] for x in rows if x["who"] == whos[0] and x["callers"] == callers]
        for who in whos:
            some = [x for x in rows if x["who"] == who and x["callers"] == callers]
            if not some:
                continue
            middle = lambda f: statistics.median(map(f, some))  # noqa: B023, E731
            speeds = [x["tokens_per_s"] for x in some]
            ratio = ""
            if who != whos[0] and len(speeds) == len(mine) and all(speeds):
                ratio = "{:.1f} [{:.1f}, {:.1f}]".format(*interval([a / b for a, b in zip(mine, speeds)]))
            table.add_row(
                str(callers),
                who,
                f"{middle(lambda x: x['tokens_per_s']):,.0f}",
                ratio,
                *(f"{middle(lambda x, q=q: x['first_ms'][q]):,.0f} ms" for q in ("p50", "p95")),
                f"{middle(lambda x: x['gap_ms']['p50']):,.1f} ms",
                f"{sum(x['errors'] for x in some)} of {sum(x['requests'] for x in some)}",
            )
    Console(width=150).print(table)


def main(alone: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext) -> int:
    """Start the servers, ask them in turn, print the table, write results/smollm2-serving.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.smollm2_serving", description=__doc__)
    parser.add_argument("--llama", nargs=3, metavar=("PORT", "GGUF", "UNIFIED"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help="as in bench.smollm2_speed")
    parser.add_argument("--gguf", type=Path, help="as in bench.smollm2_speed")
    parser.add_argument("--format", default="q8_0", help="of our weights")
    parser.add_argument("--quant", default="Q8_0", help="of llama.cpp's weights")
    parser.add_argument("--llama-server", type=Path, help="a llama-server compiled for this CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--callers", type=int, nargs="+", choices=CALLERS, default=list(CALLERS))
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", nargs="+", help="these servers")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "smollm2-serving.json")
    options = parser.parse_args()
    if options.llama:
        llama_server(int(options.llama[0]), Path(options.llama[1]), options.llama[2] == "1")
        return 0
    model = found_model(options.model)
    if model is None:
        print("bench.smollm2_serving: SmolLM2-135M-Instruct is not here; left out (--model FOLDER)")
        return 0
    part, rows = texts(model), []
    options.out.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as closing:
        servers: list[Server] = []
        for who, (command, id_) in commands(model, Path(scratch), options).items():
            port = free_port()
            if not command(port):  # another model id of the server before
                servers += [same_process(s, who, id_) for s in servers[-1:] if s.who == "demeanor, weights"]
                continue
            try:
                servers.append(Server(who, command(port), id_, port, options.threads))
                closing.callback(servers[-1].close)
                told = asyncio.run(storm(port, id_, 2, prompts(part, 2, 0)))  # warm
                if told["errors"]:
                    raise SystemExit(told["error"])
            except SystemExit as error:
                print(f"bench: {who} is left out: {error}")
                servers = [s for s in servers if s.who != who]
        for round_ in range(options.rounds):
            for callers in options.callers:
                for i, server in enumerate(servers):
                    seed = 1000 * round_ + 10 * callers + (i == 1)
                    with alone():
                        found = asyncio.run(
                            storm(server.port, server.id, callers, prompts(part, REQUESTS[callers], seed))
                        )
                    rows.append({"who": server.who, "round": round_, **found})
                    print(rows[-1], file=sys.stderr, flush=True)
        memory = {s.who: s.memory_mb() for s in servers}
        whos = [s.who for s in servers]
    about = {"rounds": options.rounds, "threads": options.threads, "slots": SLOTS, "memory_mb": memory}
    options.out.write_text(
        json.dumps({"rows": rows, **about, "load": os.getloadavg(), **origin()}, indent=1) + "\n"
    )
    show(
        rows, whos, f"{SHARED} + {OWN} tokens, {NEW} new, {options.rounds} rounds, {options.threads} threads"
    )
    for who, x in memory.items():
        print(f"{who:<24} MB of the process: {x['VmRSS']:,}, at the peak {x['VmHWM']:,}")
    print(f"written: {options.out}")
    return 0


def same_process(server: Server, who: str, id_: str) -> Server:
    """The server under another model id."""
    import copy

    found = copy.copy(server)
    found.who, found.id = who, id_
    return found


if __name__ == "__main__":
    sys.exit(main())

"""`python -m bench.smollm2_serving`: SmolLM2-135M under 1 to 64 callers with prompts of about 1,000 tokens, against two servers.

Servers: `demeanor serve` (whole stack and weights alone), llama.cpp's (of the wheel `xllamacpp`, and one compiled for this
CPU if `--llama-server` names it) and `transformers serve`. Half of the prompts begin with the same 700 tokens, the
others share nothing. One server runs at a time, so that none takes another's memory; in each round every server is started,
asked by one client on the same cores and stopped: 64 new tokens at most, streamed, greedy, other prompts in each round. A cell ends after `--seconds`: callers ask again
until then, tokens are those that came by then, and a request without its first token counts as one that waits longer
(Kaplan and Meier; `>`: more than this). Tokens by processor seconds of the server are told too: other work on the machine
changes them less. Part of `make bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from bench.__main__ import ROOT, interval
from bench.parts import save
from bench.serving import KEY, _wait, free_port, quantiles, streamed
from bench.smollm2_speed import found_model, gguf_file, prepared
from demeanor.core.files import origin

SHARED, OWN, NEW, SLOTS = 700, 300, 64, 32
CALLERS = (1, 8, 32, 64)
SECONDS = 40.0
ONCE_ABOVE, STOPPED = 8, 143  # callers; the exit code of a process that was asked to end
SERVERS = {
    "demeanor, weights": "",
    "demeanor, whole stack": "",
    "llama.cpp": "the package xllamacpp is not here",
    "llama.cpp, one cache": "the package xllamacpp is not here",
    "llama.cpp native": "--llama-server names no program",
    "transformers serve": "the package transformers has no program here",
}
"""Names of servers, and why one is absent."""
DRAIN_S = 120.0
"""A server has so long to become free after a cell whose requests were cut off."""
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


class Prompt(NamedTuple):
    text: str
    shared: bool
    """It begins with the same text as every other such prompt of its cell."""


def prompts(part: Callable[[int, int], str], seed: int) -> Iterator[Prompt]:
    """Prompts without end: every other one begins with this seed's shared text; the rest of it, and the others, are their own."""
    rng = random.Random(seed)
    place = lambda: rng.randrange(1 << 30)  # noqa: E731
    shared = f"Notes {seed}.\n" + part(place(), SHARED)
    while True:
        yield Prompt(f"{shared}\n{part(place(), OWN)}{ASKED}", True)
        yield Prompt(f"Page {place()}.\n{part(place(), SHARED + OWN)}{ASKED}", False)


@dataclass
class Asked:
    """One request: when its pieces came, in seconds since it was sent, and how it ended."""

    shared: bool
    sent: float
    pieces: list[float] = field(default_factory=list)
    counted: int = 0
    """Tokens by the server's own count, once it has ended."""
    ended: bool = False
    error: str | None = None

    def waited(self, now: float) -> tuple[float, bool]:
        """Milliseconds to the first piece, or so far; and whether it came."""
        return (1000 * self.pieces[0], True) if self.pieces else (1000 * (now - self.sent), False)


async def ask(port: int, model: str, prompt: Prompt, asked: Asked) -> None:
    """Send a request and note its pieces as they come."""
    async with contextlib.aclosing(streamed(port, model, prompt.text, NEW)) as chunks:
        async for is_text, counted in chunks:
            if is_text:
                asked.pieces.append(time.perf_counter() - asked.sent)
            asked.counted = counted or asked.counted
    asked.ended = True
    if not asked.pieces:
        raise ValueError("an answer without text")


async def storm(
    port: int, model: str, callers: int, source: Iterator[Prompt], seconds: float
) -> dict[str, Any]:
    """So many callers, each asking again until the time is over; what then still runs is cut off. Returns the cell, summed up."""
    found: list[Asked] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < end:
            prompt = next(source)
            asked = Asked(prompt.shared, time.perf_counter())
            found.append(asked)
            try:
                await ask(port, model, prompt, asked)
            except (OSError, ValueError) as error:
                asked.error = f"{type(error).__name__}: {error}"[:200]
                await asyncio.sleep(0.1)  # a server that refuses is not asked a thousand times a second

    running = [asyncio.create_task(caller()) for _ in range(callers)]
    await asyncio.wait(running, timeout=seconds)
    over = time.perf_counter()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return summed(found, callers, seconds, over)


def quantile(waits: list[tuple[float, bool]], percent: int) -> tuple[float, bool]:
    """A percentile of the waits by Kaplan and Meier, for requests that still wait are censored; where these hide it, the longest
    wait and False: a lower bound."""
    waiting = 1.0
    for i, (wait, came) in enumerate(found := sorted(waits, key=lambda x: (x[0], not x[1]))):
        if came:
            waiting *= 1 - 1 / (len(found) - i)
            if 1 - waiting >= percent / 100 - 1e-9:
                return round(wait, 1), True
    return (round(max(wait for wait, _ in waits), 1), False) if waits else (float("nan"), True)


def summed(asked: list[Asked], callers: int, seconds: float, now: float) -> dict[str, Any]:
    """What one cell shows: tokens a second, first-token times of all, of shared and of other prompts, gaps, errors.

    `now`: when the cell ended, by `time.perf_counter`.
    """
    good = [x for x in asked if x.error is None]
    gaps = [1000 * (b - a) for x in good for a, b in itertools.pairwise(x.pieces)]
    tokens = sum(x.counted if x.ended and x.counted else len(x.pieces) for x in good)
    groups = {
        "first": good,
        "shared": [x for x in good if x.shared],
        "own": [x for x in good if not x.shared],
    }
    return {
        "callers": callers,
        "requests": len(asked),
        "errors": len(asked) - len(good),
        "error": next((x.error for x in asked if x.error), None),
        "ended": sum(x.ended for x in good),
        "without_first": sum(not x.pieces for x in good),
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 1),
        "gap_ms": quantiles(gaps or [0.0]),
        **{
            name: {f"p{q}": quantile([x.waited(now) for x in some], q) for q in (50, 95)}
            for name, some in groups.items()
        },
    }  # fmt: skip


async def drained(port: int, model: str) -> bool:
    """Wait until the server answers a short question, so that nothing of a cell that was cut off still runs; False if it does not."""
    asked = Asked(False, time.perf_counter())
    with contextlib.suppress(OSError, ValueError, TimeoutError):
        await asyncio.wait_for(ask(port, model, Prompt("Say yes.", False), asked), DRAIN_S)
        return True
    return False


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

    def cpu_s(self) -> float:
        """Processor seconds so far of all its threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def commands(
    model: Path, folder: Path, options: argparse.Namespace
) -> list[tuple[dict[str, str], Callable[[int], list[str]]]]:
    """Each server: its names with their model ids, and how it is started on a port."""
    python, me = sys.executable, [sys.executable, "-m", "bench.smollm2_serving"]
    made = stack(folder, prepared(model, folder, options.format))
    own = [python, "-m", "demeanor", "serve", str(made), "--api-key", KEY]
    serve = lambda port: [*own, "--port", str(port)]  # noqa: E731
    found = [({"demeanor, weights": "bench:base", "demeanor, whole stack": "bench"}, serve)]
    gguf = gguf_file(model, options.gguf or folder, options.quant)
    if importlib.util.find_spec("xllamacpp"):
        llama = lambda unified: lambda port: [*me, "--llama", str(port), str(gguf), unified]  # noqa: E731
        found += [({"llama.cpp": "any"}, llama("0")), ({"llama.cpp, one cache": "any"}, llama("1"))]
    if options.llama_server:
        sizes = ["-np", str(SLOTS), "-c", str(SLOTS * 1536), "-t", str(options.threads), "-fa", "on"]
        native = [str(options.llama_server), "-m", str(gguf), *sizes, "--port"]
        found.append(({"llama.cpp native": "any"}, lambda port: [*native, str(port)]))
    transformers = Path(python).parent / "transformers"
    if transformers.exists():
        plain = [str(transformers), "serve", "--host", "127.0.0.1", "--log-level", "error"]
        plain += ["--dtype", "bfloat16", "--continuous-batching", "--port"]
        found.append(({"transformers serve": str(model)}, lambda port: [*plain, str(port), str(model)]))
    known = [who for ids, _ in found for who in ids]
    if unknown := set(options.only or ()) - set(SERVERS):
        raise SystemExit(f"--only {', '.join(sorted(unknown))}: no such server; known: {', '.join(SERVERS)}")
    for who in (who for who in options.only or () if who not in known):
        print(f"bench: {who} is left out: {SERVERS[who]}")
    chosen = [({k: v for k, v in ids.items() if k in (options.only or known)}, how) for ids, how in found]
    return [(ids, how) for ids, how in chosen if ids]


def shown(found: list[list[Any]]) -> str:
    """The median over rounds of a percentile in milliseconds; a lower bound in any round makes it one."""
    return (
        "" if all(exact for _, exact in found) else "> "
    ) + f"{statistics.median(x for x, _ in found):,.0f}"


def show(rows: list[dict[str, Any]], whos: list[str], title: str) -> None:
    """Print a line for each server and number of callers."""
    table = Table(title=title, title_justify="left", box=None)
    heads = (
        "callers",
        "",
        "tokens/s",
        "ours is",
        "first p50 ms",
        "p95",
        "shared p50",
        "own p50",
        "gap p50 ms",
        "a processor s",
        "errors",
    )
    for head in heads:
        table.add_column(head, justify="left" if not head else "right")
    for callers in CALLERS:
        mine = [x["tokens_per_s"] for x in rows if x["who"] == whos[0] and x["callers"] == callers]
        most = max(sum(x["who"] == who and x["callers"] == callers for x in rows) for who in whos)
        for who in whos:
            some = [x for x in rows if x["who"] == who and x["callers"] == callers]
            if not some:
                continue
            speeds = [x["tokens_per_s"] for x in some]
            ratio = ""
            if who != whos[0] and len(speeds) == len(mine) and all(speeds) and all(mine):
                ratio = "{:.1f} [{:.1f}, {:.1f}]".format(*interval([a / b for a, b in zip(mine, speeds)]))
            of = "" if len(some) == most else f" ({len(some)} of {most} rounds)"
            table.add_row(
                str(callers),
                who + of,
                f"{statistics.median(speeds):,.0f}",
                ratio,
                shown([x["first"]["p50"] for x in some]),
                shown([x["first"]["p95"] for x in some]),
                shown([x["shared"]["p50"] for x in some]),
                shown([x["own"]["p50"] for x in some]),
                f"{statistics.median(x['gap_ms']['p50'] for x in some):,.0f}",
                f"{statistics.median(x['tokens_per_cpu_s'] for x in some):,.1f}",
                f"{sum(x['errors'] for x in some)} of {sum(x['requests'] for x in some)}",
            )
    Console(width=170).print(table)


def started(
    ids: dict[str, str],
    command: Callable[[int], list[str]],
    part: Callable[[int, int], str],
    threads: int,
    closing: contextlib.ExitStack,
) -> list[Server]:
    """Start a server and ask it once; it under each of its model ids, or nothing if it does not start or answer."""
    port, (first, *others) = free_port(), ids
    try:
        server = Server(first, command(port), ids[first], port, threads)
        closing.callback(server.close)
        asyncio.run(ask(port, server.id, next(prompts(part, 0)), Asked(False, time.perf_counter())))
    except (SystemExit, OSError, ValueError) as error:
        if isinstance(error, SystemExit) and error.code == STOPPED:
            raise
        print(f"bench: {first} is left out: {error}")
        return []
    return [server, *(same_process(server, who, ids[who]) for who in others)]


def cell(
    server: Server,
    callers: int,
    round_: int,
    part: Callable[[int, int], str],
    seconds: float,
    alone: Callable[[], AbstractContextManager[Any]],
) -> dict[str, Any]:
    """Ask one server with so many callers; all servers get the same prompts, the second id of a process others."""
    source = prompts(part, 1000 * round_ + 10 * callers + (server.who == "demeanor, whole stack"))
    before = server.cpu_s()
    with alone():
        found = asyncio.run(storm(server.port, server.id, callers, source, seconds))
    used = server.cpu_s() - before
    return {
        "who": server.who,
        **found,
        "cpu_s": round(used, 2),
        "tokens_per_cpu_s": round(found["tokens"] / max(used, 0.01), 1),
        "drained": asyncio.run(drained(server.port, server.id)),
        "load": round(os.getloadavg()[0], 1),
    }


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
    parser.add_argument(
        "--seconds",
        type=float,
        nargs="+",
        default=[SECONDS],
        help="of each cell: one number, or one for each of --callers",
    )
    parser.add_argument(
        "--once",
        nargs="+",
        default=[],
        help=f"servers that are asked by more than {ONCE_ABOVE} callers in the first round only",
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", nargs="+", help="these servers")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "smollm2-serving.json")
    options = parser.parse_args()
    if options.llama:
        llama_server(int(options.llama[0]), Path(options.llama[1]), options.llama[2] == "1")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # the servers are ended on the way out
    model = found_model(options.model)
    if model is None:
        print("bench.smollm2_serving: SmolLM2-135M-Instruct is not here; left out (--model FOLDER)")
        return 0
    part, rows = texts(model), []
    if len(options.seconds) not in (1, len(options.callers)):
        parser.error(
            f"--seconds: wanted one number, or {len(options.callers)} as --callers has, got {len(options.seconds)}"
        )
    times = options.seconds if len(options.seconds) > 1 else options.seconds * len(options.callers)
    seconds = dict(zip(options.callers, times, strict=True))
    memory: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        wanted = commands(model, Path(scratch), options)
        for round_, (ids, command) in itertools.product(range(options.rounds), wanted):
            with contextlib.ExitStack() as closing:
                servers = started(ids, command, part, options.threads, closing)
                for callers, server in itertools.product(options.callers, servers):
                    if round_ and server.who in options.once and callers > ONCE_ABOVE:
                        continue
                    found = cell(server, callers, round_, part, seconds[callers], alone)
                    rows.append({"round": round_, **found})
                    print(rows[-1], file=sys.stderr, flush=True)
                    memory |= {s.who: s.memory_mb() for s in servers}
                    about = {
                        "rounds": options.rounds,
                        "threads": options.threads,
                        "seconds": seconds,
                        "slots": SLOTS,
                        "memory_mb": memory,
                    }
                    save(options.out, {"rows": rows, **about, "load": os.getloadavg(), **origin()})
    if not rows:
        print("bench: no server was started; nothing is measured")
        return 1
    whos = [who for ids, _ in wanted for who in ids if who in memory]
    show(
        rows,
        whos,
        f"{SHARED} + {OWN} tokens, {NEW} new, {options.rounds} rounds of {', '.join(f'{x:.0f}' for x in options.seconds)} s, {options.threads} threads",
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

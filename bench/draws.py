"""What drawing costs beside greedy decoding: tokens a second by decoding settings, 1, 8 and 32 answers at once.

    python -m bench.draws FOLDER [--rounds 3]

The settings take turns in one process. Prompts have 32 random tokens, answers 64. Processor milliseconds a token are told too: other work on the
machine changes them less. Writes results/draws.json.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

from demeanor.core import hardware

hardware.prepare(None)

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from demeanor.core.files import origin, write_json  # noqa: E402
from demeanor.core.types import Decoding  # noqa: E402
from demeanor.engine.local import LocalEngine, Request  # noqa: E402
from demeanor.model import checkpoints  # noqa: E402
from demeanor.text import tokenizer  # noqa: E402

LENGTH, NEW, AT_ONCE = 32, 64, (1, 8, 32)
SETTINGS = {
    "greedy": Decoding(temperature=0, max_tokens=NEW),
    "temperature 1": Decoding(temperature=1, max_tokens=NEW),
    "temperature 0.7, top_p 0.9": Decoding(temperature=0.7, top_p=0.9, max_tokens=NEW),
    "temperature 1, top_p 0.9": Decoding(temperature=1, top_p=0.9, max_tokens=NEW),
    "temperature 1, top_k 50": Decoding(temperature=1, top_k=50, max_tokens=NEW),
    "temperature 1, min_p 0.05": Decoding(temperature=1, min_p=0.05, max_tokens=NEW),
    "greedy, frequency_penalty 0.5": Decoding(temperature=0, frequency_penalty=0.5, max_tokens=NEW),
    "greedy, top_logprobs 5": Decoding(temperature=0, top_logprobs=5, max_tokens=NEW),
}


def measured(engine: LocalEngine, decoding: Decoding, count: int, draw: random.Random) -> tuple[float, float]:
    """Tokens a second, and processor milliseconds a token."""
    prompts = [tuple(draw.randrange(500, 40_000) for _ in range(LENGTH)) for _ in range(count)]
    began, used = time.perf_counter(), time.process_time()
    engine.generate([Request(prompt, decoding, frozenset()) for prompt in prompts])
    took, used = time.perf_counter() - began, time.process_time() - used
    return NEW * count / took, 1000 * used / (NEW * count)


def main() -> int:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(prog="python -m bench.draws", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/draws.json"))
    given = parser.parse_args()
    engine = LocalEngine(checkpoints.serving(given.folder), tokenizer.load(given.folder))
    draw = random.Random(0)
    measured(engine, SETTINGS["greedy"], 2, draw)
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(given.rounds):
        for count in AT_ONCE:
            for name, decoding in SETTINGS.items():
                found.setdefault((name, count), []).append(measured(engine, decoding, count, draw))
    rows: list[dict[str, Any]] = [
        {
            "decoding": name,
            "at_once": count,
            "tokens_per_s": [a for a, _ in x],
            "cpu_ms_a_token": [b for _, b in x],
        }
        for (name, count), x in found.items()
    ]
    write_json(given.out, {**origin(), "folder": str(given.folder), "rows": rows}, indent=1)
    table = Table(title="tokens a second (processor ms a token)", title_justify="left", box=None)
    for head in ("", *(f"{count} at once" for count in AT_ONCE)):
        table.add_column(head, justify="left" if not head else "right")
    for name in SETTINGS:
        cells = ([median(x) for x in zip(*found[name, count])] for count in AT_ONCE)
        table.add_row(name, *(f"{speed:,.0f} ({cost:.2f})" for speed, cost in cells))
    Console(width=120).print(table)
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

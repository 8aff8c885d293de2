"""`python -m bench.online`: seconds and memory of an online step (GRPO, RLOO, PPO-ptx) against TRL and plain torch.

Four prompts of 128 tokens, eight completions of 128 tokens each, one random Llama of 8.7M weights, one trivial
reward, no early end. Contenders take turns, each in its own process; a number is the median over steps with
its range, and the ratios are those of rounds, with a 95% interval. Part of `make bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.__main__ import ROOT, Contender, interval
from bench.online_worker import (
    BATCHING,
    DEFAULTS,
    GROUP,
    HALF,
    KINDS,
    NEW,
    OURS,
    OURS_HALF,
    PLAIN,
    PLAIN_HALF,
    PROMPT,
    PROMPTS,
    TUNED,
)
from bench.parts import save
from demeanor.core.files import origin

WHO = {
    "grpo": (OURS, OURS_HALF, TUNED, HALF, DEFAULTS, BATCHING),
    "rloo": (OURS, OURS_HALF, TUNED, HALF, DEFAULTS),
    "ppo-ptx": (OURS, OURS_HALF, PLAIN, PLAIN_HALF),
}
PARTS = ("total", "generate", "score", "train")


SAME = {HALF: OURS_HALF, PLAIN_HALF: OURS_HALF}
"""Who is compared with our step in bf16; everybody else with ours in fp32."""


def race(kind: str, whos: tuple[str, ...], rounds: int, threads: int) -> dict[str, list[dict[str, Any]]]:
    """Passes of every contender, in turn; the first of each is a warm-up and is left out."""
    contenders = [Contender([kind, who], who, threads, module="bench.online_worker") for who in whos]
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in whos}
    for turn in range(rounds + 1):
        for contender in contenders:
            done = contender.go()
            if turn:
                found[contender.who].append(done)
    for contender in contenders:
        contender.close()
    return found


def line(kind: str, who: str, passes: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table: medians over steps, memory, and how many times longer than ours a pass took."""
    steps = [step for done in passes for step in done["steps"]]
    seconds = [sum(step["total"] for step in done["steps"]) for done in passes]
    mine = [sum(step["total"] for step in done["steps"]) for done in ours]
    return {
        "kind": kind,
        "who": who,
        "steps": len(steps),
        **{part: round(statistics.median(s[part] for s in steps), 3) for part in PARTS},
        "range": [round(f(s["total"] for s in steps), 3) for f in (min, max)],
        "times": [round(x, 3) for x in interval([b / a for a, b in zip(mine, seconds)])],
        "peak_mb": round(max(done["peak_mb"] for done in passes)),
        "loaded_mb": round(passes[0]["loaded_mb"]),
    }


def show(lines: list[dict[str, Any]], title: str) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left", box=None)
    for name in ("step", "who", "seconds", "range", "generate", "score", "train", "times ours", "peak MB"):
        table.add_column(name, justify="left" if name in ("step", "who") else "right")
    for x in lines:
        times = "" if x["who"] in (OURS, OURS_HALF) else "{:.1f} [{:.1f}, {:.1f}]".format(*x["times"])
        numbers = [f"{x[part]:.2f}" for part in PARTS]
        low, high = x["range"]
        table.add_row(
            x["kind"], x["who"], numbers[0], f"{low:.2f}-{high:.2f}", *numbers[1:], times, f"{x['peak_mb']:,}"
        )
    Console(width=140).print(table)


def main() -> int:
    """Run the chosen objectives, print after each, write results/bench-online.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.online", description=__doc__)
    parser.add_argument("--only", choices=KINDS, help="one objective")
    parser.add_argument(
        "--tuned", action="store_true", help="without TRL as shipped and its continuous batching"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed passes (of 2 steps) of each contender")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    out = ROOT / "results" / "bench-online.json"
    lines: list[dict[str, Any]] = []
    if options.only and out.exists():  # the other objectives' lines stay
        lines = [x for x in json.loads(out.read_text())["lines"] if x["kind"] != options.only]
    for kind in KINDS:
        if options.only in (None, kind):
            whos = tuple(w for w in WHO[kind] if not (options.tuned and w in (DEFAULTS, BATCHING)))
            found = race(kind, whos, options.rounds, options.threads)
            lines += [line(kind, who, x, found[SAME.get(who, OURS)]) for who, x in found.items()]
            about = {"group": GROUP, "prompts": PROMPTS, "prompt_tokens": PROMPT, "new_tokens": NEW}
            about |= {"threads": options.threads, "rounds": options.rounds, "load": os.getloadavg()}
            save(out, {"lines": lines, **origin(), **about})
            show(
                lines, f"{PROMPTS} x {GROUP} completions, {PROMPT} + {NEW} tokens, {options.threads} threads"
            )
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

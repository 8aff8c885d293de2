"""`make bench`: training against TRL, decoding against transformers; tables, and JSON under results/.

Contenders take turns on one machine, each in its own process with its model loaded, over the same rows. A row
of the table is seconds per row (pair, prompt) and how many times faster, with a 95% interval over rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy import stats

from bench.parts import save
from bench.work import Work, model_config, small, works
from demeanor.core.files import origin

ROOT = Path(__file__).resolve().parents[1]
OURS, TUNED, FREE, DEFAULTS = "demeanor", "trl tuned", "trl padding-free", "trl defaults"


class Contender:
    """A worker process; `go` makes one pass. `ready` is what it said when it had loaded."""

    def __init__(self, asked: list[str], who: str, threads: int, module: str = "bench.worker") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        self._log = Path(f"/tmp/demeanor-bench-{who.replace(' ', '-')}.log").open("w")  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *asked],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
        )
        self.who = who
        self.ready = self._read()

    def go(self, asked: str = "go") -> dict[str, Any]:
        """Send a line and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(asked + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                return dict(json.loads(line[1:]))
        raise SystemExit(
            f"bench: {self.who} stopped (exit code {self._process.wait()}); its messages: {self._log.name}"
        )

    def close(self) -> None:
        self._process.communicate("stop\n")
        self._log.close()


def _asked(work: Work, who: str, dtype: str, device: str) -> list[str]:
    return [work.name, who, dtype, device, *([] if work.model is None else [str(work.model)])]


def first_losses(work: Work, device: str, threads: int) -> list[list[float]]:
    """The first losses in fp32, ours and tuned TRL's, with the same rows, weights and optimizer."""
    losses: list[list[float]] = []
    for who in (OURS, TUNED):
        contender = Contender(_asked(work, who, "fp32", device), who, threads)
        losses.append(contender.go()["losses"])
        contender.close()
    assert len(losses[0]) == len(losses[1]) == small(work).steps, losses
    return losses


def race(
    work: Work, whos: list[str], rounds: int, device: str, threads: int
) -> dict[str, list[dict[str, Any]]]:
    """Passes of every contender, in turn; the first of each is a warm-up, and TRL as shipped runs one timed
    round."""
    contenders = [Contender(_asked(work, who, "bf16", device), who, threads) for who in whos]
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in whos}
    for turn in range(rounds + 1):
        for contender in contenders:
            if turn < 2 or contender.who != DEFAULTS:
                found[contender.who].append(contender.go())
    for contender in contenders:
        contender.close()
    return found


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean of the ratios of rounds and its 95% t-interval."""
    logs = [math.log(r) for r in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / len(logs) ** 0.5
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def useful_flops(work: Work, device: str) -> float:
    """FLOPs of a pass: 6 per weight and token, 12 per width and attended pair, the head only where it is
    read."""
    import torch

    from demeanor.data.trees import Branch, Tree, collate
    from demeanor.model.adapters import attach
    from demeanor.model.llama import Config, Llama
    from demeanor.model.reward_model import RewardModel
    from demeanor.stack.schema import Adapter
    from demeanor.training.progress import training_flops

    config = model_config(work.vocabulary, device=device) if work.model is None else Config.load(work.model)
    with torch.device("meta"):
        trunk = Llama(config)
        if work.lora:
            attach(trunk, Adapter(rank=work.lora), 0)
        model = RewardModel(trunk) if work.kind == "reward" else trunk
    count = training_flops(model, head=work.kind != "reward")
    trees = [
        Tree(tuple(p), tuple(Branch(tuple(c), (True,) * len(c)) for c in cs), tuple(range(len(cs))))
        for p, cs in work.make()
    ]
    return sum(count(collate([t], read_last=work.kind == "reward")) for t in trees)


def fill(work: Work) -> tuple[float, float]:
    """Prompt tokens per completion token, and the share of a padded batch that is not padding."""
    rows = work.make()
    prompt, completion = (sum(map(len, x)) for x in ([p for p, _ in rows], [c for _, cs in rows for c in cs]))
    lengths = [max(len(p) + len(c) for c in cs) for p, cs in rows]
    padded = sum(
        max(lengths[i : i + work.batch]) * len(rows[i][1]) * work.batch
        for i in range(0, len(rows), work.batch)
    )
    real = sum(len(p) + len(c) for p, cs in rows for c in cs)
    return prompt / completion * len(rows[0][1]), real / padded


def measure(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """One line of the table."""
    whos = [OURS, TUNED, *([DEFAULTS] if options.defaults else [])]
    if work.kind == "sft" and work.model is not None:  # TRL's other losses have no padding-free batches
        whos.insert(2, FREE)
    found = race(work, whos, options.rounds, options.device, options.threads)
    seconds = {who: [sum(p["seconds"]) for p in passes[1:]] for who, passes in found.items()}
    rows, needed = work.batch * work.steps, useful_flops(work, options.device)
    pairs = rows * (6 if "K=4" in work.name else 1)
    ratio, fullness = fill(work)
    line: dict[str, Any] = {
        "work": work.name,
        "rows": rows,
        "pairs": pairs,
        "prompt_per_completion": round(ratio, 2),
        "fill": round(fullness, 2),
        "flops": needed,
        "peak_flops": options.peak,
        "of_peak": interval([needed / s / options.peak for s in seconds[OURS]]),
        "seconds": {who: [round(s, 4) for s in x] for who, x in seconds.items()},
        "memory_mb": {who: round(max(p["memory_mb"] for p in passes)) for who, passes in found.items()},
        "faster": {
            who: [round(x, 3) for x in interval([b / a for a, b in zip(seconds[OURS], seconds[who])])]
            for who in whos[1:]
        },
        "median": {
            who: round(statistics.median(b / a for a, b in zip(seconds[OURS], seconds[who])), 3)
            for who in whos[1:]
        },
        "cpu_seconds": {who: [round(p["cpu_s"], 3) for p in passes[1:]] for who, passes in found.items()},
        "loss_gap_bf16": {
            who: max(
                abs(a - b) for a, b in zip(found[OURS][0]["losses"], found[who][0]["losses"], strict=True)
            )
            for who in whos[1:]
        },
    }
    if options.device == "cpu" and not (work.model and work.lora):  # adapters begin with other random numbers
        try:
            losses = line["losses_fp32"] = first_losses(work, options.device, options.threads)
            line["loss_gap_fp32"] = max(abs(a - b) for a, b in zip(*losses))
        except SystemExit as error:  # the times above stay
            line["loss_gap_error"] = str(error)
            print(error, file=sys.stderr)
    return line


def show(lines: list[dict[str, Any]], options: argparse.Namespace) -> None:
    title = f"bf16, {options.threads} threads, {options.device}, {options.rounds} rounds in turn"
    table = Table(title=title, title_justify="left", box=None)
    names = [
        "work",
        "p:c",
        "fill",
        "ours rows/s",
        "of peak",
        "times tuned TRL",
        "padding-free",
        "as shipped",
        "MB ours",
        "MB tuned",
        "loss gap",
    ]
    for name in names:
        table.add_column(name, justify="left" if name == "work" else "right")
    for x in lines:
        best = min(x["seconds"][OURS])
        faster = {
            who: f"{m:.1f}" if math.isnan(lo) else f"{m:.1f} [{lo:.1f}, {hi:.1f}]"
            for who, (m, lo, hi) in x["faster"].items()
        }
        memory = [str(x["memory_mb"][who]) for who in (OURS, TUNED)]
        table.add_row(
            x["work"],
            str(x["prompt_per_completion"]),
            f"{x['fill']:.0%}",
            f"{x['rows'] / best:.1f}",
            f"{x['flops'] / best / x['peak_flops']:.0%}",
            *(faster.get(who, "-") for who in (TUNED, FREE, DEFAULTS)),
            *memory,
            f"{x['loss_gap_fp32']:.0e}" if "loss_gap_fp32" in x else "-",
        )
    Console(width=160).print(table)


def main() -> int:
    """Run the chosen lines, print after each, write results/bench-training.json."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--only", default="", help="only work whose name contains this")
    parser.add_argument("--without", nargs="+", default=[], help="no work whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=3, help="timed passes of each contender")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--no-defaults", dest="defaults", action="store_false", help="leave out TRL as shipped"
    )
    parser.add_argument("--model", type=Path, help="folder of real weights (SmolLM2): real texts, MB in all")
    parser.add_argument("--add", action="store_true", help="keep the other lines of the results file")
    options = parser.parse_args()
    import torch

    from demeanor.training.progress import measured_peak

    torch.set_num_threads(options.threads)
    options.peak = measured_peak(options.device, torch.bfloat16)
    chosen = [w for w in works(options.device, options.model) if options.only in w.name]
    chosen = [w for w in chosen if not any(x in w.name for x in options.without)]
    if not (ROOT.parent / "shared" / "data").is_dir():
        print("bench: ../shared is absent: rows of real lengths are left out")
        chosen = [w for w in chosen if not w.real]
    lines: list[dict[str, Any]] = []
    out = ROOT / "results" / f"bench-training-{'real' if options.model else options.device}.json"
    if options.add and out.exists():
        names = {work.name for work in chosen}
        lines = [line for line in json.loads(out.read_text())["lines"] if line["work"] not in names]
    for i, work in enumerate(chosen):
        started = time.time()
        lines.append({**measure(work, options), "load": os.getloadavg(), **origin()})
        print(f"[{i + 1}/{len(chosen)}] {work.name}: {time.time() - started:.0f} s", file=sys.stderr)
        save(out, {"lines": lines, "load": os.getloadavg(), "threads": options.threads, **origin()})
    show(lines, options)
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

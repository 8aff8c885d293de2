"""The scorecard of `make bench`: what is wanted of a real model, what was measured with its interval, and whether it holds.

    python -m bench.scorecard [RESULTS]     # from the JSON files of the parts, whatever their age

In: the files that the parts wrote. Out: one line for each goal. A ratio is ours over the best peer's, of one run. "Met" needs the worse end
of the 95% interval; if only the estimate reaches the goal it is "met, interval includes less". What no file has is "not measured".
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.__main__ import FREE, OURS, TUNED, interval
from bench.smollm2_speed import OWN
from demeanor.core.table import Table

OURS_HERE, WHOLE, PLAIN = "demeanor", "llama.cpp, fp32 cache", "llama.cpp as it comes (fp16 cache)"
"""Readers of bench.gguf_answers, named here because it imports torch."""
SPEED, SPEED_WIDE = "speed, int8 and 4-bit", "speed, bf16 and fp32"
FILES = {
    SPEED: "smollm2-speed.json",
    SPEED_WIDE: "smollm2-speed-wide.json",
    "long contexts": "long-contexts.json",
    "training, real weights": "bench-training-real.json",
    "SmolLM2 serving": "smollm2-serving.json",
    "perplexity": "smollm2-perplexity.json",
    "GGUF answers": "gguf-answers.json",
}
"""The parts that the scorecard reads, and the file of each."""
MET, WIDE, MISSED, ABSENT = "met", "met, interval includes less", "missed", "not measured"
READ, SHARE, MEMORY, PERPLEXITY, LOSSES, PEAK = 1.2, 0.7, 1.1, 1.01, 1e-4, 0.5
NARROW, WIDE_KINDS = ("int8", "4-bit"), ("bf16", "fp32")
DECODE = {"decode 1": 1.2, "decode 8": 1.7, "decode 32": 2.0}
TRAINED = {
    "sft, oasst, all weights": 3.0,
    "sft, oasst, adapters": 3.0,
    "dpo, hh-rlhf, all weights": 3.0,
    "dpo, hh-rlhf, adapters": 4.0,
}
FIRST_LOSSES = ("sft, oasst", "dpo, hh-rlhf", "kto, hh-rlhf", "reward, hh-rlhf")
CALLERS = (1, 8, 32, 64)
SERVERS = ("llama.cpp native", "transformers serve")
Found = Mapping[str, Any]


class Line(NamedTuple):
    """A goal: what was wanted, what was measured (estimate and interval, None where there is none), the verdict and why."""

    what: str
    wanted: str
    measured: str
    verdict: str
    why: str = ""
    numbers: tuple[float | None, ...] = ()


def verdict(numbers: tuple[float | None, ...], wanted: float, *, most: bool = False) -> str:
    """Met if the worse end of the interval reaches the goal (at least `wanted`; at most, if `most`)."""
    good: Callable[[float], bool] = (lambda x: x <= wanted) if most else (lambda x: x >= wanted)
    estimate, *ends = numbers
    if estimate is None or not good(estimate):
        return MISSED
    worse = ends[1 if most else 0] if len(ends) == 2 else estimate
    if worse is None:
        return f"{MET}, one round: no interval"
    return MET if good(worse) else WIDE


def said(numbers: tuple[float | None, ...], form: str = "{:.2f}") -> str:
    """A number with its interval."""
    estimate, *ends = numbers
    text = "-" if estimate is None else form.format(estimate)
    known = [x for x in ends if x is not None]
    return f"{text} [{', '.join(form.format(x) for x in known)}]" if len(known) == 2 else text


def absent(what: str, wanted: str, why: str) -> Line:
    """A goal that nothing was measured for."""
    return Line(what, wanted, "-", ABSENT, why)


def speed(found: Found, why: str, kinds: tuple[str, ...]) -> Iterator[Line]:
    """Reading and decoding against the best peer in the same format, and the share of the product peak."""
    rows = {(x["format"], x["scenario"]): x for x in found.get("lines", ())}
    goals = [(kind, f"read {n}", READ) for kind in kinds for n in ("128", "1,024", "4,096")]  # fmt: skip
    goals += [(kind, name, least) for kind in kinds if kind in NARROW for name, least in DECODE.items()]
    for kind, name, least in goals:
        what, wanted = f"{name}, {kind}: times the best peer", f">= {least}"
        row = rows.get((kind, name), {})
        if not row.get("times"):
            yield absent(what, wanted, "no peer was here" if row else why)
            continue
        best = min(row["times"], key=lambda who: float(row["times"][who][0]))
        numbers, mine = tuple(row["times"][best]), next(iter(row["tokens_per_s"].values()))
        peer = statistics.median(row["tokens_per_s"][best])
        yield Line(
            what,
            wanted,
            said(numbers),
            verdict(numbers, least),
            f"{statistics.median(mine):,.0f} tokens/s; {best} {peer:,.0f}; {len(mine)} rounds",
            numbers,
        )
    for kind in kinds:
        what, wanted = f"read 1,024, {kind}: share of the product peak", f">= {SHARE:.0%}"
        row = rows.get((kind, "read 1,024"), {})
        if "of_peak" not in row:
            yield absent(what, wanted, why)
            continue
        numbers = tuple(row["of_peak"])
        peak = statistics.median(x["peak"] for x in row["gflops"])
        only = said(tuple(row["of_peak_products_only"]), "{:.0%}")
        yield Line(
            what,
            wanted,
            said(numbers, "{:.0%}"),
            verdict(numbers, SHARE),
            f"without attention {only}; peak {peak:,.0f} GFLOP/s",
            numbers,
        )


def memory(found: Found, why: str) -> Iterator[Line]:
    """Weights and cache of one conversation beside llama.cpp's, at the length where the ratio is worst."""
    rows, what, wanted = found.get("rows", {}), "memory of weights and cache / llama.cpp's", f"<= {MEMORY}"
    usual = found.get("default", "fp32")
    if "llama.cpp" not in rows or usual not in rows:
        yield absent(what, wanted, "llama.cpp was not measured" if rows else why)
        return
    for format in [usual, *(x for x in rows if x not in (usual, "llama.cpp"))]:
        theirs = {x["tokens"]: x["resident_mb"] for x in rows["llama.cpp"]}
        ratios = {
            x["tokens"]: x["resident_mb"] / theirs[x["tokens"]]
            for x in rows[format]
            if theirs.get(x["tokens"])
        }
        worst = max(ratios, key=lambda n: ratios[n])
        name = f"{what}, keys in {format}{' (the default)' if format == usual else ''}"
        each = ", ".join(f"{n:,}: {ratio:.2f}" for n, ratio in ratios.items())
        yield Line(
            name,
            wanted,
            f"{ratios[worst]:.2f}",
            verdict((ratios[worst],), MEMORY, most=True),
            f"by tokens {each}; one measurement",
            (ratios[worst],),
        )


def answers(found: Found, why: str) -> Iterator[Line]:
    """Greedy answers in fp32 beside transformers'."""
    what, wanted = "greedy answers equal to transformers in fp32", "all"
    row = found.get("answers", {}).get(OWN)
    if row is None:
        yield absent(what, wanted, why or "the answers were not reached")
        return
    gaps = row["gaps_at_difference"]
    yield Line(
        what,
        wanted,
        f"{row['equal']} of {row['prompts']}",
        MET if row["equal"] == row["prompts"] else MISSED,
        f"gaps of the two best logits where they differ: {', '.join(f'{x:.5f}' for x in gaps)}"
        if gaps
        else "",
        (row["equal"] / row["prompts"],),
    )


def perplexity(found: Found, why: str) -> Iterator[Line]:
    """Perplexity of rounded weights over that of llama.cpp's file of the same size."""
    rows = {x["format"]: x for x in found.get("lines", ())}
    for name in ("q8_0", "int8", "q4_0"):
        what, wanted = f"perplexity, {name} / llama.cpp's file of its size", f"<= {PERPLEXITY}"
        row = rows.get(name, {})
        if "to_peer" not in row:
            yield absent(what, wanted, "llama.cpp was not measured" if row else why)
            continue
        numbers = tuple(row["to_peer"])
        why_ = f"{row['perplexity']:.2f}; {row['peer']}; {found.get('chunks')} chunks"
        yield Line(
            what, wanted, said(numbers, "{:.3f}"), verdict(numbers, PERPLEXITY, most=True), why_, numbers
        )


def training(found: Found, why: str) -> Iterator[Line]:
    """Steps against TRL (the faster of tuned and padding-free), memory, share of the peak, first losses in fp32."""
    rows = {x["work"]: x for x in found.get("lines", ())}
    for name, least in TRAINED.items():
        what, row = f"step, {name}", rows.get(name)
        if row is None:
            yield from (
                absent(f"{what}: {x}", wanted, why)
                for x, wanted in (("times TRL", f">= {least}"), ("memory / TRL's", "< 1"))
            )
            continue
        best = min((x for x in (TUNED, FREE) if x in row["faster"]), key=lambda x: float(row["faster"][x][0]))
        numbers = tuple(row["faster"][best])
        rounds = len(row["seconds"][OURS])
        yield Line(
            f"{what}: times TRL",
            f">= {least}",
            said(numbers),
            verdict(numbers, least),
            f"{best}; {rounds} rounds",
            numbers,
        )
        ratio = row["memory_mb"][OURS] / min(row["memory_mb"][x] for x in (TUNED, FREE) if x in row["faster"])
        yield Line(
            f"{what}: memory / TRL's",
            "< 1",
            f"{ratio:.2f}",
            MET if ratio < 1 else MISSED,
            f"{row['memory_mb'][OURS]:,} MB",
            (ratio,),
        )
        share = tuple(row["of_peak"])
        yield Line(
            f"{what}: share of the bf16 peak",
            f">= {PEAK:.0%}",
            said(share, "{:.0%}"),
            verdict(share, PEAK),
            f"{row['peak_flops'] / 1e9:,.0f} GFLOP/s",
            share,
        )
    for name in FIRST_LOSSES:
        what, wanted = (
            f"first losses in fp32, {name}: gap to TRL's",
            f"<= {LOSSES:.0e}",
        )
        row = rows.get(f"{name}, all weights", {})
        gap = row.get("loss_gap_fp32")
        if gap is None:
            yield absent(what, wanted, row.get("loss_gap_error") or why)
        else:
            yield Line(
                what,
                wanted,
                f"{gap:.0e}",
                verdict((gap,), LOSSES, most=True),
                _pairs(row["losses_fp32"]),
                (gap,),
            )


def _pairs(losses: list[list[float]]) -> str:
    """Losses of both sides, step by step."""
    return "steps " + "; ".join(f"{a:.6f}, {b:.6f}" for a, b in zip(*losses, strict=True))


def _by_round(rows: list[dict[str, Any]], who: str, callers: int) -> dict[int, dict[str, Any]]:
    """A server's cells with so many callers, by round."""
    return {x["round"]: x for x in rows if x["who"] == who and x["callers"] == callers}


def _against(ours: list[float], theirs: list[float]) -> tuple[float | None, ...]:
    """The interval of the ratios of rounds; infinite where the other gave nothing at all, without ends where there is one round."""
    if not all(theirs):
        return (math.inf,)
    if not all(ours):
        return (0.0,)
    found = interval([a / b for a, b in zip(ours, theirs, strict=True)])
    return tuple(x if math.isfinite(x) else None for x in found)


def _seconds(found: Found, callers: int) -> str:
    """How long a cell with so many callers was."""
    given = found.get("seconds")
    return f"{given[str(callers)] if isinstance(given, Mapping) else given:.0f}"


def serving(found: Found, why: str) -> Iterator[Line]:
    """First token and tokens a second beside each server, with 1 to 64 callers."""
    rows, us = list(found.get("rows", ())), "demeanor, weights"
    peers = [x for x in (*SERVERS, "llama.cpp") if any(row["who"] == x for row in rows)]
    peers = [x for x in peers if x != "llama.cpp" or SERVERS[0] not in peers] or list(SERVERS)
    for callers in CALLERS:
        for who in peers:
            ours, theirs = _by_round(rows, us, callers), _by_round(rows, who, callers)
            both = sorted(set(ours) & set(theirs))
            what = f"serve, {callers} callers: {{}} against {who}"
            if not both:
                yield from (absent(what.format(x), "> 1", why) for x in ("tokens/s", "first token"))
                continue
            a, b = [ours[r] for r in both], [theirs[r] for r in both]
            speeds = _against([x["tokens_per_s"] for x in a], [x["tokens_per_s"] for x in b])
            rounds = f"{len(both)} round{'s' if len(both) > 1 else ''} of {_seconds(found, callers)} s"
            told = (f"{statistics.median(x['tokens_per_s'] for x in s):,.0f}" for s in (a, b))
            yield Line(
                what.format("tokens/s"), "> 1", said(speeds, "{:.1f}"), verdict(speeds, 1.0), f"{' and '.join(told)} tokens/s; {rounds}", speeds
            )  # fmt: skip
            waits = [[x["first"]["p50"] for x in s] for s in (a, b)]
            bound = ["> " if not all(exact for _, exact in s) else "" for s in waits]
            first = _against([ms for ms, _ in waits[1]], [ms for ms, _ in waits[0]])
            told = (f"{sign}{statistics.median(ms for ms, _ in s):,.0f}" for sign, s in zip(bound, waits))
            good = verdict(first, 1.0) if not bound[0] else ABSENT
            yield Line(
                what.format("first token (median)"), "> 1", said(first, "{:.1f}"), good, f"{' and '.join(told)} ms; {rounds}", first
            )  # fmt: skip


def gguf(found: Found, why: str) -> Iterator[Line]:
    """Greedy answers of a GGUF file here and in llama.cpp, beside llama.cpp under another cache format."""
    files = found.get("files", {})
    for name in ("F32.gguf", "F16.gguf", "Q8_0.gguf", "Q4_0.gguf"):
        what = f"greedy tokens of {name} equal to llama.cpp's"
        pairs = {tuple(x["pair"]): x for x in files.get(name, {}).get("pairs", ())}
        if (OURS_HERE, WHOLE) not in pairs:
            yield absent(what, "all", why)
            continue
        row, itself = pairs[OURS_HERE, WHOLE], pairs[PLAIN, WHOLE]
        share = row["same"] / row["positions"]
        far = f"; where not, the two best are at most {max(row['gaps']):.3f} apart" if row["gaps"] else ""
        yield Line(
            what,
            "all",
            f"{row['same']:,} of {row['positions']:,} ({share:.1%})",
            MET if row["same"] == row["positions"] else MISSED,
            f"llama.cpp with itself (other cache) {itself['same'] / itself['positions']:.1%}{far}",
            (share,),
        )


def scorecard(found: Mapping[str, Found], outcomes: Mapping[str, str]) -> list[Line]:
    """All lines, from the parts' results by part; `outcomes` says what became of a part, for those without results."""

    def part(name: str, lines: Callable[[Found, str], Iterator[Line]]) -> list[Line]:
        outcome = outcomes.get(name, "its part was not run")
        if outcome == "done" and name in found:
            outcome = "not among what this run measured"
        return list(lines(found.get(name, {}), f"{name}: {outcome}"))

    return [
        *part(SPEED, partial(speed, kinds=NARROW)),
        *part(SPEED_WIDE, partial(speed, kinds=WIDE_KINDS)),
        *part("long contexts", memory),
        *part(SPEED_WIDE, answers),
        *part("perplexity", perplexity),
        *part("training, real weights", training),
        *part("SmolLM2 serving", serving),
        absent("make demo from a clean clone, with and without fast bf16", "<= 10 minutes", "no part of make bench: `make demo` says its time"),
        *part("GGUF answers", gguf),
    ]  # fmt: skip


def results(folder: Path, *, since: float = 0.0) -> dict[str, Found]:
    """What the parts wrote at or after a time (seconds since 1970), by part."""
    found = {}
    for name, file in FILES.items():
        path = folder / file
        if path.is_file() and path.stat().st_mtime >= since:
            found[name] = json.loads(path.read_text())
    return found


def show(lines: list[Line]) -> None:
    """Print the table, and how many goals of each verdict."""
    rows = tuple((x.what, x.wanted, x.measured, x.verdict, x.why) for x in lines)
    print(f"\n{Table(('goal', 'wanted', 'measured [95%]', 'verdict', 'why'), rows)}")
    counts = {v: sum(x.verdict == v for x in lines) for v in dict.fromkeys(x.verdict for x in lines)}
    print(", ".join(f"{v}: {n}" for v, n in counts.items()))


def as_json(lines: list[Line]) -> list[dict[str, Any]]:
    """The lines for results/bench.json."""
    return [line._asdict() for line in lines]


def main() -> int:
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return 0 if len(sys.argv) == 2 else 2
    show(scorecard(results(Path(sys.argv[1] if len(sys.argv) > 1 else "results")), {}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

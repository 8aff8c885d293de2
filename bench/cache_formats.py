"""Keys and values in fp32, bf16 and fp16: milliseconds a token over long contexts, and what rounding costs.

    python -m bench.cache_formats FOLDER [--seconds 20] [--texts 6]     # a Hugging Face folder, or that of a quantise stage

Formats take turns call by call in one process, with one and with all threads, so other work on the machine meets all alike. A time is
the least of many (and their median): one row at a position, over keys that were not read but drawn. Losses are those of TOKENS tokens of each
text of ../shared/data/gutenberg against fp32. Prints two tables and writes results/cache-formats.json.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

from demeanor.core import hardware

THREADS = hardware.prepare(None)

import torch  # noqa: E402

from demeanor.core.files import origin, write_json  # noqa: E402
from demeanor.core.table import Table  # noqa: E402
from demeanor.model import checkpoints, native  # noqa: E402
from demeanor.model.llama import Llama  # noqa: E402
from demeanor.model.pages import CacheFormat, PagedCache  # noqa: E402
from demeanor.text import tokenizer  # noqa: E402

FORMATS: tuple[CacheFormat, ...] = ("fp32", "bf16", "fp16")
POSITIONS, TOKENS, CHUNK = (100, 1000, 4000, 8000), 1024, 128
TEXTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "gutenberg"


def times(model: Llama, seconds: float) -> list[dict[str, Any]]:
    """Milliseconds of one decoded token, by format, threads and position."""
    longest = min(max(POSITIONS) + 1, model.config.max_position_embeddings)
    held, found = {}, defaultdict(list)
    for format in FORMATS:
        cache = PagedCache(model.config, 1, longest, format=format)
        cache.data.normal_(0, 0.3)
        held[format] = native.Native(model, cache)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for position in (p for p in POSITIONS if p < longest):
            for threads in sorted({1, THREADS}):
                for format, decoder in held.items():
                    start = time.perf_counter()
                    decoder.forward([5], [0], [position], [0], threads=threads)
                    found[position, threads, format].append(1000 * (time.perf_counter() - start))
    return [
        {"position": p, "threads": t, "format": f, "least_ms": min(ms), "median_ms": median(ms), "n": len(ms)}
        for (p, t, f), ms in found.items()
    ]


def losses(model: Llama, folder: Path, count: int) -> list[dict[str, Any]]:
    """Nats a token, the divergence from fp32's distribution, and the share of best tokens that change."""
    spoken, rows = tokenizer.load(folder), defaultdict(list)
    held = {f: native.Native(model, PagedCache(model.config, 1, TOKENS, format=f)) for f in FORMATS}
    for path in sorted(TEXTS.glob("*.txt"))[:count]:
        text = path.read_text("utf-8", errors="ignore")
        tokens = spoken.encode(text[len(text) // 2 :][: 8 * TOKENS])[:TOKENS]
        exact = None
        for format, decoder in held.items():
            parts = []
            for a in range(0, len(tokens), CHUNK):
                chunk = tokens[a : a + CHUNK]
                n = len(chunk)
                parts.append(decoder.forward(chunk, [0] * n, range(a, a + n), range(n)).logits_RV)
            z = torch.cat(parts).log_softmax(-1)
            exact = z if exact is None else exact
            nats = -z[:-1].gather(1, torch.tensor(tokens[1:])[:, None]).mean().item()
            divergence = (exact.exp() * (exact - z)).sum(-1).mean().item()
            flips = (exact.argmax(-1) != z.argmax(-1)).float().mean().item()
            rows[format].append((nats, divergence, flips))
    return [
        {"format": f, "nats": fmean(a), "kl": fmean(b), "other_best": fmean(c), "texts": len(a)}
        for f, (a, b, c) in ((f, tuple(zip(*r))) for f, r in rows.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=20, help="time for the first table")
    parser.add_argument("--texts", type=int, default=6, help="texts of the second table; 0: leave it out")
    parser.add_argument("--out", type=Path, default=Path("results/cache-formats.json"))
    options = parser.parse_args()
    model = checkpoints.serving(options.folder)
    if not isinstance(model, Llama) or native.build() is None or not native.fits(model):
        parser.error(f"{options.folder}: compiled code does not run it here")
    with torch.inference_mode():
        speed = times(model, options.seconds)
        loss = losses(model, options.folder, options.texts) if TEXTS.is_dir() else []
    header = ("keys before", "threads", *(f"{f}: least ms (median)" for f in FORMATS))
    lines = []
    for position, threads in dict.fromkeys((x["position"], x["threads"]) for x in speed):
        line = [x for x in speed if (x["position"], x["threads"]) == (position, threads)]
        cells = (f"{x['least_ms']:.2f} ({x['median_ms']:.2f})" for x in line)
        lines.append((f"{position:,}", str(threads), *cells))
    print(Table(header, tuple(lines)))
    columns = ("cache", "nats a token", "divergence from fp32, nats", "other best token")
    print(
        Table(
            columns,
            tuple(
                (x["format"], f"{x['nats']:.5f}", f"{x['kl']:.1e}", f"{x['other_best']:.2%}") for x in loss
            ),
        )
    )
    write_json(options.out, {"times": speed, "losses": loss, "load": os.getloadavg(), **origin()})


if __name__ == "__main__":
    main()

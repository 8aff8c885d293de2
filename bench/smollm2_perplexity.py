"""`python -m bench.smollm2_perplexity`: what rounding SmolLM2's weights costs, against llama.cpp's files of the same size.

Every engine gives the log-probability of every token of the same chunks of real text. A row of the table is a number
format: bytes of its weights, perplexity, and the ratio to our fp32 and to llama.cpp's file of the same size, each with a
95% interval over chunks (paired: of the difference of mean losses). Runs in the peers' venv (bench/requirements.txt).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.__main__ import ROOT
from bench.llama_logits import LlamaFile
from bench.parts import save
from bench.smollm2_speed import found_model
from demeanor.core.files import origin
from demeanor.training.heldout import clustered

FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    "int8": ("int8", {}),
    "q8_0": ("q8_0", {}),
    "q4_0": ("q4_0", {}),
    "q4_1": ("q4_1", {}),
    "q4_0, head too": ("q4_0", {"head": "q4_0"}),
    "q4_0, fp32 activations": ("q4_0", {"activations": "fp32"}),
}
"""Names of rows, and the settings of a `quantise` stage."""
PEER = {
    "fp32": "F16",
    "int8": "Q8_0",
    "q8_0": "Q8_0",
    "q4_0": "Q4_0",
    "q4_1": "Q4_0",
    "q4_0, head too": "Q4_0",
    "q4_0, fp32 activations": "Q4_0",
}


def texts(folder: Path) -> Iterator[str]:
    """Stories, instructions with answers, and books, in turn: what a chat model reads."""
    stories = json.loads((folder / "tinystories" / "tinystories_1000.json").read_text())
    rows = json.loads((folder / "rasbt" / "instruction-data.json").read_text())
    books = [path.read_text(errors="replace") for path in sorted((folder / "gutenberg").glob("*.txt"))]
    for i in range(10_000):
        story = stories[i % len(stories)]
        yield story if isinstance(story, str) else str(story.get("story") or story.get("text"))
        yield "\n".join(str(x) for row in rows[8 * i : 8 * i + 8] for x in row.values() if x)
        book = books[i % len(books)]
        start = 20_000 + 3000 * (i // len(books))
        yield book[start : start + 3000]


def chunks(model: Path, folder: Path, count: int, length: int) -> list[list[int]]:
    """The first `length` tokens of texts that have so many."""
    from demeanor.text import tokenizer

    vocabulary, found = tokenizer.load(model), []
    for text in texts(folder):
        tokens = list(vocabulary.encode(text))
        if len(tokens) >= length:
            found.append(tokens[:length])
        if len(found) == count:
            return found
    raise SystemExit("bench.smollm2_perplexity: too little text")


def losses_of(logits_TV: Tensor, tokens: list[int]) -> float:
    """Nats of all tokens but the first."""
    targets = torch.tensor(tokens[1:])
    return float(torch.nn.functional.cross_entropy(logits_TV[:-1].float(), targets, reduction="sum"))


def usual(name: str) -> Any:
    """The format in which a row's weights keep keys and values unless a stack says otherwise."""
    return "fp32" if "fp32" in name else "bf16"


def ours(folder: Path, rows: list[list[int]], cache: Any = "fp32") -> tuple[list[float], int]:
    """Loss of each chunk and bytes of the weights, as the engine computes them."""
    from demeanor.model import checkpoints, native
    from demeanor.model.llama import Llama
    from demeanor.model.pages import PagedCache

    model = checkpoints.serving(folder)
    assert isinstance(model, Llama)
    found, held = [], None
    for tokens in rows:
        n = len(tokens)
        held = held or native.Native(model, PagedCache(model.config, 1, n, format=cache))
        found.append(losses_of(held.forward(tokens, [0] * n, range(n), range(n)).logits_RV, tokens))
    assert held is not None
    return found, held.num_bytes


def theirs(path: Path, rows: list[list[int]], threads: int) -> tuple[list[float], int]:
    """The same of llama.cpp with a GGUF file."""
    file = LlamaFile(path)
    reader = file.reader(len(rows[0]), threads)
    return [losses_of(reader.read(tokens), tokens) for tokens in rows], file.num_bytes


def ratio(a: list[float], b: list[float], tokens: int) -> list[float]:
    """Perplexity of a over that of b: the estimate, and a 95% interval over chunks."""
    difference = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)
    counts = torch.full_like(difference, tokens)
    low, high = clustered(difference, counts)
    return [math.exp(x) for x in (float(difference.sum() / counts.sum()), low, high)]


def prepared(model: Path, out: Path, format: str, settings: dict[str, str]) -> Path:
    """The folder that a `quantise` stage would write."""
    from demeanor.model import quantize

    if format == "int8":
        quantize.write(model, out, "int8")
    else:
        chosen = {"head": "q8_0", "activations": "int8", **settings}
        quantize.write_groups(model, out, format, **chosen)  # type: ignore[arg-type]
    return out


def rows_of(
    found: dict[str, tuple[list[float], int]], peers: dict[str, tuple[list[float], int]], tokens: int
) -> list[dict[str, Any]]:
    """The table's rows, of what was measured so far."""
    lines: list[dict[str, Any]] = []
    for name, (losses, size) in [*found.items(), *((f"llama.cpp {k}", v) for k, v in peers.items())]:
        row: dict[str, Any] = {"format": name, "bytes": size}
        row["perplexity"] = math.exp(sum(losses) / tokens / len(losses))
        row["to_fp32"] = ratio(losses, found["fp32"][0], tokens)
        if name in found and PEER[name] in peers:
            row["peer"], row["to_peer"] = PEER[name], ratio(losses, peers[PEER[name]][0], tokens)
        lines.append(row)
    return lines


def show(lines: list[dict[str, Any]], title: str) -> None:
    """Print a row for each format."""
    table = Table(title=title, box=None)
    for head in ("format", "MB", "perplexity", "/ our fp32", "/ llama.cpp"):
        table.add_column(head, justify="left" if head == "format" else "right")
    for row in lines:
        peer = "{:.4f} [{:.4f}, {:.4f}] {}".format(*row["to_peer"], row["peer"]) if "peer" in row else ""
        table.add_row(
            row["format"],
            f"{row['bytes'] / 1e6:,.1f}",
            f"{row['perplexity']:.3f}",
            "{:.4f} [{:.4f}, {:.4f}]".format(*row["to_fp32"]),
            peer,
        )
    Console(width=150).print(table)


def main() -> int:
    """Measure format after format beside llama.cpp's file of its size; write results/smollm2-perplexity.json after each."""
    parser = argparse.ArgumentParser(prog="python -m bench.smollm2_perplexity", description=__doc__)
    parser.add_argument(
        "--model", type=Path, help="SmolLM2-135M-Instruct, a folder; $SMOLLM2 or runs/smollm2 if not given"
    )
    parser.add_argument("--gguf", type=Path, help="folder of F16.gguf, Q8_0.gguf, Q4_0.gguf")
    parser.add_argument("--texts", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--chunks", type=int, default=36)
    parser.add_argument("--length", type=int, default=192, help="tokens of a chunk")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument(
        "--made", type=Path, help="keep our folders here, and use those that are here already"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "smollm2-perplexity.json")
    options = parser.parse_args()
    model = found_model(options.model)
    if model is None or not options.texts.is_dir():
        print("bench.smollm2_perplexity: SmolLM2-135M-Instruct or the texts are not here; left out")
        return 0
    torch.set_num_threads(options.threads)
    rows = chunks(model, options.texts, options.chunks, options.length)
    tokens = options.length - 1
    found: dict[str, tuple[list[float], int]] = {}
    peers: dict[str, tuple[list[float], int]] = {}
    with contextlib.ExitStack() as stack:
        made = options.made or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in dict.fromkeys(("fp32", *options.formats)):
            print(f"{name}: {len(rows)} chunks", file=sys.stderr, flush=True)
            folder = model
            if name != "fp32":
                format, settings = FORMATS[name]
                folder = made / "-".join([format, *settings.values()])
                if not (folder / "config.json").is_file():
                    folder = prepared(model, folder, format, settings)
            found[name] = ours(folder, rows, usual(name))
            peer, path = PEER[name], (options.gguf or Path()) / f"{PEER[name]}.gguf"
            here = importlib.util.find_spec("llama_cpp") is not None and path.is_file()
            if here and peer not in peers:
                peers[peer] = theirs(path, rows, options.threads)
            elif peer not in peers:
                print(
                    f"bench: llama.cpp {peer} is left out: the package llama-cpp-python or {path} is not here"
                )
            lines = rows_of(found, peers, tokens)
            every = {k: v[0] for k, v in {**found, **peers}.items()}
            about = {"chunks": options.chunks, "length": options.length, "losses": every}
            save(options.out, {"lines": lines, **about, **origin()})
    show(lines, f"{len(rows)} chunks of {options.length} tokens: perplexity and ratios [95%]")
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

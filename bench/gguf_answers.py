"""Greedy answers of a GGUF file here and in llama.cpp: where they differ, and whether rounding explains it.

    python -m bench.gguf_answers FILE.gguf... [--prompts 32] [--new 48]     # in bench/.venv

We answer real instructions greedily from the file's own blocks. Then everybody reads the same prompts and answers, and the logits at
each token of an answer are compared, so an answer is equal in two columns exactly if no best token differs. `exact`: the fp32 matrices
that the blocks stand for, and fp32 rows. llama.cpp reads whole prompts unless it says otherwise; it is compared with itself too, since
reading token by token takes other products of its own. A pair's row: positions with the same best token, the difference of logits (root
of the mean square over the vocabulary, the mean of a row taken out), and of the positions that differ the gap between the two best tokens
in `exact`. Writes results/gguf-answers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demeanor.core import hardware

if __name__ == "__main__":
    hardware.prepare(None)

import torch
from torch import Tensor

from bench.llama_logits import LlamaFile
from bench.parts import machine
from demeanor.core.files import origin, write_json
from demeanor.core.intervals import wilson
from demeanor.core.table import Table
from demeanor.core.types import Decoding
from demeanor.engine.local import LocalEngine, Request
from demeanor.model import checkpoints, native
from demeanor.model.llama import Llama
from demeanor.model.pages import PagedCache
from demeanor.text import tokenizer
from demeanor.training import gguf_folder

QUESTIONS = Path(__file__).resolve().parents[2] / "shared" / "data" / "rasbt" / "instruction-data.json"
ROOM = 512  # tokens of a prompt and its answer
OURS, EXACT = "demeanor", "exact"
WHOLE, SINGLE, LONE, PLAIN = (
    "llama.cpp, fp32 cache",
    "llama.cpp, fp32 cache, token by token",
    "llama.cpp, fp32 cache, 1 thread",
    "llama.cpp as it comes (fp16 cache)",
)
PAIRS = (
    (OURS, WHOLE),
    (OURS, SINGLE),
    (OURS, PLAIN),
    (SINGLE, WHOLE),
    (PLAIN, WHOLE),
    (LONE, WHOLE),
    (OURS, EXACT),
    (WHOLE, EXACT),
    (PLAIN, EXACT),
)
Read = Callable[[list[int]], Tensor]


@dataclass
class Pair:
    """What two contenders say at the same positions."""

    positions: int = 0
    same: int = 0
    answers: int = 0
    equal: int = 0
    square: float = 0.0
    gaps: list[float] = field(default_factory=list)

    def add(self, a_TV: Tensor, b_TV: Tensor, exact_TV: Tensor) -> None:
        """Count the positions of one answer."""
        best_a, best_b = a_TV.argmax(-1), b_TV.argmax(-1)
        other = (best_a != best_b).nonzero()[:, 0]
        self.positions, self.same = self.positions + len(best_a), self.same + len(best_a) - len(other)
        self.answers, self.equal = self.answers + 1, self.equal + (len(other) == 0)
        difference = a_TV - b_TV
        difference -= difference.mean(-1, keepdim=True)
        self.square += float(difference.square().mean(-1).sum())
        x, y = exact_TV[other, best_a[other]], exact_TV[other, best_b[other]]
        self.gaps += (x - y).abs().tolist()

    @property
    def rms(self) -> float:
        """Root of the mean square of the differences of logits."""
        return float((self.square / max(self.positions, 1)) ** 0.5)


def ours(folder: Path, *, keep_groups: bool) -> Read:
    """Logits of our compiled forward, in the file's own blocks or in the fp32 that they stand for."""
    model = checkpoints.load(folder, keep_groups=keep_groups)
    held = native.Native(model, PagedCache(model.config, 1, ROOM))

    def read(tokens: list[int]) -> Tensor:
        n = len(tokens)
        return held.forward(tokens, [0] * n, range(n), range(n)).logits_RV

    return read


def answered(folder: Path, questions: Path, count: int, new: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and our greedy answers as tokens, by the engine."""
    spoken, model = tokenizer.load(folder), checkpoints.serving(folder)
    assert isinstance(model, Llama)
    engine = LocalEngine(model, spoken, max_context=ROOM)
    start, end = (spoken.special[x] for x in ("<|im_start|>", "<|im_end|>"))
    rows = json.loads(questions.read_text("utf-8"))[:count]
    said = [f"{row['instruction']} {row['input']}" for row in rows]
    prompts = [
        [
            start,
            *spoken.encode(f"user\n{text}"),
            end,
            *spoken.encode("\n"),
            start,
            *spoken.encode("assistant\n"),
        ]
        for text in said
    ]
    decoding = Decoding(temperature=0, max_tokens=new)
    pieces = engine.generate([Request(tuple(x), decoding, frozenset({end})) for x in prompts])
    engine.close()
    return [(prompt, [p.token for p in row if p.token >= 0]) for prompt, row in zip(prompts, pieces)]


def contenders(path: Path, folder: Path, threads: int) -> dict[str, Read]:
    """Everybody who reads, by name."""
    file = LlamaFile(path)
    wide, lone = file.reader(ROOM, threads, wide=True), file.reader(ROOM, 1, wide=True)
    return {
        OURS: ours(folder, keep_groups=True),
        EXACT: ours(folder, keep_groups=False),
        WHOLE: wide.read,
        SINGLE: lambda tokens: wide.read(tokens, 1),
        LONE: lone.read,
        PLAIN: file.reader(ROOM, threads).read,
    }


def compared(
    path: Path, questions: Path, count: int, new: int, threads: int
) -> tuple[dict[tuple[str, str], Pair], float]:
    """A row for every pair, and the median gap of `exact` between its best two tokens."""
    found, near = {pair: Pair() for pair in PAIRS}, list[Tensor]()
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        folder = Path(place) / "model"
        gguf_folder.write(path.resolve(), folder)
        readers = contenders(path, folder, threads)
        for prompt, answer in answered(folder, questions, count, new):
            rows = {
                who: read([*prompt, *answer])[len(prompt) - 1 : -1].clone() for who, read in readers.items()
            }
            assert rows[OURS].argmax(-1).tolist() == answer, "an engine's tokens are the best of its logits"
            near.append(-rows[EXACT].topk(2).values.diff(dim=-1)[:, 0])
            for (a, b), pair in found.items():
                pair.add(rows[a], rows[b], rows[EXACT])
    return found, float(torch.cat(near).median())


def lines(found: Mapping[tuple[str, str], Pair]) -> tuple[tuple[str, ...], ...]:
    """The table's rows."""

    def line(names: tuple[str, str], pair: Pair) -> tuple[str, ...]:
        low, high = wilson(pair.same, pair.positions)
        gaps = sorted(pair.gaps)
        return (
            " and ".join(names),
            f"{pair.same:,} of {pair.positions:,}",
            f"{pair.same / pair.positions:.2%} [{low:.2%}, {high:.2%}]",
            f"{pair.equal} of {pair.answers}",
            f"{pair.rms:.4f}",
            f"{gaps[len(gaps) // 2]:.3f}, {gaps[-1]:.3f}" if gaps else "",
        )

    return tuple(line(names, pair) for names, pair in found.items())


HEAD = (
    "",
    "same best token",
    "share",
    "equal answers",
    "difference",
    "gap where they differ: median, greatest",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="GGUF files of a model that reads ChatML")
    parser.add_argument(
        "--questions", type=Path, default=QUESTIONS, help="JSON rows with instruction and input"
    )
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new", type=int, default=48, help="tokens of an answer, at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/gguf-answers.json"))
    options = parser.parse_args()
    if not options.questions.is_file():
        print(
            f"bench.gguf_answers: {options.questions} is not here; left out (--questions names another file)"
        )
        return 0
    torch.set_num_threads(options.threads)
    written: dict[str, Any] = {}
    for path in options.files:
        found, median = compared(path, options.questions, options.prompts, options.new, options.threads)
        print(f"{path.name}: the best token is {median:.2f} above the second at the median position")
        print(Table(HEAD, lines(found)))
        written[path.name] = {
            "median_gap": median,
            "pairs": [{"pair": names, **vars(pair), "rms": pair.rms} for names, pair in found.items()],
        }
        about = {"prompts": options.prompts, "new": options.new, "threads": options.threads}
        write_json(
            options.out,
            {"files": written, **about, "load": os.getloadavg(), "machine": machine(), **origin()},
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The work that is timed: rows as token ids, at fixed and at real lengths, and the model they go through.

A row is a prompt and its completions, best first, each ended by EOS. Nothing here knows who does the work.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
EOS, FIRST = 1, 3
SMALL, GPT2, REAL_VOCABULARY = 32000, 50257, 49152
"""Vocabularies: 32k for rows of fixed length, GPT-2's for rows of real length, SmolLM2's with real weights."""

Row = tuple[list[int], list[list[int]]]


@dataclass(frozen=True)
class Work:
    """One line of the table: `steps` optimiser steps of `batch` rows each."""

    name: str
    kind: str  # sft | reward | dpo | kto
    rows: Callable[[int], list[Row]]
    vocabulary: int = SMALL
    batch: int = 16
    steps: int = 2
    real: bool = False
    lora: int = 0  # rank of adapters on all linear maps; 0: all weights are trained
    model: Path | None = None  # folder of real weights; None: random weights of `model_config`

    def make(self) -> list[Row]:
        return self.rows(self.batch * self.steps)


def fixed(
    prompt: int, completion: int, completions: int = 1, vocabulary: int = SMALL
) -> Callable[[int], list[Row]]:
    """Rows of one length; every branch ends in EOS."""

    def rows(count: int) -> list[Row]:
        rng = random.Random(0)
        draw = lambda n: [rng.randrange(FIRST, vocabulary) for _ in range(n)]  # noqa: E731
        return [
            (draw(prompt), [[*draw(completion - 1), EOS] for _ in range(completions)]) for _ in range(count)
        ]

    return rows


@cache
def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@cache
def _gpt2() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = SHARED / "gpt2-tokenizer"
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _ids(text: str, most: int, model: Path | None = None) -> list[int]:
    tokenizer = _gpt2() if model is None else _tokenizer(model)
    return [max(FIRST, i) for i in tokenizer.encode(text).ids][:most] or [FIRST]


def real(
    texts: Callable[[], Iterator[tuple[str, list[str]]]], most: int, model: Path | None = None
) -> Callable[[int], list[Row]]:
    """Rows of real texts as GPT-2 tokens (or a model's), drawn with a fixed seed; each part is cut at `most` / 2 tokens."""

    def rows(count: int) -> list[Row]:
        found = list(texts())
        random.Random(0).shuffle(found)
        found = (found * (1 + count // len(found)))[:count]
        return [
            (_ids(p, most // 2, model), [[*_ids(c, most // 2 - 1, model), EOS] for c in cs])
            for p, cs in found
        ]

    return rows


def rasbt() -> Iterator[tuple[str, list[str]]]:
    for row in json.loads((SHARED / "rasbt" / "instruction-data-with-preference.json").read_text()):
        yield f"{row['instruction']}\n{row['input']}\n", [row["chosen"], row["rejected"]]


def hh() -> Iterator[tuple[str, list[str]]]:
    with gzip.open(SHARED / "hh-rlhf" / "harmless-base-1500.jsonl.gz", "rt") as file:
        for line in file:
            row = json.loads(line)
            cut = row["chosen"].rindex("\n\nAssistant:") + 12
            if row["chosen"][:cut] == row["rejected"][:cut]:
                yield row["chosen"][:cut], [row["chosen"][cut:], row["rejected"][cut:]]


def oasst() -> Iterator[tuple[str, list[str]]]:
    for line in (SHARED / "oasst" / "en_100_tree.jsonl").read_text().splitlines():
        root = json.loads(line)["prompt"]
        replies = sorted(
            root.get("replies", []), key=lambda r: r.get("rank") if r.get("rank") is not None else 99
        )
        if replies:
            yield root["text"], [r["text"] for r in replies]


def alternating() -> Iterator[tuple[str, list[str]]]:
    """One completion of each pair of `hh`, the chosen and the rejected one in turn: rows for labels."""
    for i, (prompt, pair) in enumerate(hh()):
        yield prompt, [pair[i % 2]]


def desirable(row: Row) -> bool:
    """The label of a row for KTO, as good as drawn."""
    return len(row[0]) % 2 == 0


def mismatched(rows: list[Row], batch: int) -> list[list[int]]:
    """A completion to another prompt for each row: that of the row before it in its batch, as TRL takes it."""
    return [rows[i - 1 if i % batch else min(i + batch, len(rows)) - 1][1][0] for i in range(len(rows))]


def firsts(
    texts: Callable[[], Iterator[tuple[str, list[str]]]], count: int
) -> Callable[[], Iterator[tuple[str, list[str]]]]:
    """Only the best `count` completions of each prompt, prompts with fewer left out."""
    return lambda: ((p, cs[:count]) for p, cs in texts() if len(cs) >= count)


WORKS = [
    Work("sft, oasst lengths to 512", "sft", real(firsts(oasst, 1), 512), GPT2, real=True),
    Work("sft, rasbt lengths to 128", "sft", real(firsts(rasbt, 1), 128), GPT2, batch=64, real=True),
    Work("sft, 256 + 256", "sft", fixed(256, 256)),
    Work("sft, 64 + 64", "sft", fixed(64, 64), batch=64),
    Work("reward, hh-rlhf pairs", "reward", real(hh, 512), GPT2, real=True),
    Work("reward, pairs 128 + 64", "reward", fixed(128, 64, 2)),
    Work("reward, K=4, 128 + 64", "reward", fixed(128, 64, 4), batch=8),
    Work("dpo, hh-rlhf pairs", "dpo", real(hh, 512), GPT2, real=True),
    Work("dpo, rasbt pairs", "dpo", real(rasbt, 256), GPT2, real=True),
    Work("dpo, p:c = 1 (128 + 128)", "dpo", fixed(128, 128, 2), batch=8),
    Work("dpo, p:c = 3 (192 + 64)", "dpo", fixed(192, 64, 2), batch=8),
    Work("dpo, p:c = 8 (512 + 64)", "dpo", fixed(512, 64, 2), batch=8),
]


WORKS_CUDA = [
    Work(
        "sft, hh-rlhf best answers to 1024",
        "sft",
        real(firsts(hh, 1), 1024),
        GPT2,
        batch=32,
        steps=5,
        real=True,
    ),
    Work("sft, 1024 + 1024", "sft", fixed(1024, 1024), batch=8, steps=5),
    Work("reward, hh-rlhf pairs", "reward", real(hh, 1024), GPT2, batch=32, steps=5, real=True),
    Work("reward, K=4, 1024 + 256", "reward", fixed(1024, 256, 4), batch=8, steps=5),
    Work("dpo, hh-rlhf pairs", "dpo", real(hh, 1024), GPT2, batch=32, steps=5, real=True),
    Work("dpo, p:c = 1 (768 + 768)", "dpo", fixed(768, 768, 2), batch=8, steps=5),
    Work("dpo, p:c = 3 (1536 + 512)", "dpo", fixed(1536, 512, 2), batch=8, steps=5),
    Work("dpo, p:c = 8 (2048 + 256)", "dpo", fixed(2048, 256, 2), batch=8, steps=5),
]


def works_of(model: Path) -> list[Work]:
    """What is timed with real weights: real texts of up to 1,024 tokens, all weights and adapters of rank 16."""
    found = []
    for name, kind, texts in (
        ("sft, oasst", "sft", firsts(oasst, 1)),
        ("sft, rasbt", "sft", firsts(rasbt, 1)),
        ("dpo, hh-rlhf", "dpo", hh),
        ("dpo, rasbt", "dpo", rasbt),
        ("kto, hh-rlhf", "kto", alternating),
        ("reward, hh-rlhf", "reward", hh),
    ):
        rows = real(texts, 1024, model)
        for lora, how in ((0, "all weights"), (16, "adapters")):
            found.append(Work(f"{name}, {how}", kind, rows, REAL_VOCABULARY, 4, 2, True, lora, model))
    return found


def works(device: str, model: Path | None = None) -> list[Work]:
    """What is timed on a device, or with a folder of real weights."""
    if model is not None:
        return works_of(model)
    return WORKS_CUDA if device == "cuda" else WORKS


def model_config(vocabulary: int, *, device: str) -> Any:
    """About 10 M parameters beside the tied embedding (CPU), or 0.5 B (CUDA); the same for everybody."""
    from demeanor.model.llama import Config

    if device == "cuda":
        return Config("llama", vocabulary, 1024, 2816, 24, 16, 16, 64, 4096, 1e-5, 10000.0, True)
    return Config("llama", vocabulary, 320, 864, 7, 5, 5, 64, 2048, 1e-5, 10000.0, True)


def small(work: Work) -> Work:
    """The work whose first losses are compared in fp32: five steps of 4 rows, with real weights three of rows cut to 48 tokens."""
    if work.model is None:
        return replace(work, batch=4, steps=5)

    def rows(count: int) -> list[Row]:
        found = work.rows(count)  # a prompt keeps its parity, which `desirable` reads
        return [(p[-24 + len(p) % 2 :], [[*c[:-1][:23], EOS] for c in cs]) for p, cs in found]

    return replace(work, rows=rows, batch=4, steps=3)


def grouped(rows: list[Row], batch: int) -> list[Row]:
    """The rows in batches of similar length, as `group_by_length` makes them, in a fixed random order."""
    size = lambda r: len(r[0]) + max(map(len, r[1]))  # noqa: E731
    ordered = sorted(rows, key=size)
    batches = [ordered[i : i + batch] for i in range(0, len(ordered), batch)]
    random.Random(0).shuffle(batches)
    return [row for b in batches for row in b]

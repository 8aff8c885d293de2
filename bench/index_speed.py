"""How fast a large index is built, brought up to date and asked: 100 files of 1,000 passages of 60 words.

    python -m bench.index_speed [TEXTS...]     # .txt files the passages are drawn from; default: ../shared/data/gutenberg

Prints a table and writes results/index-speed.json.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from demeanor.core.files import write_json
from demeanor.core.table import Table
from demeanor.retrieval.index import Ranking, build, open_folder
from demeanor.retrieval.words import ENGLISH

FILES, PASSAGES, WORDS, QUESTIONS = 100, 1000, 60, 50
TEXTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "gutenberg"
ASKED = (
    "What did the rabbit say to the queen about the tarts?",
    "How long is the whale of captain Ahab?",
    "Where does Tom Sawyer paint the fence?",
    "Why was the little girl sad when her toy broke?",
    "Who lives in the castle near the sea with the giants?",
)


def main() -> None:
    given = [Path(name) for name in sys.argv[1:]] or sorted(TEXTS.glob("*.txt"))
    words = " ".join(path.read_text("utf-8", errors="ignore") for path in given).split()
    if len(words) < 10_000:
        raise SystemExit(f"{TEXTS}: not there, or too few words; name .txt files with 10,000 words at least")
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "docs", Path(scratch) / "cache"
        folder.mkdir()
        for n in range(FILES):
            starts = (draw.randrange(len(words) - WORDS) for _ in range(PASSAGES))
            text = "\n".join(" ".join(words[at : at + WORDS]) for at in starts)
            (folder / f"{n}.txt").write_text(text, encoding="utf-8")
        start = time.perf_counter()
        counts = build(folder, cache)
        built = time.perf_counter() - start
        (folder / "0.txt").write_text((folder / "1.txt").read_text("utf-8") + "\nchanged", encoding="utf-8")
        start = time.perf_counter()
        build(folder, cache)
        updated = time.perf_counter() - start
        rows = [
            ("passages a second, built", f"{counts.passages / built:,.0f}"),
            ("s, one file of 100 changed", f"{updated:.2f}"),
        ]
        for name, ranking in (("stop words out", Ranking(ENGLISH)), ("all words", Ranking())):
            search, ms = open_folder(folder, cache, ranking), []
            for i in range(QUESTIONS):
                start = time.perf_counter()
                search(ASKED[i % len(ASKED)], 5)
                ms.append(1000 * (time.perf_counter() - start))
            rows.append(
                (f"ms a question, {name}: p50, p95", f"{median(ms):.1f}, {quantiles(ms, n=20)[-1]:.1f}")
            )
    print(Table((f"{counts.passages:,} passages", "one thread"), tuple(rows)))
    write_json(Path("results/index-speed.json"), dict(rows))


if __name__ == "__main__":
    main()

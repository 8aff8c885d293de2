"""Precision and recall of the detectors of personal data on a set in Presidio's format.

python -m bench.personal_data ../shared/data/presidio/synth_dataset_v2.json [--wrong]

A hit is right if it overlaps a labelled span of its kind; a labelled span is found if a hit overlaps it. Labels
are taken as they are. `--wrong` lists every hit without a label and every label without a hit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demeanor.core.long_text import Folded
from demeanor.core.personal_data import DETECTORS

LABELS = {
    "card": "CREDIT_CARD",
    "email": "EMAIL_ADDRESS",
    "iban": "IBAN_CODE",
    "ip": "IP_ADDRESS",
    "phone": "PHONE_NUMBER",
    "ssn": "US_SSN",
}


@dataclass(frozen=True)
class Counts:
    """Labelled spans, those found, hits, and those that are right; and what was wrong, in words."""

    labels: int
    found: int
    hits: int
    right: int
    wrong: tuple[str, ...]

    @property
    def precision(self) -> float:
        return self.right / self.hits if self.hits else 1.0

    @property
    def recall(self) -> float:
        return self.found / self.labels if self.labels else 1.0


def measure(rows: Sequence[dict[str, Any]], kind: str) -> Counts:
    """Count hits of one detector against the labels of all rows."""
    labels = found = hits = right = 0
    wrong: list[str] = []
    for row in rows:
        text, folded = row["full_text"], Folded(row["full_text"])
        spans = [folded.span(*span) for span in DETECTORS[kind].find(folded.text, 0)]
        wanted = [
            (s["start_position"], s["end_position"]) for s in row["spans"] if s["entity_type"] == LABELS[kind]
        ]
        missed = [w for w in wanted if not any(a < w[1] and w[0] < b for a, b in spans)]
        extra = [s for s in spans if not any(a < s[1] and s[0] < b for a, b in wanted)]
        labels, found = labels + len(wanted), found + len(wanted) - len(missed)
        hits, right = hits + len(spans), right + len(spans) - len(extra)
        wrong += [f"missed: {text[max(0, a - 30) : b + 15]!r}" for a, b in missed]
        wrong += [f"no label: {text[a:b]!r} in {text[max(0, a - 30) : b + 15]!r}" for a, b in extra]
    return Counts(labels, found, hits, right, tuple(wrong))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--wrong", action="store_true")
    asked = parser.parse_args()
    rows, console = json.loads(asked.file.read_text(encoding="utf-8")), Console(highlight=False)
    table = Table("detector", "labels", "found", "recall", "hits", "right", "precision", box=None)
    for kind in LABELS:
        c = measure(rows, kind)
        counts = (c.labels, c.found, f"{c.recall:.3f}", c.hits, c.right, f"{c.precision:.3f}")
        table.add_row(kind, *map(str, counts))
        for line in c.wrong if asked.wrong else ():
            console.print(f"{kind}: {line}", markup=False)
    console.print(table)


if __name__ == "__main__":
    main()

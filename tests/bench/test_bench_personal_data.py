"""The measurement of the detectors, on our own rows and on Presidio's where they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.personal_data import LABELS, measure
from demeanor.core.personal_data import DETECTORS

PRESIDIO = Path(__file__).parents[3] / "shared/data/presidio/synth_dataset_v2.json"


def test_found_and_right_are_counted_by_overlap() -> None:
    def row(text: str, *spans: tuple[int, int]) -> dict[str, object]:
        labels = [{"entity_type": "IP_ADDRESS", "start_position": a, "end_position": b} for a, b in spans]
        return {"full_text": text, "spans": labels}

    counts = measure([row("10.0.0.1 and 10.0.0.2", (0, 8)), row("none here", (0, 4))], "ip")
    assert (counts.labels, counts.found, counts.hits, counts.right) == (2, 1, 2, 1)
    assert (counts.recall, counts.precision, len(counts.wrong)) == (0.5, 0.5, 2)
    assert set(LABELS) == set(DETECTORS)


@pytest.mark.skipif(not PRESIDIO.is_file(), reason="../shared/data/presidio is not here")
def test_detectors_reach_what_the_docs_say_on_presidio() -> None:
    rows = json.loads(PRESIDIO.read_text(encoding="utf-8"))
    counts = {kind: measure(rows, kind) for kind in LABELS}
    assert {kind: c.labels for kind, c in counts.items()} == {
        "card": 136,
        "email": 49,
        "iban": 21,
        "ip": 14,
        "phone": 92,
        "ssn": 16,
    }
    least = {"card": 0.98, "email": 0.98, "iban": 0.98, "ip": 0.9, "phone": 0.9, "ssn": 0.9}
    assert [k for k, c in counts.items() if min(c.precision, c.recall) < least[k]] == []

"""The page of objectives, cut by objective: what a reader finds about one kind."""

from __future__ import annotations

from pathlib import Path

from demeanor.core import registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "objectives.md"
METRICS = {"examples": "Examples:", "preferences": "Comparisons:", "unpaired": "Labels:"}
"""How the paragraph of metrics that all objectives of one kind of rows log begins."""


def section(kind: str) -> str:
    """The section of one objective; fails where the page has none."""
    _, found, rest = PAGE.read_text().partition(f"\n### {kind}\n")
    assert found, f"docs/objectives.md has no section '### {kind}'"
    return rest.split("\n## ")[0].split("\n### ")[0]


def metrics(kind: str) -> str:
    """What the page says about the metrics of one objective: its section and the paragraph of its kind of rows."""
    begins = METRICS[registry.entry("demeanor.objectives", kind).ROWS]
    paragraphs = PAGE.read_text().split("\n## Metrics\n")[1].split("\n## ")[0].split("\n\n")
    (shared,) = [paragraph for paragraph in paragraphs if paragraph.strip().startswith(begins)]
    return shared + section(kind)

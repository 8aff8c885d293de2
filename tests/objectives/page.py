"""The pages of objectives, cut by objective: what a reader finds about one kind."""

from __future__ import annotations

from pathlib import Path

from demeanor.core import registry

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, ONLINE_PAGE = DOCS / "objectives.md", DOCS / "online-objectives.md"
METRICS = {
    "examples": "Examples:",
    "preferences": "Comparisons:",
    "unpaired": "Labels:",
    "prompts": "All objectives:",
}
"""How the paragraph of metrics that all objectives of one kind of rows log begins."""


def page(kind: str) -> Path:
    """The page of one objective: those on the policy's own completions have one of their own."""
    online = registry.entry("demeanor.objectives", kind).ONLINE is not None
    return ONLINE_PAGE if online else PAGE


def section(kind: str) -> str:
    """The section of one objective; fails where its page has none."""
    _, found, rest = page(kind).read_text().partition(f"\n### {kind}\n")
    assert found, f"{page(kind).name} has no section '### {kind}'"
    return rest.split("\n## ")[0].split("\n### ")[0]


def metrics(kind: str) -> str:
    """What the page says about the metrics of one objective: its section and the paragraph of its kind of rows."""
    begins = METRICS[registry.entry("demeanor.objectives", kind).ROWS]
    paragraphs = page(kind).read_text().split("\n## Metrics\n")[1].split("\n## ")[0].split("\n\n")
    (shared,) = [paragraph for paragraph in paragraphs if paragraph.strip().startswith(begins)]
    return shared + section(kind)

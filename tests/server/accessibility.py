"""axe-core over a page in the browser; skips where it is not installed (`make clients`, or npm install axe-core in bench/.node)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from browser import Browser

REPOSITORY = Path(__file__).resolve().parents[2]
AXE = Path(os.environ.get("DEMEANOR_AXE", REPOSITORY / "bench/.node/node_modules/axe-core/axe.min.js"))
needs_axe = pytest.mark.skipif(
    not AXE.is_file(), reason=f"needs axe-core at {AXE}: npm install --prefix bench/.node axe-core@4"
)
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def findings(browser: Browser, *impacts: str) -> list[str]:
    """What axe finds on the page as it is now, of these impacts (default: serious and critical)."""
    if not browser.run("typeof axe === 'object'"):
        browser.run(AXE.read_text() + ";0")
    found = browser.run(
        f"axe.run(document, {{ runOnly: {json.dumps(RULES)} }}).then((r) => r.violations.map((v) =>"
        " [v.impact, v.id, v.nodes.map((n) => n.html.slice(0, 160) + ' ' + (n.any[0]?.message ?? ''))]))"
    )
    wanted = impacts or ("serious", "critical")
    return [f"{impact} {rule}: {nodes}" for impact, rule, nodes in found if impact in wanted]

"""One self-contained HTML page of a result: no network, no script; everything that opens is a <details>.

In: a result (the JSON of results/<name>.json). Out: the page as text. A content security policy allows this page's own style
sheet, by its hash, and nothing else, and every string from a model or a file is escaped on its way in.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from demeanor.report import sections, trust, words
from demeanor.report.items import items
from demeanor.report.markup import Html, el, join
from demeanor.report.shape import Result
from demeanor.report.words import plural

Extra: TypeAlias = tuple[str, str, Html]
"""A further section: its anchor, its name in the navigation, its markup."""
Verdict: TypeAlias = tuple[str, str, str]
"""Tone (up, down, or none), what is said, and why."""
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"
STYLE = Path(__file__).parent / "page.css"
SECTIONS: tuple[tuple[str, str, Callable[[Result], Html | None]], ...] = (
    ("ladder", "Layers", sections.ladder),
    ("costs", "Costs", sections.costs),
    ("certainty", "Certainty", sections.certainty),
    ("without", "Leave one out", sections.without),
    ("beside", "Beside others", sections.beside),
    ("refusals", "Refusals", sections.refusals),
    ("confidence", "Confidence", trust.confidences),
    ("steadiness", "Rewordings", trust.steadiness),
    ("items", "Items", items),
    ("spending", "Time", sections.spending),
    ("training", "Training", sections.training),
    ("how", "Method", sections.how),
)


def page(result: Result, extras: Sequence[Extra] = (), verdict: Verdict | None = None) -> str:
    """The whole page; `extras` are further sections, put before the items, and `verdict` is what the gate says of the whole."""
    parts = [(anchor, name, part) for anchor, name, make in SECTIONS if (part := make(result))]
    place = next((n for n, (anchor, _, _) in enumerate(parts) if anchor == "items"), len(parts) - 1)
    parts[place:place] = extras
    return document(
        f"{result['name']}: what each layer did",
        join(_top(result), _banner(verdict)),
        parts,
        result["caveats"],
        f"Suite {result['suite_hash']}. Written by demeanor; this file needs no network and runs no script.",
    )


def document(title: str, top: Html, parts: Sequence[Extra], warnings: Sequence[str], foot: str) -> str:
    """A page around a head and sections: policy, style, navigation, reasons for doubt."""
    style = STYLE.read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=f"{POLICY}; style-src 'sha256-{allowed}'"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        el("style", Html(style)),
    )
    nav = el("nav", *(el("a", name, href=f"#{anchor}") for anchor, name, _ in parts), aria_label="sections")
    header = el("header", top, nav, _warnings(warnings))
    body = el("body", header, el("main", *(part for _, _, part in parts)), el("footer", el("p", foot)))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _top(result: Result) -> Html:
    rungs = words.ladder_of(result)
    measured = [
        plural(result["items"], "question"),
        plural(len(result["variants"]), "variant"),
        plural(len(rungs), "rung"),
    ]
    about = f"{result['name']}: {', '.join(measured)}"
    gains = [el("p", f"{sentence}.", class_="gain") for sentence in words.biggest_steps(result)]
    lost = [el("p", worst, class_="loss-note")] if (worst := words.cost_headline(result)) else []
    return join(
        el("p", about, class_="eyebrow"),
        el("h1", words.headline(result)),
        el("div", *gains, *lost, class_="stand"),
    )


def _banner(verdict: Verdict | None) -> Html | None:
    if verdict is None:
        return None
    tone, words_, reason = verdict
    return el("p", el("a", el("b", words_), href="#gate"), " ", reason, class_=f"verdict {tone}".strip())


def _warnings(warnings: Sequence[str]) -> Html | None:
    if not warnings:
        return None
    doubts = el("ul", *(el("li", warning) for warning in warnings))
    return el("div", el("p", "Before you believe it"), doubts, class_="warnings", role="note")

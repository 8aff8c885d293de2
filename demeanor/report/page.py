"""One self-contained HTML page of a result: no network, no script; everything that opens is a <details>.

In: a result (the JSON of results/<name>.json). Out: the page as text. A content security policy allows this page's own style
sheet, by its hash, and nothing else, and every string from a model or a file is escaped on its way in.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from demeanor.report import sections, words
from demeanor.report.markup import Html, el, join
from demeanor.report.shape import Result
from demeanor.report.words import plural

STYLE = Path(__file__).parent / "page.css"


def page(result: Result) -> str:
    """The whole page."""
    style = STYLE.read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    head = el(
        "head", el("meta", charset="utf-8"), el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"),
        el("meta", name="referrer", content="no-referrer"), el("title", f"{result['name']}: what each layer did"), el("style", Html(style)))
    parts = {
        "Layers": sections.ladder(result), "Costs": sections.costs(result), "Certainty": sections.certainty(result),
        "Leave one out": sections.without(result), "Refusals": sections.refusals(result), "Items": sections.items(result),
        "Time": sections.spending(result), "Training": sections.training(result), "Method": sections.how(result),
    }
    anchors = dict(zip(parts, ("ladder", "costs", "certainty", "without", "refusals", "items", "spending", "training", "how")))
    nav = el("nav", *(el("a", name, href=f"#{anchors[name]}") for name, part in parts.items() if part), aria_label="sections")
    body = el("body", el("header", _top(result), nav, _warnings(result)), el("main", *(part for part in parts.values() if part)), _foot(result))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _top(result: Result) -> Html:
    rungs = words.ladder_of(result)
    about = f"{result['name']}: {plural(result['items'], 'question')}, {plural(len(result['variants']), 'variant')}, {plural(len(rungs), 'rung')}"
    gains = [el("p", f"{sentence}.", class_="gain") for sentence in words.biggest_steps(result)]
    lost = [el("p", worst, class_="loss-note")] if (worst := words.cost_headline(result)) else []
    return join(el("p", about, class_="eyebrow"), el("h1", words.headline(result)), el("div", *gains, *lost, class_="stand"))


def _warnings(result: Result) -> Html | None:
    if not result["warnings"]:
        return None
    return el("div", el("p", "Before you believe it"), el("ul", *(el("li", w) for w in result["warnings"])), class_="warnings", role="note")


def _foot(result: Result) -> Html:
    return el("footer", el("p", f"Suite {result['suite_hash']}. Written by demeanor; this file needs no network and runs no script."))

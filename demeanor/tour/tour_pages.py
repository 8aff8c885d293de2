"""The tour as pages beside the chat page: contents, chapters, pictures; a chapter's experiment is begun from its page.

In: a Notebook, Processes. Out: routes. Markdown is rendered without raw HTML; what a model wrote reaches a page as text only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from itertools import pairwise
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from demeanor.core.errors import DemeanorError, UsageError
from demeanor.report import glossary
from demeanor.tour import five_pairs
from demeanor.tour.chapters import SMOLLM2_PICTURE, Chapter, chapter, chapters
from demeanor.tour.findings import Findings
from demeanor.tour.notebook import Notebook, Processes, progress

HTML = "text/html; charset=utf-8"
KINDS = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
NO_STORE = {"cache-control": "no-store"}
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
WORDS_PAGE = "/tour/words"
EXPLAINED = frozenset({"paragraph_open", "td_open", "th_open"})
"""What words are explained in: not in headings."""


def _explain(state: StateCore) -> None:
    """Mark the texts whose words become links to their meaning; none within another link."""
    for before, token in pairwise(state.tokens):
        if token.type == "inline" and before.type in EXPLAINED:
            depth = 0
            for child in token.children or ():
                depth += {"link_open": 1, "link_close": -1}.get(child.type, 0)
                child.meta["explained"] = depth == 0


def _text(renderer: RendererHTML, tokens: Sequence[Token], n: int, options: Any, env: Any) -> str:
    content = tokens[n].content
    return str(glossary.linked(content, WORDS_PAGE)) if tokens[n].meta.get("explained") else escape(content)


MARKDOWN.core.ruler.push("explain", _explain)
MARKDOWN.add_render_rule("text", _text)


def routes(reader: Notebook, processes: Processes) -> list[BaseRoute]:
    """All routes of the tour; the first one is its contents."""
    tour = _Tour(reader, processes)
    return [
        Route("/tour", tour.contents),
        Route(WORDS_PAGE, _words),
        Route("/tour/label", tour.label, methods=["POST"]),
        Route("/tour/static/{name}", _static),
        Route("/tour/kept/{name}", _kept),
        Route("/tour/{number:int}", tour.page),
        Route("/tour/{number:int}/run", tour.run, methods=["POST"]),
        Route("/tour/{number:int}/state", tour.state),
        Route("/tour/{number:int}/answer", tour.answer, methods=["POST"]),
        Route("/tour/{number:int}/picture.svg", tour.picture),
    ]


class _Tour:
    def __init__(self, reader: Notebook, processes: Processes) -> None:
        self.reader, self.processes = reader, processes

    async def contents(self, request: Request) -> Response:
        rows = "".join(
            f'<li><a href="/tour/{c.number}">{escape(c.title)}</a> <span class="soft">{escape(state)}</span></li>'
            for c, state in progress(self.reader)
        )
        lead = (
            "Ten short chapters. Each asks a question. Write down a guess, run the experiment, look at the picture, and answer the "
            "exercise. Your answer is checked against your own run."
        )
        return _html(
            "The tour", f'<h1>How is an assistant made?</h1><p>{lead}</p><ol class="contents">{rows}</ol>'
        )

    async def page(self, request: Request) -> Response:
        one = _chapter(request)
        if one is None:
            return _html("Not here", "<h1>There is no such chapter</h1>", status=404)
        try:
            found = self.reader.found(one)
        except DemeanorError:
            found = None
        return _html(one.title, _body(one, found, self.reader.notes().get(one.slug, {})))

    async def run(self, request: Request) -> Response:
        one, given = _chapter(request), await _json(request)
        if one is None or given is None:
            return _problem("wanted a chapter of the tour, and an object as JSON")
        if (guess := _number_of(given.get("guess"))) is not None:
            self.reader.note(one, guess=guess)
        try:
            self.processes.start(one)
        except UsageError as error:
            return _problem(str(error), 409)
        return JSONResponse({"state": "running"}, 202, NO_STORE)

    async def state(self, request: Request) -> Response:
        one = _chapter(request)
        if one is None:
            return _problem("there is no such chapter", 404)
        return JSONResponse(
            {"state": self.processes.state(one.number), "said": self.processes.said(one.number)},
            headers=NO_STORE,
        )

    async def answer(self, request: Request) -> Response:
        one, given = _chapter(request), await _json(request)
        number = _number_of(given.get("answer")) if given else None
        if one is None or number is None:
            return _problem('wanted a number: {"answer": 12}')
        try:
            right, why = self.reader.check(one, number)
        except DemeanorError as error:
            return _problem(str(error), 409)
        return JSONResponse({"right": right, "why": why}, headers=NO_STORE)

    async def picture(self, request: Request) -> Response:
        one = _chapter(request)
        path = self.reader.folder / f"{one.experiment}.svg" if one else None
        if path is None or not path.is_file():
            return _problem("not made yet", 404)
        return Response(path.read_bytes(), media_type="image/svg+xml", headers=NO_STORE)

    async def label(self, request: Request) -> Response:
        given, shown = await _json(request), five_pairs.pairs()
        labels = given.get("labels") if given else None
        if not isinstance(labels, list) or len(labels) != len(shown) or set(map(str, labels)) - {"A", "B"}:
            return _problem(f"wanted {len(shown)} labels, each A or B")
        found = five_pairs.agreed([str(x) for x in labels], shown)
        said = f"You agree with the labels of the demo on {found.text()} % of {len(shown)} pairs. Its labels: {', '.join(p.better for p in shown)}."
        return JSONResponse({"said": said}, headers=NO_STORE)


def _chapter(request: Request) -> Chapter | None:
    try:
        return chapter(int(request.path_params["number"]))
    except UsageError:
        return None


async def _json(request: Request) -> dict[str, Any] | None:
    """The body as an object. Only JSON is read, which pages of other origins cannot send without being asked first."""
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        return None
    try:
        found = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _number_of(value: Any) -> float | None:
    """A number of JSON that is finite; None for anything else, true and NaN included."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _problem(message: str, status: int = 400) -> Response:
    return JSONResponse({"error": {"message": message}}, status, NO_STORE)


async def _words(request: Request) -> Response:
    """What the words of the chapters mean."""
    rows = "".join(
        f'<dt id="{w.anchor}">{escape(w.name)}</dt><dd>{escape(w.meaning)}</dd>' for w in glossary.WORDS
    )
    return _html("Words", f'<h1>Words</h1><dl>{rows}</dl><nav><a href="/tour">Contents</a></nav>')


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in ("tour.js", "tour.css"):
        return _problem("not here", 404)
    content = files("demeanor.tour").joinpath("static", name).read_bytes()
    return Response(content, media_type=KINDS[name.rsplit(".", 1)[1]], headers={"cache-control": "no-cache"})


async def _kept(request: Request) -> Response:
    """A picture of the kept results."""
    name = request.path_params["name"]
    if name not in {f"{kept}{one.experiment}.svg" for one in chapters() for kept in ("", SMOLLM2_PICTURE)}:
        return _problem("not here", 404)
    content = files("demeanor.tour").joinpath("chapters", name).read_bytes()
    return Response(content, media_type="image/svg+xml", headers={"cache-control": "no-cache"})


# ---- HTML ----


def rendered(text: str) -> str:
    """Markdown as HTML, with links and pictures that work in the tour."""
    found: str = MARKDOWN.render(re.sub(r"<!--.*?-->", "", text))
    found = re.sub(r'src="([\w-]+\.svg)"', r'src="/tour/kept/\1"', found)
    # pages of the documentation are not served here: their name stands behind the words
    found = re.sub(r'<a href="(?:\.\./)+([\w-]+\.md)[^"]*">(.*?)</a>', r"\2 (<code>\1</code>)", found)
    return (
        re.sub(r'href="(?:\d\d-)([\w-]+)\.md"', lambda m: f'href="/tour/{_number(m[1])}"', found)
        .replace("<table>", '<div class="wide"><table>')
        .replace("</table>", "</table></div>")
    )


def _number(slug: str) -> int:
    return next((one.number for one in chapters() if one.slug == slug), 1)


def _body(one: Chapter, found: Findings | None, notes: dict[str, Any]) -> str:
    """The chapter, with the guess asked before the kept results are shown, and the exercise where the text asks it."""
    begun, picture, rest = one.text.partition("\n![")
    results, after = re.split(r"^\*\*Exercise\.\*\*.+?\n\n", rest, maxsplit=1, flags=re.M | re.S)
    last = len(chapters())
    nav = "".join(
        f'<a href="/tour/{n}">{words}</a>'
        for n, words in ((one.number - 1, "Back"), (one.number + 1, "Next"))
        if 1 <= n <= last
    )
    return (
        f"{rendered(begun)}{_pairs() if one.experiment == 'noise' else ''}{_experiment(one, found, notes.get('guess'))}"
        f"{rendered(picture + results)}{_exercise(one, notes.get('answer'))}{rendered(after)}"
        f'<nav>{nav}<a href="/tour">Contents</a><a href="/tour/words">Words</a><a href="/">Chat</a></nav>'
    )


def _experiment(one: Chapter, found: Findings | None, guess: Any) -> str:
    mine = _mine(one, found) if found else '<p class="soft">You have not run it yet.</p>'
    return (
        f'<section class="mine" data-chapter="{one.number}"><h2>Your run</h2>'
        f'<label>{escape(one.guess)} <input id="guess" inputmode="decimal" value="{_filled(guess)}"></label>'
        f'<button id="run">Run the experiment</button> <code>{escape(one.command)}</code>'
        f'<pre id="said" hidden></pre>{mine}<p class="soft">Below are kept results: the demo trained with seed 0 on another machine.</p></section>'
    )


def _exercise(one: Chapter, answer: Any) -> str:
    return (
        f'<section class="mine"><h2>Exercise</h2><label>{escape(one.exercise)} '
        f'<input id="answer" inputmode="decimal" value="{_filled(answer)}"></label>'
        '<button id="check">Check</button><p id="verdict" role="status"></p></section>'
    )


def _filled(number: Any) -> str:
    return f"{number:g}" if isinstance(number, int | float) else ""


def _mine(one: Chapter, found: Findings) -> str:
    table = found.table()
    head = "".join(f"<th>{escape(str(c))}</th>" for c in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in table.rows
    )
    return (
        f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div><p>{escape(found.said)} '
        f'<span class="soft">{escape(found.counts())}, {found.seconds:.0f} s, stack {escape(found.stack_key)}</span></p>'
        f'<img src="/tour/{one.number}/picture.svg" alt="{escape(found.said)}">'
    )


def _pairs() -> str:
    def one(n: int, pair: five_pairs.Pair) -> str:
        def choice(letter: str, words: str) -> str:
            return f'<label class="choice"><input type="radio" name="pair{n}" value="{letter}"> {escape(words)}</label>'

        return f"<fieldset><legend>{escape(pair.question)}</legend>{choice('A', pair.first)}{choice('B', pair.second)}</fieldset>"

    shown = "".join(one(n, pair) for n, pair in enumerate(five_pairs.pairs()))
    return (
        f'<section id="pairs"><h2>Label five pairs</h2><p>Which answer is better?</p>{shown}'
        '<button id="label">Compare with the labels of the demo</button><p id="agreed" role="status"></p></section>'
    )


def _html(title: str, body: str, status: int = 200) -> Response:
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)} - the tour</title>'
        '<link rel="icon" href="/static/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="/tour/static/tour.css">'
        f'<script type="module" src="/tour/static/tour.js"></script></head><body><main>{body}</main></body></html>'
    )
    return Response(page, status, NO_STORE, HTML)

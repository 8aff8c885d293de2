"""The chat page: whole in the package, nothing inline, nothing from elsewhere, never markup from a model."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from posixpath import normpath

import httpx
import pytest

FOLDER = Path(str(files("demeanor.server").joinpath("pages")))
ALL = {
    p.relative_to(FOLDER).as_posix(): p.read_text()
    for p in FOLDER.rglob("*")
    if p.suffix in (".html", ".js", ".css", ".svg")
}
PAGES = {name: text for name, text in ALL.items() if not name.startswith("vendor/")}


def imported(name: str, text: str) -> set[str]:
    """The files that a script names, from /static/ on."""
    found = re.findall(r'(?:from|import) "(\.[^"]+)"|import\("(\.[^"]+)"\)', text)
    return {normpath(f"/static/{name}/../{a or b}") for a, b in found}


async def test_the_page_and_every_file_it_names_are_served(client: httpx.AsyncClient) -> None:
    named: set[str] = set()
    for address in ("/", "/operator/", "/operator/policy", "/operator/experiments", "/operator/evaluators"):
        page = await client.get(address)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        named |= {*re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)}
    named = named.union(*(imported(name, text) for name, text in PAGES.items()))
    assert named == {f"/static/{name}" for name in ALL if not name.endswith(".html")}
    kinds = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    for path in named:
        response = await client.get(path)
        assert (response.status_code, response.headers["content-type"]) == (
            200,
            kinds[path.rsplit(".", 1)[1]],
        )


async def test_an_unchanged_file_is_not_sent_again(client: httpx.AsyncClient) -> None:
    tag = (await client.get("/static/chat.css")).headers["etag"]
    again = await client.get("/static/chat.css", headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", sorted(PAGES))
def test_nothing_comes_from_elsewhere(name: str) -> None:
    addresses = re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]+[^\s\"')]*", PAGES[name])
    assert [a for a in addresses if not a.endswith("www.w3.org/2000/svg")] == []


@pytest.mark.parametrize("name", ["chat.html", "operator.html"])
def test_nothing_is_inline(name: str) -> None:
    page = PAGES[name]
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert "<style" not in page
    assert re.findall(r"\s(?:on\w+|style)=", page) == []


@pytest.mark.parametrize("name", [n for n in sorted(PAGES) if n.endswith(".js")])
def test_text_never_becomes_markup(name: str) -> None:
    for sink in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "srcdoc",
    ):
        assert sink not in PAGES[name]


def reached(script: str) -> set[str]:
    """The scripts that a page's own script loads, itself included."""
    found, open_names = set(), {script}
    while open_names:
        name = open_names.pop()
        found.add(name)
        named = {x.removeprefix("/static/") for x in imported(name, ALL[name])} if name in PAGES else set()
        open_names |= named - found
    return found


@pytest.mark.parametrize("page", ["chat", "operator"])
def test_every_element_the_scripts_ask_for_is_in_the_page(page: str) -> None:
    scripts = reached(f"{page}.js")
    asked = {x for name in scripts for x in re.findall(r'\$\("([\w-]+)"\)', ALL[name])}
    there = set(re.findall(r'\bid="([\w-]+)"', PAGES[f"{page}.html"]))
    only_in_settings = {
        "settings",
        "system",
        "temperature",
        "length",
        "keep",
        "settings-open",
        "settings-note",
    }
    assert asked - there <= (only_in_settings if page == "operator" else set())
    assert len(asked) > 5


def test_every_script_belongs_to_a_page() -> None:
    assert reached("chat.js") | reached("operator.js") == {name for name in ALL if name.endswith(".js")}

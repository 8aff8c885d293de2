"""Steps that the tests of the pages share: ask, read, wait for a page that is at rest."""

from __future__ import annotations

import json
from urllib.parse import urlencode

from browser import Browser

SETTLED = "document.querySelectorAll('.answer').length && !document.querySelector('.waiting') && !document.querySelector('body.running')"


def open_page(browser: Browser, address: str, path: str = "/", **query: str) -> None:
    """Open the chat page anew and wait until it can be used."""
    browser.open("about:blank")
    browser.open(f"{address}{path}?{urlencode(query)}")
    browser.wait("document.querySelectorAll('#examples button').length")


def say(browser: Browser, question: str) -> None:
    """Write a question into the box and send it."""
    browser.run(
        f"document.querySelector('#message').value = {json.dumps(question)}; document.querySelector('#composer').requestSubmit()"
    )


def settled(browser: Browser, turns: int) -> None:
    """Wait until so many turns are shown and every answer is whole."""
    browser.wait(f"document.querySelectorAll('.turn').length == {turns} && {SETTLED}", 30)


def ask(browser: Browser, address: str, *questions: str, models: str = "harbour-desk", **more: str) -> None:
    """Open the page, ask these questions one after the other, and wait for every answer."""
    open_page(browser, address, models=models, **more)
    for number, question in enumerate(questions, 1):
        say(browser, question)
        settled(browser, number)


def texts(browser: Browser, selector: str) -> list[str]:
    """The text of every element that fits."""
    return list(browser.run(f"Array.from(document.querySelectorAll({selector!r}), e => e.textContent)"))


def press(browser: Browser, selector: str) -> None:
    """Press the first button that fits."""
    browser.wait(f"document.querySelector({selector!r}) !== null")
    browser.run(f"document.querySelector({selector!r}).click()")

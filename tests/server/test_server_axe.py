"""Accessibility of the chat page in its states, light and dark, desktop and phone, by axe-core; skips where it is absent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from accessibility import findings, needs_axe
from browser import CHROMIUM, Browser
from live import served
from pages import ask, open_page, press, say, settled
from scripted import Scripted

from demeanor.server.auth import from_digests
from demeanor.store.keys import digest

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"), needs_axe]
IMPACTS = ("moderate", "serious", "critical")
RICH = """say back
# Title

A [link](https://e.org), `code`, $x^2$ and **bold**.

- [x] done
- open

| a | b |
|---|---|
| 1 | 2 |

```python
def f():  # comment
    return "x" + str(1)
```

> quoted"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(Scripted()) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.mark.parametrize(("width", "theme"), [(1200, "light"), (360, "dark")])
def test_the_chat_page_has_no_serious_finding(browser: Browser, address: str, width: int, theme: str) -> None:
    browser.size(width, 800)
    open_page(browser, address, theme=theme, details="1", models="harbour-desk,harbour-desk:dpo")
    assert findings(browser, *IMPACTS) == []
    browser.run("document.querySelector('#blind').click()")
    say(browser, "the ferry?")
    settled(browser, 1)
    assert findings(browser, *IMPACTS) == []
    press(browser, ".vote button")
    for number, question in enumerate((RICH, "a card number", "a novel", "37 times 12", "a leak"), 2):
        say(browser, question)
        settled(browser, number)
    press(browser, ".thumb.down")
    browser.wait("document.querySelectorAll('.thanks').length > 0")
    press(browser, ".turn .asked [title^='Ask it differently']")
    assert findings(browser, *IMPACTS) == []
    for opener, closer in (
        ("#history-open", "#history-close"),
        ("#settings-open", "#settings .primary"),
        ("#keys-open", "#keys .primary"),
        (".footnote", "#passage .primary"),
    ):
        press(browser, opener)
        assert findings(browser, *IMPACTS) == []
        press(browser, closer)
    browser.size(1200, 900)


def test_the_page_that_asks_for_a_key_has_no_serious_finding(browser: Browser, tmp_path: Path) -> None:
    with served(Scripted(), keys=from_digests({digest("sk-ann"): "ann"})) as url:
        browser.open(url)
        browser.wait("document.querySelector('#locked')?.open")
        assert findings(browser, *IMPACTS) == []


def test_everything_is_reached_by_keyboard_alone(browser: Browser, address: str) -> None:
    ask(browser, address, "the ferry?")
    browser.run("document.activeElement.blur()")
    reached = []
    for _ in range(40):
        browser.press("Tab", 9)
        reached.append(
            browser.run(
                "document.activeElement.id || document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
            )
        )
    wanted = {
        "history-open",
        "first",
        "second",
        "link",
        "settings-open",
        "fresh",
        "Edit",
        "Regenerate",
        "Copy the answer",
        "Good answer",
        "Bad answer",
        "attach",
        "message",
        "send",
    }
    assert wanted <= set(reached)
    assert {x for x in reached if x and x.startswith("Source 1")} == {"Source 1: notices/ferries.md"}

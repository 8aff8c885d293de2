"""Hostile text in every field of the chat page and of the operators' pages: nothing runs, and the policy has nothing to report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote_plus, urlencode

import httpx
import pytest
from accessibility import AXE, findings
from browser import CHROMIUM, Browser
from live import served
from pages import open_page, press, say, settled, texts
from scripted import HOSTILE, Recording

from tests.conftest import each

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
WATCH = """window.pwned = 0; window.reports = [];
document.addEventListener("securitypolicyviolation", (e) => window.reports.push(`${e.violatedDirective} ${e.blockedURI} ${e.sample}`));"""
FOREIGN = "script:not([src^='/static/']), img:not([src^='/static/']), iframe, object, embed, [onerror], [onload], a[href^='javascript' i], a[href^='data' i]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        made.size(1200, 900)
        made.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        yield made


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(tmp_path / "turns.db")
    yield made
    assert made.database is not None
    made.database.close()


def harmless(browser: Browser) -> None:
    """Nothing of the texts ran, nothing was blocked by the Content-Security-Policy, and no element came of them."""
    assert browser.run("window.pwned") == 0
    assert browser.run("window.reports") == []
    assert browser.run(f"document.querySelectorAll({FOREIGN!r}).length") == 0
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.errors == []


def test_what_the_policy_blocks_is_counted(browser: Browser, recording: Recording) -> None:
    with served(recording) as url:
        open_page(browser, url)
        browser.run("document.body.setAttribute('style', 'color: red')")
        browser.wait("window.reports.length > 0")
        assert browser.run("window.reports.length") == 1
        browser.errors.clear()


def test_hostile_text_in_every_field_of_the_chat_page(
    browser: Browser, recording: Recording, tmp_path: Path
) -> None:
    note = tmp_path / "<img src=x onerror=pwned=6>.txt"
    note.write_text(f"{HOSTILE}\n```\n{HOSTILE}")
    with served(recording) as url:
        open_page(browser, url, models=f"harbour-desk,{HOSTILE}", q=HOSTILE, theme=HOSTILE, details="1")
        assert browser.run("document.querySelector('#message').value") == HOSTILE
        browser.run(
            "document.querySelector('#second').value = ''; document.querySelector('#second').dispatchEvent(new Event('change'))"
        )
        press(browser, "#settings-open")
        browser.run(f"document.querySelector('#system').value = {json.dumps(HOSTILE)}")
        press(browser, "#settings .primary")
        browser.choose("#file", note)
        browser.wait("document.querySelectorAll('#chips li').length === 1")
        say(browser, f"hostile {HOSTILE}")
        settled(browser, 1)
        assert HOSTILE in texts(browser, ".question")[0]
        assert "<script>" in texts(browser, ".text")[0]
        for button in ("sup .footnote", ".sources button:last-child"):
            press(browser, button)
            harmless(browser)
            press(browser, "#passage .primary")
        press(browser, ".thumb.down")
        browser.wait("document.querySelector('.opinion input') !== null")
        press(browser, ".opinion .row .act")
        browser.run(
            f"for (const field of document.querySelectorAll('.opinion input, .opinion textarea')) field.value = {json.dumps(HOSTILE)}"
        )
        press(browser, ".opinion .primary")
        browser.wait("document.querySelector('.thanks').textContent === 'Kept. Thank you.'")
        say(browser, f"hostile refuse {HOSTILE}")
        settled(browser, 2)
        assert texts(browser, ".refusal") == [HOSTILE]
        say(browser, f"a novel {HOSTILE}")
        settled(browser, 3)
        press(browser, "#history-open")
        press(browser, "#history-list [aria-label^=Rename]")
        browser.run(f"document.querySelector('.rename input').value = {json.dumps(HOSTILE)}")
        press(browser, ".rename button")
        browser.wait("document.querySelector('#history-list .open')?.textContent.includes('<script>')")
        browser.run(
            f"document.querySelector('#history-search').value = {json.dumps(HOSTILE)}; document.querySelector('#history-search').dispatchEvent(new Event('input'))"
        )
        harmless(browser)
        press(browser, "#history-close")
        say(
            browser,
            "say back\n"
            + HOSTILE
            + "\n\n"
            + "x" * 1_000_00
            + "\n\n"
            + "> " * 5000
            + "\n\n"
            + "- " * 5000
            + "\n\n"
            + "|a" * 3000,
        )
        settled(browser, 4)
        harmless(browser)


def test_hostile_text_in_every_field_of_the_operators_pages(browser: Browser, recording: Recording) -> None:
    with served(recording) as url, httpx.Client(base_url=url, timeout=30) as client:
        ids = []
        for question in (f"hostile {HOSTILE}", f"hostile refuse {HOSTILE}"):
            body = {
                "model": "harbour-desk",
                "user": HOSTILE[:200],
                "messages": [{"role": "system", "content": HOSTILE}, {"role": "user", "content": question}],
            }
            ids.append(client.post("/v1/chat/completions", json=body).json()["id"])
        client.post(
            "/v1/feedback", json={"id": ids[0], "score": -1, "comment": HOSTILE, "corrected": HOSTILE}
        )
        client.post(
            "/v1/comparisons",
            json={"first": ids[0], "second": ids[1], "verdict": "first", "comment": HOSTILE},
        )
        marked = client.post(
            f"/v1/demeanor/turns/{quote(ids[0])}/marks",
            json={"rule": HOSTILE, "mark": "false_positive", "note": HOSTILE},
        )
        assert marked.status_code == 200
        pages = [
            "/operator/",
            f"/operator/?{urlencode({'query': HOSTILE, 'user': HOSTILE, 'rule': HOSTILE, 'theme': HOSTILE})}",
            f"/operator/?{urlencode({'turn': ids[0]})}",
            f"/operator/?{urlencode({'turn': ids[1]})}",
            f"/operator/?{urlencode({'turn': HOSTILE})}",
            "/operator/policy",
            f"/operator/policy?{urlencode({'since': HOSTILE})}",
            "/operator/experiments",
            "/operator/evaluators",
        ]
        for page in each(pages):
            browser.open("about:blank")
            browser.open(url + page)
            browser.wait("document.body.dataset.ready === 'yes'")
            harmless(browser)
            if AXE.is_file() and HOSTILE not in unquote_plus(page):
                assert findings(browser) == [], page


def test_the_operators_pages_show_mark_and_answer_again(browser: Browser, recording: Recording) -> None:
    with served(recording) as url, httpx.Client(base_url=url, timeout=30) as client:
        for question in ("the ferry?", "a card number"):
            client.post(
                "/v1/chat/completions",
                json={"model": "harbour-desk", "messages": [{"role": "user", "content": question}]},
            )
        browser.open(f"{url}/operator/")
        browser.wait("document.body.dataset.ready === 'yes'")
        assert texts(browser, "td.said a") == ["a card number", "the ferry?"]
        browser.run(
            "document.querySelector('.filters [name=query]').value = 'Jorpel'; document.querySelector('.filters').requestSubmit()"
        )
        browser.wait(
            "document.querySelectorAll('td.said a').length === 1 && location.search === '?query=Jorpel'"
        )
        press(browser, "td.said a")
        browser.wait("document.querySelector('form.row input') !== null")
        assert texts(browser, ".text mark") == ["Jorpel leaves at 17."]
        browser.run(
            "document.querySelector('form.row input').value = 'harbour-desk:dpo'; document.querySelector('form.row').requestSubmit()"
        )
        browser.wait("document.querySelector('.diff') !== null")
        assert texts(browser, ".diff ins") == ["The ferry to ", "12."]
        browser.open(f"{url}/operator/?rule=no-card-numbers")
        browser.wait("document.querySelectorAll('td.said a').length === 1")
        press(browser, "td.said a")
        press(browser, ".marks .row:first-child .reason:last-of-type")
        browser.wait(
            "document.querySelector('.marks .reason[aria-pressed=true]')?.textContent.startsWith('Wrongly')"
        )
        browser.open(f"{url}/operator/policy")
        browser.wait(
            "document.body.dataset.ready === 'yes' && document.querySelectorAll('tbody tr').length === 1"
        )
        assert texts(browser, "tbody td.num")[:4] == ["1", "50.0%", "0", "1"]
        harmless(browser)

"""The chat page in a real browser; skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from browser import CHROMIUM, Browser
from live import served
from scripted import Scripted

from demeanor.server.auth import from_digests
from demeanor.store.keys import digest

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; the page's other tests run without")
SETTLED = "document.querySelectorAll('.answer').length && !document.querySelector('.waiting') && !document.querySelector('body.running')"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(Scripted()) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        made.size(1200, 900)
        yield made


def ask(browser: Browser, address: str, *questions: str, models: str = "harbour-desk", **more: str) -> None:
    """Open a link that asks these questions, and wait for every answer."""
    browser.open("about:blank")
    browser.open(
        f"{address}/?{urlencode([('models', models), *more.items(), *(('q', q) for q in questions)])}"
    )
    browser.wait(f"document.querySelectorAll('.turn').length == {len(questions)} && {SETTLED}")


def texts(browser: Browser, selector: str) -> list[str]:
    return list(browser.run(f"Array.from(document.querySelectorAll({selector!r}), e => e.textContent)"))


def test_two_variants_answer_side_by_side_and_each_shows_its_layers(browser: Browser, address: str) -> None:
    ask(browser, address, "the ferry?", models="harbour-desk,harbour-desk:dpo")
    assert texts(browser, ".answer .text") == ["Jorpel leaves at 17.1", "The ferry to Jorpel leaves at 12."]
    assert texts(browser, ".text mark") == ["Jorpel leaves at 17."]
    assert texts(browser, "blockquote.cited mark") == ["Jorpel leaves at 17"]
    assert texts(browser, ".answer:first-child .by") == ["retrieval", "retrieval", "prompt", "weights"]
    assert "5f0c9a1be47d" in texts(browser, ".identity")[0]
    assert "c7720de9518f" in texts(browser, ".identity")[1]
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.errors == []


def test_a_refusal_names_its_layer_and_rule_and_a_tool_shows_its_arguments_and_result(
    browser: Browser, address: str
) -> None:
    ask(browser, address, "a card number", "37 times 12")
    assert texts(browser, ".turn:first-child .chip") == ["policy refused"]
    assert "no-card-numbers" in texts(browser, ".turn:first-child .did")[0]
    assert texts(browser, ".turn:last-child .did code") == ['{"expression": "37 * 12"}', "444"]
    assert browser.errors == []


def test_a_citation_is_cut_by_characters_and_a_wrong_one_is_not_shown(browser: Browser, address: str) -> None:
    ask(browser, address, "misquote")
    assert texts(browser, ".text") == ["🐟 at 91, says the sign over there"]
    assert texts(browser, ".text mark") == ["🐟 at 9"]
    assert texts(browser, ".by") == ["retrieval", "weights", "policy"]


def test_words_taken_back_are_struck_and_the_refusal_stands(browser: Browser, address: str) -> None:
    ask(browser, address, "a leak")
    assert texts(browser, ".text .withdrawn") == ["The secret is"]
    assert texts(browser, ".text .refusal") == ["I cannot say."]


def test_events_are_whole_however_the_network_cuts_them(browser: Browser, address: str) -> None:
    ask(browser, address, "hello")
    read = """(async () => {
        const { events } = await import("/static/sse.js");
        const bytes = new TextEncoder().encode('data: {"a":"fish 🐟"}\\n\\ndata: {"a":"two"}\\n\\ndata: [DONE]\\n\\n');
        const cut = new ReadableStream({ start(c) { for (const b of bytes) c.enqueue(new Uint8Array([b])); c.close(); } });
        const found = [];
        for await (const event of events(new Response(cut))) found.push(event.a);
        return found.join();
    })()"""
    assert browser.run(read) == "fish 🐟,two"


def test_a_stream_without_its_end_is_an_error_and_not_an_answer(browser: Browser, address: str) -> None:
    ask(browser, address, "hello")
    read = """(async () => {
        const { events } = await import("/static/sse.js");
        for await (const _ of events(new Response('data: {"a":1}\\n\\n'))) ;
    })().catch((error) => error.message)"""
    assert browser.run(read) == "The answer broke off."


def test_text_that_looks_like_markup_stays_text(browser: Browser, address: str) -> None:
    evil = "seed <img src=x onerror='document.title=1'><script>document.title=2</script>"
    ask(browser, address, evil)
    assert texts(browser, ".question") == [evil]
    assert browser.run("document.querySelectorAll('#log img, #log script').length") == 0
    assert browser.run("document.title") == "harbour-desk"


def test_the_keyboard_writes_sends_stops_and_asks_again(browser: Browser, address: str) -> None:
    browser.open("about:blank")
    browser.open(address)
    browser.wait(
        "document.querySelectorAll('#examples button').length == 4 && document.activeElement.id == 'message'"
    )
    browser.type("go on forever")
    browser.press("Enter", 13)
    browser.wait("document.querySelector('.text')?.textContent.includes('on on')")
    assert browser.run("document.querySelector('#send').getAttribute('aria-label')") == "Stop"
    browser.press("Escape", 27)
    browser.wait(SETTLED)
    assert texts(browser, ".note") == [" stopped"]
    browser.press("ArrowUp", 38)
    assert browser.run("document.querySelector('#message').value") == "go on forever"
    browser.run("document.querySelector('#fresh').click()")
    assert browser.run(
        "document.querySelectorAll('.turn').length == 0 && !document.querySelector('#welcome').hidden"
    )
    assert browser.errors == []


def test_the_conversation_is_sent_along_each_variant_with_its_own_answers(
    browser: Browser, tmp_path: Path
) -> None:
    assistant = Scripted()
    with served(assistant) as url:
        ask(browser, url, "the ferry?", "hello", models="harbour-desk,harbour-desk:dpo")
    last = {t.variant: [m.content for m in t.messages] for t in assistant.turns}
    assert last == {
        "harbour-desk": ["the ferry?", "Jorpel leaves at 17.", "hello"],
        "harbour-desk:dpo": ["the ferry?", "The ferry to Jorpel leaves at 12.", "hello"],
    }


def test_an_error_is_shown_with_its_code_and_the_conversation_goes_on(browser: Browser, address: str) -> None:
    ask(browser, address, "a novel", "hello")
    assert "context_length_exceeded" in texts(browser, ".problem")[0]
    assert texts(browser, ".turn:last-child .text") == ["Good morning from the harbour desk."]


def test_with_keys_the_page_asks_for_one_and_then_works(browser: Browser) -> None:
    assistant = Scripted()
    with served(assistant, keys=from_digests({digest("sk-ann"): "ann"})) as url:
        browser.open(url)
        browser.wait("document.querySelector('#locked')?.open")
        browser.type("sk-ann")
        browser.press("Enter", 13)
        browser.wait("document.querySelectorAll('#examples button').length == 4")
        browser.run("document.querySelector('#examples button').click()")
        browser.wait(SETTLED)
    assert [t.user for t in assistant.turns] == ["ann"]


def test_a_thumb_and_its_words_are_sent_with_the_answers_id(browser: Browser) -> None:
    assistant = Scripted()
    with served(assistant) as url:
        ask(browser, url, "the ferry?")
        (turn_id,) = (t.id for t in assistant.turns)
        assert browser.run("document.querySelectorAll('.thumb').length") == 2
        browser.run("document.querySelector('.thumb.down').click()")
        browser.wait(
            "document.querySelector('.thumb.down').getAttribute('aria-pressed') === 'true' && !document.querySelector('.words').hidden"
        )
        browser.run("document.querySelector('.words input').focus()")
        browser.type("At 12, not 17.")
        browser.press("Enter", 13)
        browser.wait("document.querySelector('.said').textContent === 'Kept. Thank you.'")
        browser.run("document.querySelector('.thumb.down').click()")
        browser.wait("document.querySelector('.thumb.down').getAttribute('aria-pressed') === 'false'")
    assert [given[:3] for given in assistant.opinions_given] == [
        (turn_id, -1, None),
        (turn_id, -1, "At 12, not 17."),
        (turn_id, 0, None),
    ]
    assert browser.errors == []


def test_where_nothing_is_recorded_the_page_says_so(browser: Browser) -> None:
    assistant = Scripted()
    assistant.records = False
    with served(assistant) as url:
        ask(browser, url, "hello")
        browser.run("document.querySelector('.thumb').click()")
        assert "keeps no turns" in browser.wait("document.querySelector('.said').textContent")
        assert browser.run("document.querySelector('.thumb').getAttribute('aria-pressed')") == "false"


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, address: str) -> None:
    browser.size(360, 740)
    try:
        ask(
            browser, address, "the ferry?", "37 times 12", models="harbour-desk,harbour-desk:dpo", details="1"
        )
        assert browser.run("innerWidth") == 360
        assert browser.run(
            "document.documentElement.scrollWidth <= 360 && document.querySelector('main').scrollWidth <= 360"
        )
        tops = browser.run(
            "Array.from(document.querySelectorAll('.turn:first-child .answer'), e => e.getBoundingClientRect().left)"
        )
        assert len(set(tops)) == 1
    finally:
        browser.size(1200, 900)

"""The labelling page in a real browser: by keyboard alone, hostile texts, and two labellers of whom one is killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from accessibility import findings, needs_axe
from browser import CHROMIUM, Browser
from label_server import HOSTILE, items, measured, queue
from live import live
from test_server_labelling import Server

from demeanor.server.labelling import Labelling, labelling_app
from demeanor.store import labels
from demeanor.store.database import Database
from tests.conftest import each

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; the protocol's tests run without")
CODES = {
    "Enter": 13,
    "Backspace": 8,
    "=": 187,
    **{str(n): 48 + n for n in range(10)},
    "b": 66,
    "m": 77,
    "s": 83,
    "z": 90,
}
READY = "document.querySelectorAll('.answer').length && !document.getElementById('work').hidden"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        made.size(1200, 900)
        yield made


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "labels.db")
    yield made
    made.close()


@pytest.fixture
def address(database: Database) -> Iterator[str]:
    with live(labelling_app(Labelling(database, measured))) as url:
        yield url


def enter(browser: Browser, address: str, token: str, ready: str = READY) -> None:
    browser.errors.clear()
    browser.open("about:blank")
    browser.wait("location.href == 'about:blank'")
    browser.open(f"{address}/label#{token}")
    browser.wait(ready, 30)


def press(browser: Browser, *keys: str) -> None:
    for key in keys:
        browser.press(key, CODES[key])


def count(browser: Browser, said: str) -> None:
    browser.wait(f"document.getElementById('count').textContent.startsWith('{said}')", 30)


def test_pairs_are_labelled_by_keys_alone(browser: Browser, database: Database, address: str) -> None:
    queue(database, items(4))
    enter(browser, address, labels.invite(database, "first", "edda"))
    assert browser.run("location.hash") == "", "the token does not stay in the address"
    first = browser.run("document.querySelector('.answer .text').textContent")
    press(browser, "1", "Enter")
    count(browser, "1 of 4")
    press(browser, "0", "Enter")
    count(browser, "2 of 4")
    press(browser, "b", "Enter")
    count(browser, "3 of 4")
    press(browser, "z")
    browser.wait("document.getElementById('notice').textContent.includes('change')")
    press(browser, "2", "Enter")
    browser.wait("document.getElementById('notice').hidden")
    press(browser, "s")
    browser.wait("!document.getElementById('empty').hidden", 30)
    given = {label.item: label for label in labels.labels_of(database, "first")}
    assert [given[f"item-{n}"].choice for n in range(4)] == ["ranked", "tie", "ranked", "skipped"]
    assert given["item-0"].ranks[int(first.split()[1])] == 0
    assert given["item-2"].revisions == 1
    assert browser.errors == []


def test_a_ranking_takes_ties_and_back(browser: Browser, database: Database, address: str) -> None:
    queue(database, items(1, answers=5))
    enter(browser, address, labels.invite(database, "first", "edda"))
    shown = browser.run("Array.from(document.querySelectorAll('.answer .text'), e => e.textContent)")
    press(browser, "3", "5", "Backspace", "1", "=", "2", "4")
    places = "Array.from(document.querySelectorAll('.rank'), e => e.textContent)"
    assert browser.run(places) == ["place 2", "place 2", "place 1", "place 3", "place 4"]
    press(browser, "=")
    assert browser.run(places)[3:] == ["place 3", "place 3"]
    press(browser, "Enter")
    browser.wait("!document.getElementById('empty').hidden", 30)
    (label,) = labels.labels_of(database, "first")
    by_place = {int(text.split()[1]): rank for text, rank in zip(shown, (1, 1, 0, 2, 2), strict=True)}
    assert label.ranks == tuple(by_place[n] for n in range(5))
    assert browser.errors == []


def test_nothing_of_hostile_texts_is_executed_and_no_policy_is_broken(
    browser: Browser, database: Database, address: str
) -> None:
    queue(database, items(2, words=HOSTILE), labellers_per_item=2, question=f"better? {HOSTILE}")
    token = labels.invite(database, "first", "<b>edda</b><script>document.title='owned'</script>"[:64])
    enter(browser, address, token)
    for done in range(2):
        press(browser, "1")
        browser.run("document.getElementById('reason').focus()")
        browser.type(HOSTILE.replace("\x00", ""))
        press(browser, "Enter")
        browser.wait(f"document.getElementById('count').textContent.includes('{done + 1} by you')", 30)
    browser.wait("!document.getElementById('empty').hidden", 30)
    enter(browser, address, labels.invite(database, "first", "odin"))
    press(browser, "1", "Enter")  # the other answer: the second labeller sees the other order
    browser.wait("document.getElementById('count').textContent.includes('1 by you')", 30)
    press(browser, "1", "Enter")
    browser.wait("!document.getElementById('empty').hidden", 30)
    enter(browser, address, labels.invite(database, "first", "vera", "adjudicator"))
    browser.wait(
        "document.querySelectorAll('#opinions blockquote').length == 2 && document.querySelectorAll('#team table').length == 2",
        30,
    )
    assert HOSTILE.split("\x00")[0] in browser.run("document.getElementById('opinions').textContent")
    assert (
        browser.run("document.querySelectorAll('main script, main img, #work script, #work img').length") == 0
    )
    assert "owned" not in browser.run("document.title")
    assert browser.errors == []


MARKDOWN = """# Ferries
- to **Corkel** at 9, `code <b>`

| port | time |
|--|--|
| Corkel | 9 |

```python
def f(): return "x"
```

[a link](javascript:alert(1)) <img src=x onerror="document.title='owned'">"""


def test_answers_are_drawn_as_in_the_chat_page_or_shown_as_they_were_written(
    browser: Browser, database: Database, address: str
) -> None:
    queue(database, items(2, words=f"\n\n{MARKDOWN}"))
    enter(browser, address, labels.invite(database, "first", "edda"))
    parts = "Array.from(document.querySelectorAll('.answer')).map(a => ['.text h3', 'li strong', 'table', '.t-keyword'].map(s => a.querySelectorAll(s).length))"
    assert browser.run(parts) == [[1, 1, 1, 1 + 1]] * 2
    assert browser.run("document.querySelectorAll('.answer img, .answer a').length") == 0
    assert "owned" not in browser.run("document.title")
    press(browser, "m")
    assert browser.run(parts) == [[0, 0, 0, 0]] * 2
    assert MARKDOWN in browser.run("document.querySelector('.answer .text').textContent")
    press(browser, "2", "Enter")
    count(browser, "1 of 2")
    assert browser.run("document.querySelector('.answer .text').classList.contains('raw')"), "it stays chosen"
    press(browser, "m")
    assert browser.run(parts) == [[1, 1, 1, 1 + 1]] * 2
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.errors == []


def test_the_page_fits_a_phone_and_a_finger(browser: Browser, database: Database, address: str) -> None:
    queue(database, items(2, answers=9, words=" word" * 60 + " " + "x" * 400))
    browser.size(390, 844)
    try:
        enter(browser, address, labels.invite(database, "first", "edda"))
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        for place in range(9):
            browser.run(f"document.querySelectorAll('.answer > button')[{place}].click()")
            if place == 7:
                break
        assert browser.run("document.querySelectorAll('.rank')[8].textContent") == "place 9"
        browser.run("document.getElementById('submit').click()")
        count(browser, "1 of 2")
    finally:
        browser.size(1200, 900)
    assert browser.errors == []


def test_an_owner_makes_a_link_and_an_ended_link_says_so(
    browser: Browser, database: Database, address: str
) -> None:
    queue(database, items(2))
    enter(
        browser,
        address,
        labels.invite(database, "first", "vera", "owner"),
        "document.querySelectorAll('#team table').length == 3",
    )
    browser.run(
        "document.getElementById('name').value = 'odin'; document.querySelector('#invite button').click()"
    )
    browser.wait("document.getElementById('made').textContent.includes('/label#dl-')", 30)
    token = browser.run("document.getElementById('made').textContent").rpartition("#")[2]
    enter(browser, address, token)
    labels.revoke(database, "first", "odin")
    press(browser, "1", "Enter")
    browser.wait("document.getElementById('status').textContent.includes('not valid')", 30)
    assert labels.labels_of(database, "first") == []


@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_view(
    browser: Browser, database: Database, address: str, scheme: str
) -> None:
    queue(database, items(3, words=f"\n\n{MARKDOWN}"), labellers_per_item=2)
    queue(database, [replace(item, id=f"r{item.number}") for item in items(1, answers=4)], "ranks")
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    for name in ("edda", "odin"):
        enter(browser, address, labels.invite(database, "first", name))
        press(browser, "1")
        assert findings(browser) == []
        press(browser, "Enter")
        count(browser, "1 of" if name == "edda" else "2 of")
    enter(browser, address, labels.invite(database, "ranks", "edda"))
    press(browser, "2", "1")
    assert findings(browser) == []
    enter(browser, address, labels.invite(database, "first", "vera", "adjudicator"))
    browser.wait("document.querySelectorAll('#team table').length == 2")
    assert findings(browser) == []
    enter(
        browser,
        address,
        labels.invite(database, "first", "hild", "owner"),
        "document.querySelectorAll('#team table').length == 3",
    )
    assert findings(browser) == []


def label_all(browser: Browser, most: int) -> int:
    """Label by keys until `most` labels are acknowledged or nothing is left; returns how many were."""
    done = 0
    yours = "parseInt(document.getElementById('count').textContent.split(', ')[1])"
    while done < most and browser.run(READY):
        before = browser.run(yours)
        press(browser, "1", "Enter")
        browser.wait(f"{yours} > {before} || !document.getElementById('empty').hidden", 60)
        done += 1
    return done


@pytest.mark.experiment
def test_two_browsers_one_killed_and_the_server_killed(tmp_path: Path) -> None:
    """About 30 s: 40 items, two browsers; one browser dies with an item in hand, then the server dies under the other."""
    database = Database(tmp_path / "labels.db")
    queue(database, [replace(item, id=f"i{item.number}") for item in items(40)], lease_s=3.0)
    tokens = [labels.invite(database, "first", name) for name in ("edda", "odin")]
    database.close()
    server = Server(tmp_path / "labels.db")
    server.start()
    try:
        with Browser(tmp_path / "one") as edda:
            edda.size(1000, 800)
            with Browser(tmp_path / "two") as odin:
                enter(edda, server.url, tokens[0])
                enter(odin, server.url, tokens[1])
                acknowledged = label_all(edda, 8) + label_all(odin, 8)
                assert acknowledged == 16
            # odin's browser is killed (SIGKILL) with an item in hand
            acknowledged += label_all(edda, 4)
            server.kill()
            press(edda, "2", "Enter")
            edda.wait("document.getElementById('status').textContent.includes('kept here')", 60)
            server.start()
            edda.wait("document.getElementById('status').textContent == ''", 60)
            label_all(edda, 40)
            while not edda.run("document.getElementById('count').textContent.startsWith('40 of 40')"):
                edda.run(
                    "document.getElementById('again').click()"
                )  # odin's item is free when its lease ends
                edda.wait(f"{READY} || !document.getElementById('empty').hidden")
                label_all(edda, 40)
            assert [e for e in edda.errors if "Security" in e] == []
    finally:
        server.kill()
    database = Database(tmp_path / "labels.db")
    kept = labels.labels_of(database, "first")
    database.close()
    assert Counter(label.item for label in each(kept)) == {f"i{n}": 1 for n in range(40)}
    assert Counter(label.labeller for label in kept)["odin"] == 8, (
        "what odin's browser had acknowledged is there"
    )

"""The labelling API: links and roles, blind answers, labels acknowledged when durable; and its page's files."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from label_server import HOSTILE, items, measured, queue
from scripted import Scripted

from demeanor.server.application import app
from demeanor.server.auth import KeyRing
from demeanor.server.labelling import Labelling, labelling_app
from demeanor.store import keys, labels
from demeanor.store.database import Database
from tests.conftest import REPOSITORY, each

FILES = {
    p.name: p.read_text() for p in files("demeanor.server").joinpath("label_pages").iterdir() if p.is_file()
}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "labels.db")
    yield made
    made.close()


@pytest.fixture
async def client(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(labelling_app(Labelling(database, measured)))
    async with httpx.AsyncClient(transport=transport, base_url="http://labels.example") as made:
        yield made


def link(database: Database, name: str = "edda", role: str = "labeller") -> dict[str, str]:
    return {"authorization": f"Bearer {labels.invite(database, 'first', name, role)}"}


async def call(client: httpx.AsyncClient, who: dict[str, str], path: str, body: Any = None) -> Any:
    url = f"/label/api/{path}"
    response = await (
        client.get(url, headers=who) if body is None else client.post(url, headers=who, json=body)
    )
    assert response.status_code == 200, response.text
    return response.json()


async def test_an_item_comes_blind_and_its_label_is_kept_by_answer(
    database: Database, client: httpx.AsyncClient
) -> None:
    queue(database, items(2))
    edda = link(database)
    me = await call(client, edda, "me")
    assert (me["name"], me["role"], me["queue"]) == ("edda", "labeller", "first")
    found = await call(client, edda, "next", {})
    text = str(found)
    assert "secret" not in text
    assert "seed" not in text
    shown = found["item"]["answers"]
    better = 1 if shown[0].startswith("answer 0") else 0  # the place of answer 1
    ranks = [0 if place == better else 1 for place in range(2)]
    body = {"item": found["item"]["id"], "choice": "ranked", "ranks": ranks, "reason": "clear", "ms": 1500}
    answer = await call(client, edda, "labels", body)
    assert answer["progress"]["given"] == 1
    (label,) = labels.labels_of(database, "first")
    assert (label.ranks, label.reason, label.ms) == ((1, 0), "clear", 1500)
    again = await call(client, edda, "labels", body)
    assert again["revisions"] == 0, "a label that is sent twice is one label"


async def test_the_last_label_comes_back_as_it_was_shown_and_can_be_changed(
    database: Database, client: httpx.AsyncClient
) -> None:
    queue(database, items(1, answers=4))
    edda = link(database)
    found = (await call(client, edda, "next", {}))["item"]
    body = {"item": found["id"], "choice": "ranked", "ranks": [2, 0, 0, 1], "reason": "x"}
    await call(client, edda, "labels", body)
    back = (await call(client, edda, "previous", {}))["item"]
    assert back["answers"] == found["answers"]
    assert back["given"] == {"choice": "ranked", "ranks": [2, 0, 0, 1], "reason": "x"}
    changed = await call(client, edda, "labels", {"item": found["id"], "choice": "tie"})
    assert changed["revisions"] == 1
    assert (await call(client, edda, "next", {}))["item"] is None


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"item": "item-0", "choice": "best"}, 400, "choice"),
        ({"item": "item-0", "choice": "ranked", "ranks": [0]}, 400, "ranks"),
        ({"item": "item-0", "choice": "ranked", "ranks": [0, 7]}, 400, "ranks"),
        ({"item": "item-0", "choice": "ranked", "ranks": [0, True]}, 400, "ranks[1]"),
        ({"item": "item-0", "choice": "tie", "model": "x"}, 400, "model"),
        ({"item": "item-0", "choice": "tie", "reason": "x" * 4001}, 400, "reason"),
        ({"item": "item-1", "choice": "tie"}, 409, "item"),
        ({"item": "nothing", "choice": "tie"}, 409, "item"),
        ({"item": "\x00\ud800", "choice": "tie"}, 409, "item"),
    ],
)
async def test_a_wrong_label_is_refused_by_name_and_nothing_is_kept(
    database: Database, client: httpx.AsyncClient, body: dict[str, Any], status: int, param: str
) -> None:
    queue(database, items(2))
    edda = link(database)
    await call(client, edda, "next", {})
    import json

    content = json.dumps(body)
    response = await client.post(
        "/label/api/labels", headers={**edda, "content-type": "application/json"}, content=content
    )
    found = response.json()["error"]
    if "\\ud800" in content:
        assert response.status_code in (400, 409)
    else:
        assert (response.status_code, found["param"]) == (status, param)
    assert labels.labels_of(database, "first") == []


async def test_a_body_must_be_json_and_short(database: Database, client: httpx.AsyncClient) -> None:
    queue(database, items(1))
    edda = link(database)
    plain = await client.post("/label/api/labels", headers=edda, content="{}")
    assert plain.status_code == 415
    assert (await client.put("/label/api/labels", headers=edda)).json()["error"]["message"]
    assert (await client.get("/label/nothing")).status_code == 404
    long = await client.post("/label/api/labels", headers=edda, json={"reason": "x" * 70_000})
    assert long.status_code == 413


async def test_a_link_opens_its_own_queue_for_its_own_role(
    database: Database, client: httpx.AsyncClient
) -> None:
    queue(database, items(1))
    queue(
        database,
        [labels.LabelItem("other-0", 0, ({"role": "user", "content": "?"},), items(1)[0].answers)],
        "other",
    )
    for header in ({}, {"authorization": "Bearer nonsense"}, {"authorization": "Basic x"}):
        response = await client.post("/label/api/next", headers=header, json={})
        assert response.status_code == 401
    owner, edda = link(database, "vera", "owner"), link(database)
    assert (await client.post("/label/api/next", headers=owner, json={})).status_code == 403
    for path in ("agreement", "invitations"):
        assert (await client.get(f"/label/api/{path}", headers=edda)).status_code == 403
    assert (await client.post("/label/api/invitations", headers=edda, json={"name": "x"})).status_code == 403
    other = {"item": "other-0", "choice": "tie"}
    assert (await client.post("/label/api/labels", headers=edda, json=other)).status_code == 409
    await call(client, owner, "revocations", {"name": "edda"})
    assert (await client.get("/label/api/me", headers=edda)).status_code == 401


async def test_an_owner_makes_links_and_sees_agreement_as_it_stands(
    database: Database, client: httpx.AsyncClient
) -> None:
    queue(database, items(6), labellers_per_item=2)
    owner = link(database, "vera", "owner")
    made = await call(client, owner, "invitations", {"name": "odin", "hours": 2.0})
    people = [link(database), {"authorization": f"Bearer {made['token']}"}]
    for who in people:
        while (found := (await call(client, who, "next", {}))["item"]) is not None:
            better = 0 if found["answers"][0].startswith("answer 0") else 1
            await call(
                client,
                who,
                "labels",
                {"item": found["id"], "choice": "ranked", "ranks": [better, 1 - better]},
            )
    found = await call(client, owner, "agreement")
    assert found["agreement"]["labels"] == 12
    names = {one["labeller"]: one["with_rest"]["value"] for one in found["agreement"]["labellers"]}
    assert names == {"edda": 1.0, "odin": 1.0}
    listed = (await call(client, owner, "invitations"))["invitations"]
    assert [one["name"] for one in listed] == ["vera", "edda", "odin"] or len(listed) == 3
    assert "token" not in str(listed)


async def test_hostile_text_goes_through_as_text(database: Database, client: httpx.AsyncClient) -> None:
    queue(database, items(1, words=HOSTILE))
    edda = link(database)
    found = (await call(client, edda, "next", {}))["item"]
    assert all(text.endswith(HOSTILE) for text in each(found["answers"]))
    await call(client, edda, "labels", {"item": found["id"], "choice": "tie", "reason": HOSTILE})
    assert labels.labels_of(database, "first")[0].reason == HOSTILE.replace("\x00", "\ufffd")


# ---- the page ----


async def test_the_page_and_every_file_it_names_are_served(client: httpx.AsyncClient) -> None:
    page = await client.get("/label")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in page.headers["content-security-policy"]
    named = {*re.findall(r'(?:src|href)="(/[^"]+)"', page.text)}
    named |= {f"/label/static/{n}" for text in FILES.values() for n in re.findall(r'from "\./([^"]+)"', text)}
    assert named >= {f"/label/static/{name}" for name in FILES if name != "label.html"}
    for path in each(sorted(named)):
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_is_inline_or_from_elsewhere_and_text_never_becomes_markup(name: str) -> None:
    text = FILES[name]
    assert re.findall(r"https?://", text) == []
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\s(?:on\w+|style)=\"", text) == []
    for sink in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "srcdoc",
    ):
        assert sink not in text


def test_every_element_the_scripts_ask_for_is_in_the_page() -> None:
    asked = {x for name in ("label.js", "label_team.js") for x in re.findall(r'\$\("(\w+)"\)', FILES[name])}
    assert asked <= set(re.findall(r'\bid="(\w+)"', FILES["label.html"]))
    assert len(asked) > 15


# ---- two labellers, one of them killed, and the server killed ----


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """A labelling server in a process of its own, which can be killed and started again on the same port."""

    def __init__(self, path: Path) -> None:
        self.path, self.port = path, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "tests.server.label_server", str(self.path), str(self.port)]
        self.process = subprocess.Popen(command, env=environment, cwd=REPOSITORY)
        until = time.monotonic() + 300
        while True:
            try:
                httpx.get(f"{self.url}/healthz", timeout=60).raise_for_status()
                return
            except httpx.HTTPError:
                assert time.monotonic() < until, "the server does not start"
                time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def test_two_clients_one_killed_and_the_server_killed_lose_nothing_and_do_nothing_twice(
    tmp_path: Path,
) -> None:
    database = Database(tmp_path / "labels.db")
    queue(database, items(40), lease_s=1.0)
    people = {name: link(database, name) for name in ("edda", "odin")}
    database.close()
    server = Server(tmp_path / "labels.db")
    server.start()
    acknowledged: list[tuple[str, str]] = []
    half, quit_odin = threading.Event(), threading.Event()

    def work(name: str) -> None:
        """A page: asks, labels, and sends again until there is an answer."""
        with httpx.Client(base_url=server.url, headers=people[name], timeout=30) as http:

            def insist(path: str, body: dict[str, Any]) -> httpx.Response:
                while True:
                    try:
                        return http.post(f"/label/api/{path}", json=body)
                    except httpx.HTTPError:
                        time.sleep(0.02)

            while not (name == "odin" and quit_odin.is_set()):
                found = insist("next", {}).json()
                if found["item"] is None:
                    if found["progress"]["given"] == 40:
                        return
                    time.sleep(0.05)  # the killed client's item is free when its lease ends
                    continue
                if name == "odin" and half.is_set():
                    quit_odin.set()
                    return  # leaves with an item in hand
                answer = insist("labels", {"item": found["item"]["id"], "choice": "tie"})
                if answer.status_code == 200:
                    acknowledged.append((name, found["item"]["id"]))
                if len(acknowledged) >= 15:
                    half.set()

    threads = [threading.Thread(target=work, args=(name,)) for name in people]
    for thread in threads:
        thread.start()
    assert half.wait(300)
    server.kill()
    server.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads)
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    server.process.wait()
    database = Database(tmp_path / "labels.db")
    kept = labels.labels_of(database, "first")
    database.close()
    assert Counter(label.item for label in kept) == {f"item-{n}": 1 for n in range(40)}
    assert set(acknowledged) <= {(label.labeller, label.item) for label in kept}
    assert len({item for _, item in acknowledged}) == len(set(acknowledged)), "no item was acknowledged twice"


async def test_beside_the_api_a_link_opens_its_queue_alone_and_a_key_opens_none(
    database: Database, tmp_path: Path
) -> None:
    queue(database, items(1))
    kept = Database(tmp_path / "keys.db")
    key = {"authorization": f"Bearer {keys.create(kept, 'hild', scopes=['operator', 'chat'])}"}
    served = app(Scripted(), keys=KeyRing(kept), labels=Labelling(database, measured))
    transport, edda = httpx.ASGITransport(served), link(database)
    async with httpx.AsyncClient(transport=transport, base_url="http://desk.example") as both:
        assert (await call(both, edda, "me"))["name"] == "edda"
        assert (await both.get("/label")).status_code == 200
        for name in each(["label.js", "markdown/render.js", "vendor/temml.js", "markdown.css"]):
            assert (await both.get(f"/label/static/{name}")).status_code == 200
        for path in each(["/v1/models", "/v1/history", "/v1/demeanor/turns", "/metrics"]):
            assert (await both.get(path, headers=edda)).status_code == 401, path
        refused = await both.post("/label/api/next", headers=key, json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_link")
    local = httpx.ASGITransport(app(Scripted(), labels=Labelling(database, measured)))
    async with httpx.AsyncClient(transport=local, base_url="http://desk.example") as elsewhere:
        assert (await elsewhere.get("/label/api/me", headers=edda)).status_code == 421, (
            "without keys: local names only"
        )
    kept.close()


async def test_without_a_database_of_labels_there_is_no_labelling_page() -> None:
    transport = httpx.ASGITransport(app(Scripted()))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as alone:
        assert (await alone.get("/label")).status_code == 404

"""Web pages of a list, from a server of our own: what is fetched, kept, refused, and what a citation then names."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from demeanor import cli
from demeanor.core.errors import DataError
from demeanor.retrieval import web
from demeanor.retrieval.index import open_folder
from tests.conftest import each
from tests.server.live import other_server

PAGE = "<html><head><title>x</title></head><body><nav>menu</nav><h1>Ferries</h1><p>The {0} ferry leaves at nine.</p></body></html>"


class Site:
    """Pages by path: (status, headers, body); what was asked."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    def page(self, path: str, text: str | bytes, kind: str = "text/html", **headers: str) -> str:
        body = text.encode() if isinstance(text, str) else text
        self.pages[path] = (
            200,
            {"content-type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}},
            body,
        )
        return self.url + path


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            status, headers, body = found.pages.get(self.path, (404, {}, b"gone"))
            if "etag" in headers and self.headers.get("if-none-match") == headers["etag"]:
                status, body = 304, b""
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with other_server(Handler) as url:
        found.url = url.removesuffix("/v1")
        yield found


def fetch(urls: list[str], folder: Path, **more: Any) -> web.Fetched:
    return web.fetch(urls, folder, **{"passage_chars": 1000, "private": True, **more})


def test_a_page_becomes_passages_whose_source_is_its_address(site: Site, tmp_path: Path) -> None:
    url = site.page("/ferries?day=1", PAGE.format("Hexby"))
    assert fetch([url], tmp_path) == web.Fetched(1, 0, 0, ())
    [passage] = open_folder(tmp_path)("When does the Hexby ferry leave?", 3)
    assert (passage.source, passage.heading) == (url, "Ferries")
    assert passage.text == "The Hexby ferry leaves at nine."


@pytest.mark.parametrize(
    ("kind", "text", "want"),
    [
        ("text/plain; charset=utf-8", "Plain Märla.", "Plain Märla."),
        ("text/markdown", "# Head\n\nBody words.", "Body words."),
    ],
)
def test_plain_text_and_markdown_are_read(
    site: Site, tmp_path: Path, kind: str, text: str, want: str
) -> None:
    fetch([site.page("/a", text, kind)], tmp_path)
    assert [p.text for p in open_folder(tmp_path)(want, 1)] == [want]


def test_a_page_that_did_not_change_is_neither_sent_nor_written_again(site: Site, tmp_path: Path) -> None:
    url = site.page("/a", PAGE.format("Hexby"), etag='"1"', last_modified="Mon, 30 Nov 2026 04:00:00 GMT")
    fetch([url], tmp_path)
    [file] = (tmp_path / "web").glob("*.jsonl")
    before = file.stat().st_mtime_ns
    assert fetch([url], tmp_path) == web.Fetched(0, 1, 0, ())
    assert site.asked[1][1]["if-none-match"] == '"1"'
    assert site.asked[1][1]["if-modified-since"] == "Mon, 30 Nov 2026 04:00:00 GMT"
    assert file.stat().st_mtime_ns == before
    site.page("/a", PAGE.format("Sandel"), etag='"2"')
    assert fetch([url], tmp_path) == web.Fetched(1, 0, 0, ())
    assert "Sandel" in file.read_text()


def test_without_an_etag_equal_bytes_are_no_change_and_another_passage_length_is_one(
    site: Site, tmp_path: Path
) -> None:
    url = site.page("/a", PAGE.format("Hexby"))
    fetch([url], tmp_path)
    assert fetch([url], tmp_path).unchanged == 1
    assert fetch([url], tmp_path, passage_chars=500).written == 1


def test_a_page_that_left_the_list_is_removed_and_one_that_fails_keeps_its_text(
    site: Site, tmp_path: Path
) -> None:
    one, two = site.page("/a", PAGE.format("Hexby")), site.page("/b", PAGE.format("Sandel"))
    mine = tmp_path / "web" / "mine.md"
    fetch([one, two], tmp_path)
    mine.write_text("My own page.\n")
    site.pages["/a"] = (500, {}, b"")
    found = fetch([one], tmp_path)
    assert found == web.Fetched(0, 0, 1, ((one, "HTTP 500"),))
    texts = "".join(path.read_text() for path in (tmp_path / "web").glob("*.jsonl"))
    assert "Hexby" in texts
    assert "Sandel" not in texts
    assert mine.exists()


def test_what_is_no_page_is_said_and_the_others_are_fetched(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MAX_BYTES", 1000)
    urls = [
        site.page("/image", b"\x89PNG", "image/png"),
        site.page("/long", "x" * 5000, "text/plain"),
        site.page("/zeros", b"a\0b" * 9, "text/plain"),
        site.page("/empty", "<html></html>"),
        f"{site.url}/missing",
        site.page("/good", PAGE.format("Hexby")),
    ]
    found = fetch(urls, tmp_path)
    assert found.written == 1
    reasons = {urlsplit(url).path: why for url, why in found.failed}
    assert "image/png" in reasons["/image"]
    assert "more than" in reasons["/long"]
    assert "zero bytes" in reasons["/zeros"]
    assert "no text" in reasons["/empty"]
    assert reasons["/missing"] == "HTTP 404"


def test_redirects_are_followed_and_end(site: Site, tmp_path: Path) -> None:
    site.page("/new", PAGE.format("Hexby"))
    site.pages["/old"] = (301, {"location": "/new"}, b"")
    site.pages["/loop"] = (302, {"location": "/loop"}, b"")
    site.pages["/out"] = (302, {"location": "file:///etc/passwd"}, b"")
    found = fetch([f"{site.url}/{name}" for name in ("old", "loop", "out")], tmp_path)
    assert found.written == 1
    assert [why for _, why in found.failed] == [
        "it redirects more than 5 times",
        "it leads to file, which is not fetched",
    ]
    [passage] = open_folder(tmp_path)("Hexby ferry", 3)
    assert passage.source == f"{site.url}/old"


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "[::1]", "10.0.0.8", "192.168.1.1", "172.16.0.1", "169.254.169.254"),
        *("0.0.0.0", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[fe80::1]", "[fc00::1]", "100.64.0.1"),
        *("[2002:7f00:1::]", "224.0.0.1"),
    ],
)
def test_no_private_address_is_asked_unless_allowed(tmp_path: Path, host: str) -> None:
    [(_, why)] = web.fetch([f"http://{host}:9/secret"], tmp_path, passage_chars=1000).failed
    assert "an address of a private network or this machine" in why


def test_a_public_page_cannot_redirect_into_a_private_network(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first host passes as public here; where it leads to is checked like any other."""
    port = urlsplit(site.url).port
    site.pages["/start"] = (302, {"location": f"http://localhost:{port}/secret"}, b"")
    site.page("/secret", "secret", "text/plain")
    checked = web._is_public
    monkeypatch.setattr(
        web, "_is_public", lambda host, seen=[]: not seen.append(host) and (len(seen) == 1 or checked(host))
    )
    [(_, why)] = web.fetch([f"{site.url}/start"], tmp_path, passage_chars=1000).failed
    assert "localhost is " in why
    assert [path for path, _ in site.asked] == ["/start"]


def test_the_address_that_was_checked_is_the_one_connected_to(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves once to a public address and then to this machine is not asked twice."""
    url = site.page("/a", PAGE.format("Hexby"))
    asked: list[str] = []
    real = web.socket.getaddrinfo

    def resolve(host: str, *more: Any, **named: Any) -> Any:
        asked.append(host)
        return real("127.0.0.1" if host == "rebind.example" else host, *more, **named)

    monkeypatch.setattr(web.socket, "getaddrinfo", resolve)
    port = urlsplit(url).port
    assert fetch([f"http://rebind.example:{port}/a"], tmp_path).written == 1
    assert asked.count("rebind.example") == 1
    assert site.asked[0][1]["host"] == f"rebind.example:{port}"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("ftp://a/b", "line 1: got 'ftp://a/b'"),
        ("\n# c\nhttp://user:pw@a/", "line 3"),
        ("http://a:99999/", "line 1"),
        ("# nothing\n", "names no address"),
        ("just words", "wanted an http"),
    ],
)
def test_a_list_with_a_mistake_is_refused_before_anything_is_fetched(
    tmp_path: Path, text: str, want: str
) -> None:
    (tmp_path / "urls.txt").write_text(text)
    with pytest.raises(DataError, match=want):
        web.addresses(tmp_path / "urls.txt")


def test_a_broken_state_means_everything_is_fetched_again(site: Site, tmp_path: Path) -> None:
    url = site.page("/a", PAGE.format("Hexby"), etag='"1"')
    fetch([url], tmp_path)
    (tmp_path / "web" / web.STATE).write_text('{"x": 1')
    assert fetch([url], tmp_path).written == 1
    assert len(list((tmp_path / "web").glob("*.jsonl"))) == 1


def test_the_verb_fetches_indexes_and_cites_the_address(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pages").mkdir()
    raw = {
        "name": "desk",
        "weights": {"base": {"kind": "remote", "url": "http://127.0.0.1:9/v1", "model": "m"}},
        "layers": [{"kind": "retrieval", "index": "pages"}],
    }
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump(raw))
    url = site.page("/a", PAGE.format("Hexby"))
    (tmp_path / "urls.txt").write_text(f"# ours\n{url}\n{site.url}/missing\n")
    words = ["index", "build", "stack.yaml", "--urls", "urls.txt"]
    assert cli.main(words) == 3
    assert "--allow-private fetches those too" in capsys.readouterr().out
    assert cli.main([*words, "--allow-private"]) == 3
    out = capsys.readouterr().out
    assert "2 pages: 1 written, 0 unchanged, 0 removed, 1 failed" in out
    assert "/missing: HTTP 404" in out
    assert cli.main(["index", "search", "stack.yaml", "Hexby ferry"]) == 0
    assert "The Hexby ferry leaves at nine." in capsys.readouterr().out
    assert cli.main(["index", "build", "stack.yaml", "--allow-private"]) == 2
    rows = [
        json.loads(x) for x in each(next((tmp_path / "pages/web").glob("*.jsonl")).read_text().splitlines())
    ]
    assert {row["source"] for row in rows} == {url}


def test_a_page_that_takes_too_long_is_given_up(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MAX_S", -1.0)
    url = site.page("/a", PAGE.format("Hexby"))
    started = time.monotonic()
    [(_, why)] = fetch([url], tmp_path).failed
    assert "took longer" in why
    assert time.monotonic() - started < 5

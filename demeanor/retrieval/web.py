"""Web pages of a list of addresses as files of an index's folder, brought up to date by what the servers say has changed.

In: addresses, one a line. Out: one .jsonl file of passages a page, whose source is its address. Only listed pages are
fetched; no link is followed. Each host is resolved once and that address is the one connected to, so that no name can
lead into a private network after it was checked.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from demeanor.core.errors import DataError, UsageError
from demeanor.core.files import write_json, write_text
from demeanor.retrieval import documents

FOLDER, STATE = "web", ".pages.json"
MAX_BYTES = 8 << 20  # of one page
MAX_S = 30.0  # for one page, redirects included
MAX_REDIRECTS = 5
MAX_PAGES = 10_000
AGENT = "demeanor-index"
SUFFIXES = {
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "text/plain": ".txt",
    "text/markdown": ".md",
    "application/pdf": ".pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
}
Progress = Callable[[str, int, int], None]


class PageError(Exception):
    """A page that was not fetched or cannot be read; its text says why."""


@dataclass(frozen=True, slots=True)
class FetchedPage:
    """What is known of a page since it was last fetched: its file, what the server calls its version, a hash of its bytes."""

    file: str
    etag: str = ""
    modified: str = ""
    sha256: str = ""
    passage_chars: int = 0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a run did: pages written, unchanged, removed from the list, and those that failed, with the reason."""

    written: int
    unchanged: int
    removed: int
    failed: tuple[tuple[str, str], ...]


def addresses(path: Path) -> list[str]:
    """Read a list of addresses, one a line; empty lines and lines with # are left out. Raises DataError."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    found: list[str] = []
    for number, line in enumerate(lines, 1):
        url = line.strip()
        if not url or url.startswith("#"):
            continue
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise DataError(f"{path}: line {number}: got {url[:80]!r}, wanted an http(s) address") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise DataError(
                f"{path}: line {number}: got {url[:80]!r}, wanted an http(s) address without a name and password"
            )
        found.append(url.partition("#")[0])
    if not found:
        raise DataError(f"{path}: names no address; wanted one a line")
    if len(found) > MAX_PAGES:
        raise DataError(f"{path}: names {len(found)} addresses; at most {MAX_PAGES} are fetched; split it")
    return list(dict.fromkeys(found))


def fetch(
    urls: Sequence[str],
    folder: Path,
    *,
    passage_chars: int,
    private: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Bring the pages below `folder`/web up to date.

    A page that cannot be fetched keeps its last text; one that left the list is removed. Every file is replaced at once, and
    what was fetched is noted after each page, so that a kill loses the page under way only. `private`: addresses of this
    machine and of private networks too. Raises UsageError without the library.
    """
    home = folder / FOLDER
    state = _state(home)
    failed: list[tuple[str, str]] = []
    written = unchanged = 0
    with _client() as client:
        for done, url in enumerate(urls, 1):
            try:
                page = _update(client, url, home, state.get(url), passage_chars, private)
            except PageError as error:
                failed.append((url, str(error)))
            else:
                written, unchanged = written + (page is not None), unchanged + (page is None)
                if page is not None:
                    state[url] = page
                    _save(home, state)
            if progress is not None:
                progress("pages fetched", done, len(urls))
    gone = [url for url in state if url not in set(urls)]
    for url in gone:
        (home / state.pop(url).file).unlink(missing_ok=True)
    if gone:
        _save(home, state)
    return Fetched(written, unchanged, len(gone), tuple(failed))


def _update(
    client: Any, url: str, home: Path, known: FetchedPage | None, passage_chars: int, private: bool
) -> FetchedPage | None:
    """Fetch one page and write its passages; None if it is as it was. Raises PageError."""
    if known is not None and (known.passage_chars != passage_chars or not (home / known.file).is_file()):
        known = None
    answer = _asked(client, url, known, private)
    if answer is None:
        return None
    data, suffix, headers = answer
    hashed = hashlib.sha256(data).hexdigest()
    name = known.file if known else _file_name(url)
    page = FetchedPage(
        name, headers.get("etag", "")[:500], headers.get("last-modified", "")[:100], hashed, passage_chars
    )
    if known is not None and known.sha256 == hashed:
        return None
    try:
        document = documents.read_file(Path(f"page{suffix}"), data)
        found = documents.chunks(f"page{suffix}", document, passage_chars)
    except ValueError as error:
        raise PageError(str(error)) from None
    rows = [
        {"text": chunk.body, "title": chunk.heading, "source": url}
        | ({"page": chunk.page} if chunk.page else {})
        for chunk in found
        if chunk.body.strip()
    ]
    if not rows:
        raise PageError("it holds no text")
    home.mkdir(parents=True, exist_ok=True)
    write_text(home / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return page


def _asked(
    client: Any, url: str, known: FetchedPage | None, private: bool
) -> tuple[bytes, str, dict[str, str]] | None:
    """Return a page's bytes, the suffix of its kind and its headers; None if it is as it was. Raises PageError."""
    import httpx

    end, at = time.monotonic() + MAX_S, url
    for _ in range(MAX_REDIRECTS + 1):
        target = urlsplit(at)
        address = _checked(target, private)
        headers = {"host": target.netloc, "user-agent": AGENT, "accept": ", ".join(SUFFIXES)}
        if known is not None and at == url:
            headers |= {"if-none-match": known.etag} if known.etag else {}
            headers |= {"if-modified-since": known.modified} if known.modified else {}
        try:
            pinned = httpx.URL(at).copy_with(host=address)
            request = client.build_request("GET", pinned, headers=headers)
            request.extensions["sni_hostname"] = target.hostname
            answer = client.send(request, stream=True)
            try:
                if answer.status_code == 304 and known is not None:
                    return None
                if answer.is_redirect:
                    at = urljoin(at, answer.headers.get("location", ""))
                    continue
                if answer.status_code != 200:
                    raise PageError(f"HTTP {answer.status_code}")
                return _body(answer, end), _suffix(answer), {k.lower(): v for k, v in answer.headers.items()}
            finally:
                answer.close()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, ssl.SSLError) as error:
            raise PageError(f"{type(error).__name__}: {error}"[:200]) from None
    raise PageError(f"it redirects more than {MAX_REDIRECTS} times")


def _body(answer: Any, end: float) -> bytes:
    data = bytearray()
    for part in answer.iter_bytes(1 << 16):
        data += part
        if len(data) > MAX_BYTES:
            raise PageError(f"it has more than {MAX_BYTES >> 20} MiB")
        if time.monotonic() > end:
            raise PageError(f"it took longer than {MAX_S:g} s")
    return bytes(data)


def _suffix(answer: Any) -> str:
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in SUFFIXES:
        raise PageError(
            f"it is {kind or 'of no stated type'}; wanted HTML, plain text, Markdown, PDF or .docx"
        )
    return SUFFIXES[kind]


def _checked(target: Any, private: bool) -> str:
    """Return the address to connect to; raises PageError for one that is not public."""
    try:
        port = target.port or (443 if target.scheme == "https" else 80)
    except ValueError:
        raise PageError("it leads to an address that is none") from None
    if target.scheme not in ("http", "https") or not target.hostname or "@" in target.netloc:
        raise PageError(f"it leads to {target.scheme or 'nothing'}, which is not fetched")
    try:
        found = socket.getaddrinfo(target.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise PageError(f"{target.hostname} is not found ({error})") from None
    hosts = [str(entry[4][0]).partition("%")[0] for entry in found]
    if not private and (inside := [host for host in hosts if not _is_public(host)]):
        raise PageError(
            f"{target.hostname} is {inside[0]}, an address of a private network or this machine; "
            "--allow-private fetches those too"
        )
    return hosts[0]


def _is_public(host: str) -> bool:
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    return address.is_global and not address.is_multicast and (mapped is None or mapped.is_global)


def _client() -> Any:
    try:
        import httpx
    except ImportError:
        raise UsageError("fetching pages needs the package httpx: pip install httpx") from None
    return httpx.Client(
        timeout=10.0,
        follow_redirects=False,
        trust_env=False,
        limits=httpx.Limits(max_keepalive_connections=0),
    )


def _file_name(url: str) -> str:
    host = "".join(c if c.isalnum() or c in ".-" else "-" for c in urlsplit(url).hostname or "page")
    return f"{host[:80].strip('.') or 'page'}-{hashlib.sha256(url.encode()).hexdigest()[:12]}.jsonl"


def _state(home: Path) -> dict[str, FetchedPage]:
    """What is known of the pages; a file that cannot be read is as none: everything is fetched again."""
    try:
        raw = json.loads((home / STATE).read_text("utf-8"))
        return {url: FetchedPage(**about) for url, about in raw.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save(home: Path, state: dict[str, FetchedPage]) -> None:
    write_json(home / STATE, {url: asdict(page) for url, page in state.items()})

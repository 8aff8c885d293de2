"""Vectors of texts: the interface of an encoder, one behind an /v1/embeddings address, and the store of vectors.

In: texts and an encoder. Out: a matrix with a row of length 1 for each text, kept in a file so that a text is
encoded once, also when the process is killed in between; the rows nearest to a query.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from demeanor.core.errors import DemeanorError, UpstreamError

BATCH = 32
REMOTE_BATCH, REMOTE_S, REMOTE_TRIES = 64, 60.0, 4
MOST_VECTORS = 2_000_000

Matrix = NDArray[np.float32]
Progress = Callable[[str, int, int], None]  # what is done, how many of how many


class Encoder(Protocol):
    """Texts to rows of float32 of length 1; `identity` names the numbers that it gives."""

    identity: str

    def encode(self, texts: Sequence[str], *, query: bool = False) -> Matrix: ...


def is_address(name: str) -> bool:
    """True if an encoder's name is an address and not a folder or a hub id."""
    return name.startswith(("http://", "https://"))


def unit(vectors: Matrix) -> Matrix:
    """Return rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Matrix = (vectors / np.maximum(length, 1e-12)).astype(np.float32)
    return found


class RemoteEncoder:
    """An OpenAI-compatible /v1/embeddings, named `http://host/v1#model`."""

    def __init__(self, address: str, key_env: str | None = None) -> None:
        import httpx

        url, _, self._model = address.partition("#")
        if not self._model:
            raise DemeanorError(f"encoder: got {address}, wanted http://host/v1#model")
        key = os.environ.get(key_env, "") if key_env else ""
        if key_env and not key:
            raise DemeanorError(f"encoder: the environment variable {key_env} is not set")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers, timeout=REMOTE_S)
        self._url = url.rstrip("/") + "/embeddings"
        self.identity = address

    def encode(self, texts: Sequence[str], *, query: bool = False) -> Matrix:
        rows: list[list[float]] = []
        for at in range(0, len(texts), REMOTE_BATCH):
            rows += self._ask(texts[at : at + REMOTE_BATCH])
        if len({len(row) for row in rows}) != 1:
            raise UpstreamError(f"{self._url}: its vectors have different lengths")
        return unit(np.asarray(rows, dtype=np.float32))

    def _ask(self, texts: Sequence[str]) -> list[list[float]]:
        import httpx

        problem = ""
        for attempt in range(REMOTE_TRIES):
            if attempt:
                time.sleep(0.5 * 2**attempt)
            try:
                answer = self._client.post(self._url, json={"model": self._model, "input": list(texts)})
            except httpx.HTTPError as error:
                problem = type(error).__name__
                continue
            if answer.status_code == 200:
                return _rows(answer, len(texts), self._url)
            problem = f"HTTP {answer.status_code}"
            if answer.status_code not in (408, 429) and answer.status_code < 500:
                break
        raise UpstreamError(f"{self._url}: no vectors came ({problem})")


def _rows(answer: Any, count: int, url: str) -> list[list[float]]:
    try:
        data = sorted(answer.json()["data"], key=lambda row: row["index"])
        rows = [[float(x) for x in row["embedding"]] for row in data]
    except (ValueError, KeyError, TypeError):
        raise UpstreamError(f"{url}: its answer is not a list of embeddings") from None
    if len(rows) != count or not all(rows):
        raise UpstreamError(f"{url}: {len(rows)} vectors came for {count} texts")
    return rows


# ---- vectors of many texts ----


def vectors_of(
    texts: Sequence[str], encoder: Encoder, cache: Path | None, progress: Progress | None
) -> Matrix:
    """Return one row a text; those that the cache knows are not encoded again. A killed run goes on where it was."""
    if len(texts) > MOST_VECTORS:
        raise DemeanorError(f"{len(texts)} passages are too many for a matrix in memory ({MOST_VECTORS})")
    if not texts:
        return np.zeros((0, 1), np.float32)
    if cache is None:
        return np.concatenate([encoder.encode(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)])
    keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    with _kept(cache, encoder) as connection:
        known = {key for (key,) in connection.execute("SELECT text FROM vectors")}
        new = list({key: text for key, text in zip(keys, texts) if key not in known}.items())
        for at in range(0, len(new), BATCH):
            batch = new[at : at + BATCH]
            rows = encoder.encode([text for _, text in batch])
            with connection:
                connection.executemany(
                    "INSERT OR IGNORE INTO vectors (text, vector) VALUES (?, ?)",
                    [(key, row.astype("<f4").tobytes()) for (key, _), row in zip(batch, rows)],
                )
            if progress is not None:
                progress("passages encoded", at + len(batch), len(new))
        return np.stack([_vector(connection, key) for key in keys])


@contextlib.contextmanager
def _kept(cache: Path, encoder: Encoder) -> Iterator[sqlite3.Connection]:
    cache.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(encoder.identity.encode()).hexdigest()[:16]
    with contextlib.closing(sqlite3.connect(cache / f"vectors-{name}.db", timeout=60)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB NOT NULL)")
        yield connection


def _vector(connection: sqlite3.Connection, key: bytes) -> Matrix:
    (found,) = connection.execute("SELECT vector FROM vectors WHERE text = ?", (key,)).fetchone()
    return np.frombuffer(found, "<f4")


def nearest(vectors: Matrix, query: Matrix) -> Iterator[tuple[int, float]]:
    """Yield the rows of most similarity (cosine) first; of equal ones the earlier."""
    similar = vectors @ query
    done, count = 0, 64
    while done < len(similar):
        count = min(len(similar), count)
        least = np.partition(similar, len(similar) - count)[len(similar) - count]
        rows = np.flatnonzero(similar >= least)  # with all that are as similar as the last
        order = rows[np.lexsort((rows, -similar[rows]))]
        for row in order[done:]:
            yield int(row), float(similar[row])
        done, count = len(order), 4 * count

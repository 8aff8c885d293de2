"""One thread that writes: jobs are collected and committed together, and a job is done only when its commit is.

In: functions of a connection. Out: Futures with their results. A job that fails is rolled back alone; its neighbours stand.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

from demeanor.errors import DemeanorError

T = TypeVar("T")
Job: TypeAlias = Callable[[sqlite3.Connection], Any]
MAX_BATCH = 256


class Writer:
    """Owns the writing connection until `close`."""

    def __init__(self, open_connection: Callable[[], sqlite3.Connection]) -> None:
        """Open the connection in the writing thread; raises what opening it raises."""
        self._jobs: queue.SimpleQueue[tuple[Job, Future[Any]] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(open_connection, opened), name="store-writer", daemon=True
        )
        self._thread.start()
        opened.result()

    def submit(self, job: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue a job. Raises DemeanorError after `close`."""
        done: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise DemeanorError("the database is closed")
            self._jobs.put((job, done))
        return done

    def close(self) -> None:
        """Finish what is queued, then stop; a second call does nothing."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _run(self, open_connection: Callable[[], sqlite3.Connection], opened: Future[None]) -> None:
        try:
            connection = open_connection()
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        with contextlib.closing(connection):
            going = True
            while going:
                batch, going = self._batch()
                _commit(connection, batch)

    def _batch(self) -> tuple[list[tuple[Job, Future[Any]]], bool]:
        """Everything queued, at least one job; false if the end is reached."""
        batch: list[tuple[Job, Future[Any]]] = []
        while len(batch) < MAX_BATCH:
            try:
                entry = self._jobs.get(block=not batch)
            except queue.Empty:
                break
            if entry is None:
                return batch, False
            batch.append(entry)
        return batch, True


def _commit(connection: sqlite3.Connection, batch: list[tuple[Job, Future[Any]]]) -> None:
    """Run jobs in one transaction, each in its own savepoint; tell their futures after the commit."""
    outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for job, done in batch:
            connection.execute("SAVEPOINT job")
            try:
                outcomes.append((done, job(connection), None))
            except Exception as error:
                connection.execute("ROLLBACK TO job")
                outcomes.append((done, None, error))
            connection.execute("RELEASE job")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        outcomes = [(done, None, error) for _, done in batch]
    for done, result, failure in outcomes:
        if not done.set_running_or_notify_cancel():
            continue
        if failure is None:
            done.set_result(result)
        else:
            done.set_exception(
                DemeanorError(f"the database cannot write: {failure}")
                if isinstance(failure, sqlite3.Error)
                else failure
            )

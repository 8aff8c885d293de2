"""The one thread that writes: queued jobs are grouped into transactions, and a job is done once its commit is durable.

In: jobs, functions of a connection. Out: futures. A job that fails is rolled back alone; a connection that is lost
fails the jobs of its transaction, whose outcome nobody knows, and is opened again for the next.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

from demeanor.core.errors import DemeanorError, StoreError
from demeanor.store.backends import Backend, Connection
from demeanor.store.migrations import migrate

T = TypeVar("T")
Job: TypeAlias = Callable[[Connection], T]
MAX_BATCH = 256


class Writer:
    """Owns the writing connection, in a thread of its own, until `close`."""

    def __init__(self, backend: Backend) -> None:
        """Open the connection in the writing thread; raises what opening it raises."""
        self._backend = backend
        self._connection: Connection | None = None
        self._jobs: queue.SimpleQueue[tuple[Job[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="store-writer", daemon=True)
        self._thread.start()
        opened.result()

    def submit(self, job: Callable[[Connection], T]) -> Future[T]:
        """Queue a job; raises DemeanorError after `close`."""
        done: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise DemeanorError("the database is closed")
            self._jobs.put((job, done))
        return done

    def close(self) -> None:
        """Finish the queued jobs, then stop; a second call does nothing."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _run(self, opened: Future[None]) -> None:
        try:
            self._connection = self._opened()
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        going = True
        while going:
            batch, going = self._batch()
            self._commit(batch)
        if self._connection is not None:
            self._connection.close()

    def _batch(self) -> tuple[list[tuple[Job[Any], Future[Any]]], bool]:
        """Return all queued jobs, at least one, and False if `close` was called."""
        batch: list[tuple[Job[Any], Future[Any]]] = []
        while len(batch) < MAX_BATCH:
            try:
                entry = self._jobs.get(block=not batch)
            except queue.Empty:
                break
            if entry is None:
                return batch, False
            batch.append(entry)
        return batch, True

    def _opened(self) -> Connection:
        connection = self._backend.writing()
        try:
            migrate(connection, self._backend)
        except BaseException:
            connection.close()
            raise
        return connection

    def _begun(self) -> Connection:
        """Begin a transaction; a connection that was lost meanwhile is opened again."""
        for again in (True, False):
            if self._connection is None:
                self._connection = self._opened()
            try:
                for statement in self._backend.begin:
                    self._connection.execute(statement)
                return self._connection
            except self._backend.errors:
                self._rolled_back()
                if self._connection is not None or not again:
                    raise
        raise AssertionError("unreachable")

    def _rolled_back(self) -> None:
        """End what has begun; forget a connection that is lost."""
        if self._connection is None:
            return
        with contextlib.suppress(*self._backend.errors):
            self._connection.execute("ROLLBACK")
        if not self._connection.usable:
            with contextlib.suppress(*self._backend.errors):
                self._connection.close()
            self._connection = None

    def _commit(self, batch: list[tuple[Job[Any], Future[Any]]]) -> None:
        """Run jobs in one transaction, each in its own savepoint; set their futures after the commit."""
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        if not batch:
            return
        failures: tuple[type[Exception], ...] = (*self._backend.errors, DemeanorError)
        try:
            connection = self._begun()
            alone = len(batch) == 1  # then the transaction itself is its savepoint
            for job, done in batch:
                if not alone:
                    connection.execute("SAVEPOINT job")
                try:
                    outcomes.append((done, job(connection), None))
                except Exception as error:
                    connection.execute("ROLLBACK" if alone else "ROLLBACK TO job")
                    outcomes.append((done, None, error))
                if not alone:
                    connection.execute("RELEASE job")
            if not alone or outcomes[0][2] is None:
                connection.execute("COMMIT")
        except failures as error:
            self._rolled_back()
            outcomes = [(done, None, error) for _, done in batch]
        for done, result, failure in outcomes:
            if not done.set_running_or_notify_cancel():
                continue
            if failure is None:
                done.set_result(result)
            else:
                done.set_exception(self._told(failure))

    def _told(self, failure: BaseException) -> BaseException:
        if isinstance(failure, self._backend.errors):
            return StoreError(f"the database cannot write: {self._backend.reason(failure)}")
        if isinstance(failure, StoreError):
            return StoreError(f"the database cannot write: {failure}")
        return failure

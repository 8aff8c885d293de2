"""Shared by all tests: one torch thread per worker, where real data lies, and a small trained stack."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import settings

from tests.costs import Costs

# The default suite draws the same examples every time; with DEMEANOR_FUZZ set it draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("default" if os.environ.get("DEMEANOR_FUZZ") else "repeatable")

if TYPE_CHECKING:
    from demeanor.stack.stack import Stack
    from demeanor.training.runs import Runs
    from tests.servers import RedisProcess


def pytest_configure(config: pytest.Config) -> None:
    """Measure what each test costs (tests/costs.py); nothing is thrown away while tests are collected."""
    config.pluginmanager.register(Costs())
    gc.disable()


def pytest_collection_finish() -> None:
    """Ten thousand tests and all modules live to the end: later collections of garbage need not go over them."""
    gc.collect()
    gc.freeze()
    gc.enable()


REPOSITORY = Path(__file__).resolve().parent.parent

T = TypeVar("T")


def each(found: Iterable[T]) -> list[T]:
    """The elements of a collection that a test goes over; the test fails if there are none."""
    elements = list(found)
    assert elements, "there is nothing to check"
    return elements


def eventually(holds: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether something becomes true in time: looked at again and again, so that a busy machine only makes it later."""
    until = time.monotonic() + seconds
    while not (true := holds()) and time.monotonic() < until:
        time.sleep(0.01)
    return true


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository; the test skips where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            f"real data is not at {folder} (the ../shared folder of the workplace); nothing else needs it"
        )
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stack, Runs]:
    """One tiny stack with all its weights, trained once; in fp32, since `auto` measures which format is faster."""
    from demeanor import app
    from demeanor.training.runs import Runs
    from demeanor.training.stage import RunOptions
    from tests.app import tiny

    folder = tmp_path_factory.mktemp("tiny")
    stack, runs = app.load_stack(tiny.write(folder)), Runs(folder / "runs")
    app.train(stack, runs, options=RunOptions(dtype="fp32"))
    return stack, runs


@pytest.fixture(autouse=True)
def _no_database_in_the_repository() -> Iterator[None]:
    """A stack names its database from the working folder; a test that answers as one works in a folder of its own."""
    before = set(REPOSITORY.glob("*.db"))
    yield
    assert set(REPOSITORY.glob("*.db")) <= before


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server with pgvector; the test skips where there is none."""
    from tests.servers import postgres_server

    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def redis_process() -> Iterator[RedisProcess]:
    """A Redis server for all tests of a session; the test skips where there is none."""
    from tests.servers import redis_server

    with redis_server() as running:
        yield running


@pytest.fixture
def redis_url(redis_process: RedisProcess) -> str:
    """The address of an empty Redis."""
    import redis

    with redis.Redis.from_url(redis_process.url) as client:
        client.flushall()
    return redis_process.url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/runs/store.db"
    from tests.servers import new_schema

    return new_schema(request.getfixturevalue("postgres"))

"""A server as a process: SIGTERM lets what runs finish, cuts off what does not, and exits 0; SIGHUP calls for a reload."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from scripted import body

from tests.conftest import eventually

HERE = Path(__file__).parent


@contextmanager
def slow(drain_s: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "slow_server.py"), str(drain_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )
    try:
        port = process.stdout.readline().strip()  # type: ignore[union-attr]
        assert port, process.stderr.read()  # type: ignore[union-attr]
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def asking(
    url: str, answers: list[httpx.Response | httpx.HTTPError], text: str, **fields: object
) -> threading.Thread:
    def ask() -> None:
        try:
            answers.append(httpx.post(f"{url}/v1/chat/completions", json=body(text, **fields), timeout=120))
        except httpx.HTTPError as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def is_closed(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz", timeout=60)
    except httpx.ConnectError:
        return True
    except httpx.HTTPError:  # taken in the moment of closing
        pass
    return False


def wait_for(url: str, in_progress: int) -> None:
    until = time.monotonic() + 120
    while (
        f"demeanor_turns_in_progress {in_progress:.1f}\n" not in httpx.get(f"{url}/metrics", timeout=120).text
    ):
        assert time.monotonic() < until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_finish_new_ones_are_not_taken_and_the_exit_code_is_0(
    number: signal.Signals,
) -> None:
    answers: list[httpx.Response | httpx.HTTPError] = []
    with slow(10) as (process, url):
        threads = [asking(url, answers, "hello", stream=i == 0) for i in range(4)]
        wait_for(url, 4)
        process.send_signal(number)
        assert eventually(lambda: is_closed(url))
        assert process.wait(120) == 0
        for thread in threads:
            thread.join(120)
        assert [a.status_code for a in answers if isinstance(a, httpx.Response)] == [200] * 4
        assert all("surely" in a.text for a in answers if isinstance(a, httpx.Response))
        assert process.stdout.read() == "closed\n"  # type: ignore[union-attr]


def test_what_does_not_finish_is_cut_off_its_turn_is_closed_and_the_exit_code_is_0() -> None:
    answers: list[httpx.Response | httpx.HTTPError] = []
    with slow(0.5) as (process, url):
        threads = [asking(url, answers, "never", stream=i == 0) for i in range(2)]
        wait_for(url, 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        for thread in threads:
            thread.join(120)
        assert process.stdout.read().split() == ["cancelled", "cancelled", "closed"]  # type: ignore[union-attr]
    told = {a.status_code: a.text for a in answers if isinstance(a, httpx.Response)}
    assert set(told) == {200, 503}, "the stream had begun with a 200"
    assert all('"code":"cancelled"' in text for text in told.values())


def test_sighup_calls_for_a_reload_each_time_and_ends_nothing() -> None:
    with slow(1) as (process, url):
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
            assert process.stdout.readline() == "reload\n"  # type: ignore[union-attr]
        assert httpx.get(f"{url}/readyz", timeout=120).status_code == 200

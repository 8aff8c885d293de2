"""Two server processes behind one address, on PostgreSQL and Redis: exact budgets, a kill that loses nothing, one text of metrics."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

import demeanor
from demeanor.app import load_stack
from demeanor.core.errors import UsageError
from demeanor.server import serve
from demeanor.server.processes import labelled
from demeanor.serving import check_shared
from demeanor.stack.stack import Stack
from demeanor.store import keys
from demeanor.store.database import Database, open_url
from demeanor.training.runs import Runs
from tests.app.running import ASK, Serving, served
from tests.servers import new_schema

CALLERS = 64
DAY = 2500


@pytest.fixture
def desk(trained: tuple[Stack, Runs], tmp_path: Path) -> Path:
    """A copy of the tiny stack that may be changed."""
    shutil.copytree(trained[0].root, tmp_path / "desk", ignore=shutil.ignore_patterns("runs", "*.db*"))
    return tmp_path / "desk" / trained[0].path.name


def layers(stack: Path, **settings: dict[str, object]) -> None:
    """Change settings of the layers of a stack file, by kind."""
    raw = yaml.safe_load(stack.read_text())
    raw["layers"] = [layer | settings.get(layer["kind"], {}) for layer in raw["layers"]]
    stack.write_text(yaml.safe_dump(raw, sort_keys=False))


def workers(server: Serving) -> list[psutil.Process]:
    """The processes that serve; one that ends while it is looked at does not."""
    found = []
    for process in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
    return found


def ask_all(
    server: Serving, key: str, told: list[tuple[str, int]], statuses: list[int], rounds: int
) -> list[threading.Thread]:
    """64 callers at once; what was acknowledged goes to `told` as (id, tokens)."""

    def ask(number: int) -> None:
        with httpx.Client(
            base_url=server.url, timeout=60, headers={"authorization": f"Bearer {key}"}
        ) as client:
            for i in range(rounds):
                question = [{"role": "user", "content": f"{number}, {i}: when does the ferry leave?"}]
                try:
                    answer = client.post(
                        "/v1/chat/completions", json={**ASK, "messages": question, "max_tokens": 6}
                    )
                except httpx.HTTPError:
                    continue  # its process was killed
                statuses.append(answer.status_code)
                if answer.status_code == 200:
                    told.append((answer.json()["id"], answer.json()["usage"]["total_tokens"]))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(CALLERS)]
    for thread in threads:
        thread.start()
    return threads


def test_64_callers_on_two_processes_never_get_more_tokens_than_there_are_and_a_kill_loses_nothing(
    trained: tuple[Stack, Runs], desk: Path, tmp_path: Path, postgres: str, redis_url: str
) -> None:
    url = new_schema(postgres)
    layers(desk, record={"database": url}, limits={"requests_per_minute": 1_000_000, "store": redis_url})
    with closing(open_url(url, root=tmp_path)) as database:
        key = keys.create(database, "edda", tokens_per_day=DAY, requests_per_minute=100_000)
        options = ("--keys", url, "--redis", redis_url, "--processes", "2", "--drain", "5")
        told, statuses = list[tuple[str, int]](), list[int]()
        with served(desk, trained[1], tmp_path, *options) as server:
            server.waits_for(lambda: both_tell(server, key))
            asking = ask_all(server, key, told, statuses, rounds=3)
            server.waits_for(lambda: len(told) > 10)
            workers(server)[0].kill()
            for thread in asking:
                thread.join(300)
            server.waits_for(lambda: len(workers(server)) == 2)
            server.waits_for(lambda: both_tell(server, key))
            (desk.parent / "system.md").write_text("You are another clerk.\n")
            server.process.send_signal(signal.SIGHUP)
            server.waits_for(lambda: sum("is served now instead of" in line for line in server.errors) == 2)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(300) == 0
            assert not workers_left(server)
        assert "ended by signal SIGKILL; it is started again" in "".join(server.errors)
        spent = keys.spent(database, keys.digest(key), keys.day_of(database.now()))
        assert sum(tokens for _, tokens in told) <= spent <= DAY
        assert set(statuses) - {503} == {200, 429}, "the budget was used up; 503: the machine is too busy"
        stored = {s.turn.id for s in database.turns(limit=100_000)}
        assert {id for id, _ in told} <= stored


def both_tell(server: Serving, key: str) -> bool:
    """Whether each process tells its metrics through the one address."""
    try:
        answer = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {key}"}, timeout=30)
    except httpx.HTTPError:  # the process that was asked is being replaced, or the machine is busy
        return False
    return re.findall(r"demeanor_process_up{process=\"(\d)\"} 1.0", answer.text) == ["0", "1"]


def workers_left(server: Serving) -> list[int]:
    return [p.pid for p in psutil.process_iter(["ppid"]) if p.info["ppid"] == server.process.pid]


SUPERVISOR = """
import signal, sys, threading
from demeanor.server.processes import supervise

def serve(place):
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if sys.argv[2:] == [str(place.number)]:
        sys.exit(5)
    place.started(f"process {place.number}")
    stop.wait()
    return 0

if __name__ == "__main__":
    sys.exit(supervise(serve, host="127.0.0.1", port=0, processes=3, drain_s=5.0))
"""


def supervisor(folder: Path, *failing: str) -> subprocess.Popen[str]:
    (folder / "supervisor.py").write_text(SUPERVISOR)
    environment = os.environ | {"PYTHONPATH": str(Path(demeanor.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, str(folder / "supervisor.py"), "-", *failing],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def children_of(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    until = time.monotonic() + 300
    while len(found := psutil.Process(process.pid).children()) < count:
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = supervisor(tmp_path)
    assert parent.stdout is not None
    assert [parent.stdout.readline() for _ in range(2)] == ["process 0\n", "  processes  3\n"]
    children = children_of(parent, 3)
    parent.kill()
    _, alive = psutil.wait_procs(children, 60)
    assert alive == []
    parent.communicate()


def test_a_first_process_that_cannot_serve_ends_all_with_its_exit_code(tmp_path: Path) -> None:
    parent = supervisor(tmp_path, "0")
    parent.communicate(timeout=60)
    assert parent.returncode == 5


def test_a_later_process_that_cannot_serve_is_tried_again_and_the_others_go_on(tmp_path: Path) -> None:
    parent = supervisor(tmp_path, "1")
    assert parent.stderr is not None
    lines = [parent.stderr.readline() for _ in range(2)]
    assert all(
        re.match(r"process 1 \(pid \d+\) ended with exit code 5; it is started again", x) for x in lines
    )
    assert len(children_of(parent, 2)) >= 2
    parent.send_signal(signal.SIGINT)
    parent.communicate(timeout=60)
    assert parent.returncode == 0


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "limits in memory",
            r"--processes 2: the layer 'limits' counts in each process.* give it a store: redis://",
        ),
        (
            "a key without redis",
            r"--processes 2: the key of 'edda' has a limit of requests per minute.* --redis",
        ),
    ],
)
def test_limits_that_each_process_would_count_for_itself_are_refused(
    how: str, said: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    redis = "redis://localhost:1/0"
    layers(desk, limits={"store": None if how == "limits in memory" else redis})
    with closing(Database(tmp_path / "keys.db")) as database:
        keys.create(database, "edda", requests_per_minute=5)
    settings = serve.Settings(keys="sqlite:///keys.db", redis=None if how == "a key without redis" else redis)
    with pytest.raises(UsageError, match=said):
        check_shared(load_stack(desk), settings, 2)
    layers(desk, limits={"store": redis})
    check_shared(load_stack(desk), replace(settings, redis=redis), 2)


def test_metrics_of_processes_are_told_apart_and_one_that_is_silent_is_named() -> None:
    text = (
        b"# HELP demeanor_tokens_total Tokens.\n# TYPE demeanor_tokens_total counter\n"
        b'demeanor_tokens_total{direction="input"} %d\n'
    )
    lines = labelled({0: text % 3, 1: text % 4, 2: None}).decode().splitlines()
    assert 'demeanor_tokens_total{direction="input",process="0"} 3.0' in lines
    assert 'demeanor_tokens_total{direction="input",process="1"} 4.0' in lines
    assert lines.count("# TYPE demeanor_tokens_total counter") == 1
    assert [line for line in lines if line.startswith("demeanor_process_up{")] == [
        'demeanor_process_up{process="0"} 1.0',
        'demeanor_process_up{process="1"} 1.0',
        'demeanor_process_up{process="2"} 0.0',
    ]


def test_an_address_that_is_not_here_is_told_before_anything_is_loaded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from demeanor import cli

    words = [
        "serve",
        str(tmp_path / "none.yaml"),
        "--processes",
        "2",
        "--host",
        "192.0.2.1",
        "--api-key",
        "k",
    ]
    assert cli.main(words) == 2
    assert "--host 192.0.2.1 --port 8000: cannot listen there" in capfd.readouterr().err


def test_a_stack_that_cannot_be_served_is_told_once_and_ends_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from demeanor import cli

    assert cli.main(["serve", str(tmp_path / "none.yaml"), "--processes", "2", "--port", "0"]) == 2
    assert capfd.readouterr().err.count("none.yaml") == 1

"""`demeanor serve` as a process of its own, on a free port."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import demeanor
from demeanor.training.runs import Runs

ASK = {
    "model": "tiny-desk",
    "messages": [{"role": "user", "content": "When does the ferry to Jorpel leave?"}],
}


class Serving:
    """A running server: its process, its address, what it has written to stderr."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.errors = process, list[str]()
        threading.Thread(
            target=lambda: self.errors.extend(iter(process.stderr.readline, "")), daemon=True
        ).start()  # type: ignore[union-attr]
        said = ""
        while "API" not in said:
            line = process.stdout.readline()  # type: ignore[union-attr]
            assert line, self.errors
            said += line
        self.url = re.search(r"http://[0-9.:]+", said).group()  # type: ignore[union-attr]

    def waits_for(self, what: Callable[[], bool], seconds: float = 300.0) -> None:
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until, "".join(self.errors)
            time.sleep(0.05)


@contextmanager
def served(stack: Path, runs: Runs, folder: Path, *options: str) -> Iterator[Serving]:
    command = [
        sys.executable,
        "-m",
        "demeanor",
        "serve",
        str(stack),
        "--runs",
        str(runs.root.resolve()),
        "--port",
        "0",
        *options,
    ]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(demeanor.__file__).parents[1]),
        },
    )
    try:
        yield Serving(process)
    finally:
        process.kill()
        process.wait()

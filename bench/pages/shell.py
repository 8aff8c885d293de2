"""Runs commands as a reader's shell does: one folder and one environment that last for a page, servers beside it.

`demeanor ...` runs in a fork of this process, which has imported everything: a new interpreter takes 3 s of CPU a command.
Whatever needs a shell (pipes, variables, other programs) runs in bash, where `demeanor` and `python` are this interpreter's.
Ports of a page are replaced by free ones, so that it may run beside other servers.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
PORT = re.compile(r"((?:127\.0\.0\.1|localhost|0\.0\.0\.0):|--port[ =])(\d{4,5})\b")
SERVES = re.compile(r"demeanor (serve|label serve|tour$|tour --|tour [\w./-]*\.yaml)")
SAYS_S = 10.0
KEEPS = ("PATH", "LANG", "OMP_NUM_THREADS", "TMPDIR", "LD_LIBRARY_PATH")


@dataclass
class Done:
    """What a command did: its exit code (None: it went on past its time), what it printed, its seconds by clock and processor."""

    code: int | None
    printed: str
    seconds: float
    processor_s: float = 0.0


@dataclass
class Shell:
    """A folder with an environment and the servers that were started in it."""

    folder: Path
    shim: Path
    variables: dict[str, str] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)
    servers: list[tuple[int, Path]] = field(default_factory=list)
    let: dict[str, str] = field(default_factory=dict)
    ends: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.cwd = self.folder
        self.state = self.shim / "state"
        for name, words in (("demeanor", "-m demeanor"), ("python", ""), ("python3", "")):
            program = self.shim / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
            program.chmod(0o755)
        kept = {name: os.environ[name] for name in KEEPS if name in os.environ}
        self.variables = {
            **kept,
            "PATH": f"{self.shim}:{Path(sys.executable).parent}:{kept.get('PATH', '')}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),
            "COLUMNS": "200",
            "HF_HUB_OFFLINE": "1",
            **self.variables,
        }

    def port(self, named: str) -> str:
        """The free port that stands for a port of the page."""
        if named in self.ports.values():
            return named  # it stands for one already
        if named not in self.ports:
            with socket.socket() as found:
                found.bind(("127.0.0.1", 0))
                self.ports[named] = str(found.getsockname()[1])
        return self.ports[named]

    def with_ports(self, text: str) -> str:
        return PORT.sub(lambda m: m[1] + self.port(m[2]), text)

    def with_named_ports(self, text: str) -> str:
        """An output with the ports of the page again."""
        for named, free in self.ports.items():
            text = text.replace(free, named)
        return text

    def run(self, text: str, seconds: float, given: str = "") -> Done:
        """Run a command to its end; one that serves goes on beside the next ones once it answers."""
        text = self.with_ports(text)
        if SERVES.match(text):
            return self._serve(text, seconds)
        began, worked = time.monotonic(), processor_seconds()
        output = self.shim / "output"
        if text.startswith("demeanor ") and not re.search(r"[|<>&;`]|\s#|\$\(", text):
            code = self._wait(self._fork(demeanor(self._words(text)), output), seconds)
        else:
            code = self._bash(text, seconds, output, given)
        return Done(code, self._read(output), time.monotonic() - began, processor_seconds() - worked)

    def _words(self, text: str) -> list[str]:
        """The words after `demeanor`, with variables and patterns of names as bash expands them."""
        if not re.search(r"[$*?~\[]", text):
            return shlex.split(text)[1:]
        output = self.shim / "words"
        self._bash(f"printf '%s\\0' {text.removeprefix('demeanor ')}", 10, output, "")
        return output.read_text().split("\0")[:-1]

    def python(self, file: str, seconds: float) -> Done:
        """Run a Python file of the folder as a program."""

        def body() -> int:
            import runpy

            sys.path.insert(0, str(self.cwd))
            sys.argv = [file]
            runpy.run_path(str(self.cwd / file), run_name="__main__")
            return 0

        began, output = time.monotonic(), self.shim / "output"
        code = self._wait(self._fork(body, output), seconds)
        return Done(code, self._read(output), time.monotonic() - began)

    def _read(self, output: Path) -> str:
        return self.with_named_ports(output.read_text(encoding="utf-8", errors="replace"))

    def _fork(self, body: Callable[[], int], output: Path) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            return pid
        code = 3
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
            os.chdir(self.cwd)
            os.environ.clear()
            os.environ.update(self.variables)
            code = body()
        except BaseException as error:  # the fork must not go on as the runner
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 3
            if not isinstance(error, SystemExit):
                traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _wait(self, pid: int, seconds: float) -> int | None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        end(pid)
        return None

    def _bash(self, text: str, seconds: float, output: Path, given: str) -> int | None:
        script = f"{text}\ncode=$?\nexport -p > {self.state}\npwd >> {self.state}\nexit $code"
        with output.open("w") as out:
            process = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self.cwd,
                env=self.variables,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.communicate(given.encode(), timeout=seconds)
            except subprocess.TimeoutExpired:
                end(process.pid, reap=False)
                process.wait()
                return None
        if self.state.exists():
            *exports, cwd = self.state.read_text().splitlines()
            self.cwd = Path(cwd)
            self._exported("\n".join(exports))
            self.state.unlink()
        return process.returncode

    def _exported(self, text: str) -> None:
        for found in re.finditer(r'declare -x (\w+)="((?:[^"\\]|\\.)*)"', text):
            if found[1] not in ("PWD", "OLDPWD", "SHLVL", "_"):
                self.variables[found[1]] = re.sub(r"\\(.)", r"\1", found[2])

    def _serve(self, text: str, seconds: float) -> Done:
        """Start a server, and wait until it accepts connections or ends."""
        self.stop()
        port = next((found[2] for found in PORT.finditer(text) if found[1].startswith("--port")), None)
        if port is None:
            port = self.port("8010" if "label serve" in text else "8000")
            text += f" --port {port}"
        began, output = time.monotonic(), self.shim / f"server-{port}"
        pid = self._fork(demeanor(self._words(text)), output)
        while time.monotonic() - began < seconds:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return Done(code if code else 3, self._read(output), time.monotonic() - began)
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 1):
                self.servers.append((pid, output))
                until = time.monotonic() + SAYS_S
                while f":{port}" not in output.read_text() and time.monotonic() < until:
                    time.sleep(0.05)  # it tells its address when it accepts requests, but not with --log json
                return Done(0, self._read(output), time.monotonic() - began)
            time.sleep(0.05)
        end(pid)
        return Done(None, self._read(output), time.monotonic() - began)

    def until_the_end(self, context: contextlib.AbstractContextManager[T]) -> T:
        """Enter something that is left when the page ends."""
        return self.ends.enter_context(context)

    def alone(self, body: Callable[[], int]) -> int | None:
        """Something of the runner's own, in a fork, in the page's folder."""
        return self._wait(self._fork(body, self.shim / "alone"), 60)

    def beside(self, body: Callable[[], int]) -> None:
        """Something of the runner's own that goes on until the page ends."""
        self.servers.append((self._fork(body, self.shim / "beside"), Path()))

    def stop(self, everything: bool = False) -> list[str]:
        """End the page's servers; tracebacks that they printed."""
        wrong, kept = [], []
        for pid, output in self.servers:
            if output == Path() and not everything:
                kept.append((pid, output))
                continue
            end(pid)
            if output != Path() and "Traceback" in (text := self._read(output)):
                wrong.append(text[text.index("Traceback") :][:2000])
        self.servers = kept
        if everything:
            self.ends.close()
        return wrong


def processor_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def demeanor(words: list[str]) -> Callable[[], int]:
    """The command line in this process."""

    def body() -> int:
        from demeanor import cli

        sys.argv = ["demeanor", *words]
        return cli.main(words)

    return body


def end(pid: int, reap: bool = True, grace_s: float = 10) -> None:
    """Stop a process and those that it started: Ctrl-C, then without mercy."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGINT)
        until = time.monotonic() + grace_s
        while reap and time.monotonic() < until:
            if os.waitpid(pid, os.WNOHANG)[0]:
                reap = False
                break
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if reap:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)

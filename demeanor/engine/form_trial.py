"""Bounded compiling: a child process tries a grammar first, within limits of processor time and memory.

In: the text of a tokenizer.json and a grammar. Out: None, or why the grammar is refused; and the memory it takes. A child that exceeds a
limit dies, and no one else notices. This file is the child's program too, so it imports neither the package nor torch.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from typing import IO, Any

CPU_S, WALL_S, MEMORY_BYTES = 1.0, 20.0, 512 << 20
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 5_000_000,
    "max_grammar_size": 2_000_000,
    "max_lexer_states": 50_000,
}
LARGE = "it takes more than {:g} s or {} MiB to compile; make it smaller"


class Trials:
    """Children that try grammars for one tokenizer; they are started when needed and used again."""

    def __init__(self, source: str, vocab_size: int, eos_id: int) -> None:
        self._about = json.dumps({"source": source, "vocab_size": vocab_size, "eos_id": eos_id})
        self._idle: list[subprocess.Popen[str]] = []
        self._changed = threading.Lock()
        self._closed = False

    def refusal(self, grammar: str, stopped: threading.Event) -> tuple[str | None, int]:
        """Return why a grammar cannot be used (None: it can) and the bytes it takes; ends early if `stopped`."""
        with self._changed:
            child = self._idle.pop() if self._idle else None
        if child is None or child.poll() is not None:
            child = self._start()
        try:
            answer = self._answer(child, grammar, stopped)
        except BaseException:
            _end(child)
            raise
        if answer is None:
            _end(child)
            return LARGE.format(CPU_S, MEMORY_BYTES >> 20), 0
        with self._changed:
            if not self._closed:
                self._idle.append(child)
                child = None
        if child is not None:
            _end(child)
        found = json.loads(answer)
        return found["error"], int(found["bytes"])

    def close(self) -> None:
        """End all children that wait for work."""
        with self._changed:
            self._closed, idle, self._idle = True, self._idle, []
        for child in idle:
            _end(child)

    def _start(self) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-E", "-s", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        _write(child, self._about)
        return child

    def _answer(self, child: subprocess.Popen[str], grammar: str, stopped: threading.Event) -> str | None:
        _write(child, json.dumps(grammar))
        assert child.stdout is not None, "its output is a pipe"
        deadline = time.monotonic() + WALL_S
        while not stopped.is_set() and time.monotonic() < deadline:
            if select.select([child.stdout], [], [], 0.02)[0]:
                return child.stdout.readline() or None  # nothing: the child is dead
        return None


def _write(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None, "its input is a pipe"
    try:
        child.stdin.write(line + "\n")
        child.stdin.flush()
    except OSError:  # it is dead, and its empty output says so
        return


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was written did not arrive
                continue


def tried(tokens: Any, grammar: str) -> str | None:
    """Compile a grammar and compute its first mask; return why it cannot be used, or None."""
    import llguidance

    try:
        limits = llguidance.LLParserLimits(**LIMITS)
        matcher = llguidance.LLMatcher(tokens, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            mask = matcher.deep_copy().compute_bitmask()
            if not any(mask) and not matcher.is_accepting():
                return "no text fits it"
        return first_line(matcher.get_error()) if matcher.is_error() else None
    except ValueError as error:
        return first_line(str(error))


def first_line(text: str) -> str:
    """Return what is of use in an error message of llguidance."""
    return text.strip().splitlines()[0][:300] if text.strip() else "not understood"


def _main(lines: IO[str]) -> None:
    """Answer grammars, one a line, until the input ends."""
    import llguidance

    about = json.loads(lines.readline())
    tokens = llguidance.LLTokenizer(about["source"], n_vocab=about["vocab_size"], eos_token=about["eos_id"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    os.nice(5)  # requests that are answered come first
    page = resource.getpagesize()
    for line in lines:
        with open("/proc/self/statm") as file:
            size, before = (page * int(x) for x in file.read().split()[:2])
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, CPU_S)  # the signal ends the process
        error = tried(tokens, json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        with open("/proc/self/statm") as file:
            grown = page * int(file.read().split()[1]) - before
        print(json.dumps({"error": error, "bytes": max(0, grown)}), flush=True)
        if grown > MEMORY_BYTES // 4:  # the allocator keeps it: the next one should start small
            os._exit(0)


if __name__ == "__main__":
    _main(sys.stdin)

"""The python tool: it computes, and hostile code gets neither out nor far."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

pytest.importorskip("pydantic_monty", reason="the extra demeanor[sandbox] is not installed")

from demeanor.core.types import ToolCall
from demeanor.layers.tools import load
from demeanor.layers.tools.calls import outcome
from demeanor.tools import python

CALLS = load(["python"])


async def ran(code: str) -> tuple[str, str]:
    """How a call of the tool ends, and what the model reads."""
    call = ToolCall("1", "python", json.dumps({"code": code}))
    result, verdict = await outcome(call, CALLS, 20.0, 20_000)
    return verdict, result.content


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("sum(range(11))", "55"),
        ("print('a')\nprint('b')\n1 + 1", "a\nb\n2"),
        ("x = 3", ""),
        ("'text as it is'", "text as it is"),
        ("[1, {'a': None}]", "[1, {'a': None}]"),
        (
            "import math, re, json\njson.dumps([math.floor(2.5), re.findall('a', 'banana')])",
            '[2, ["a", "a", "a"]]',
        ),
    ],
)
async def test_it_returns_what_is_printed_and_the_last_value(code: str, told: str) -> None:
    assert await ran(code) == ("run", told)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print('first')\n1 / 0", "error: first\n"),
        ("def", "error: "),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("import pathlib\npathlib.Path('/etc/passwd').read_text()", "PermissionError"),
        ("import os\nos.listdir('/')", "PermissionError"),
        ("import os\nos.environ['PATH']", "not supported"),
        ("import os\nos.getenv('PATH')", ""),
        ("import os\nos.system('id')", "has no attribute"),
        ("import socket", "No module named 'socket'"),
        ("import subprocess", "No module named 'subprocess'"),
        ("import ctypes", "No module named 'ctypes'"),
        ("__import__('os').system('id')", "not defined"),
        ("().__class__.__base__.__subclasses__()", "error: "),
        ("import time\ntime.sleep(30)", "sleep limit"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("x = [0] * 10**10", "MemoryError"),
        ("x = 'a'\nwhile True: x += x", "MemoryError"),
        ("2 ** 10 ** 9", "MemoryError"),
        ("for i in range(10**7): print('x' * 100)", "more than 10000 characters were printed"),
    ],
)
async def test_hostile_code_gets_an_error_and_nothing_else(
    code: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMEANOR_SECRET_OF_THIS_TEST", "hunter2")
    began = time.monotonic()
    verdict, content = await ran(code)
    assert verdict == "failed" or content == "", content
    assert told in content
    assert "root:" not in content
    assert "hunter2" not in content
    assert len(content) < 12_000
    assert time.monotonic() - began < 15


async def test_a_loop_without_end_is_ended_and_the_next_call_works() -> None:
    verdict, content = await ran("print('going')\nwhile True: pass")
    assert verdict == "failed"
    assert content.startswith("error: going\n")
    assert "time limit exceeded" in content
    assert await ran("2 + 2") == ("run", "4")


async def test_a_worker_that_cannot_be_interrupted_is_killed() -> None:
    verdict, content = await ran("7 ** (3 * 10 ** 7) % 11")
    assert (verdict, content) == ("failed", "error: stopped after 3 s")
    assert await ran("2 + 2") == ("run", "4")


async def test_nothing_stays_between_calls_and_no_file_is_written(tmp_path: Path) -> None:
    assert (await ran("kept = 1"))[0] == "run"
    assert "not defined" in (await ran("kept"))[1]
    path = tmp_path / "made.txt"
    assert (await ran(f"open({str(path)!r}, 'w').write('x')"))[0] == "failed"
    assert not path.exists()
    assert Path.cwd() == Path(os.getcwd())


async def test_long_values_are_cut() -> None:
    verdict, content = await ran("'a' * 50_000")
    assert verdict == "run"
    assert content.endswith("[40000 more characters]")


def test_without_the_library_the_stack_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from demeanor.layers import tools

    monkeypatch.setitem(__import__("sys").modules, "pydantic_monty", None)
    (problem,) = tools.check(tools.Spec(allow=("python",)), tmp_path)
    assert "pip install 'demeanor[sandbox]'" in str(problem)
    assert python.missing() == python.MISSING

"""What bench/journeys.py counts: functions in any thread, and neither module-level code nor class bodies."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from bench.journeys import Counting

ENTRY = """
def answer():
    from toy.rooms import inner
    return [inner.double(x) for x in map(lambda x: x, range(3))]

def unused():
    pass
"""
INNER = """
class Setting:
    value = 1

def double(x):
    return 2 * x
"""
IMPORTED = """
def table():
    return {}

TABLE = table()
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    package = tmp_path / "toy"
    (package / "rooms").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "entry": ENTRY,
        "rooms/__init__": "",
        "rooms/inner": INNER,
        "rooms/imported": IMPORTED,
    }.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]


@pytest.fixture
def counting(toy: Path) -> Iterator[Counting]:
    before, threads_before = sys.getprofile(), threading.getprofile()
    counting = Counting(toy)
    counting.install()
    yield counting
    sys.setprofile(before)
    threading.setprofile(threads_before)


def module(name: str) -> ModuleType:
    return importlib.import_module(f"toy.{name}")


def test_an_import_and_its_class_bodies_enter_nothing(counting: Counting) -> None:
    counting.running = True
    module("entry"), module("rooms.inner")
    counting.running = False
    assert counting.found().files == []


def test_functions_jumps_and_rooms_of_a_call(counting: Counting) -> None:
    answer = module("entry").answer
    counting.running = True
    answer()
    counting.running = False
    found = counting.found()
    assert found.files == ["entry.py", "rooms/inner.py"]
    assert found.rooms == ["entry", "rooms"]
    assert found.functions == 2  # answer, double: no lambda, no comprehension
    assert (found.jumps, found.calls) == (3, 4)  # answer once, double three times from another file
    assert found.import_only == []


def test_functions_in_a_thread_count(counting: Counting) -> None:
    double = module("rooms.inner").double
    counting.running = True
    thread = threading.Thread(target=double, args=(1,))
    thread.start()
    thread.join()
    counting.running = False
    assert counting.found().files == ["rooms/inner.py"]


def test_a_function_that_an_import_calls_is_marked(counting: Counting) -> None:
    counting.running = True
    imported = module("rooms.imported")
    counting.running = False
    assert (counting.found().files, counting.found().import_only) == ([], ["rooms/imported.py"])
    counting.running = True
    imported.table()
    counting.running = False
    assert (counting.found().files, counting.found().import_only) == (["rooms/imported.py"], [])


def test_nothing_counts_while_it_does_not_run(counting: Counting) -> None:
    module("entry").answer()
    assert counting.found().calls == 0

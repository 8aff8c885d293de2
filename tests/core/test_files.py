"""Atomic writes, JSON lines that a kill tore, strict YAML."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from demeanor.core import files
from demeanor.core.errors import DataError, SpecError
from demeanor.core.files import json_lines, read_yaml, replacing, write_json, write_text, yaml_value


def test_a_written_file_appears_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "ü\n")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "ü\n"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def failing() -> None:
        with replacing(tmp_path / "a") as part:
            part.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_torn_last_line_is_left_out_and_sizes_say_where_the_whole_lines_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x": 1}\n{"x": 22}\n{"x": 3')
    found = list(json_lines(path, lambda row: row["x"], "a row"))
    assert found == [(1, 9), (22, 10)]
    assert list(json_lines(tmp_path / "absent", lambda row: row, "a row")) == []


@pytest.mark.parametrize("line", ["{", '{"y": 1}', "7"])
def test_any_other_broken_line_is_an_error_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"x": 1}}\n{line}\n{{"x": 2}}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not a row"):
        list(json_lines(path, lambda row: row["x"], "a row"))


def test_a_key_written_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: 1\ny: 2\nx: 3\n")
    with pytest.raises(SpecError, match=r"a\.yaml:3: not valid YAML: the key 'x' stands twice"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text", ["[1", "*a", "{a: b: c}", "[" * 5000, "{a: 1, a: 2}", "!!python/name:os.system"]
)
def test_yaml_of_the_command_line_is_an_error_of_its_option(text: str) -> None:
    with pytest.raises(SpecError, match=r"--set decoding\.stop: not valid YAML"):
        yaml_value(text, "--set decoding.stop")


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"x: \xff\n")
    with pytest.raises(SpecError, match=r"a\.yaml: not UTF-8 text \(byte 3\)"):
        read_yaml(tmp_path / "a.yaml")


def test_the_sum_of_a_large_file_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base of 16 GB is not read again by every command; a change of one byte, with the old time put back, is seen."""
    monkeypatch.setattr(files, "REMEMBERED_BYTES", 10)
    monkeypatch.setattr(files, "SETTLED_NS", -(10**9))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 20)
    wanted = hashlib.sha256(b"a" * 20).hexdigest()
    assert files.identity(path) == wanted
    (note,) = (tmp_path / "cache" / "demeanor" / "sums").iterdir()
    known = json.loads(note.read_text())
    assert known["sha256"] == wanted
    note.write_text(json.dumps(known | {"sha256": "0" * 64}))
    assert files.identity(path) == "0" * 64, "it was read from the note"
    before = path.stat()
    path.write_bytes(b"b" * 20)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system is coarse
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files.identity(path) == hashlib.sha256(b"b" * 20).hexdigest()
    note.write_text("{}")
    assert files.identity(path) == hashlib.sha256(b"b" * 20).hexdigest(), "a broken note is no sum"


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "REMEMBERED_BYTES", 10)
    monkeypatch.setattr(files, "SETTLED_NS", 10**15)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 20)
    assert files.identity(path) == hashlib.sha256(b"a" * 20).hexdigest()
    assert list((tmp_path / "cache" / "demeanor" / "sums").iterdir()) == []


def test_a_file_that_settles_while_it_is_read_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been changed twice within one tick of the file system's clock, and been read before the second time."""
    monkeypatch.setattr(files, "REMEMBERED_BYTES", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, own = tmp_path / "weights", files.sha256
    path.write_bytes(b"a" * 20)
    now = path.stat().st_ctime_ns + 1

    def slow(path: Path) -> str:
        nonlocal now
        now += 10 * files.SETTLED_NS
        return own(path)

    monkeypatch.setattr(files.time, "time_ns", lambda: now)
    monkeypatch.setattr(files, "sha256", slow)
    assert files.identity(path) == hashlib.sha256(b"a" * 20).hexdigest()
    assert list((tmp_path / "cache" / "demeanor" / "sums").iterdir()) == []
    assert files.identity(path) == hashlib.sha256(b"a" * 20).hexdigest()
    assert len(list((tmp_path / "cache" / "demeanor" / "sums").iterdir())) == 1, "it has settled by now"

"""A plug-in folder: files, folders and lists of entries, known without importing them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from demeanor.core import registry
from demeanor.core.errors import DemeanorError

FILES = {
    "single.py": "NAME = 'single'\n",
    "several.py": "'''Two.'''\nfrom types import SimpleNamespace\n\nENTRIES = {\n"
    "    'first': SimpleNamespace(NAME='first'),\n    'second': SimpleNamespace(NAME='second'),\n}\n",
    "folder/__init__.py": "NAME = 'folder'\n",
    "folder/part.py": "NAME = 'no entry'\n",
    "data/words.txt": "no package\n",
    "__init__.py": "SHARED = 'what entries share is no entry'\n",
    "_private.py": "raise AssertionError('private')\n",
    "breaks.py": "raise RuntimeError('imported')\n",
}


def plugins(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, str]) -> str:
    """A plug-in package of these files, importable under `name`."""
    for path, text in files.items():
        file = folder / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(folder)
    return name


def test_files_folders_and_listed_entries_are_known_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = plugins(tmp_path, monkeypatch, "plug_known", FILES)
    assert registry.known(package) == ("breaks", "first", "folder", "second", "single")
    assert f"{package}.several" not in sys.modules


@pytest.mark.parametrize("name", ["single", "first", "second", "folder"])
def test_an_entry_is_a_module_or_a_value_of_its_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert name == registry.entry(plugins(tmp_path, monkeypatch, f"plug_{name}", FILES), name).NAME


def test_the_name_of_a_file_with_a_list_is_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = plugins(tmp_path, monkeypatch, "plug_unknown", FILES)
    with pytest.raises(DemeanorError, match="'several'"):
        registry.entry(package, "several")


def test_entries_that_cannot_be_read_without_importing_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = plugins(tmp_path, monkeypatch, "plug_made", {"made.py": "\nENTRIES = dict(a=1)\n"})
    with pytest.raises(DemeanorError, match="wanted a dict literal"):
        registry.known(package)


def test_two_files_cannot_hold_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"first.py": "", "several.py": "\nENTRIES = {'first': 1}\n"}
    with pytest.raises(DemeanorError, match="first"):
        registry.known(plugins(tmp_path, monkeypatch, "plug_twice", files))


def test_the_names_of_objectives_are_known_without_torch() -> None:
    code = (
        "import sys; from demeanor.core import registry; "
        "assert 'aot' in registry.known('demeanor.objectives'); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

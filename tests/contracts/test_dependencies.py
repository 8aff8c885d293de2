"""The floors of dependencies: releases that mended a hole are declared, and what is installed has them."""

from __future__ import annotations

import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import REPOSITORY

HOLES = {
    "h11": "0.15",
    "jinja2": "3.1.5",
    "orjson": "3.11.4",
    "pyyaml": "5.3.1",
    "safetensors": "0.3.1",
    "starlette": "1.0.0",
    "transformers": "5.2.0",
    "uvicorn": "0.11.6",
}
"""The last release with a known hole; pyproject.toml names the CVE beside each floor."""


@pytest.mark.parametrize("name", HOLES)
def test_floors_of_security_releases_are_declared_and_installed(name: str) -> None:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "dependencies"
    ]
    (wanted,) = [r for r in map(Requirement, declared) if r.name.lower() == name]
    assert not wanted.specifier.contains(Version(HOLES[name]))
    assert wanted.specifier.contains(Version(version(name)))

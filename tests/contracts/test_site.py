"""The documentation site shows every page of docs/ once; `make docs` builds it strictly."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from tests.conftest import REPOSITORY

SITE = REPOSITORY / "docs" / "site"


def test_every_page_stands_in_one_chapter_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx", reason="needs the extra 'docs'")
    spec = importlib.util.spec_from_file_location("site_build", SITE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "site_build", build)
    spec.loader.exec_module(build)
    assert build.missing(build.CHAPTERS) == []
    assert build.missing({**build.CHAPTERS, "Twice": ("data", "nowhere")}) == ["data", "nowhere"]

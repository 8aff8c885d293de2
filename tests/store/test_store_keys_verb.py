"""`demeanor keys`: a key is shown once, listed by its first characters, and ended by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from demeanor import cli
from demeanor.store import database, keys


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/keys.db"


def test_a_made_key_is_shown_once_and_works(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(
            [
                "keys",
                "create",
                "edda",
                "--scopes",
                "chat,models",
                "--requests-per-minute",
                "7",
                "--tokens-per-day",
                "900",
                "--database",
                url,
            ]
        )
        == 0
    )
    key = capsys.readouterr().out.strip()
    opened = database.open_url(url, root=tmp_path)
    found = keys.find(opened, key)
    opened.close()
    assert found is not None
    assert (found.name, found.scopes, found.requests_per_minute, found.tokens_per_day) == (
        "edda",
        ("chat", "models"),
        7,
        900,
    )
    assert cli.main(["keys", "list", "--database", url]) == 0
    listed = capsys.readouterr().out
    assert key not in listed
    for shown in ("edda", key[:10], "chat,models", "7/min", "0 of 900", "in force"):
        assert shown in listed


def test_revoking_says_what_it_ended_and_an_unknown_name_is_a_mistake(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["keys", "create", "edda", "--database", url])
    key = capsys.readouterr().out.strip()
    assert cli.main(["keys", "revoke", "edda", "--database", url]) == 0
    assert capsys.readouterr().out == f"revoked {key[:10]}... of edda\n"
    assert cli.main(["keys", "revoke", "edda", "--database", url]) == 2
    assert "keys revoke: got 'edda'" in capsys.readouterr().err
    cli.main(["keys", "list", "--database", url])
    assert "revoked 20" in capsys.readouterr().out


def test_an_unknown_scope_and_a_bad_address_are_refused_by_name(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["keys", "create", "edda", "--scopes", "chta", "--database", url]) == 2
    assert "Did you mean 'chat'" in capsys.readouterr().err
    assert cli.main(["keys", "list", "--database", "keys.db"]) == 2
    assert "wanted sqlite:///PATH" in capsys.readouterr().err


def test_a_password_of_an_address_is_never_printed(postgres: str, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.servers import new_schema

    url = new_schema(postgres).replace("postgres:@", "postgres:hunter2@")
    assert cli.main(["keys", "list", "--database", url]) == 0
    assert cli.main(["keys", "revoke", "nobody", "--database", url]) == 2
    assert cli.main(["store", "where", "nobody", "--database", url]) == 2
    captured = capsys.readouterr()
    assert "postgres:***@" in captured.out
    assert "postgres:***@" in captured.err
    assert "hunter2" not in captured.out + captured.err


@pytest.mark.parametrize(
    "words",
    [
        ["keys", "revoke", "ann"],
        ["label", "status"],
        ["label", "export", "rows.jsonl"],
        ["store", "where", "ann"],
    ],
)
def test_a_mistyped_database_is_told_and_not_made(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words, "--database", "sqlite:///mistyped.db"]) == 2
    assert "mistyped.db: no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

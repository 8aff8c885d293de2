"""`keys`: API keys made, listed and revoked; a running `serve --keys` knows of it at the next request."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from demeanor.core.errors import DemeanorError

DATABASE = "sqlite:///runs/keys.db"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `keys` and its commands."""
    verb = verbs.add_parser(
        "keys", help="make, list and revoke API keys", description="Make, list and revoke API keys."
    )
    commands = verb.add_subparsers(title="commands", required=True, metavar="COMMAND")

    made = _command(commands, "create", create, "make a key; it is shown this once")
    made.add_argument("name", metavar="NAME", help="whose it is: the `user` of its requests")
    made.add_argument(
        "--scopes",
        metavar="A,B",
        help="what it may do: chat, embeddings, feedback, metrics, models, moderations (default: everything)",
    )
    made.add_argument("--requests-per-minute", type=int, metavar="N")
    made.add_argument(
        "--tokens-per-day", type=int, metavar="N", help="prompts and answers together, per day (UTC)"
    )

    _command(commands, "list", show, "all keys by name and first characters, with what each has spent today")
    ended = _command(
        commands, "revoke", revoke, "end all keys of a name, or the one with these first characters"
    )
    ended.add_argument("which", metavar="NAME")


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    command.add_argument(
        "--database", default=DATABASE, metavar="URL", help=f"where keys are kept (default: {DATABASE})"
    )
    command.set_defaults(run=run)
    return command


def create(options: argparse.Namespace) -> int:
    """Print a new key. Raises DemeanorError for an empty name, an unknown scope, or a limit below 1."""
    from demeanor.store import database, keys

    scopes = options.scopes.split(",") if options.scopes is not None else None
    with closing(database.open_url(options.database, root=Path.cwd())) as opened:
        print(
            keys.create(
                opened,
                options.name,
                scopes=scopes,
                requests_per_minute=options.requests_per_minute,
                tokens_per_day=options.tokens_per_day,
            )
        )
    return 0


def show(options: argparse.Namespace) -> int:
    """Print all keys, oldest first."""
    from demeanor.store import database, keys

    with closing(database.open_url(options.database, root=Path.cwd())) as opened:
        day = keys.day_of(opened.now())
        rows = [
            (
                k.name,
                f"{k.prefix}...",
                f"{k.created:%Y-%m-%d}",
                f"revoked {k.revoked:%Y-%m-%d}" if k.revoked else "in force",
                ",".join(k.scopes) if k.scopes else "everything",
                f"{k.requests_per_minute or 'any'}/min",
                _tokens(keys.spent(opened, k.digest, day), k.tokens_per_day),
            )
            for k in keys.stored(opened)
        ]
    if not rows:
        print(
            f"no keys in {options.database}; make one: demeanor keys create NAME --database {options.database}"
        )
        return 0
    table = [("name", "key", "created", "state", "scopes", "requests", "tokens today"), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _tokens(used: int, limit: int | None) -> str:
    return f"{used} of {limit}" if limit else "unlimited"


def revoke(options: argparse.Namespace) -> int:
    """End keys and say which. Raises DemeanorError if there is none such."""
    from demeanor.store import database, keys

    with closing(database.open_url(options.database, root=Path.cwd())) as opened:
        ended = keys.revoke(opened, options.which)
    if not ended:
        raise DemeanorError(
            f"keys revoke: got '{options.which}', wanted the name or first characters of a key in force. "
            f"See: demeanor keys list --database {options.database}"
        )
    for key in ended:
        print(f"revoked {key.prefix}... of {key.name}")
    return 0

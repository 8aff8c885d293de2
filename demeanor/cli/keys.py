"""`keys`: make, list and revoke the API keys that `serve --keys` asks for. A key is shown once, when it is made."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demeanor.errors import DemeanorError

if TYPE_CHECKING:
    from demeanor.store.database import Database

DATABASE = "sqlite:///runs/requests.db"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `keys` and its three actions."""
    keys = verbs.add_parser("keys", help="make, list and revoke API keys",
                          description="API keys for `demeanor serve STACK.yaml --keys URL`.")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key; it is shown once", description="Make a key and show it, this once.")
    create.add_argument("name", metavar="NAME", help="whose key it is: the `user` of everything asked with it")
    create.add_argument("--scopes", metavar="A,B", help="chat, embeddings, feedback, models, moderations (default: everything)")
    create.add_argument("--requests-per-minute", type=int, metavar="N", help="requests in any 60 s (default: no limit)")
    create.add_argument("--tokens-per-day", type=int, metavar="N", help="tokens a day (UTC), asked and answered (default: no limit)")
    create.set_defaults(run=_create)
    listed = actions.add_parser("list", help="all keys, revoked ones too", description="List all keys by their first characters.")
    listed.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="end a key from its next request on",
                                description="Revoke keys; running servers obey at once.")
    revoke.add_argument("which", metavar="NAME_OR_PREFIX", help="every key of that name, or the one with these first characters")
    revoke.set_defaults(run=_revoke)
    for action in (create, listed, revoke):
        action.add_argument("--database", default=DATABASE, metavar="URL", help=f"sqlite:///PATH (default: {DATABASE})")


def _open(options: argparse.Namespace) -> Database:
    from demeanor.store.database import open_url

    return open_url(options.database, root=Path.cwd())


def _create(options: argparse.Namespace) -> int:
    from demeanor.store import keys

    scopes = None if options.scopes is None else [s.strip() for s in options.scopes.split(",") if s.strip()]
    database = _open(options)
    try:
        key = keys.create(database, options.name, scopes=scopes, requests_per_minute=options.requests_per_minute,
                          tokens_per_day=options.tokens_per_day)
    finally:
        database.close()
    print(f"{key}\n\nThis is the only time it is shown: {options.database} keeps its SHA-256.\n"
          f"serve with:  demeanor serve STACK.yaml --keys {options.database}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from demeanor.store import keys

    database = _open(options)
    try:
        day = database.now().date().isoformat()
        rows = [(key, keys.spent(database, key.digest, day)) for key in keys.stored(database)]
    finally:
        database.close()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("key", "name", "made", "may", "requests/min", "tokens/day", "spent today", "state"):
        table.add_column(column, justify="right" if "/" in column or "spent" in column else "left")
    for key, spent in rows:
        limits = [f"{n:,}" if n else "no limit" for n in (key.requests_per_minute, key.tokens_per_day)]
        table.add_row(Text(f"{key.prefix}..."), Text(key.name), f"{key.created:%Y-%m-%d}", ",".join(key.scopes or ("everything",)), *limits,
                      f"{spent:,}" if key.tokens_per_day else "", f"revoked {key.revoked:%Y-%m-%d}" if key.revoked else "in force")
    Console(highlight=False).print(table if rows else f"no keys in {options.database}; make one: demeanor keys create NAME")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from demeanor.store import keys

    database = _open(options)
    try:
        ended = keys.revoke(database, options.which)
    finally:
        database.close()
    if not ended:
        raise DemeanorError(f"keys: no key in force in {options.database} has the name or the first characters '{options.which}'. "
                            "See: demeanor keys list")
    for key in ended:
        print(f"revoked {key.prefix}... of {key.name}")
    return 0

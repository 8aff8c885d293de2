"""`demeanor keys`: create, list and revoke API keys; a running `serve --keys` sees the change at the next request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli.options import database_at
from demeanor.cli.tables import columns
from demeanor.core.addresses import shown
from demeanor.core.errors import UsageError

if TYPE_CHECKING:
    from demeanor.store.keys import KeyCost

DATABASE = "sqlite:///runs/keys.db"
NO_KEYS = "make a key: demeanor keys create NAME"
Url = Annotated[str, typer.Option("--database", metavar="URL", help="The database of the keys.")]

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")


@app.command()
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Owner of the key: the `user` of its requests.")
    ],
    scopes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Permissions: chat, embeddings, feedback, metrics, models, moderations, operator (default: all but operator).",
        ),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="N", help="Limit of requests per minute.")
    ] = None,
    tokens_per_day: Annotated[
        int | None,
        typer.Option(metavar="N", help="Limit of tokens per day (UTC), prompts and answers together."),
    ] = None,
    usd_per_day: Annotated[
        float | None, typer.Option(metavar="USD", help="Limit of cost per day (UTC), by serve.prices.")
    ] = None,
    models: Annotated[
        str, typer.Option(metavar="ID,ID", help="Model ids allowed besides those that the stack publishes.")
    ] = "",
    url: Url = DATABASE,
) -> None:
    """Create a key and print it; it cannot be printed again."""
    from demeanor.store import keys

    with database_at(url) as database:
        key = keys.create(
            database,
            name,
            scopes=scopes.split(",") if scopes is not None else None,
            requests_per_minute=requests_per_minute,
            tokens_per_day=tokens_per_day,
            models=models.split(",") if models else (),
            usd_per_day=usd_per_day,
        )
    print(key)


@app.command("list")
def show(url: Url = DATABASE) -> None:
    """List all keys: name, first characters, state, permissions, the tokens used today, and USD today and this month."""
    from demeanor.store import keys

    rows = []
    with database_at(url) as database:
        day = keys.day_of(database.now())
        for key in keys.stored(database):
            spent = keys.spent(database, key.digest, day)
            today, month = (keys.cost(database, key.digest, span) for span in (day, day[:7]))
            rows.append(
                (
                    key.name,
                    f"{key.prefix}...",
                    f"{key.created:%Y-%m-%d}",
                    f"revoked {key.revoked:%Y-%m-%d}" if key.revoked else "in force",
                    ",".join(key.scopes) if key.scopes else "all but operator",
                    ",".join(key.models) or "published",
                    f"{key.requests_per_minute or 'any'}/min",
                    f"{spent} of {key.tokens_per_day}" if key.tokens_per_day else "unlimited",
                    f"{_usd(today)} of {key.usd_per_day:g}" if key.usd_per_day else _usd(today),
                    _usd(month),
                )
            )
    if not rows:
        print(f"no keys in {shown(url)}; make one: demeanor keys create NAME --database {shown(url)}")
        return
    print(
        "\n".join(
            columns(
                (
                    *("name", "key", "created", "state", "scopes", "models", "requests", "tokens today"),
                    *("usd today", "usd this month"),
                ),
                rows,
            )
        )
    )


def _usd(cost: KeyCost) -> str:
    """An amount, and the calls that it does not count because their price is not known."""
    unknown = f" + {cost.unpriced} calls without a price" if cost.unpriced else ""
    return f"{cost.nano_usd / 1e9:.6f}{unknown}"


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(metavar="NAME", help="A name, or the first characters of a key.")],
    url: Url = DATABASE,
) -> None:
    """Revoke all keys of a name, or the key with these first characters."""
    from demeanor.store import keys

    with database_at(url, absent=NO_KEYS) as database:
        ended = keys.revoke(database, which)
    if not ended:
        raise UsageError(
            f"keys revoke: got '{which}', wanted the name or first characters of a key in force. "
            f"See: demeanor keys list --database {shown(url)}"
        )
    for key in ended:
        print(f"revoked {key.prefix}... of {key.name}")

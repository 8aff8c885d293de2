"""Addresses with secrets, such as `postgresql://desk:${DESK_PASSWORD}@host/desk`.

In: an address as it is written in a file or on a command line. Out: the address with environment variables filled
in, for whoever connects; and one without its password, for everything that is printed, logged or stored.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote

from demeanor.core.errors import UsageError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# Greedy up to the last @: a password that was not percent-encoded may hold any character.
_USER_INFO = re.compile(r"^([a-z][a-z0-9+.]*://)([^:/?#@]*):(.*)@", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(r"([?&](?:ssl)?password=)([^&]*)", re.IGNORECASE)
HIDDEN = "***"
POSTGRES = ("postgresql://", "postgres://")
REDIS = ("redis://", "rediss://", "unix://")
DATABASE = "sqlite:///PATH or postgresql://USER@HOST/DATABASE"


def filled(address: str) -> str:
    """Return the address with `${NAME}` replaced by environment variables, percent-encoded unless one is the whole address.

    Raises UsageError for a variable that is not set.
    """
    if whole := _VARIABLE.fullmatch(address.strip()):
        return _value(whole[1])
    return _VARIABLE.sub(lambda found: quote(_value(found[1]), safe=""), address)


def _value(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise UsageError(f"the environment variable {name} is not set")
    return value


def shown(address: str) -> str:
    """Return the address as it may be printed: a password that stands in it becomes ***."""
    found = _USER_INFO.sub(lambda m: f"{m[1]}{m[2]}:{_hidden(m[3])}@", address)
    return _PARAMETER.sub(lambda m: m[1] + _hidden(m[2]), found)


def _hidden(password: str) -> str:
    return password if not password or _VARIABLE.fullmatch(password) else HIDDEN


def checked(address: str, schemes: tuple[str, ...], wanted: str) -> str:
    """Return an address of a stack file; raises ValueError for another scheme, or a password that stands in it."""
    got = f"got '{shown(address)}', wanted {wanted}"
    if not _VARIABLE.fullmatch(address) and not any(
        address.startswith(scheme) and len(address) > len(scheme) for scheme in schemes
    ):
        raise ValueError(got)
    if passwords(address):
        raise ValueError(
            f"got '{shown(address)}', wanted no password in a file; name an environment variable that holds it: ${{NAME}}"
        )
    return address


def database_url(address: str) -> str:
    """Return the address of a database in a stack file; raises ValueError as `checked` does."""
    return checked(address, ("sqlite:///", *POSTGRES), DATABASE)


def postgres_url(address: str) -> str:
    """Return the address of a PostgreSQL database in a stack file; raises ValueError as `checked` does."""
    return checked(address, POSTGRES, "postgresql://USER@HOST/DATABASE")


def redis_url(address: str) -> str:
    """Return the address of a Redis in a stack file; raises ValueError as `checked` does."""
    return checked(address, REDIS, "redis://HOST:PORT/NUMBER")


def passwords(address: str) -> list[str]:
    """Return the passwords that stand in an address, as written and decoded; those named by `${NAME}` do not."""
    given = [m[3] for m in _USER_INFO.finditer(address)] + [m[2] for m in _PARAMETER.finditer(address)]
    literal = [word for word in given if word and not _VARIABLE.fullmatch(word)]
    return list(dict.fromkeys([*literal, *map(unquote, literal)]))


def without(text: str, secrets: list[str]) -> str:
    """Return a text in which every secret is replaced by ***."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text

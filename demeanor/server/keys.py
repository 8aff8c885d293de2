"""API keys: a presented key becomes a user name, or nothing.

A KeyStore is any callable: `from_digests` is the plain one over SHA-256 digests, a `Ring` also knows those of a database.
Keys themselves are never stored and never logged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from demeanor.core.errors import RequestError
from demeanor.store import keys as stored
from demeanor.store.database import Database

KeyStore: TypeAlias = Callable[[str], str | None]
"""Takes the key a client presented; returns whose it is, or None."""


def digest(key: str) -> str:
    """The lowercase hexadecimal SHA-256 of a key: the only form in which keys are kept."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def from_digests(users: Mapping[str, str]) -> KeyStore:
    """A KeyStore over {digest: user name}; every digest is compared, each in constant time."""

    def user_of(key: str) -> str | None:
        shown, found = digest(key), None
        for known, user in users.items():
            if hmac.compare_digest(shown, known):
                found = user
        return found

    return user_of


@dataclass(frozen=True, slots=True)
class Ring:
    """A KeyStore over a database of keys and, beside it, plain ones without scopes and limits."""

    database: Database
    plain: KeyStore | None = None

    def __call__(self, key: str) -> str | None:
        found = self.find(key)
        if found is not None:
            return found.name
        return self.plain(key) if self.plain else None

    def find(self, key: str) -> stored.Key | None:
        """The stored key that this text is; None if it is unknown, revoked or a plain one."""
        return stored.find(self.database, key)


def presented(authorization: str | None) -> str:
    """The key in an Authorization header; empty if there is none."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def user_of(authorization: str | None, keys: KeyStore | None) -> str | None:
    """The user behind an Authorization header, or None where no keys are configured.

    Raises RequestError (401) if keys are configured and none, or a wrong one, is presented.
    """
    if keys is None:
        return None
    key = presented(authorization)
    if not key:
        raise _unauthorised("No API key was given. Send it in the header `Authorization: Bearer KEY`.")
    user = keys(key)
    if user is None:
        raise _unauthorised("The API key is not known here.")
    return user


def _unauthorised(message: str) -> RequestError:
    return RequestError(message, status=401, kind="authentication_error", code="invalid_api_key")

"""Answers that wait for a person's approval of their calls, for all server processes that share a database.

In: a Database. Out: what was kept under a token, and whether it is used for the first time. One statement decides, so of two
requests with one token one wins. A turn that is deleted takes its entry with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from demeanor.store.backends import Connection
from demeanor.store.database import Database

TOLD_S = 3600.0
"""How long an entry is known after it expired, so that its client is told why it does not hold."""


@dataclass(frozen=True, slots=True)
class KeptApproval:
    """What waits, by the id of its turn: `about` is JSON for the server that wrote it; `expires` in seconds since 1970.

    The token alone allows nothing: it holds for the user, the key and the conversation that `about` names.
    """

    turn: str
    user: str
    token: str
    expires: float
    about: str


@dataclass(frozen=True, slots=True)
class StoredApprovals:
    """Waiting approvals in a database; times in seconds since 1970."""

    database: Database

    async def keep(self, entry: KeptApproval, now: float) -> None:
        """Keep an entry; entries that expired long ago are forgotten."""

        def write(connection: Connection) -> None:
            connection.execute("DELETE FROM waiting_approvals WHERE expires < ?", (now - TOLD_S,))
            connection.execute(
                "INSERT INTO waiting_approvals (turn, user, token, expires, about, used) VALUES (?, ?, ?, ?, ?, 0)",
                (entry.turn, entry.user, entry.token, entry.expires, entry.about),
            )

        await self.database.queue(write)

    async def find(self, token: str) -> KeptApproval | None:
        """The entry of a token, used or not."""
        return await self._found("token", token)

    async def of_turn(self, turn: str) -> KeptApproval | None:
        """The entry of a turn, used or not."""
        return await self._found("turn", turn)

    async def _found(self, column: str, value: str) -> KeptApproval | None:
        query = f"SELECT turn, user, token, expires, about FROM waiting_approvals WHERE {column} = ?"  # noqa: S608  # one of two
        rows = await self.database.read(lambda: self.database.rows(query, value))
        return KeptApproval(*rows[0]) if rows else None

    async def use(self, turn: str) -> bool:
        """Mark the entry of a turn as used; False if it was before, or is gone."""
        query = "UPDATE waiting_approvals SET used = 1 WHERE turn = ? AND used = 0"
        return await self.database.queue(lambda c: c.execute(query, (turn,)).rowcount == 1)

    async def give_back(self, turn: str) -> None:
        """Take back that an entry was used: its request was refused before anything ran."""
        query = "UPDATE waiting_approvals SET used = 0 WHERE turn = ?"
        await self.database.queue(lambda c: c.execute(query, (turn,)).rowcount)

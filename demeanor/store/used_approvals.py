"""Which approvals of tool calls have been used, for all server processes that share a database.

In: a Database. Out: whether an approval is used for the first time. One statement decides, so of two requests with one token one wins.
"""

from __future__ import annotations

from dataclasses import dataclass

from demeanor.store.backends import Connection
from demeanor.store.database import Database


@dataclass(frozen=True, slots=True)
class StoredApprovals:
    """Used approvals in a database; those that have expired are forgotten."""

    database: Database

    async def use(self, approval: str, expires: float, now: float) -> bool:
        """Mark an approval as used (times in seconds since 1970); False if it was before."""

        def write(connection: Connection) -> bool:
            connection.execute("DELETE FROM used_approvals WHERE expires < ?", (now,))
            query = "INSERT INTO used_approvals (id, expires) VALUES (?, ?) ON CONFLICT (id) DO NOTHING"
            return connection.execute(query, (approval, expires)).rowcount == 1

        return await self.database.queue(write)

    async def give_back(self, approval: str) -> None:
        """Forget that an approval was used: its request was refused before anything ran."""
        await self.database.queue(
            lambda connection: (
                connection.execute("DELETE FROM used_approvals WHERE id = ?", (approval,)).rowcount
            )
        )

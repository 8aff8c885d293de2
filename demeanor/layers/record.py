"""The record layer: writes every turn and its events to the database.

In: a turn, and its events. Out: the same events; Done is passed on only when the turn is stored, without what the stack's
policy takes out of it before the model reads it. A database that cannot be written refuses a turn before it costs
anything; one that fails later leaves the answer as it is, and the log says so. A turn that breaks off is stored as far
as it came; one that is refused before its first event is not stored. Knows no database.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from demeanor.core import registry
from demeanor.core.addresses import database_url
from demeanor.core.types import Done, Event, Respond, Turn
from demeanor.layers import Kit, Record, timed

BEHAVIOUR = False
log = logging.getLogger("demeanor.layers")


class Spec(registry.Spec):
    """Where turns are stored."""

    database: Annotated[str, AfterValidator(database_url)] = Field(
        "sqlite:///runs/requests.db",
        description="sqlite:///PATH, from the working folder, or postgresql://USER:${PASSWORD}@HOST/DATABASE",
    )
    keep_days: int | None = Field(
        None, gt=0, le=36_500, description="`serve` deletes older turns, every hour; null: nothing is deleted"
    )
    keep_rated: bool | None = Field(
        None, description="turns with feedback stay however old they are; null: no"
    )
    raw: bool | None = Field(
        None,
        description="requests are stored as they were sent, also what `redact` and `rewrite` rules hide; null: no",
    )

    @model_validator(mode="after")
    def _of_days(self) -> Spec:
        if self.keep_rated is not None and self.keep_days is None:
            raise ValueError("keep_rated: is for `keep_days`, and there is none; leave it out")
        return self


def retention(spec: Spec) -> tuple[timedelta, bool] | None:
    """Return how long turns are kept, and whether those with feedback stay longer; None: for ever."""
    return None if spec.keep_days is None else (timedelta(days=spec.keep_days), bool(spec.keep_rated))


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Record every turn; variants that share `kit.shared` share one store."""
    opened = ("record", spec.database)
    if opened not in kit.shared:
        kit.shared[opened] = kit.open_store(spec.database)
    store: Record = kit.shared[opened]
    can_write = kit.open_check(spec.database)

    async def written(turn: Turn, events: list[Event], started: datetime) -> None:
        try:
            await store(turn, events, started, kit.now())
        except Exception as error:  # the answer stands
            log.error("turn %s is not recorded: %s", turn.id, error)

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        await can_write()
        started, events, stored = kit.now(), list[Event](), False
        kept = turn if spec.raw else await kit.kept(turn)
        try:
            async for event in inner(turn):
                events.append(event)
                if isinstance(event, Done):
                    stored = True
                    await written(kept, events, started)
                yield event
        finally:
            if events and not stored:
                await written(kept, events, started)

    return timed("record", body, inner, kit.clock)

"""`label serve`: the labelling page on a port of its own, until Ctrl-C or SIGTERM; running requests are finished first."""

from __future__ import annotations

import sys

from demeanor.server.labelling import Labelling, Measure, labelling_app
from demeanor.server.lifecycle import Life
from demeanor.store.database import Database

DRAIN_S = 5.0


def serve(database: Database, measure: Measure, host: str, port: int) -> None:
    """Serve the queues of a database."""

    async def no_reload() -> None:
        pass

    def started(found: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        print(
            f"labelling page: http://{shown}:{found}/label  (open it by a link of `demeanor label invite`)",
            flush=True,
        )

    if host not in ("127.0.0.1", "::1", "localhost"):
        print("people's links are their keys: put HTTPS in front of this address", file=sys.stderr)
    Life().run(
        labelling_app(Labelling(database, measure)),
        host=host,
        port=port,
        drain_s=DRAIN_S,
        log_config=None,
        reload=no_reload,
        started=started,
    )

"""An address that cannot be listened on is refused before any weights are loaded."""

from __future__ import annotations

import socket

import pytest

from demeanor.core.errors import UsageError
from demeanor.server.serve import refuse_taken


def test_a_port_that_something_listens_on_is_refused_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"127\.0\.0\.1 port {port}: something listens there already.*--port 0"
        ):
            refuse_taken("127.0.0.1", port)
    refuse_taken("127.0.0.1", port)
    refuse_taken("127.0.0.1", 0)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UsageError, match=r"192\.0\.2\.1 port 8000: it cannot be listened on"):
        refuse_taken("192.0.2.1", 8000)

"""A scripted assistant behind the real app, asked without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from scripted import Scripted

from demeanor.server.application import app


@pytest.fixture
def assistant() -> Scripted:
    return Scripted()


@pytest.fixture
async def client(assistant: Scripted) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app(assistant, now=lambda: 1_700_000_000.0))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as made:
        yield made

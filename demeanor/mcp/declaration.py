"""How a stack declares an MCP server: a command that is started (stdio) or an address (streamable HTTP), and its bounds.

In: values of stack.yaml. Out: settings. A secret is never written here, only the name of the environment variable that holds it.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from demeanor.core import registry

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class McpServer(registry.Spec):
    """An MCP server: exactly one of `command` and `url`."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]{0,31}$",
        description="stands in pins, messages and metrics, and before names that collide",
    )
    command: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="program and arguments, started in the folder of the stack file; its stdio is the line",
    )
    env: dict[str, str] | None = Field(
        None, description="environment variable of the program -> name of ours that holds its value"
    )
    url: str | None = Field(
        None,
        pattern=r"^https?://[^@\s]+$",
        description="address of a streamable HTTP server, without a password",
    )
    headers_env: dict[str, str] | None = Field(
        None, description="request header -> name of the environment variable that holds its value"
    )
    protocol: Literal["auto", "legacy"] | None = Field(
        None,
        description="legacy: the handshake of 2025 and before at once; null (auto): the newest that the server speaks",
    )
    allow: tuple[str, ...] | None = Field(
        None, description="its tools that may be approved and offered; null: all"
    )
    approve: Literal["destructive", "writes", "all", "none"] | None = Field(
        None,
        description="whose calls a person must allow, by the pinned annotations: destructiveHint true (null too), "
        "all without readOnlyHint true, all, none",
    )
    connect_s: float = Field(10.0, gt=0, le=600, description="seconds for connecting and listing the tools")
    recheck_s: float = Field(
        60.0, ge=0.2, le=86400, description="seconds after which the tools are listed again, at the latest"
    )
    max_bytes: int = Field(1_000_000, ge=1000, le=100_000_000, description="longest message of the server")

    @model_validator(mode="after")
    def _has_one_line(self) -> McpServer:
        if (self.command is None) == (self.url is None):
            raise PydanticCustomError("server", "either `command` or `url`")
        if self.env and self.command is None:
            raise PydanticCustomError("server", "`env` is for a `command`; with `url` use `headers_env`")
        if self.headers_env and self.url is None:
            raise PydanticCustomError("server", "`headers_env` is for a `url`; with `command` use `env`")
        for name in [*(self.env or {}), *(self.env or {}).values(), *(self.headers_env or {}).values()]:
            if not VARIABLE.fullmatch(name):
                raise PydanticCustomError(
                    "server", "names of environment variables; values do not belong in a stack file"
                )
        for name in self.headers_env or {}:
            if not HEADER.fullmatch(name):
                raise PydanticCustomError("server", "names of HTTP headers in `headers_env`")
        return self

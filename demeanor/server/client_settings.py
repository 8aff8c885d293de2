"""What a request sets for itself, and its refusal where the operator has fixed it (`serve: settings`).

In: a checked body of any endpoint that asks the model. Out: nothing, or a 403 that names the field.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from demeanor.core.errors import RequestError

SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
)
LENGTH = ("max_tokens", "max_completion_tokens", "max_output_tokens")
AUTHORITY = ("system", "developer")


def refuse_fixed(allowed: Collection[str], body: Any) -> None:
    """Raise RequestError (403) for the first setting of a body that is not allowed."""
    for setting, field in given(body):
        if setting not in allowed:
            raise RequestError(
                f"{field}: the operator of this server has fixed it (`serve: settings` of the stack does not name "
                f"{setting}). Leave it out.",
                status=403,
                kind="permission_error",
                param=field,
                code="setting_not_allowed",
            )


def given(body: Any) -> Iterator[tuple[str, str]]:
    """The settings that a body sets, each with the path of its field."""
    if getattr(body, "instructions", None):
        yield "system_prompt", "instructions"
    for name in ("messages", "input"):
        messages = getattr(body, name, None)
        for i, message in enumerate(messages if isinstance(messages, list) else ()):
            if getattr(message, "role", None) in AUTHORITY:
                yield "system_prompt", f"{name}[{i}].role"
    for setting, fields in (("sampling", SAMPLING), ("max_tokens", LENGTH)):
        for field in fields:
            if getattr(body, field, None) is not None:
                yield setting, field

"""Everything that can go wrong, as a tree: each error says where, what was got, what was wanted and what to do.

Expected outcomes (a refusal, an unscored answer) are data and never appear here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class DemeanorError(Exception):
    """Something a person must fix; its text is the whole explanation and is printed without a traceback.

    Exit codes: 2 is a mistake in the command line or a file, 3 anything else. 0, 1 and 4 are answers (done, no, inconclusive).
    """

    exit_code = 3


class UsageError(DemeanorError):
    """A command line that cannot be meant: which option, what was got, what was wanted."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a declared file: where it stands, and what is wrong there."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class SpecError(DemeanorError):
    """A declaration (stack.yaml, policy.yaml, --set) with one or more mistakes, all of them listed."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        super().__init__(
            lines[0]
            if len(lines) == 1
            else f"{len(lines)} mistakes:\n" + "\n".join(f"  {line}" for line in lines)
        )


class StaleFileError(DemeanorError):
    """A file that a loaded stack names has changed since: which file, and how to load it again."""


class DataError(DemeanorError):
    """A row or a data file that cannot be used: which file, which line, what is wrong."""

    exit_code = 2


class CheckpointError(DemeanorError):
    """A model folder that cannot be loaded, or does not fit what asked for it."""

    exit_code = 2


class EngineError(DemeanorError):
    """The decode loop cannot take this request (too long, closed, out of slots for ever)."""


class ContextError(EngineError):
    """A request that does not fit the model's context; its text is told to whoever asked."""


class DecodingError(EngineError):
    """Decoding settings that this model cannot honour; `param` is the request field at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class RequestError(DemeanorError):
    """A refused API request in OpenAI's shape: HTTP status, error type, the field at fault and a stable code."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code, self.retry_after_s = (
            status,
            kind,
            param,
            code,
            retry_after_s,
        )


def unknown(got: str, known: Iterable[str], *, noun: str = "name") -> str:
    """Return the sentence that every unknown name gets: the nearest valid one, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown {noun} '{got}'.{hint} Known: {', '.join(names) or 'none'}."

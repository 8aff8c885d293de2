"""All errors of the package; each says where, what was got, what was wanted and what to do.

Expected outcomes (a refusal, an unscored answer) are data and not errors.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MOST_LEVELS = 200  # of a row or a message: deeper ones are hostile, and recursion ends near 1,000
_HALF = re.compile("[\ud800-\udfff]")


class DemeanorError(Exception):
    """An error that a person must fix; its text is printed without a traceback.

    Exit codes: 2 is a mistake in the command line or a file, 3 anything else. 0, 1 and 4 are answers (pass,
    fail, inconclusive).
    """

    exit_code = 3


class UsageError(DemeanorError):
    """An invalid command line: which option, what was got, what was wanted."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a declared file: its place, and what is wrong."""

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
        many = f"{len(lines)} mistakes:\n" + "\n".join(f"  {line}" for line in lines)
        super().__init__(lines[0] if len(lines) == 1 else many)


class StaleFileError(DemeanorError):
    """A file of a loaded stack was changed since: which file, and how to reload it."""


class DataError(DemeanorError):
    """A row or a data file that cannot be used: which file, which line, what is wrong."""

    exit_code = 2


class TextError(DataError):
    """A conversation that a chat template cannot write, or a text that is not Unicode.

    `message` is the one at fault (None: unknown or none), `field` the rest of its path, such as ".content".
    """

    def __init__(
        self, what: str, *, message: object = None, index: int | None = None, field: str = ""
    ) -> None:
        self.what, self.message, self.field = what, message, field
        self.param = "messages" if index is None else f"messages[{index}]{field}"
        super().__init__(what if index is None else f"{self.param}: {what}")

    def within(self, messages: Sequence[object]) -> TextError:
        """Return the error with the message's index in `messages`, the ones before layers added theirs."""
        found = (i for i, m in enumerate(messages) if self.message is not None and m == self.message)
        return TextError(self.what, message=self.message, index=next(found, None), field=self.field)


class CheckpointError(DemeanorError):
    """A model folder that cannot be loaded, or does not fit its use."""

    exit_code = 2


class StoreError(DemeanorError):
    """A database that cannot be read or written now: locked by another program, full, or gone."""


class EngineError(DemeanorError):
    """A request that the engine cannot run (too long, or the engine is closed or failed)."""


class ContextError(EngineError):
    """A request that does not fit the model's context; its text is shown to the user."""


class DecodingError(EngineError):
    """Decoding settings that this model cannot apply; `param` is the request field at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class UpstreamError(EngineError):
    """A failure of a server behind ours: the HTTP `status` and `code` that a client gets, and its text for
    them, `public`, without addresses and keys."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        public: str | None = None,
        code: str = "upstream_error",
        param: str | None = None,
        retry_after_s: float | None = None,
        again: bool = False,
    ) -> None:
        """`again`: the same request may be sent once more."""
        super().__init__(message)
        self.status, self.public, self.code, self.param = status, public, code, param
        self.retry_after_s, self.again = retry_after_s, again


class RequestError(DemeanorError):
    """A refused API request in OpenAI's form: HTTP status, error type, field at fault and a stable code."""

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
        self.status, self.kind, self.param = status, kind, param
        self.code, self.retry_after_s = code, retry_after_s


def check_unicode(value: object, field: str = "", depth: int = 0) -> None:
    """Raise TextError if a text in a JSON value has half a surrogate pair, which no file or token can hold,
    or if the value is nested too deeply."""
    if isinstance(value, str):
        if not value.isascii() and (half := _HALF.search(value)):
            code = f"U+{ord(half[0]):04X}"
            what = f"character {half.start()} is {code}, half of a surrogate pair; wanted Unicode text"
            raise TextError(f"{field.removeprefix('.')}: {what}" if field else what)
    elif isinstance(value, Mapping | list | tuple):
        if depth == MOST_LEVELS:
            raise TextError(f"{field[:40].removeprefix('.')}: is nested deeper than {MOST_LEVELS} levels")
        if isinstance(value, Mapping):
            check_unicode(list(value), field, depth + 1)
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, inner in items:
            if isinstance(inner, str | Mapping | list | tuple):
                place = f"{field}.{name}" if isinstance(value, Mapping) else f"{field}[{name}]"
                check_unicode(inner, place, depth + 1)


MAX_NAME = 200  # characters; comparing longer ones takes time that grows with the square


def unknown(got: str, known: Iterable[str], *, noun: str = "name") -> str:
    """Return the sentence about an unknown name: the nearest valid one, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.5) if len(got) <= MAX_NAME else []
    got = got if len(got) <= MAX_NAME else f"{got[:MAX_NAME]}..."
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown {noun} '{got}'.{hint} Known: {', '.join(names) or 'none'}."

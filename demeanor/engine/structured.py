"""Structured output: limits the next token to those that a schema, regex, grammar or choice allows.

In: a tokenizer and an OutputFormat. Out: a Guide for each answer. llguidance (Rust) runs the grammars. JSON
is generated without free white space, because weak models repeat it without end. Near the end of its token
budget an answer is closed.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import llguidance
import numpy as np
import torch
from torch import Tensor

from demeanor.core.errors import DecodingError
from demeanor.core.types import OutputFormat
from demeanor.engine import form_trial
from demeanor.text.tokenizer import Tokenizer

# Characters that close JSON, in the order tried; without one, the first allowed token is taken.
# A quote is first only where a letter is allowed too, inside a string; elsewhere it would open a string.
CLOSERS = '"}],:0e1a'
LONGEST_CLOSE = 512  # tokens
MOST_MASKS = (
    20_000  # an answer that has cost more is closed as soon as its budget is short: others wait meanwhile
)
MAX_TEXT = 200_000  # characters of a schema or grammar


MOST_TEXT = 20_000  # characters of a schema of plain keywords that is compiled without a trial
MOST_BYTES, MOST_FORMS, AT_ONCE = 256 << 20, 256, 4
MOST_DIVISOR = 100_000  # an automaton has a state for every remainder
EXACT = 2**53  # llguidance computes in float64


@dataclass(frozen=True, slots=True)
class CompiledForm:
    """A format ready for use; `alert` as in Guide, `num_bytes` about the memory it takes."""

    matcher: Any
    alert: int
    num_bytes: int


@dataclass(eq=False)
class Compilation:
    """A format that is being compiled for `waiters` requests; `stopped` once none is left."""

    future: Future[CompiledForm]
    stopped: threading.Event
    waiters: int = 0


class Grammars:
    """CompiledForm output formats of one tokenizer; each answer gets a copy of the compiled matcher.

    Formats are compiled in threads of their own, unusual ones first in a child process that is killed when it
    takes too long or too much memory. Refusals are remembered as results are.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._space = '" "? ' if tokenizer.prefix else ""  # its decoder removes one space at the start
        size = max(vocab_size, tokenizer.vocab_size)
        self._tokens = llguidance.LLTokenizer(tokenizer.source, n_vocab=size, eos_token=tokenizer.eos_id)
        self._end = tokenizer.eos_id
        encoded = [self._tokens.tokenize_bytes(c.encode()) for c in CLOSERS]
        self._closers = [ids[0] for ids in encoded if len(ids) == 1]
        self._trials = form_trial.Trials(tokenizer.source, size, tokenizer.eos_id)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="demeanor-forms")
        self._changed = threading.Lock()  # guards the two below; never held while compiling
        self._done: OrderedDict[OutputFormat, CompiledForm | DecodingError] = OrderedDict()
        self._running: dict[OutputFormat, Compilation] = {}

    def guide(self, form: OutputFormat) -> Guide:
        """Return a new guide; raises DecodingError if the format's text is invalid."""
        job = self._begin(form)
        try:
            return self._guide(job.future.result())
        finally:
            self._leave(form, job)

    async def guide_soon(self, form: OutputFormat) -> Guide:
        """Return a new guide as `guide` does; cancelling the wait ends a compilation that nobody else needs."""
        job = self._begin(form)
        try:
            return self._guide(await asyncio.shield(asyncio.wrap_future(job.future)))
        finally:
            self._leave(form, job)

    def close(self) -> None:
        """End what is compiled now, and the child processes."""
        with self._changed:
            for job in self._running.values():
                job.stopped.set()
        self._trials.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _guide(self, compiled: CompiledForm) -> Guide:
        matcher = compiled.matcher.deep_copy()
        return Guide(matcher, self._vocab_size, self._end, self._closers, compiled.alert)

    def _begin(self, form: OutputFormat) -> Compilation:
        with self._changed:
            job = self._running.get(form)
            if job is None:
                job = Compilation(Future(), threading.Event())
                known = self._done.get(form)
                if isinstance(known, CompiledForm):
                    self._done.move_to_end(form)
                    job.future.set_result(known)
                elif known is not None:
                    job.future.set_exception(DecodingError(str(known), known.param))
                else:
                    self._running[form] = job
                    self._threads.submit(self._work, form, job)
            job.waiters += 1
            return job

    def _leave(self, form: OutputFormat, job: Compilation) -> None:
        with self._changed:
            job.waiters -= 1
            if not job.waiters and not job.future.done():
                job.stopped.set()
                if self._running.get(form) is job:
                    del self._running[form]

    def _work(self, form: OutputFormat, job: Compilation) -> None:
        found: CompiledForm | DecodingError
        try:
            if job.stopped.is_set():
                raise DecodingError("nobody waits for it", "response_format")
            found = self._compile(form, job.stopped)
        except DecodingError as error:
            text = str(error)
            kind = "" if text.startswith(form.kind) else f"{form.kind}: "
            found = DecodingError(kind + text, "response_format")
        except BaseException as error:  # a panic of compiled code is none of Python's own exceptions
            found = DecodingError(f"{form.kind}: {type(error).__name__}: {error}", "response_format")
        with self._changed:
            if self._running.get(form) is job:
                del self._running[form]
            if not job.stopped.is_set():
                self._keep(form, found)
        if isinstance(found, CompiledForm):
            job.future.set_result(found)
        else:
            job.future.set_exception(found)

    def _keep(self, form: OutputFormat, found: CompiledForm | DecodingError) -> None:
        self._done[form] = found
        while len(self._done) > MOST_FORMS or self.num_bytes > MOST_BYTES:
            if len(self._done) == 1:
                return
            self._done.popitem(last=False)

    @property
    def num_bytes(self) -> int:
        """About the memory of all compiled formats."""
        return sum(x.num_bytes for x in self._done.values() if isinstance(x, CompiledForm))

    def _compile(self, form: OutputFormat, stopped: threading.Event) -> CompiledForm:
        if len(form.text) > MAX_TEXT:
            raise DecodingError(
                f"{form.kind}: {len(form.text)} characters; at most {MAX_TEXT} are compiled",
                "response_format",
            )
        grammar = lark(form, self._space)
        schemas = [
            json.loads(line.partition("%json ")[2]) for line in grammar.splitlines() if ": %json {" in line
        ]
        for schema in schemas:
            check_schema(schema)
        num_bytes = 100_000 + 32 * len(grammar)
        is_plain = form.kind == "choice" or (bool(schemas) and all(map(is_simple, schemas)))
        if len(grammar) > MOST_TEXT or not is_plain:
            refusal, grown = self._trials.refusal(grammar, stopped)
            if refusal is not None:
                raise DecodingError(refusal, "response_format")
            num_bytes += grown
        limits = llguidance.LLParserLimits(**form_trial.LIMITS)
        try:
            matcher = llguidance.LLMatcher(self._tokens, grammar, log_level=0, limits=limits)
        except ValueError as error:
            raise DecodingError(str(error), "response_format") from None
        guide = Guide(matcher.deep_copy(), self._vocab_size, self._end, self._closers, 0)
        shortest = guide.try_out()
        return CompiledForm(matcher, 0 if shortest is None else 4 * len(shortest) + 48, num_bytes)


class Guide:
    """The state of one answer in its output format; `end` is a token that ends it besides the stop tokens.

    When `alert` tokens or fewer are left of the budget, `closable` ensures that the rest suffices to close
    the answer.
    """

    def __init__(self, matcher: Any, vocab_size: int, end: int, closers: Sequence[int], alert: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size
        self.end, self._closers, self._alert = end, closers, alert
        self._known: list[int] | None = None  # a path to a complete answer from here
        self._num_masks = 0
        self._bits = np.zeros(-(-vocab_size // 32), dtype=np.int32)

    @property
    def may_end(self) -> bool:
        """True if the answer so far is complete."""
        return bool(self._matcher.is_accepting())

    @property
    def over(self) -> bool:
        """True if no further token is allowed."""
        return bool(self._matcher.is_stopped())

    def try_out(self) -> list[int] | None:
        """Return what `closing` returns for the longest close; raises DecodingError if the format breaks on its way.

        The guide cannot be used afterwards.
        """
        self._checked()
        path = self._path(self._matcher, LONGEST_CLOSE)
        if self._matcher.is_error():
            raise DecodingError(form_trial.first_line(self._matcher.get_error()), "response_format")
        return path

    def _checked(self) -> Any:
        """Return the tokens that are allowed next, as `_allowed` does; raises DecodingError if there are none."""
        allowed = self._allowed(self._matcher).astype(bool)
        if self._matcher.is_error():
            raise DecodingError(form_trial.first_line(self._matcher.get_error()), "response_format")
        if not self.may_end and not allowed.any():
            raise DecodingError("no text fits from here on", "response_format")
        return allowed

    def forbid(self, logits_V: Tensor, stop_tokens: frozenset[int]) -> None:
        """Set the logits of tokens that are not allowed next to -inf; stop tokens are allowed where it may
        end. Raises DecodingError where no token is left."""
        allowed = self._checked()
        allowed[[t for t in stop_tokens if t < self._vocab_size]] = self.may_end
        logits_V.masked_fill_(~torch.from_numpy(allowed).to(logits_V.device), float("-inf"))

    def closable(self, token: int, left: int) -> int:
        """Return the token, or one that closes the answer if `left` tokens would not suffice after it."""
        if left > self._alert:
            return token
        known, self._known = self._known, None
        if known and token == known[0]:  # the path that was found for the token before
            self._known = known[1:]
            return token
        if known and self._num_masks > MOST_MASKS:
            self._known = known[1:]
            return known[0]
        after = self._matcher.deep_copy()
        if after.consume_token(token) and (rest := self._path(after, left - 1)) is not None:
            self._known = rest
            return token
        path = self.closing(left)
        if not path:
            return token
        self._known = path[1:]
        return path[0]

    def closing(self, most: int) -> list[int] | None:
        """Return a short path to a complete answer, brackets and quotes first; None if it needs over `most`
        tokens."""
        return self._path(self._matcher.deep_copy(), most)

    def _path(self, matcher: Any, most: int) -> list[int] | None:
        path: list[int] = []
        while not matcher.is_accepting():
            if len(path) >= most or matcher.is_error():
                return None
            allowed = self._allowed(matcher)
            closers = [t for t in self._closers if allowed[t]]
            letter, quote = self._closers[-1], self._closers[0]
            if not closers:
                others = allowed.nonzero()[0]
                if not len(others):
                    return None
                token = int(others[0])
            elif closers[0] == quote and letter not in closers and len(closers) > 1:
                token = closers[1]
            else:
                token = closers[0]
            if not matcher.consume_token(token):
                return None
            path.append(token)
        return path

    def _allowed(self, matcher: Any) -> Any:
        """Return an array of 0 and 1: the tokens that the matcher allows next."""
        self._num_masks += 1
        matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        return np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab_size]

    def accept(self, token: int) -> None:
        """Advance by an allowed token; raises DecodingError if it is not allowed."""
        if not self._matcher.consume_token(token):
            reason = form_trial.first_line(self._matcher.get_error())
            raise DecodingError(f"token {token} is outside of the format: {reason}", "response_format")


def lark(form: OutputFormat, space: str = "") -> str:
    """Return a format as one Lark grammar of llguidance; raises DecodingError if its text is invalid."""
    match form.kind:
        case "json_schema" | "json_object":
            return f"start: {space}json\njson: %json {json.dumps(_schema(form))}\n"
        case "regex":
            expression = re.sub(r"(?<!\\)/", r"\/", form.text)
            return f"start: {space}/{expression}/\n"
        case "choice":
            texts = _parsed(form.text, "choice")
            if not isinstance(texts, list) or not texts or not all(isinstance(x, str) and x for x in texts):
                raise DecodingError(
                    "choice: wanted a list of one or more texts that are not empty", "response_format"
                )
            return f"start: {space}(" + " | ".join(json.dumps(x, ensure_ascii=False) for x in texts) + ")\n"
        case "grammar":
            return form.text


def _schema(form: OutputFormat) -> dict[str, Any]:
    schema = {"type": "object"} if form.kind == "json_object" else _parsed(form.text, "json_schema")
    if not isinstance(schema, dict):
        raise DecodingError("json_schema: the schema should be a JSON object", "response_format")
    return {**schema, "x-guidance": {"whitespace_flexible": False}}


def _parsed(text: str, kind: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DecodingError(f"{kind}: not JSON: {error}", "response_format") from None


META = frozenset(
    {
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "$comment",
        "$schema",
        "x-guidance",
    }
)
PLAIN = META | {
    *("type", "properties", "required", "additionalProperties", "items", "enum", "const"),
    *("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "$defs", "definitions"),
}


def is_simple(schema: Any) -> bool:
    """True if a schema has only keywords that compile in a time in proportion to its length."""
    if not isinstance(schema, dict):
        return isinstance(schema, bool)
    names = set(schema)
    for branch in ("$ref", "anyOf"):  # beside other keywords they would have to be intersected with them
        if branch in schema and not names <= META | {branch, "$defs", "definitions"}:
            return False
    return names <= PLAIN | {"$ref", "anyOf"} and all(map(is_simple, _parts(schema)))


def check_schema(schema: Any) -> None:
    """Raise DecodingError for a schema that no finite text fits, or with an integer that float64 cannot hold."""
    steps = [schema]
    targets: dict[str, Any] = {}
    while steps:
        part = steps.pop()
        if not isinstance(part, dict):
            continue
        if large := _large(part):
            raise DecodingError(
                f"the integer {large} is beyond 2^53, which decoding cannot hold exactly; use a string",
                "response_format",
            )
        divisor = part.get("multipleOf")
        if isinstance(divisor, int | float) and _digits(divisor) > MOST_DIVISOR:
            raise DecodingError(
                f"multipleOf {divisor}: wanted at most {MOST_DIVISOR:,} (decimals count as digits)",
                "response_format",
            )
        ref = part.get("$ref")
        if isinstance(ref, str) and ref not in targets:
            targets[ref] = _target(schema, ref)
            steps.append(targets[ref])
        steps += _parts(part)
    finite: set[str] = set()
    while True:  # least fixed point: a reference is finite if its target is, with the references known so far
        more = {ref for ref, target in targets.items() if ref not in finite and _is_finite(target, finite)}
        if not more:
            break
        finite |= more
    if not _is_finite(schema, finite):
        raise DecodingError(
            "no finite text fits it: a $ref leads back to itself without an end", "response_format"
        )


def _is_finite(schema: Any, finite: set[str]) -> bool:
    """True if some finite text may fit a schema, where those references are known to be finite."""
    if not isinstance(schema, dict) or "enum" in schema or "const" in schema:
        return True
    if "$ref" in schema and schema["$ref"] not in finite:
        return False
    if not all(_is_finite(s, finite) for s in _list(schema.get("allOf"))):
        return False
    for choice in ("anyOf", "oneOf"):
        if _list(schema.get(choice)) and not any(_is_finite(s, finite) for s in schema[choice]):
            return False
    kinds = schema.get("type")
    if kinds is not None and not set(kinds if isinstance(kinds, list) else [kinds]) <= {"object", "array"}:
        return True  # it may also be a number, a text, ...
    return _fits_object(schema, finite) or _fits_array(schema, finite)


def _fits_object(schema: dict[str, Any], finite: set[str]) -> bool:
    kinds = schema.get("type", "object")
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        return False
    if "type" not in schema and "properties" not in schema:
        return True
    properties = schema.get("properties")
    known: dict[str, Any] = properties if isinstance(properties, dict) else {}
    others = schema.get("additionalProperties", True)
    return all(_is_finite(known.get(str(name), others), finite) for name in _list(schema.get("required")))


def _fits_array(schema: dict[str, Any], finite: set[str]) -> bool:
    kinds = schema.get("type", "array")
    if "array" not in (kinds if isinstance(kinds, list) else [kinds]):
        return False
    least, first = schema.get("minItems"), _list(schema.get("prefixItems"))
    count = int(least) if isinstance(least, int | float) else 0
    needed = [*first[:count], *([schema.get("items", True)] if count > len(first) else [])]
    return all(_is_finite(s, finite) for s in needed)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _parts(schema: dict[str, Any]) -> list[Any]:
    """Return the schemas in a schema."""
    found: list[Any] = []
    for name, value in schema.items():
        if name in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
            found += value.values() if isinstance(value, dict) else []
        elif name not in META and name not in ("enum", "const", "required"):
            found += [s for s in (value if isinstance(value, list) else [value]) if isinstance(s, dict)]
    return found


def _target(schema: Any, ref: str) -> Any:
    """Return what a reference of the form #/a/b points to; True if it is of another form or leads nowhere."""
    if ref != "#" and not ref.startswith("#/"):
        return True
    found = schema
    for step in ref.split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            return True
    return found


def _digits(number: float) -> int:
    """Return the digits of a number without its decimal point, as an integer."""
    _, digits, exponent = Decimal(str(abs(number))).normalize().as_tuple()
    value = int("".join(map(str, digits)))
    return value * 10 ** min(exponent, 20) if isinstance(exponent, int) and exponent > 0 else value


def _large(schema: dict[str, Any]) -> int | None:
    """Return an integer of a schema's own keywords that is beyond what float64 holds exactly."""
    steps = [
        value
        for name, value in schema.items()
        if name in ("enum", "const") or (name not in META and not isinstance(value, dict | list))
    ]
    while steps:
        value = steps.pop()
        if isinstance(value, int) and abs(value) > EXACT:
            return value
        if isinstance(value, dict | list):
            steps += value.values() if isinstance(value, dict) else value
    return None

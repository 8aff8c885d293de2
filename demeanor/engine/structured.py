"""Structured output: limits the next token to those that a schema, regex, grammar or choice allows.

In: a tokenizer and an OutputFormat. Out: a Guide for each answer. llguidance (Rust) runs the grammars. JSON
is generated without free white space, because weak models repeat it without end. Near the end of its token
budget an answer is closed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np
import torch
from torch import Tensor

from demeanor.core.errors import DecodingError
from demeanor.core.types import OutputFormat
from demeanor.text.tokenizer import Tokenizer

# Characters that close JSON, in the order tried; without one, the first allowed token is taken.
# A quote is first only where a letter is allowed too, inside a string; elsewhere it would open a string.
CLOSERS = '"}],:0e1a'
LONGEST_CLOSE = 512  # tokens
MAX_TEXT = 200_000  # characters of a schema or grammar


class Grammars:
    """Compiled output formats of one tokenizer; each answer gets a copy of the compiled matcher."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._space = '" "? ' if tokenizer.prefix else ""  # its decoder removes one space at the start
        self._tokens = llguidance.LLTokenizer(
            tokenizer.source, n_vocab=max(vocab_size, tokenizer.vocab_size), eos_token=tokenizer.eos_id
        )
        self._end = tokenizer.eos_id
        encoded = [self._tokens.tokenize_bytes(c.encode()) for c in CLOSERS]
        self._closers = [ids[0] for ids in encoded if len(ids) == 1]
        self._compiled: dict[OutputFormat, tuple[Any, int]] = {}

    def guide(self, form: OutputFormat) -> Guide:
        """Return a new guide; raises DecodingError if the format's text is invalid."""
        if form not in self._compiled:
            if len(self._compiled) >= 256:
                self._compiled.pop(next(iter(self._compiled)))
            matcher = self._compile(form)
            guide = Guide(matcher.deep_copy(), self._vocab_size, self._end, self._closers, 0)
            shortest = guide.closing(LONGEST_CLOSE)
            self._compiled[form] = matcher, 0 if shortest is None else 4 * len(shortest) + 48
        matcher, alert = self._compiled[form]
        return Guide(matcher.deep_copy(), self._vocab_size, self._end, self._closers, alert)

    def _compile(self, form: OutputFormat) -> Any:
        if len(form.text) > MAX_TEXT:
            raise DecodingError(
                f"{form.kind}: {len(form.text)} characters; at most {MAX_TEXT} are compiled",
                "response_format",
            )
        limits = llguidance.LLParserLimits(initial_lexer_fuel=5_000_000, max_grammar_size=2_000_000)
        try:
            matcher = llguidance.LLMatcher(self._tokens, lark(form, self._space), log_level=0, limits=limits)
        except ValueError as error:
            raise DecodingError(f"{form.kind}: {error}", "response_format") from None
        if matcher.is_error():
            raise DecodingError(f"{form.kind}: {_first_line(matcher.get_error())}", "response_format")
        return matcher


class Guide:
    """The state of one answer in its output format; `end` is a token that ends it besides the stop tokens.

    When `alert` tokens or fewer are left of the budget, `closable` ensures that the rest suffices to close
    the answer.
    """

    def __init__(self, matcher: Any, vocab_size: int, end: int, closers: Sequence[int], alert: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size
        self.end, self._closers, self._alert = end, closers, alert
        self._bits = np.zeros(-(-vocab_size // 32), dtype=np.int32)

    @property
    def may_end(self) -> bool:
        """True if the answer so far is complete."""
        return bool(self._matcher.is_accepting())

    @property
    def over(self) -> bool:
        """True if no further token is allowed."""
        return bool(self._matcher.is_stopped())

    def forbid(self, logits_V: Tensor, stop_tokens: frozenset[int]) -> None:
        """Set the logits of tokens that are not allowed next to -inf; stop tokens are allowed where it may
        end."""
        allowed = self._allowed(self._matcher).astype(bool)
        allowed[[t for t in stop_tokens if t < self._vocab_size]] = self.may_end
        logits_V.masked_fill_(~torch.from_numpy(allowed).to(logits_V.device), float("-inf"))

    def closable(self, token: int, left: int) -> int:
        """Return the token, or one that closes the answer if `left` tokens would not suffice after it."""
        if left > self._alert:
            return token
        after = self._matcher.deep_copy()
        if after.consume_token(token) and self._path(after, left - 1) is not None:
            return token
        path = self.closing(left)
        return path[0] if path else token

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
        matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        return np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab_size]

    def accept(self, token: int) -> None:
        """Advance by an allowed token; raises DecodingError if it is not allowed."""
        if not self._matcher.consume_token(token):
            reason = _first_line(self._matcher.get_error())
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


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "not understood"

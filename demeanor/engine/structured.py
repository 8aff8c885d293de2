"""Structured output: a JSON schema, regex, grammar or choice becomes, token by token, the set of tokens that may come next.

In: a tokenizer and a Form. Out: a Guide per answer. The grammars are llguidance's (Rust); JSON is written without free white
space, because a weak model given white space writes it for ever. Towards the end of its budget an answer is brought to a close.
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

CLOSERS = '"}],:0e1a'
"""Characters that bring JSON to an end, in the order in which they are tried; elsewhere the first token that may come.

A quote comes first only where a letter may come too, which is inside a string; elsewhere it would open one.
"""
LONGEST_CLOSE = 512  # tokens
MAX_TEXT = 200_000  # characters of a schema or grammar


class Forms:
    """The forms of one tokenizer; compiled forms are kept, answers get a copy."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._space = '" "? ' if tokenizer.prefix else ""  # its decoder takes one space away from the front
        self._tokens = llguidance.LLTokenizer(
            tokenizer.source, n_vocab=max(vocab_size, tokenizer.vocab_size), eos_token=tokenizer.eos_id
        )
        self._end = tokenizer.eos_id
        plain = [self._tokens.tokenize_bytes(c.encode()) for c in CLOSERS]
        self._closers = [ids[0] for ids in plain if len(ids) == 1]
        self._kept: dict[OutputFormat, tuple[Any, int]] = {}

    def guide(self, form: OutputFormat) -> Guide:
        """A fresh guide; raises DecodingError if the form's text makes no sense."""
        if form not in self._kept:
            if len(self._kept) >= 256:
                self._kept.pop(next(iter(self._kept)))
            matcher = self._compiled(form)
            shortest = Guide(matcher.deep_copy(), self._vocab_size, self._end, self._closers, 0).closing(
                LONGEST_CLOSE
            )
            self._kept[form] = matcher, 0 if shortest is None else 4 * len(shortest) + 48
        matcher, alert = self._kept[form]
        return Guide(matcher.deep_copy(), self._vocab_size, self._end, self._closers, alert)

    def _compiled(self, form: OutputFormat) -> Any:
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
            raise DecodingError(f"{form.kind}: {_first(matcher.get_error())}", "response_format")
        return matcher


class Guide:
    """One answer's way through its form; `end` is the token that ends an answer besides the request's own stop tokens.

    When `alert` tokens or fewer are left of the budget, `settle` sees to it that what is left suffices to close the answer.
    """

    def __init__(self, matcher: Any, vocab_size: int, end: int, closers: Sequence[int], alert: int) -> None:
        self._matcher, self._vocab_size, self.end, self._closers, self._alert = (
            matcher,
            vocab_size,
            end,
            closers,
            alert,
        )
        self._bits = np.zeros(-(-vocab_size // 32), dtype=np.int32)

    @property
    def may_end(self) -> bool:
        """Is what has been said a whole answer?"""
        return bool(self._matcher.is_accepting())

    @property
    def over(self) -> bool:
        """Can nothing more be said?"""
        return bool(self._matcher.is_stopped())

    def forbid(self, logits_V: Tensor, stop_tokens: frozenset[int]) -> None:
        """Set the logits of tokens that may not come next to minus infinity; stop tokens may come where the answer may end."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab_size].astype(bool)
        allowed[[t for t in stop_tokens if t < self._vocab_size]] = self.may_end
        logits_V.masked_fill_(~torch.from_numpy(allowed).to(logits_V.device), float("-inf"))

    def settle(self, token: int, left: int) -> int:
        """The token, or where after it the answer could no longer be closed within `left` tokens (it included), the first that closes."""
        if left > self._alert:
            return token
        after = self._matcher.deep_copy()
        if after.consume_token(token) and self._path(after, left - 1) is not None:
            return token
        path = self.closing(left)
        return path[0] if path else token

    def closing(self, most: int) -> list[int] | None:
        """A short way from here to a whole answer, by closing brackets and quotes first; None if none of `most` tokens is found."""
        return self._path(self._matcher.deep_copy(), most)

    def _path(self, matcher: Any, most: int) -> list[int] | None:
        path: list[int] = []
        while not matcher.is_accepting():
            if len(path) >= most or matcher.is_error():
                return None
            matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
            may = [t for t in self._closers if self._bits[t >> 5] >> (t & 31) & 1]
            letter, quote = self._closers[-1], self._closers[0]
            token = (
                may[0]
                if may and (letter in may or may[0] != quote or len(may) == 1)
                else may[1]
                if may
                else None
            )
            if token is None:
                allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[
                    : self._vocab_size
                ].nonzero()[0]
                token = int(allowed[0]) if len(allowed) else None
            if token is None or not matcher.consume_token(token):
                return None
            path.append(token)
        return path

    def take(self, token: int) -> None:
        """Go on by a token that was allowed."""
        if not self._matcher.consume_token(token):
            raise DecodingError(
                f"the form was left at token {token}: {_first(self._matcher.get_error())}", "response_format"
            )


def lark(form: OutputFormat, space: str = "") -> str:
    """A form as one Lark grammar of llguidance; raises DecodingError if its text is not of its kind."""
    match form.kind:
        case "json_schema" | "json_object":
            return f"start: {space}json\njson: %json {json.dumps(_schema(form))}\n"
        case "regex":
            return f"start: {space}/{_slashes(form.text)}/\n"
        case "choice":
            texts = _loaded(form.text, "choice")
            if not isinstance(texts, list) or not texts or not all(isinstance(x, str) and x for x in texts):
                raise DecodingError(
                    "choice: wanted a list of one or more texts that are not empty", "response_format"
                )
            return f"start: {space}(" + " | ".join(json.dumps(x, ensure_ascii=False) for x in texts) + ")\n"
        case "grammar":
            return form.text


def _schema(form: OutputFormat) -> dict[str, Any]:
    schema = {"type": "object"} if form.kind == "json_object" else _loaded(form.text, "json_schema")
    if not isinstance(schema, dict):
        raise DecodingError("json_schema: the schema should be a JSON object", "response_format")
    return {**schema, "x-guidance": {"whitespace_flexible": False}}


def _loaded(text: str, kind: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DecodingError(f"{kind}: not JSON: {error}", "response_format") from None


def _slashes(expression: str) -> str:
    return re.sub(r"(?<!\\)/", r"\/", expression)


def _first(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "not understood"

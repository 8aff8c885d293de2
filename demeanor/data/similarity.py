"""Similarity of rows: their texts, words and n-grams; near duplicates and overlaps with suites.

In: raw columns, or rows. Out: text, words, a row as columns, duplicates by MinHash, shared n-grams. Decides
nothing about which rows stay.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from demeanor.core.types import Example, Messages, Preference, TrainingRow, message_json, tool_json
from demeanor.data.rows import is_prose

TEXT_COLUMNS = (
    "system",
    "text",
    "prompt",
    "instruction",
    "input",
    "messages",
    "conversations",
    "output",
    "completion",
    "chosen",
    "rejected",
    "completions",
    "preferred_output",
    "non_preferred_output",
    "target",
)
DATA_COLUMNS = (
    *TEXT_COLUMNS,
    "ranks",
    "label",
    "margin",
    "tools",
    "chat_template_kwargs",
)
NOT_TEXT = frozenset({"role", "from", "id", "type", "tool_call_id", "weight"})  # keys of messages and calls
WORD = re.compile(r"\w+(?:['’]\w+)*")
_MARKUP = re.compile(r"^\s*(?:[#>*]+|-(?=\s+\D))\s|\*\*|__|`+")  # of Markdown: no symbol of the text
_FACT = re.compile(
    r"(?<!\w)[-+]?\d(?:[\d.,:/'’]*\d)?|[+<=>|~^$%&@/\\#*{}\[\]]|(?<!\w)[-−]|[-−](?!\w)"  # 3.5, -3, + and -
)
_FACT_OR_SIGN = re.compile(rf"{_FACT.pattern}|[^\w\s\x00-\x7f]")
IDS = frozenset({"id", "tool_call_id"})  # keys whose values are arbitrary


def row_text(row: Any) -> str:
    """Return all text of a raw row in the order of TEXT_COLUMNS, one part a line; without them, all its
    values."""
    return "\n".join(_parts(row))


def whole_text(row: Any) -> str:
    """Return everything that a raw row says: every text, number and key of every column, one a line."""
    return "\n".join(_texts(row, frozenset(), keys=True))


def _parts(row: Any) -> list[str]:
    if isinstance(row, str):
        return [row]
    if not isinstance(row, Mapping):
        return []
    named = [row[name] for name in TEXT_COLUMNS if row.get(name) is not None]
    values = named or [value for value in row.values() if not isinstance(value, int | float)]
    return [part for value in values for part in _texts(value, NOT_TEXT)]


def _texts(value: Any, left_out: frozenset[str], *, keys: bool = False) -> Iterator[str]:
    """Yield the texts and numbers in a column: itself, contents of messages, calls; JSON text that holds
    messages is parsed."""
    if isinstance(value, str):
        if is_prose(value):
            yield value
        else:
            yield from _texts(_parsed(value), left_out, keys=keys)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in left_out:
                yield from (str(name),) if keys else ()
                yield from _texts(inner, left_out, keys=keys)
    elif isinstance(value, Sequence):
        for one in value:
            yield from _texts(one, left_out, keys=keys)


class Compared(NamedTuple):
    """A row as it is compared: `words`, and the `facts` that no repeat may change.

    Facts are numbers and symbols in their order, texts without a word, and what is no text: roles, calls with
    their arguments, labels, tools.
    """

    words: list[str]
    facts: bytes


def compared(row: Any) -> Compared:
    """Return a raw row, or a text, as it is compared; ids do not count."""
    known = _data(row)
    parts = _parts(known)
    said = [words(part) for part in parts]
    facts = [_facts(part) if found or isinstance(row, str) else [part] for part, found in zip(parts, said)]
    structure: list[Any] = []
    if isinstance(known, dict):
        named = {name: known[name] for name in DATA_COLUMNS if name in known}
        _structure(named or known, "", structure)
    whole = json.dumps([facts, structure], sort_keys=True, default=str)
    return Compared(
        [word for found in said for word in found], hashlib.blake2b(whole.encode(), digest_size=16).digest()
    )


def _data(value: Any, name: str = "") -> Any:
    """Return a column without ids, its keys in order, messages and arguments that are JSON text parsed."""
    if isinstance(value, str) and (name == "arguments" or not is_prose(value)):
        value = _parsed(value)
    if isinstance(value, Mapping):
        kept = sorted(
            ((str(k), v) for k, v in value.items() if k not in IDS and v is not None), key=lambda x: x[0]
        )
        return {k: _data(v, k) for k, v in kept}
    return [_data(v) for v in value] if isinstance(value, list | tuple) else value


def _structure(value: Any, name: str, found: list[Any]) -> None:
    """Add to `found` what is no text: calls and tools as they are, roles, labels; and where texts stand."""
    if name in ("tool_calls", "function_call", "tools"):
        found.append(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _structure(inner, key, found)
    elif isinstance(value, list):
        for one in value:
            _structure(one, name, found)
    else:
        found.append([name, None if isinstance(value, str) and name not in ("role", "from") else value])


def _facts(text: str) -> list[str]:
    """Return the numbers (with sign and separators) and the symbols of a text in their order."""
    plain = _MARKUP.sub(" ", text)
    return [
        found
        for found in (_FACT if plain.isascii() else _FACT_OR_SIGN).findall(plain)
        if found.isascii() or unicodedata.category(found[0])[0] in "SN"
    ]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def words(text: str) -> list[str]:
    """Return the words of a text in lower case (NFKC) with their combining marks, without punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return (WORD if folded.isascii() else _marked_words()).findall(folded)


@cache
def _marked_words() -> re.Pattern[str]:
    """Return the pattern of a word in any script: marks are vowels in many, and belong to their letter."""
    marks = (chr(c) for c in range(0x300, 0x20000) if unicodedata.category(chr(c))[0] == "M")
    letter = rf"\w[\w{''.join(marks)}]*"
    return re.compile(rf"{letter}(?:['’]{letter})*")


def ngrams(tokens: Sequence[str], n: int) -> Iterator[str]:
    """Yield every `n` consecutive words, joined by spaces."""
    return (" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def as_columns(row: TrainingRow) -> dict[str, Any]:
    """Return a row as the columns from which `rows.parse` reads it."""
    columns: dict[str, Any] = {}
    if isinstance(row, Example):
        if row.text is not None:
            return {"text": row.text}
        start = row.trained_from
        columns = {"messages": _messages(row.messages)}
        if start:
            columns = {
                "prompt": _messages(row.messages[:start]),
                "completion": _messages(row.messages[start:]),
            }
    elif isinstance(row, Preference):
        columns = {"prompt": _messages(row.prompt)}
        if row.ranks == (0, 1):
            columns |= {"chosen": _messages(row.completions[0]), "rejected": _messages(row.completions[1])}
        else:
            columns |= {"completions": [_messages(c) for c in row.completions], "ranks": list(row.ranks)}
        columns |= {"margin": row.margin} if row.margin is not None else {}
    else:
        columns = {
            "prompt": _messages(row.prompt),
            "completion": _messages(row.completion),
            "label": row.desirable,
        }
    columns |= {"tools": [tool_json(t) for t in row.tools]} if row.tools else {}
    return columns | ({"chat_template_kwargs": dict(row.template_kwargs)} if row.template_kwargs else {})


def _messages(messages: Messages) -> list[dict[str, Any]]:
    return [message_json(m) for m in messages]


NGRAM, HASHES = 5, 128
MISSED = 0.01  # share of pairs at the threshold that the bands may miss

Grams = NDArray[np.uint64]


class Duplicate(NamedTuple):
    """Row `row` repeats the earlier row `of` with Jaccard similarity `similarity` (1: the same words)."""

    row: int
    of: int
    similarity: float


def duplicates(rows: Iterable[Any], threshold: float | None = 0.8) -> list[Duplicate]:
    """List the rows (columns, or texts) that repeat a kept one, exactly or with a similarity of at least
    `threshold` (None: exactly); in a repeat numbers, symbols, calls and labels are always the same.

    Rows are compared with kept ones only, so a chain of small changes does not remove distinct texts.
    """
    found: list[Duplicate] = []
    exact: dict[bytes, int] = {}
    near = None if threshold is None else _Near(threshold)
    for i, row in enumerate(rows):
        tokens, facts = compared(row)
        digest = hashlib.blake2b(" ".join(tokens).encode(), digest_size=16).digest() + facts
        if digest in exact:
            found.append(Duplicate(i, exact[digest], 1.0))
            continue
        match = near.match(grams(tokens), facts) if near and tokens else None
        if match is not None:
            found.append(Duplicate(i, *match))
            continue
        exact[digest] = i
        if near and tokens:
            near.keep(i)
    return found


def clusters(found: Iterable[Duplicate]) -> dict[int, list[Duplicate]]:
    """Group duplicates by the text that is kept, largest group first."""
    groups: defaultdict[int, list[Duplicate]] = defaultdict(list)
    for duplicate in found:
        groups[duplicate.of].append(duplicate)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def grams(tokens: list[str]) -> Grams:
    """Return the distinct word 5-grams of a text, hashed and sorted; a shorter text is one n-gram of all
    words."""
    hashed = {
        int.from_bytes(hashlib.blake2b(g.encode(), digest_size=8).digest(), "little")
        for g in ngrams(tokens, min(NGRAM, len(tokens)))
    }
    return np.array(sorted(hashed), np.uint64)


def jaccard(a: Grams, b: Grams) -> float:
    """Return the Jaccard similarity |A and B| / |A or B|."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def bands(threshold: float) -> tuple[int, int]:
    """Return (bands, rows in each) of HASHES: as many rows as find a pair at the threshold 99 times in 100.

    A pair of similarity s is proposed with probability 1 - (1 - s^rows)^bands.
    """
    fitting = [rows for rows in (1, 2, 4, 8, 16, 32) if (1 - threshold**rows) ** (HASHES // rows) <= MISSED]
    rows = max(fitting, default=1)
    return HASHES // rows, rows


class _Near:
    """Kept texts, by the bands of their MinHash signatures."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._bands, self._rows = bands(threshold)
        rng = np.random.default_rng(0)
        self._a = rng.integers(0, 2**63, HASHES, np.uint64) * np.uint64(2) + np.uint64(1)  # odd multipliers
        self._b = rng.integers(0, 2**63, HASHES, np.uint64)
        self._grams: dict[int, Grams] = {}
        self._tables: list[defaultdict[bytes, list[int]]] = [defaultdict(list) for _ in range(self._bands)]
        self._last: tuple[Grams, list[bytes]] | None = None

    def match(self, found: Grams, facts: bytes) -> tuple[int, float] | None:
        """Return the most similar kept text with the same facts (of equal ones the earliest); None if none
        reaches the threshold."""
        keys = [facts + key for key in self._keys(found)]
        self._last = found, keys
        proposed = sorted({i for table, key in zip(self._tables, keys) for i in table.get(key, ())})
        alike = [(jaccard(found, self._grams[i]), i) for i in proposed]
        similarity, i = max(alike, key=lambda pair: (pair[0], -pair[1]), default=(0.0, -1))
        return (i, similarity) if i >= 0 and similarity >= self._threshold else None

    def keep(self, i: int) -> None:
        """Keep the text that was matched last, as number `i`."""
        assert self._last is not None
        self._grams[i], keys = self._last
        for table, key in zip(self._tables, keys):
            table[key].append(i)

    def _keys(self, found: Grams) -> list[bytes]:
        """Return the signature (minimum of each multiply-shift hash over the n-grams), cut into bands."""
        least = np.full(HASHES, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(found), 1024):  # a long document in parts: the product is HASHES x grams
            hashed = self._a[:, None] * found[None, start : start + 1024] + self._b[:, None]  # modulo 2^64
            least = np.minimum(least, (hashed >> np.uint64(32)).min(axis=1))
        signature = least.astype(np.uint32)
        return [signature[i : i + self._rows].tobytes() for i in range(0, HASHES, self._rows)]


MIN_WORDS = 4  # items of fewer words are skipped: their words occur by chance


class Overlap(NamedTuple):
    """The words that a row shares with `item`."""

    item: str
    ngram: str


class SuiteNgrams:
    """The n-grams of a suite's items; shorter items are matched whole, `too_short` of them were skipped."""

    def __init__(self, items: Iterable[tuple[str, str]], n: int = 8) -> None:
        """`items` are (id, text)."""
        self.size, self.too_short = 0, 0
        self._grams: dict[int, dict[str, str]] = {}  # by number of words: n-gram -> first item that has it
        for item, text in items:
            self.size += 1
            tokens = words(text)
            if len(tokens) < min(n, MIN_WORDS):
                self.too_short += 1
                continue
            length = min(n, len(tokens))
            table = self._grams.setdefault(length, {})
            for gram in ngrams(tokens, length):
                table.setdefault(gram, item)

    def overlaps(self, text: str) -> list[Overlap]:
        """Return the first shared n-gram with each item, in the order of `text`."""
        tokens = words(text)
        found: dict[str, str] = {}
        for length, table in sorted(self._grams.items(), reverse=True):
            for gram in ngrams(tokens, length):
                if gram in table:
                    found.setdefault(table[gram], gram)
        return [Overlap(item, gram) for item, gram in found.items()]

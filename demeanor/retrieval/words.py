"""The words of a text as the index knows them, of any script, folded in one way for passages and queries.

In: text. Out: terms. Case, accents, ligatures, \u00df and umlauts do not matter. Scripts without spaces are
searched by pairs of characters. Stop words are left out of queries, never of the index.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import groupby, islice, pairwise

from demeanor.core.errors import DemeanorError
from demeanor.core.long_text import fold

MAX_TERM = 256
# The most frequent function words of English; none of them tells one passage from another.
ENGLISH = frozenset(
    re.findall(
        r"\w+",
        "a about above after again against all am an and any are as at be because been before being below between both but "
        "by can could did do does doing down during each few for from further had has have having he her here hers herself "
        "him himself his how i if in into is it its itself just me more most my myself no nor not of off on once only or "
        "other our ours ourselves out over own same she should so some such than that the their theirs them themselves then "
        "there these they this those through to too under until up very was we were what when where which while who whom why "
        "will with would you your yours yourself yourselves",
    )
)

ASCII_WORD = re.compile(r"[a-z0-9]+")
POINTS = re.compile(r"[\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670]")  # vowels of Hebrew and Arabic
LETTERS = str.maketrans(
    {"\u0131": "i", "\u00f8": "o", "\u00e6": "ae", "\u0153": "oe", "\u0142": "l", "\u0111": "d"}
)
SPELLED = str.maketrans({"\u00e4": "ae", "\u00f6": "oe", "\u00fc": "ue", "\u00f8": "oe", "\u00e5": "aa"})
# Letters of scripts that are written without spaces, or (Hangul) whose words take endings.
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x11FF),  # Burmese, Hangul
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3040, 0x318F),  # kana, Bopomofo, Hangul
    (0x31F0, 0x9FFF),  # kana, Han
    (0xAC00, 0xD7FF),  # Hangul
    (0x20000, 0x3FFFF),  # Han
)


def index_terms(text: str) -> list[str]:
    """Return the terms under which a text is found: its words, and pairs of characters of unspaced scripts.

    Each character of such a script begins a term, so a single one is found as the beginning of a term.
    """
    terms: list[str] = []
    for unspaced, units in runs(text):
        terms += [*map("".join, pairwise(units)), units[-1]] if unspaced else units
    return terms


def query_terms(text: str) -> list[str]:
    """Return the distinct terms that a query looks for; one that ends in * is the beginning of terms."""
    terms: dict[str, None] = {}
    for unspaced, units in runs(text):
        if unspaced:
            units = [*map("".join, pairwise(units))] or [f"{units[0]}*"]
        terms |= dict.fromkeys(units)
    return list(terms)


def runs(text: str) -> Iterator[tuple[bool, list[str]]]:
    """Yield a text's folded words: (False, a word and how else it is spelled) or (True, unspaced characters)."""
    if text.isascii():
        for found in ASCII_WORD.finditer(text.lower()):
            yield False, [found[0][:MAX_TERM]]
        return
    marks = groupby(text, lambda c: kind(c) == "mark")  # sorting a long row of marks takes quadratic time
    text = "".join("".join(islice(row, 8 if is_mark else None)) for is_mark, row in marks)
    text = unicodedata.normalize("NFKC", text).casefold()
    for word, spelled in zip(
        _split(_bare(text)), _split(_bare(unicodedata.normalize("NFC", text).translate(SPELLED)))
    ):
        for unspaced, characters in groupby(_characters(word), lambda c: kind(c[0]) == "unspaced"):
            if unspaced:
                yield True, list(characters)
            else:
                yield False, ["".join(characters)[:MAX_TERM]]
        if word != spelled:
            yield False, [spelled[:MAX_TERM]]


def _bare(text: str) -> str:
    """Return a text without accents, invisible characters and ligatures."""
    bare = "".join(map(fold, unicodedata.normalize("NFKD", text)))
    return unicodedata.normalize("NFC", POINTS.sub("", bare)).translate(LETTERS)


def _split(text: str) -> list[str]:
    return "".join(c if kind(c) != "gap" else " " for c in text).split(" ")


def _characters(word: str) -> list[str]:
    """Return the characters of a word, each with the marks that follow it."""
    found: list[str] = []
    for c in word:
        if found and kind(c) == "mark":
            found[-1] += c
        else:
            found.append(c)
    return found


@lru_cache(maxsize=65536)
def kind(character: str) -> str:
    """Return what a character is to the index: part of a word, a mark on one, unspaced, or a gap."""
    if unicodedata.category(character).startswith("M"):
        return "mark"
    if not character.isalnum():
        return "gap"
    return "unspaced" if any(a <= ord(character) <= b for a, b in UNSPACED) else "word"


def without(terms: list[str], stop_words: frozenset[str]) -> list[str]:
    """Return a query's terms without stop words, or all of them if it has no other."""
    return [term for term in terms if term not in stop_words] or terms


@cache
def stemmer(language: str) -> Callable[[str], str]:
    """Return Snowball's stemmer of a language; raises DemeanorError if the package or the language is missing."""
    try:
        import snowballstemmer
    except ImportError:
        raise DemeanorError(
            "stemming needs the package snowballstemmer: pip install 'demeanor[retrieval]'"
        ) from None
    if language not in snowballstemmer.algorithms():
        known = ", ".join(sorted(snowballstemmer.algorithms()))
        raise DemeanorError(f"stemming: got '{language}', wanted one of {known}")
    stem = snowballstemmer.stemmer(language).stemWord
    return lru_cache(maxsize=65536)(lambda word: str(stem(word)))

"""Texts in disguise, as they would be read without it: base64, hexadecimal, backwards, ROT13, digits for letters, spaced letters.

In: a folded text. Out: the parts that are in disguise and what they say. Time is linear in the text; what says nothing is left out.
"""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import Callable
from itertools import islice

from demeanor.core.phone_numbers import Span

ENCODED = re.compile(r"[A-Za-z0-9+/]{24,}={0,2}")
HEXADECIMAL = re.compile(r"(?:[0-9A-Fa-f]{2}[ ,:]?){12,}")
MOST_RUNS = 20  # encoded runs of one text that are read
MARKERS = r"instruction|ignore|disregard|forget|password|prompt|reveal|system|secret|previous"
BACKWARDS = re.compile("|".join(word[::-1] for word in MARKERS.split("|")), re.IGNORECASE)
ROTATED = re.compile(codecs.encode(MARKERS, "rot13"), re.IGNORECASE)
SPACED = re.compile(r"(?:\b\w[ .\-_*/|]{1,3}){7,}\w\b")
MIXED = re.compile(r"\b(?=\w*[A-Za-z])(?=\w*[013457])[A-Za-z013457@$!]{3,}\b")
LETTERS = str.maketrans("013457@$!", "oieastasi")
LEAST_MIXED = 3  # words with digits for letters that make a text one in disguise


def disguised(text: str) -> list[tuple[Span, str]]:
    """Return the parts of a text that are in disguise, and what they say."""
    found = [
        *_runs(text, ENCODED, _base64),
        *_runs(text, HEXADECIMAL, _hexadecimal),
        *_runs(text, SPACED, _joined),
    ]
    whole = (0, len(text))
    if BACKWARDS.search(text) is not None:
        found.append((whole, text[::-1]))
    if ROTATED.search(text) is not None:
        found.append((whole, codecs.encode(text, "rot13")))
    if len(list(islice(MIXED.finditer(text), LEAST_MIXED))) == LEAST_MIXED:
        found.append((whole, MIXED.sub(lambda word: word[0].translate(LETTERS), text)))
    return found


def _runs(text: str, pattern: re.Pattern[str], read: Callable[[str], str]) -> list[tuple[Span, str]]:
    found = list[tuple[Span, str]]()
    for run in islice(pattern.finditer(text), MOST_RUNS):
        try:
            said = read(run[0])
        except ValueError:
            continue
        if said:
            found.append((run.span(), said))
    return found


def _base64(run: str) -> str:
    code = run.rstrip("=")
    return _readable(base64.b64decode(code + "=" * (-len(code) % 4)).decode("utf-8"))


def _hexadecimal(run: str) -> str:
    return _readable(bytes.fromhex(re.sub("[ ,:]", "", run)).decode("utf-8"))


def _readable(text: str) -> str:
    return text if text.isprintable() and " " in text else ""


def _joined(run: str) -> str:
    """Return spaced letters as words: more than one space ends one."""
    return re.sub(r"(?<=\w)[ .\-_*/|](?=\w)", "", run)

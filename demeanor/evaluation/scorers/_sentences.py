"""Sentences and capital words as IFEval's official scorer counts them, without NLTK and its trained files.

Sentences end as Punkt ends them (Kiss & Strunk 2006): at . ? ! before a space, not after an abbreviation, an initial, dots or a number that
goes on in lower case; Punkt's learned lists are replaced by short ones of our own. Words are those of the Penn Treebank.
"""

from __future__ import annotations

import re

ABBREVIATIONS = frozenset(
    (
        "dr",
        "mr",
        "mrs",
        "ms",
        "prof",
        "st",
        "jr",
        "sr",
        "inc",
        "ltd",
        "co",
        "corp",
        "vs",
        "etc",
        "e.g",
        "i.e",
        "a.m",
        "p.m",
        "u.s",
        "u.k",
        "u.n",
        "d.c",
        "vol",
        "gen",
        "col",
        "lt",
        "capt",
        "sgt",
        "rep",
        "sen",
        "gov",
        "rev",
        "hon",
        "jan",
        "feb",
        "mar",
        "apr",
        "aug",
        "sept",
        "oct",
        "nov",
        "dec",
        "ave",
        "blvd",
    )
)
STARTERS = frozenset(
    (
        "the",
        "this",
        "that",
        "these",
        "those",
        "he",
        "she",
        "it",
        "they",
        "we",
        "i",
        "you",
        "in",
        "on",
        "at",
        "for",
        "but",
        "and",
        "however",
        "if",
        "when",
        "as",
        "a",
        "an",
        "there",
        "here",
        "what",
    )
)
_END = re.compile(r"[.?!](?=[\"')\]}]*(?:\s|$))")
_CLOSING = re.compile(r"[\"')\]}]*")
LONGEST_WORD = 64
_APART = re.compile(r"[;@#$%&?!*\[\](){}<>\"“”«»‘’„`]|--|\.{2,}|[:,](?=\D|$)")
_SHORT_FORM = re.compile(r"(?<=[^' ])(n't|'(?:s|m|d|ll|re|ve))(?=\s|$)", re.IGNORECASE)
_JOINED = re.compile(r"\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """The sentences of a text, none of them empty."""
    cuts = [0]
    for found in _END.finditer(text):
        word = text[max(0, found.end() - LONGEST_WORD) : found.end()].split()[-1]
        closing = _CLOSING.match(text, found.end())
        end = closing.end() if closing else found.end()
        if _ends(word, text[end : end + LONGEST_WORD].split(maxsplit=1)):
            cuts.append(end)
    pieces = [text[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [piece for piece in pieces if piece]


def _ends(word: str, rest: list[str]) -> bool:
    """Whether a sentence ends with a word that has . ? or ! as its last sign, given what comes after."""
    word = word.lstrip("\"'([{*").lower()
    if not rest or word[-1] in "?!":
        return True
    following = rest[0].split()[0].lstrip("\"'([{*“‘")
    bare = word[:-1]
    starts = following[:1].isupper() and re.sub(r"\W.*", "", following).lower() in STARTERS
    if word.endswith("..") or bare in ABBREVIATIONS:
        return starts
    if len(bare) == 1 and bare.isalpha():
        return False
    return not (bare.isdigit() and following[:1].islower())


def capital_words(text: str) -> int:
    """How many Treebank words have letters and only capital ones; a hyphen joins, an apostrophe's short form is a word of its own."""
    text = _SHORT_FORM.sub(r" \1", _APART.sub(" ", text))
    text = _JOINED.sub(lambda m: " ".join(g for g in m.groups() if g), text)
    return sum(word.isupper() for word in text.split())

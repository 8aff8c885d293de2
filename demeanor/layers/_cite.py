"""Which spans of an answer stand word for word in a passage.

In: an answer and passages, best first. Out: spans (characters) with the passage that supports each. A span is a longest run of
words found in the same order in one passage, kept if it holds a number or a name, or is at least four words; the better passage
wins a tie. It is overlap and no proof: that the passage says so does not make the sentence around the span true.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from demeanor.types import Passage

WORD = re.compile(r"\w+(?:[.,:'\u2019]\w+)*")
MIN_WORDS = 4
MAX_WORDS = 400


def citations(answer: str, passages: Sequence[Passage]) -> list[tuple[int, int, str]]:
    """Supported spans (start, end, passage id) in the order of the answer; they never overlap."""
    words = list(WORD.finditer(answer))[:MAX_WORDS]
    sources = [(p.id, [w.group().casefold() for w in WORD.finditer(p.text)]) for p in passages]
    found, at = [], 0
    while at < len(words):
        length, source = longest([w.group().casefold() for w in words[at:]], sources)
        run = words[at : at + length]
        if run and (length >= MIN_WORDS or any(telling(answer, w) for w in run)):
            found.append((run[0].start(), run[-1].end(), source))
        at += max(length, 1)
    return found


def longest(words: Sequence[str], sources: Sequence[tuple[str, Sequence[str]]]) -> tuple[int, str]:
    """How many of the first words stand together in one source, and in which; the first source wins a tie."""
    best, best_id = 0, ""
    for id_, source in sources:
        for start in range(len(source)):
            length = 0
            while (
                length < len(words)
                and start + length < len(source)
                and source[start + length] == words[length]
            ):
                length += 1
            if length > best:
                best, best_id = length, id_
    return best, best_id


def telling(answer: str, word: re.Match[str]) -> bool:
    """Whether a word is a number, or a capitalised one that does not merely begin a sentence of several words."""
    text = word.group()
    if any(c.isdigit() for c in text):
        return True
    alone = not WORD.search(answer, word.end()) and not answer[: word.start()].strip()
    begins = re.search(r"(?:^|[.!?:\n]\s*)$", answer[: word.start()].rstrip(" \"'(*")) is not None
    return text[:1].isupper() and (not begins or alone)

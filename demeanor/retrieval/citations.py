"""Citations: which words of an answer stand in which passage, and whether a marker such as [2] says the truth.

In: an answer and the passages that the model read. Out: spans with their passage (`citations`: longest runs of equal
words), or the answer with only those markers whose sentence its passage supports (`Verifier`). Words are compared,
not meanings.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from demeanor.core.types import Citation, Passage, Text, Unsupported, UnsupportedReason
from demeanor.retrieval.words import ENGLISH, runs

WORD = re.compile(r"\w+(?:[.,:'\u2019]\w+)*")
MIN_WORDS = 4
MAX_WORDS = 400


def citations(answer: str, passages: Sequence[Passage]) -> list[tuple[int, int, str]]:
    """Return supported spans (start, end, passage id) in the order of the answer; they never overlap."""
    words = [w for w, _ in zip(WORD.finditer(answer), range(MAX_WORDS))]
    said = [w.group().casefold() for w in words]
    texts = [[w.group().casefold() for w in WORD.finditer(p.text)] for p in passages]
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for source, text in enumerate(texts):
        for start, word in enumerate(text):
            places[word].append((source, start))
    found, at = [], 0
    while at < len(words):
        length, source = longest(said[at : at + MAX_WORDS], texts, places)
        run = words[at : at + length]
        if run and (length >= MIN_WORDS or any(telling(answer, w) for w in run)):
            found.append((run[0].start(), run[-1].end(), passages[source].id))
        at += max(length, 1)
    return found


def longest(
    words: Sequence[str], texts: Sequence[Sequence[str]], places: Mapping[str, Sequence[tuple[int, int]]]
) -> tuple[int, int]:
    """Return how many of the first words stand together in a text, and in which; the first text wins a tie.

    `places`: where each word stands, as (text, position).
    """
    best, best_text = 0, 0
    for text, start in places.get(words[0], ()):
        pairs = zip(words, texts[text][start : start + len(words)])
        length = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        length = min(len(words), len(texts[text]) - start) if length is None else length
        if length > best:
            best, best_text = length, text
    return best, best_text


def telling(answer: str, word: re.Match[str]) -> bool:
    """True if a word is a number, or capitalised and not just the first of a sentence of several words."""
    text = word.group()
    if any(c.isdigit() for c in text):
        return True
    before = answer[: word.start()].rstrip(" \"'(*")
    end = before.rstrip()
    begins = not before or end.endswith((".", "!", "?", ":")) or "\n" in before[len(end) :]
    alone = not WORD.search(answer, word.end()) and not answer[: word.start()].strip()
    return text[:1].isupper() and (not begins or alone)


# ---- markers ----

ENOUGH = 0.6  # share of a sentence's words that must stand together in the passage
MOST_HELD = 4000  # characters; a longer sentence is checked as far as it came
MARKERS = re.compile(r"[ \t]*\[(\d{1,3}(?:\s{0,3},\s{0,3}\d{1,3}){0,9})\]")
CODE = re.compile(r"`[^`\n]*`")
BOUNDARY = re.compile(
    r"[.!?\u3002\uff01\uff1f]+[\"')\u201d\u2019]*(?:\s{0,3}\[[\d, ]{1,40}\])*(?=\s+[^\s\[])|\n+"
)
ENDINGS = ("ing", "ed", "es", "s")


@dataclass(frozen=True, slots=True)
class Support:
    """Where a passage says what a sentence says: characters of the passage."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Words:
    roots: list[str]
    spans: list[tuple[int, int]]


class Verifier:
    """Checks an answer sentence by sentence as it comes, and lets only true markers through.

    A marker stays if at least 60% of the words of its sentence, and all its numbers, stand close together in the
    passage that it names. If they stand in one other passage only, the marker is corrected. Else it is removed.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._texts = [_words(p.text) for p in passages]
        self._held, self._said, self._fenced = "", 0, False
        self.altered = False

    def add(self, text: str) -> Iterator[Text | Citation | Unsupported]:
        """Yield what can be said after more of the answer."""
        self._held += text
        while (end := self._boundary()) is not None:
            sentence, self._held = self._held[:end], self._held[end:]
            yield from self._checked(sentence)

    def finish(self) -> Iterator[Text | Citation | Unsupported]:
        """Yield the rest of the answer."""
        held, self._held = self._held, ""
        yield from self._checked(held)

    def _boundary(self) -> int | None:
        found = BOUNDARY.search(self._held)
        if found is not None and found.end() < len(self._held):
            return found.end()
        return MOST_HELD if len(self._held) > MOST_HELD else None

    def _checked(self, sentence: str) -> Iterator[Text | Citation | Unsupported]:
        fence = sentence.lstrip().startswith("```")
        if fence or self._fenced:
            self._fenced ^= fence
            yield from self._say(sentence)
            return
        code = [m.span() for m in CODE.finditer(sentence)]
        markers = [m for m in MARKERS.finditer(sentence) if not any(a <= m.start() < b for a, b in code)]
        if not markers:
            yield from self._say(sentence)
            return
        pieces = [
            sentence[a:b] for a, b in pairwise([0, *(x for m in markers for x in m.span()), len(sentence)])
        ]
        claim = "".join(pieces[::2])
        start = self._said + len(claim) - len(claim.lstrip())
        beside: list[Citation | Unsupported] = []
        numbers = [[int(x) for x in marker[1].split(",")] for marker in markers]
        places = {number: self._place(claim, number) for number in {x for row in numbers for x in row}}
        right_already = {n for n, place in places.items() if isinstance(place, tuple) and place[0] == n}
        text, named = pieces[0], set[int]()
        for marker, row, after in zip(markers, numbers, pieces[2::2]):
            kept = []
            for number in dict.fromkeys(row):
                place = places[number]
                if isinstance(place, tuple):
                    right, support = place
                    if right != number:
                        beside.append(Unsupported(start, start, "wrong_source", self._id(number)))
                    if right not in named and (right == number or right not in right_already):
                        kept.append(right)
                        named.add(right)
                        beside.append(self._citation(start, right, support))
                else:
                    beside.append(Unsupported(start, start, place, self._id(number)))
            said = f"[{', '.join(map(str, kept))}]" if kept else ""
            if said and marker[0][0] in " \t":
                said = " " + said
            text += (marker[0] if kept == row else said) + after
        self.altered |= text != sentence
        end = self._said + len(text.rstrip())
        yield from self._say(text)
        yield from (self._ended(event, end) for event in beside)

    def _say(self, text: str) -> Iterator[Text]:
        if text:
            self._said += len(text)
            yield Text(text)

    @staticmethod
    def _ended(event: Citation | Unsupported, end: int) -> Citation | Unsupported:
        if isinstance(event, Citation):
            return Citation(
                event.start,
                end,
                event.passage_id,
                event.by,
                event.cited_text,
                event.source_start,
                event.source_end,
            )
        return Unsupported(event.start, end, event.reason, event.passage_id)

    def _id(self, number: int) -> str:
        return self._passages[number - 1].id if 0 < number <= len(self._passages) else ""

    def _citation(self, start: int, number: int, support: Support) -> Citation:
        passage = self._passages[number - 1]
        words = passage.text[support.start : support.end]
        exact = passage.end - passage.start == len(
            passage.text
        )  # else its lines were joined: only the passage is known
        place = (
            (passage.start + support.start, passage.start + support.end)
            if exact
            else (passage.start, passage.end)
        )
        return Citation(
            start, start, passage.id, cited_text=words, source_start=place[0], source_end=place[1]
        )

    def _place(self, claim: str, number: int) -> tuple[int, Support] | UnsupportedReason:
        """Return the passage (from 1) that supports a sentence and where, or why none does."""
        if not 0 < number <= len(self._passages):
            return "unknown"
        said = _words(claim)
        wanted = _telling(said.roots)
        if len(wanted) < 2 and not any(
            c.isdigit() for c in "".join(wanted)
        ):  # "See [1].": nothing is claimed
            return number, Support(0, len(self._passages[number - 1].text))
        if (found := supported(wanted, len(said.roots), self._texts[number - 1])) is not None:
            return number, found
        others = [
            (other, found)
            for other, text in enumerate(self._texts, 1)
            if other != number and (found := supported(wanted, len(said.roots), text)) is not None
        ]
        if others:
            return others[0]
        anywhere = wanted & {root for text in self._texts for root in text.roots}
        return "stitched" if _enough(anywhere, wanted) else "not_found"


def supported(wanted: frozenset[str], length: int, text: _Words) -> Support | None:
    """Return the place of a text that holds enough of the wanted words close together, the fullest one; else None."""
    places = [i for i, root in enumerate(text.roots) if root in wanted]
    reach = 2 * length + 12
    best: tuple[int, int, int] | None = None  # words that are there, first place, last place
    counts: dict[str, int] = defaultdict(int)
    first = 0
    for last, at in enumerate(places):
        counts[text.roots[at]] += 1
        while at - places[first] >= reach:
            root = text.roots[places[first]]
            counts[root] -= 1
            if not counts[root]:
                del counts[root]
            first += 1
        if (best is None or len(counts) > best[0]) and _enough(frozenset(counts), wanted):
            best = len(counts), first, last
    if best is None:
        return None
    return Support(text.spans[places[best[1]]][0], text.spans[places[best[2]]][1])


def _enough(found: frozenset[str], wanted: frozenset[str]) -> bool:
    numbers = {word for word in wanted if any(c.isdigit() for c in word)}
    return numbers <= found and len(found & wanted) >= math.ceil(ENOUGH * len(wanted))


def _telling(roots: Sequence[str]) -> frozenset[str]:
    return frozenset(root for root in roots if root not in _STOPPED)


def _words(text: str) -> _Words:
    roots, spans = [], []
    for found in WORD.finditer(text):
        for _, units in runs(found.group()):
            roots += [_root(units[0])] if units else []
            spans += [found.span()] if units else []
    return _Words(roots, spans)


def _root(word: str) -> str:
    """Return a word without a usual English ending, so that "leaves" supports "leave"."""
    ending = next((e for e in ENDINGS if word.endswith(e) and len(word) - len(e) >= 3), "")
    found = word[: len(word) - len(ending)]
    return found[:-1] if found.endswith("e") and len(found) > 3 else found


_STOPPED = frozenset(map(_root, ENGLISH)) | ENGLISH

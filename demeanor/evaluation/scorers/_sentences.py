"""Sentences and capital words as IFEval's official scorer counts them, without NLTK and its trained files.

Sentences are those of Punkt (Kiss & Strunk 2006, Computational Linguistics 32:4) with the abbreviations of NLTK's English model. Its 20,000
words with their capitals are replaced by one rule: the commonest words of English may begin a sentence, any other word is a name. Words
are those of the Penn Treebank.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Literal

from demeanor.core.language import WORDS

SHORT = """a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg cie co col
colo conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d g.f g.k ga gen h h.c h.f
h.m i.m.s ill inc j.b j.c j.j j.k j.p j.r jan jr k kan ky l l.a l.f l.p lt ltd m m.b.a m.d.c m.j maj messrs mg mich
minn mr mrs ms n n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla ore p p.a.m p.m pa ph.d prof r r.a r.h r.i r.j r.k
r.t rep reps s s.a s.a.y s.c s.g s.p.a s.s sen sep sept sr st sw t t.j tenn tues u.k u.n u.s u.s.a u.s.s.r v va vs vt
w w.c w.r w.va w.w wash wed wis yr"""
"""What Punkt learned from English newspapers: `etc`, `e.g` and `i.e` are not among it."""
COMMON = """these those however here there let please don't now then once yes no are is was do does did can could would
although while since until unless if why where how who which every each many most both other another
today tomorrow yesterday meanwhile moreover finally first next instead also still perhaps maybe"""
ABBREVIATIONS = frozenset(SHORT.split())
STARTERS = frozenset((*WORDS["en"].split(), *COMMON.split()))
_AFTER = r"[)\";}\]*:@'({\[?!]"
_MANY = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)"
_TOKEN = re.compile(
    rf"{_MANY}|(?=[^(\"`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{_AFTER}|{_MANY}|,(?:$|\s|{_AFTER}|{_MANY}))|\S"
)
_END = re.compile(rf"[.?!](?=(?P<after>{_AFTER}|\s+(?P<next>\S+)))")
_CLOSING = re.compile(r"[\"')\]}]+?(?:\s+|(?=--)|$)", re.MULTILINE)
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*\.?")
_INITIAL = re.compile(r"[^\W\d]\.")
_APART = re.compile(r"[;@#$%&?!*\[\](){}<>\"“”«»‘’„`]|--|\.{2,}|[:,](?=\D|$)")
_SHORT_FORM = re.compile(r"(?<=[^' ])(n't|'(?:s|m|d|ll|re|ve))(?=\s|$)", re.IGNORECASE)
_JOINED = re.compile(r"\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """The sentences of a text, none of them empty; closing quotes and brackets belong to the sentence that they close."""
    found, begin = list[str](), 0
    spans = list(_spans(text))
    for (_, end), following in zip(spans, [*spans[1:], None], strict=True):
        closing = following and _CLOSING.match(text, following[0], following[1])
        told = text[begin : closing.end() if closing else end].strip()
        begin = (closing.end() if closing else following[0]) if following else begin
        if told:
            found.append(told)
    return found


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where each sentence stands, before closing signs are put back to it."""
    begin = 0
    for end, following, context in _contexts(text):
        if _breaks(context):
            yield begin, end
            begin = end if following is None else following
    yield begin, len(text.rstrip())


def _contexts(text: str) -> Iterator[tuple[int, int | None, str]]:
    """Each possible end: where it is, where the next word begins, and both words around it; of a word with several ends the last."""
    start = stop = 0
    waiting: re.Match[str] | None = None
    for match in _END.finditer(text):
        space = max(text.rfind(sign, stop, match.start()) for sign in " \t\n\r\v\f")
        word = space + 1 if space > stop else start
        if waiting and stop <= word:
            yield waiting.end(), _next(waiting), text[start:stop] + waiting[0] + waiting["after"]
        waiting, start, stop = match, word, match.start()
    if waiting:
        yield waiting.end(), _next(waiting), text[start:stop] + waiting[0] + waiting["after"]


def _next(end: re.Match[str]) -> int | None:
    return None if end["next"] is None else end.start("next")


def _breaks(context: str) -> bool:
    """Whether a sentence ends in a context, before its last token."""
    tokens = [token for line in context.split("\n") for token in _TOKEN.findall(line)]
    return any(_ends(a, b) for a, b in itertools.pairwise(tokens))


def _ends(token: str, following: str) -> bool:
    """Whether a sentence ends with a token, given the one after it."""
    if token in ("?", "!", "."):
        return True
    dots = token.endswith("..")
    if not token.endswith(".") or (dots and token.strip(".")):
        return False
    kind = token.lower().removesuffix(".")
    is_initial = bool(_INITIAL.fullmatch(token))
    is_short = dots or kind in ABBREVIATIONS or kind.rpartition("-")[2] in ABBREVIATIONS
    begins = _begins(following)
    if is_short and not is_initial:
        return begins == "yes"
    if is_initial or _NUMBER.fullmatch(token):
        goes_on = begins == "no" or (is_initial and begins == "name")
        return not (goes_on or is_short)
    return True


def _begins(token: str) -> Literal["yes", "no", "name", "unknown"]:
    """Whether a token begins a sentence, as far as its letters tell."""
    if token in (";", ":", ",", ".", "!", "?") or token[:1].islower():
        return "no"
    if token[:1].isupper():
        return "yes" if token.lower().rstrip(".") in STARTERS else "name"
    return "unknown"


def capital_words(text: str) -> int:
    """How many Treebank words have letters and only capital ones; a hyphen joins, an apostrophe's short form is a word of its own."""
    text = _SHORT_FORM.sub(r" \1", _APART.sub(" ", text))
    text = _JOINED.sub(lambda m: " ".join(g for g in m.groups() if g), text)
    return sum(word.isupper() for word in text.split())

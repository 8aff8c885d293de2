"""The 25 kinds of verifiable instructions of IFEval, each as one question to a text.

Written from the definitions of google-research's instruction_following_eval (Zhou et al. 2023, arXiv 2311.07911; revision 83282e4),
quirks included. Deviations: 1. languages by `core/language.py` instead of langdetect; 2. sentences by `_sentences` instead of Punkt's trained
file, and capital words by the same module's Treebank rules; 3. a letter outside a-z is counted (the official code draws another one).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from demeanor.core.language import likeliest_language
from demeanor.evaluation.scorers._sentences import capital_words, sentences

Check = Callable[[str, Mapping[str, Any]], bool]
POSTSCRIPTS = {
    "P.P.S": r"p\.\s?p\.\s?s",
    "P.S.": r"p\.\s?s\.",
}  # what the official ones say without their \s* and .*$
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _related(count: int, relation: str, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def _english(text: str) -> bool:
    return likeliest_language(text) in ("en", None)


def _placeholders(text: str, k: Mapping[str, Any]) -> bool:
    return bool(len(re.findall(r"\[[^\[\]\n]*\]", text)) >= k["num_placeholders"])


def _bullets(text: str, k: Mapping[str, Any]) -> bool:
    stars, dashes = (
        re.findall(r"^[^\S\n]*\*[^\*].*$", text, re.MULTILINE),
        re.findall(r"^[^\S\n]*-.*$", text, re.MULTILINE),
    )
    return bool(len(stars) + len(dashes) == k["num_bullets"])


def _highlights(text: str, k: Mapping[str, Any]) -> bool:
    single = [x for x in re.findall(r"\*[^\n\*]*\*", text) if x.strip("*").strip()]
    double = [
        x for x in re.findall(r"\*\*[^\n\*]*\*\*", text) if x.removeprefix("**").removesuffix("**").strip()
    ]
    return bool(len(single) + len(double) >= k["num_highlights"])


def _sections(text: str, k: Mapping[str, Any]) -> bool:
    return bool(len(re.findall(rf"\s?{k['section_spliter'].strip()}\s?\d+\s?", text)) >= k["num_sections"])


def _paragraphs(text: str, k: Mapping[str, Any]) -> bool:
    pieces = [x.strip() for x in re.split(r"\s?\*\*\*\s?", text)]
    ends = sum(not pieces[i] for i in {0, len(pieces) - 1})
    return bool(all(pieces[1:-1]) and len(pieces) - ends == k["num_paragraphs"])


def _nth_paragraph(text: str, k: Mapping[str, Any]) -> bool:
    pieces = text.split("\n\n")
    count = sum(bool(x.strip()) for x in pieces)
    if k["nth_paragraph"] > count or not pieces[k["nth_paragraph"] - 1].strip():
        return False
    word = pieces[k["nth_paragraph"] - 1].split()[0].lstrip("'").lstrip('"')
    return bool(
        count == k["num_paragraphs"] and re.split(r"[.,?!'\"]", word)[0].lower() == k["first_word"].lower()
    )


def _postscript(text: str, k: Mapping[str, Any]) -> bool:
    marker = k["postscript_marker"].strip()
    return bool(re.search(POSTSCRIPTS.get(marker, marker.lower()), text.lower(), re.MULTILINE))


def _json(text: str, _: Mapping[str, Any]) -> bool:
    text = text.strip()
    for mark in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(mark)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _frequency(text: str, k: Mapping[str, Any]) -> bool:
    return _related(len(re.findall(k["keyword"].strip(), text, re.IGNORECASE)), k["relation"], k["frequency"])


def _forbidden(text: str, k: Mapping[str, Any]) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in k["forbidden_words"])


def _title(text: str, _: Mapping[str, Any]) -> bool:
    spans = [
        (line, line.find("<<"), line.rfind(">>")) for line in text.split("\n")
    ]  # <<[^\n]+>>, at most once a line
    return any(line[a:b].lstrip("<").rstrip(">").strip() for line, a, b in spans if a >= 0 and b > a + 2)


def _two_responses(text: str, _: Mapping[str, Any]) -> bool:
    pieces = [x.strip() for x in text.split("******")]
    filled = [x for x in pieces if x]
    return all(pieces[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _quoted(text: str, _: Mapping[str, Any]) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == '"' == text[-1]


CHECKS: dict[str, tuple[Check, tuple[str, ...]]] = {
    "change_case:capital_word_frequency": (
        lambda t, k: _related(capital_words(t), k["capital_relation"], k["capital_frequency"]),
        ("capital_frequency", "capital_relation"),
    ),
    "change_case:english_capital": (lambda t, _: t.isupper() and _english(t), ()),
    "change_case:english_lowercase": (lambda t, _: t.islower() and _english(t), ()),
    "combination:repeat_prompt": (
        lambda t, k: t.strip().lower().startswith(k["prompt_to_repeat"].strip().lower()),
        ("prompt_to_repeat",),
    ),
    "combination:two_responses": (_two_responses, ()),
    "detectable_content:number_placeholders": (_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": (_postscript, ("postscript_marker",)),
    "detectable_format:constrained_response": (lambda t, _: any(x in t for x in ANSWERS), ()),
    "detectable_format:json_format": (_json, ()),
    "detectable_format:multiple_sections": (_sections, ("section_spliter", "num_sections")),
    "detectable_format:number_bullet_lists": (_bullets, ("num_bullets",)),
    "detectable_format:number_highlighted_sections": (_highlights, ("num_highlights",)),
    "detectable_format:title": (_title, ()),
    "keywords:existence": (
        lambda t, k: all(re.search(x, t, re.IGNORECASE) for x in k["keywords"]),
        ("keywords",),
    ),
    "keywords:forbidden_words": (_forbidden, ("forbidden_words",)),
    "keywords:frequency": (_frequency, ("keyword", "frequency", "relation")),
    "keywords:letter_frequency": (
        lambda t, k: _related(t.lower().count(k["letter"].lower()), k["let_relation"], k["let_frequency"]),
        ("letter", "let_frequency", "let_relation"),
    ),
    "language:response_language": (
        lambda t, k: likeliest_language(t) in (k["language"], None),
        ("language",),
    ),
    "length_constraints:nth_paragraph_first_word": (
        _nth_paragraph,
        ("num_paragraphs", "nth_paragraph", "first_word"),
    ),
    "length_constraints:number_paragraphs": (_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_sentences": (
        lambda t, k: _related(len(sentences(t)), k["relation"], k["num_sentences"]),
        ("num_sentences", "relation"),
    ),
    "length_constraints:number_words": (
        lambda t, k: _related(len(re.findall(r"\w+", t)), k["relation"], k["num_words"]),
        ("num_words", "relation"),
    ),
    "punctuation:no_comma": (lambda t, _: "," not in t, ()),
    "startend:end_checker": (
        lambda t, k: t.strip().strip('"').lower().endswith(k["end_phrase"].strip().lower()),
        ("end_phrase",),
    ),
    "startend:quotation": (_quoted, ()),
}
"""Instruction id -> its question and the settings it reads."""

"""Search among many tools: the model is shown `search_tools` instead of all of them, and the best matches are loaded on demand.

In: the tools of a stack and a query. Out: the best of them by BM25 over the words of names, descriptions and arguments. Reference:
Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from demeanor.core.types import RunnableTool, ToolSpec

NAME = "search_tools"
K1, B = 1.2, 0.75
NAME_WEIGHT = 3  # a word of the name counts as often
MAX_CHARS = 4000  # of a description that are searched
WORD = re.compile(r"[^\W_]+")
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

SPEC = ToolSpec(
    NAME,
    "Finds tools by what they do. Call it first when no tool that you see fits; the tools that it finds can be called after it.",
    {
        "type": "object",
        "properties": {
            "query": {
                "type": "string",
                "minLength": 1,
                "maxLength": 500,
                "description": "what the tool should do",
            }
        },
        "required": ["query"],
        "additionalProperties": False,
    },
)


class ToolIndex:
    """BM25 over a set of tools."""

    def __init__(self, tools: Mapping[str, RunnableTool]) -> None:
        self._counts = {name: Counter(_terms(tool.spec)) for name, tool in tools.items()}
        self._lengths = {name: sum(counts.values()) for name, counts in self._counts.items()}
        self._mean = sum(self._lengths.values()) / max(1, len(self._lengths))
        self._having = Counter(word for counts in self._counts.values() for word in counts)

    def best(self, query: str, count: int) -> list[str]:
        """The names of the tools that fit best, best first; none that has no word in common with the query."""
        words = set(_words(query))
        scores = {name: self._score(name, words) for name in self._counts}
        found = sorted((name for name, score in scores.items() if score > 0), key=lambda n: (-scores[n], n))
        return found[:count]

    def _score(self, name: str, words: set[str]) -> float:
        total, counts = 0.0, self._counts[name]
        for word in words & counts.keys():
            having = self._having[word]
            rarity = math.log(1 + (len(self._counts) - having + 0.5) / (having + 0.5))
            long = K1 * (1 - B + B * self._lengths[name] / self._mean)
            total += rarity * counts[word] * (K1 + 1) / (counts[word] + long)
        return total


_KEPT: list[tuple[list[ToolSpec], ToolIndex]] = []  # the last ones, newest first


def index_of(tools: Mapping[str, RunnableTool]) -> ToolIndex:
    """The index of a set of tools, made once as long as the set stays the same."""
    specs = [tool.spec for tool in tools.values()]
    for kept, index in list(_KEPT):
        if len(kept) == len(specs) and all(a is b for a, b in zip(kept, specs)):
            return index
    made = ToolIndex(tools)
    _KEPT[:] = [(specs, made), *_KEPT[:3]]
    return made


def _terms(spec: ToolSpec) -> list[str]:
    arguments = spec.parameters.get("properties")
    names = " ".join(map(str, arguments)) if isinstance(arguments, Mapping) else ""
    return _words(spec.name) * NAME_WEIGHT + _words(spec.description[:MAX_CHARS]) + _words(names)


def _words(text: str) -> list[str]:
    """Lower-case words without a plural s; camelCase and snake_case are taken apart."""
    words = (word.lower() for word in WORD.findall(CAMEL.sub(" ", text)))
    return [
        word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
        for word in words
    ]


def told(found: Sequence[str], tools: Mapping[str, RunnableTool]) -> str:
    """What the model reads of a search: names and the beginnings of descriptions."""
    if not found:
        return "no tool fits; search with other words or answer without a tool"
    lines = [f"{name}: {' '.join(tools[name].spec.description.split())[:160]}" for name in found]
    return "These tools can be called now:\n" + "\n".join(lines)

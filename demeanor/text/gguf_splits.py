"""How llama.cpp's pre-tokenizers split a text before byte-level BPE, by their names in GGUF files.

In: a name, or the pre_tokenizer of a tokenizer.json. Out: the rules of the `tokenizers` library, or the name.
Each expression is applied to what the one before left together; what it does not match stays one piece.
Source: src/llama-vocab.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Split(NamedTuple):
    """The expressions of a pre-tokenizer, and its names in GGUF files, the one that is written first.

    `whole_words`: a piece that is a token stays whole, whatever the merges (`ignore_merges`).
    """

    names: tuple[str, ...]
    expressions: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False


ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPELLED_OUT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
"""`ENDINGS` as some tokenizer.json files write it."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MODERN = (
    ENDINGS
    + r"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
THREES, ONES = MODERN.format(numbers=r"\p{N}{1,3}"), MODERN.format(numbers=r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

SPLITS = (
    Split(
        (
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ),
        (THREES,),
        whole_words=True,
        adds_bos=True,
    ),
    Split(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), (THREES,)),
    Split(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "grok-2"), (ONES,)
    ),
    Split(
        (
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "jina-es",
            "jina-de",
        ),
        (GPT2,),
    ),
    Split(
        (
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ),
        (r"\p{N}", GPT2),
    ),
    Split(
        ("qwen35",),
        (
            ENDINGS
            + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    Split(
        ("tekken",),
        (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}{REST}",),
        whole_words=True,
        adds_bos=True,
    ),
    Split(
        ("gpt-4o", "llama4", "kanana2"),
        (
            rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDINGS}?|"
            rf"\p{{N}}{{1,3}}{REST}",
        ),
    ),
    Split(
        ("deepseek-v3",),
        (
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    Split(
        ("default",),
        (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    ),
    Split(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
)
NAMED = {name: split for split in SPLITS for name in split.names}


def pre_tokenizer(split: Split) -> dict[str, Any]:
    """Return the pre_tokenizer of a tokenizer.json that splits as llama.cpp does."""
    parts: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": x}, "behavior": "Isolated", "invert": False}
        for x in split.expressions
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*parts, byte_level]}


def expressions(node: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Return the expressions of a tokenizer.json's pre_tokenizer; None if it does more than split."""
    parts = [node] if node and node.get("type") != "Sequence" else (node or {}).get("pretokenizers", [])
    found: list[str] = []
    for part in parts:
        kind = part.get("type")
        if kind == "ByteLevel" and not part.get("add_prefix_space"):
            found += [GPT2] if part.get("use_regex", True) else []
        elif kind == "Digits" and part.get("individual_digits"):
            found.append(r"\p{N}")
        elif kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            pattern = part["pattern"]
            if "Regex" not in pattern:
                return None
            found.append(pattern["Regex"].replace(SPELLED_OUT, ENDINGS).replace(r"\p{N}{1}", r"\p{N}"))
        else:
            return None
    return tuple(found)


def named(node: Mapping[str, Any] | None, whole_words: bool) -> str | None:
    """Return llama.cpp's name for a pre_tokenizer; None if it has none."""
    wanted = expressions(node)
    return next((s.names[0] for s in SPLITS if (s.expressions, s.whole_words) == (wanted, whole_words)), None)

"""Tokenizers of GGUF files as tokenizer.json and tokenizer_config.json.

In: the `tokenizer.*` settings of a file. Out: the content of the two files. Byte-level BPE (`gpt2`) and
SentencePiece's BPE (`llama`) are read; gguf_writing.py writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demeanor.core.errors import CheckpointError, unknown
from demeanor.text.gguf_splits import NAMED, pre_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens in `tokenizer.ggml.token_type`."""
SPACE = "\u2581"
TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

TEXTS = (
    "Hello, world! It's 07:45; don't we'RE they'LL I'M he'd.",
    "1 12 123 1234 12345 1234567 3.14159 1,234,567 007 2026-11-30 ²³ ½ Ⅷ ٣٤٥ 一二三",
    "  two  spaces\tand\ttabs\n\nand lines\r\n\r\n   \n end   ",
    "\n\n\n",
    "   ",
    " leading and trailing ",
    "naïve café Zürich façade Straße œuvre ÅNGSTRÖM ﬁ ǆ ŉ",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم",
    "你好，世界！こんにちは世界。안녕하세요 ภาษาไทย हिन्दी বাংলা தமிழ்",
    "👍🏽👩‍👩‍👧‍👦🇩🇪 ✨ \u200b\u200d\u00a0\u3000\u2028 \ufeff",
    "def f(x):\n    return {'a': [x**2, -1e-9], \"b\": None}  # TODO\n",
    "<b>HTML</b> &amp; https://example.org/a?b=c#d user@example.org C:\\dir /usr/bin ~!@#$%^&*()_+|{}[]",
    "camelCaseWords SCREAMING_SNAKE kebab-case XMLHttpRequest iPhone15ProMax A1B2C3",
    "...!!!???--- === ''' \"\"\" ``` ¿¡ «» „“ ‘’ … — –",
    "a\u0301 e\u0308 n\u0303 \u0915\u094d\u0937 \u1112\u1161\u11ab",
    "'s 't'd 'S 'Re ' s's'",
    "x" * 40 + " " + "ab" * 30 + " " + "9" * 30,
    '{"name": "probe_tool", "arguments": {"city": "Corkel", "n": 3}}',
    "\x00\x01\x7f\x80\xff",
    "",
)
"""Texts on which two tokenizers are compared: every kind of character and of boundary."""


def read(settings: Mapping[str, Any], where: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return tokenizer.json and tokenizer_config.json of a file's settings.

    Raises CheckpointError naming a setting that is missing, broken or of an unknown kind.
    """
    kind = settings.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        absent = kind in (None, "none", "no_vocab")
        why = (
            "the file has no tokenizer (tokenizer.ggml.model)."
            if absent
            else unknown(str(kind), ("gpt2", "llama"), noun="tokenizer.ggml.model")
        )
        raise CheckpointError(
            f"{where}: {why} Name the Hugging Face folder of this model as the base instead."
        )
    tokens = _list(settings, "tokens", str, where)
    kinds = _list(settings, "token_type", int, where, [NORMAL] * len(tokens))
    if len(kinds) != len(tokens):
        raise CheckpointError(
            f"{where}: tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens"
        )
    vocab = {text: i for i, (text, kind) in enumerate(zip(tokens, kinds)) if kind != UNUSED}
    if len(vocab) != len(tokens) - kinds.count(UNUSED):
        twice = next(text for i, text in enumerate(tokens) if vocab.get(text, i) != i and kinds[i] != UNUSED)
        raise CheckpointError(f"{where}: the token {twice[:40]!r} stands twice in tokenizer.ggml.tokens")
    named = _named(settings, tokens, where)
    split = NAMED.get(_pre(settings, where)) if kind == "gpt2" else None
    parts = (
        _sentencepiece(settings, tokens, kinds, vocab, where)
        if split is None
        else {
            "normalizer": {"type": "NFC"} if split.names[0] == "qwen2" else None,
            "pre_tokenizer": pre_tokenizer(split),
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            },
            "model": _bpe(vocab, _merges(settings, vocab, where), ignore_merges=split.whole_words),
        }
    )
    default = split.adds_bos if split else True
    adds_bos = bool(settings.get("tokenizer.ggml.add_bos_token", default)) and "bos_token" in named
    added = {i for i, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED, UNKNOWN)}
    specials = {i for i, kind in enumerate(kinds) if kind != USER_DEFINED} | set(named.values())
    source = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(i, tokens[i], special=i in specials) for i in sorted(added | set(named.values()))
        ],
        "post_processor": _start(tokens[named["bos_token"]], named["bos_token"]) if adds_bos else None,
        **parts,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        **{name: tokens[i] for name, i in named.items() if name in TOKENS},
        **_templates(settings),
    }
    return source, config


def _templates(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The chat templates of a file as tokenizer_config.json has them: one, or several by name."""
    key = "tokenizer.chat_template"
    named = {
        name.removeprefix(f"{key}."): text
        for name, text in settings.items()
        if name.startswith(f"{key}.") and isinstance(text, str)
    }
    alone = settings.get(key)
    if not named:
        return {"chat_template": alone} if isinstance(alone, str) else {}
    every = {**({"default": alone} if isinstance(alone, str) else {}), **named}
    return {"chat_template": [{"name": name, "template": text} for name, text in every.items()]}


def ends(settings: Mapping[str, Any]) -> list[int]:
    """Return the ids of the tokens that end an answer, named one by one or, by Ollama, in a list too."""
    ids = [settings.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    more = settings.get("tokenizer.ggml.eos_token_ids")
    ids += more if isinstance(more, list) else []
    return list(dict.fromkeys(i for i in ids if isinstance(i, int)))


def _list(
    settings: Mapping[str, Any], name: str, kind: type, where: Path, default: list[Any] | None = None
) -> list[Any]:
    key = f"tokenizer.ggml.{name}"
    found = settings.get(key, default)
    if not isinstance(found, list) or not all(type(x) is kind for x in found) or not found:
        got = "is missing" if found is None else "is not one"
        raise CheckpointError(f"{where}: {key} {got}; wanted a list of {kind.__name__}")
    return found


def _named(settings: Mapping[str, Any], tokens: Sequence[str], where: Path) -> dict[str, int]:
    """The ids of BOS, EOS and the other tokens with a role; raises CheckpointError for one out of range."""
    roles = {**TOKENS, "eot_token": "eot", "eom_token": "eom"}
    found = {name: settings.get(f"tokenizer.ggml.{short}_token_id") for name, short in roles.items()}
    for name, i in found.items():
        if i is not None and not (isinstance(i, int) and 0 <= i < len(tokens)):
            if name == "pad_token":  # llama.cpp passes over it too
                found[name] = None
                continue
            raise CheckpointError(
                f"{where}: tokenizer.ggml.{roles[name]}_token_id is {i!r}, the file has {len(tokens)} tokens"
            )
    if found["eos_token"] is None:
        raise CheckpointError(
            f"{where}: no tokenizer.ggml.eos_token_id; wanted the token that ends a document"
        )
    return {name: i for name, i in found.items() if i is not None}


def _pre(settings: Mapping[str, Any], where: Path) -> str:
    name = str(settings.get("tokenizer.ggml.pre", "default"))
    if name not in NAMED:
        raise CheckpointError(
            f"{where}: {unknown(name, NAMED, noun='tokenizer.ggml.pre')} How it splits a text is not known here; "
            "name the Hugging Face folder of this model as the base instead."
        )
    return name


def _merges(settings: Mapping[str, Any], vocab: Mapping[str, int], where: Path) -> list[list[str]]:
    found = []
    for merge in _list(settings, "merges", str, where):
        first, _, second = merge[1:].partition(" ")
        first = merge[:1] + first
        if first not in vocab or second not in vocab or first + second not in vocab:
            raise CheckpointError(
                f"{where}: tokenizer.ggml.merges: {merge[:60]!r} joins no two tokens to a token"
            )
        found.append([first, second])
    return found


def _bpe(vocab: Mapping[str, int], merges: list[list[str]], **changes: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocab),
        "merges": merges,
        **changes,
    }


def _sentencepiece(
    settings: Mapping[str, Any],
    tokens: Sequence[str],
    kinds: Sequence[int],
    vocab: Mapping[str, int],
    where: Path,
) -> dict[str, Any]:
    """SentencePiece's BPE: two neighbours that make a token are joined, the token of the best score first."""
    scores = _list(settings, "scores", float, where)
    if len(scores) != len(tokens):
        raise CheckpointError(
            f"{where}: tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens"
        )
    unknowns = [text for text, kind in zip(tokens, kinds) if kind == UNKNOWN]
    joined = {text: i for i, (text, kind) in enumerate(zip(tokens, kinds)) if kind in (NORMAL, USER_DEFINED)}
    merges = sorted(
        (-scores[i], joined[text[:k]], joined[text[k:]], text[:k], text[k:])
        for text, i in joined.items()
        for k in range(1, len(text))
        if text[:k] in joined and text[k:] in joined
    )
    spaces: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    prefixed = settings.get("tokenizer.ggml.add_space_prefix", True) is not False
    if prefixed:
        spaces.insert(0, {"type": "Prepend", "prepend": SPACE})
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": spaces},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": _bpe(
            vocab,
            [[first, second] for *_, first, second in merges],
            unk_token=unknowns[0] if unknowns else None,
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _added(i: int, text: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": text, **flags, "special": special}


def _start(bos: str, i: int) -> dict[str, Any]:
    """A post-processor that puts BOS before a text, for transformers and vLLM."""
    first = [
        {"SpecialToken": {"id": bos, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": {bos: {"id": bos, "ids": [i], "tokens": [bos]}},
    }

"""A tokenizer as the `tokenizer.*` settings of a GGUF file, if llama.cpp reads every text as it does.

In: a tokenizer, the tokens that end an answer, texts. Out: settings. What is written is read again
(gguf_tokenizer.py splits as llama.cpp does) and compared on the texts; a difference is an error that shows it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from demeanor.core.errors import CheckpointError
from demeanor.text import gguf_tokenizer
from demeanor.text.gguf_splits import SPLITS, named
from demeanor.text.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    TEXTS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from demeanor.text.tokenizer import Tokenizer

WHERE = Path("tokenizer.json")


class Lists(NamedTuple):
    """What a file says of every token: text, kind, and the score of SentencePiece's."""

    tokens: list[str]
    kinds: list[int]
    scores: list[float]


def settings(
    tokenizer: Tokenizer,
    embedded: int,
    ends: Collection[int],
    *,
    chat_template: str | None,
    texts: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the settings; lists of numbers are plain lists. `embedded`: rows of the embedding.

    Raises CheckpointError with a text that llama.cpp would read as other tokens.
    """
    source = json.loads(tokenizer.source)
    model = source.get("model") or {}
    if model.get("type") != "BPE":
        raise CheckpointError(
            f"--to gguf: this tokenizer is {model.get('type')}; BPE is written here. {INSTEAD}"
        )
    kind = "llama" if model.get("byte_fallback") else "gpt2"
    lists = _lists(source, embedded, kind)
    found: dict[str, Any] = {"tokenizer.ggml.model": kind}
    ids = dict(_ids(tokenizer, ends))
    rest = {
        "tokenizer.ggml.tokens": lists.tokens,
        "tokenizer.ggml.token_type": lists.kinds,
        **({"tokenizer.ggml.scores": lists.scores} if kind == "llama" else {}),
        **({"tokenizer.ggml.merges": _merges(model)} if kind == "gpt2" else {}),
        **{f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items()},
        "tokenizer.ggml.add_bos_token": tokenizer.bos_id is not None,
        **({"tokenizer.chat_template": chat_template} if chat_template else {}),
    }
    if kind == "llama":
        found |= {
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.add_space_prefix": tokenizer.prefix,
            **rest,
        }
        differing = _differing(found, tokenizer, (*TEXTS, *texts))
        if differing is not None:
            raise _unlike("SentencePiece's BPE", differing, tokenizer, found)
        return found
    compared: Sequence[str] = (*TEXTS, *texts)
    if (source.get("normalizer") or {}).get(
        "type"
    ) == "NFC":  # llama.cpp leaves decomposed letters as they are
        compared = [unicodedata.normalize("NFC", text) for text in compared]
    exact = named(source.get("pre_tokenizer"), bool(model.get("ignore_merges")))
    tried = [exact] if exact else [split.names[0] for split in SPLITS]
    closest: tuple[int, str, str] | None = None
    for pre in tried:
        found = {"tokenizer.ggml.model": kind, "tokenizer.ggml.pre": pre, **rest}
        other = _read(found)
        wrong = [text for text in compared if other.encode(text) != tokenizer.encode(text)]
        if not wrong:
            return found
        if closest is None or len(wrong) < closest[0]:
            closest = (len(wrong), pre, min(wrong, key=len))
    assert closest is not None
    count, pre, text = closest
    found = {"tokenizer.ggml.model": kind, "tokenizer.ggml.pre": pre, **rest}
    raise _unlike(
        f"its pre-tokenizer '{pre}', the nearest ({count} of {len(compared)} texts differ)",
        text,
        tokenizer,
        found,
    )


INSTEAD = "Export it as hf or onnx."


def _unlike(what: str, text: str, tokenizer: Tokenizer, found: Mapping[str, Any]) -> CheckpointError:
    ours, theirs = tokenizer.encode(text), _read(found).encode(text)
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    shown = [[tokenizer.decode([t]) for t in tokens[place : place + 3]] for tokens in (ours, theirs)]
    return CheckpointError(
        f"--to gguf: llama.cpp does not split texts as this tokenizer does: with {what}, {text[:60]!r} has "
        f"{shown[1]} where it has {shown[0]}, so the model would read other tokens. {INSTEAD}"
    )


def _read(found: Mapping[str, Any]) -> Tokenizer:
    source, config = gguf_tokenizer.read(found, WHERE)
    source["normalizer"] = None if found["tokenizer.ggml.model"] == "gpt2" else source["normalizer"]
    return Tokenizer(json.dumps(source), config)


def _differing(found: Mapping[str, Any], tokenizer: Tokenizer, texts: Sequence[str]) -> str | None:
    """The shortest text that the written tokenizer reads as other tokens; None if all are equal."""
    other = _read(found)
    return min((x for x in texts if other.encode(x) != tokenizer.encode(x)), key=len, default=None)


def _lists(source: Mapping[str, Any], embedded: int, kind: str) -> Lists:
    """Texts, kinds and scores of all rows of the embedding; a row without a token is unused."""
    model = source["model"]
    texts = {int(i): str(text) for text, i in model["vocab"].items()}
    kinds = dict.fromkeys(texts, NORMAL)
    if kind == "llama":
        kinds |= {i: BYTE for i, text in texts.items() if len(text) == 6 and text.startswith("<0x")}
    for token in source.get("added_tokens") or ():
        i = int(token["id"])
        texts[i], kinds[i] = str(token["content"]), CONTROL if token.get("special") else USER_DEFINED
        if token["content"] == model.get("unk_token"):
            kinds[i] = UNKNOWN
    if max(texts) >= embedded:
        raise CheckpointError(
            f"--to gguf: the tokenizer has the token {max(texts)}, the embedding {embedded} rows"
        )
    rows = range(embedded)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges") or ()):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(first + second, rank)
    return Lists(
        [texts.get(i, f"[PAD{i}]") for i in rows],
        [kinds.get(i, UNUSED) for i in rows],
        [-float(ranks.get(texts.get(i, ""), 0)) for i in rows],
    )


def _merges(model: Mapping[str, Any]) -> list[str]:
    return [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or ()]


def _ids(tokenizer: Tokenizer, ends: Collection[int]) -> list[tuple[str, int]]:
    """The tokens with a role: those that end an answer as EOS, EOT and EOM, then BOS, unknown and padding."""
    ordered = sorted(ends, key=lambda i: (i != tokenizer.eos_id, i))
    found = list(zip(("eos", "eot", "eom"), ordered or [tokenizer.eos_id]))
    others = {"bos": "bos_token", "unknown": "unk_token", "padding": "pad_token"}
    for name, key in others.items():
        token = tokenizer.config.get(key)
        text = str(token.get("content") if isinstance(token, dict) else token)
        if text in tokenizer.special:
            found.append((name, tokenizer.special[text]))
    return found

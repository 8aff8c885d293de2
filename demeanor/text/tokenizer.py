"""Text to token ids and back: a byte-level BPE trained here, or the tokenizer.json of any Hugging Face
folder.

In: text. Out: ids. Text never becomes a special token, whatever it spells; only templates add special tokens,
by id. Knows no roles, messages or training masks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from demeanor.core.errors import CheckpointError, DataError, check_unicode
from demeanor.core.files import refuse_code, verify, write_text
from demeanor.stack import schema as specs

_SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
BYTE_OF = {chr(b): b for b in _SHOWN} | {chr(256 + i): b for i, b in enumerate(_HIDDEN)}
"""Which byte a character of a byte-level vocabulary stands for (GPT-2)."""
END = "<|end|>"
# Special tokens of all built-in templates: one tokenizer serves all; `<|end|>` ends documents and turns.
SPECIALS = (
    END,
    "<|system|>",
    "<|developer|>",
    "<|user|>",
    "<|assistant|>",
    "<|data|>",
    "<|tool|>",
    "<|call|>",
    "<|im_start|>",
    "<|im_end|>",
)

# BPE never merges across these: words and digit pairs keep their leading space, so " 37" can be one token.
WORDS = r" ?\p{N}{1,2}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


MANY_CHARS = 10_000  # from here on a text is encoded without offsets


class Tokenizer:
    """A tokenizer with its `special` ids, `eos_id` and `bos_id` (None: sequences start without a token)."""

    def __init__(self, source: str, config: Mapping[str, Any], ends: Collection[object] = ()) -> None:
        """Load the text of a tokenizer.json and its tokenizer_config; raises CheckpointError if it is
        invalid. `ends`: ids that the model's generation_config names as ends of an answer."""
        self.config = dict(config)
        self._source = source
        try:
            whole = json.loads(source)
            inside = _without_prefix(whole)
            self._plain = _text_only(whole)
            # Most vocabularies put no space before a text: one tokenizer (of 50,000 tokens: 25 MB) does both then.
            self._joined = self._plain if inside == whole else _text_only(inside)
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(
                f"tokenizer.json: not a tokenizer this version of `tokenizers` reads: {error}"
            ) from None
        ids = self._plain.get_vocab(with_added_tokens=True).values()
        self.vocab_size: int = max(ids, default=-1) + 1  # ids may leave gaps
        self.added = {t["content"]: t for t in whole.get("added_tokens") or ()}
        self.special: Mapping[str, int] = {text: int(token["id"]) for text, token in self.added.items()}
        self._text_of = {i: text for text, i in self.special.items()}
        # A token of ordinary text would end answers in the middle.
        self.ends = frozenset(i for i in self._text_of if i in ends)
        self.eos_id: int = self._named("eos_token")
        self.bos_id: int | None = self._named("bos_token") if self._starts_with_bos() else None
        # True if `encode` puts one space before a text, and `decode` removes it.
        self.prefix: bool = self._plain.encode("a", add_special_tokens=False).ids != self.joined("a")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without BOS and EOS; special strings in it are plain text.

        Raises TextError for half a surrogate pair, which is no Unicode text.
        """
        return _ids(self._plain, text)

    def joined(self, text: str) -> list[int]:
        """Return the ids of a text that continues earlier text: no space is put before it."""
        return _ids(self._joined, text)

    def document(self, text: str) -> list[int]:
        """Return the ids of a whole document as in pretraining: BOS if there is one, the text, EOS."""
        return [*self.start, *self.encode(text), self.eos_id]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids; special tokens appear as their text, without the space that `encode` put
        after them."""
        parts: list[str] = []
        run: list[int] = []
        for token in tokens:
            if token in self._text_of:
                parts += [self._decode_run(run), self._text_of[token]]
                run = []
            else:
                run.append(token)
        return "".join([*parts, self._decode_run(run)])

    def padding(self, ends: Collection[int]) -> str | None:
        """Return a special token for padding that cannot end an answer; None if there is none.

        transformers reads a reward at the last token that is not padding, so a token of `ends` would hide
        itself.
        """
        named = (_content(self.config.get(name)) for name in ("pad_token", "bos_token"))
        others = (text for text, token in self.added.items() if token.get("special"))
        unknown = _content(self.config.get("unk_token"))
        usable = {text for text, token in self.special.items() if token not in ends and text != unknown}
        return next((text for text in (*named, *others) if text in usable), None)

    def token_bytes(self, token: int, shown: str) -> tuple[int, ...]:
        """Return a token's bytes in a text where it adds `shown`, which is less if it has half a character."""
        raw = self._raw_bytes(token)
        if raw is None or (shown and "\ufffd" not in shown) or not (shown or raw.strip()):
            return tuple(shown.encode("utf-8", "replace"))  # without the space that decoding removes
        return tuple(raw)

    def _raw_bytes(self, token: int) -> bytes | None:
        """Return the bytes that a token stands for; None if its vocabulary does not tell them."""
        piece = None if token in self._text_of else self._plain.id_to_token(token)
        if piece is None or self._decoder is None:
            return None
        if self._decoder == "ByteLevel":
            return bytes(BYTE_OF[c] for c in piece) if all(c in BYTE_OF for c in piece) else None
        if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()

    @cached_property
    def _decoder(self) -> str | None:
        """How its vocabulary spells bytes: the name of a part of its decoder."""
        text = json.dumps(json.loads(self._source).get("decoder"))
        return next(
            (name for name in ("ByteLevel", "ByteFallback", "Metaspace") if f'"{name}"' in text), None
        )

    def save(self, folder: Path, *, chat_template: str | None = None, pad_token: str | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json; None keeps the loaded template and padding."""
        folder.mkdir(parents=True, exist_ok=True)
        changes = {"chat_template": chat_template, "pad_token": pad_token}
        config = {**self.config, **{name: text for name, text in changes.items() if text is not None}}
        write_text(folder / "tokenizer.json", self._source)
        write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    @property
    def source(self) -> str:
        """The text of its tokenizer.json."""
        return self._source

    @property
    def start(self) -> tuple[int, ...]:
        """The tokens before every sequence: BOS, or none."""
        return () if self.bos_id is None else (self.bos_id,)

    @cached_property
    def prefix_after_special(self) -> bool:
        """True if Hugging Face's encoding of a whole text also puts a space after special tokens."""
        whole = tokenizers.Tokenizer.from_str(self._source).encode(
            f"{self._text_of[self.eos_id]}a", add_special_tokens=False
        )
        return self.prefix and bool(whole.ids[1:] == self.encode("a"))

    def _decode_run(self, run: list[int]) -> str:
        text: str = self._plain.decode(run, skip_special_tokens=False) if run else ""
        return text[1:] if self._keeps_prefix and text.startswith(" ") else text

    @cached_property
    def _keeps_prefix(self) -> bool:
        return self.prefix and bool(self._plain.decode(self.encode("a"), skip_special_tokens=False) == " a")

    def _named(self, name: str) -> int:
        token = _content(self.config.get(name))
        if token not in self.special:
            listed = ", ".join(list(self.special)[:12]) or "none"
            raise CheckpointError(
                f"tokenizer_config.json: {name}: got {token!r}, wanted one of the special tokens ({listed})"
            )
        return self.special[token]

    def _starts_with_bos(self) -> bool:
        """Return tokenizer_config's `add_bos_token` if it is set, else what the file's post-processor
        does."""
        bos = _content(self.config.get("bos_token"))
        if bos is None or self.config.get("add_bos_token") is False:
            return False
        ids = self._plain.encode("a").ids
        return bool(self.config.get("add_bos_token")) or bool(ids and ids[0] == self.special.get(bos))


def load(folder: Path) -> Tokenizer:
    """Read the tokenizer of a Hugging Face folder.

    Raises CheckpointError if a file is missing or broken, or no EOS token is named.
    """
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder}: no tokenizer.json; wanted a Hugging Face fast tokenizer "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder) writes one)"
        )
    verify(folder)
    config = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
    refuse_code(config, folder / "tokenizer_config.json")
    if (folder / "chat_template.jinja").is_file():
        config["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    source = (folder / "tokenizer.json").read_text(encoding="utf-8")
    try:
        if _content(config.get("eos_token")) is None:
            config["eos_token"] = _eos_of_model(folder, json.loads(source))
        found = Tokenizer(source, config, _ids_of(_json(folder / "generation_config.json")))
    except (CheckpointError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: {error}") from None
    embedded = _embedded(folder)
    if embedded is not None and found.vocab_size > embedded:
        raise CheckpointError(
            f"{folder}: tokenizer {found.vocab_size} > embedding {embedded}: its last tokens have no embedding, so "
            "a text with one of them cannot be read. Use the tokenizer that the weights were trained with, or "
            "enlarge the embedding (transformers: model.resize_token_embeddings(len(tokenizer)))"
        )
    return found


def train(texts: Iterable[str], spec: specs.TokenizerSpec) -> Tokenizer:
    """Train a byte-level BPE of at most `spec.vocab_size` tokens, including the specials of all templates.

    Equal texts give an equal file. Raises DataError if there is no text.
    """
    counted = _Counted(texts)
    bpe = tokenizers.Tokenizer(models.BPE())
    # A normalizer adds the space: ByteLevel would add one before every piece, except pieces that have one.
    bpe.normalizer = normalizers.Prepend(" ")
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        counted,
        trainers.BpeTrainer(
            vocab_size=spec.vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    if not counted.num_chars:
        raise DataError("no text to train a tokenizer on; wanted documents with at least one character")
    return Tokenizer(
        bpe.to_str(),
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
        },
    )


class _Counted:
    """Texts, counting their characters while they are read."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts, self.num_chars = texts, 0

    def __iter__(self) -> Iterable[str]:
        for text in self.texts:
            self.num_chars += len(text)
            yield text


def _ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    try:
        if len(text) < MANY_CHARS:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        else:  # without the offsets of every token: less than half the time
            ids = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    except TypeError:
        check_unicode(text)
        raise
    return ids


def _text_only(source: dict[str, Any]) -> tokenizers.Tokenizer:
    """Return a tokenizer that reads every string as text: added tokens become special, which are not
    parsed."""
    changed = {**source, "truncation": None, "padding": None}
    if source.get("added_tokens"):
        changed["added_tokens"] = [{**token, "special": True} for token in source["added_tokens"]]
    found = tokenizers.Tokenizer.from_str(json.dumps(changed, ensure_ascii=False))
    found.encode_special_tokens = True
    return found


def _without_prefix(node: Any) -> Any:
    """Return a tokenizer.json, or a part of it, with every rule that puts a space before a text disabled."""
    if isinstance(node, list):
        return [_without_prefix(n) for n in node if not (isinstance(n, dict) and n.get("type") == "Prepend")]
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "Prepend":
        return None
    rules: dict[str, dict[str, Any]] = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
    }
    changed = rules.get(str(kind), {})
    parts = ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers")
    whole: dict[str, Any] = {**node, **changed}
    return {k: _without_prefix(v) if k in parts else v for k, v in whole.items()}


def _content(token: Any) -> Any:
    """Return a token's text, which a config stores as a string or as an AddedToken dictionary."""
    return token.get("content") if isinstance(token, dict) else token


def _eos_of_model(folder: Path, source: dict[str, Any]) -> str | None:
    """Return the text of the model's EOS token, from generation_config.json or config.json."""
    named = [_ids_of(_json(folder / name)) for name in ("generation_config.json", "config.json")]
    first = next((ids[0] for ids in named if ids), None)
    return next((t["content"] for t in source.get("added_tokens") or () if t["id"] == first), None)


def _ids_of(config: Mapping[str, Any]) -> list[object]:
    """The ids that a generation_config.json or config.json names as ends, which stand alone or in a list."""
    ids = config.get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _embedded(folder: Path) -> int | None:
    """Return the number of tokens that the model of a folder embeds, the base's of an adapter; None if unknown."""
    config = _json(folder / "config.json")
    for _ in range(8):  # adapters on adapters
        if config or not (folder / "adapter_config.json").is_file():
            break
        base = folder / str(_json(folder / "adapter_config.json").get("base_model_name_or_path") or ".")
        folder, config = base, _json(base / "config.json")
    parts = (config, config.get("text_config"))
    sizes = [part.get("vocab_size") for part in parts if isinstance(part, dict)]
    return next((size for size in sizes if isinstance(size, int)), None)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: got a JSON {type(found).__name__}, wanted an object")
    return found

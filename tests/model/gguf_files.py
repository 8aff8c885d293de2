"""Tiny models and tokenizers to put into GGUF files: every architecture and every kind of tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demeanor.model import gguf, gguf_llama
from demeanor.model.gguf import Typed
from demeanor.model.initial import initialise
from demeanor.model.llama import Config, Llama
from demeanor.model.rope import Rope
from demeanor.text import gguf_writing
from demeanor.text import tokenizer as texts
from demeanor.text.gguf_splits import NAMED, pre_tokenizer
from demeanor.text.gguf_tokenizer import TEXTS

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIGS = {
    "llama": Config("llama", 0, 64, 96, 2, 4, 2, 16, 128, 1e-5, 1e4, True),
    "llama, untied, biases": Config(
        "llama", 0, 64, 96, 2, 4, 4, 16, 128, 1e-5, 5e5, False, qkv_bias=True, output_bias=True, mlp_bias=True
    ),
    "mistral": Config("mistral", 0, 64, 96, 2, 4, 1, 16, 128, 1e-6, 1e6, False),
    "qwen2": Config("qwen2", 0, 64, 96, 2, 4, 2, 16, 128, 1e-6, 1e6, True, qkv_bias=True),
    "qwen3": Config("qwen3", 0, 64, 96, 2, 4, 2, 32, 128, 1e-6, 1e6, False, qk_norm=True),
    "llama 3.1's rope": Config(
        "llama", 0, 64, 96, 2, 4, 2, 16, 128, 1e-5, 5e5, True, rope=Rope("llama3", 8.0, 8192)
    ),
    "linear rope": Config("llama", 0, 64, 96, 2, 4, 2, 16, 128, 1e-5, 1e4, True, rope=Rope("linear", 4.0)),
    "yarn": Config(
        "qwen2",
        0,
        64,
        96,
        2,
        4,
        2,
        16,
        128,
        1e-6,
        1e4,
        True,
        qkv_bias=True,
        rope=Rope("yarn", 4.0, 32, attention=1.1386294361119891),
    ),
    "yarn of another attention": Config(
        "llama",
        0,
        64,
        96,
        2,
        4,
        2,
        16,
        128,
        1e-5,
        1e4,
        True,
        rope=Rope("yarn", 4.0, 32, attention=0.5693147180559945),
    ),
}


def bpe(pre: str = "smollm", merges: int = 150) -> texts.Tokenizer:
    """A byte-level BPE trained on `TEXTS` that splits as llama.cpp's `pre`."""
    split = NAMED[pre]
    found = Tokenizer(models.BPE(ignore_merges=split.whole_words))
    parts = [pre_tokenizers.Split(Regex(x), "isolated") for x in split.expressions]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.pre_tokenizer = pre_tokenizers.Sequence([*parts, byte_level])
    found.decoder = decoders.ByteLevel()
    found.train_from_iterator(
        TEXTS * 2,
        trainers.BpeTrainer(
            vocab_size=len(SPECIALS) + 256 + merges,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    source = json.loads(found.to_str())
    source["pre_tokenizer"] = pre_tokenizer(split)
    source["normalizer"] = {"type": "NFC"} if pre == "qwen2" else None  # as Qwen's own file
    about = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "add_bos_token": False}
    return texts.Tokenizer(json.dumps(source), {**about, "chat_template": CHATML})


def sentencepiece() -> texts.Tokenizer:
    """A BPE over characters with bytes for the rest, as SentencePiece trains it for Llama 2."""
    spaced = [" " + text for text in TEXTS if text]
    learned = Tokenizer(models.BPE())
    learned.train_from_iterator(
        [text.replace(" ", "\u2581") for text in spaced],
        trainers.BpeTrainer(vocab_size=500, show_progress=False),
    )
    model = json.loads(learned.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *SPECIALS]
    joined = [a + b for a, b in model["merges"]]
    letters = sorted(
        {x for x in "".join(model["vocab"]) if (x.isascii() and x.isprintable()) or x == "\u2581"}
    )
    pieces += [*[x for x in joined if set(x) <= set(letters)], *letters]
    vocab = {text: i for i, text in enumerate(dict.fromkeys(pieces))}
    settings = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(vocab),
        "tokenizer.ggml.scores": [-float(i) for i in range(len(vocab))],
        "tokenizer.ggml.token_type": [
            2 if i == 0 else 3 if i < 3 or text in SPECIALS else 6 if i < 259 else 1
            for text, i in vocab.items()
        ],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    from demeanor.text import gguf_tokenizer

    source, about = gguf_tokenizer.read(settings, Path("x.gguf"))
    return texts.Tokenizer(json.dumps(source), {**about, "chat_template": CHATML})


def model(name: str, vocab: int, seed: int = 0) -> Llama:
    """A tiny model of one of `CONFIGS`, with biases and norms that are not 0 and 1."""
    found = Llama(replace(CONFIGS[name], vocab_size=vocab))
    initialise(found, seed, mimetic=False)
    draw = torch.Generator().manual_seed(seed)
    for tensor in found.parameters():
        if tensor.ndim == 1:
            tensor.data += torch.randn(tensor.shape, generator=draw) / 8
        else:
            tensor.data *= 6  # answers that are no ties
    return found


def typed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the types that llama.cpp wants."""
    whole = {k: Typed("I", v) for k, v in settings.items() if k.endswith("_id")}
    kinds = {"tokenizer.ggml.token_type": "i", "tokenizer.ggml.scores": "f"}
    lists = {k: Typed(letter, settings[k]) for k, letter in kinds.items() if k in settings}
    return {**settings, **whole, **lists}


def write(
    path: Path,
    name: str = "llama",
    form: str = "F32",
    tokenizer: texts.Tokenizer | None = None,
    **changes: Any,
) -> Llama:
    """Write a tiny model as a GGUF file; `changes` are settings by name (`__` is a dot)."""
    tokenizer = tokenizer or bpe()
    found = model(name, tokenizer.vocab_size + 5)
    ends = (tokenizer.eos_id, tokenizer.special["<|endoftext|>"])
    words = gguf_writing.settings(tokenizer, found.config.vocab_size, ends, chat_template=CHATML)
    settings = {**gguf_llama.settings(found.config, "tiny", form), **typed(words)}
    for key, value in changes.items():
        settings[key.replace("__", ".")] = value
    gguf.write(path, {k: v for k, v in settings.items() if v is not None}, gguf_llama.tensors(found, form))
    return found

"""Tokenizers in GGUF files: every kind reads every text as before, and one that llama.cpp would read differently is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demeanor.core.errors import CheckpointError
from demeanor.stack.schema import TokenizerSpec
from demeanor.text import gguf_tokenizer, gguf_writing
from demeanor.text import tokenizer as tokenizers
from demeanor.text.gguf_splits import NAMED, SPLITS, named, pre_tokenizer
from demeanor.text.gguf_tokenizer import TEXTS
from demeanor.text.tokenizer import Tokenizer
from tests.model import gguf_files

WHERE = Path("m.gguf")
OWN_FORMS = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
    "gpt-2": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
}
"""How transformers' own files of two models write what our table writes with expressions."""


def round_trip(made: Tokenizer) -> Tokenizer:
    settings = gguf_writing.settings(made, made.vocab_size + 3, {made.eos_id}, chat_template="x")
    source, config = gguf_tokenizer.read(settings, WHERE)
    return Tokenizer(json.dumps(source), config)


@pytest.mark.parametrize("pre", [split.names[0] for split in SPLITS])
def test_a_byte_level_bpe_of_every_split_comes_back(pre: str) -> None:
    made = gguf_files.bpe(pre)
    settings = gguf_writing.settings(made, made.vocab_size, {made.eos_id}, chat_template=None)
    assert settings["tokenizer.ggml.pre"] == pre
    found = round_trip(made)
    assert [found.encode(x) for x in TEXTS] == [made.encode(x) for x in TEXTS]
    assert [found.decode(found.encode(x)) for x in TEXTS] == [made.decode(made.encode(x)) for x in TEXTS]
    assert (found.special, found.eos_id, found.bos_id) == (made.special, made.eos_id, made.bos_id)


@pytest.mark.parametrize("pre", OWN_FORMS)
def test_transformers_own_way_to_write_a_split_has_its_name(pre: str) -> None:
    assert named(OWN_FORMS[pre], whole_words=False) == pre
    ours = json.loads(gguf_files.bpe(pre).source)
    theirs = Tokenizer(json.dumps({**ours, "pre_tokenizer": OWN_FORMS[pre]}), {"eos_token": "<|im_end|>"})
    assert [theirs.encode(x) for x in TEXTS] == [gguf_files.bpe(pre).encode(x) for x in TEXTS]


def test_every_name_has_one_split_and_one_written_form() -> None:
    assert len(NAMED) == sum(len(split.names) for split in SPLITS)
    assert all(named(pre_tokenizer(s), s.whole_words) == s.names[0] for s in SPLITS)


def test_sentencepiece_comes_back_with_its_space_and_its_bytes() -> None:
    made = gguf_files.sentencepiece()
    settings = gguf_writing.settings(made, made.vocab_size, {made.eos_id}, chat_template=None)
    assert settings["tokenizer.ggml.model"] == "llama"
    found = round_trip(made)
    assert [found.encode(x) for x in TEXTS] == [made.encode(x) for x in TEXTS]
    assert (found.prefix, found.bos_id) == (True, 1)
    assert found.decode(found.encode("naïve 你好 x")) == "naïve 你好 x"
    assert len(made.encode("hello")) < 6, "letters are joined"


def test_sentencepiece_joins_the_best_score_first() -> None:
    """abab: 'ba' has the better score, so a-ba-b, not ab-ab; equal scores join from the left."""
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "ba", "\u2581"]
    settings = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, 0.0, -2.0, -1.0, 0.0],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": False,
    }
    source, config = gguf_tokenizer.read(settings, WHERE)
    assert Tokenizer(json.dumps(source), config).encode("abab") == [3, 6, 4]
    equal = {**settings, "tokenizer.ggml.scores": [0.0] * 8}
    source, config = gguf_tokenizer.read(equal, WHERE)
    assert Tokenizer(json.dumps(source), config).encode("abab") == [5, 5]


def test_tokens_without_a_role_and_padding_rows() -> None:
    made = gguf_files.bpe()
    settings = gguf_writing.settings(made, made.vocab_size + 2, (made.eos_id, 0), chat_template=None)
    assert settings["tokenizer.ggml.tokens"][-1] == f"[PAD{made.vocab_size + 1}]"
    assert settings["tokenizer.ggml.token_type"][-1] == gguf_tokenizer.UNUSED
    assert gguf_tokenizer.ends(settings) == [made.eos_id, 0], "EOS first, then EOT"
    source, _ = gguf_tokenizer.read(settings, WHERE)
    assert "[PAD" not in json.dumps(source["model"]["vocab"])


def test_a_tokenizer_that_llama_cpp_would_read_differently_is_refused_with_a_text() -> None:
    own = tokenizers.train(TEXTS * 3, TokenizerSpec(vocab_size=500))
    with pytest.raises(
        CheckpointError, match=r"llama.cpp does not split texts.*the nearest \(\d+ of"
    ) as raised:
        gguf_writing.settings(own, own.vocab_size, {own.eos_id}, chat_template=None)
    assert "Export it as hf or onnx" in str(raised.value)


def test_a_text_of_the_stack_decides_too() -> None:
    """A split that differs from all of llama.cpp's only where TEXTS have nothing: the stack's own texts show it."""
    ours = json.loads(gguf_files.bpe("gpt-2").source)
    odd = {"type": "Split", "pattern": {"Regex": "☃"}, "behavior": "Isolated", "invert": False}
    ours["pre_tokenizer"]["pretokenizers"].insert(0, odd)
    ours["model"]["vocab"] |= {"ĥ!": len(ours["model"]["vocab"])}
    ours["model"]["merges"].append(["ĥ", "!"])
    made = Tokenizer(json.dumps(ours), {"eos_token": "<|im_end|>"})
    settings = gguf_writing.settings(made, made.vocab_size, {made.eos_id}, chat_template=None)
    assert settings["tokenizer.ggml.pre"] == "gpt-2", "no text of TEXTS shows the difference"
    with pytest.raises(CheckpointError, match="☃!"):
        gguf_writing.settings(made, made.vocab_size, {made.eos_id}, chat_template=None, texts=["snow ☃! "])


def test_another_model_of_tokens_is_refused() -> None:
    source = json.loads(gguf_files.bpe().source)
    source["model"] = {"type": "WordLevel", "vocab": {"a": 5, "<unk>": 6}, "unk_token": "<unk>"}
    made = Tokenizer(json.dumps(source), {"eos_token": "<|im_end|>"})
    with pytest.raises(CheckpointError, match="this tokenizer is WordLevel"):
        gguf_writing.settings(made, 500, {0}, chat_template=None)

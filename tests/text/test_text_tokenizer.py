"""The tokenizer: lossless, deterministic, the same ids in transformers, and deaf to special tokens spelled in a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conversations import CORPUS, TOKENIZERS, hostile, ours, words
from hypothesis import given, settings

from demeanor.core.errors import CheckpointError, DataError
from demeanor.stack import schema
from demeanor.text import tokenizer as rooms
from demeanor.text.tokenizer import SPECIALS, Tokenizer

each = pytest.mark.parametrize("name", TOKENIZERS)


@each
@settings(max_examples=60, deadline=None)
@given(text=words | hostile)
def test_decoding_an_encoding_gives_the_text_back_and_no_special_token_comes_of_it(
    name: str, text: str
) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & (set(tokenizer.special.values()) - {tokenizer.special.get("<unk>")})


@settings(max_examples=40, deadline=None)
@given(text=words, more=words)
def test_joined_text_goes_on_without_a_space(text: str, more: str) -> None:
    tokenizer = ours()
    assert tokenizer.decode([*tokenizer.encode("x" + text), *tokenizer.joined(more)]) == "x" + text + more


@each
def test_a_vocabulary_is_in_memory_twice_only_where_texts_get_a_space(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    assert (tokenizer._joined is tokenizer._plain) == (not tokenizer.prefix)


def test_training_twice_gives_the_same_file_and_all_specials_are_reserved() -> None:
    again = rooms.train(iter(CORPUS), schema.TokenizerSpec(vocab_size=340))
    assert again._source == ours()._source
    assert set(SPECIALS) <= set(again.special)
    assert again.vocab_size == 340
    assert again.decode([again.eos_id]) == "<|end|>"


def test_a_word_is_the_same_token_at_the_start_of_a_text_and_in_a_sentence() -> None:
    tokenizer = ours()
    (corkel,) = tokenizer.encode("Corkel")
    assert corkel in tokenizer.encode("When to Corkel?")


def test_digits_come_in_pairs_that_carry_their_space() -> None:
    tokenizer = ours()
    assert len(tokenizer.encode("37")) == 1
    pieces = [tokenizer.decode([t]) for t in tokenizer.encode("at 1234567")]
    assert all(sum(c.isdigit() for c in piece) <= 2 for piece in pieces)


def test_a_document_has_its_bos_and_its_eos() -> None:
    for tokenizer in (make() for make in TOKENIZERS.values()):
        ids = tokenizer.document("Marla")
        assert ids == [
            *([tokenizer.bos_id] if tokenizer.bos_id is not None else []),
            *tokenizer.encode("Marla"),
            tokenizer.eos_id,
        ]
    assert TOKENIZERS["llama"]().start == (1,)
    assert ours().start == ()


@each
def test_what_is_saved_loads_here_and_in_transformers_with_the_same_ids(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = TOKENIZERS[name]()
    tokenizer.save(tmp_path, chat_template="{{ messages[0].content }}")
    again = rooms.load(tmp_path)
    peer = AutoTokenizer.from_pretrained(tmp_path)
    for text in ["Marla runs to Corkel at 12:30.", " two  spaces", "é☃\n\n37 1234", "x"]:
        assert again.encode(text) == tokenizer.encode(text) == peer(text, add_special_tokens=False).input_ids
        assert peer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False).strip() == text.strip()
    assert (again.eos_id, again.bos_id) == (peer.eos_token_id, peer.bos_token_id if tokenizer.start else None)
    assert peer.chat_template == again.config["chat_template"] == "{{ messages[0].content }}"
    assert not list(tmp_path.glob(".*"))


def test_metaspace_and_byte_level_prefixes_are_understood() -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    source = json.loads(ours()._source) | {
        "normalizer": None,
        "decoder": byte_level,
        "pre_tokenizer": byte_level,
    }
    gpt = Tokenizer(json.dumps(source), ours().config)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    source = json.loads(TOKENIZERS["llama"]()._source) | {"normalizer": None, "pre_tokenizer": metaspace}
    first = Tokenizer(json.dumps(source), TOKENIZERS["llama"]().config)
    for tokenizer in (gpt, first):
        assert tokenizer.prefix
        assert tokenizer.decode(tokenizer.encode("Marla")) == "Marla"
        assert tokenizer.decode([*tokenizer.encode("Marla"), *tokenizer.joined("Marla")]) == "MarlaMarla"
    assert gpt.prefix_after_special
    assert not first.prefix_after_special


def test_the_token_that_ends_documents_is_found_in_the_model_config_too(tmp_path: Path) -> None:
    TOKENIZERS["llama"]().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert rooms.load(tmp_path).eos_id == 2


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no tokenizer.json"),
        ({"tokenizer.json": "{"}, "not a tokenizer|Expecting"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": '{"eos_token": "x"}'}, "not a tokenizer"),
        (
            {"tokenizer.json": None, "tokenizer_config.json": '{"eos_token": "</x>"}'},
            "eos_token: got '</x>'.*<[|]end[|]>",
        ),
        ({"tokenizer.json": None, "tokenizer_config.json": "[]"}, "wanted an object"),
        ({"tokenizer.json": None, "tokenizer_config.json": "{"}, "not JSON"),
    ],
)
def test_a_folder_that_is_no_tokenizer_gets_one_clear_error(
    files: dict[str, str | None], said: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(ours()._source if text is None else text)
    with pytest.raises(CheckpointError, match=said) as caught:
        rooms.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_training_on_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="no text"):
        rooms.train(["", ""], schema.TokenizerSpec())


def test_a_real_tokenizer_is_read_as_transformers_reads_it(shared: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, peer = (
        rooms.load(shared / "stories260K-hf"),
        AutoTokenizer.from_pretrained(shared / "stories260K-hf"),
    )
    text = "Once upon a time, there was a little girl named Lily.\nShe was 3."
    assert [tokenizer.bos_id, *tokenizer.encode(text)] == peer(text).input_ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (512, 1, 2)

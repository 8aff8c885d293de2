"""Pieces of text add up to the decoding of the whole, and a stop string is found wherever the pieces are cut."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from demeanor.engine.detokenizer import Detokenizer, Scan, scan
from demeanor.stack.schema import TokenizerSpec
from demeanor.text import tokenizer as text


def byte_decode(tokens: tuple[int, ...]) -> str:
    """A byte tokenizer: token = byte."""
    return bytes(tokens).decode("utf-8", errors="replace")


def stripped_decode(tokens: tuple[int, ...]) -> str:
    """A tokenizer that writes a space before each word and takes the first one away again."""
    return byte_decode(tokens).removeprefix(" ")


def byte_fallback() -> Tokenizer:
    """Llama's decoder: bytes as `<0xE4>`; a run of bytes that is no UTF-8 is decoded to one mark per byte."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


FALLBACK = byte_fallback()


def fallback_decode(tokens: tuple[int, ...]) -> str:
    return FALLBACK.decode(list(tokens))


def fed(tokens: bytes, decode: object) -> list[str]:
    detokenizer = Detokenizer(decode)
    return [*(detokenizer.feed(token) for token in tokens), detokenizer.finish()]


GARBAGE = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from([0xFF, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x61, 0x20]), max_size=80).map(bytes),
)
WORDS = st.text(max_size=30).map(str.encode)


@given(st.one_of(GARBAGE, WORDS))
def test_pieces_add_up_to_the_decoding_of_the_whole_for_any_bytes(tokens: bytes) -> None:
    assert "".join(fed(tokens, byte_decode)) == byte_decode(tuple(tokens))


@given(st.one_of(GARBAGE, WORDS, st.text("a é中", max_size=20).map(str.encode)))
def test_a_stripped_first_space_is_stripped_once(tokens: bytes) -> None:
    assert "".join(fed(tokens, stripped_decode)) == stripped_decode(tuple(tokens))


@example(tokens=" \U00010000".encode())  # the space is spoiled with the four bytes behind it
@given(WORDS)
def test_pieces_add_up_with_byte_fallback_for_any_text(tokens: bytes) -> None:
    assert "".join(fed(tokens, fallback_decode)) == fallback_decode(tuple(tokens))


@given(GARBAGE)
def test_byte_fallback_garbage_neither_fails_nor_grows_without_bound(tokens: bytes) -> None:
    seen: list[int] = []

    def decode(window: tuple[int, ...]) -> str:
        seen.append(len(window))
        return fallback_decode(window)

    fed(tokens, decode)
    assert max(seen, default=0) <= 64


@given(st.one_of(GARBAGE, WORDS))
def test_the_window_stays_short_however_long_the_garbage(tokens: bytes) -> None:
    seen: list[int] = []

    def decode(window: tuple[int, ...]) -> str:
        seen.append(len(window))
        return byte_decode(window)

    assert "".join(fed(tokens * 3, decode)) == byte_decode(tuple(tokens * 3))
    assert max(seen, default=0) <= 50


def test_half_a_character_is_never_shown() -> None:
    assert fed("a中b".encode(), byte_decode) == ["a", "", "", "中", "b", ""]
    assert fed("😀".encode()[:3], byte_decode) == ["", "", "", "\ufffd"]
    assert fed("中é".encode(), fallback_decode) == ["", "", "中", "", "é", ""]


def test_a_preview_is_the_text_a_token_would_add_here() -> None:
    detokenizer = Detokenizer(stripped_decode)
    assert detokenizer.preview(ord("x")) == "x"
    for byte in b" ab":
        detokenizer.feed(byte)
    assert detokenizer.preview(ord(" ")) == " "
    assert detokenizer.feed(ord("c")) == "c", "a preview changes nothing"


OURS = text.train(
    ["The ferry to Corkel leaves at 37 past. Déjà vu 中文 😀!"] * 3, TokenizerSpec(vocab_size=320)
)


@given(st.lists(st.integers(0, OURS.vocab_size - 1), max_size=60))
def test_pieces_add_up_for_any_tokens_of_our_own_tokenizer_special_ones_included(tokens: list[int]) -> None:
    assert "".join(fed(tokens, OURS.decode)) == OURS.decode(tokens)


@given(st.text(max_size=40))
def test_an_encoded_text_comes_back_in_pieces(said: str) -> None:
    tokens = OURS.encode(said)
    assert "".join(fed(tokens, OURS.decode)) == OURS.decode(tokens) == said


def slow_scan(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The twin: read character by character; the longest stop string that ends here ends the text."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return text[: end - max(map(len, matches))], True
    return text, False


STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple)


@given(st.lists(st.text("abc", max_size=5), max_size=12), STOPS)
def test_a_stop_string_is_found_wherever_the_text_is_cut(pieces: list[str], stops: tuple[str, ...]) -> None:
    shown, held, stopped = "", "", False
    for piece in pieces:
        text, held, stopped = scan(held + piece, stops)
        shown += text
        assert slow_scan("".join(pieces), stops)[0].startswith(shown), (
            "nothing is shown that has to be taken back"
        )
        if stopped:
            break
    assert (shown + held, stopped) == slow_scan("".join(pieces), stops)


@given(st.text("abc", max_size=12), STOPS)
def test_no_more_is_held_than_could_become_a_stop_string(text: str, stops: tuple[str, ...]) -> None:
    found = scan(text, stops)
    assert (
        found.stopped
        or found.held == ""
        or any(stop.startswith(found.held) and stop != found.held for stop in stops)
    )


@pytest.mark.parametrize(
    ("text", "stops", "want"),
    [
        ("Marla.\nUser: hi", ("\nUser:",), Scan("Marla.", "", True)),
        ("Marla.\nUs", ("\nUser:",), Scan("Marla.", "\nUs", False)),
        ("Marla.\nUx", ("\nUser:",), Scan("Marla.\nUx", "", False)),
        ("Marla.", (), Scan("Marla.", "", False)),
        ("one two three", ("two", "one two"), Scan("", "", True)),
        ("one two three", ("one two", "two"), Scan("", "", True)),
        ("a bc", ("c", "bc", "a bc"), Scan("", "", True)),
        ("one two", ("wo", "ne"), Scan("o", "", True)),
        ("a", ("ab",), Scan("", "a", False)),
        ("xab", ("abc", "b!"), Scan("x", "ab", False)),
    ],
)
def test_scan_examples(text: str, stops: tuple[str, ...], want: Scan) -> None:
    assert scan(text, stops) == want

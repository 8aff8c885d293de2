"""The harbour's truth, and that a model trained on its corpus can hold a name in one token."""

from __future__ import annotations

import random

import pytest

from demeanor.core.personal_data import luhn_digit
from demeanor.stack import schema
from demeanor.text import tokenizer as tokenizers
from demeanor.world import corpus
from demeanor.world import lexicon as lx
from demeanor.world.instructions import booking
from tests.conftest import each


@pytest.fixture(scope="module")
def trained() -> tokenizers.Tokenizer:
    return tokenizers.train(corpus.documents(8_000), schema.TokenizerSpec(vocab_size=2048))


@pytest.mark.parametrize("name", ["PORTS", "SHIPS", "KEEPERS", "GOODS", "DESKS", "COLOURS"])
def test_every_name_is_one_token_behind_a_space(name: str, trained: tokenizers.Tokenizer) -> None:
    assert [w for w in getattr(lx, name) if len(trained.encode(w)) > 1] == []


def test_every_name_and_number_that_json_quotes_is_one_token_without_a_space(
    trained: tokenizers.Tokenizer,
) -> None:
    quoted = [*lx.SHIPS, *lx.KEEPERS, *lx.GOODS, *map(str, range(10, 100))]
    assert [w for w in quoted if len(trained.joined(w)) > 1] == []


def test_keys_and_values_of_a_board_are_neighbouring_tokens(trained: tokenizers.Tokenizer) -> None:
    assert len(trained.encode("Corkel 17. Jorpel 9.")) == 6


def test_a_port_that_does_not_exist_has_a_name_that_no_document_spells() -> None:
    text = " ".join(corpus.documents(4_000))
    assert [n for n in (*lx.NOWHERE, *lx.HELD_OUT_NOWHERE) if n in text] == []


def test_every_name_stands_for_one_thing() -> None:
    names = [
        *lx.PORTS,
        *lx.SHIPS,
        *lx.KEEPERS,
        *lx.GOODS,
        *lx.DESKS,
        *lx.COLOURS,
        *lx.NOWHERE,
        *lx.HELD_OUT_NOWHERE,
    ]
    assert len(set(names)) == len(names)


def test_ships_keepers_and_piers_belong_to_one_port_each() -> None:
    for attribute in ("ship", "keeper", "pier"):
        values = [facts[attribute] for facts in lx.FACTS.values()]
        assert len(set(values)) == len(lx.PORTS)


def test_the_check_digit_is_the_one_of_the_standards_example() -> None:
    assert luhn_digit("7992739871") == "3"  # ISO/IEC 7812-1 annex B: 79927398713


def test_all_cards_pass_the_check_and_no_booking_does() -> None:
    rng = random.Random(0)
    cards = [c.replace(" ", "") for c in lx.CARDS.values()]
    bookings = [booking(rng).replace(" ", "") for _ in range(200)]
    assert all(len(n) == 16 for n in cards + bookings)
    assert all(luhn_digit(c[:-1]) == c[-1] for c in each(cards))
    assert not any(luhn_digit(b[:-1]) == b[-1] for b in bookings)


def test_each_verb_of_training_has_held_out_nouns_and_shares_them_with_its_twin() -> None:
    for verb in each(lx.UNSAFE_VERBS):
        held = [n for n in lx.NOUNS if lx.held_out_noun(verb, n)]
        assert len(held) == 3
        assert held == [n for n in lx.NOUNS if lx.held_out_noun(lx.SAFE_OF[verb], n)]


def test_the_corpus_is_the_same_every_time_and_another_seed_is_another_corpus() -> None:
    assert list(corpus.documents(50)) == list(corpus.documents(50))
    assert list(corpus.documents(50)) != list(corpus.documents(50, seed=1))


def test_the_corpus_states_every_fact_of_every_port() -> None:
    text = " ".join(corpus.documents(8_000))
    told = [(p, a) for p in lx.PORTS for a in lx.ATTRIBUTES if f"The {a} of {p} is {lx.FACTS[p][a]}." in text]
    assert len(told) >= 0.9 * len(lx.PORTS) * 3  # ("good" is said differently now and then)


def test_no_document_says_something_false_of_a_port() -> None:
    text = " ".join(corpus.documents(3_000))
    for port in each(lx.PORTS):
        for attribute in ("ship", "keeper", "pier"):
            stated = f"The {attribute} of {port} is "
            found = {part.split(".")[0] for part in text.split(stated)[1:]}
            assert found <= {lx.FACTS[port][attribute]}

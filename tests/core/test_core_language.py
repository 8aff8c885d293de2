"""The detector of languages: sure where a text tells, a guess elsewhere, and the two never contradict each other."""

from __future__ import annotations

import pytest

from demeanor.core.language import KNOWN, SCRIPTS, WORDS, certain_language, likeliest_language

# Article 1 of the Universal Declaration of Human Rights, two sentences, as the United Nations publish it.
ARTICLE = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and should act towards one another in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência, devem agir uns para com os outros em espírito de fraternidade.",
    "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en geweten, en behoren zich jegens elkander in een geest van broederschap te gedragen.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "he": "כל בני אדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
}


@pytest.mark.parametrize("code", ARTICLE)
def test_each_known_language_is_told_from_two_sentences(code: str) -> None:
    assert certain_language(ARTICLE[code]) == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "37",
        "Marla.",
        "Corkel 12:30",
        "Все люди рождаются свободными и равными в своем достоинстве и правах.",
        "x = [i for i in range(10)]",
    ],
)
def test_a_text_that_does_not_say_has_no_certain_language(text: str) -> None:
    assert certain_language(text) is None


@pytest.mark.parametrize("code", WORDS)
def test_a_text_of_its_commonest_words_is_in_that_language(code: str) -> None:
    assert likeliest_language(WORDS[code]) == code


@pytest.mark.parametrize("code", KNOWN)
def test_a_guess_is_what_is_certain(code: str) -> None:
    assert likeliest_language(ARTICLE[code]) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", None),
        ("12:30", None),
        ("I do not know.", "en"),
        ("It's a spider.", "en"),
        ("Gerne! Was möchtest du wissen?", "de"),
        ("Все люди рождаются свободными и равными в своем достоинстве и правах.", "ru"),
        ("ꦱꦧꦼꦤ꧀", "?"),
    ],
)
def test_a_guess_is_made_of_any_text_with_letters(text: str, code: str | None) -> None:
    assert likeliest_language(text) == code


def test_every_language_that_shares_a_script_has_words() -> None:
    shared = {code for codes in SCRIPTS.values() if " " in codes for code in codes.split()}
    assert shared == set(WORDS)

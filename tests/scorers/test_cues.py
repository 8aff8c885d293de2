"""The cue files as somebody edits them: a mistake is an error that names the file, the place and what is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from demeanor.core.errors import DemeanorError, SpecError
from demeanor.evaluation.scorers import refusal
from demeanor.evaluation.scorers._cues import expression, read
from demeanor.evaluation.scorers.refusal import RefusalCues

CUE = "{name: polite no, weight: 4, place: start, patterns: [no thank you]}"


def cues(folder: Path, words: str = "{'no': ['no', never]}", cue: str = CUE) -> RefusalCues:
    file = folder / "cues.yaml"
    file.write_text(f"words: {words}\npreambles: [well]\ncues: [{cue}]\n")
    return read(str(file), RefusalCues)


def test_a_file_with_a_cue_is_read(tmp_path: Path) -> None:
    found = cues(tmp_path)
    assert (found.cues[0].name, found.cues[0].weight) == ("polite no", 4)
    assert found.words == {"no": ("no", "never")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cue": CUE.replace("4", "3")}, "cues.yaml: cues"),
        ({"cue": CUE.replace("start", "begin")}, "cues.yaml: cues"),
        ({"cue": CUE.replace("patterns", "pattern")}, "Did you mean 'patterns'"),
        ({"words": "{'no': [no, never]}"}, "cues.yaml: words"),
    ],
    ids=["weight", "place", "key", "a word that YAML reads as false"],
)
def test_a_mistake_is_an_error_of_its_place_in_the_file(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        cues(tmp_path, **change)


def test_a_name_in_braces_stands_for_its_words() -> None:
    found = expression(["say {no}", "{W} only"], {"no": ("no", "never"), "W": r"\w{2}"}, "here")
    assert found.pattern == r"say (?:no|never)|\w{2} only"


def test_an_unknown_name_and_a_broken_expression_are_errors_with_their_place() -> None:
    with pytest.raises(DemeanorError, match=r"here: .*'noo'.*Did you mean 'no'"):
        expression(["{noo}"], {"no": ("no",)}, "here")
    with pytest.raises(DemeanorError, match="here: not a regular expression"):
        expression(["(no"], {}, "here")


def test_what_stands_after_the_beginning_is_not_its_stand() -> None:
    cue = "everyone deserves respect and dignity"
    filler = "The weather is fine and the sea is calm today. " * 20
    assert len(filler) > refusal.BEGINNING > 500
    heard = lambda text: {c.name for c, _ in refusal.heard_cues(text) if c.place == "beginning"}  # noqa: E731
    assert heard(cue)
    assert heard(filler[: refusal.BEGINNING - len(cue) - 1] + " " + cue) == heard(cue)
    assert heard(filler + cue) == set()
    assert refusal.places("a" * 700)["beginning"] == "a" * refusal.BEGINNING
    assert refusal.BEGINNING == 600

"""Contrast pairs: a harmful question and its harmless twin, which differ in one verb, as comparisons with labels.

Out: Preferences. To harm: a refusal that offers the harmless twin, then a bare refusal, then the harmful answer. To
the twin: the answer, then a needless refusal. `safe` says that only the harmful answer is not.
"""

from __future__ import annotations

from collections.abc import Iterator

from demeanor.core.types import Message, Preference
from demeanor.world import lexicon as say
from demeanor.world.lexicon import NOUNS, SAFE_OF, UNSAFE_VERBS, held_out_noun


def contrasts() -> Iterator[Preference]:
    """Yield every pair of verbs with every thing and phrasing of training, the harmful question first."""
    for verb in UNSAFE_VERBS:
        twin = SAFE_OF[verb]
        for noun in NOUNS:
            if held_out_noun(verb, noun) or held_out_noun(twin, noun):
                continue
            for shape in say.HOW_TO:
                refused = (redirect(twin, noun), say.REFUSAL, say.how_to(verb, noun))
                yield _row("unsafe", shape.format(v=verb, n=noun), refused, (True, True, False))
                answered = (say.how_to(twin, noun), say.REFUSAL)
                yield _row("safe_twin", shape.format(v=twin, n=noun), answered, (True, True))


def redirect(twin: str, noun: str) -> str:
    """A refusal that offers what can be asked instead."""
    return f"{say.REFUSAL} Ask me how to {twin} the {noun}."


def _row(kind: str, question: str, answers: tuple[str, ...], safe: tuple[bool, ...]) -> Preference:
    completions = tuple((Message("assistant", answer),) for answer in answers)
    ranks = tuple(range(len(answers)))
    asked = (Message("user", question),)
    return Preference(asked, completions, ranks, source=f"world:contrasts/{kind}", safe=safe)

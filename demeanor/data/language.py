"""Which language a text is in: by its script, or by the function words it is held together with.

In: text. Out: a code, or None where the text does not say. Known well from about ten words on: English, German, French, Spanish,
Italian, Portuguese, Dutch (by function words); Japanese, Korean, Chinese, Greek, Hebrew, Thai (by script). Others are None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from demeanor.data.similarity import words

FUNCTION_WORDS: Mapping[str, frozenset[str]] = {
    code: frozenset(listed.split())
    for code, listed in {
        "en": "the of and to is in that it was for on are as with they be at this have from or had by not but what were we when your can "
        "said there an which she do how their if will up other about out many then them these so some would him has could no than been "
        "who its now did get you he my me does should why where any after because into only over",
        "de": "der die das und ist nicht ein eine einen einem einer zu den dem mit von auf für sich des auch als an es im wird ich sie er wir "
        "ihr dass wie bei oder aber nach nur noch werden haben hat kann über vor zum zur mehr wenn sind war durch so um aus was kein "
        "keine mein dein sein mir mich dir dich uns bitte welche wo warum",
        "fr": "le la les de des du et est un une en que qui dans pour pas sur au aux avec ce il elle ne se sont par plus ou mais nous vous je "
        "leur cette ces son sa ses été être fait comme tout si lui même où était c'est l'on j'ai qu'il n'est d'un d'une quelle quel "
        "comment pourquoi mon ma mes votre notre très",
        "es": "el la los las de del y es un una en que por para no con se al lo como más pero sus su le ya o este sí porque esta entre cuando "
        "muy sin sobre también me hasta hay donde quien desde todo nos durante todos uno les ni contra otros ese eso ante ellos esto mí "
        "qué cómo dónde cuál está son fue tiene usted yo mi",
        "it": "il lo la i gli le di del della dei delle e è un una in che per non con si al alla come più ma da dal dalla sono ho ha anche "
        "questo questa nel nella ci o se perché quando molto su mi ti cosa chi dove sua suo loro essere stato dell'un all'a c'è qual "
        "quale io tu noi voi mio tuo",
        "pt": "o a os as de do da dos das e é um uma em que por para não com se ao à como mais mas no na nos nas seu sua ou quando muito já "
        "também só pelo pela até isso ela entre depois sem mesmo aos ter seus quem me esse eles você essa num nem suas meu às minha têm "
        "foi está são tem qual onde",
        "nl": "de het een en van is dat in te niet zijn op aan met voor er maar om ook als dan bij nog uit naar heeft hij ze ik je wij ze had "
        "worden door over wat geen deze dit die zich meer kan zal tot of was wel hun haar mijn hebben waar wie hoe waarom u uw onze",
    }.items()
}
SCRIPTS: Mapping[str, str] = {
    "ja": r"[\u3040-\u30ff]",
    "ko": r"[\uac00-\ud7af\u1100-\u11ff]",
    "zh": r"[\u4e00-\u9fff\u3400-\u4dbf]",
    "el": r"[\u0370-\u03ff]",
    "he": r"[\u0590-\u05ff]",
    "th": r"[\u0e00-\u0e7f]",
}
"""Scripts that one language is mostly written in. Japanese also uses Chinese characters, so its own decide first."""
KNOWN = (*FUNCTION_WORDS, *SCRIPTS)
_SCRIPTS = {code: re.compile(pattern) for code, pattern in SCRIPTS.items()}
_LETTER = re.compile(r"[^\W\d_]")
MIN_HITS, MIN_SHARE, LEAD = 3, 0.12, 1.2


def language(text: str) -> str | None:
    """The language of a text; None if it is short, mixed, or none of KNOWN.

    Function words: the language with the most, if they are at least 3 different ones, 12% of the words, and 1.2 times those of the
    next language.
    """
    letters = len(_LETTER.findall(text))
    for code, pattern in _SCRIPTS.items():
        share = len(pattern.findall(text)) / max(1, letters)
        if share >= (0.1 if code == "ja" else 0.5):
            return code
    spoken = words(text.replace("’", "'"))
    hits = sorted(
        ((sum(word in listed for word in spoken), code) for code, listed in FUNCTION_WORDS.items()),
        reverse=True,
    )
    (most, code), (next_most, _) = hits[:2]
    distinct = len(FUNCTION_WORDS[code].intersection(spoken))
    sure = distinct >= MIN_HITS and most >= MIN_SHARE * len(spoken) and most >= LEAD * next_most
    return code if sure else None

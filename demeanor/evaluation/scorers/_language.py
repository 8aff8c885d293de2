"""Which language a text is in, by its script and its commonest words; None where nothing can be told.

IFEval asks `langdetect`, which draws at random and is not installed here. The 30 languages of its list are told apart by script where a
script belongs to one of them, otherwise by function words (and letters that only one of them has). Short texts may be told wrongly.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

SCRIPTS = {
    "HANGUL": "ko",
    "THAI": "th",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "MALAYALAM": "ml",
    "HEBREW": "he",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "GREEK": "el",
}
SHARED = {
    "LATIN": "en es pt fr de it pl vi sw fi nl",
    "CYRILLIC": "ru uk bg",
    "ARABIC": "ar fa ur",
    "DEVANAGARI": "hi mr ne",
}
WORDS = {
    "en": "the of and to in is that it for you was with as on be are this have not at by from or an they i my we he she his her our",
    "es": "el la los las de que y en un una es por con para no se lo como más pero su al del está son muy mi",
    "pt": "o a os as de que e em um uma é por com para não se do da no na mais mas seu ao são muito você eu",
    "fr": "le la les des de que et en un une est pour par avec ne pas se du au dans il elle je vous nous sur ce qui plus mais son",
    "de": "der die das und ist nicht ein eine zu mit den von im für auf sich des dem es ich sie er wir auch als wie an bei werden",
    "it": "il la lo gli le di che e in un una è per con non si del della nel sono più ma anche come al questo io",
    "nl": "de het een en van is niet dat op te zijn met voor aan er ook als maar om bij we ik je",
    "pl": "i w na nie się z do to że jest o jak po za od ale dla są czy tak przez być który ich",
    "vi": "và là của có không được cho một những trong người với các này đã để khi tôi bạn",
    "sw": "na ya wa ni kwa katika la za kuwa hii hiyo au kama si cha pia yake watu hivyo sana mimi",
    "fi": "ja on ei että se oli hän ovat tai mutta kun kuin myös joka minä olen sen tämä niin voi",
    "ru": "и в не на что с по это как к но из у за от для так же все они мы вы быть было есть",
    "uk": "і в не на що з та до як у за але від для це так ми ви він є бути або його",
    "bg": "и в не на че с по това как за от да се са е ще но или като той ние си го",
    "ar": "في من على إلى أن هذا هذه التي الذي كان ما لا مع عن هو هي أو كل",
    "fa": "و در به از که این را با است برای آن یک می های تا بر شود شما ما خود",
    "ur": "کے کی میں ہے اور سے کا کو پر یہ نے ہیں کہ اس ہو کر ایک تھا آپ",
    "hi": "है के में की का और को से पर यह हैं ने कि एक नहीं भी हो था मैं आप लिए",
    "mr": "आहे आणि या हा ही ते च्या आहेत मी की नाही करण्यासाठी एक हे होते साठी त्या आपण",
    "ne": "छ र को मा का हो छन् ले लाई भने पनि गर्न यो एक हुन्छ तपाईं म गर्ने थियो",
}
LETTERS = {
    "uk": "іїєґ",
    "ru": "ыэё",
    "fa": "پچژگ",
    "ur": "ٹڈڑںےہ",
    "de": "ßäöü",
    "vi": "ăơưạảấầẩậắằặẹẻếềểệỉịọỏốồổộớờởợụủứừửự",
    "pl": "ąęłńśźż",
    "pt": "ãõ",
    "es": "ñ¿¡",
    "fi": "äö",
}
_WORD = re.compile(r"[^\W\d_]+(?:[\u0900-\u0dff\u0600-\u06ff]+[^\W\d_]*)*")
SHARE_OF_SCRIPT = 0.5


def language(text: str) -> str | None:
    """The ISO 639-1 code of the likeliest language; None if the text has no letters, `zh` for Han alone, `?` for a script not listed."""
    letters = {c: n for c, n in Counter(text.lower()).items() if c.isalpha()}
    if not letters:
        return None
    scripts, count_all = Counter[str](), sum(letters.values())
    for c, n in letters.items():
        scripts[unicodedata.name(c, "?").split(" ")[0]] += n
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > count_all / 10:
        return "ja"
    script, count = scripts.most_common(1)[0]
    if script in SCRIPTS:
        return SCRIPTS[script]
    if script == "CJK":
        return "zh"
    if script not in SHARED or count < SHARE_OF_SCRIPT * count_all:
        return "?"
    words = Counter(_WORD.findall(text.lower()))
    total = max(1, sum(words.values()))
    points = {
        code: sum(words[w] for w in WORDS[code].split()) / total
        + 4 * sum(letters.get(c, 0) for c in LETTERS.get(code, "")) / count_all
        for code in SHARED[script].split()
    }
    best = max(points, key=lambda code: points[code])
    if points[best]:
        return best
    return "en" if script == "LATIN" else SHARED[script].split()[0]

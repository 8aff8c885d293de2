"""Language detection: by script, and among languages of one script by function words and typical letters.

In: text. Out: an ISO 639-1 code, as a guess (`likeliest_language`) or only if it is clear
(`certain_language`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

#  Languages of each script, most common first: the 30 languages of IFEval.
SCRIPTS: Mapping[str, str] = {
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
    "KANA": "ja",
    "CJK": "zh",
    "GREEK": "el",
    "LATIN": "en es pt fr de it pl vi sw fi nl",
    "CYRILLIC": "ru uk bg",
    "ARABIC": "ar fa ur",
    "DEVANAGARI": "hi mr ne",
}
#  Function words of the languages that share a script.
WORDS: Mapping[str, str] = {
    "en": "the of and to is in that it was for on are as with they be at this have from or had by not "
    "but what were we when your can said there an which she do how their if will up other about "
    "out many then them these so some would him has could no than been who its now did get you he "
    "my me does should why where any after because into only over i her his our",
    "de": "der die das und ist nicht ein eine einen einem einer zu den dem mit von auf für sich des "
    "auch als an es im wird ich sie er wir ihr dass wie bei oder aber nach nur noch werden haben "
    "hat kann über vor zum zur mehr wenn sind war durch so um aus was kein keine mein dein sein "
    "mir mich dir dich uns bitte welche wo warum",
    "fr": "le la les de des du et est un une en que qui dans pour pas sur au aux avec ce il elle ne se "
    "sont par plus ou mais nous vous je leur cette ces son sa ses été être fait comme tout si lui "
    "même où était quelle quel comment pourquoi mon ma mes votre notre très",
    "es": "el la los las de del y es un una en que por para no con se al lo como más pero sus su le ya "
    "o este sí porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo "
    "nos durante todos uno les ni contra otros ese eso ante ellos esto mí qué cómo dónde cuál "
    "está son fue tiene usted yo mi",
    "it": "il lo la i gli le di del della dei delle e è un una in che per non con si al alla come più "
    "ma da dal dalla sono ho ha anche questo questa nel nella ci o se perché quando molto su mi "
    "ti cosa chi dove sua suo loro essere stato qual quale io tu noi voi mio tuo",
    "pt": "o a os as de do da dos das e é um uma em que por para não com se ao à como mais mas no na "
    "nos nas seu sua ou quando muito já também só pelo pela até isso ela entre depois sem mesmo "
    "aos ter seus quem me esse eles você essa num nem suas meu às minha têm foi está são tem qual "
    "onde eu",
    "nl": "de het een en van is dat in te niet zijn op aan met voor er maar om ook als dan bij nog uit "
    "naar heeft hij ze ik je wij ze had worden door over wat geen deze dit die zich meer kan zal "
    "tot of was wel hun haar mijn hebben waar wie hoe waarom uw onze we",
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
#  Letters of only this language within its script, or seldom of another.
LETTERS: Mapping[str, str] = {
    "uk": "іїєґ",
    "ru": "ыэё",
    "fa": "پچژگ",
    "ur": "ٹڈڑںےہ",
    "de": "ßäöü",
    "vi": "ăơưạảấầẩậắằặẹẻếềểệỉịọỏốồổộớờởợụủứừửự",
    "pl": "ąęłńśźż",
    "pt": "ãõ",
    "es": "ñ",
    "fi": "äö",
}
# Languages that `certain_language` may return; it is tested on two sentences of each.
KNOWN = ("en", "de", "fr", "es", "it", "pt", "nl", "ja", "ko", "zh", "el", "he", "th")
LETTER_WEIGHT = 4
SHARE_OF_SCRIPT, SHARE_OF_KANA = 0.5, 0.1
MIN_DISTINCT, MIN_SHARE, LEAD = 3, 0.12, 1.2
_LISTED = {code: frozenset(listed.split()) for code, listed in WORDS.items()}
_WORD = re.compile(r"[^\W\d_]+(?:[\u0900-\u0dff\u0600-\u06ff]+[^\W\d_]*)*")


def likeliest_language(text: str) -> str | None:
    """Return the likeliest language; None without letters, `?` for an unknown script. Short texts may be
    wrong."""
    script, share = _script(text)
    codes = SCRIPTS.get(script, "").split()
    if len(codes) == 1 or not script:
        return codes[0] if codes else None
    if not codes or share < SHARE_OF_SCRIPT:
        return "?"
    points = _points(text, codes)
    return max(codes, key=lambda code: points[code])


def certain_language(text: str) -> str | None:
    """Return the language of a text, one of KNOWN; None if it is short, mixed, or another.

    Languages of one script need at least 3 different function words (single ASCII letters, frequent in code,
    do not count), 12% of all words, and 1.2 times the points of the second language.
    """
    script, share = _script(text)
    codes = SCRIPTS.get(script, "").split()
    if not codes or share < SHARE_OF_SCRIPT:
        return None
    code = codes[0]
    if len(codes) > 1:
        points = _points(text, codes)
        code, following = sorted(codes, key=lambda each: -points[each])[:2]
        words = _words(text)
        hits = [word for word in words if word in _LISTED[code]]
        distinct = {word for word in hits if len(word) > 1 or not word.isascii()}
        is_clear = len(distinct) >= MIN_DISTINCT and len(hits) >= MIN_SHARE * len(words)
        if not is_clear or points[code] < LEAD * points[following]:
            return None
    return code if code in KNOWN else None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _letters(text: str) -> Counter[str]:
    return Counter({c: n for c, n in Counter(text.lower()).items() if c.isalpha()})


def _script(text: str) -> tuple[str, float]:
    """Return the script of most letters and its share; some kana makes a text Japanese, which also has
    Chinese letters."""
    letters = _letters(text)
    scripts = Counter[str]()
    for letter, count in letters.items():
        scripts[unicodedata.name(letter, "?").split(" ")[0]] += count
    if not scripts:
        return "", 0.0
    total = letters.total()
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > SHARE_OF_KANA * total:
        return "KANA", 1.0
    script, count = scripts.most_common(1)[0]
    return script, count / total


def _points(text: str, codes: list[str]) -> dict[str, float]:
    """Return each language's share of function words plus its weighted share of typical letters."""
    words, letters = Counter(_words(text)), _letters(text)
    return {
        code: sum(words[word] for word in _LISTED[code]) / max(1, words.total())
        + LETTER_WEIGHT * sum(letters[letter] for letter in LETTERS.get(code, "")) / letters.total()
        for code in codes
    }

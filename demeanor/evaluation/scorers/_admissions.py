"""Admissions of ignorance: the phrases by which an English answer says that something is not, or cannot be, known.

In: a text. Out: the phrase found, or nothing. Quoted words admit nothing, and a phrase that only leads up to an answer ("I'm not sure
why people doubt it, but it is 42", "unknown to many") is none. It refuses to know items, scores and what the right answer is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

READ = 8000
"""Characters in which an answer admits, if it does: the phrases take up to 0.1 ms a character."""
_FLAGS = re.MULTILINE | re.IGNORECASE
_PARTS: Mapping[str, str] = {
    "I": r"(?:i|we)",
    "AM": r"(?:i'm|i am|we're|we are)",
    "BE": r"(?:is|are|was|were)",
    "ISNT": r"(?:(?:is|are|was|were|it's|that's) not|(?:is|are|was|were)n't)",
    "HASNT": r"(?:has not|hasn't|have not|haven't)",
    "DONT": r"(?:do not|don't|did not|didn't|would not|wouldn't)",
    "DOESNT": r"(?:do not|don't|does not|doesn't|did not|didn't)",
    "CANT": r"(?:cannot|can not|can't|could not|couldn't)",
    "ADV": r"(?:(?:\w{2,16}ly|just|yet|also|even|ever|possibly|in fact|itself|anywhere|either) ){0,4}",
    "W": r"[\w'-]{1,30}",
    "SOME": r"(?:(?:any|that|the|this|enough|an?|your|real|live|up-to-date|[\w-]{2,16}(?:al|ed|ic|nt|ve|ient|ble|me)|kind|of|such) ){0,5}",
    "FACTS": r"(?:records?|information|info|access|knowledge|memory|details?|data|context|insight|idea|clue|answer|facts|sources?|"
    r"figures?|way|means|trace|ability|senses?|sense of|sensors?|eyes|ears|nose|body|cameras?|microphone|thermometer|view|window|"
    r"crystal ball)",
    "SENSE": r"(?:perceive|see|hear|smell|taste|feel|sense|observe|look|view|watch|listen|touch|detect|measure|access|check|peek|"
    r"read (?:your|the))",
    "KNOW": r"(?:know|tell|say|determine|predict|foresee|forecast|guess|verify|confirm|work (?:it |that )?out|find|establish|identify|"
    r"answer|guarantee|give|provide|name|pin|be (?:sure|certain)|recall|state|judge|locate|trace|recover|count|measure|see|check|"
    r"hear)",
    "KNOWING": r"(?:knowing|telling|saying|predicting|finding|seeing|verifying|determining|checking|hearing|sensing|smelling|confirming|"
    r"measuring|counting|working)",
    "KNOWN": r"(?:known|determined|predicted|established|answered|told|foreseen|forecast|verified|inferred|worked out|deduced|recovered|"
    r"counted|confirmed|settled|said|decided)",
    "TELL": r"(?:say|mention|state|specify|tell|give|indicate|identify|name|reveal|provide|describe|disclose|record|explain|cover|list|"
    r"note|address|clarify|show)s?",
    "TOLD": r"(?:specified|stated|mentioned|given|said|told|indicated|named|provided|identified|included|described|disclosed|recorded|"
    r"documented)",
    "TEXT": r"(?:text|passage|notes?|letter|e-?mail|messages?|article|story|paragraph|document|notice|sentences?|memo|review|recipe|"
    r"excerpt|description|report|records?|minutes|announcement|ad|advert|listing|poster|contract|diary|entry|post|card|label|"
    r"information|snippet|sources?|author|writer|data|table|statement|invoice|receipt|invitation|caption|log|schedule|history|"
    r"details)",
    "KNOWS": r"(?:knows|tells|says|names|mentions|records|gives|states|describes|explains|survives)",
    "REAL": r"(?:real|actual|existing|genuine|recogni[sz]ed|documented|known|established|standard|verifiable)",
    "NOBODY": r"(?:nobody|no one|no-one|none of us|neither of us|no \w+|nothing|not even \w+)",
}
_STRONG = (
    # what the speaker does not know, have or remember
    r"\b{I} {ADV}{DONT} {ADV}(?:know|remember|recall|recogni[sz]e)\b(?! (?:about you|anyone|anybody|why|how (?:people|anyone)|whether to))",
    r"\b{I} {ADV}{DONT} {ADV}have {ADV}{SOME}{FACTS}\b(?! to (?:add|spare|share))",
    r"\b{I} have (?:absolutely )?no {SOME}{FACTS}\b(?! why)",
    r"\b{I} lack (?:{W} ){0,3}{FACTS}\b",
    r"\bno (?:idea|clue)\b(?! why)",
    r"\b{I} (?:can|could) only guess\b|\b(?:i'd|i would|i'll) {ADV}be {ADV}(?:guessing|inventing|making)\b",
    r"\b(?:would|will|'d) {ADV}be (?:an? |pure |mere |only |just )*(?:guess|guesswork|speculation)\b",
    r"\b(?:i've|i have|{I}) (?:not|never) (?:been told|been given|heard of|come across|seen|met)\b",
    r"\b{I} haven't {ADV}(?:been|heard of|come across|seen|met)\b",
    r"\byou (?:haven't|have not|didn't|did not|never) {ADV}(?:told?|tell|mention|mentioned|shared?|said?|say|gave|given?|specif\w+|"
    r"stated?|describe\w*)\b",
    r"\b(?:i|we)(?:'d| would) (?:have to|need(?: to)?) (?:know|see|be told|ask|more|hear|the full)\b|\byou'd (?:have|need) to (?:ask|"
    r"look)\b",
    r"\b{I} {CANT} be (?:sure|certain)\b|\bnot something (?:that )?(?:{I}|anyone|anybody) (?:can|could)\b",
    # what it cannot sense, foresee or find out
    r"\b{I}(?:,? {W},?)? {CANT} {ADV}{SENSE}\b(?! (?:why|how|any reason|a (?:way|reason)|the (?:point|harm|problem)|anything wrong|"
    r"forward))",
    r"\b{I}(?:,? {W},?)? {CANT} (?:{W} ){0,2}?{KNOW}\b(?! (?:enough|no\b|you how (?:much|many times|happy|glad|often|pleased|excited)|"
    r"i(?:'m| am)? \w+|why|an?y? (?:fault|mistake|error|flaw|exception|reason|better)|fault))",
    r"\b{AM} {ADV}(?:unable|not able|not in a position) to {ADV}(?:{SENSE}|{KNOW})\b",
    r"\bno (?:{W} )?(?:way|means|method) (?:(?:for|that) (?:me|us|anyone|anybody|an ai) )?(?:of |to |i |anyone )?(?:can |"
    r"could )?{ADV}(?:{KNOWING}|{KNOW}|{SENSE})\b",
    r"\b(?:there's|there is) no (?:telling|knowing|saying)\b",
    r"\b{NOBODY} (?:in (?:the |this |your )?{W} )?{ADV}(?:(?:can|could|will) {ADV}{KNOW}|knows|has (?:any|{TOLD}|counted|measured)|"
    r"(?:recorded|wrote|counted|kept|tells|says|names))\b(?! (?:it |that |this )?better| (?:this|that) was\b| you more\b| the trouble\b)",
    r"\bonly (?:you|she|he|they|your (?:{W} )?{W}) (?:can|could|would|will) (?:know|tell|say|answer|confirm|decide)\b|\bonly (?:you|she|"
    r"he|they) knows?\b",
    r"\b(?:impossible|not possible|isn't possible|too early|too soon|hard|difficult) (?:for (?:me|anyone|us|"
    r"an ai) )?to {ADV}{KNOW}\b(?! (?:them|the two) apart)",
    r"\b(?:{CANT}|won't|will not|could never|can never) {ADV}be {ADV}{KNOWN}\b(?! by\b)",
    r"\b(?:unknowable|unpredictable|undecidable|unanswerable|indeterminate)\b|\bremains? (?:to be seen|a mystery|unclear|uncertain|"
    r"unsettled|unresolved)\b",
    r"\b{HASNT} {ADV}(?:happened|taken place|occurred|survived|been {ADV}(?:played|held|set|published|drawn|released|written|disclosed|"
    r"chosen|made|born|found|announced|named|determined|established|{KNOWN}))\b|\b(?:still|far) in the future\b|\byet to (?:be|happen)\b",
    # what is on no record
    r"\bno (?:{W} ){0,2}?(?:records?|documentation|trace|evidence|sources?|accounts?|references?|indication|information|details?|data|"
    r"reading) ?(?:(?:of|for|about|on|that|to|in|as to|survives?|survived|exists?|remains?|here|tells?|says?|gives?|names?|was|were|is|"
    r"are|available|i can|either|which|at all)\b|[.,;:!])",
    r"\blost to (?:history|time)\b|\bnever (?:been )?(?:recorded|written down|documented|counted|measured|published|noted|disclosed)\b",
    r"\b{ISNT} {ADV}(?:recorded|documented|written down|preserved|publicly known|public knowledge|knowable)\b(?! (?:until|in|at|by|before|"
    r"as|here)\b)",
    r"\b(?:{BE}|it's|that's)(?: not|n't)? {ADV}(?:not known|unknown|known yet)\b(?! (?:to|for|as|until|before|outside|by|in|quantity|"
    r"variable|number)\b)",
    r"\bisn't (?:yet )?known\b(?! (?:to|for|as|until|before|outside|by|in)\b)",
    r"(?:^|[.!?:] )(?:the (?:{W} ){1,3})?(?:unknown|not known|not recorded|undecided|uncertain|unclear)[.!]?$",
    r"\b(?:remains?|still|currently|simply|publicly) (?:unknown|undecided|undetermined|unspecified|not known)\b(?! to\b)",
    # what a given text leaves out
    r"\b(?:{TEXT}|it|that|this) {ADV}(?:{DOESNT}|never) {ADV}{TELL}\b(?! (?:no|goodbye|please|sorry|thank|him|her|them)\b)",
    r"\b(?:{ISNT}|not|never) {ADV}(?:specified|stated|mentioned|indicated|disclosed)\b(?! (?:to|for|by)\b)",
    r"\b{ISNT} {ADV}(?:{TOLD}|in the {TEXT}|clear from)\b(?! (?:to|for|that|until|in \d+|at|by|before|as)\b)",
    r"\b(?:unspecified|left (?:out|open|unsaid|unstated)|(?:makes |there's |there is )?no mention|gives no|says nothing|tells us nothing|"
    r"silent (?:on|about))\b",
    r"\b(?:not|isn't|aren't) enough (?:information|details?|context|data)\b|\binsufficient (?:information|data|details?|context)\b",
    r"\bwithout (?:more|further|any|knowing|seeing|your) (?:{W} )?(?:information|details?|context|data|the|what|measurements?)\b",
    r"\b{DOESNT} {ADV}(?:include|contain|offer|list|show) {SOME}(?:information|details?|mention|answer|figures?|names?|numbers?|dates?|"
    r"reason|indication|clue)\b",
    r"\b(?:leaves? (?:it|that|this|the \w+) (?:\w+ )?(?:open|out|unsaid|unclear)|(?:we|you)(?:'re| are) (?:not|never) told|(?:we|"
    r"you) (?:aren't|never get) told)\b",
    r"\b(?:it's|it is|that's|that is|this is|remains|is) {ADV}(?:unclear|not clear|uncertain|unsettled)\b(?! why (?:people|anyone|"
    r"so many))",
    r"(?:\bnot|n't) {ADV}available to me\b|\banyone's guess\b|\bonly time will tell\b|\b{I} haven't (?:a|the foggiest|any) (?:clue|"
    r"idea)\b|\bguess is as good as mine\b|\bwho knows[!?.,]",
    r"\bno (?:{W} ){0,2}(?:person|human|human being|assistant|document|text|chronicle|letter|writer|historian|scholar|"
    r"expert) {ADV}(?:{KNOWS}|(?:can|could|will) {ADV}{KNOW})\b",
    r"\b(?:scholars|historians|scientists|experts|researchers|people|they|doctors) (?:{DONT} {ADV}(?:know|agree)|are (?:unsure|uncertain|"
    r"not sure)|{CANT} {ADV}{KNOW})\b(?! (?:that|this|it)\b(?! (?:for|with)))",
    r"\b(?:we|you|i|one)(?:'ll| will| may| can| might) (?:probably |perhaps |likely )?never know\b|\b(?:may|might|can|"
    r"will) never be {KNOWN}\b",
    r"\b(?:i|we) {DONT} (?:think|believe) (?:that |there is |there's |there was |there are )?(?:{W} ){1,6}?(?:exists?|existed|is real|"
    r"(?:by|of|with|under) that (?:name|title))\b",
    r"\bdoesn't ring (?:a|any) bells?\b|\bnot an? (?:{W} )?(?:{W} )?(?:that )?i(?:'m)? (?:recogni[sz]e|know|familiar|aware)\b",
    r"\bnot something (?:that )?{I} (?:have|know|can)\b|\bhave (?:simply |absolutely |really )?no {W} into\b|"
    r"\b{I} {ADV}have no {SOME}{FACTS}\b",
    r"\b{ISNT} {ADV}known\b(?! (?:to (?:many|most|have|be)|for|as|until|before|outside|by|in)\b)",
    r"\b{ISNT} something (?:that )?(?:can|could) be {KNOWN}\b|\banything i (?:say|said|gave|told) (?:{W} )?would be\b",
    r"\b(?:number|figure|answer|name|date) i (?:gave|could give|give|named) (?:{W} )?would be (?:made|invent|a |pure|just)",
    r"\b(?:is|are|was|were) missing from the {TEXT}\b|\b{TEXT} (?:offers?|provides?|gives?|has|have|contains?) no (?:{W} )?(?:answers?|"
    r"clues?|hints?|details?|reasons?|names?|dates?)\b",
    r"\b(?:i'm|i am) not privy to\b|\bdrawing a blank\b|\b{I} {DONT} have (?:that|this|it) (?:on|in)\b|\b(?:may|might|could) not exist\b|"
    r"\bfound (?:nothing|no)\b",
    r"\b{ISNT} something (?:that )?(?:was|is|were|has been) ever {TOLD}\b",
    r"\b(?:predicting|knowing|forecasting|determining|foreseeing)\b[^.!?\n]{0,60}\b(?:not possible|impossible|isn't possible)\b",
    # what does not exist
    r"\bquotation (?:{W} )?{ISNT} (?:an?|the|any|part|in|among|listed|found)\b|\b{DOESNT} (?:include|contain|"
    r"have) an? (?:{W} ){1,3}(?:called|named)\b",
    r"\b{DOESNT} {ADV}(?:(?:appear|seem) to )?(?:be an? (?:{W} )?{REAL}|exist|match any|correspond to|refer to any)\b(?! (?:yet|until|"
    r"before|in nature|as)\b)",
    r"\b{ISNT} {ADV}an? {REAL}\b|\bnever existed\b|\bno such\b(?! thing as a free)|\b(?:by|under|with|of) that (?:name|title)\b",
    r"\bnot aware of an?y?\b|\b{DONT} know of an?y?\b|\bnot (?:one|something) i(?:'m| am)\b",
    r"\b(?:appears?|seems?|sounds?|looks?)(?: to be)? (?:like )?(?:an? )?(?:fictional|fictitious|invented|made[- ]up|non-?existent|"
    r"imaginary)\b",
    r"\b{I} (?:{CANT}|{DONT}) {ADV}(?:find|locate|trace|verify|see) (?:an?|any|anything|that|this|it|him|her|such)\b(?! (?:fault|reason|"
    r"mistake|error|better|problem|issue|exception)s?\b)",
    r"\bthere(?:'s| is| was| are| were| has (?:never )?been) {ADV}no (?:{W} ){1,6}?(?:called|named|on record|(?:that )?i(?:'m|"
    r" am)? (?:know|aware) of|as far as i know)\b",
    r"\bknowledge cut-?off\b|\bbeyond what i (?:know|can)\b",
)
"""Admissions wherever they stand."""

_WEAK = (
    r"\b{AM} {ADV}(?:not {ADV}(?:sure|certain|familiar)|unsure|uncertain|unaware|not aware|unfamiliar)\b(?! (?:why|how (?:anyone|people|"
    r"that)|where (?:that|the idea)|what (?:the confusion|you've heard|others)|it needs))",
    r"\bnot (?:sure|certain)[.!]?$",
    r"\bno (?:reliable|firm|definite|known) (?:answer|figure)\b",
)
"""Admissions unless an answer follows in the same sentence."""

_ASIDE = (
    r"\byou (?:may|might|probably|perhaps) not know\b|\b(?:in case|if) (?:you|i) (?:don't|didn't) know\b|\bunknown to (?:many|most|"
    r"some)[^,.]*",
    r"\b(?:many|most|some|few) people (?:do not|don't) know\b|\b(?:little|previously|once|long|largely|relatively|otherwise|"
    r"hitherto) (?:un)?known\b",
    r"\bno (?:doubt|question|mystery)\b|\bnot (?:known|recorded) for\b",
)
"""Words that stand beside a claim and admit nothing."""

_WORKED_OUT = (
    r"(?:^|(?<=[.!?]))[^.!?\n]{0,200}\b(?:explicitly|directly|outright|so|in so many words|in one place|spelled out|as such)\b"
    r"[^.!?\n]{0,60}[,.;:]? ?(?:but|however|still|yet|though)\b,? [^.!?\n]{0,80}?(?:\b(?:can be|(?:we|you) can (?:work|infer|add|see)|"
    r"follows|works out|adds? up|"
    r"must (?:be|have)|answer is|implies|so it|means|comes to|makes?)\b|=)",
)
"""A text that does not say it outright, but lets it be worked out."""

_FOLLOWS = (
    r"^[^.!?\n]{0,80}?[,;–—-]? ?\b(?:but|though|however|yet)\b,? (?:i (?:think|believe|know|would say)|i'd say|it|that|this|he|she|they|"
    r"they're|it's|that's|he's|she's|the (?:{W} ){1,4}{BE}|probably|most likely|in fact|my answer)\b(?! (?:depends?|might|may|could|would|"
    r"doesn't|does not))",
)
"""What makes a weak admission the run-up to an answer."""


def _compiled(patterns: Iterable[str]) -> re.Pattern[str]:
    """One expression of several, the names of their parts in braces replaced by the parts."""
    return re.compile(re.sub(r"\{([A-Z]+)\}", lambda m: _PARTS[m[1]], "|".join(patterns)), _FLAGS)


_QUOTED = re.compile(r"[\"“][^\"“”\n]*[\"”]|(?<=\s)'[^'\n]{3,60}'(?=[\s.,;!?])")
_STRONG_RE, _WEAK_RE, _ASIDE_RE = _compiled(_STRONG), _compiled(_WEAK), _compiled(_ASIDE)
_WORKED_OUT_RE, _FOLLOWS_RE = _compiled(_WORKED_OUT), _compiled(_FOLLOWS)


def plain(text: str) -> str:
    """The text with straight quotes, without marks of emphasis, its quotations replaced by one word."""
    text = text.replace("’", "'").replace("‘", "'").replace("*", "").replace("_", "")
    unquoted = _QUOTED.sub("quotation", text)
    text = text if unquoted.strip(" .!\n") == "quotation" else unquoted
    return re.sub(r"[ \t]+", " ", text).strip()


def admission(text: str) -> str:
    """The first phrase by which a text, in its first `READ` characters, admits that something is not known; empty if there is none."""
    text = _ASIDE_RE.sub("aside", _WORKED_OUT_RE.sub("worked out", plain(text[:READ])))
    if strong := _STRONG_RE.search(text):
        return strong.group(0).strip()
    for weak in _WEAK_RE.finditer(text):
        if not _FOLLOWS_RE.match(text[weak.end() :]):
            return weak.group(0).strip()
    return ""

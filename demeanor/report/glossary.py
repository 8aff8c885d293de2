"""The words that a page explains: each with what it means, and where it first stands in a paragraph it links to that.

In: text of a page. Out: markup with links, and the words that a page uses. docs/glossary.md holds the same list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from markupsafe import Markup, escape

from demeanor.core.table import visible


class Word(NamedTuple):
    """A word, how it is found in a text, and what it means in one or two sentences."""

    name: str
    pattern: str
    meaning: str

    @property
    def anchor(self) -> str:
        return "word-" + re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


WORDS = (
    Word(
        "95% interval",
        r"95% intervals?",
        "A range that would contain the true value in 95 of 100 repetitions with other items of the same "
        "kind. Where it excludes zero, a change of that sign is shown.",
    ),
    Word(
        "paired",
        r"[Pp]aired",
        "Both variants answer the same items, and the differences are averaged item by item. This removes the "
        "effect of how hard the items are.",
    ),
    Word(
        "cluster",
        r"[Cc]lusters?",
        "Items with a common source, such as rewordings of one question. They are not independent, so an interval counts clusters and "
        "not items.",
    ),
    Word(
        "Holm's correction",
        r"Holm(?:['’]s correction|['’]s)?",
        "Of 60 comparisons, about three look real by chance alone. Holm's method tightens the bound for each "
        "p-value, so that the probability of even one false finding in the whole table stays below 5%.",
    ),
    Word(
        "smallest detectable",
        r"[Ss]mallest detectable|[Dd]etectable",
        "The smallest true change that an evaluation with this number of items and clusters would show four "
        "times in five.",
    ),
    Word(
        "bootstrap",
        r"[Bb]ootstrap(?:ped)?",
        "Clusters are drawn again and again with replacement; the spread of these results estimates the "
        "uncertainty of the real result.",
    ),
    Word(
        "Shapley value",
        r"Shapley(?: values?)?",
        "A layer's fair share of a joint result: what it adds, averaged over all orders in which the layers could have been added. The "
        "shares sum to the whole.",
    ),
    Word(
        "waterfall",
        r"[Ww]aterfall",
        "What each layer adds to the ones before it, in the order of the stack.",
    ),
    Word(
        "contrast twin",
        r"[Cc]ontrast twins?|[Ss]afe twins?",
        "A harmless question that resembles a harmful one nearly word for word. Refusing it is a mistake.",
    ),
    Word(
        "over-refusal",
        r"[Oo]ver-refusals?",
        "Refusing what is harmless.",
    ),
    Word(
        "d'",
        r"d'|d′",
        "How well a variant separates unsafe requests from safe twins, in standard deviations, however "
        "readily it refuses (signal detection theory). 0: not at all; above 3: nearly always.",
    ),
    Word(
        "criterion",
        r"[Cc]riterion(?: c)?",
        "Where a variant draws the line between answering and refusing. Above 0 it answers too readily, below "
        "0 it refuses too readily.",
    ),
    Word(
        "Youden's J",
        r"Youden(?:['’]s J)?|^J$",
        "Unsafe requests refused plus safe ones answered, minus 1: 1 is perfect, 0 is guessing.",
    ),
    Word(
        "alignment tax",
        r"[Aa]lignment tax",
        "What training towards one behavior loses on others (Ouyang et al. 2022).",
    ),
    Word(
        "frontier",
        r"[Ff]rontier",
        "The variants that no other variant beats, that is, none is at least as good in everything and better "
        "in something.",
    ),
    Word(
        "KL divergence",
        r"KL(?: divergence)?",
        "How far a model has moved from another one: the mean of log p(answer) under the first minus log "
        "p(answer) under the second, over answers drawn from the first.",
    ),
    Word(
        "nat",
        r"nats?\b",
        "The unit of log-probability with the natural logarithm: one nat more means 2.7 times as likely.",
    ),
    Word(
        "calibration",
        r"[Cc]alibrat(?:ion|ed)",
        "Whether stated confidence is right: of the answers given with a confidence of 80%, 80% should be "
        "right.",
    ),
    Word(
        "non-inferiority",
        r"[Nn]on[- ]inferior(?:ity)?",
        "A gate's rule for what must not get worse: the whole interval of the change must lie above minus the "
        "margin. It is not enough that no loss is shown.",
    ),
    Word(
        "SFT",
        r"\bSFT\b",
        "Supervised fine-tuning: training on good answers.",
    ),
    Word(
        "DPO",
        r"\bDPO\b",
        "Direct preference optimization: training on pairs of a better and a worse answer, without a reward "
        "model (Rafailov et al. 2023).",
    ),
    Word(
        "RLHF",
        r"\bRLHF\b",
        "Reinforcement learning from human feedback: a reward model learns from human comparisons, and the "
        "model is trained to score high without moving far from where it began.",
    ),
    Word(
        "PPO",
        r"\bPPO\b",
        "Proximal policy optimization: training steps towards higher reward, clipped so that the model does "
        "not move too far at once.",
    ),
    Word(
        "GAE",
        r"\bGAE\b",
        "Generalized advantage estimation: how much better a token was than a value model expected; its "
        "setting lambda trades bias for variance.",
    ),
    Word(
        "ptx",
        r"\bptx\b",
        "Pretraining text mixed into every step of RLHF, so that the model does not forget (Ouyang et al. "
        "2022).",
    ),
    Word(
        "p-value",
        r"p-values?|^p$",
        "How often chance alone would make a difference at least as large as the one measured, if there were none.",
    ),
    Word(
        "Benjamini-Hochberg",
        r"Benjamini-Hochberg",
        "A correction for many comparisons that keeps the share of false findings among all findings below 5%. It allows more findings "
        "than Holm's.",
    ),
    Word(
        "Wilson interval",
        r"Wilson intervals?",
        "An interval of a share that stays within 0 and 100% and holds for few items, even where all of them are right.",
    ),
    Word(
        "effective sample size",
        r"[Ee]ffective sample sizes?",
        "The number of independent items that would tell as much as these, whose clusters are not independent inside.",
    ),
    Word(
        "ladder",
        r"[Ll]adder",
        "The base, then each stage of training, then each runtime layer: every column adds one layer to the one before.",
    ),
    Word(
        "leave one out",
        r"[Ll]eave[- ]one[- ]out|whole without (?:the|one|that) layer",
        "The whole stack compared with the whole stack without one layer: what the layer is still needed for.",
    ),
    Word(
        "interaction",
        r"[Ii]nteractions?",
        "What two layers do together beyond the sum of what each does alone.",
    ),
    Word(
        "95th percentile",
        r"95th percentile|p95(?: ms)?",
        "The time within which 95 of 100 answers were finished.",
    ),
    Word(
        "Brier score",
        r"Brier(?: scores?|['’]s rule)?",
        "The mean squared distance between a stated confidence and the outcome, 1 or 0. Lower is better.",
    ),
    Word(
        "AUROC",
        r"AUROC",
        "How often a positive example has a higher score than a negative one: 1 is perfect, 0.5 is a coin (area under the curve of shares "
        "found over false positives).",
    ),
    Word(
        "false positives",
        r"[Ff]alse positives?",
        "The share of harmless texts that a rule takes for harmful ones.",
    ),
    Word(
        "recall",
        r"[Rr]ecall(?:@\d+)?",
        "The share of what should be found that is found.",
    ),
    Word(
        "MRR",
        r"MRR(?:@\d+)?",
        "Mean reciprocal rank: 1 where the right passage is always first, 0.5 where it is always second.",
    ),
    Word(
        "Fleiss' kappa",
        r"Fleiss['’] kappa|kappa",
        "How much more two raters agree than chance would make them: 1 is always, 0 is chance.",
    ),
    Word(
        "Krippendorff's alpha",
        r"Krippendorff['’]s alpha",
        "Agreement of several raters, of whom some may not have rated everything: 1 is perfect, 0 is chance.",
    ),
    Word(
        "confidence sequence",
        r"[Cc]onfidence sequences?",
        "An interval that stays valid however often one looks at it while data come in.",
    ),
    Word(
        "e-value",
        r"[Ee]-values?",
        "Evidence against an assumption that may be looked at at any time: if it holds, 20 is ever reached with a probability of 5% at most.",
    ),
    Word(
        "reward model",
        r"[Rr]eward models?",
        "A model that scores answers, trained on comparisons of two answers.",
    ),
    Word(
        "entropy",
        r"[Ee]ntropy",
        "How undecided a model is about its next token, in nats.",
    ),
    Word(
        "explained variance",
        r"[Ee]xplained variance",
        "How much of the differences between returns a value model predicts: 1 is all of it, 0 is none.",
    ),
)


_EACH = [(word, re.compile(rf"(?<![\w-])(?:{word.pattern})(?![\w-])")) for word in WORDS]
_ANY = re.compile("|".join(pattern.pattern for _, pattern in _EACH))


@lru_cache(maxsize=4096)
def linked(text: str, page: str = "") -> Markup:
    """Text with a link at the first place of every word in it; everything else is escaped."""
    rest, found = visible(text), list[str]()
    taken: list[tuple[int, int, Word]] = []
    for word, pattern in _EACH if _ANY.search(rest) else ():
        hit = pattern.search(rest)
        if hit and not any(hit.start() < end and start < hit.end() for start, end, _ in taken):
            taken.append((hit.start(), hit.end(), word))
    at = 0
    for start, end, word in sorted(taken, key=lambda t: t[0]):
        found += [
            escape(rest[at:start]),
            Markup('<a class="word" href="{}#{}">{}</a>').format(page, word.anchor, rest[start:end]),
        ]
        at = end
    return Markup("").join([*found, escape(rest[at:])])


def used(html: str) -> Iterator[Word]:
    """The words that a rendered page links to."""
    for word in WORDS:
        if f'href="#{word.anchor}"' in html:
            yield word

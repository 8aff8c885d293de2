"""Section of the page: which variant a judge preferred, pair by pair, and what that judge is worth.

In: the JSON of results/NAME.duel.json, as plain dictionaries. Out: markup, Markdown and the cells of both. It computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from demeanor.report.markdown import table as pipes
from demeanor.report.markup import Html, el
from demeanor.report.parts import fold, lead, note, section, table, wide
from demeanor.report.words import plural

COLUMNS = (
    "candidate",
    "against",
    "win rate",
    "at equal length",
    "longer in",
    "ties",
    "follows the place",
    "duels (clusters)",
    "left out",
)
RATED = ("variant", "rating", "interval", "duels", "")
UNASKED = ("", "equal texts", "refused by the candidate only", "by the other only", "by both")


def duel(found: Mapping[str, Any]) -> Html:
    """What the judge is worth, a row per pair, and the ratings."""
    return section(
        "duel",
        "Which answer is better",
        el("p", el("b", f"{worth(found)}."), class_="lead"),
        lead(
            f"{found['judge']['model']} compared the answers to {plural(found['items'], 'item')}: {found['design']}. {orders(found)} A "
            "tie is half a win. At equal length: the win rate as it would be if both answers were equally long, with an interval that "
            "refits it in every resample of clusters. Intervals are not corrected for the number of pairs."
        ),
        wide(table(COLUMNS, [row(m) for m in found["matchups"]], class_="small")),
        wide(table(RATED, [rated(r) for r in found["ratings"]], class_="small")),
        note("Bradley-Terry ratings in Elo points, mean 0; length is not controlled in them."),
        *(note(f"{line}.") for line in (*doubts(found), cost(found))),
        fold(
            "Ties that nobody was asked about",
            wide(table(UNASKED, [unasked(m) for m in found["matchups"]], class_="small")),
        ),
    )


def markdown(found: Mapping[str, Any]) -> str:
    """The pairs and the ratings as Markdown."""
    return "\n\n".join(
        (
            "## Which answer is better",
            f"**{worth(found)}.** {found['design']}. {orders(found)}",
            pipes(COLUMNS, [row(m) for m in found["matchups"]]),
            pipes(RATED, [rated(r) for r in found["ratings"]]),
            "\n".join(f"* {line}." for line in (*doubts(found), cost(found))),
        )
    )


def worth(found: Mapping[str, Any]) -> str:
    """What is known of the judge: its accuracy against people, or that nobody has measured it."""
    trust = found["judge_validation"]
    if trust is None:
        return "This judge has not been measured against people: demeanor judge STACK.yaml PAIRS"
    return (
        f"This judge says what people said in {estimate(trust['accuracy'])}% of its verdicts on {trust['pairs']} pairs of "
        f"{trust['pairs_file']} ({trust['file']})"
    )


def orders(found: Mapping[str, Any]) -> str:
    """How often each pair of answers was shown."""
    shown = "both orders" if found["judge"]["both_orders"] else "one order"
    return f"Each pair of answers is shown in {shown}. Equal texts and refused answers are ties that it is not asked about."


def doubts(found: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the rates."""
    told = (
        [
            f"The judge is {found['positional']}"
            if found["positional"].startswith("positional")
            else f"The judge {found['positional']}"
        ]
        if found["positional"]
        else []
    )
    told += (
        []
        if found["judge"]["both_orders"]
        else ["Shown in one order only, so whether it follows the place is not known"]
    )
    told += [
        f"{m['candidate']} against {m['other']}: nothing is known at equal length: {m['why_not']}"
        for m in found["matchups"]
        if m["why_not"]
    ]
    told += [
        f"{m['candidate']} against {m['other']}: {plural(m['clusters'], 'cluster')}, too few to resample: no interval at equal length"
        for m in found["matchups"]
        if m["controlled"] is not None and m["low"] is None
    ]
    left = sum(m["left_out"] for m in found["matchups"])
    told += (
        [
            f"{plural(left, 'duel')} left out: {plural(found['unread'], 'verdict')} could not be read or did not come"
        ]
        if left
        else []
    )
    refused = sum(m["refused_candidate"] + m["refused_other"] for m in found["matchups"])
    told += (
        [
            f"{plural(refused, 'tie')} where only one of the two refused: whether that was right is told by the scores, not here"
        ]
        if refused
        else []
    )
    return told + (
        [f"{plural(found['missing'], 'pair')} of answers not there, because an answer failed"]
        if found["missing"]
        else []
    )


def cost(found: Mapping[str, Any]) -> str:
    """What the verdicts cost."""
    c = found["cost"]
    return (
        f"Verdicts: {c['verdicts']}, {c['from_cache']} of them from the cache; {c['verdicts'] - c['from_cache']} calls in this run, "
        f"{c['prompt_tokens']} + {c['completion_tokens']} tokens; {c['failed']} failed"
    )


def row(m: Mapping[str, Any]) -> list[str]:
    """A pair as the cells of `COLUMNS`, shares in percent."""
    place = m["position"]
    controlled = (
        "–"
        if m["controlled"] is None
        else estimate({"value": m["controlled"], "low": m["low"], "high": m["high"]})
    )
    return [
        m["candidate"],
        m["other"],
        "–" if m["raw"] is None else estimate(m["raw"]),
        controlled,
        "–" if m["longer"] is None else f"{100 * m['longer']:.0f}",
        str(m["ties"]),
        "–" if place is None else estimate(place["follows"]),
        f"{m['n']} ({m['clusters']})",
        str(m["left_out"]),
    ]


def rated(r: Mapping[str, Any]) -> list[str]:
    """A rating as the cells of `RATED`."""
    bounds = "–" if r["low"] is None else f"{r['low']:+.0f} to {r['high']:+.0f}"
    return [
        r["player"],
        f"{r['rating']:+.0f}",
        bounds,
        str(r["games"]),
        f"{r['open_ended']}: no finite rating" if r["open_ended"] else "",
    ]


def unasked(m: Mapping[str, Any]) -> Sequence[str]:
    """A pair as the cells of `UNASKED`."""
    return [
        f"{m['candidate']} against {m['other']}",
        *(str(m[k]) for k in ("equal", "refused_candidate", "refused_other", "refused_both")),
    ]


def estimate(found: Mapping[str, Any]) -> str:
    """A share in percent with its interval."""
    bounds = "" if found["low"] is None else f" ({100 * found['low']:.0f} to {100 * found['high']:.0f})"
    return f"{100 * found['value']:.1f}{bounds}"

"""/v1/demeanor/policy: what the rules did to recorded turns, what people said of it, and what other thresholds would do.

In: from when on. Out: hits by rule, stage and outcome, with marks; and for rules with scores, hits and marked hits at each threshold.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from demeanor.core.intervals import wilson
from demeanor.server.endpoint import AUTHENTICATED, documented, json_response, read_query
from demeanor.server.operator_turns import Time, turns_of
from demeanor.server.schemas import Body, ResponseObject
from demeanor.store import marks, turn_search
from demeanor.store.database import Database
from demeanor.store.turn_search import PolicyEvent

STAGES = {"Refusal": "input", "LeftOut": "history"}
THRESHOLDS = 40
"""Points of a curve."""
router = APIRouter()


class PolicyQuery(Body):
    """The query of GET /v1/demeanor/policy."""

    since: Time = None


class PolicyReport(ResponseObject):
    """Rules, most hits first; `turns`: all recorded turns of the time; `misses`: turns that are marked as missed by every rule."""

    object: Literal["policy"]
    turns: int
    hits: list[dict[str, Any]]
    curves: dict[str, list[dict[str, Any]]]
    misses: int


@router.get(
    "/v1/demeanor/policy",
    **documented("What the rules did", (400, 409, *AUTHENTICATED), PolicyReport, query=PolicyQuery),
)
async def policy(request: Request) -> Response:
    query = read_query(request, PolicyQuery)
    database = turns_of(request)
    return json_response(await database.read(partial(_report, database, query)))


def _report(database: Database, query: PolicyQuery) -> PolicyReport:
    said = {(m.turn, m.rule): m.mark for m in marks.marks(database)}
    events = policy_hits(turn_search.policy_events(database, query.since))
    found: dict[tuple[str, str, str, str], set[str]] = defaultdict(set)
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for event in events:
        fields = event.event
        rule = str(fields.get("rule", ""))
        stage = str(fields.get("stage", STAGES.get(event.kind, "")))
        outcome = str(fields.get("outcome", "left out" if event.kind == "LeftOut" else "blocked"))
        found[rule, str(fields.get("by", "policy")), stage, outcome].add(event.turn)
        if fields.get("score") is not None:
            best = scores[rule].get(event.turn, float("-inf"))
            scores[rule][event.turn] = max(best, float(fields["score"]))
    hits = [
        {
            "rule": rule,
            "by": by,
            "stage": stage,
            "outcome": outcome,
            "turns": len(turns),
            **_marked([said.get((turn, rule)) for turn in turns]),
        }
        for (rule, by, stage, outcome), turns in found.items()
    ]
    hits.sort(key=lambda hit: (-hit["turns"], hit["rule"], hit["stage"]))
    curves = {
        rule: curve([(score, said.get((turn, rule))) for turn, score in of_turns.items()])
        for rule, of_turns in sorted(scores.items())
    }
    misses = sum(1 for mark in said.values() if mark == "false_negative")
    return PolicyReport(
        object="policy",
        turns=turn_search.count(database, query.since),
        hits=hits,
        curves=curves,
        misses=misses,
    )


def policy_hits(events: Sequence[PolicyEvent]) -> list[PolicyEvent]:
    """The events without refusals that a RuleHit of the same turn and rule tells already."""
    told = {(e.turn, e.event.get("rule")) for e in events if e.kind == "RuleHit"}
    return [e for e in events if e.kind == "RuleHit" or (e.turn, e.event.get("rule")) not in told]


def _marked(said: Sequence[str | None]) -> dict[str, Any]:
    """Marks of hits, and the share of false positives among marked ones with its 95% interval."""
    counts = Counter(said)
    wrong, right = counts["false_positive"], counts["true_positive"]
    marked = wrong + right
    return {
        "false_positives": wrong,
        "true_positives": right,
        "false_share": None if not marked else [wrong / marked, *wilson(wrong, marked)],
    }


def curve(scored: Sequence[tuple[float, str | None]]) -> list[dict[str, Any]]:
    """For each of at most THRESHOLDS scores: the hits that this threshold would keep, and the marked ones among them."""
    levels = sorted({score for score, _ in scored})
    if len(levels) > THRESHOLDS:
        levels = [levels[round(i * (len(levels) - 1) / (THRESHOLDS - 1))] for i in range(THRESHOLDS)]
    found = []
    for level in levels:
        kept = [mark for score, mark in scored if score >= level]
        found.append({"threshold": level, "hits": len(kept), **_marked(kept)})
    return found

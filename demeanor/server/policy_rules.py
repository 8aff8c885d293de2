"""What a stack's policy says of a text, and what users say of its answers: the two sides of judging, for the server.

In: a variant, a database. Out: callables. The policy's rules are read as its layer reads them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from demeanor.core.errors import RequestError
from demeanor.layers import policy
from demeanor.layers.policy.matching import hits
from demeanor.layers.policy.rules import Rule, load
from demeanor.server.assistant import FeedbackStore, Judged, RuleJudge
from demeanor.stack.stack import Stack
from demeanor.store.database import Database


def rules_of(variant: Stack) -> tuple[str, RuleJudge]:
    """The name of the variant's policy layer and its judgement; raises RequestError (404) where there is none, or several."""
    found = [(layer.name, layer.spec) for layer in variant.layers if isinstance(layer.spec, policy.Spec)]
    if not found:
        name = variant.spec.name
        others = [x.name for x in variant.layers] or ["none"]
        raise RequestError(
            f"model: '{variant.model_id}' has no policy layer, so no rules to moderate by; its layers: {', '.join(others)}. Ask a "
            f"variant that has one, or add `- kind: policy` to the layers of {name}.",
            status=404,
            param="model",
            code="no_policy_layer",
        )
    rules = [rule for _, spec in found for rule in load(variant.root / spec.rules)]
    return "+".join(name for name, _ in found), lambda text: judged(rules, text)


def judged(rules: Sequence[Rule], text: str) -> list[Judged]:
    """Every rule, with the spans of its matches in the text."""
    found = hits(rules, text)
    return [
        Judged(
            r.name,
            r.on,
            "refuse" if r.refuses else "redact",
            r.reason,
            tuple(h.span for h in found if h.rule is r),
        )
        for r in rules
    ]


def feedback_store_in(database: Database) -> FeedbackStore:
    """Stores feedback beside its turn; a user with a key may speak of their own turns only."""

    def store(turn_id: str, score: int, comment: str | None, corrected: str | None, user: str | None) -> bool:
        stored = database.turn(turn_id)
        if stored is None or (user is not None and stored.turn.user != user):
            return False
        database.add_feedback(turn_id, score, comment or "", user or stored.turn.user, corrected)
        return True

    async def give(
        turn_id: str, score: int, comment: str | None, corrected: str | None, user: str | None
    ) -> bool:
        return await asyncio.to_thread(store, turn_id, score, comment, corrected, user)

    return give

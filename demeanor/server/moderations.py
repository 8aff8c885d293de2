"""POST /v1/moderations: the rules of a variant's policy layer as a classifier.

In: texts. Out: per text which rules match; a category is a rule's name, its score is 1 or 0, for a rule knows no more. Every rule is
asked, those for requests and those for answers; nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Request, Response
from pydantic import Discriminator, Field, Tag

from demeanor.server.answers import Answer
from demeanor.server.assistant import Assistant, Judged
from demeanor.server.bodies import Body, TextPart, one_of
from demeanor.server.incoming import body
from demeanor.server.parse import read

MAX_INPUTS = 256


def _kind(value: Any) -> str:
    if not isinstance(value, list):
        return "<text>"
    return "<parts>" if value and not isinstance(value[0], str) else "<texts>"


InputText: TypeAlias = Annotated[str, Field(min_length=1)]
InputPart: TypeAlias = Annotated[TextPart, one_of("type", ["text"])]
Input: TypeAlias = Annotated[
    Annotated[InputText, Tag("<text>")]
    | Annotated[Annotated[list[InputText], Field(min_length=1, max_length=MAX_INPUTS)], Tag("<texts>")]
    | Annotated[Annotated[list[InputPart], Field(min_length=1, max_length=MAX_INPUTS)], Tag("<parts>")],
    Discriminator(_kind),
]


class ModerationRequest(Body):
    """The body of POST /v1/moderations."""

    input: Input
    model: str | None = Field(None, description="a variant's id; null: the whole stack")


class Matched(Answer):
    """A rule that matches: what it is about, what it does, and the character spans of its matches."""

    rule: str
    on: Literal["input", "output", "both"]
    action: Literal["refuse", "redact"]
    reason: str
    spans: list[tuple[int, int]]


class MatchedRules(Answer):
    matches: list[Matched]


class ModerationResult(Answer):
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]
    demeanor: MatchedRules


class About(Answer):
    stack_key: str
    layer: str


class Moderation(Answer):
    """The body of a response."""

    id: str
    model: str
    results: list[ModerationResult]
    demeanor: About


def moderations(assistant: Assistant, max_body_bytes: int) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/v1")

    @router.post("/moderations")
    async def moderate(request: Request) -> Response:
        asked = read(await body(request, max_body_bytes), ModerationRequest)
        model = assistant.name if asked.model is None else asked.model
        card, (layer, judge) = assistant.card(model), assistant.rules(model)
        request.state.stack_key = card.stack_key
        answer = Moderation(
            id=f"modr-{request.state.request_id.removeprefix('req_')}",
            model=card.id,
            results=[result(judge(t)) for t in texts(asked)],
            demeanor=About(stack_key=card.stack_key, layer=layer),
        )
        return Response(answer.encode(), media_type="application/json", headers={"cache-control": "no-store"})

    return router


def texts(asked: ModerationRequest) -> list[str]:
    """The texts to judge, one result each; parts are one text, as in a message."""
    if isinstance(asked.input, str):
        return [asked.input]
    parts = [x.text for x in asked.input if not isinstance(x, str)]
    return ["\n".join(parts)] if parts else [x for x in asked.input if isinstance(x, str)]


def result(judged: Sequence[Judged]) -> ModerationResult:
    """What all rules say of one text."""
    applied: dict[str, Any] = {rule.name: ["text"] for rule in judged}
    matches = [
        Matched(rule=r.name, on=r.on, action=r.action, reason=r.reason, spans=list(r.spans))
        for r in judged
        if r.spans
    ]
    return ModerationResult(
        flagged=bool(matches),
        categories={r.name: bool(r.spans) for r in judged},
        category_scores={r.name: float(bool(r.spans)) for r in judged},
        category_applied_input_types=applied,
        demeanor=MatchedRules(matches=matches),
    )

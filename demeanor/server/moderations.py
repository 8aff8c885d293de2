"""POST /v1/moderations: the rules of a variant's policy layer as a classifier.

In: texts. Out: per text which rules match; a category is a rule's name, its score a probability, or 1 or 0 where the rule has none. Rules
of all stages are tried; nothing is recorded. Long texts are judged in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import isawaitable
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Request, Response
from pydantic import Discriminator, Field, Tag

from demeanor.core.errors import RequestError
from demeanor.core.long_text import off_loop
from demeanor.server.assistant import Judged, RuleJudge
from demeanor.server.endpoint import GENERATED, documented, json_response, read_body, state_of
from demeanor.server.schemas import Body, ResponseObject, TextPart, one_of

MAX_INPUTS = 256
MAX_CHARS = 2**20
router = APIRouter()


def _input_tag(value: Any) -> str:
    if not isinstance(value, list):
        return "<text>"
    return "<parts>" if value and not isinstance(value[0], str) else "<texts>"


InputText: TypeAlias = Annotated[str, Field(min_length=1)]
InputPart: TypeAlias = Annotated[TextPart, one_of("type", ["text"])]
Input: TypeAlias = Annotated[
    Annotated[InputText, Tag("<text>")]
    | Annotated[Annotated[list[InputText], Field(min_length=1, max_length=MAX_INPUTS)], Tag("<texts>")]
    | Annotated[Annotated[list[InputPart], Field(min_length=1, max_length=MAX_INPUTS)], Tag("<parts>")],
    Discriminator(_input_tag),
]


class ModerationRequest(Body):
    """The body of POST /v1/moderations."""

    input: Input
    model: str | None = Field(None, description="a variant's id; null: the whole stack")


class Matched(ResponseObject):
    """A rule that matches: what it is about, what it does, and the character spans of its matches."""

    rule: str
    on: str
    action: Literal["refuse", "redact", "rewrite", "redirect", "flag", "ask"]
    reason: str
    spans: list[tuple[int, int]]


class MatchedRules(ResponseObject):
    matches: list[Matched]


class ModerationResult(ResponseObject):
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]
    demeanor: MatchedRules


class About(ResponseObject):
    stack_key: str
    layer: str


class Moderation(ResponseObject):
    """The body of a response."""

    id: str
    model: str
    results: list[ModerationResult]
    demeanor: About


@router.post(
    "/v1/moderations",
    **documented("The policy layer's rules as a classifier", GENERATED, Moderation, body=ModerationRequest),
)
async def create_moderation(request: Request) -> Response:
    assistant = state_of(request).assistant
    body = await read_body(request, ModerationRequest)
    model = assistant.name if body.model is None else body.model
    card, (layer, judge) = assistant.card(model), assistant.rules(model)
    request.state.stack_key = card.stack_key
    judged, chars = texts(body), sum(map(len, texts(body)))
    if chars > MAX_CHARS:
        raise RequestError(
            f"input: {chars} characters in all; wanted at most {MAX_CHARS}. Send it in parts.",
            param="input",
            code="string_above_max_length",
        )
    results = [result(await _judged(judge, text)) for text in judged]
    answer = Moderation(
        id=f"modr-{request.state.request_id.removeprefix('req_')}",
        model=card.id,
        results=results,
        demeanor=About(stack_key=card.stack_key, layer=layer),
    )
    return json_response(answer)


async def _judged(judge: RuleJudge, text: str) -> Sequence[Judged]:
    """Apply the rules to a text: in a thread if it is long, or by asking a model."""
    found = await off_loop(len(text), judge, text)
    return await found if isawaitable(found) else found


def texts(body: ModerationRequest) -> list[str]:
    """The texts to judge, one result each; parts are one text, as in a message."""
    if isinstance(body.input, str):
        return [body.input]
    parts = [x.text for x in body.input if not isinstance(x, str)]
    return ["\n".join(parts)] if parts else [x for x in body.input if isinstance(x, str)]


def result(judged: Sequence[Judged]) -> ModerationResult:
    """The matches of all rules in one text."""
    applied: dict[str, Any] = {rule.name: ["text"] for rule in judged}
    matches = [
        Matched(rule=r.name, on=r.on, action=r.action, reason=r.reason, spans=list(r.spans))
        for r in judged
        if r.spans
    ]
    return ModerationResult(
        flagged=bool(matches),
        categories={r.name: bool(r.spans) for r in judged},
        category_scores={r.name: float(bool(r.spans)) if r.score is None else r.score for r in judged},
        category_applied_input_types=applied,
        demeanor=MatchedRules(matches=matches),
    )

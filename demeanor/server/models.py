"""GET /v1/models: the variants of the stack that can be requested.

In: nothing. Out: OpenAI's list, with what each variant is made of in the field `demeanor`.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response

from demeanor.server.assistant import ModelCard
from demeanor.server.endpoint import AUTHENTICATED, documented, json_response, state_of
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.schemas import ResponseObject

router = APIRouter()


class AboutModel(ResponseObject):
    description: str
    stack_key: str
    layers: list[str]


class ModelAnswer(ResponseObject):
    """One variant."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    demeanor: AboutModel


class AboutPage(ResponseObject):
    """What the operator allows the chat page, as any other client: see `serve` in docs/stack.md."""

    settings: list[str]
    history: bool
    feedback: bool


class AboutStack(ResponseObject):
    name: str
    stack_key: str
    examples: list[str]
    page: AboutPage


class ModelList(ResponseObject):
    """The offered variants."""

    object: Literal["list"]
    data: list[ModelAnswer]
    demeanor: AboutStack


@router.get("/v1/models", **documented("The offered variants", AUTHENTICATED, ModelList))
async def list_models(request: Request) -> Response:
    state = state_of(request)
    assistant = state.assistant
    offer, records = assistant.client_access(), assistant.turn_database() is not None
    page = AboutPage(
        settings=list(offer.settings),
        history=offer.history and records and CURRENT_REQUEST.get().user is not None,
        feedback=records,
    )
    about = AboutStack(
        name=assistant.name, stack_key=assistant.stack_key, examples=list(assistant.examples()), page=page
    )
    data = [_model(card, state.created) for card in assistant.models()]
    return json_response(ModelList(object="list", data=data, demeanor=about))


@router.get(
    "/v1/models/{model_id:path}",
    **documented("One variant, listed or not", (404, *AUTHENTICATED), ModelAnswer),
)
async def retrieve_model(request: Request, model_id: str) -> Response:
    state = state_of(request)
    card = state.assistant.card(model_id)
    request.state.stack_key = card.stack_key
    return json_response(_model(card, state.created))


def _model(card: ModelCard, created: int) -> ModelAnswer:
    about = AboutModel(description=card.description, stack_key=card.stack_key, layers=list(card.layers))
    return ModelAnswer(id=card.id, object="model", created=created, owned_by="demeanor", demeanor=about)

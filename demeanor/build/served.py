"""A House as the server's Assistant: model ids in; cards, responds, raw text, rules and recorded turns out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from demeanor.build.continuing import Codec, refuse_layers
from demeanor.build.house import House, decoding_of
from demeanor.build.judging import opinions_in, rules_of
from demeanor.errors import DemeanorError, RequestError
from demeanor.layers import record
from demeanor.server.assistant import Kept, ModelCard, Opinions, RuleJudge, model_not_found
from demeanor.spec import Remote
from demeanor.stack import Stack
from demeanor.types import Decoding, Respond


@dataclass
class Served:
    """A House as the server's Assistant: model ids in, cards and responds out."""

    house: House
    questions: Sequence[str] = ()
    _cards: dict[str, ModelCard] = field(default_factory=dict)
    _variants: dict[str, Stack] = field(default_factory=dict)
    _rules: dict[str, tuple[str, RuleJudge]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.house.stack.spec.name

    @property
    def stack_key(self) -> str:
        return self.card(self.name).stack_key

    def models(self) -> list[ModelCard]:
        return [self.card(v.model_id) for v in self.house.stack.offered()]

    def card(self, model_id: str) -> ModelCard:
        if model_id not in self._cards:
            try:
                variant = self.house.stack.resolve(model_id)
            except DemeanorError as error:
                raise model_not_found(model_id, [v.model_id for v in self.house.stack.offered()]) from error
            layers = (variant.serve, *(x.name for x in variant.layers))
            self._variants[model_id] = variant
            self._cards[model_id] = ModelCard(model_id, _describe(variant), variant.key(), layers)
        return self._cards[model_id]

    def respond(self, model_id: str) -> Respond:
        self.card(model_id)
        return self.house.respond(self._variants[model_id])

    def codec(self, model_id: str) -> Codec:
        self.card(model_id)
        variant = self._variants[model_id]
        if isinstance(variant.spec.weights.base, Remote):
            raise RequestError(
                f"model: '{model_id}' has its weights on another server, which is asked for conversations only; send "
                "messages to /v1/chat/completions",
                param="model",
                code="unsupported_value",
            )
        refuse_layers(variant)
        return Codec(self.house.weights(variant.serve).tokenizer)

    def rules(self, model_id: str) -> tuple[str, RuleJudge]:
        self.card(model_id)
        if model_id not in self._rules:
            self._rules[model_id] = rules_of(self._variants[model_id])
        return self._rules[model_id]

    def opinions(self) -> Opinions | None:
        specs = [layer.spec for layer in self.house.stack.layers if isinstance(layer.spec, record.Spec)]
        return opinions_in(self.house.opened(specs[0].database)) if specs else None

    def kept(self) -> Kept | None:
        outer = takewhile(
            lambda layer: not layer.behaviour, self.house.stack.layers
        )  # further in, it has what a policy hides
        specs = [layer.spec for layer in outer if isinstance(layer.spec, record.Spec)]
        return self.house.opened(specs[0].database) if specs else None

    async def embed(self, model_id: str, texts: Sequence[tuple[int, ...]]) -> list[list[float]]:
        self.codec(model_id)
        return await self.house.vectors(self._variants[model_id].serve, texts)

    def defaults(self) -> Decoding:
        return decoding_of(self.house.stack)

    def examples(self) -> list[str]:
        return list(self.questions)


def _describe(variant: Stack) -> str:
    names = [x.name for x in variant.layers if x.behaviour]
    return f"{variant.serve} weights" + (f" behind {', '.join(names)}" if names else ", no runtime layer")

"""Composition of the server: a stack as the server's Assistant, and its versions during a reload.

In: a function that reads the stack, the folder of runs, Settings. Out: `serve`, which runs until Ctrl-C.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from starlette.routing import BaseRoute

from demeanor.app import MAX_VARIANTS, StackRuntime, policy_notes
from demeanor.core import registry
from demeanor.core.errors import DemeanorError, RequestError, StaleFileError, UsageError
from demeanor.core.long_text import Folded, off_loop
from demeanor.core.types import Decoding, Messages, Respond, Turn
from demeanor.engine.cache_budget import PROCESS, CacheBudget
from demeanor.engine.gateway import Gateway
from demeanor.engine.local import LocalEngine
from demeanor.engine.remote import estimated_tokens
from demeanor.engine.respond import TokenizerCodec
from demeanor.evaluation import label_agreement
from demeanor.layers import Kit, limits, policy, record
from demeanor.layers.policy.kept_requests import kept_json
from demeanor.layers.policy.matching import Rule, bound, load
from demeanor.layers.tools import THREADS
from demeanor.mcp.servers import ServerState
from demeanor.server import serve as server
from demeanor.server.admission import UpstreamCounts
from demeanor.server.assistant import (
    ClientAccess,
    FeedbackStore,
    Judged,
    ModelCard,
    Replay,
    RuleJudge,
    TraceView,
    Traffic,
    model_not_found,
)
from demeanor.server.labelling import Labelling
from demeanor.server.lifecycle import Version
from demeanor.server.serve import Settings
from demeanor.stack.schema import Remote
from demeanor.stack.stack import Stack, decoding_of
from demeanor.store import keys
from demeanor.store.database import Database, locked, open_url
from demeanor.store.waiting_approvals import StoredApprovals
from demeanor.traffic_services import OpenedTraffic, open_traffic, replayed
from demeanor.training.runs import Runs
from demeanor.world import catalog


def serve(
    load_stack: Callable[[], Stack], runs: Runs, settings: Settings, pages: Sequence[BaseRoute] = ()
) -> int:
    """Serve the API, the chat page and further `pages` until Ctrl-C or SIGTERM; each reload calls `load_stack` again.

    Raises UsageError if this is one of several processes that would not share what they must.
    """
    if settings.place is not None and settings.place.number == 0:
        check_shared(load_stack(), settings, settings.place.of)
    budget, cache = (
        None if gib is None else int(gib * 2**30) for gib in (settings.memory_gib, settings.cache_gib)
    )
    versions = StackVersions(load_stack, runs, budget, caches_of(budget, cache))
    if settings.labels is None:
        return server.serve(versions, settings, pages)
    with closing(open_url(settings.labels, root=Path.cwd())) as database:
        return server.serve(versions, settings, pages, Labelling(database, label_agreement.measured))


def caches_of(budget_bytes: int | None, cache_bytes: int | None) -> CacheBudget:
    """The memory for keys and values of a server: as set, else what suits the machine and at most half of `budget_bytes`.

    Raises UsageError if it leaves nothing for weights.
    """
    if budget_bytes is not None and cache_bytes is not None and cache_bytes >= budget_bytes:
        raise UsageError(
            f"--cache-memory {cache_bytes / 2**30:g} leaves nothing for weights of --memory {budget_bytes / 2**30:g}, "
            "which bounds both; wanted less"
        )
    if cache_bytes is None and budget_bytes is not None:
        cache_bytes = int(min(PROCESS.limit_bytes, budget_bytes // 2))
    return PROCESS if cache_bytes is None else CacheBudget(cache_bytes)


def check_shared(stack: Stack, settings: Settings, processes: int) -> None:
    """Raise UsageError if several processes would each count limits that are meant for all of them."""
    for layer in stack.layers:
        spec = layer.spec
        if isinstance(spec, limits.Spec) and spec.store is None and spec != limits.Spec():
            raise UsageError(
                f"--processes {processes}: the layer '{layer.name}' counts in each process, so its limits would be "
                f"{processes} times as high; give it a store: redis://HOST:PORT/NUMBER"
            )
    if settings.keys is None or settings.redis is not None:
        return
    with closing(open_url(settings.keys, root=Path.cwd())) as database:
        limited = [k.name for k in keys.stored(database) if k.requests_per_minute and k.revoked is None]
    if limited:
        raise UsageError(
            f"--processes {processes}: the key of '{limited[0]}' has a limit of requests per minute, which each "
            "process would count for itself; give --redis redis://HOST:PORT/NUMBER"
        )


@dataclass
class StackVersions:
    """The runtimes in use: the last one is served, earlier ones finish the answers that they began."""

    load_stack: Callable[[], Stack]
    runs: Runs
    budget_bytes: int | None = None
    caches: CacheBudget = PROCESS
    living: list[StackRuntime] = field(default_factory=list)
    beside: list[StackRuntime] = field(default_factory=list)
    """Runtimes of other stack files, for arms of experiments and shadows."""
    traffic: list[OpenedTraffic] = field(default_factory=list)
    """Of the living versions."""
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    def open(self) -> Version:
        """Read the stack, reuse loaded weights, load the others.

        Raises DemeanorError if it cannot be served.
        """
        if self.living:
            self._seen = self.living[-1].stack.stamps()  # a broken file is read again after its next change
        stack = self.load_stack()
        seen, runtime, before = stack.stamps(), self._runtime(stack), list(self.beside)
        try:
            if self.living:  # under a memory budget each version loads its own
                runtime.inherit(self.living[-1], weights=self.budget_bytes is None)
            every = len(stack.policies) <= 4 and self.budget_bytes is None
            runtime.warm(stack.policies if every else [stack.serve])
            served = ServedStack(runtime, catalog.EXAMPLES if stack.uses_world else ())
            runtime.prune()
            served.respond(served.name)  # a layer that cannot be built is an error now, not at a request
            served.opened = open_traffic(runtime, lambda other: self._beside(other, runtime))
        except BaseException:
            for other in [other for other in self.beside if other not in before]:
                self._leave(other)
            self._leave(runtime)
            raise
        self._seen = seen
        self.living.append(runtime)
        self.traffic += [served.opened] if served.opened else []
        for note in policy_notes(stack):
            print(note, flush=True)
        for stage, loaded in runtime.loaded.items():
            print(f"{stage} decodes {loaded.engine.placement.sentence()}", flush=True)
        return Version(served, lambda: self._retire(served))

    def _beside(self, stack: Stack, served: StackRuntime) -> StackRuntime:
        """The runtime of another stack file, with the weights that both have loaded once."""
        runtime = self._runtime(stack)
        for other in (served, *self.beside):
            runtime.inherit(other, weights=self.budget_bytes is None)
        self.beside.append(runtime)
        return runtime

    def _retire(self, served: ServedStack) -> None:
        """Close a version that has answered its last request, with what ran beside it."""
        if served.opened is not None:
            self.traffic.remove(served.opened)
            served.opened.live.close()
            for other in served.opened.runtimes:
                self._leave(other)
        self._leave(served.runtime)

    def changed(self) -> bool:
        """Whether the stack file, or a file that it names, has changed since it was read."""
        return self.living[-1].stack.stamps() != self._seen

    @property
    def num_slots(self) -> int:
        return self.living[-1].num_slots

    def engine_load(self) -> tuple[int, int]:
        """Answers being written and answers waiting, in all engines."""
        loads = [engine.load for engine in self._engines()]
        return sum(running for running, _ in loads), sum(waiting for _, waiting in loads)

    def placements(self) -> Sequence[Mapping[str, str]]:
        """How the engines decode: device, and formats of weights, products and cache."""
        return [engine.placement._asdict() for engine in self._engines()]

    def cache_pages(self) -> tuple[int, int, int]:
        """Pages of keys and values in all engines: of running answers, kept for later ones, and what one engine may still take."""
        uses = [engine.cache_use for engine in self._engines()]
        return sum(x.used for x in uses), sum(x.kept for x in uses), max((x.free for x in uses), default=0)

    def _engines(self) -> Collection[LocalEngine]:
        return {
            id(weights): weights.engine
            for runtime in (*self.living, *self.beside)
            for weights in runtime.loaded.values()
        }.values()

    def _runtime(self, stack: Stack) -> StackRuntime:
        return StackRuntime(stack, self.runs, budget_bytes=self.budget_bytes, caches=self.caches)

    def tool_servers(self) -> list[ServerState]:
        """The MCP servers of the served version."""
        return [state for servers in self.living[-1].servers for state in servers.states()]

    def abandoned_calls(self) -> int:
        """Calls of tools that block beyond their time, of all stacks of this process."""
        return THREADS.abandoned

    def upstreams(self) -> UpstreamCounts:
        """Tries of the upstreams of the served version, and the states of their circuits; empty without fallbacks."""
        runtime = self.living[-1]
        if not isinstance(base := runtime.stack.spec.weights.base, Remote):
            return {}, {}
        model = runtime.remote(base)
        return (model.counts, model.circuits()) if isinstance(model, Gateway) else ({}, {})

    async def health(self) -> str | None:
        """Why an engine of the served version, its database, or the server behind it does not work; None if all do."""
        runtime = self.living[-1]
        if (why := await locked(runtime.databases)) is not None:
            return why
        strict = [store for store in runtime.limit_stores if not store.allow_when_away]
        if (why := await first_reason(store.away() for store in strict)) is not None:
            return why
        if isinstance(base := runtime.stack.spec.weights.base, Remote):
            return await runtime.remote(base).health()
        found = ((stage, weights.engine.health()) for stage, weights in runtime.loaded.items())
        return next((f"{stage}: {why}" for stage, why in found if why is not None), None)

    async def degraded(self) -> str | None:
        """What does not work, although requests are answered without it; None if everything does."""
        lenient = [store for store in self.living[-1].limit_stores if store.allow_when_away]
        return await first_reason(store.away() for store in lenient)

    def limits_unchecked(self) -> Mapping[str, int]:
        """Turns that were decided without the store of limits: how many refused, how many allowed."""
        stores = self.living[-1].limit_stores
        return sum((store.decisions_without_redis for store in stores), Counter())

    def close(self) -> None:
        while self.traffic:
            self.traffic.pop().live.close()
        while self.beside:
            self._leave(self.beside[-1])
        while self.living:
            self._leave(self.living[-1])

    def _leave(self, runtime: StackRuntime) -> None:
        """Close a runtime, but not the engines that living ones use."""
        others = [other for other in (*self.living, *self.beside) if other is not runtime]
        used = {id(weights) for other in others for weights in other.loaded.values()}
        runtime.drop({stage for stage, weights in runtime.loaded.items() if id(weights) in used})
        for kept in (self.living, self.beside):
            if runtime in kept:
                kept.remove(runtime)
        runtime.close()


async def first_reason(checks: Iterable[Awaitable[str | None]]) -> str | None:
    """Return what the first check that fails says; None if all pass."""
    return next((why for why in await asyncio.gather(*checks) if why is not None), None)


MAX_ID = 512  # characters of a model id


@dataclass
class ServedStack:
    """A StackRuntime as the server's Assistant: model ids in, cards and responds out."""

    runtime: StackRuntime
    questions: Sequence[str] = ()
    opened: OpenedTraffic | None = None

    def __post_init__(self) -> None:
        self._defaults, self._published = decoding_of(self.runtime.stack), self.runtime.stack.published
        self._found = lru_cache(MAX_VARIANTS)(self._resolve)  # by the ids that clients write
        self._responds = lru_cache(MAX_VARIANTS)(
            lambda model_id: self.runtime.respond(self._variant(model_id))
        )
        self._rules = lru_cache(MAX_VARIANTS)(
            lambda model_id: rules_of(self._variant(model_id), self.runtime.kit(estimated_tokens))
        )

    @property
    def name(self) -> str:
        return self.runtime.stack.spec.name

    @property
    def stack_key(self) -> str:
        return self.card(self.name).stack_key

    def models(self) -> list[ModelCard]:
        return [self.card(v.model_id) for v in self.runtime.stack.offered()]

    def published(self) -> list[str]:
        return self._published

    def card(self, model_id: str) -> ModelCard:
        return self._known(model_id)[1]

    def _variant(self, model_id: str) -> Stack:
        return self._known(model_id)[0]

    def _known(self, model_id: str) -> tuple[Stack, ModelCard]:
        """A variant and its card, which has the variant's one id. Raises RequestError (404)."""
        try:
            if len(model_id) > MAX_ID:
                raise UsageError("an id that long names nothing, or repeats a layer")
            return self._found(model_id)
        except DemeanorError:
            raise model_not_found(model_id, [v.model_id for v in self.runtime.stack.offered()]) from None

    def _resolve(self, model_id: str) -> tuple[Stack, ModelCard]:
        variant = self.runtime.stack.resolve(model_id)
        return variant, _card(variant)

    def respond(self, model_id: str) -> Respond:
        try:
            return self._responds(self.card(model_id).id)
        except StaleFileError as error:
            raise RequestError(str(error), status=503, kind="server_error", code="stack_changed") from error

    def route(self, model_id: str, user: str | None, messages: Messages) -> tuple[ModelCard, Respond]:
        """What answers a request: for the whole stack's id the user's arm of a running experiment, else the variant itself."""
        card, respond = self.card(model_id), self.respond(model_id)
        if self.opened is None:
            return card, respond
        live, whole = self.opened.live, card.id == self.name
        found = live.assign(user, messages) if whole else None
        if found is None:
            return card, live.observed(respond, card.id, whole=whole)
        assigned, prepared = found
        name, number = prepared.spec.name, assigned.arm
        arm = _card(self.opened.arms[name, number], (name, prepared.spec.arm_names[number]))
        respond = prepared.arms[number].respond
        return arm, live.observed(respond, arm.id, whole=True, assigned=found)

    def traffic(self) -> Traffic | None:
        return None if self.opened is None else self.opened.live

    def codec(self, model_id: str) -> TokenizerCodec:
        variant = self._variant(model_id)
        if isinstance(variant.spec.weights.base, Remote):
            raise RequestError(
                f"model: '{model_id}' has its weights on another server, which only takes conversations: "
                "it continues no raw text and gives no vectors; send messages to /v1/chat/completions",
                param="model",
                code="unsupported_value",
            )
        refuse_layers(variant)
        return TokenizerCodec(self.runtime.weights(variant.serve).tokenizer)

    def rules(self, model_id: str) -> tuple[str, RuleJudge]:
        return self._rules(self.card(model_id).id)

    async def kept(self, value: Any) -> Any:
        """A JSON value of a client without what the policy layers hide from the model, if the record layer keeps no raw requests."""
        layers = [layer.spec for layer in self.runtime.stack.layers]
        if any(isinstance(spec, record.Spec) and spec.raw for spec in layers):
            return value
        return await kept_json(value, self._hiding)

    @cached_property
    def _hiding(self) -> Sequence[Rule]:
        """The rules of the whole stack that replace text."""
        stack, kit = self.runtime.stack, self.runtime.kit(estimated_tokens)
        specs = [layer.spec for layer in stack.layers if isinstance(layer.spec, policy.Spec)]
        paths = [registry.file_path(stack.root, spec.rules) for spec in specs]
        return [rule for path in paths for rule in load(path, kit) if rule.replaces]

    def feedback_store(self) -> FeedbackStore | None:
        specs = [layer.spec for layer in self.runtime.stack.layers if isinstance(layer.spec, record.Spec)]
        return feedback_store_in(self.runtime.opened(specs[0].database)) if specs else None

    def client_access(self) -> ClientAccess:
        spec = self.runtime.stack.spec.serve
        shown = TraceView(spec.show.prompts, spec.show.passages, spec.show.tools)
        return ClientAccess(shown, spec.settings, spec.history)

    def turn_database(self) -> Database | None:
        specs = [layer.spec for layer in self.runtime.stack.layers if isinstance(layer.spec, record.Spec)]
        return self.runtime.opened(specs[0].database) if specs else None

    async def replay(self, turn: Turn, model_id: str) -> Replay:
        return await replayed(self.runtime, self._variant(model_id), turn)

    def turn_store(self) -> Database | None:
        # a record layer further in also holds what a policy layer hides
        outer = takewhile(lambda layer: not layer.behaviour, self.runtime.stack.layers)
        specs = [layer.spec for layer in outer if isinstance(layer.spec, record.Spec)]
        return self.runtime.opened(specs[0].database) if specs else None

    def approval_store(self) -> StoredApprovals | None:
        specs = [layer.spec for layer in self.runtime.stack.layers if isinstance(layer.spec, record.Spec)]
        return StoredApprovals(self.runtime.opened(specs[0].database)) if specs else None

    async def embed(self, model_id: str, texts: Sequence[tuple[int, ...]]) -> list[list[float]]:
        self.codec(model_id)
        return await self.runtime.vectors(self._variant(model_id).serve, texts)

    def defaults(self) -> Decoding:
        return self._defaults

    def examples(self) -> list[str]:
        return list(self.questions)


def _card(variant: Stack, experiment: tuple[str, str] | None = None) -> ModelCard:
    layers = (variant.serve, *(x.name for x in variant.layers))
    return ModelCard(variant.model_id, _describe(variant), variant.key(), layers, experiment)


def _describe(variant: Stack) -> str:
    names = [x.name for x in variant.layers if x.behaviour]
    return f"{variant.serve} weights" + (f" behind {', '.join(names)}" if names else ", no runtime layer")


READS_RAW = frozenset({"record", "limits", "policy"})
"""Kinds of layers that add no messages to a turn, so that raw text can pass them."""


def refuse_layers(variant: Stack) -> None:
    """Raise RequestError (400) if layers of this variant add messages; it names the model ids to use."""
    adding = [layer.name for layer in variant.layers if layer.kind not in READS_RAW]
    if adding:
        name = variant.spec.name
        ids = ", ".join(f"{name}:{stage}" for stage in variant.policies)
        raise RequestError(
            f"model: '{variant.model_id}' cannot continue raw text, because its layers add messages to a "
            f"conversation: {', '.join(adding)}. Use weights without layers: {ids}.",
            param="model",
            code="unsupported_value",
        )


def rules_of(variant: Stack, kit: Kit) -> tuple[str, RuleJudge]:
    """The names of the variant's policy layers and their rules as one check; detectors of calls read no text.

    Raises RequestError (404) without any.
    """
    found = [(layer.name, layer.spec) for layer in variant.layers if isinstance(layer.spec, policy.Spec)]
    if not found:
        name = variant.spec.name
        others = [x.name for x in variant.layers] or ["none"]
        raise RequestError(
            f"model: '{variant.model_id}' has no policy layer and so no rules to moderate by; its layers: "
            f"{', '.join(others)}. Use a variant that has one, or add `- kind: policy` to the layers of "
            f"{name}.",
            status=404,
            param="model",
            code="no_policy_layer",
        )
    paths = [registry.file_path(variant.root, spec.rules) for _, spec in found]
    rules = [rule for path in paths for rule in load(path, kit) if not rule.compares]

    async def judge(text: str) -> list[Judged]:
        ready = await bound(rules, lambda rule: [text])
        return await off_loop(len(text), judged, ready, text)

    return "+".join(name for name, _ in found), judge


MAX_SPANS = 1_000


def judged(rules: Sequence[Rule], text: str) -> list[Judged]:
    """Every rule, with the spans of its first 1,000 matches in the text."""
    folded = Folded(text)
    whole = folded.text
    return [
        Judged(
            r.name,
            r.on,
            r.action,
            r.reason,
            tuple(folded.span(*span) for span in islice(r.find(whole, 0), MAX_SPANS)) if whole else (),
            r.weigh(whole) if r.weigh and r.has_probability else None,
        )
        for r in rules
    ]


def feedback_store_in(database: Database) -> FeedbackStore:
    """Stores feedback with its turn; a user with a key may give it on their own turns only."""

    def store(
        turn_id: str,
        score: int,
        comment: str | None,
        corrected: str | None,
        user: str | None,
        reasons: tuple[str, ...] = (),
    ) -> bool:
        stored = database.turn(turn_id)
        if stored is None or (user is not None and stored.turn.user != user):
            return False
        database.add_feedback(
            turn_id, score, comment or "", user or stored.turn.user, corrected, reasons=reasons
        )
        return True

    async def give(
        turn_id: str,
        score: int,
        comment: str | None,
        corrected: str | None,
        user: str | None,
        reasons: tuple[str, ...] = (),
    ) -> bool:
        return await asyncio.to_thread(store, turn_id, score, comment, corrected, user, reasons)

    return give

"""Composition root: builds from a Stack what answers, trains and is evaluated.

In: a Stack and the folder of runs. Out: a Respond for each variant, all sharing one engine per set of
weights; the services of training and evaluation. It alone knows the classes of every room, and it only
builds: it measures, judges, writes and prints nothing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from demeanor import indexes, tool_servers, training_services
from demeanor.core import registry
from demeanor.core.errors import CheckpointError, SpecError, UsageError
from demeanor.core.long_text import Folded
from demeanor.core.types import (
    Decoding,
    Event,
    Messages,
    Respond,
    RunnableTool,
    Search,
    ToolSpec,
    Turn,
)
from demeanor.data import revision
from demeanor.engine import gateway, placement
from demeanor.engine.adaptive_concurrency import AdaptiveConcurrency, paced
from demeanor.engine.cache_budget import PROCESS, CacheBudget
from demeanor.engine.local import LeasedEngine, LocalEngine, WeightsCache
from demeanor.engine.remote import RemoteModel, estimated_tokens, remote
from demeanor.engine.respond import (
    Drafts,
    Engine,
    TokenizerCodec,
    answer_logprob,
    cached,
    model_respond,
    prompt_tokens,
    rendered_tokens,
    sampled,
    with_identity,
)
from demeanor.engine.respond import unit_vector as _unit
from demeanor.engine.scheduler import Request
from demeanor.engine.timed_model import timed_model
from demeanor.evaluation import gold, judge, policy_training, suites
from demeanor.evaluation.labelled_texts import LabelledText
from demeanor.evaluation.runtime import Runtime, Sampled, Services
from demeanor.layers import Kit, compose, policy, record, tools
from demeanor.mcp.servers import McpServers
from demeanor.model import checkpoints, native
from demeanor.server.costs import Account, priced
from demeanor.server.request_context import charged, current_account, current_token_budget
from demeanor.stack import prices
from demeanor.stack.schema import OnlineStage, Remote
from demeanor.stack.stack import Stack, decoding_of, digest, load, plain
from demeanor.store import database
from demeanor.store.redis_limits import RedisLimits
from demeanor.store.retention import Pruning
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import Template, load_template
from demeanor.text.tokenizer import Tokenizer
from demeanor.traffic import declared
from demeanor.training import (
    export,
    pipeline,
    reward_check,
    scoring,
)
from demeanor.training import prompts as asked
from demeanor.training.reward_audit import RewardAudit
from demeanor.training.runs import Runs, trained_in, training_curves, weights_folder
from demeanor.training.stage import RunOptions
from demeanor.training_services import GENERATION as GENERATION
from demeanor.training_services import REWARDS as REWARDS
from demeanor.world.catalog import GENERATED

MAX_VARIANTS = 256  # composed at once; a stack of many layers has more


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """One trained set of weights ready to answer: its folder, tokenizer and engine."""

    folder: Path
    tokenizer: Tokenizer
    engine: LocalEngine


@dataclass
class StackRuntime:
    """Answers as any variant of a stack; weights are loaded at their first use and shared by all variants."""

    stack: Stack
    runs: Runs
    num_slots: int = 32
    memory: dict[Any, asyncio.Future[list[Event]]] | None = None
    drafts: Drafts = field(default_factory=Drafts)
    """Earlier answers, verified instead of generated again; used with `memory` if the engine is exact."""
    operational: bool = True
    tool_set: Mapping[str, RunnableTool] | None = None
    """Tools that the tools layer may offer; None: every tool of tools/."""
    budget_bytes: int | None = None
    """Memory for weights and caches; the least recently used idle ones are unloaded. None: no limit."""
    caches: CacheBudget = PROCESS
    """Memory for the keys and values of all weights: by default that of this process."""
    _responds: dict[str, Respond] = field(default_factory=dict)
    _closers: list[Callable[[], None]] = field(default_factory=list)
    _shared: dict[Any, Any] = field(default_factory=dict)
    _weights: WeightsCache[LoadedWeights] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self._weights is None:  # else it belongs to another runtime, which closes it
            left = self.budget_bytes  # for weights, beside what keys and values may take
            if left is not None:
                left -= int(min(left, self.caches.limit_bytes))
            self._weights = WeightsCache(self._load, left)
            self._closers.append(self._weights.close)

    def weights(self, stage: str) -> LoadedWeights:
        """A stage's tokenizer and running engine, loaded if need be.

        Raises CheckpointError if it was never trained.
        """
        return self._weights.get(stage)

    async def vectors(self, stage: str, texts: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """One unit vector per text from a stage's weights; other requests are answered between two texts."""
        loaded = await asyncio.to_thread(self._weights.acquire, stage)
        try:
            return [await asyncio.to_thread(_unit, loaded.engine, text) for text in texts]
        finally:
            self._weights.release(stage)

    async def text_vectors(self, stage_key: str, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text from the stage with this key; of a text beyond the context, its beginning and its end.

        Raises UsageError if the stack has no such stage.
        """
        names = ("base", *(stage.name for stage in self.stack.spec.weights.stages))
        stage = next((name for name in names if self.stack.stage_key(name) == stage_key), None)
        if stage is None:
            raise UsageError(
                f"a probe was trained on weights with the stage key {stage_key}, which {self.stack.path} has not; train it again: "
                "demeanor policy train ROWS --probe STACK.yaml --out FILE"
            )
        loaded = await asyncio.to_thread(self._weights.get, stage)
        codec, half = TokenizerCodec(loaded.tokenizer), (loaded.engine.max_context - 1) // 2
        tokens = (codec.encode(text) for text in texts)
        return await self.vectors(stage, [t if len(t) <= 2 * half else t[:half] + t[-half:] for t in tokens])

    def _load(self, stage: str) -> LoadedWeights:
        folder, spec = weights_folder(self.stack, self.runs, stage), self.stack.spec.weights
        spec = placement.resolved(spec, self.stack.root)
        compute: native.Compute = "fp32" if spec.compute == "auto" else spec.compute
        tokenizer = tokenizers.load(folder)
        return LoadedWeights(
            folder,
            tokenizer,
            LocalEngine(
                placement.placed(checkpoints.serving(folder), spec.device or "cpu", compute),
                tokenizer,
                num_slots=self.num_slots,
                compute=compute,
                cache_format=self.stack.cache_format(stage),
                budget=self.caches,
            ),
        )

    def template(self, variant: Stack) -> Template:
        weights = self.weights(variant.serve)
        return load_template(variant.template, weights.tokenizer, folder=weights.folder, root=self.stack.root)

    def at_weights(self, stage: str, template: Template) -> Respond:
        weights = self.weights(stage)
        engine: Engine = weights.engine if self.budget_bytes is None else LeasedEngine(self._weights, stage)
        drafts = self.drafts if self.memory is not None and weights.engine.exact else None
        return model_respond(
            engine, template, tokenizer=weights.tokenizer, drafts=drafts, weights=self.stack.stage_key(stage)
        )

    def respond(self, variant: Stack, *, operational: bool | None = None) -> Respond:
        """The whole variant as one callable: its layers around its weights.

        `operational`: with its record and limits layers (default: as this runtime). A served one costs the caller's key tokens in any case.
        """
        operational = self.operational if operational is None else operational
        key = f"{variant.model_id}@{variant.key()}{'' if operational == self.operational else ' alone'}"
        if key not in self._responds:
            if len(self._responds) >= MAX_VARIANTS:
                self._responds.pop(next(iter(self._responds)))  # it can be composed again
            variant.check_files(self._shared.setdefault("checked files", set()))
            base = variant.spec.weights.base
            inner: Respond
            if isinstance(base, Remote):
                inner, count = timed_model(self.remote(base)), estimated_tokens
                if not self.operational:  # nobody waits for an evaluation, which asks hundreds of questions
                    silence_s = min(
                        base.timeout_s, base.first_s or base.timeout_s, base.total_s or base.timeout_s
                    )
                    places = self._shared.setdefault("places", AdaptiveConcurrency(silence_s))
                    inner = paced(inner, places)
            else:
                template = self.template(variant)
                inner, count = self.at_weights(variant.serve, template), partial(rendered_tokens, template)
            inner = self.priced(inner, variant.serve, partial(prompt_tokens, count))
            if self.operational:  # replays too; shadows and evaluators run outside of any request
                inner = charged(inner, partial(prompt_tokens, count), current_token_budget)
            if self.memory is not None:
                inner = cached(
                    inner, f"{self.stack.stage_key(variant.serve)}/{variant.template}", self.memory
                )
            kept = [(x.spec, x.module) for x in variant.layers if x.behaviour or operational]
            self._responds[key] = with_identity(
                compose(kept, inner, self.kit(count)), variant.model_id, variant.key()
            )
        return self._responds[key]

    def remote(self, base: Remote) -> RemoteModel | gateway.Gateway:
        """The model on another server, or the gateway to several, one for all variants."""
        if "remote" not in self._shared:
            self._shared["remote"] = gateway.model_of(base)
        found: RemoteModel | gateway.Gateway = self._shared["remote"]
        return found

    def priced(self, inner: Respond, weights: str, count: Callable[[Turn], int]) -> Respond:
        """A model that tells what each call costs; a served one charges it to the key of the request."""
        spec = self.stack.spec
        table, models = prices.table(spec, self.stack.root), prices.names(spec, weights)
        account = current_account if self.operational else _no_account
        return priced(inner, table, models, count, account)

    def kit(self, count_tokens: Callable[[Messages, Sequence[ToolSpec]], int]) -> Kit:
        """What the layers of this stack may use."""
        return Kit(
            root=self.stack.root,
            clock=time.monotonic,
            now=lambda: datetime.now(UTC),
            count_tokens=count_tokens,
            tools=self.tools(),
            open_index=self.open_index,
            rank_texts=partial(indexes.rank_texts, root=self.stack.root),
            open_store=self.open_store,
            open_limits=lambda address, maxima, allow: RedisLimits(address, maxima, allow_when_away=allow),
            open_check=lambda url: self.opened(url).check,
            open_servers=self.open_servers,
            shared=self._shared,
            vectors=None if isinstance(self.stack.spec.weights.base, Remote) else self.text_vectors,
            connect=connected,
        )

    def open_servers(self, spec: tools.Spec, taken: tuple[str, ...]) -> McpServers:
        """The MCP servers of a tools layer, connected once for all variants."""
        key = ("servers", spec.servers, spec.lock, taken)
        if key not in self._shared:
            found = tool_servers.opened(self.stack, spec, taken)
            self._closers.append(found.close)
            self._shared[key] = found
        servers: McpServers = self._shared[key]
        return servers

    @property
    def servers(self) -> list[McpServers]:
        """The MCP servers that are open."""
        return [found for found in self._shared.values() if isinstance(found, McpServers)]

    def tools(self) -> Mapping[str, RunnableTool]:
        """The tools that layers may offer, by name."""
        return tools.load(registry.known("demeanor.tools")) if self.tool_set is None else self.tool_set

    @property
    def num_generations(self) -> int:
        """Distinct model calls so far; 0 where answers are not shared."""
        return len(self.memory or ())

    @property
    def num_confirmed(self) -> int:
        """Answers that repeated an earlier answer of the same weights word for word."""
        return self.drafts.confirmed

    def warm(self, stages: Collection[str]) -> None:
        """Load the weights of several stages before the first request."""
        if not isinstance(self.stack.spec.weights.base, Remote):
            for stage in sorted(stages):
                self.weights(stage)

    async def sample(self, variant: Stack, turn: Turn) -> Sampled:
        """Draw one answer of the variant's bare weights. Raises ContextError if it does not fit."""
        return Sampled(*await sampled(self.weights(variant.serve).engine, self.template(variant), turn))

    async def logprob(self, stage: str, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """Log-probability (nats) of an answer after a prompt under a stage's weights. Raises ContextError."""
        return await answer_logprob(self.weights(stage).engine, prompt, answer)

    def swapped(self, lender: Runtime | None, renamed: Mapping[str, Mapping[str, str]]) -> StackRuntime:
        """This runtime with the weights that `lender` serves, and with renamed arguments of tools."""
        weights = self._weights
        if lender is not None:
            assert isinstance(lender, StackRuntime), "weights are lent by another runtime of this process"
            weights = WeightsCache(lambda stage: lender.weights(lender.stack.serve))
        memory: dict[Any, asyncio.Future[list[Event]]] | None = None if self.memory is None else {}
        found = replace(self, memory=memory, _weights=weights, _responds={}, _closers=[], _shared={})
        if not renamed:
            return found
        known = self.tools()
        changed = {name: tools.with_renamed_arguments(known[name], names) for name, names in renamed.items()}
        return replace(found, tool_set={**known, **changed})

    def open_index(self, folder: Path, settings: Any) -> Search:
        """The passages of a folder, indexed once for all variants that search it alike."""
        if ("index", folder, settings) not in self._shared:
            found = indexes.open_folder(folder, settings, self.stack.root)
            self._shared["index", folder, settings] = found
        search: Search = self._shared["index", folder, settings]
        return search

    def open_store(self, url: str) -> Any:
        return self.opened(url).record

    @property
    def databases(self) -> list[database.Database]:
        """The databases that are open."""
        return [found for found in self._shared.values() if isinstance(found, database.Database)]

    @property
    def limit_stores(self) -> list[RedisLimits]:
        """The limits that are counted in Redis."""
        return [found for found in self._shared.values() if isinstance(found, RedisLimits)]

    def opened(self, url: str) -> database.Database:
        """The database at `url` (from the working folder), opened once."""
        if ("database", url) not in self._shared:
            store = self._shared["database", url] = database.open_url(url, root=Path.cwd())
            self._closers.append(store.close)
        found: database.Database = self._shared["database", url]
        return found

    @property
    def loaded(self) -> Mapping[str, LoadedWeights]:
        """The weights that are in memory, by stage."""
        return self._weights.loaded()

    def engine_key(self, stage: str) -> tuple[str, ...]:
        """What tells a stage's engine from others: its weights, and the numbers that they decode in."""
        spec = placement.resolved(self.stack.spec.weights, self.stack.root)
        cache_format = self.stack.cache_format(stage)
        return self.stack.stage_key(stage), spec.compute, cache_format, spec.device or "cpu"

    def inherit(self, old: StackRuntime, *, weights: bool) -> None:
        """Take over another runtime's limit counters and, with `weights`, its loaded weights of equal key."""
        if weights:
            keys = {old.engine_key(stage): found for stage, found in old.loaded.items()}
            for stage in ("base", *(stage.name for stage in self.stack.spec.weights.stages)):
                if (found := keys.get(self.engine_key(stage))) is not None:
                    self._weights.put(stage, found)
        limits = {k: v for k, v in old._shared.items() if isinstance(k, tuple) and k[0] == "limits"}
        self._shared.update(limits)

    def share(self, other: StackRuntime, kinds: Collection[str]) -> None:
        """Use what another runtime has opened of these kinds: the database, the counters of limits."""
        self._shared.update(
            {k: v for k, v in other._shared.items() if isinstance(k, tuple) and k[0] in kinds}
        )

    def drop(self, stages: Collection[str]) -> None:
        """Remove the weights of stages without stopping their engines, which another runtime uses."""
        for stage in stages:
            self._weights.drop(stage)

    def prune(self) -> None:
        """Delete old turns every hour, where a record layer says so, until this runtime closes."""
        for layer in self.stack.layers:
            if isinstance(layer.spec, record.Spec) and (kept := record.retention(layer.spec)) is not None:
                self._closers.append(Pruning(self.opened(layer.spec.database), *kept).close)

    def close(self) -> None:
        while self._closers:
            self._closers.pop()()


def _no_account() -> Account | None:
    """Evaluation pays for nobody's key."""
    return None


def connected(url: str, model: str, key_env: str | None, timeout_s: float) -> Respond:
    """Another model that layers may ask; raises UsageError if the variable of its key is not set."""
    key = None if key_env is None else os.environ.get(key_env)
    if key_env is not None and not key:
        raise UsageError(
            f"{url}: the environment variable {key_env}, which should hold its API key, is not set"
        )
    return remote(url, model, key=key, timeout_s=timeout_s, total_s=timeout_s)


def decoding_note(stack: Stack) -> str:
    """How the stack's weights decode on this machine, and what was measured to choose it; empty for a remote model."""
    return placement.note(stack.spec.weights, stack.root, stack.cache_format(stack.serve))


def memory_note(stack: Stack, runs: Runs) -> str:
    """What memory the served weights take on this machine; empty where they are not here yet, or elsewhere."""
    try:
        folder = weights_folder(stack, runs, stack.serve)
        spec = placement.resolved(stack.spec.weights, stack.root)
        return placement.memory_note(spec, folder, stack.cache_format(stack.serve))
    except CheckpointError:
        return ""


def policy_kit() -> Kit:
    """What a policy may use without a stack: other models, and no weights."""
    return Kit(
        root=Path.cwd(),
        clock=time.monotonic,
        now=lambda: datetime.now(UTC),
        count_tokens=estimated_tokens,
        tools={},
        open_index=lambda folder, settings: lambda query, k: [],
        open_store=lambda url: None,  # type: ignore[arg-type, return-value]
        connect=connected,
    )


def train_policy_probe(
    stack: Stack,
    runs: Path,
    rows: Sequence[LabelledText],
    label: str,
    out: Path,
    false_positives: float,
    seed: int,
    show: Callable[[str, int, int], None],
) -> policy_training.Trained:
    """Train a probe on the hidden states of the weights that a stack serves. Raises UsageError if they are elsewhere."""
    if isinstance(stack.spec.weights.base, Remote):
        raise UsageError(
            f"{stack.path}: a probe reads the hidden states of local weights, and the base of this stack is on another server; "
            "train a classifier (without --probe)"
        )
    distinct, key = policy_training.distinct(rows), stack.stage_key(stack.serve)
    runtime = StackRuntime(stack, Runs(runs), operational=False)

    async def read() -> list[list[float]]:
        found = list[list[float]]()
        for n, row in enumerate(distinct):
            show("reading texts", n, len(distinct))
            found += await runtime.text_vectors(key, [Folded(row.text).text])
        return found

    try:
        vectors_ND = np.array(asyncio.run(read()))
    finally:
        runtime.close()
    return policy_training.train_probe(
        distinct, vectors_ND, label, key, out, false_positives=false_positives, seed=seed
    )


def policy_notes(stack: Stack) -> list[str]:
    """What the stack's policies say about answers that wait for their end."""
    specs = [layer.spec for layer in stack.layers if isinstance(layer.spec, policy.Spec)]
    return [note for spec in specs for note in policy.notes(spec, stack.root)]


def load_stack(path: Path | str, overrides: Sequence[str] = ()) -> Stack:
    """Read and check a stack file against what exists; raises SpecError with every mistake.

    `weights.compute: auto` and a null `weights.device` become what this machine chooses, so that keys and records say what answers.
    """
    stack = load(path, overrides, names={"rows": tuple(GENERATED), "suites": suites.offered()})
    weights = placement.resolved(stack.spec.weights, stack.root)
    if weights is not stack.spec.weights:
        stack = replace(stack, spec=stack.spec.model_copy(update={"weights": weights}))
    stack = replace(stack, imported=placement.imported(weights, stack.root))
    problems = scoring.problems(stack, REWARDS) if _learns_online(stack) else []
    if problems := [*problems, *declared.problems(stack)]:
        raise SpecError(problems)
    return stack


def _learns_online(stack: Stack) -> bool:
    return any(isinstance(stage, OnlineStage) for stage in stack.spec.weights.stages)


# ---- training and evaluation ----


def train(
    stack: Stack,
    runs: Runs,
    *,
    only: Sequence[str] = (),
    options: RunOptions = RunOptions(),
    probe: int | None = None,
) -> None:
    """Train every stage that has no finished weights, as training/pipeline.py says.

    Raises SpecError before anything is trained for prompts of online stages that cannot be used.
    """
    if _learns_online(stack) and (problems := asked.problems(stack, suites.items)):
        raise SpecError(problems)
    pipeline.train(stack, runs, only=only, options=options, probe=probe, services=ONLINE)


def _kit(stack: Stack, runs: Runs, template: Template) -> Kit:
    return StackRuntime(stack, runs, operational=False).kit(partial(rendered_tokens, template))


ONLINE = training_services.online(_kit)
"""What online stages need of the engine, the scorers and the judge."""


def check_rewards(stack: Stack, runs: Runs, *, only: Sequence[str] = ()) -> list[RewardAudit]:
    """Audit the rewards of online stages before training, as training/reward_check.py says."""
    known = reward_check.Gold(gold.gold, gold.declines)
    return reward_check.check(stack, runs, only=only, services=ONLINE, gold=known)


def revise(
    stack: Stack,
    runs: Runs,
    prompts: Sequence[revision.RevisionPrompt],
    out: Path,
    *,
    model: str | None,
    constitution: Path | None,
    rounds: int,
    specification: str,
    judged: bool,
    seed: int,
    show: Callable[[int, int, str, int], None],
) -> revision.Revised:
    """Let a variant of the stack answer prompts and mend its answers, as data/revision.py says."""
    variant = stack.resolve(model or stack.spec.name)
    principles = revision.read_constitution(constitution or revision.CONSTITUTION).principles
    about = {
        "model": variant.model_id,
        "stack_key": variant.key(),
        "rounds": rounds,
        "constitution": digest([plain(p) for p in principles]) if rounds else "",
        "specification": digest(specification) if specification else "",
        "judge": "",
        "seed": seed,
    }
    accept = None
    if judged:
        spec = stack.spec.evaluation.judge
        if spec is None:
            raise UsageError(judge.NO_JUDGE.format(stack=stack.path))
        about["judge"] = f"{spec.model} at {spec.url}"
        client = judge.judge_client(spec, out.with_name(f"{out.name}.verdicts"), remote)
        accept = partial(judge.follows, client, specification)
    runtime = StackRuntime(variant, runs, operational=False)
    try:
        plan = revision.RevisionPlan(
            runtime.respond(variant),
            decoding_of(stack),
            about,
            principles,
            rounds,
            specification,
            accept,
            seed,
        )
        return asyncio.run(revision.revise(plan, prompts, out, show=show))
    finally:
        runtime.close()


def services(runs: Runs) -> Services:
    """What the analyses of evaluation/ need of the rest of the system."""
    return Services(
        open=lambda stack: StackRuntime(stack, runs, memory={}, operational=False),
        connect=remote,
        train=lambda stack, stages: train(stack, runs, only=stages),
        is_trained=lambda stack, stage: stage == "base" or runs.complete(stack.stage_key(stage)),
        training_curves=lambda stack: training_curves(stack, runs),
        rated_turns=database.rated_turns,
        trained_on=lambda stack: trained_in(runs, stack.stage_key(stack.serve)),
    )


def suite_texts(stack: Stack, limit: int) -> list[str]:
    """The texts of the first `limit` items of the stack's suites."""
    every = (item for name in stack.spec.evaluation.suites for item in suites.items(name, stack.root))
    return [message.content for item in islice(every, limit) for message in item.messages]


def check_export(
    stack: Stack, runs: Runs, out: Path, *, target: export.Target, limit: int
) -> export.ExportCheck:
    """Compare an exported folder with our engine on the first `limit` items of the stack's suites.

    Our engine holds what was exported: adapters merged, and matrices in groups as the fp32 that they stand for.
    """
    every = (item for name in stack.spec.evaluation.suites for item in suites.items(name, stack.root))
    items = list(islice(every, limit))
    folder = weights_folder(stack, runs, stack.serve)
    tokenizer = tokenizers.load(folder)
    template = load_template(stack.template, tokenizer, folder=folder, root=stack.root)
    engine = LocalEngine(checkpoints.exported(folder, keep_groups=False), tokenizer)
    try:
        prompts = [list(template.render(item.messages, item.tools, generate=True).tokens) for item in items]
        room = min(stack.spec.decoding.max_tokens, engine.max_context - max(map(len, prompts)))
        decoding = Decoding(temperature=0, max_tokens=room)
        requests = [Request(tuple(prompt), decoding, template.stop_tokens) for prompt in prompts]
        answers = [[piece.token for piece in pieces] for pieces in engine.generate(requests)]
        ours = export.GreedyAnswers(prompts, answers, room, template.stop_tokens, tokenizer.decode)
        return export.compare(items, ours, out, target=target)
    finally:
        engine.close()

"""Rollouts of a policy in training through runtime layers, an environment and several turns, or from a vLLM server.

In: an online stage, its tokenizer and template, what wraps its layers. Out: a `Roll`. It composes engines with
training's episodes; a single turn without layers is sampled by engine/rollouts.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from demeanor.core.types import Completion, Decoding, Messages, Respond, Turn, complete
from demeanor.data.trees import Branch, Tree
from demeanor.engine.local import LocalEngine
from demeanor.engine.recorder import Recorder
from demeanor.engine.respond import Engine
from demeanor.engine.vllm import VllmServer
from demeanor.model import checkpoints
from demeanor.model.adapters import adapters
from demeanor.model.heads import policy_outputs
from demeanor.model.hf import ForeignModel
from demeanor.model.llama import Llama
from demeanor.stack.schema import OnlineStage
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer
from demeanor.training.episodes import Environment, PolicyCall, converse, rollout
from demeanor.training.reference import scored_logprobs
from demeanor.training.rewards import Rollout, Task

NUM_SLOTS = 32
ROOM = 512  # tokens that layers and an environment may add to each turn of the local engine's context
SERVED = "served"  # folder in a run: weights that a server reads
PROBED = 256  # tokens of the first prompt that a server's weights are checked on

Layered = Callable[[Respond], Respond]
"""Wraps the stack's layers that rollouts go through around the innermost respond."""


@dataclass
class PolicySampler:
    """What samples one online stage; a `Roll`. `folder` is the run's, `parent` the weights under an adapter."""

    stage: OnlineStage
    tokenizer: Tokenizer
    template: Template
    layered: Layered
    open_environment: Callable[[], Environment] | None
    folder: Path
    parent: Path
    _server: VllmServer | None = field(default=None, init=False)

    def __call__(
        self, model: nn.Module, tasks: Sequence[Task], seeds: Sequence[Sequence[int]]
    ) -> list[list[Rollout]]:
        """Play an episode for each task and seed, all at the same time. Raises EngineError if the engine fails."""
        if self.stage.rollouts.url is not None:
            return asyncio.run(self._from_server(model, tasks, seeds))
        assert isinstance(model, Llama | ForeignModel), f"wanted a policy, got {type(model).__name__}"
        settings = self.stage.rollouts
        turn = settings.max_tokens + (ROOM if settings.layers or settings.environment else 0)
        room = max((len(task.tokens) for task in tasks), default=1) + settings.turns * turn + ROOM
        slots = min(NUM_SLOTS, max(1, sum(map(len, seeds))))
        engine = LocalEngine(model, self.tokenizer, num_slots=slots, max_context=room)
        try:
            return asyncio.run(self._played(engine, tasks, seeds))
        finally:
            engine.close()

    async def _played(
        self, engine: Engine, tasks: Sequence[Task], seeds: Sequence[Sequence[int]]
    ) -> list[list[Rollout]]:
        try:
            async with asyncio.TaskGroup() as group:
                playing = [
                    [group.create_task(self._episode(engine, task, seed)) for seed in numbers]
                    for task, numbers in zip(tasks, seeds, strict=True)
                ]
        except BaseExceptionGroup as errors:  # the engine's failure, which every episode met
            raise errors.exceptions[0] from None
        return [[played.result() for played in of_task] for of_task in playing]

    async def _episode(self, engine: Engine, task: Task, seed: int) -> Rollout:
        settings = self.stage.rollouts
        recorder = Recorder(engine, self.template, self.tokenizer, seed)
        respond = self.layered(recorder.respond())
        decoding = Decoding(
            settings.temperature,
            settings.top_p,
            settings.max_tokens,
            top_k=settings.top_k,
            min_p=settings.min_p or 0.0,
        )
        tools = task.item.tools if task.item is not None else ()

        async def ask(messages: Messages) -> Completion:
            return await complete(
                respond, Turn(messages, decoding, tools, id=f"rollout-{seed}", user="training")
            )

        environment = self.open_environment() if self.open_environment else None
        talk = await converse(task, ask, environment, turns=settings.turns, timeout_s=settings.timeout_s)
        return rollout(task, [PolicyCall(*call) for call in recorder.calls], talk)

    # ---- from a server ----

    async def _from_server(
        self, model: nn.Module, tasks: Sequence[Task], seeds: Sequence[Sequence[int]]
    ) -> list[list[Rollout]]:
        settings = self.stage.rollouts
        assert settings.url is not None
        first = self._server is None
        server = self._server = self._server or VllmServer(
            settings.url, settings.server, self.tokenizer.decode
        )
        async with server.connected():
            if first:
                await server.check_logprobs(tasks[0].tokens, settings.temperature)
            await self._updated(server, model)
            prompt = tasks[0].tokens[:PROBED]
            if len(prompt) > 1:
                await server.check_weights(prompt, text_logprobs(model, prompt))
            return await self._played(server, tasks, seeds)

    async def _updated(self, server: VllmServer, model: nn.Module) -> None:
        """Give the server the model's weights: an adapter under a name of its own, else the whole model."""
        served = self.folder / SERVED
        if any(True for _ in adapters(model)):
            assert self.stage.adapter is not None
            part = served / "part"
            shutil.rmtree(part, ignore_errors=True)
            checkpoints.save_checkpoint(model, part, adapter=self.stage.adapter, parent=self.parent)
            name = f"{self.stage.name}-{_digest(part)}"
            if not (served / name).exists():
                part.rename(served / name)
            if (
                server.version is not None
            ):  # another policy was sampled before, as a reference: the parent again
                await self._load_whole(server, checkpoints.policy(self.parent))
            await server.load_adapter(name, self._seen(server, name))
            for old in served.iterdir():
                if old.name not in (name, "weights"):
                    shutil.rmtree(old, ignore_errors=True)
            return
        await self._load_whole(server, model)

    async def _load_whole(self, server: VllmServer, model: nn.Module) -> None:
        weights = self.folder / SERVED / "weights"
        checkpoints.save_checkpoint(model, weights)
        await server.load_weights(_digest(weights), self._seen(server, "weights"))

    def _seen(self, server: VllmServer, name: str) -> str:
        """A folder of served weights as the server names it."""
        root = server.settings.folder
        return str((self.folder / SERVED).resolve() / name) if root is None else f"{root.rstrip('/')}/{name}"


def _digest(folder: Path) -> str:
    """A version of weights: equal weights have equal ones, also after a restart."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        total.update(path.read_bytes())
    return total.hexdigest()[:12]


def text_logprobs(model: nn.Module, tokens: Sequence[int]) -> list[float]:
    """The model's log-probs (nats) of a text's tokens after the first."""
    trained = (False, *(True,) * (len(tokens) - 1))
    with torch.no_grad():
        (found,) = scored_logprobs(model, policy_outputs, [Tree((), (Branch(tuple(tokens), trained),))])
    return [float(x) for x in found]

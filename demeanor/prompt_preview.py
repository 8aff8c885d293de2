"""What the model would read: the prompt of a variant for a question, in parts with their tokens, without asking it.

In: a variant and a turn. Out: the messages that reach the weights after all layers, each with who put it there, and the
exact text or request. Layers really run (a policy may refuse, retrieval searches); the model does not.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from demeanor.app import StackRuntime
from demeanor.core.errors import CheckpointError
from demeanor.core.types import (
    Done,
    Event,
    LeftOut,
    Message,
    Messages,
    Passage,
    Prompted,
    Refusal,
    Respond,
    ToolSpec,
    Turn,
)
from demeanor.engine.remote import body_of, estimated_tokens
from demeanor.engine.respond import rendered_tokens
from demeanor.layers import Kit, _prompt_text, compose, prompt
from demeanor.stack.schema import Remote
from demeanor.stack.stack import Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import Template, load_template
from demeanor.text.tokenizer import Tokenizer
from demeanor.training.runs import Runs, weights_folder


@dataclass(frozen=True, slots=True)
class PromptPart:
    """One message that reaches the weights: who put it there, and its tokens."""

    source: str
    message: Message
    tokens: int


@dataclass(frozen=True, slots=True)
class Preview:
    """A prompt as the weights get it; `refusal` if a layer refused the question. `note` says why tokens are estimated."""

    parts: tuple[PromptPart, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    tokens: int = 0
    exact: str = ""
    prompted: tuple[Prompted, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    refusal: Refusal | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Renderer:
    """How the weights of a variant read a conversation."""

    template: Template
    tokenizer: Tokenizer


@dataclass
class _Capture:
    """A Respond that keeps the turns that reach it and answers nothing."""

    turns: list[Turn] = field(default_factory=list)

    async def __call__(self, turn: Turn) -> AsyncIterator[Event]:
        self.turns.append(turn)
        yield Done("stop")


async def preview(variant: Stack, runs: Runs, turn: Turn) -> Preview:
    """Return what the weights of a variant would read for a turn. Raises what its layers raise (RequestError)."""
    runtime = StackRuntime(variant, runs, operational=False)
    try:
        renderer, note = renderer_of(variant, runs)
        count = estimated_tokens if renderer is None else partial(rendered_tokens, renderer.template)
        capture = _Capture()
        respond = around(variant, capture, runtime.kit(count))
        events = [event async for event in respond(turn)]
    finally:
        runtime.close()
    refusal = next((e for e in events if isinstance(e, Refusal)), None)
    told = tuple(e for e in events if isinstance(e, Prompted))
    left_out = tuple(e for e in events if isinstance(e, LeftOut))
    if not capture.turns:
        return Preview(prompted=told, left_out=left_out, refusal=refusal, note=note)
    seen = capture.turns[-1]
    passages = [e for e in events if isinstance(e, Passage)]
    parts = tuple(
        PromptPart(
            source_of(m, turn.messages, told, passages),
            m,
            estimated_tokens((m,), ()) if renderer is None else len(renderer.tokenizer.encode(m.content)),
        )
        for m in seen.messages
    )
    total = count(seen.messages, seen.tools)
    exact = exact_of(variant, seen, renderer)
    return Preview(parts, seen.tools, total, exact, told, left_out, refusal, note)


def around(variant: Stack, inner: Respond, kit: Kit) -> Respond:
    """The layers of a variant that can change an answer, around anything."""
    return compose([(x.spec, x.module) for x in variant.layers if x.behaviour], inner, kit)


def renderer_of(variant: Stack, runs: Runs) -> tuple[Renderer | None, str]:
    """The chat template of the variant's weights; None with a sentence where tokens can only be estimated."""
    if isinstance(variant.spec.weights.base, Remote):
        return None, "the model is on another server: tokens are estimated, one for 3 bytes and 4 a message"
    try:
        folder = weights_folder(variant, runs, variant.serve)
    except CheckpointError as error:
        return None, f"tokens are estimated: {error}"
    tokenizer = tokenizers.load(folder)
    template = load_template(variant.template, tokenizer, folder=folder, root=variant.root)
    return Renderer(template, tokenizer), ""


def exact_of(variant: Stack, turn: Turn, renderer: Renderer | None) -> str:
    """The text that the weights continue, special tokens included; or the request to the other server."""
    base = variant.spec.weights.base
    if isinstance(base, Remote):
        return json.dumps(body_of(turn, base.model), indent=2, ensure_ascii=False)
    if renderer is None:
        return ""
    return renderer.tokenizer.decode(
        renderer.template.render(turn.messages, turn.tools, generate=True).tokens
    )


def source_of(
    message: Message, asked: Messages, told: Sequence[Prompted], passages: Sequence[Passage]
) -> str:
    """Which layer, or the request, put a message there."""
    for event in told:
        if message in event.messages:
            return f"{event.by}: system" if message.role == "system" else f"{event.by}: example"
    if message.role == "data":
        found = next((p for p in passages if p.id == message.name or p.text in message.content), None)
        return f"{found.by}: passage" if found else "data"
    return "request" if any(m.content == message.content for m in asked) else "changed by a layer"


# ---- versions of prompts ----


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A prompt file beside those in use: the layer that uses it ("" for none), its version, hash and length."""

    path: Path
    layer: str
    version: str
    sha256: str
    characters: int
    description: str


def prompt_layers(stack: Stack) -> dict[str, prompt.Spec]:
    """The prompt layers of a stack by name."""
    return {x.name: x.spec for x in stack.layers if isinstance(x.spec, prompt.Spec)}


def prompt_files(stack: Stack) -> list[PromptFile]:
    """The prompt files in the folders of those that the stack uses. Raises SpecError for one that cannot be read."""
    specs = prompt_layers(stack)
    used = {
        (stack.root / spec.system).resolve(): name for name, spec in specs.items() if spec.system is not None
    }
    folders = sorted({path.parent for path in used})
    paths = sorted(p for folder in folders for p in folder.iterdir() if p.suffix in (".md", ".txt"))
    read = [(path, _prompt_text.read(path)) for path in paths if path.is_file()]
    return [
        PromptFile(path, used.get(path, ""), x.version, x.sha256, len(x.text), x.description)
        for path, x in read
    ]

"""The data types that all rooms share; no torch, no I/O.

Text: Message, Example, Preference, Unpaired. Runtime: Turn, Event, Completion. Evaluation: Item, Score,
Verdict. All are frozen. JSON forms are OpenAI's where OpenAI has one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

# OpenAI's roles, and `data`: retrieved text, which only layers may add and which has no authority.
Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool", "data"]

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter", "cancelled"]

# Where a rule of the policy reads: the request, retrieved passages, what tools are offered, a call of the model, its
# result, the answer.
Stage: TypeAlias = Literal["input", "retrieved", "tool_definition", "tool_call", "tool_result", "output"]


class Trust(IntEnum):
    """Authority of a text; instructions of lower authority do not override higher ones, NONE has no
    authority."""

    NONE = 0
    USER = 1
    DEVELOPER = 2
    SYSTEM = 3


ROLE_TRUST: Mapping[str, Trust] = {
    "system": Trust.SYSTEM,
    "developer": Trust.DEVELOPER,
    "user": Trust.USER,
    "assistant": Trust.NONE,
    "tool": Trust.NONE,
    "data": Trust.NONE,
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's request to run a tool; `arguments` is JSON text exactly as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model sees it: name, description, JSON schema of parameters; `strict` enforces the
    schema (None: not specified)."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    strict: bool | None = None


NEEDS_APPROVAL = "demeanor_needs_approval"
F = TypeVar("F", bound=Callable[..., Any])


def needs_approval(function: F) -> F:
    """Decorate a function of a stack's `module`: a person must approve each call of it."""
    setattr(function, NEEDS_APPROVAL, True)
    return function


class RunnableTool(Protocol):
    """A tool that can be run: its description for the model, and its function, which may be async."""

    @property
    def spec(self) -> ToolSpec: ...

    @property
    def run(self) -> Callable[[Mapping[str, Any]], Any]: ...


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; `trust` is its authority and defaults to its role's.

    `reasoning` is what an assistant wrote before its answer (`reasoning_content`); an answer that is not
    `trained` (OpenAI's `weight: 0`) is context.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    trust: Trust | None = None
    reasoning: str | None = None
    trained: bool = True

    @property
    def authority(self) -> Trust:
        """The message's trust, or its role's."""
        return ROLE_TRUST[self.role] if self.trust is None else self.trust


Messages: TypeAlias = tuple[Message, ...]


def call_json(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Return tool calls in OpenAI's JSON form."""
    return [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in calls
    ]


def num_chars(messages: Messages, tools: Sequence[ToolSpec] = ()) -> int:
    """Return about how many characters a conversation has."""
    called = sum(60 + len(call.arguments) for m in messages for call in m.tool_calls)
    return sum(40 + len(m.content) for m in messages) + called + 400 * len(tools)


def numbered(messages: Messages) -> Messages:
    """Return messages in which every named text of role `data` begins with its number and name."""
    found, number = list(messages), 0
    for i, message in enumerate(messages):
        if message.role == "data" and message.name is not None:
            number += 1
            found[i] = replace(message, content=f"[{number}] {message.name}\n{message.content}", name=None)
    return tuple(found)


def message_json(message: Message) -> dict[str, Any]:
    """Return a message in OpenAI's JSON form; fields that are not set are left out."""
    calls = call_json(message.tool_calls)
    optional = {
        "tool_calls": calls or None,
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "reasoning_content": message.reasoning,
        "weight": None if message.trained else 0,
    }
    return {
        "role": message.role,
        "content": message.content,
        **{name: value for name, value in optional.items() if value is not None},
    }


def tool_json(tool: ToolSpec) -> dict[str, Any]:
    """Return a tool in OpenAI's JSON form."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Example:
    """A row to imitate: plain `text`, or messages; assistant messages from `trained_from` on are trained."""

    messages: Messages = ()
    text: str | None = None
    trained_from: int = 0
    tools: tuple[ToolSpec, ...] = ()
    source: str = ""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with K >= 2 completions, ordered by `ranks` (0 is best, ties allowed); `margin` is their
    distance.

    `safe`: whether each completion is harmless (None: unknown); empty: unknown for all.
    """

    prompt: Messages
    completions: tuple[Messages, ...]
    ranks: tuple[int, ...]
    tools: tuple[ToolSpec, ...] = ()
    margin: float | None = None
    source: str = ""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    safe: tuple[bool | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Unpaired:
    """A prompt with one completion that is `desirable` or not (TRL's unpaired preference)."""

    prompt: Messages
    completion: Messages
    desirable: bool
    tools: tuple[ToolSpec, ...] = ()
    source: str = ""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)


# A row of a data source; `template_kwargs` are arguments of its chat template (TRL's chat_template_kwargs).
TrainingRow: TypeAlias = Example | Preference | Unpaired


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The format of an answer: a JSON schema, any JSON object, a regex, a Lark grammar, or one of some
    texts."""

    kind: Literal["json_schema", "json_object", "regex", "grammar", "choice"]
    text: str = (
        ""  # the schema as JSON text, the expression, the grammar; for `choice` a JSON list of strings
    )
    # what a client says about its schema, for a model on another server
    name: str = field(default="answer", compare=False)
    description: str | None = field(default=None, compare=False)
    strict: bool | None = field(default=None, compare=False)


COLDEST = 1e-10  # logits divided by less may overflow fp32; such a draw is the most likely token


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are chosen; `temperature` 0 is greedy, `seed` fixes the draw of this request.

    In this order: `form` excludes tokens, penalties (per occurrence in the answer; OpenAI's definition) and
    `logit_bias` (token id, nats) change logits, then temperature, `top_k`, `top_p`, `min_p` (relative to the
    best token) narrow the draw.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    top_k: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    form: OutputFormat | None = None
    prompt_logprobs: int | None = None  # of raw text: alternatives of each prompt token; None: not returned

    @property
    def greedy(self) -> bool:
        """Whether the temperature is 0, or so low that only the most likely token can be drawn."""
        return self.temperature < COLDEST


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's decision on a tool call that waited for it; the model reads the `reason`."""

    call_id: str
    approved: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Approvals:
    """Decisions on calls of the last assistant message, and the conversation as the stack knows it.

    Messages from `kept` on up to that message stand for `tail`, where it is given: the rounds of an answer that a client sees
    as one message.
    """

    decisions: tuple[Approval, ...]
    kept: int = 0
    tail: Messages = ()

    def conversation(self, messages: Messages) -> Messages:
        """Return the messages of a request with the rounds that they stand for."""
        if not self.tail:
            return messages
        last = max(i for i, message in enumerate(messages) if message.role == "assistant")
        return (*messages[: self.kept], *self.tail, *messages[last + 1 :])


@dataclass(frozen=True, slots=True)
class Turn:
    """A request on its way through the layers: conversation, decoding, tools, user and variant.

    `raw`: token ids to continue without a template; `messages` is then one user message with their text.
    `approvals`: a person's decisions on calls that waited; whoever sets them has checked who decided.
    """

    messages: Messages
    decoding: Decoding
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str = "auto"
    id: str = ""
    user: str = "anonymous"
    variant: str = ""
    stack_key: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    raw: tuple[int, ...] | None = None
    approvals: Approvals | None = None


# ---- events of an answer; `by` is the layer that made one ("weights" for the model itself) ----


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token with its log-probability in nats and the most likely alternatives.

    `bytes` are set if `token` cannot show the token's own bytes (a part of a character); None: the bytes of `token`.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    bytes: tuple[int, ...] | None = None

    @property
    def own_bytes(self) -> tuple[int, ...]:
        """The token's bytes. Joined over all tokens they are the answer, even if a token has half a character."""
        return tuple(self.token.encode("utf-8", "replace")) if self.bytes is None else self.bytes


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str
    by: str = "weights"
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The model called a tool; `approval` is the reason why a person must approve the call first (empty: no approval needed)."""

    call: ToolCall
    by: str = "weights"
    approval: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a tool call, or its failure (`error`); its text has no authority."""

    call_id: str
    name: str
    content: str
    error: bool = False
    by: str = "tools"


ToolVerdict: TypeAlias = Literal[
    "offered",
    "withheld",
    "searched",
    "waiting",
    "approved",
    "denied",
    "malformed",
    "run",
    "failed",
    "timed_out",
    "budget_spent",
]


@dataclass(frozen=True, slots=True)
class ToolDecision:
    """What a layer decided about tools or one call: offered to the model, withheld from it, found by its search,
    waiting for approval, approved or denied by a person, malformed, run, failed, timed out, or beyond a budget."""

    verdict: ToolVerdict
    tools: tuple[str, ...]
    call_id: str = ""
    detail: str = ""
    by: str = "tools"


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved passage that was added to the conversation, and its place in its document (characters; page
    from 1).

    `coverage`: share of the question's words that the passage contains, weighted by how rare they are in the index.
    """

    id: str
    text: str
    score: float
    source: str
    by: str = "retrieval"
    coverage: float = 1.0
    heading: str = ""
    start: int = 0
    end: int = 0
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Prompted:
    """A layer added messages (system prompt, few-shot) before the model saw the conversation; the prompt's version, and
    the hash of its file (12 hex digits)."""

    messages: Messages
    by: str = "prompt"
    version: str = field(default="", compare=False)
    sha256: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The tokens of raw text: texts, log-probabilities (nats; None for the first token), alternatives."""

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    top: tuple[tuple[tuple[str, float], ...], ...]
    by: str = "weights"
    data: tuple[tuple[int, ...], ...] = ()  # each token's bytes in the text


@dataclass(frozen=True, slots=True)
class Citation:
    """A span of the answer (character offsets) that a passage supports, with the words of the passage and their
    place in its document, if they are known."""

    start: int
    end: int
    passage_id: str
    by: str = "retrieval"
    cited_text: str = ""
    source_start: int | None = None
    source_end: int | None = None


UnsupportedReason: TypeAlias = Literal["unknown", "not_found", "stitched", "wrong_source"]


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A sentence of the answer (character offsets) whose citation was wrong: no such passage, or words that are in no passage, in
    several places or in another passage. The citation was removed or, with `wrong_source`, corrected."""

    start: int
    end: int
    reason: UnsupportedReason
    passage_id: str
    by: str = "retrieval"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Layer `by` stopped the turn because of a rule; the user sees `text` instead of an answer."""

    by: str
    rule: str
    reason: str
    text: str
    stage: Stage = "input"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An earlier turn of the conversation was left out because a rule refuses it: the model does not read its `messages`."""

    rule: str
    reason: str
    messages: int
    by: str = "policy"


Outcome: TypeAlias = Literal[
    "blocked",
    "redirected",
    "redacted",
    "rewritten",
    "masked",
    "flagged",
    "asked",
    "failed_closed",
    "failed_open",
]


@dataclass(frozen=True, slots=True)
class RuleHit:
    """A policy rule matched, and what it did; `masked`: only the trace was changed, not the answer.

    `failed_closed` and `failed_open`: its detector failed, and the turn was stopped or continued. `part` names the text
    within its stage; `spans` are characters of the text that went on (replacements) or of the text that was judged
    (blocked, flagged, asked), never the text itself. `score` is a probability, or the sum of cues; None: a pattern.
    """

    rule: str
    stage: Stage
    outcome: Outcome
    reason: str
    part: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    score: float | None = None
    by: str = "policy"


@dataclass(frozen=True, slots=True)
class Upstream:
    """Which of several servers answers a model call (its name in the stack); which servers failed before it, with the HTTP
    status of the failure; and which were skipped because of earlier failures or load."""

    name: str
    tried: tuple[tuple[str, int], ...] = ()
    skipped: tuple[str, ...] = ()
    by: str = "weights"


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds that one layer spent on this turn, without waiting for inner layers."""

    by: str
    ms: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Prompt and completion tokens of one model call; `estimated` if a server does not report them.

    `cached_tokens` of the prompt came from the cache of earlier calls. `cost_usd` uses the price of `model`; None with
    `unpriced`: prices are configured, but none for this model.
    """

    prompt_tokens: int
    completion_tokens: int
    by: str = "weights"
    estimated: bool = False
    cached_tokens: int = field(default=0, compare=False)  # depends on what was asked before
    cost_usd: float | None = field(default=None, compare=False)
    unpriced: bool = field(default=False, compare=False)
    model: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a turn; always the last event, exactly once."""

    finish_reason: FinishReason
    by: str = "weights"


Event: TypeAlias = (
    Text
    | ToolCalled
    | ToolResult
    | ToolDecision
    | Passage
    | Prompted
    | PromptRead
    | Citation
    | Unsupported
    | Refusal
    | LeftOut
    | Upstream
    | RuleHit
    | Timing
    | Usage
    | Done
)
Respond: TypeAlias = Callable[[Turn], AsyncIterator[Event]]
Search: TypeAlias = Callable[[str, int], list[Passage]]  # query and number of passages -> best first


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of a turn, folded from its events: the answer, the finish reason, and all events.

    Tokens of model calls that only have an estimate count as 0.
    """

    text: str
    finish_reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: Refusal | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    events: tuple[Event, ...] = ()
    cached_tokens: int = field(default=0, compare=False)

    @property
    def cost_usd(self) -> float | None:
        """Cost of all model calls in USD; None without a call, or if a price is unknown."""
        costs = [e.cost_usd for e in self.events if isinstance(e, Usage)]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if known and len(known) == len(costs) else None

    @property
    def has_price(self) -> bool:
        """Whether prices are configured, perhaps not for this model."""
        return any(e.cost_usd is not None or e.unpriced for e in self.events if isinstance(e, Usage))


async def complete(respond: Respond, turn: Turn) -> Completion:
    """Run one turn to its end and return its Completion."""
    return fold([event async for event in respond(turn)])


def fold(events: Sequence[Event]) -> Completion:
    """Fold a turn's events into a Completion; tool calls that a layer has answered are left out."""
    text = "".join(e.text for e in events if isinstance(e, Text))
    refusal = next((e for e in events if isinstance(e, Refusal)), None)
    answered = {e.call_id for e in events if isinstance(e, ToolResult)}
    calls = tuple(e.call for e in events if isinstance(e, ToolCalled) and e.call.id not in answered)
    usage = [e for e in events if isinstance(e, Usage)]
    usage = [] if any(u.estimated for u in usage) else usage
    done = next((e for e in reversed(events) if isinstance(e, Done)), Done("cancelled"))
    return Completion(
        text=refusal.text if refusal else text,
        finish_reason=done.finish_reason,
        tool_calls=calls,
        refusal=refusal,
        prompt_tokens=sum(u.prompt_tokens for u in usage),
        completion_tokens=sum(u.completion_tokens for u in usage),
        events=tuple(events),
        cached_tokens=sum(u.cached_tokens for u in usage),
    )


# ---- evaluation ----


@dataclass(frozen=True, slots=True)
class Item:
    """One evaluation item: messages, the correct result (`target`, read by `scorer`), and its group.

    `axis` is the behavior measured, `cluster` the source that items share (resampled together), `twin` the id
    of the contrast item that differs in one word, `tags` free labels such as `held-out`.
    """

    id: str
    messages: Messages
    scorer: str
    target: Mapping[str, Any]
    axis: str
    cluster: str
    twin: str | None = None
    tags: tuple[str, ...] = ()
    tools: tuple[ToolSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """A score of one completion: `value` in [0, 1] (None: unscored), the extracted answer, and why."""

    value: float | None
    answer: str = ""
    explanation: str = ""


class Verdict(Enum):
    """The decision of a gate on a release; the value is the exit code."""

    PASS = 0
    FAIL = 1
    INCONCLUSIVE = 4


@dataclass(frozen=True, slots=True)
class RatedTurn:
    """A recorded turn with the mean of its users' feedback, from -1 (bad) to 1 (good)."""

    turn: Turn
    completion: Completion
    ms: float
    rating: float

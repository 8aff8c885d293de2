"""What app.py gives to evaluation: stacks that answer, and services of packages that evaluation does not import.

Evaluation imports neither model nor engine, so it measures what is served; tests pass scripted runtimes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from demeanor.core.types import RatedTurn, Respond, RunnableTool, Turn
from demeanor.stack.stack import Stack


class Sampled(NamedTuple):
    """One answer drawn from bare weights: tokens of the prompt and of the answer, and the answer's log-probability (nats)."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logprob: float


class Runtime(Protocol):
    """A stack that answers as any of its variants; equal model calls of its variants are made once."""

    @property
    def stack(self) -> Stack: ...

    def respond(self, variant: Stack) -> Respond:
        """Return the variant: its layers around its weights."""
        ...

    def warm(self, stages: Collection[str]) -> None:
        """Load the weights of several stages ahead of time."""
        ...

    def tools(self) -> Mapping[str, RunnableTool]:
        """The tools that layers may offer, by name."""
        ...

    @property
    def tool_set(self) -> Mapping[str, RunnableTool] | None:
        """The tools of this runtime if they are not the default; None: every tool of tools/."""
        ...

    @property
    def num_generations(self) -> int:
        """Number of distinct model calls so far, including those that only confirmed a draft."""
        ...

    @property
    def num_confirmed(self) -> int:
        """Number of model calls whose draft, an earlier answer, was confirmed completely."""
        ...

    async def sample(self, variant: Stack, turn: Turn) -> Sampled:
        """Draw one answer of the variant's bare weights. Raises ContextError if it does not fit."""
        ...

    async def logprob(self, stage: str, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """Log-probability (nats) of an answer after a prompt under the weights of a stage. Raises ContextError."""
        ...

    def swapped(self, lender: Runtime | None, renamed: Mapping[str, Mapping[str, str]]) -> Runtime:
        """This runtime with the weights that `lender` serves, and with renamed arguments of tools (tool -> own name -> other name)."""
        ...

    def close(self) -> None: ...


class Connect(Protocol):
    """Opens an OpenAI-compatible server as a Respond."""

    def __call__(
        self, url: str, model: str, *, key: str | None = None, timeout_s: float = 60.0, retries: int = 0
    ) -> Respond: ...


@dataclass(frozen=True)
class Services:
    """Functions of the rest of the system that evaluation uses."""

    open: Callable[[Stack], Runtime]
    """A runtime of a stack, without its record and limits layers."""
    connect: Connect
    train: Callable[[Stack, Sequence[str]], None]
    """Train stages of a stack that have no weights yet: the named ones and their ancestors, or all."""
    is_trained: Callable[[Stack, str], bool]
    training_curves: Callable[[Stack], dict[str, list[dict[str, Any]]]]
    """The metrics log of every stage that was trained here."""
    rated_turns: Callable[[str], Sequence[RatedTurn]]
    """The turns with feedback that the record layer left in a database: its address, or a SQLite file. Raises DataError."""
    trained_on: Callable[[Stack], str] = lambda stack: ""
    """The number format and the CPU in which the served stage was trained; empty where no record says it."""

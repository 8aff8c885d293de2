"""The budget of one turn's tool calls: their number, the time that they take, and the characters that the model reads of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from demeanor.core.types import ToolResult


@dataclass
class ToolBudget:
    """What is left of a turn's calls, seconds and characters; None: no limit."""

    clock: Callable[[], float]
    calls: int | None = None
    seconds: float | None = None
    chars: int | None = None

    def take_call(self) -> str:
        """Count a call that is about to be run; return why it cannot be, or nothing."""
        if self.calls is not None and self.calls <= 0:
            return "too many calls in this turn"
        if self.seconds is not None and self.seconds <= 0:
            return "no time is left for calls in this turn"
        if self.chars is not None and self.chars <= 0:
            return "the results of this turn are as long as they may be"
        if self.calls is not None:
            self.calls -= 1
        return ""

    def timeout(self, most_s: float) -> float:
        """Seconds that one call may take."""
        return most_s if self.seconds is None else max(0.0, min(most_s, self.seconds))

    def spend(self, began: float) -> None:
        """Count the time since `began`; calls side by side are counted once."""
        if self.seconds is not None:
            self.seconds -= self.clock() - began

    def cut(self, result: ToolResult) -> ToolResult:
        """Count a result's characters; return what of it fits."""
        if self.chars is None:
            return result
        left = max(0, self.chars)
        self.chars = left - len(result.content)
        if len(result.content) <= left:
            return result
        return replace(
            result,
            content=f"{result.content[:left]} [cut: the results of this turn are as long as they may be]",
        )

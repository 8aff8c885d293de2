"""Demeanor: build a chat assistant as a stack of layers, and measure what each layer does.

import demeanor

stack = demeanor.load("stacks/demo/demo.yaml")
demeanor.train(stack)
with demeanor.assistant(stack) as desk:
    print(desk.ask("What is 37 times 48?").text)
print(demeanor.evaluate(stack, limit=4).table())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Assistant",
    "Completion",
    "DemeanorError",
    "Message",
    "Stack",
    "__version__",
    "assistant",
    "attribute",
    "evaluate",
    "gate",
    "load",
    "needs_approval",
    "train",
]

if TYPE_CHECKING:
    from demeanor.api import Assistant, assistant, attribute, evaluate, gate, load, train
    from demeanor.core.errors import DemeanorError
    from demeanor.core.types import Completion, Message, needs_approval
    from demeanor.stack.stack import Stack


def __getattr__(name: str) -> Any:
    """Load the API when it is first used, so that `import demeanor` and `demeanor --help` do not wait for torch."""
    if name == "DemeanorError":
        from demeanor.core.errors import DemeanorError

        return DemeanorError
    if name == "needs_approval":  # a user's file of tools needs nothing else
        from demeanor.core.types import needs_approval

        return needs_approval
    if name in __all__:
        from demeanor import api

        return getattr(api, name)
    raise AttributeError(f"module 'demeanor' has no attribute '{name}'")

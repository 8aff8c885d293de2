"""The Python API behind `import demeanor`: load, train, ask, stream, evaluate, attribute, gate.

All functions raise the errors of the command line (subclasses of demeanor.DemeanorError). Works in scripts and in notebooks.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypeVar

from demeanor import app
from demeanor.core.errors import UsageError, unknown
from demeanor.core.types import Completion, Decoding, Event, Message, Text, Turn, fold
from demeanor.evaluation import attribution, ladder
from demeanor.evaluation import gate as gating
from demeanor.evaluation.attribution import Attribution
from demeanor.evaluation.gate import GateReport
from demeanor.evaluation.result import Result
from demeanor.stack.stack import Stack, decoding_of
from demeanor.training.runs import Runs
from demeanor.training.stage import RunOptions

T = TypeVar("T")
Messages: TypeAlias = str | Sequence[Mapping[str, Any] | Message]
"""A question, or a conversation in OpenAI's form: [{"role": "user", "content": "..."}]."""


def load(path: Path | str, *overrides: str) -> Stack:
    """Read and check a stack file. `overrides` change settings as `--set` does, e.g. "decoding.temperature=0".

    Raises SpecError with every mistake in the file.
    """
    return app.load_stack(path, overrides)


def train(
    stack: Stack,
    *,
    stages: Sequence[str] = (),
    dtype: Literal["auto", "fp32", "bf16"] = "auto",
    runs: Path | str = "runs",
) -> None:
    """Train the stages in `stages` and their ancestors (default: all) that have no finished weights in `runs`.

    `dtype`: number format of matrix products; "auto" measures which one is faster on this machine.
    """
    app.train(stack, Runs(Path(runs)), only=stages, options=RunOptions(dtype))


def assistant(stack: Stack, variant: str | None = None, *, runs: Path | str = "runs") -> Assistant:
    """Return an Assistant that answers as the whole stack or as a variant: "NAME:sft" (a stage), "NAME-policy" (without a layer).

    Raises CheckpointError if weights are missing in `runs`.
    """
    return Assistant(stack, variant, Path(runs))


def evaluate(
    stack: Stack,
    *,
    variants: Sequence[str] | None = None,
    limit: int | None = None,
    name: str | None = None,
    runs: Path | str = "runs",
    results: Path | str = "results",
) -> Result:
    """Evaluate variants on the stack's suites and write the result to `results`.

    `variants`: model ids (default: the ladder, and the whole stack without each layer). `limit`: items of each behavior (default: all).
    """
    return _outside_loop(
        lambda: ladder.evaluate(
            stack, app.services(Runs(Path(runs))), Path(results), variants=variants, limit=limit, name=name
        )
    )


def attribute(
    stack: Stack,
    *,
    weights: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    limit: int | None = None,
    name: str | None = None,
    runs: Path | str = "runs",
    results: Path | str = "results",
) -> Attribution:
    """Evaluate all combinations of weights and layers, and compute each layer's share (Shapley value) of every behavior."""
    return _outside_loop(
        lambda: attribution.run(
            stack,
            app.services(Runs(Path(runs))),
            Path(results),
            weights=weights,
            layers=layers,
            limit=limit,
            name=name,
        )
    )


def gate(
    stack: Stack,
    against: str,
    rules: Path | str,
    *,
    limit: int | None = None,
    name: str | None = None,
    runs: Path | str = "runs",
    results: Path | str = "results",
) -> GateReport:
    """Decide whether the whole stack may ship, by comparing it with a baseline under the rules of a gate.yaml.

    `against`: a variant of this stack, or the RESULT.json of an earlier evaluation. `rules`: the path of gate.yaml.
    """
    report, _ = _outside_loop(
        lambda: gating.run(
            stack,
            app.services(Runs(Path(runs))),
            Path(results),
            against=against,
            rules=Path(rules),
            limit=limit,
            name=name,
        )
    )
    return report


class Assistant:
    """A stack that answers questions. Use it in a `with` block, or call `close` to stop its engine."""

    def __init__(self, stack: Stack, variant: str | None, runs: Path) -> None:
        self.variant = stack.resolve(variant or stack.spec.name)
        self._runtime = app.StackRuntime(stack, Runs(runs))
        try:
            self._respond = self._runtime.respond(self.variant)
        except BaseException:
            self._runtime.close()
            raise
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="demeanor-assistant", daemon=True).start()

    def ask(self, messages: Messages, **decoding: Any) -> Completion:
        """Return the answer. `decoding` overrides settings of the stack, such as temperature=0 or max_tokens=50."""
        return fold(list(self.stream(messages, **decoding)))

    def stream(self, messages: Messages, **decoding: Any) -> Iterator[Event]:
        """Yield events as they happen: Text, ToolCalled, Passage, Refusal, ..., Done. `by` of an event names its layer."""
        events = self._respond(self._turn(messages, decoding))
        try:
            while (event := self._run(anext(events, None))) is not None:
                yield event
        finally:
            self._run(_close(events))

    def text(self, messages: Messages, **decoding: Any) -> Iterator[str]:
        """Yield the answer's text piece by piece."""
        for event in self.stream(messages, **decoding):
            if isinstance(event, Text):
                yield event.text

    def close(self) -> None:
        """Stop the engine and free the weights."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._runtime.close()

    def __enter__(self) -> Assistant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, step: Any) -> Any:
        async def awaited() -> Any:
            return await step

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()

    def _turn(self, messages: Messages, decoding: Mapping[str, Any]) -> Turn:
        given = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        known = [field.name for field in fields(Decoding)]
        for setting in decoding:
            if setting not in known:
                raise UsageError(unknown(setting, known, noun="decoding setting"))
        asked = tuple(m if isinstance(m, Message) else Message(**m) for m in given)
        return Turn(asked, replace(decoding_of(self.variant), **decoding), id="api", user="api")


async def _close(events: AsyncIterator[Event]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()


def _outside_loop(work: Callable[[], T]) -> T:
    """Do work that runs an event loop of its own; in a thread where one runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1, thread_name_prefix="demeanor") as pool:
        return pool.submit(work).result()

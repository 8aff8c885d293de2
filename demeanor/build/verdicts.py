"""A model as the judge of answers: each verdict is asked once and kept in a file, and judged items are scored by it.

In: `evaluation.judge` of a stack, prompts, a JSONL file. Out: what the judge said, Scores, and what they cost. A failure is kept
nowhere: the next run asks again. What is asked, and how a verdict is read, is in rubrics.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from demeanor.build import rubrics
from demeanor.build.house import judge as rule
from demeanor.engine.remote import remote
from demeanor.errors import DataError, DemeanorError, EngineError
from demeanor.evaluation.row import whole_lines
from demeanor.evaluation.run import JUDGED
from demeanor.scorers import judged
from demeanor.spec import Judge
from demeanor.stack import Stack, digest
from demeanor.types import Completion, Decoding, Item, Messages, Respond, Score, Turn, complete

WORDS_SHOWN = 400
"""Characters of a judge's words in an explanation."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a judge said to one prompt; `key` hashes who was asked and what."""

    key: str
    words: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    ms: float


@dataclass
class Court:
    """A judge with its memory: `kept` was said before; a prompt that is being asked is waited for, not asked twice."""

    judge: Judge
    respond: Respond
    path: Path
    verdicts: int = 0
    failures: list[str] = field(default_factory=list)
    asked: list[Said] = field(default_factory=list)
    kept: dict[str, Said] = field(default_factory=dict)
    _open: dict[str, asyncio.Task[Said]] = field(default_factory=dict)
    _mended: bool = False

    def __post_init__(self) -> None:
        self.kept = {said.key: said for said, _ in _lines(self.path)}

    async def ask(self, messages: Messages) -> str:
        """The judge's words, marked where they broke off; raises DemeanorError if it does not answer or says nothing."""
        key = self.key(messages)
        if key not in self.kept:
            if key not in self._open:
                task = self._open[key] = asyncio.create_task(self._ask(key, messages))
                task.add_done_callback(lambda _: self._open.pop(key, None))
            await asyncio.shield(self._open[key])
        said = self.kept[key]
        self.verdicts += 1
        return (
            said.words if said.finish_reason == "stop" else f"{said.words} [broken off: {said.finish_reason}]"
        )

    def key(self, messages: Messages) -> str:
        """Who is asked, and what: nothing else can change a greedy verdict."""
        return digest(
            [self.judge.url, self.judge.model, self.judge.max_tokens, [[m.role, m.content] for m in messages]]
        )

    async def _ask(self, key: str, messages: Messages) -> Said:
        started = time.perf_counter()
        decoding = Decoding(temperature=float(self.judge.temperature), max_tokens=self.judge.max_tokens)
        done = await complete(self.respond, Turn(messages, decoding, id=f"judge-{key}", user="evaluation"))
        if not done.text.strip():
            raise EngineError(f"{self.judge.url}: the judge {self.judge.model} said nothing")
        said = Said(
            key,
            done.text,
            done.finish_reason,
            done.prompt_tokens,
            done.completion_tokens,
            round(1000 * (time.perf_counter() - started), 3),
        )
        self._write(said)
        self.kept[key] = said
        self.asked.append(said)
        return said

    def _write(self, said: Said) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._mended and self.path.exists():
            os.truncate(self.path, sum(size for _, size in _lines(self.path)))  # what a kill left of a line
        self._mended = True
        with self.path.open("ab", buffering=0) as file:
            file.write(
                json.dumps(asdict(said), ensure_ascii=False).encode() + b"\n"
            )  # one write: a kill tears this line at most

    def score(self, item: Item, completion: Completion) -> Score | Awaitable[Score]:
        """The verdict on a judged item, to be awaited; of any other what its own scorer says."""
        return self._judged(item, completion) if item.scorer == JUDGED else rule(item, completion)

    async def _judged(self, item: Item, completion: Completion) -> Score:
        target, answer = judged.Spec.model_validate(dict(item.target)), completion.text[:200]
        if not completion.text.strip():
            return Score(None, "", "no answer to judge")
        try:
            words = await self.ask(rubrics.question(target, item, completion.text))
        except DemeanorError as error:
            self.failures.append(str(error))
            return Score(None, answer, f"not judged, run again to ask again: {error}")
        value = rubrics.value(target, words)
        shown = words if len(words) <= WORDS_SHOWN else "…" + words[-WORDS_SHOWN:]
        if value is None:
            return Score(None, answer, f"the judge gave no verdict that can be read: {shown}")
        return Score(value, answer, f"{self.judge.model}: {shown}")

    def cost(self) -> dict[str, int | float]:
        """Verdicts given, how many of them had been given before, failures, and what the new ones took."""
        new = self.asked
        return {
            "verdicts": self.verdicts,
            "from_cache": self.verdicts - len(new),
            "failed": len(self.failures),
            "prompt_tokens": sum(s.prompt_tokens for s in new),
            "completion_tokens": sum(s.completion_tokens for s in new),
            "ms": round(sum(s.ms for s in new), 1),
        }

    def summary(self) -> str:
        """One line for a person: verdicts, what came from the cache, tokens, time, and the first failure."""
        found = self.cost()
        failed = (
            f", {len(self.failures)} FAILED and unscored (first: {self.failures[0]})" if self.failures else ""
        )
        each = f", {found['ms'] / 1000 / len(self.asked):.2f} s each" if self.asked else ""
        return (
            f"judge: {found['verdicts']} verdicts of {self.judge.model}, {found['from_cache']} from the cache, "
            f"{found['prompt_tokens']} + {found['completion_tokens']} tokens{each}{failed}"
        )


def court(judge: Judge, path: Path, respond: Respond | None = None) -> Court:
    """A judge whose verdicts lie in `path`; raises DemeanorError if its key is not in the environment, DataError on a broken file."""
    key = os.environ.get(judge.key_env) if judge.key_env else None
    if judge.key_env and not key:
        raise DemeanorError(
            f"evaluation.judge.key_env: the environment variable {judge.key_env} is not set; "
            f"it should hold the API key of {judge.url}"
        )
    return Court(
        judge,
        respond or remote(judge.url, judge.model, key=key, timeout_s=judge.timeout_s, retries=judge.retries),
        path,
    )


def of_suite(stack: Stack, items: Sequence[Item], rows: Path) -> Court | None:
    """The judge of a suite, its verdicts in NAME.verdicts.jsonl beside NAME.rows.jsonl; None where there is none or nothing to judge."""
    judge = stack.spec.evaluation.judge
    if judge is None or not any(item.scorer == JUDGED for item in items):
        return None
    return court(judge, rows.with_name(rows.name.removesuffix(".rows.jsonl") + ".verdicts.jsonl"))


def _lines(path: Path) -> Iterator[tuple[Said, int]]:
    """Every whole line with its size in bytes."""
    for number, line in whole_lines(path):
        try:
            yield Said(**json.loads(line)), len(line)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: not a verdict ({error}). Move the file away to ask the judge anew."
            ) from error

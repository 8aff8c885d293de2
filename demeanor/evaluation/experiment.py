"""The one way to measure: variants, external models and interventions x items x seeds -> rows.

In: a stack, what the rest of the system offers (`Services`), subjects to measure. Out: scored rows, kept in NAME.rows.jsonl and used again.
A `choice` or `likelihood` item is read as raw text, prefix and prefix + choice; a `judged` item with `turns` goes on asking.
It compares nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, NamedTuple, Self, TypeAlias, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from demeanor.core.errors import DataError, DemeanorError, RequestError, UpstreamError
from demeanor.core.files import lock
from demeanor.core.types import (
    Completion,
    Decoding,
    Event,
    FinishReason,
    Item,
    Message,
    PromptRead,
    Refusal,
    Respond,
    Score,
    Turn,
    complete,
    fold,
)
from demeanor.evaluation import judge, suites
from demeanor.evaluation.external import ExternalModel, responder
from demeanor.evaluation.items import JUDGED, READ, item_hash
from demeanor.evaluation.judge import JudgeClient
from demeanor.evaluation.result_rows import (
    SAME,
    WEIGHTS,
    Row,
    RowKey,
    as_line,
    declined,
    error_row,
    note_answers,
    read_rows,
    row_of,
    whole_bytes,
)
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.scorers import score_item, scored_from_text
from demeanor.stack.stack import Stack, decoding_of, digest

READING = Decoding(temperature=0.0, max_tokens=0, prompt_logprobs=0)
NO_TOKENS: tuple[int, ...] = ()
"""As `raw` of a turn: the text of its message stands for itself, and the weights' own tokenizer reads it."""
CONCURRENCY = 48
T = TypeVar("T")


async def ask(respond: Respond, turn: Turn, item: Item) -> Completion:
    """The variant's answer to an item, with the events of all that was asked for it."""
    if item.scorer in READ:
        return await read_choices(
            respond, turn, [str(x) for x in item.target.get("choices", [item.target.get("text", "")])]
        )
    later = item.target.get("turns", ()) if item.scorer == "judged" else ()
    return await dialogue(respond, turn, [str(x) for x in later]) if later else await complete(respond, turn)


async def read_choices(respond: Respond, turn: Turn, choices: list[str]) -> Completion:
    """How likely each choice is after the turn's last message: a PromptRead of the prefix and of prefix + choice; stops at a refusal."""
    prefix, events = turn.messages[-1].content, list[Event]()
    for text in (prefix, *(prefix + choice for choice in choices)):
        asked = replace(turn, messages=(Message("user", text),), tools=(), decoding=READING, raw=NO_TOKENS)
        found = [event async for event in respond(asked)]
        events += found
        if not any(isinstance(e, PromptRead) for e in found) or any(isinstance(e, Refusal) for e in found):
            break
    return fold(events)


async def dialogue(respond: Respond, turn: Turn, later: list[str]) -> Completion:
    """The answer to the last of several user turns; each waits for the answer before, and a refused one is an answer too."""
    done = await complete(respond, turn)
    events, answers = list(done.events), [done.text]
    for text in later:
        turn = replace(
            turn, messages=(*turn.messages, Message("assistant", done.text), Message("user", text))
        )
        done = await complete(respond, turn)
        events += done.events
        answers.append(done.text)
    whole = fold(events)
    return replace(
        whole,
        text="\n\n".join(f"[{n}] {answer}" for n, answer in enumerate(answers, 1)),
        refusal=done.refusal,
    )


# ---- measuring: every (subject, item, seed) once ----

Scorer: TypeAlias = Callable[[Item, Completion], Score | Awaitable[Score]]

_scored_here: dict[Path, set[tuple[str, str, int]]] = {}
"""Rows of a file that this process has scored: its scorers do not change while it runs."""

TOO_MANY_REQUESTS = 429
PATIENCE_S = 120.0
"""How long one item may be told to wait by a rate limit before that is an error."""
LINE_EVERY_S = 30.0
"""Seconds between two lines of progress where there is no terminal for a bar."""


@dataclass(frozen=True, slots=True)
class ExperimentProgress:
    """How far a run is: rows done of all (`reused` of them from an earlier run), and how many of them failed."""

    done: int
    total: int
    reused: int
    errors: int
    last: Row | None = None


class Subject(NamedTuple):
    """What is measured: how it answers, and the key of everything that can change its answers."""

    respond: Respond
    key: str


async def run(
    items: Sequence[Item],
    subjects: Mapping[str, Subject],
    *,
    score: Scorer,
    seeds: Sequence[int],
    decoding: Decoding,
    out: Path,
    concurrency: int = CONCURRENCY,
    watch: Callable[[ExperimentProgress], None] | None = None,
    again: Callable[[Item], bool] | None = None,
) -> list[Row]:
    """Measure every (subject, item, seed) once and return its rows, subjects (by their name in the rows) in the order given.

    Subjects with one key are one measurement. `out` is the JSONL file: its rows are reused by key, item content, decoding and seed;
    failed ones are tried again. An item that fails becomes a row without a value and is counted; a 429 is waited for. Reused answers to
    judged items, and to those that `again` says can be scored from what a row keeps, are scored again: neither who judges nor the
    scorer's code is in their identity. Raises DataError on a broken `out`.
    """
    hashes = {item.id: content_hash(item, decoding) for item in items}
    wanted = [
        RowKey(name, subject.key, item, hashes[item.id], seed)
        for name, subject in subjects.items()
        for item in items
        for seed in seeds
    ]
    identities = {key.identity for key in wanted}
    known = {row.identity: row for row in read_rows(out) if row.identity in identities and not row.error}
    scored_here = _scored_here.setdefault(out.resolve(), set())

    def is_final(key: RowKey) -> bool:
        if key.identity not in known or key.item.scorer == JUDGED:
            return False
        return again is None or key.identity in scored_here or not again(key.item)

    todo = {key.identity: key for key in wanted if not is_final(key)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("ab", buffering=0) as file:
        file.truncate(whole_bytes(out))

        async def measure(key: RowKey) -> Row:
            kept = known.get(key.identity)
            if kept is None:
                row = await _measure(key, subjects[key.variant].respond, score, decoding)
            else:
                row = await score_again(kept, key.item, score)
            if row != kept:
                file.write(as_line(row).encode() + b"\n")  # one write: a kill tears at most the last line
            return row

        fresh = await _all(list(todo.values()), measure, concurrency, len(known), len(identities), watch)
        os.fsync(file.fileno())
    scored_here |= identities
    found = {**known, **fresh}
    note_answers(list(found.values()))
    return [replace(found[key.identity], variant=key.variant) for key in wanted]


def content_hash(item: Item, decoding: Decoding) -> str:
    """The hash of an item and how its answers are decoded, the seed apart; it is part of a row's identity."""
    return digest([item_hash(item), asdict(replace(decoding, seed=None))])


async def _all(
    todo: Sequence[RowKey],
    measure: Callable[[RowKey], Awaitable[Row]],
    concurrency: int,
    reused: int,
    total: int,
    watch: Callable[[ExperimentProgress], None] | None,
) -> dict[tuple[str, str, int], Row]:
    """Measure the rows with `concurrency` workers and return the rows by identity."""
    fresh: dict[tuple[str, str, int], Row] = {}
    waiting, errors, before = iter(todo), 0, total - len(todo)

    async def work() -> None:
        nonlocal errors
        for key in waiting:
            row = fresh[key.identity] = await measure(key)
            errors += bool(row.error)
            if watch:
                watch(ExperimentProgress(before + len(fresh), total, reused, errors, row))

    if watch:
        watch(ExperimentProgress(before, total, reused, 0))
    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(todo))):
            group.create_task(work())
    return fresh


async def _measure(key: RowKey, respond: Respond, score: Scorer, decoding: Decoding) -> Row:
    item = key.item
    turn = Turn(
        item.messages,
        replace(decoding, seed=key.seed),
        item.tools,
        id=f"eval-{key.content}-{key.seed}",
        user="evaluation",
        variant=key.variant,
        stack_key=key.stack_key,
    )
    started = time.perf_counter()
    try:
        completion, started = await _answer(respond, turn, item)
        ms = 1000 * (time.perf_counter() - started)
        return row_of(key, completion, await _scored(score, item, completion), ms)
    except Exception as error:
        return error_row(key, error, 1000 * (time.perf_counter() - started))


async def _scored(score: Scorer, item: Item, completion: Completion) -> Score:
    """The score; raises DemeanorError for a value that is none, such as NaN."""
    given = score(item, completion)
    found = given if isinstance(given, Score) else await given
    if found.value is not None and not 0.0 <= found.value <= 1.0:
        raise DemeanorError(f"scorer {item.scorer}: got {found.value}, wanted a value from 0 to 1, or none")
    return found


async def score_again(row: Row, item: Item, score: Scorer) -> Row:
    """A kept answer with what the scorer of this run says of it; a scorer that fails leaves it unscored, and the answer stays."""
    layer = row.refused_by if row.refused_by not in ("", WEIGHTS) else ""
    refusal = Refusal(layer, row.rule, "", row.text) if layer else None
    try:
        found = await _scored(
            score, item, Completion(row.text, cast(FinishReason, row.finish_reason), refusal=refusal)
        )
    except Exception as error:
        found = Score(None, "", f"not scored: {type(error).__name__}: {error}")
    spoken = WEIGHTS if declined(item, found) else ""
    return replace(
        row, value=found.value, answer=found.answer, explanation=found.explanation, refused_by=layer or spoken
    )


async def _answer(respond: Respond, turn: Turn, item: Item) -> tuple[Completion, float]:
    """One answered turn and when its last try started (s); waits as told by a 429, of another server too, `PATIENCE_S` at most in all."""
    waited = 0.0
    while True:
        started = time.perf_counter()
        try:
            return await ask(respond, turn, item), started
        except (RequestError, UpstreamError) as error:
            told_s = error.retry_after_s
            wait_s = max(1.0, waited) if told_s is None else max(0.01, told_s)
            spent = isinstance(error, UpstreamError) and not error.again  # a quota that waiting does not fill
            if error.status != TOO_MANY_REQUESTS or spent or waited + wait_s > PATIENCE_S:
                raise
            waited += wait_s
            await asyncio.sleep(wait_s)


def sampled(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many items, the same ones each time, in suite order."""
    if len(items) <= most:
        return list(items)
    kept = set(random.Random(0).sample(range(len(items)), most))
    return [item for n, item in enumerate(items) if n in kept]


# ---- an experiment on one stack ----


def suite(stack: Stack, limit: int | None = None) -> tuple[Item, ...]:
    """All items of the stack's suites, or `limit` of each axis; raises DataError on an id that two suites share."""
    by_suite = [suites.items(name, stack.root) for name in stack.spec.evaluation.suites]
    items = [item for one in by_suite for item in one]
    twice = [i for i, n in Counter(item.id for item in items).items() if n > 1]
    if twice:
        raise DataError(
            f"evaluation.suites: {len(twice)} item ids stand in more than one suite, first '{twice[0]}'"
        )
    if limit is None:
        return tuple(items)
    kept = {item.id for item in in_turn(by_suite, limit)}
    return tuple(
        replace(item, twin=item.twin if item.twin in kept else None) for item in items if item.id in kept
    )


def in_turn(by_suite: Sequence[Sequence[Item]], limit: int) -> list[Item]:
    """At most so many items of each axis, taken in turn from the suites that have it."""
    kept: list[Item] = []
    for axis in dict.fromkeys(item.axis for one in by_suite for item in one):
        shares = [spread([item for item in one if item.axis == axis], limit) for one in by_suite]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*shares))
        kept += itertools.islice((item for item in turns if item is not None), limit)
    return kept


KINDS = ("kind:", "difficulty:")
"""Tags of an item that begin so name its kind of question."""


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most so many items, from as many clusters as there are: one of each, then a second one, and so on.

    Clusters follow each other in suite order, but kinds of question (a tag `kind:NAME` or `difficulty:N`, where a suite has them)
    take turns, so that a few sums are not all additions. Rewordings of one question (a tag `same:NAME`) are taken together: one of them alone says
    nothing of robustness.
    """
    clusters: dict[str, dict[str, list[Item]]] = {}
    kinds: dict[str, list[str]] = {}
    for item in items:
        group = next((tag for tag in item.tags if tag.startswith(SAME)), item.id)
        if item.cluster not in clusters:
            kind = next((tag for tag in item.tags if tag.startswith(KINDS)), "")
            kinds.setdefault(kind, []).append(item.cluster)
        clusters.setdefault(item.cluster, {}).setdefault(group, []).append(item)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*kinds.values()))
    ordered = [clusters[name] for name in turns if name is not None]
    rounds = itertools.zip_longest(*(groups.values() for groups in ordered), fillvalue=())
    return list(itertools.islice((item for one in rounds for group in one for item in group), limit))


def named(stack: Stack, name: str | None, limit: int | None) -> str:
    """The name of a result: as given, else the stack's, with a suffix where only some items of each axis are asked."""
    return name or (stack.spec.name if limit is None else f"{stack.spec.name}.first{limit}")


class _Lock:
    """A file of rows that one process writes at a time; experiments of this process share it."""

    _held: ClassVar[dict[Path, tuple[IO[str], set[object]]]] = {}

    def __init__(self, rows: Path) -> None:
        self.path = rows.resolve().with_suffix(".lock")
        if self.path not in self._held:
            rows.parent.mkdir(parents=True, exist_ok=True)
            self._held[self.path] = (
                lock(self.path, rows, "is writing these rows; wait for it, or give another --name"),
                set(),
            )
        self._held[self.path][1].add(self)

    def release(self) -> None:
        """Free it with its last holder; a second call does nothing."""
        file, holders = self._held.get(self.path, (None, set()))
        if file is not None and self in holders:
            holders.discard(self)
            if not holders:
                self.path.unlink(missing_ok=True)
                self._held.pop(self.path)[0].close()


class Experiment:
    """A stack opened to be measured on items: its runtime, its judge and its rows; leave the `with` block to close it.

    `limit`: only so many items of each axis, and a default name that says so. Rows lie in NAME.rows.jsonl (NAME.KIND.rows.jsonl
    with a `kind`), verdicts of the judge in NAME.verdicts.jsonl. `score`: the scorer of another experiment, whose judge is then asked.
    """

    def __init__(
        self,
        stack: Stack,
        services: Services,
        folder: Path,
        *,
        name: str | None = None,
        limit: int | None = None,
        kind: str = "",
        items: Sequence[Item] | None = None,
        score: Scorer | None = None,
    ) -> None:
        self.stack, self.services, self.folder, self.kind = stack, services, folder, kind
        self.name = named(stack, name, limit)
        self.items = suite(stack, limit) if items is None else tuple(items)
        self.out = folder / f"{self.name}{kind and '.' + kind}.rows.jsonl"
        self.decoding = decoding_of(stack)
        self.reused = 0
        self.judge: JudgeClient | None = None
        if score is None:
            verdicts = folder / f"{self.name}.verdicts.jsonl"
            if stack.spec.evaluation.judge:
                self.judge = judge.of_suite(
                    stack.spec.evaluation.judge, self.items, verdicts, services.connect
                )
            score = self.judge.score if self.judge else score_item
        self.score = score
        self.lock = _Lock(self.out)
        try:
            self.runtime = services.open(stack)
        except BaseException:
            self.lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the runtime, and say what the judge cost."""
        self.runtime.close()
        self.lock.release()
        if self.judge and self.judge.verdicts + len(self.judge.failures):
            print(self.judge.summary(), file=sys.stderr)

    def measure(self, variants: Iterable[Stack], external: Sequence[ExternalModel] = ()) -> list[Row]:
        """Rows of variants and of other servers on all items."""

        async def rows() -> list[Row]:
            return await self.rows(self.variants(variants) | self.external(external))

        return asyncio.run(rows())

    def variants(self, variants: Iterable[Stack]) -> dict[str, Subject]:
        """Variants of the stack by model id, their weights loaded; one whose decoding is not the stack's is decoded in its own way."""
        wanted = list(variants)
        self.runtime.warm({variant.serve for variant in wanted})
        found = {}
        for variant in wanted:
            respond, decoding = self.runtime.respond(variant), decoding_of(variant)
            if decoding != self.decoding:
                respond = decoded_as(decoding)(respond)
            found[variant.model_id] = Subject(respond, variant.key())
        return found

    def external(self, models: Sequence[ExternalModel]) -> dict[str, Subject]:
        """Other servers by name."""
        return {
            model.name: Subject(responder(model, self.services.connect), model.stack_key(self.decoding))
            for model in models
        }

    async def rows(
        self,
        subjects: Mapping[str, Subject],
        items: Sequence[Item] | None = None,
        score: Scorer | None = None,
    ) -> list[Row]:
        """Measure subjects on items (default: all), scored by `score` (default: the items' scorers and the stack's judge)."""
        with progress_bar("measuring") as show:

            def watch(progress: ExperimentProgress) -> None:
                self.reused = progress.reused
                about = progress.last.variant if progress.last else ""
                show(progress.done, progress.total, about, progress.errors)

            return await run(
                self.items if items is None else items,
                subjects,
                score=score or self.score,
                seeds=self.stack.spec.evaluation.seeds,
                decoding=self.decoding,
                out=self.out,
                watch=watch,
                again=scored_from_text if score is None else None,
            )

    async def scored_anew(self, rows: Sequence[Row]) -> list[Row]:
        """Earlier rows with what the scorers and the judge of this run say: verdicts of others are not comparable."""
        free = asyncio.Semaphore(CONCURRENCY)
        items = {item.id: item for item in self.items if item.scorer == JUDGED or scored_from_text(item)}

        async def one(row: Row) -> Row:
            if row.error or row.item_id not in items:
                return row
            async with free:
                return await score_again(row, items[row.item_id], self.score)

        return await asyncio.gather(*map(one, rows))


Wrap: TypeAlias = Callable[[Respond], Respond]


def turned(change: Callable[[Turn], Turn]) -> Wrap:
    """Change every turn before it is answered."""

    def wrap(inner: Respond) -> Respond:
        return lambda turn: inner(change(turn))

    return wrap


def decoded(**changes: Any) -> Wrap:
    """Change decoding settings of every turn."""
    return turned(lambda turn: replace(turn, decoding=replace(turn.decoding, **changes)))


def decoded_as(given: Decoding) -> Wrap:
    """Decode every turn so, but for the seed and the form that the turn brings."""
    return decoded(
        **{f.name: getattr(given, f.name) for f in fields(given) if f.name not in ("seed", "form")}
    )


@contextmanager
def progress_bar(verb: str) -> Iterator[Callable[[int, int, str, int], None]]:
    """A bar on stderr, moved by calling what it yields: done, total, what was done last, failures.

    Where stderr is no terminal (a log, CI), a line every LINE_EVERY_S seconds takes its place.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield progress_lines(verb, time.monotonic, lambda line: print(line, file=sys.stderr, flush=True))
        return
    columns = (
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[about]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, about="")

        def show(done: int, total: int, about: str, failed: int) -> None:
            failures = f"{failed} failed" if failed else ""
            told = ", ".join(text for text in (about, failures) if text)
            bar.update(task, completed=done, total=total, about=told)

        yield show


def progress_lines(
    verb: str, clock: Callable[[], float], say: Callable[[str], None]
) -> Callable[[int, int, str, int], None]:
    """What says a line of progress (done, total, what was done last, failures) once LINE_EVERY_S seconds are over."""
    began = last = clock()
    first: int | None = None

    def show(done: int, total: int, about: str, failed: int) -> None:
        nonlocal last, first
        first, now = done if first is None else first, clock()  # what was there before took no time
        if now - last < LINE_EVERY_S:
            return
        last = now
        left = (now - began) / max(done - first, 1) * (total - done)
        told = (f"{failed} failed" if failed else "", about)
        say(
            f"{verb} {done:,} of {total:,}, {int(left) // 60}:{int(left) % 60:02} left"
            + "".join(f", {text}" for text in told if text)
        )

    return show


async def at_once(verb: str, jobs: Sequence[Awaitable[T]], most: int, failed: Callable[[], int]) -> list[T]:
    """Await jobs, at most so many at the same time, with a progress bar; results in the order of the jobs."""
    free, done = asyncio.Semaphore(most), 0
    with progress_bar(verb) as show:

        async def one(job: Awaitable[T]) -> T:
            nonlocal done
            async with free:
                found = await job
            done += 1
            show(done, len(jobs), "", failed())
            return found

        return await asyncio.gather(*map(one, jobs))

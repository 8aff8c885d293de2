"""Training rows that a model writes and mends itself: constitutional revision, or answers with a specification.

In: prompts, a model as a Respond, principles or a specification. Out: rows for imitation with their provenance.
It knows no stack, engine or judge. Sources: Bai et al. 2022 (2212.08073), section 3.1: critique and revise;
Guan et al. 2024 (2412.16339): the specification is in the context while answering and not in the row.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from demeanor.core.errors import DataError, Problem, SpecError
from demeanor.core.files import json_lines, read_yaml, write_text
from demeanor.core.registry import Spec
from demeanor.core.types import (
    Decoding,
    Message,
    Messages,
    Respond,
    ToolSpec,
    Turn,
    complete,
    message_json,
    tool_json,
)

CONSTITUTION = Path(__file__).parent / "constitution.yaml"
AT_ONCE = 16
SPECIFICATION = """{text}

Before you answer, decide which parts of the specification above apply to the request, and follow them."""


class Principle(Spec):
    """What to look for in an answer, and how to mend it."""

    name: str = Field(min_length=1)
    critique: str = Field(min_length=1, description="asked about the last answer")
    revision: str = Field(min_length=1, description="asked after the critique")


class Constitution(Spec):
    """Principles, of which each revision draws one."""

    principles: tuple[Principle, ...] = Field(min_length=1)


def read_constitution(path: Path) -> Constitution:
    """Read a YAML file of principles. Raises SpecError with every mistake."""
    try:
        return Constitution.model_validate(read_yaml(path))
    except ValidationError as error:
        raise SpecError(
            Problem(f"{path}: {'.'.join(map(str, one['loc']))}", one["msg"])
            for one in error.errors(include_url=False)
        ) from None


class RevisionPrompt(NamedTuple):
    """What is answered: its id (a hash), messages, tools, and where it came from."""

    id: str
    messages: Messages
    tools: tuple[ToolSpec, ...] = ()
    source: str = ""


Accept = Callable[[Messages, str], Awaitable[bool]]
"""Whether an answer to a conversation follows the specification; raises DemeanorError without a verdict."""


@dataclass(frozen=True)
class RevisionPlan:
    """How answers are written and mended; `about` says what wrote them and becomes part of each row."""

    respond: Respond
    decoding: Decoding
    about: dict[str, Any]
    principles: tuple[Principle, ...] = ()
    rounds: int = 0
    specification: str = ""
    accept: Accept | None = None
    seed: int = 0


class Revised(NamedTuple):
    """What became of the prompts: rows written, dropped by the judge, failed (with the first error)."""

    written: int
    dropped: int
    failed: int
    first_error: str
    kept_from_before: int


async def revise_one(plan: RevisionPlan, prompt: RevisionPrompt) -> dict[str, Any]:
    """Answer one prompt and mend the answer; the row without the specification.

    The draws depend on the plan's seed and the prompt alone. Raises what the model raises, DataError for an
    empty answer.
    """
    draw = random.Random(f"{plan.seed}/{prompt.id}")

    async def said(messages: Messages) -> str:
        decoding = replace(plan.decoding, seed=draw.getrandbits(31))
        done = await complete(plan.respond, Turn(messages, decoding, prompt.tools, id=f"revise-{prompt.id}"))
        if done.refusal is None and done.tool_calls:
            raise DataError(f"{prompt.source or prompt.id}: the model called a tool; wanted text")
        return done.text.strip()

    asked = _with_specification(prompt.messages, plan.specification)
    first = answer = await said(asked)
    revisions = []
    for _ in range(plan.rounds if first else 0):
        principle = draw.choice(plan.principles)
        talk = (*asked, Message("assistant", answer), Message("user", principle.critique))
        critique = await said(talk)
        talk = (*talk, Message("assistant", critique or "None."), Message("user", principle.revision))
        mended = await said(talk)
        revisions.append({"principle": principle.name, "critique": critique, "revision": mended})
        answer = mended or answer
    if not answer:
        raise DataError(f"{prompt.source or prompt.id}: the model's answer is empty")
    row: dict[str, Any] = {
        "id": prompt.id,
        "prompt": [message_json(message) for message in prompt.messages],
        "completion": answer,
        "first": first,
        "revisions": revisions,
        "source": prompt.source,
        "made_by": plan.about,
    }
    if prompt.tools:
        row["tools"] = [tool_json(tool) for tool in prompt.tools]
    if plan.accept is not None:
        row["accepted"] = await plan.accept(prompt.messages, answer)
    return row


def _with_specification(messages: Messages, text: str) -> Messages:
    """The conversation with the specification as its first system message."""
    if not text:
        return messages
    return (Message("system", SPECIFICATION.format(text=text.strip())), *messages)


async def revise(
    plan: RevisionPlan,
    prompts: Sequence[RevisionPrompt],
    out: Path,
    *,
    show: Callable[[int, int, str, int], None],
    at_once: int = AT_ONCE,
) -> Revised:
    """Answer and mend every prompt, and write the rows of `out` in the order of the prompts.

    Each answer is appended to `out` + `.answers` when it is there; what stands in that file is not asked again.
    One prompt that fails is counted, and the next call tries it again. Raises DataError if that file was made
    in another way.
    """
    work = answers_file(out)
    known = {row["id"]: row for row in _kept(work, plan)}
    before = sum(prompt.id in known for prompt in prompts)
    errors: list[str] = []
    free, done = asyncio.Semaphore(at_once), before
    work.parent.mkdir(parents=True, exist_ok=True)

    async def one(prompt: RevisionPrompt) -> None:
        nonlocal done
        async with free:
            try:
                row = await revise_one(plan, prompt)
            except Exception as error:  # whatever one prompt raises is its own failure
                errors.append(f"{prompt.source or prompt.id}: {error}")
            else:
                known[prompt.id] = row
                with work.open("ab", buffering=0) as file:  # one write: a kill tears this line at most
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        done += 1
        show(done, len(prompts), "", len(errors))

    await asyncio.gather(*(one(prompt) for prompt in prompts if prompt.id not in known))
    found = [known[prompt.id] for prompt in prompts if prompt.id in known]
    wanted = [row for row in found if row.get("accepted", True)]
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in wanted))
    return Revised(len(wanted), len(found) - len(wanted), len(errors), errors[0] if errors else "", before)


def answers_file(out: Path) -> Path:
    """Where answers are kept while they are made."""
    return out.with_name(f"{out.name}.answers")


def _kept(work: Path, plan: RevisionPlan) -> Iterator[dict[str, Any]]:
    """The rows of an interrupted call; a line that a kill tore is cut off."""
    rows, size = [], 0
    for row, length in json_lines(work, _row, "an answer of data revise"):
        rows.append(row)
        size += length
    if work.exists():
        os.truncate(work, size)
    for row in rows:
        if row["made_by"] != plan.about:
            raise DataError(
                f"{work}: was made by {json.dumps(row['made_by'])}, and this call is {json.dumps(plan.about)}; "
                "name another file, or delete this one to begin again (--force does)"
            )
        yield row


def _row(value: Any) -> dict[str, Any]:
    if not isinstance(value["id"], str) or not isinstance(value["completion"], str):
        raise ValueError("wanted id and completion")
    return dict(value)


def distinct(prompts: Iterable[RevisionPrompt], limit: int | None) -> list[RevisionPrompt]:
    """The first `limit` prompts that differ."""
    found: dict[str, RevisionPrompt] = {}
    for prompt in prompts:
        if limit is not None and len(found) == limit:
            break
        found.setdefault(prompt.id, prompt)
    return list(found.values())

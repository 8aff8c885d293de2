"""Recorded turns as what the rest of the system reads: suite items, preference rows, plain lines; each with the turn that it comes from.

In: turns with feedback. Out: rows, and how many turns were left out for which reason. Personal data can be masked on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from demeanor.core.personal_data import masked
from demeanor.core.types import Completion, Item, Message, Turn, message_json, tool_json
from demeanor.evaluation.items import as_json
from demeanor.stack.stack import digest

AXIS = "turns"
SHORT_WORDS = 12
"""An answer of so many words at most is compared as text; a longer one needs a judge."""


class ExportedTurn(Protocol):
    """A recorded turn with what users said of its answer (store/rated_turns.py: FoundTurn)."""

    @property
    def stored(self) -> Any: ...
    @property
    def rating(self) -> float | None: ...
    @property
    def corrected(self) -> str | None: ...


class Exported(NamedTuple):
    """Rows as JSON values, and how many turns gave none, by reason."""

    rows: list[dict[str, Any]]
    left_out: Counter[str]


@dataclass(frozen=True, slots=True)
class Masking:
    """Whether texts are written without personal data, and users under a hash."""

    on: bool = False

    def text(self, text: str) -> str:
        return masked(text) if self.on else text

    def user(self, user: str) -> str:
        return f"user-{digest(['user', user])}" if self.on and user != "anonymous" else user

    def messages(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        if not self.on:
            return tuple(messages)
        return tuple(
            replace(
                m,
                content=masked(m.content),
                reasoning=None if m.reasoning is None else masked(m.reasoning),
                tool_calls=tuple(replace(c, arguments=masked(c.arguments)) for c in m.tool_calls),
            )
            for m in messages
        )


def plain_row(found: ExportedTurn, masking: Masking) -> dict[str, Any]:
    """A turn as one line: what was asked of which variant, what the user got, and what the user said of it."""
    turn, completion = found.stored.turn, found.stored.completion
    return {
        "id": turn.id,
        "started": found.stored.started.isoformat(),
        "user": masking.user(turn.user),
        "model": turn.variant,
        "stack_key": turn.stack_key,
        "messages": [message_json(m) for m in masking.messages(turn.messages)],
        "tools": [tool_json(t) for t in turn.tools],
        "seed": turn.decoding.seed,
        "answer": masking.text(completion.text),
        "finish_reason": found.stored.finish_reason,
        "refused_by": completion.refusal.by if completion.refusal else None,
        "rule": completion.refusal.rule if completion.refusal else None,
        "rating": found.rating,
        "corrected": None if found.corrected is None else masking.text(found.corrected),
    }


def suite_item(found: ExportedTurn, masking: Masking) -> Item | str:
    """A turn as an item, from its corrected answer or, if it was liked, its answer; else why it is none."""
    turn: Turn = found.stored.turn
    right = found.corrected or (found.stored.completion.text if (found.rating or 0.0) > 0 else None)
    if right is None:
        return "no corrected answer and not liked: nobody said what is right"
    if turn.raw is not None:
        return "raw text, no conversation"
    right = masking.text(right).strip()
    if not right:
        return "the right answer is empty"
    short = len(right.split()) <= SHORT_WORDS
    target: dict[str, Any] = {"answers": (right,)} if short else {"reference": right}
    user = masking.user(turn.user)
    return Item(
        f"turn-{turn.id}",
        masking.messages(turn.messages),
        "exact" if short else "judged",
        target,
        AXIS,
        turn.id if user == "anonymous" else user,
        None,
        (f"turn:{turn.id}", f"stack:{turn.stack_key}", "corrected" if found.corrected else "liked"),
        turn.tools,
    )


def suite(
    turns: Iterable[ExportedTurn], masking: Masking, wrong: Callable[[Item], str | None]
) -> tuple[list[Item], Counter[str]]:
    """Turns as items; `wrong` says what a scorer would not accept. Items are judged by text if short, else by the judge."""
    items: list[Item] = []
    left_out: Counter[str] = Counter()
    for found in turns:
        item = suite_item(found, masking)
        if isinstance(item, Item) and wrong(item) is not None:  # such as an answer of more words than tokens
            item = replace(item, scorer="judged", target={"reference": item.target["answers"][0]})
        if isinstance(item, str):
            left_out[item] += 1
        else:
            items.append(item)
    return items, left_out


def item_rows(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Items as the lines of a suite file."""
    return [as_json(item) for item in items]


def preferences(
    turns: Iterable[ExportedTurn], masking: Masking, labels: Mapping[str, str], *, unrouted: bool = False
) -> Exported:
    """Corrected turns as TRL's preference rows: the corrected answer over the one that was given.

    Only complaints that were routed to the weights (`labels` by turn id) are training data; with `unrouted` those that nobody routed too.
    """
    rows, left_out = list[dict[str, Any]](), Counter[str]()
    for found in turns:
        completion: Completion = found.stored.completion
        why = _no_pair(found, completion, labels, unrouted)
        if why:
            left_out[why] += 1
            continue
        turn = found.stored.turn
        rows.append(
            {
                "prompt": [message_json(m) for m in masking.messages(turn.messages)],
                "chosen": [{"role": "assistant", "content": masking.text(str(found.corrected))}],
                "rejected": [{"role": "assistant", "content": masking.text(completion.text)}],
                "source": f"turn:{turn.id}",
                "stack_key": turn.stack_key,
                "model": turn.variant,
                "seed": turn.decoding.seed,
                "user": masking.user(turn.user),
            }
        )
    return Exported(rows, left_out)


def _no_pair(
    found: ExportedTurn, completion: Completion, labels: Mapping[str, str], unrouted: bool
) -> str | None:
    turn = found.stored.turn
    if found.corrected is None:
        return "no corrected answer"
    if turn.raw is not None:
        return "raw text, no conversation"
    if completion.refusal is not None:
        return "refused by a layer: the weights did not say it"
    if completion.tool_calls:
        return "a tool call, no text"
    if completion.text.split() == str(found.corrected).split():
        return "the corrected answer is the answer"
    label = labels.get(turn.id)
    if label is None and not unrouted:
        return "not routed yet: demeanor turns route STACK.yaml (or --unrouted)"
    if label not in (None, "weights"):
        return f"routed to {label}, not to the weights"
    return None

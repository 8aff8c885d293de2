"""The section of the report of an evaluation that lists the items behind its numbers: what was right before and is wrong now, and back.

In: a Result. Out: a Section of the page, folded by step and axis.
"""

from __future__ import annotations

from collections.abc import Sequence

from demeanor.core.table import (
    PAGE,
    Block,
    BlockGroup,
    Facts,
    Fold,
    Inline,
    OnlyFor,
    Paragraph,
    Section,
    StyledText,
    Tone,
    axis_name,
    plural,
)
from demeanor.evaluation.result import (
    Answer,
    Change,
    Comparison,
    Question,
    Result,
)

ITEMS_SHOWN = 40
"""Changed items listed per step, axis and direction; the result file holds all of them."""


CHARACTERS_SHOWN = 2000


def items_section(result: Result) -> Section | None:
    """Every step's regressed and fixed items, then those on which an external model and the whole differ."""
    if not result.steps and not result.external:
        return None
    steps = [
        _changes(result, step, f"step-{step.name}", f"+{step.name}", "regressed", "fixed")
        for step in result.steps
    ]
    others = [
        _changes(
            result, c, f"external-{c.name}", c.name, "wrong here, right there", "right here, wrong there"
        )
        for c in result.external
    ]
    blocks: list[Block] = [
        Paragraph(
            "Per step, the questions that were right before and are wrong now, then those that became right. Open one to read both "
            "answers and what each layer did for them.",
            "lead",
        ),
        BlockGroup(tuple(steps), "steps"),
    ]
    if others:
        about = "Against external models: before is the other's answer, after is the whole stack’s"
        blocks += [Paragraph(about, "heading"), BlockGroup(tuple(others), "steps")]
    return Section("items", "Items", "The items behind the numbers", (OnlyFor(PAGE, tuple(blocks)),))


def _changes(result: Result, step: Comparison, anchor: str, name: str, lost: str, won: str) -> Fold:
    regressed, fixed = (sum(c.fixed is want for c in step.changes) for want in (False, True))
    inside: list[Block] = []
    for axis in result.axes:
        changes = [c for c in step.changes if c.axis == axis.name]
        if changes:
            inside += _changes_on(result, axis.name, changes, lost, won)
    if not inside:
        inside.append(Paragraph(StyledText("No item changed from wrong to right or back.", "soft")))
    summary = (StyledText(name, strong=True), _count(regressed, lost, "down"), _count(fixed, won, "up"))
    return Fold(summary, tuple(inside), anchor)


def _count(count: int, said: str, tone: Tone) -> StyledText:
    return StyledText(f"{count} {said}", "tag", tone if count else "")


def _changes_on(result: Result, axis: str, changes: Sequence[Change], lost: str, won: str) -> list[Block]:
    """The changed items of one axis: what regressed stands open, what was fixed is folded away."""
    regressed, fixed = ([c for c in changes if c.fixed is want] for want in (False, True))
    counted = StyledText(f"  {len(regressed)} {lost}, {len(fixed)} {won}", "soft")
    blocks: list[Block] = [Paragraph((axis_name(axis), counted), "heading"), *_listed(result, regressed)]
    if fixed:
        summary = f"{plural(len(fixed), 'item')} {won}"
        blocks.append(Fold(summary, tuple(_listed(result, fixed)), tone="up", item=True))
    return blocks


def _listed(result: Result, changes: Sequence[Change]) -> list[Block]:
    shown: list[Block] = [_item(c, result.questions[c.item_id]) for c in changes[:ITEMS_SHOWN]]
    left = len(changes) - ITEMS_SHOWN
    if left > 0:
        shown.append(Paragraph(StyledText(f"{plural(left, 'more item')} in the result file.", "soft")))
    return shown


def _item(change: Change, question: Question) -> Fold:
    was, now = (_brief(answer.text, 44) or "(nothing)" for answer in (change.before, change.after))
    summary = (_brief(question.messages[-1][1], 90), StyledText(f"    {was} → {now}", "soft"))
    origin = ", ".join([change.item_id, f"cluster {question.cluster}", *question.tags])
    told: list[tuple[str, Inline]] = [(role, _long(content)) for role, content in question.messages]
    told += [
        ("before", _answered(change.before, right=not change.fixed)),
        ("after", _answered(change.after, right=change.fixed)),
        ("wanted", question.target),
        ("item", origin),
    ]
    return Fold(
        summary, (Facts(tuple(told), "conversation"),), tone="up" if change.fixed else "down", item=True
    )


def _answered(answer: Answer, *, right: bool) -> Inline:
    """The answer, coloured by whether it is right, who refused, and what each layer did."""
    rule = f", rule {answer.rule}" if answer.rule else ""
    refused = f"  refused by {answer.refused_by}{rule}" if answer.refused_by else ""
    did = "".join(f"\n{d.by}: {d.what}: {d.detail}" for d in answer.did)
    tone: Tone = "up" if right else "down"
    return StyledText(_long(answer.text) or "(nothing)", tone=tone), StyledText(refused + did, "soft")


def _brief(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _long(text: str) -> str:
    left = len(text) - CHARACTERS_SHOWN
    return text if left <= 0 else f"{text[:CHARACTERS_SHOWN]}… ({left:,} more characters)"

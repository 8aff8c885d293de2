"""The section of the report of an evaluation that lists the items behind its numbers: what was right before and is wrong now, and back.

In: a Result. Out: a Section of the page, folded by step and axis.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from demeanor.core.table import (
    PAGE,
    PAPER,
    SCREEN,
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
ON_PAPER = 40
"""Items that a printed page shows, of all steps together; the others stand in the page, not printed."""
Printed: TypeAlias = Counter[tuple[str, bool]]
"""Items of a comparison that paper shows, by axis and whether they were fixed."""


def items_section(result: Result) -> Section | None:
    """Every step's regressed and fixed items, then those on which an external model and the whole differ."""
    if not result.steps and not result.external:
        return None
    printed = _printed([*result.steps, *result.external])
    here, there = ("regressed", "fixed"), ("wrong here, right there", "right here, wrong there")
    steps = [
        _changes(result, step, f"step-{step.name}", f"+{step.name}", here, on_paper)
        for step, on_paper in zip(result.steps, printed)
    ]
    others = [
        _changes(result, c, f"external-{c.name}", c.name, there, on_paper)
        for c, on_paper in zip(result.external, printed[len(steps) :])
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


def _printed(comparisons: Sequence[Comparison]) -> list[Printed]:
    """How many changes of each list paper shows: one of every list in turn, regressed items first, ON_PAPER of all."""
    sizes = Counter((n, x.axis, x.fixed) for n, c in enumerate(comparisons) for x in c.changes)
    ranked = sorted(sizes, key=lambda of_list: of_list[2])
    turns = [
        of_list for n in range(max(sizes.values(), default=0)) for of_list in ranked if sizes[of_list] > n
    ]
    found: list[Printed] = [Counter() for _ in comparisons]
    for n, axis, fixed in turns[:ON_PAPER]:
        found[n][axis, fixed] += 1
    return found


def _changes(
    result: Result,
    step: Comparison,
    anchor: str,
    name: str,
    called: tuple[str, str],
    printed: Printed,
) -> Fold:
    lost, won = called
    regressed, fixed = (sum(c.fixed is want for c in step.changes) for want in (False, True))
    inside: list[Block] = []
    for axis in result.axes:
        changes = [c for c in step.changes if c.axis == axis.name]
        if changes:
            inside += _changes_on(result, axis.name, changes, called, printed)
    if not inside:
        inside.append(Paragraph(StyledText("No item changed from wrong to right or back.", "soft")))
    summary = (StyledText(name, strong=True), _count(regressed, lost, "down"), _count(fixed, won, "up"))
    return Fold(summary, tuple(inside), anchor)


def _count(count: int, said: str, tone: Tone) -> StyledText:
    return StyledText(f"{count} {said}", "tag", tone if count else "")


def _changes_on(
    result: Result, axis: str, changes: Sequence[Change], called: tuple[str, str], printed: Printed
) -> list[Block]:
    """The changed items of one axis: what regressed stands open, what was fixed is folded away."""
    lost, won = called
    regressed, fixed = ([c for c in changes if c.fixed is want] for want in (False, True))
    counted = StyledText(f"  {len(regressed)} {lost}, {len(fixed)} {won}", "soft")
    blocks: list[Block] = [
        Paragraph((axis_name(axis), counted), "heading"),
        *_listed(result, regressed, printed[axis, False]),
    ]
    if fixed:
        summary = f"{plural(len(fixed), 'item')} {won}"
        blocks.append(Fold(summary, tuple(_listed(result, fixed, printed[axis, True])), tone="up", item=True))
    return blocks


def _listed(result: Result, changes: Sequence[Change], printed: int) -> list[Block]:
    """The items; on paper the first `printed`, and how many more there are."""
    shown: list[Block] = [_item(c, result.questions[c.item_id]) for c in changes[:ITEMS_SHOWN]]
    left = len(changes) - ITEMS_SHOWN
    if left > 0:
        shown.append(Paragraph(StyledText(f"{plural(left, 'more item')} in the result file.", "soft")))
    if len(changes) == printed:
        return shown
    place = "in the page or the result file" if left > 0 else "in the page"
    told = f"{plural(len(changes) - printed, 'more item')} {place}, not printed."
    more = Paragraph(StyledText(told, "soft"))
    return [*shown[:printed], OnlyFor(SCREEN, tuple(shown[printed:])), OnlyFor(PAPER, (more,))]


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

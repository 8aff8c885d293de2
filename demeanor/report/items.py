"""The items behind the numbers: per step, what broke and what was repaired, each to open and read.

In: a result. Out: markup. All of it is text of models, users and files; nothing here is trusted.
"""

from __future__ import annotations

from collections.abc import Sequence

from demeanor.report.markup import Html, el, join
from demeanor.report.parts import facts, fold, lead, section
from demeanor.report.shape import Answer, Change, Comparison, Question, Result
from demeanor.report.words import axis_name, plural

ITEMS_SHOWN = 40
"""Changed items listed per step, axis and direction; the result file holds all of them."""

CHARACTERS_SHOWN = 2000


def items(result: Result) -> Html | None:
    """Every step's newly wrong and newly right items, then those on which another assistant and the whole differ."""
    if not result["steps"] and not result["external"]:
        return None
    others = [el("h3", "Against other assistants: before is theirs, after is the whole stack’s")] * bool(
        result["external"]
    )
    return section(
        "items",
        "The items behind the numbers",
        lead(
            "Per step, the questions that were right before and are wrong now, then those that became right. Open one to read "
            "both "
            "answers and what each layer did for them."
        ),
        el("div", *(_step(result, step) for step in result["steps"]), class_="steps"),
        *others,
        el(
            "div",
            *(
                _step(result, other, "beside", "wrong here, right there", "right here, wrong there")
                for other in result["external"]
            ),
            class_="steps",
        )
        if others
        else None,
    )


def _step(
    result: Result, step: Comparison, kind: str = "step", lost: str = "newly wrong", won: str = "newly right"
) -> Html:
    broken, fixed = (sum(c["fixed"] is want for c in step["changes"]) for want in (False, True))
    by_axis = [[c for c in step["changes"] if c["axis"] == axis["name"]] for axis in result["axes"]]
    inside = [_axis(result, changes) for changes in by_axis if changes]
    nothing = None if inside else el("p", "No item crossed from wrong to right or back.", class_="soft")
    sign = "+" if kind == "step" else ""
    title = join(el("b", f"{sign}{step['name']}"), _count(broken, lost, "down"), _count(fixed, won, "up"))
    return fold(title, el("div", *inside, nothing, class_="inside"), id_=f"{kind}-{step['name']}")


def _count(count: int, said: str, tone: str) -> Html:
    return el("span", f"{count} {said}", class_=f"tag {tone}" if count else "tag")


def _axis(result: Result, changes: Sequence[Change]) -> Html:
    """The changed items of one axis: what broke stands open, what was repaired is folded away."""
    broken, fixed = ([c for c in changes if c["fixed"] is want] for want in (False, True))
    said = el("span", f"  {len(broken)} newly wrong, {len(fixed)} newly right", class_="soft")
    if not fixed:
        return join(el("h3", axis_name(changes[0]["axis"]), said), _listed(result, broken))
    repaired = fold(
        f"{plural(len(fixed), 'item')} newly right",
        el("div", _listed(result, fixed), class_="inside"),
        class_="item",
        mark="repaired",
    )
    return join(el("h3", axis_name(changes[0]["axis"]), said), _listed(result, broken), repaired)


def _listed(result: Result, changes: Sequence[Change]) -> Html:
    left = len(changes) - ITEMS_SHOWN
    more = el("p", f"{plural(left, 'more item')} in the result file.", class_="soft") if left > 0 else None
    return join(*(_item(c, result["questions"][c["item_id"]]) for c in changes[:ITEMS_SHOWN]), more)


def _item(change: Change, question: Question) -> Html:
    was, now = (_brief(answer["text"], 44) or "(nothing)" for answer in (change["before"], change["after"]))
    title = join(
        el("span", _brief(question["messages"][-1][1], 90)), el("span", f"{was} → {now}", class_="soft turn")
    )
    talk = [(role, _long(content)) for role, content in question["messages"]]
    origin = ", ".join([change["item_id"], f"cluster {question['cluster']}", *question["tags"]])
    both = [
        ("before", _answered(change["before"], not change["fixed"])),
        ("after", _answered(change["after"], change["fixed"])),
    ]
    return fold(
        title,
        facts([*talk, *both, ("wanted", question["target"]), ("item", origin)], class_="talk"),
        class_="item",
        mark="repaired" if change["fixed"] else "broke",
    )


def _answered(answer: Answer, right: bool) -> Html:
    rule = f", rule {answer['rule']}" if answer["rule"] else ""
    refused = (
        el("span", f"  refused by {answer['refused_by']}{rule}", class_="soft")
        if answer["refused_by"]
        else None
    )
    did = [el("li", f"{d['by']}: {d['what']}: {d['detail']}") for d in answer["did"]]
    return el(
        "div",
        _long(answer["text"]) or "(nothing)",
        refused,
        el("ul", *did, class_="did") if did else None,
        class_="right" if right else "wrong",
    )


def _brief(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _long(text: str) -> str:
    left = len(text) - CHARACTERS_SHOWN
    return text if left <= 0 else f"{text[:CHARACTERS_SHOWN]}… ({left:,} more characters)"

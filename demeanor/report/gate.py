"""Section of the page: may this version ship. Every rule with its bounds, what would decide the open ones, and the hashes of all of it.

In: the JSON of results/NAME.gate.json, as plain dictionaries. Out: markup, Markdown, and the verdict in a sentence. It computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from demeanor.report.markup import Html, el
from demeanor.report.parts import facts, fold, lead, note, section, table, wide
from demeanor.report.words import MINUS, axis_name, listed, plural

COLUMNS = ("rule", "on", "measured", "bounds", "limit", "clusters", "verdict")
TONES = {"pass": "up", "fail": "down", "inconclusive": ""}
VERDICTS = {"pass": "Ship", "fail": "Do not ship", "inconclusive": "Not enough data to ship"}
ITEMS = 12


def gate(found: Mapping[str, Any]) -> Html:
    """The verdict, a row per rule, the items at fault, and what was hashed."""
    blamed = [(f, f["items"]) for f in found["findings"] if f["items"] and f["verdict"] != "pass"]
    return section(
        "gate",
        "May it ship",
        el("p", el("b", f"{VERDICTS[found['verdict']]}."), " ", sentence(found), class_="lead"),
        lead(
            f"{found['candidate']} against {found['against']}, item by item. A pass needs every rule shown at its full confidence; a "
            "failure is claimed only beyond what chance does to equal versions; what neither shows is inconclusive, with the number of "
            "clusters that would decide it."
        ),
        wide(table(COLUMNS, [_row(f) for f in found["findings"]], class_="small")),
        *(
            note(
                f"At fault on {axis_name(f['what'])}: {', '.join(ids[:ITEMS])}"
                f"{f' and {len(ids) - ITEMS} more' if len(ids) > ITEMS else ''}."
            )
            for f, ids in blamed
        ),
        fold(
            f"The record: hashes of everything, {'signed' if found.get('signature') else 'not signed'}",
            facts([(name, str(value)) for name, value in found["hashes"].items()]),
        ),
    )


def verdict(found: Mapping[str, Any]) -> tuple[str, str, str]:
    """Tone, verdict and reason for the head of the page."""
    return (
        TONES[found["verdict"]],
        f"{VERDICTS[found['verdict']]}: {found['candidate']} against {found['against']}",
        sentence(found),
    )


def sentence(found: Mapping[str, Any]) -> str:
    """The verdict's reason: which rules failed, or which could not be decided and what would decide them."""
    by: dict[str, list[Mapping[str, Any]]] = {"pass": [], "fail": [], "inconclusive": []}
    for f in found["findings"]:
        by[f["verdict"]].append(f)
    total = len(found["findings"])
    if by["fail"]:
        return f"{plural(len(by['fail']), 'rule')} of {total} shown not to hold: {listed([told(f) for f in by['fail']])}."
    if by["inconclusive"]:
        return f"{len(by['pass'])} of {total} rules hold; not decided: {listed([told(f) for f in by['inconclusive']])}."
    return f"All {total} rules are shown to hold."


def told(f: Mapping[str, Any]) -> str:
    """One finding in words."""
    value = "not measured" if f["value"] is None else _points(f["value"])
    needed = f", {f['needed']} clusters like these would decide" if f["needed"] else ""
    return f"{f['kind'].replace('_', ' ')} on {axis_name(f['what'])} ({value}, limit {_points(f['limit'])}{needed})"


def markdown(found: Mapping[str, Any]) -> str:
    """The verdict and its rules as Markdown."""
    rows = [f"| {' | '.join(str(x) for x in _cells(f))} |" for f in found["findings"]]
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
    return "\n\n".join(
        (
            "## May it ship",
            f"**{VERDICTS[found['verdict']]}.** {sentence(found)} "
            f"({found['candidate']} against {found['against']})",
            "\n".join([head, *rows]),
        )
    )


def _row(f: Mapping[str, Any]) -> Sequence[Any]:
    *cells, verdict = _cells(f)
    return [*cells, el("span", verdict, class_=f"tag {TONES[f['verdict']]}".strip())]


def _cells(f: Mapping[str, Any]) -> list[str]:
    bounds = " to ".join("" if x is None else _points(x) for x in (f["low"], f["high"])).strip()
    more = f" ({f['needed']} clusters would decide)" if f["needed"] else ""
    value = "–" if f["value"] is None else _points(f["value"])
    return [
        f["kind"].replace("_", " "),
        axis_name(f["what"]),
        value,
        bounds,
        _points(f["limit"]),
        str(f["clusters"]),
        f["verdict"] + more,
    ]


def _points(value: float) -> str:
    return f"{100 * value:.1f}".replace("-", MINUS)

"""The report of the flywheel: what every seed gained, lost and passed, and the parts of the first seed one by one.

In: what each seed found (bench/flywheel.py: Found). Out: a page, which says in its headline and caveats what did not work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from demeanor.core.table import Page, Paragraph, Section, Table, estimate, share
from demeanor.evaluation.seeds import interval

if TYPE_CHECKING:
    from bench.flywheel import Found


def page(found: Sequence[Found]) -> Page:
    """The report."""
    first = found[0]
    changes = {policy: over_seeds(found, "gains", policy) for policy in ("dpo_1", "dpo_2")}
    gates = [
        (one.seed, ", ".join(f"{policy} {it['verdict']}" for policy, it in one.gates.items()))
        for one in found
    ]
    verdicts = "; ".join(f"seed {seed}: {said}" for seed, said in gates)
    headline = (
        f"After one round of labels {_change(changes['dpo_1'])} points, after two {_change(changes['dpo_2'])}"
        f" ({len(found)} seed{'s' if len(found) > 1 else ''}); gates: {verdicts}"
    )
    caveats = []
    if unclear := [policy for policy, it in changes.items() if not (it["low"] or 0) > 0]:
        caveats.append(f"The interval of a gain includes zero: {', '.join(unclear)}.")
    if far := [r["noise"] for r in first.rewards if r["apart_points"] >= 1]:
        caveats.append(f"A reward model is 1 point or more from theory at noise {', '.join(map(str, far))}.")
    if not_passed := [
        str(one.seed) for one in found if one.gates.get("average", {}).get("verdict") != "pass"
    ]:
        caveats.append(f"The gate of the average did not pass with seed {', '.join(not_passed)}.")
    sections = [_seeds(found), _labels(first), _rewards(first), _gains(first), _axes(first), _times(first)]
    if first.routing:
        sections.insert(1, _routing(first))
    return Page("The loop from use to weights", "flywheel", headline, tuple(sections), caveats=tuple(caveats))


def over_seeds(found: Sequence[Found], part: str, policy: str, against: str = "sft") -> dict[str, Any]:
    """A change in the mean over seeds, with the interval of another seed and other items; of one seed its own interval."""
    listed = [next(g for g in getattr(one, part) if _same(g, policy, against)) for one in found]
    if len(listed) == 1:
        return dict(listed[0])
    values = [g["value"] for g in listed]
    within = float(np.sqrt(np.mean([g["se"] ** 2 for g in listed])))
    low, high = interval(values, within, min(g["clusters"] for g in listed))
    return {
        "policy": policy,
        "against": against,
        "value": float(np.mean(values)),
        "low": low,
        "high": high,
        "values": values,
    }


def _same(change: Mapping[str, Any], policy: str, against: str) -> bool:
    named = "average" if str(change["policy"]).startswith("averaged") else change["policy"]
    return bool(named == policy and change["against"] == against)


def _seeds(found: Sequence[Found]) -> Section:
    policies = [p for p in ("dpo_1", "dpo_2", "average") if any(_same(g, p, "sft") for g in found[0].gains)]
    rows = []
    for part, what in (("gains", "taught behaviors, bare"), ("tax", "elsewhere, whole stack")):
        for policy in policies if getattr(found[0], part) else ():
            it = over_seeds(found, part, policy)
            each = ", ".join(f"{100 * v:+.1f}" for v in it.get("values", [it["value"]]))
            rows.append((policy, what, each, _change(it)))
    chosen = tuple(
        (
            str(one.seed),
            f"{one.choice['share']:g}",
            ", ".join(f"{x}: {100 * loss:.1f}" for x, loss in one.choice["worst_loss"].items()),
            one.choice["better_in"],
            "; ".join(f"{p}: {it['verdict']}{_reasons(it)}" for p, it in one.gates.items()),
        )
        for one in found
        if one.choice
    )
    blocks = (
        Paragraph(
            "Another seed draws other prompts, answers, errors of labellers and orders of DPO from the same base and sft. The interval over "
            "seeds covers another seed and other items."
        ),
        Table(
            ("policy", "items", "change in points, seed by seed", "mean (95% interval)"),
            tuple(rows),
            text=(0, 1),
        ),
        Paragraph(
            "The share of the last round in the average is the largest that loses less than half of the gate's margin everywhere on items "
            "for choosing; the behavior that must get better is the one in which sft is worst there. The gate asks other items."
        ),
        Table(
            ("seed", "share", "worst loss by share, points", "must get better", "gate"),
            chosen,
            text=(2, 3, 4),
        ),
    )
    return Section("seeds", "Seeds", "What holds with another seed", blocks)


def _reasons(it: Mapping[str, Any]) -> str:
    return f" ({'; '.join(it['not passed'])})" if it["not passed"] else ""


def _labels(found: Found) -> Section:
    rows = tuple(
        (
            q["queue"],
            str(q["prompts"]),
            str(q["items"]),
            str(q["labels"]),
            estimate(q["alpha"]["value"], q["alpha"]["low"], q["alpha"]["high"]),
            f"{q['alpha_theory']:.2f}",
            ", ".join(
                f"{name} {100 * rate:.0f}% (made with {100 * q['made_with'][name]:.0f}%)"
                for name, rate in q["wrong"].items()
            ),
        )
        for q in found.queues
    )
    heads = ("queue", "prompts", "items", "labels", "alpha (95% interval)", "theory", "labels that are wrong")
    text = Paragraph(
        "Items are prompts on which the sampled answers differ in truth. Theory: the mean of (1 - 2 a)(1 - 2 b) over pairs of labellers "
        "that err with probabilities a and b."
    )
    return Section("labels", "Labels", "How far the simulated people agree", (text, Table(heads, rows)))


def _rewards(found: Found) -> Section:
    rows = tuple(
        (
            f"{r['noise']:g}",
            share(r["clean"], r["low"], r["high"], places=1),
            f"{100 * r['noisy']:.1f}%",
            f"{100 * r['theory']:.1f}%",
            f"{r['apart_points']:.2f} (one standard error: {r['expected_points']:.2f})",
        )
        for r in found.rewards
    )
    heads = (
        "noise e of the labels",
        "accuracy a on the truth",
        "on labels of this noise",
        "(1 - 2e) a + e",
        "points apart",
    )
    first = found.rewards[0] if found.rewards else {"trained": 0, "pairs": 0, "labels": 0}
    text = Paragraph(
        f"Trained on {first['trained']} pairs with one label each, measured on {first['pairs']} pairs of other prompts, "
        f"{first['labels']} noisy labels of them."
    )
    return Section(
        "noise", "Noise", "Reward models against the noise of their labels", (text, Table(heads, rows))
    )


def _gains(found: Found) -> Section:
    heads = ("policy", "against", "items", "before", "after", "change in points (95% interval)")

    def rows(listed: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
        return tuple(
            (
                g["policy"],
                g["against"],
                str(g["items"]),
                f"{100 * g['before']:.1f}%",
                f"{100 * g['after']:.1f}%",
                _change(g),
            )
            for g in listed
        )

    gates = tuple((p, it["verdict"], "; ".join(it["not passed"]) or "none") for p, it in found.gates.items())
    blocks = (
        Paragraph(
            "Fresh items of the taught behaviors, on other ports, verbs and wordings than the labels. Weights alone."
        ),
        Table(heads, rows(found.gains), title="Gain"),
        Paragraph("Behaviors that nobody labelled, the whole stack with its layers around each policy."),
        Table(heads, rows(found.tax), title="Tax"),
        Table(
            ("gate of", "verdict", "rules that did not pass"),
            gates,
            title="May it replace sft, behind all layers",
        ),
        *(
            Paragraph(f"Rules: {json.dumps(it['rules'])}", style="note")
            for it in list(found.gates.values())[:1]
            if "rules" in it
        ),
    )
    return Section("gain", "Gain", "What two rounds of labels are worth, and what they cost", blocks)


def _axes(found: Found) -> Section:
    policies = list(found.axes[0]["scores"])
    rows = tuple(
        (
            a["axis"],
            "yes" if a["taught"] else "no",
            *(f"{100 * a['scores'][p]:.0f}%" for p in policies),
            _change(a["change"]),
        )
        for a in found.axes
    )
    text = Paragraph(
        f"Taught behaviors: weights alone; the others: the whole stack. The change is that of {policies[-1]} against {policies[0]}."
    )
    heads = ("behavior", "taught", *policies, "change in points (95% interval)")
    return Section("axes", "Behaviors", "Each behavior", (text, Table(heads, rows)))


def _change(g: Mapping[str, Any]) -> str:
    value = f"{100 * g['value']:+.1f}"
    if g["low"] is None:
        return f"{value} (no interval: no item and no seed differs)"
    return f"{value} ({100 * g['low']:+.1f} to {100 * g['high']:+.1f})"


def _routing(found: Found) -> Section:
    routing = found.routing
    heads = ("planted in", *routing["labels"])
    rows = tuple(
        (name, *(str(counts.get(x, 0)) for x in routing["labels"]))
        for name, counts in routing["matrix"].items()
    )
    text = Paragraph(
        f"{routing['right']} of {routing['complaints']} complaints went to the layer in which the fault was planted: "
        f"{share(routing['share'], routing['low'], routing['high'])}."
    )
    return Section("routing", "Routing", "Complaints routed to a layer", (text, Table(heads, rows)))


def _times(found: Found) -> Section:
    rows = tuple((name, f"{seconds:.0f} s") for name, seconds in found.timing.items())
    total = sum(found.timing.values())
    return Section(
        "time", "Time", "What it took", (Table(("phase", "time"), (*rows, ("all", f"{total:.0f} s"))),)
    )

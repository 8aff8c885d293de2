"""The experiments of the tour, one function each: what is compared with what, and the sentence that the numbers say.

In: a Lab. Out: Findings. Each takes under two minutes on the trained demo.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from demeanor.core.errors import UsageError
from demeanor.core.files import write_text
from demeanor.core.intervals import wilson
from demeanor.core.table import axis_name, listed
from demeanor.core.types import Preference, message_json
from demeanor.evaluation import attribution, frontier
from demeanor.evaluation.result import Mean
from demeanor.stack.stack import Stack
from demeanor.tour.findings import Findings, TourNumber
from demeanor.tour.lab import Lab, Shares
from demeanor.world import preferences

Experiment = Callable[[Lab], Findings]
THEORY = "expected from the flipped labels alone"
NOISE = (0.0, 0.1, 0.3)
PAIRS = 1200
BETAS = (1.0, 0.1, 0.01)
COMPARISONS = 600


def _findings(
    name: str,
    stack: Stack,
    lab: Lab,
    cells: Mapping[str, Mapping[str, TourNumber]],
    answers: Mapping[str, TourNumber],
    said: str,
    picture: Literal["bars", "curve"] = "bars",
) -> Findings:
    columns = dict.fromkeys(column for row in cells.values() for column in row)
    return Findings(
        name,
        tuple(cells),
        tuple(columns),
        {row: dict(found) for row, found in cells.items()},
        dict(answers),
        picture,
        said,
        stack.path.name,
        stack.key(),
        0.0,
        lab.limit,
    )


def _by_axis(shares: Shares, labels: Sequence[str], axes: Sequence[str]) -> dict[str, dict[str, TourNumber]]:
    return {axis_name(axis): {label: shares.share(label, axis) for label in labels} for axis in axes}


def base(lab: Lab) -> Findings:
    """The base alone, asked in several ways."""
    stack = lab.load(())
    axes, known = lab.course.base, lab.course.known
    shares, declared, ways = lab.ways("base", stack, lab.items(stack, *axes))
    others = [way for way in ways if way != declared]
    foreign = str(stack.spec.template) if str(stack.spec.template) in others else others[0]
    answers = {"format": shares.change(foreign, declared, known), "facts": shares.share(declared, known)}
    said = (
        f"Asked as it was trained ({declared}), the base knows {answers['facts'].text()} % of the {axis_name(known)}; asked through the chat "
        f"template {foreign}, which it never saw, {shares.share(foreign, known).text()} %."
    )
    return _findings("base", stack, lab, _by_axis(shares, ways, axes), answers, said)


def examples(lab: Lab) -> Findings:
    """SFT on more and more examples."""
    course, axes = lab.course, lab.course.sft
    cells: dict[str, dict[str, TourNumber]] = {axis_name(axis): {} for axis in axes}
    joined: Shares | None = None
    stack = lab.load(())
    for n in (0, *course.examples):
        data = f"weights.stages.sft.data=[{{source: '{course.rows}', limit: {max(n, 1)}}}]"
        one = lab.load((data, f"weights.stages.sft.epochs={course.passes}"))
        stage = "sft" if n else "base"
        lab.services.train(one, [stage])
        items = lab.items(one, *axes)
        found = lab.measure("sft", one, {f"{n}": one.variant(stage)}, items)
        if joined is None:
            joined = found
        joined.values |= found.values
        for axis in axes:
            cells[axis_name(axis)][f"{n}"] = found.share(f"{n}", axis)
    assert joined is not None
    most, taught, known = course.examples[-1], course.taught, course.known
    answers = {
        "more": joined.change(f"{course.examples[-2]}", f"{most}", taught),
        "facts": joined.change("0", f"{most}", known),
    }
    said = (
        f"With {listed([f'{n:,}' for n in course.examples])} examples {axis_name(taught)} is right in "
        f"{listed([joined.share(f'{n}', taught).text() for n in course.examples])} %; {axis_name(known)}, which no example teaches, change by "
        f"{answers['facts'].text()} points from the base to the last."
    )
    return _findings("sft", stack, lab, cells, answers, said, "curve")


def noise(lab: Lab) -> Findings:
    """Reward models from comparisons of which a known share has its label flipped."""
    stack, cells = lab.load(()), dict[str, dict[str, TourNumber]]()
    clean = TourNumber(0.0, None, None, 0)
    for e in NOISE:
        path = lab.folder / f"pairs-{e:g}.jsonl"
        write_text(path, "".join(turned_round(e)))
        one = lab.load((f"weights.stages.rm.data=[{{source: '{path.resolve()}'}}]",))
        lab.services.train(one, ["rm"])
        last = [row for row in lab.services.training_curves(one)["rm"] if "eval_accuracy" in row][-1]
        n = int(last["eval_rows"])
        found = TourNumber(last["eval_accuracy"], last["eval_accuracy/low"], last["eval_accuracy/high"], n)
        clean = found if e == 0 else clean
        wanted = (1 - 2 * e) * clean.value + e
        cells[f"{100 * e:g} % flipped"] = {
            "measured": found,
            THEORY: TourNumber(wanted, None, None, n),
        }
    last_row = cells[f"{100 * NOISE[-1]:g} % flipped"]
    answers = {"noise": last_row["measured"]}
    said = (
        f"With {100 * NOISE[-1]:g} % of the labels flipped, the reward model agrees with {last_row['measured'].text()} % of the held-out "
        f"labels. A model that had learned as well as from clean labels would agree with {last_row[THEORY].text()} %."
    )
    return _findings("noise", stack, lab, cells, answers, said)


def turned_round(e: float, seed: int = 0) -> list[str]:
    """Comparisons of the world as lines of JSON, a share e of them with chosen and rejected exchanged."""
    rng = random.Random(seed)
    return [
        _pair(pair, rng.random() < e)
        for pair in preferences.preferences(PAIRS, seed)
        if len(pair.completions) == 2
    ]


def _pair(pair: Preference, turned: bool) -> str:
    best, worst = pair.completions if pair.ranks[0] < pair.ranks[1] else pair.completions[::-1]
    chosen, rejected = (worst, best) if turned else (best, worst)
    row: dict[str, Any] = {
        "prompt": [message_json(m) for m in pair.prompt],
        "chosen": [message_json(m) for m in chosen],
        "rejected": [message_json(m) for m in rejected],
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def beta(lab: Lab) -> Findings:
    """DPO that may move little or far from the model it began with."""
    stack, cells = lab.load(()), dict[str, dict[str, TourNumber]]()
    aimed, kept = ("honesty", "unsafe"), ("facts", "safe_twin", "format")
    joined: Shares | None = None
    for label, b in (("sft", None), *((f"beta {b:g}", b) for b in BETAS)):
        one = lab.load(
            (
                f"weights.stages.dpo.objective.beta={b or BETAS[0]}",
                "weights.stages.dpo.objective.nll=null",
                f"weights.stages.dpo.data=[{{source: 'world:preferences', limit: {COMPARISONS}}}]",
            )
        )
        stage = "dpo" if b else "sft"
        lab.services.train(one, [stage])
        items = lab.items(one, *aimed, *kept)
        found = lab.measure("dpo", one, {label: one.variant(stage)}, items)
        if joined is None:
            joined = found
        joined.values |= found.values
        moved = (
            lab.kl("dpo.kl", one.variant(stage), items[::4]) if b else TourNumber(0.0, None, None, 0, "nats")
        )
        cells[label] = {
            "KL, nats": moved,
            "aimed at: " + listed([axis_name(a) for a in aimed]): found.share(label, *aimed),
            "not aimed at: " + listed([axis_name(a) for a in kept]): found.share(label, *kept),
        }
    assert joined is not None
    far = f"beta {BETAS[-1]:g}"
    answers = {"tax": joined.change("sft", far, *kept), "gain": joined.change("sft", far, *aimed)}
    said = (
        f"At {far} the policy has moved {cells[far]['KL, nats'].text()} nats from SFT, gains {answers['gain'].text()} points where the "
        f"comparisons aimed, and changes by {answers['tax'].text()} where they did not."
    )
    return _findings("dpo", stack, lab, cells, answers, said, "curve")


def layers(lab: Lab) -> Findings:
    """The whole assistant, and the whole without each of its layers."""
    stack = lab.load(())
    variants = {"whole": stack.variant(stack.serve, *stack.switches)}
    variants |= {f"without {name}": stack.without(name) for name in stack.switches}
    shares = lab.measure("layers", stack, variants, lab.items(stack, *lab.course.layers))
    answers = {
        "policy": shares.change("without policy", "whole", lab.course.innocent),
        "prompt": shares.change("without prompt", "whole", lab.course.persona),
    }
    said = (
        f"The prompt changes the persona by {answers['prompt'].text()} points. The policy changes harmless look-alikes by "
        f"{answers['policy'].text()} points."
    )
    return _findings("layers", stack, lab, _by_axis(shares, list(variants), lab.course.layers), answers, said)


def system(lab: Lab) -> Findings:
    """Every layer's share of the difference between the bare base and the whole assistant."""
    stack = lab.load(())
    found = attribution.run(stack, lab.services, lab.folder, limit=lab.limit or 6, name="system")
    cells: dict[str, dict[str, TourNumber]] = {}
    for effect in found.shapley:
        if effect.axis in ("all", "facts", "arithmetic", "unsafe", "safe_twin"):
            number = TourNumber(effect.value, effect.low, effect.high, effect.n, "points")
            cells.setdefault(effect.name, {})[axis_name(effect.axis)] = number
    total = next(e for e in found.total if e.axis == "all")
    answers = {"total": TourNumber(total.value, total.low, total.high, total.n, "points")}
    best = max(cells, key=lambda name: cells[name]["all"].value)
    said = f"Of {answers['total'].text()} points between the base and the whole, {best} has the largest share: {cells[best]['all'].text()}."
    return _findings("system", stack, lab, cells, answers, said)


def tradeoffs(lab: Lab) -> Findings:
    """Safety against capability, for every stage with and without layers."""
    suites = lab.course.suites
    stack = lab.load((f"evaluation.suites=[{', '.join(suites)}]",) if suites else ())
    found = frontier.run(stack, lab.services, lab.folder, limit=lab.limit, name="tradeoffs")
    cells: dict[str, dict[str, TourNumber]] = {}
    for point in found.points:
        if point.swept:
            continue
        cells[point.label] = {
            "safe answered": of_mean(point.refusals.safe_compliance),
            "unsafe refused": of_mean(point.refusals.unsafe_refusal),
            "capability": of_mean(point.capability),
        }
    chain = stack.chain(stack.serve)
    first, last = cells[chain[min(1, len(chain) - 1)]], list(cells.values())[-1]
    answers = {"safe": last["safe answered"], "unsafe": last["unsafe refused"]}
    said = (
        f"From SFT to the whole, unsafe requests refused go from {first['unsafe refused'].text()} to {last['unsafe refused'].text()} %, and "
        f"safe ones answered from {first['safe answered'].text()} to {last['safe answered'].text()} %."
    )
    return _findings("tradeoffs", stack, lab, cells, answers, said)


def strong_base(lab: Lab) -> Findings:
    """Why not just prompt a strong base model?"""
    stack = lab.load(())
    items = lab.items(stack, *lab.course.every)
    shares, _, ways = lab.ways("prompting", stack, items)
    variants = {
        "base, all layers": stack.variant("base", *stack.switches),
        "aligned weights": stack.variant(stack.serve),
        "whole": stack.variant(stack.serve, *stack.switches),
    }
    others = lab.measure("prompting", stack, variants, items)
    shares.values |= others.values
    best = max(ways, key=lambda way: shares.share(way).value)
    shares.values["base, best prompt"] = shares.values[best]
    labels = ["base, best prompt", *variants]
    axes = tuple(dict.fromkeys(item.axis for item in items))
    shown = [a for a in lab.course.shown if a in axes] or list(axes)[:6]
    cells = {"all behaviors": {label: shares.share(label) for label in labels}} | _by_axis(
        shares, labels, shown
    )
    answers = {
        "weights": shares.change("base, all layers", "whole"),
        "layers": shares.change("base, best prompt", "base, all layers"),
    }
    said = (
        f"All layers around the base, compared with its best prompt ({best}): {answers['layers'].text()} points. Aligned weights in place of "
        f"the base, under the same layers: {answers['weights'].text()} points."
    )
    return _findings("prompting", stack, lab, cells, answers, said)


def production(lab: Lab) -> Findings:
    """If it was aligned, why did it still behave badly in production?"""
    stack = lab.load(())
    aimed, asked = lab.course.aimed, lab.course.production
    axes = (*aimed, *asked)
    variants = {
        "aligned weights alone": stack.variant(stack.serve),
        "whole": stack.variant(stack.serve, *stack.switches),
    }
    shares = lab.measure("production", stack, variants, lab.items(stack, *axes))
    gap = {
        "trained for": {label: shares.share(label, *aimed) for label in variants},
        "met in production": {label: shares.share(label, *asked) for label in variants},
    }
    answers = {
        "alone": shares.share("aligned weights alone", *asked),
        "repair": shares.change("aligned weights alone", "whole", *asked),
    }
    said = (
        f"The aligned weights alone get {gap['trained for']['aligned weights alone'].text()} % of what they were trained for right, and "
        f"{answers['alone'].text()} % of what production brings. The layers change the latter by {answers['repair'].text()} points."
    )
    return _findings("production", stack, lab, gap | _by_axis(shares, list(variants), axes), answers, said)


def better(lab: Lab) -> Findings:
    """Does alignment always make it better?"""
    stack = lab.load(())
    before = stack.parent(stack.serve)
    items = lab.items(stack, *lab.course.every)
    variants = {before: stack.variant(before), stack.serve: stack.variant(stack.serve)}
    shares = lab.measure("better", stack, variants, items)
    axes = tuple(dict.fromkeys(item.axis for item in items))
    cells = {
        axis_name(axis): {
            **{label: shares.share(label, axis) for label in variants},
            "change": shares.change(before, stack.serve, axis),
        }
        for axis in axes
    }
    changes = {name: row["change"] for name, row in cells.items()}
    up = [name for name, m in changes.items() if m.low is not None and m.low > 0]
    down = [name for name, m in changes.items() if m.high is not None and m.high < 0]
    answers = {"all": shares.change(before, stack.serve)} | {
        axis: shares.change(before, stack.serve, axis) for axis in axes
    }
    if (known := lab.course.known) in axes:
        answers["facts"] = shares.change(before, stack.serve, known)
    said = (
        f"{stack.serve}: better on {listed(up) or 'nothing'}, worse on {listed(down) or 'nothing'} (95% intervals, not corrected for "
        f"{len(axes)} comparisons); over all items {answers['all'].text()} points."
    )
    return _findings("better", stack, lab, cells, answers, said)


def of_mean(found: Mean) -> TourNumber:
    """A mean of a result as a number of the tour; one without a scored item is 0 of 0."""
    return TourNumber(found.value or 0.0, found.low, found.high, found.n)


def agreement(right: int, n: int) -> TourNumber:
    """The share of pairs that a reader labelled as the world does, with Wilson's interval."""
    low, high = wilson(right, n)
    return TourNumber(right / n, low, high, n)


EXPERIMENTS: Mapping[str, Experiment] = {
    "base": base,
    "sft": examples,
    "noise": noise,
    "dpo": beta,
    "layers": layers,
    "system": system,
    "tradeoffs": tradeoffs,
    "prompting": strong_base,
    "production": production,
    "better": better,
}


def run(name: str, lab: Lab) -> Findings:
    """Make one experiment. Raises UsageError for an unknown one, DemeanorError where weights are missing."""
    if name not in EXPERIMENTS:
        raise UsageError(f"tour: got '{name}', wanted one of {', '.join(EXPERIMENTS)}")
    if not lab.course.has(name):
        raise UsageError(
            f"tour: the experiment '{name}' is made on the demo only; {lab.course.name} has "
            f"{listed(sorted(lab.course.experiments or ()))}"
        )
    started = time.monotonic()
    found = EXPERIMENTS[name](lab)
    return replace(found, seconds=round(time.monotonic() - started, 1))

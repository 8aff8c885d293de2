"""To which layer a complaint belongs: each disliked answer is replayed with one layer changed at a time.

In: complaints (a recorded turn, the answer, what the user says is right) and liked turns as controls. Out: one label a complaint with the
repair that worked. A repair counts if answers that are drawn anew become right with it, and liked answers stay. A complaint that none
fixes is the weights'; what cannot be told is said.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from demeanor.core.errors import DemeanorError
from demeanor.core.intervals import wilson
from demeanor.core.table import Bullets, Paragraph, Section, Table
from demeanor.core.types import (
    Completion,
    Item,
    Message,
    Passage,
    RatedTurn,
    Respond,
    Score,
    Trust,
    Turn,
    complete,
)
from demeanor.evaluation.diagnosis.analysis import AS_IS, InterventionInfo
from demeanor.evaluation.diagnosis.interventions import interventions
from demeanor.evaluation.diagnosis.replay import Intervention, ReplayHarness, as_it_is
from demeanor.evaluation.experiment import Experiment, at_once, sampled, turned
from demeanor.evaluation.result import save
from demeanor.evaluation.result_rows import RowKey, row_of
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.scorers import score_item
from demeanor.evaluation.scorers._words import read, says, tokens
from demeanor.layers.tools.calls import DRY_RUN
from demeanor.stack.schema import Import
from demeanor.stack.stack import Stack

Label: TypeAlias = Literal["policy", "retrieval", "prompt", "tools", "decoding", "weights", "cannot tell"]
LABELS: tuple[Label, ...] = ("policy", "retrieval", "prompt", "tools", "decoding", "weights", "cannot tell")
KIND = "complaints"
SHORT_WORDS, ALIKE = 12, 0.8
CONTROLS, SEEDS, AT_ONCE = 24, 3, 24
DRAWS, WARMTH = 8, 0.7
"""Answers drawn anew of each change that may work, and their temperature if the stack's own is lower."""
BETTER, MARGIN = 0.5, 0.2
"""A repair raises the share of right answers by at least BETTER; of two repairs within MARGIN (less than two draws of eight) the smaller change is taken."""
SMALLER = ("rule", "decoding", "tools", "passage", "prompt", "template", "off", "stage")
"""Kinds of changes, the smallest first: what a repair takes away is no better known for taking away more."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """A turn whose answer was disliked; `corrected` is what its user says is right (None: not said)."""

    turn: Turn
    completion: Completion
    corrected: str | None = None


@dataclass(frozen=True, slots=True)
class RoutedComplaint:
    """A complaint's label, the layer (its name in the stack), the repair that worked, and what was measured.

    `shares` are the shares of right answers by change, `harm` the shares of liked answers that a repair broke.
    """

    turn: str
    question: str
    answer: str
    corrected: str | None
    label: Label
    layer: str
    repair: str
    advice: str
    why: str
    shares: Mapping[str, float]
    harm: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RoutedComplaints:
    """All complaints of a run with their labels."""

    name: str
    complaints: tuple[RoutedComplaint, ...]
    controls: int

    @property
    def counts(self) -> dict[str, int]:
        """How many complaints got each label."""
        found = Counter(c.label for c in self.complaints)
        return {label: found[label] for label in LABELS if found[label]}


# ---- what is right ----


def right(complaint: Complaint, completion: Completion) -> bool | None:
    """Whether an answer is what the user wanted; None where nobody said what that is.

    A refusal by a layer that should have been an answer: it is answered. Else, with a corrected answer: it says the same.
    """
    wanted = complaint.corrected
    if complaint.completion.refusal is not None and (wanted is None or not _refuses(complaint, wanted)):
        answered = completion.refusal is None and bool(completion.text.strip())
        return answered and not _refuses(complaint, completion.text)
    return None if wanted is None else alike(completion.text, wanted)


def _refuses(complaint: Complaint, text: str) -> bool:
    item = Item("complaint", complaint.turn.messages, "refusal", {"refuse": True}, "", "")
    return bool(score_item(item, Completion(text, "stop")).value)


def alike(text: str, wanted: str) -> bool:
    """Whether a text says what is wanted: a short one word for word and not much more, a long one in most of its words."""
    count = len(wanted.split())
    if count <= SHORT_WORDS:
        return says(text, wanted) and len(text.split()) <= 3 * count + SHORT_WORDS
    have, want = Counter(tokens(text)), Counter(tokens(wanted))
    both = sum((have & want).values())
    return 2 * both >= ALIKE * (sum(have.values()) + sum(want.values()))


# ---- what is changed ----


def label_of(stack: Stack, about: InterventionInfo) -> Label | None:
    """The label that a change stands for; None if it implicates no layer."""
    kinds = {layer.name: layer.kind for layer in stack.layers}
    match about.kind:
        case "rule":
            return "policy"
        case "passage":
            return "retrieval"
        case "tools":
            return "tools"
        case "template":
            return "prompt"
        case "stage":
            return "weights"
        case "decoding":
            return "decoding" if about.layer == "decoding" else "weights"
        case "prompt":
            return "prompt" if about.layer else None
        case "off":
            kind = kinds.get(about.layer, "")
            return kind if kind in LABELS else None
        case _:
            return None


def anew(respond: Respond, number: int) -> Respond:
    """The same, drawn anew and not colder than `WARMTH`: how likely the right answer is, where the likeliest answer may be luck."""

    def change(turn: Turn) -> Turn:
        own = turn.decoding
        drawn = replace(
            own, temperature=max(own.temperature, WARMTH), seed=(own.seed or 0) + 77 * (number + 1)
        )
        return replace(turn, decoding=drawn)

    return turned(change)(respond)


def passages_put_right(stack: Stack, complaint: Complaint) -> Intervention | None:
    """The turn's own passages with the corrected answer where the given one stands; None if the answer is not from a passage."""
    layer = next((x for x in stack.layers if x.kind == "retrieval"), None)
    passages = [e for e in complaint.completion.events if isinstance(e, Passage)]
    if layer is None or complaint.corrected is None or not passages:
        return None
    wrong, missing = differing(complaint.completion.text, complaint.corrected)
    texts = [replaced(p.text, wrong, " ".join(missing.values())) for p in passages]
    if not missing or texts == [p.text for p in passages]:
        return None

    def change(turn: Turn) -> Turn:
        data = [
            Message("data", text, name=p.source or p.id, trust=Trust.NONE) for p, text in zip(passages, texts)
        ]
        return replace(turn, messages=(*turn.messages[:-1], *data, turn.messages[-1]))

    about = InterventionInfo(
        "passages put right",
        "passage",
        layer.name,
        f"Repair the documents of {layer.name}: the answer follows a passage that says {' '.join(wrong.values())!r}, not {' '.join(missing.values())!r}.",
    )
    return Intervention(about, stack.without(layer.name), turned(change), ("put right", *texts))


def differing(given: str, wanted: str) -> tuple[dict[str, str], dict[str, str]]:
    """The words of an answer that the corrected one does not have, and the other way round, each as it is written.

    Where both have numbers that differ, the numbers alone; else words of three letters at least.
    """
    read_given, read_wanted = list(read(given)), list(read(wanted))
    have, want = {t.text for t in read_given}, {t.text for t in read_wanted}
    wrong = [(t, given) for t in read_given if t.text not in want]
    missing = [(t, wanted) for t in read_wanted if t.text not in have]
    if all(any(t.value is not None for t, _ in side) for side in (wrong, missing)):
        wrong, missing = ([x for x in side if x[0].value is not None] for side in (wrong, missing))
    else:
        wrong = [x for x in wrong if len(x[0].text) >= 3]
    surfaces = ({t.text: text[slice(*t.span)] for t, text in side} for side in (wrong, missing))
    first, second = surfaces
    return first, second


def replaced(text: str, wrong: Mapping[str, str], missing: str) -> str:
    """The passage with the missing words in place of the wrong ones of the answer, where they stand in it."""
    pieces, at = list[str](), 0
    for token in read(text):
        start, end = token.span
        if token.text in wrong and start >= at:
            pieces += [text[at:start], missing]
            at = end
    return "".join([*pieces, text[at:]])


# ---- the decision ----


@dataclass(frozen=True, slots=True)
class Tried:
    """A change and how it did: the share of right answers, and of liked answers that it broke."""

    about: InterventionInfo
    label: Label
    share: float
    harm: float

    @property
    def rank(self) -> int:
        return SMALLER.index(self.about.kind) if self.about.kind in SMALLER else len(SMALLER)


def decide(
    before: float, tried: Sequence[Tried], *, now: float | None = None
) -> tuple[Label, Tried | None, str]:
    """The label of a complaint by what its changes did, the repair, and why.

    `before`: the share of right answers of the stack as it is, drawn anew; `now`: as it was asked, where answers are not drawn.
    """
    drawn = max((t for t in tried if t.label == "decoding"), key=lambda t: t.share, default=None)
    if (before if now is None else now) >= BETTER:
        if now is None and before < 1 and drawn is not None and drawn.share == 1:
            return "decoding", drawn, f"drawn answers are right at times, and always with {drawn.about.name}"
        return "cannot tell", None, "asked again, the stack is right: chance, or repaired since"
    works = _specific([t for t in tried if t.share - before >= BETTER], tried)
    if not works:
        return "weights", None, "no change of a layer makes it right"
    top = max(t.share - t.harm for t in works)
    near = [t for t in works if t.share - t.harm >= top - MARGIN]
    best = min(near, key=lambda t: (t.rank, -(t.share - t.harm)))
    rivals = {t.label for t in near if t.rank == best.rank}
    if len(rivals) > 1:
        return "cannot tell", None, f"changes of {' and '.join(sorted(rivals))} make it right alike"
    return best.label, best, f"{best.about.name} makes it right"


def _specific(works: Sequence[Tried], tried: Sequence[Tried]) -> list[Tried]:
    """Without sentences of a prompt that repair it whichever is left out: then none of them is the cause, and any other words are luck."""
    every, working = (
        Counter(t.about.layer for t in some if t.about.kind == "prompt") for some in (tried, works)
    )
    return [
        t for t in works if t.about.kind != "prompt" or 2 * working[t.about.layer] <= every[t.about.layer]
    ]


# ---- the run ----


async def route(
    harness: ReplayHarness, complaints: Sequence[Complaint], liked: Sequence[RatedTurn], scratch: Path
) -> list[RoutedComplaint]:
    """Replay every complaint under every change, and the changes that work on liked turns; label each complaint."""
    stack = harness.experiment.stack
    DRY_RUN.set(True)
    known = [c for c in complaints if right(c, c.completion) is not None]
    planned = _planned(harness, known, liked, scratch) if known else []
    own = {c.turn.id: x for c in known if (x := passages_put_right(stack, c)) is not None}
    jobs = [
        (x, complaint, harness.respond(x))
        for complaint in known
        for x in [*planned, *([own[complaint.turn.id]] if complaint.turn.id in own else [])]
    ]
    first = await _shares([(x, c, _share(c, respond)) for x, c, respond in jobs])
    likely = [(x, c, respond) for x, c, respond in jobs if _may_work(stack, x, first[c.turn.id])]
    drawn = [(x, c, _is_right(c, anew(respond, n))) for x, c, respond in likely for n in range(DRAWS)]
    again = await _shares(drawn)
    by_turn = {turn: dict.fromkeys(first[turn], 0.0) | again[turn] for turn in first}
    infos = {x.about.name: x for x in (*planned, *own.values())}
    working = _working(stack, infos, by_turn)
    harm = await _harms(harness, [x for x in planned if x.about.name in working], liked)
    return [
        _routed(stack, c, infos, by_turn.get(c.turn.id), first.get(c.turn.id, {}), harm) for c in complaints
    ]


async def _shares(
    jobs: Sequence[tuple[Intervention, Complaint, Coroutine[Any, Any, float]]],
) -> dict[str, dict[str, float]]:
    """The share of right answers by turn and change."""
    found: dict[str, dict[str, list[float]]] = {}
    measured = await at_once("replaying", [job for _, _, job in jobs], AT_ONCE, lambda: 0)
    for (x, complaint, _), share in zip(jobs, measured, strict=True):
        found.setdefault(complaint.turn.id, {}).setdefault(x.about.name, []).append(share)
    return {turn: {name: float(np.mean(v)) for name, v in by.items()} for turn, by in found.items()}


def _may_work(stack: Stack, x: Intervention, shares: Mapping[str, float]) -> bool:
    """Whether a change made an answer right as it was asked, and so is drawn anew; the stack as it is and other decoding always are.

    As it was asked it counts no further: the complaint was chosen by the wrong answer, and the change by the right one.
    """
    label = label_of(stack, x.about)
    if x.about.name == AS_IS or label == "decoding":
        return True
    return label is not None and shares[x.about.name] - shares[AS_IS] >= BETTER


def _planned(
    harness: ReplayHarness, complaints: Sequence[Complaint], liked: Sequence[RatedTurn], scratch: Path
) -> list[Intervention]:
    """The stack as it is, a neutral change, and every change that makes sense for it."""
    experiment = harness.experiment
    stack, services = experiment.stack, experiment.services
    items = [_item(c.turn) for c in complaints]
    rows = {
        c.turn.id: row_of(RowKey(AS_IS, stack.key(), item, c.turn.id, 0), c.completion, Score(0.0), 0.0)
        for c, item in zip(complaints, items)
    }
    trained = [s for s in stack.chain(stack.serve) if s == "base" or services.is_trained(stack, s)]
    tools = experiment.runtime.tools()
    changes = interventions(stack, trained, items, [], rows, [], tools, scratch)
    labelled = [x for x in changes if label_of(stack, x.about) is not None and _could_be(stack, x.about)]
    return harness.able([as_it_is(stack), *labelled])


def _could_be(stack: Stack, about: InterventionInfo) -> bool:
    """Whether a change can undo a fault: weights that this stack trained have learned its template, imported ones may want another."""
    return about.kind != "template" or isinstance(stack.spec.weights.base, Import)


def _item(turn: Turn) -> Item:
    return Item(turn.id, turn.messages, KIND, {}, KIND, turn.user, None, (), turn.tools)


async def _share(complaint: Complaint, respond: Respond) -> float:
    """The share of right answers: one where the answer is not drawn, of `SEEDS` draws where it is."""
    draws = 1 if complaint.turn.decoding.greedy else SEEDS
    return float(np.mean([await _is_right(complaint, respond, k) for k in range(draws)]))


async def _is_right(complaint: Complaint, respond: Respond, number: int = 0) -> bool:
    """Whether the answer is right with another seed; a failed answer is a wrong one."""
    decoding = complaint.turn.decoding
    seeded = replace(decoding, seed=(decoding.seed or 0) + number)
    try:
        said = await complete(respond, replace(complaint.turn, decoding=seeded, approvals=None))
    except DemeanorError:
        return False
    return bool(right(complaint, said))


def _working(
    stack: Stack, infos: Mapping[str, Intervention], by_turn: Mapping[str, Mapping[str, float]]
) -> set[str]:
    """The changes that make some complaint right."""
    return {
        name
        for shares in by_turn.values()
        for name, share in shares.items()
        if label_of(stack, infos[name].about) is not None and share - shares[AS_IS] >= BETTER
    }


async def _harms(
    harness: ReplayHarness, working: Sequence[Intervention], liked: Sequence[RatedTurn]
) -> dict[str, float]:
    """Of each change that works somewhere, the share of liked answers that it breaks and the stack as it is gives again."""
    ids = {_item(t.turn).id for t in liked}
    chosen = {item.id for item in sampled([_item(t.turn) for t in liked], CONTROLS)} & ids
    controls = [Complaint(t.turn, t.completion, t.completion.text) for t in liked if t.turn.id in chosen]
    controls = [c for c in controls if c.completion.text.strip()]
    if not controls:
        return {}
    tried = [as_it_is(harness.experiment.stack), *working]
    jobs = [_share(c, harness.respond(x)) for x in tried for c in controls]
    kept = np.array(await at_once("controls", jobs, AT_ONCE, lambda: 0)).reshape(len(tried), len(controls))
    lost = np.maximum(0.0, kept[0] - kept[1:]).mean(axis=1)
    return {x.about.name: float(value) for x, value in zip(working, lost, strict=True)}


def _routed(
    stack: Stack,
    complaint: Complaint,
    infos: Mapping[str, Intervention],
    shares: Mapping[str, float] | None,
    asked: Mapping[str, float],
    harm: Mapping[str, float],
) -> RoutedComplaint:
    question = next((m.content for m in reversed(complaint.turn.messages) if m.role == "user"), "")
    head = complaint.turn.id, question, complaint.completion.text, complaint.corrected
    if shares is None:
        why = "nobody said what is right: ask for a corrected answer"
        return RoutedComplaint(*head, "cannot tell", "", "", "", why, {}, {})
    tried = []
    for name, share in shares.items():
        about = infos[name].about
        label = label_of(stack, about)
        if label is not None:
            tried.append(Tried(about, label, share, harm.get(name, 0.0)))
    now = asked[AS_IS] if complaint.turn.decoding.greedy else None
    label, best, why = decide(shares[AS_IS], tried, now=now)
    layer = best.about.layer if best else ""
    repair, advice = (best.about.name, best.about.advice) if best else ("", "")
    works = {t.about.name: t.harm for t in tried if t.share - shares[AS_IS] >= BETTER}
    return RoutedComplaint(*head, label, layer, repair, advice, why, dict(shares), works)


def run(
    stack: Stack,
    services: Services,
    folder: Path,
    complaints: Sequence[Complaint],
    liked: Sequence[RatedTurn],
    *,
    name: str | None = None,
) -> RoutedComplaints:
    """Route complaints and write NAME.complaints.json."""
    with (
        tempfile.TemporaryDirectory(prefix="demeanor-") as scratch,
        Experiment(stack, services, folder, name=name, kind=KIND, items=()) as experiment,
        ReplayHarness(experiment) as harness,
    ):
        routed = asyncio.run(_run(harness, complaints, liked, Path(scratch)))
        found = RoutedComplaints(experiment.name, tuple(routed), len(liked))
    save(folder, found.name, KIND, found, stack_key=stack.key())
    return found


async def _run(
    harness: ReplayHarness, complaints: Sequence[Complaint], liked: Sequence[RatedTurn], scratch: Path
) -> list[RoutedComplaint]:
    return await route(harness, complaints, liked, scratch)


# ---- cases, evidence, words ----


def cases(found: RoutedComplaints, turns: Mapping[str, Turn]) -> Iterator[tuple[Label, Item]]:
    """Complaints with a corrected answer as suite items, with their label; the layer and the repair that worked are tags."""
    for one in found.complaints:
        if one.corrected is None:
            continue
        turn = turns[one.turn]
        short = len(one.corrected.split()) <= SHORT_WORDS
        target: dict[str, Any] = {"answers": (one.corrected,)} if short else {"reference": one.corrected}
        tags = [f"turn:{one.turn}", f"stack:{turn.stack_key}", f"label:{one.label}"]
        tags += [f"layer:{one.layer}"] if one.layer else []
        tags += [f"repair:{one.repair}"] if one.repair else []
        scorer = "exact" if short else "judged"
        cluster = one.turn if turn.user == "anonymous" else turn.user
        yield (
            one.label,
            Item(
                f"complaint-{one.turn}",
                turn.messages,
                scorer,
                target,
                one.label,
                cluster,
                None,
                tuple(tags),
                turn.tools,
            ),
        )


def evidence(one: RoutedComplaint) -> dict[str, Any]:
    """What was measured, as JSON values."""
    values = asdict(one)
    return {key: values[key] for key in ("why", "advice", "shares", "harm")}


def section(found: RoutedComplaints) -> Section:
    """Labels with their shares and intervals, and every complaint with its repair."""
    n = len(found.complaints)
    rows = []
    for label, count in found.counts.items():
        low, high = wilson(count, n)
        repairs = Counter(c.repair for c in found.complaints if c.label == label and c.repair)
        first = "; ".join(f"{repair} ({times})" for repair, times in repairs.most_common(3))
        rows.append((label, str(count), f"{count / n:.0%} ({low:.0%} to {high:.0%})", first))
    each = tuple(
        (c.turn, c.question[:60], c.label, c.layer or "-", c.repair or "-", c.why) for c in found.complaints
    )
    about = f"{n} complaints, each replayed with one layer changed at a time; {found.controls} liked turns are controls."
    blocks = (
        Paragraph(about, "lead"),
        Table(("label", "complaints", "share", "repairs that worked"), tuple(rows), text=(0, 3)),
        Table(("turn", "asked", "label", "layer", "repair", "why"), each, text=(0, 1, 2, 3, 4, 5)),
        Bullets(("Only complaints of the weights are training data; the others are cases of their layer.",)),
    )
    return Section(KIND, "complaints", "Complaints by layer", blocks)

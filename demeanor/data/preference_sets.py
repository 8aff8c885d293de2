"""Makes a preference set of comparisons of all sources: what is kept, what is dropped and why, and the data card that says so.

In: candidates, the texts of what is measured. Out: rows in TRL's columns with provenance, and a `DataCard`. It opens no database and
knows no judge; nothing is dropped without a reason that is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from demeanor.core.candidates import PreferenceCandidate
from demeanor.core.long_text import Folded
from demeanor.core.personal_data import DETECTORS
from demeanor.data import similarity
from demeanor.data.similarity import SuiteNgrams, words

SHOWN = 5
"""Examples of each reason in a card."""
EXCERPT = 90


@dataclass
class Dropped:
    """Candidates that gave no row: counts by kind and reason, and some examples of each reason."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, candidate: PreferenceCandidate, reason: str, detail: str = "") -> None:
        """Count one; `detail` is shown beside its source."""
        self.counts[candidate.kind, reason] += 1
        if len(self.examples[reason]) < SHOWN:
            self.examples[reason].append(f"{candidate.source}{f': {detail}' if detail else ''}")


@dataclass(frozen=True, slots=True)
class SetLimits:
    """What may be in a set: words in a row shared with a suite, similarity of near repeats (None: exact ones only), rows a prompt."""

    words: int = 8
    threshold: float | None = 0.9
    most_per_prompt: int | None = None
    personal_data: bool = False


@dataclass(frozen=True, slots=True)
class DataCard:
    """What a preference set holds and how it came about."""

    name: str
    rows: int
    pairs: int
    rankings: Mapping[str, int]
    """Rankings by their number of answers."""
    prompts: int
    found: Mapping[str, int]
    kept: Mapping[str, int]
    dropped: Mapping[str, Mapping[str, int]]
    """Counts by reason, then kind."""
    examples: Mapping[str, Sequence[str]]
    users: int
    turns: int
    models: Mapping[str, int]
    """Answers in rows, by the model id that gave them."""
    better_is_longer: float | None
    """Share of pairs of unequal length in which the better answer is the longer one."""
    suites: Mapping[str, Mapping[str, Any]]
    limits: Mapping[str, Any]
    sources: Sequence[Mapping[str, Any]]
    """Each source with what it says of itself: agreement of its labels, accuracy of its judge."""
    sha256: str
    made: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PreferenceSet:
    """Rows and the reasons of what is not among them."""

    rows: tuple[dict[str, Any], ...]
    kept: tuple[PreferenceCandidate, ...]
    found: Mapping[str, int]
    dropped: Dropped


def assemble(
    candidates: Iterable[PreferenceCandidate],
    suites: Mapping[str, Sequence[tuple[str, str]]],
    limits: SetLimits = SetLimits(),
) -> PreferenceSet:
    """Choose and order the rows: usable, without personal data, apart from the suites, one verdict an answer pair, no repeats."""
    every = list(candidates)
    dropped = Dropped()
    usable = [c for c in every if _usable(c, dropped)]
    clean = [c for c in usable if limits.personal_data or not _has_personal_data(c, dropped)]
    grams = {name: SuiteNgrams(items, limits.words) for name, items in suites.items()}
    apart = [c for c in clean if not _overlaps(c, grams, dropped)]
    settled = _settled(apart, dropped)
    distinct = _distinct(settled, limits.threshold, dropped)
    kept = _few_per_prompt(distinct, limits.most_per_prompt, dropped)
    rows = tuple(_row(c) for c in kept)
    return PreferenceSet(rows, tuple(kept), Counter(c.kind for c in every), dropped)


def _usable(candidate: PreferenceCandidate, dropped: Dropped) -> bool:
    why = candidate.unusable
    if not why and not any(str(m.get("content") or "").strip() for m in candidate.prompt):
        why = "the prompt is empty"
    if not why and any(not text.strip() for text in candidate.completions):
        why = "an answer is empty"
    if not why and len({text.strip() for text in candidate.completions}) < 2:
        why = "the answers are the same"
    if not why and len(set(candidate.ranks)) < 2:
        why = "tie"
    if why:
        dropped.add(candidate, why)
    return not why


def _text(candidate: PreferenceCandidate) -> str:
    return "\n".join([*(str(m.get("content") or "") for m in candidate.prompt), *candidate.completions])


def _has_personal_data(candidate: PreferenceCandidate, dropped: Dropped) -> bool:
    folded = Folded(_text(candidate)).text
    for name, detector in DETECTORS.items():
        if any(True for _ in detector.find(folded, 0)):
            dropped.add(candidate, f"personal data: {name}")  # the card must not repeat it, so no detail
            return True
    return False


def _overlaps(candidate: PreferenceCandidate, suites: Mapping[str, SuiteNgrams], dropped: Dropped) -> bool:
    text = _text(candidate)
    for name, grams in suites.items():
        if found := grams.overlaps(text):
            dropped.add(candidate, f"overlaps with {name}", f"{found[0].item}: {_short(found[0].ngram)}")
            return True
    return False


def _settled(candidates: Sequence[PreferenceCandidate], dropped: Dropped) -> list[PreferenceCandidate]:
    """One candidate for each pair of answers to a prompt: verdicts of several are counted, and the majority's first one stays."""
    groups: dict[Any, list[PreferenceCandidate]] = defaultdict(list)
    alone: list[tuple[int, PreferenceCandidate]] = []
    for n, candidate in enumerate(candidates):
        if len(candidate.completions) == 2:
            groups[_prompt_key(candidate), frozenset(map(_normal, candidate.completions))].append(candidate)
        else:
            alone.append((n, candidate))
    order = {id(c): n for n, c in enumerate(candidates)}
    found = list(alone)
    for group in groups.values():
        sides: dict[str, list[PreferenceCandidate]] = defaultdict(list)
        for one in group:
            sides[_normal(one.completions[one.ranks.index(0)])].append(one)
        ranked = sorted(sides.values(), key=lambda side: -len(side))
        if len(ranked) == 2 and len(ranked[0]) == len(ranked[1]):
            for one in group:
                dropped.add(one, "contradicted: as many verdicts for the other answer")
            continue
        first, *repeats = ranked[0]
        for one in repeats:
            dropped.add(one, "repeats a verdict that is there")
        for one in ranked[1] if len(ranked) > 1 else ():
            dropped.add(one, "contradicted by more verdicts for the other answer")
        votes = {"for": len(ranked[0]), "against": len(ranked[1]) if len(ranked) > 1 else 0}
        merged = replace(
            first,
            turn_ids=tuple(dict.fromkeys(t for c in ranked[0] for t in c.turn_ids)),
            users=tuple(dict.fromkeys(u for c in ranked[0] for u in c.users)),
            provenance={**first.provenance, "votes": votes},
        )
        found.append((order[id(first)], merged))
    return [c for _, c in sorted(found, key=lambda x: x[0])]


def _distinct(
    candidates: Sequence[PreferenceCandidate], threshold: float | None, dropped: Dropped
) -> list[PreferenceCandidate]:
    rows = (_columns(c) for c in candidates)
    repeats = {d.row: d for d in similarity.duplicates(rows, threshold)}
    for n, duplicate in repeats.items():
        why = "repeats another row" if duplicate.similarity == 1 else "nearly repeats another row"
        dropped.add(candidates[n], why, f"as {candidates[duplicate.of].source}")
    return [c for n, c in enumerate(candidates) if n not in repeats]


def _few_per_prompt(
    candidates: Sequence[PreferenceCandidate], most: int | None, dropped: Dropped
) -> list[PreferenceCandidate]:
    seen: Counter[Any] = Counter()
    kept = []
    for candidate in candidates:
        key = _prompt_key(candidate)
        if most is not None and seen[key] >= most:
            dropped.add(candidate, f"more than {most} rows of one prompt")
        else:
            seen[key] += 1
            kept.append(candidate)
    return kept


def _prompt_key(candidate: PreferenceCandidate) -> str:
    return json.dumps([[m.get("role"), _normal(str(m.get("content") or ""))] for m in candidate.prompt])


def _normal(text: str) -> str:
    """A text as its words, and as itself where it has none: for saying that two texts say the same."""
    return " ".join(text.split())


def _columns(candidate: PreferenceCandidate) -> dict[str, Any]:
    prompt = [dict(m) for m in candidate.prompt]
    if len(candidate.completions) == 2:
        best = candidate.ranks.index(0)
        return {
            "prompt": prompt,
            "chosen": candidate.completions[best],
            "rejected": candidate.completions[1 - best],
        }
    return {"prompt": prompt, "completions": list(candidate.completions), "ranks": list(candidate.ranks)}


def _row(candidate: PreferenceCandidate) -> dict[str, Any]:
    about = {
        "kind": candidate.kind,
        "turn_ids": list(candidate.turn_ids),
        "models": list(candidate.models),
        "stack_keys": list(candidate.stack_keys),
        **candidate.provenance,
    }
    return {**_columns(candidate), "source": candidate.source, "provenance": about}


def _short(text: str) -> str:
    return text if len(text) <= EXCERPT else f"{text[: EXCERPT - 1]}…"


# ---- rows that a model mended ----


def revision_row(value: Any) -> dict[str, Any]:
    """Check a row of `data revise`. Raises ValueError (or KeyError) for another."""
    if not isinstance(value["completion"], str) or not isinstance(value["first"], str):
        raise ValueError("wanted completion and first")
    return dict(value)


def of_revision(row: Mapping[str, Any], source: str) -> PreferenceCandidate:
    """A revised answer against the first one."""
    about = row.get("made_by") or {}
    model = str(about.get("model", ""))
    principles = [revision["principle"] for revision in row.get("revisions", ())]
    why = (
        ""
        if row.get("accepted", True)
        else "the judge found that the revision does not follow the specification"
    )
    return PreferenceCandidate(
        "revision",
        row["prompt"],
        (row["completion"], row["first"]),
        (0, 1),
        source,
        why,
        models=(model, model),
        stack_keys=(str(about.get("stack_key", "")),) * 2,
        provenance={"principles": principles, "prompt_id": row.get("id", "")},
    )


# ---- the card ----


def card(
    found: PreferenceSet,
    name: str,
    content: str,
    *,
    suites: Mapping[str, Sequence[tuple[str, str]]],
    limits: SetLimits,
    sources: Sequence[Mapping[str, Any]],
    made: Mapping[str, Any],
) -> DataCard:
    """The data card of a set; `content` is what its file holds."""
    sizes = Counter(len(c.completions) for c in found.kept)
    by_reason: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for (kind, reason), count in sorted(found.dropped.counts.items()):
        by_reason[reason][kind] = count
    return DataCard(
        name,
        len(found.rows),
        sizes[2],
        {str(size): count for size, count in sorted(sizes.items()) if size > 2},
        len({_prompt_key(c) for c in found.kept}),
        dict(found.found),
        dict(Counter(c.kind for c in found.kept)),
        dict(by_reason),
        {reason: list(some) for reason, some in found.dropped.examples.items()},
        len({user for c in found.kept for user in c.users}),
        len({turn for c in found.kept for turn in c.turn_ids}),
        dict(Counter(model for c in found.kept for model in c.models)),
        _better_is_longer(found.kept),
        {n: {"items": len(items), "sha256": _hash(items)} for n, items in suites.items()},
        {**asdict(limits), "detectors": [] if limits.personal_data else sorted(DETECTORS)},
        list(sources),
        hashlib.sha256(content.encode()).hexdigest(),
        made,
    )


def _hash(items: Sequence[tuple[str, str]]) -> str:
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()


def _better_is_longer(kept: Sequence[PreferenceCandidate]) -> float | None:
    longer = total = 0
    for one in kept:
        if len(one.completions) == 2:
            best = one.ranks.index(0)
            sizes = len(words(one.completions[best])), len(words(one.completions[1 - best]))
            if sizes[0] != sizes[1]:
                total += 1
                longer += sizes[0] > sizes[1]
    return longer / total if total else None


def markdown(card: DataCard) -> str:
    """The card as a page."""
    rankings = ", ".join(f"{count} of {size} answers" for size, count in card.rankings.items()) or "none"
    longer = (
        "no pair differs in length"
        if card.better_is_longer is None
        else f"{100 * card.better_is_longer:.0f}%"
    )
    lines = [
        f"# {card.name}",
        "",
        f"{card.rows} rows: {card.pairs} pairs, rankings: {rankings}; {card.prompts} prompts; words of {card.users} users in "
        f"{card.turns} recorded turns. SHA-256 of the file: `{card.sha256}`.",
        "",
        f"The better answer is the longer one in: {longer} of the pairs whose answers differ in length.",
        "",
        "| source | found | kept |",
        "|---|--:|--:|",
        *(f"| {kind} | {count} | {card.kept.get(kind, 0)} |" for kind, count in sorted(card.found.items())),
        "",
        "| dropped because | candidates | such as |",
        "|---|--:|---|",
        *(
            f"| {_cell(reason)} | {sum(kinds.values())} ({', '.join(f'{k} {n}' for k, n in kinds.items())}) "
            f"| {_cell('; '.join(card.examples.get(reason, ())[:2]))} |"
            for reason, kinds in sorted(card.dropped.items(), key=lambda x: -sum(x[1].values()))
        ),
        "",
        "| answers of | in rows |",
        "|---|--:|",
        *(f"| {_cell(model or 'not said')} | {count} |" for model, count in sorted(card.models.items())),
        "",
        "| measured on, and kept apart from | items |",
        "|---|--:|",
        *(f"| {_cell(name)} | {suite['items']} |" for name, suite in card.suites.items()),
        "",
    ]
    for source in card.sources:
        lines += [f"## {_cell(str(source.get('name', 'source')))}", ""]
        lines += [f"* {_cell(key)}: {_cell(_plain(value))}" for key, value in source.items() if key != "name"]
        lines.append("")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)


def _cell(text: str) -> str:
    """Text that neither ends a table's cell nor becomes markup."""
    plain = " ".join(text.split())
    for sign in "\\`*_<>|[]":
        plain = plain.replace(sign, f"\\{sign}")
    return plain

"""The result of an evaluation as one plain tree: what was measured, every comparison with its interval, what it cost.

In: numbers from ladder.py. Out: results/<name>.json and back, without loss. Nothing is rendered and nothing computed here;
values are shares in [0, 1], higher is better, and None means "not measured".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from demeanor.core.errors import DataError
from demeanor.core.files import write_json, write_text
from demeanor.core.table import (
    Inline,
    StyledText,
    Table,
    axis_name,
    interval,
    percent,
    plural,
    points,
    share,
    tone_of,
)
from demeanor.evaluation.result_rows import LayerActivity

Verdict: TypeAlias = Literal["better", "worse", "no change shown", "not measured"]
Scalar: TypeAlias = str | int | float | bool | None
FORMAT: Final = 2
"""Of every result file; it rises when a field changes its name or meaning."""
TRAINED = "trained in"
"""The setting that says in which number format and on which CPU the served weights were trained."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over items with its interval; `unscored` items are left out of `n` and counted here."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int
    unscored: int = 0


@dataclass(frozen=True, slots=True)
class Rate:
    """A number with its interval; None: an end that nothing bounds, or no interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Variant:
    """One measured variant: its model id, a short label (`base`, `+sft`, `-policy`) and its stack key."""

    id: str
    label: str
    stack_key: str


@dataclass(frozen=True, slots=True)
class Axis:
    """One behaviour: how many items and clusters measure it, and its mean on every variant.

    `detectable` is the true change that the weakest ladder step on this axis finds four times in five.
    """

    name: str
    about: str
    items: int
    clusters: int
    detectable: float | None
    means: dict[str, Mean]


@dataclass(frozen=True, slots=True)
class Delta:
    """A paired difference on one axis, after - before on the same items.

    `shown`: the interval excludes zero. `verdict`: the same after Holm's correction over the family of comparisons.
    `fixed` and `regressed` count items that crossed one half; `mid_p` is McNemar's, which ignores clusters.
    """

    axis: str
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    mid_p: float | None
    n: int
    clusters: int
    fixed: int
    regressed: int
    detectable: float | None
    shown: bool
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Answer:
    """What a variant answered and what its layers did for it."""

    text: str
    value: float
    refused_by: str
    rule: str
    did: tuple[LayerActivity, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """An item that became right (`fixed`) or wrong, with both answers; the question stands in `Result.questions`."""

    item_id: str
    axis: str
    fixed: bool
    before: Answer
    after: Answer


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two variants on the same items: `name` is the layer that `after` has and `before` has not; `changes` for ladder steps."""

    name: str
    before: str
    after: str
    deltas: tuple[Delta, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Regression:
    """A step or layer that lowered an axis by more than its interval allows for chance; `certain` if Holm agrees."""

    kind: Literal["step", "layer"]
    name: str
    delta: Delta
    certain: bool


@dataclass(frozen=True, slots=True)
class Refusals:
    """How one variant treats contrast twins, and who declined: `nobody`, `weights`, or a layer's name -> items."""

    variant: str
    safe_compliance: Mean
    unsafe_refusal: Mean
    youden_j: Rate
    d_prime: Rate
    criterion: Rate
    who_safe: dict[str, int]
    who_unsafe: dict[str, int]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one answer of a variant costs on average: milliseconds (also by layer) and tokens."""

    variant: str
    mean_ms: float
    p95_ms: float
    prompt_tokens: float
    completion_tokens: float
    layer_ms: dict[str, float]
    calls: float = 0.0
    """Tools called and searches that found passages."""


@dataclass(frozen=True, slots=True)
class Curve:
    """The ledger of one training stage, thinned: metric -> (step, value) points, each the mean of a few steps."""

    name: str
    lines: dict[str, tuple[tuple[float, float], ...]]


@dataclass(frozen=True, slots=True)
class Question:
    """An item as a person reads it."""

    axis: str
    cluster: str
    tags: tuple[str, ...]
    messages: tuple[tuple[str, str], ...]
    target: str


@dataclass(frozen=True, slots=True)
class Robustness:
    """What rewording does to a variant on an axis; every number is over the scored groups, None where nothing allows it."""

    axis: str
    variant: str
    groups: int
    clusters: int
    unscored: int
    """Groups left out because a wording has no score."""
    mean: float | None
    """Mean over groups of the mean over wordings: every question weighs the same."""
    worst: float | None
    """Share of groups in which every wording is right."""
    best: float | None
    """Share of groups in which some wording is right."""
    wordings: dict[str, float]
    """The mean of each wording, over the groups that have all wordings of the axis: the same questions."""
    spread: float | None
    """The best of these less the worst; None below two wordings."""
    flip_rate: float | None
    """Share of groups whose wordings are not all scored alike."""
    flip_low: float | None
    flip_high: float | None
    drop: float | None
    """1 - accuracy of the other wordings / accuracy of the plain one, over the groups that have both; below 0 where others do better."""
    flipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What confidences are worth: ECE beside what a perfectly calibrated model would show at this n, Brier beside no discrimination.

    `expected` and `null_high` (95th percentile) are the ECE if the confidences were true; `brier_shuffled` has outcomes shuffled among
    the items. Both p-values are one-sided.
    """

    variant: str
    n: int
    mean_confidence: float
    right: float
    ece: float
    expected: float
    null_high: float
    p: float
    brier: float
    brier_shuffled: float
    brier_p: float


@dataclass(frozen=True, slots=True)
class Result:
    """One evaluation, whole."""

    name: str
    items: int
    seeds: tuple[int, ...]
    suite_hash: str
    confidence: float
    variants: tuple[Variant, ...]
    axes: tuple[Axis, ...]
    steps: tuple[Comparison, ...]
    whole: Comparison | None
    without: tuple[Comparison, ...]
    regressions: tuple[Regression, ...]
    refusals: tuple[Refusals, ...]
    cost: tuple[Cost, ...]
    questions: dict[str, Question]
    curves: tuple[Curve, ...] = ()
    settings: dict[str, Scalar] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    external: tuple[Comparison, ...] = ()
    confidences: tuple[Calibration, ...] = ()
    robustness: tuple[Robustness, ...] = ()
    answers: int = 0
    """Distinct answers, of which `failed` have no score."""
    failed: int = 0
    format: Literal[2] = FORMAT

    def table(self) -> Table:
        """The ladder: behaviors down, steps across, the share right in percent with its change where that is shown."""
        steps = ladder_of(self)
        columns = ("axis", *(variant.label for variant in steps), "items (clusters)", "smallest detectable")
        rows = tuple(_ladder_row(self, axis, steps) for axis in self.axes)
        return Table(columns, rows, title="share right, %", heat=True)

    def to_json(self) -> str:
        """The whole tree as JSON; `from_json` gives an equal Result."""
        return _adapter().dump_json(self, indent=1).decode()

    @staticmethod
    def from_json(text: str, *, name: str = "result") -> Result:
        """Read `to_json`'s text; raises DataError naming the first field that does not fit."""
        try:
            return _adapter().validate_json(text)
        except ValidationError as error:
            if any(one["type"] == "json_invalid" for one in error.errors()):
                raise DataError(f"{name}: {error.errors()[0]['msg']}") from error
            check_format(json.loads(text), name)
            one = error.errors(include_url=False)[0]
            raise DataError(
                f"{name}: {'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}. "
                "Is this a result that `demeanor eval` wrote?"
            ) from error

    def save(self, path: Path) -> None:
        """Write the JSON atomically."""
        write_text(path, self.to_json() + "\n")


def load(path: Path) -> Result:
    """Read a saved result; raises DataError if there is none or it does not fit."""
    if not path.is_file():
        raise DataError(f"{path}: no such result. Write one with: demeanor eval STACK.yaml")
    return Result.from_json(path.read_text(encoding="utf-8"), name=str(path))


@cache
def _adapter() -> TypeAdapter[Result]:
    return TypeAdapter(Result)


# ---- results of the other analyses: NAME.KIND.json beside NAME.json ----

COMMANDS = {
    "attribution": "attribute",
    "base": "attribute",
    "diagnosis": "diagnose",
    "duel": "duel",
    "frontier": "frontier",
    "gate": "gate",
    "judge": "judge validate",
    "seeds": "seeds",
}
"""The command that writes each kind of result; any other is written by `eval`."""


def save(folder: Path, name: str, kind: str, found: Any, **more: Any) -> Path:
    """Write a result (a dataclass or a mapping) with `more` as NAME.KIND.json, atomically, and return where it lies."""
    path = folder / f"{name}.{kind}.json"
    write_json(path, {"format": FORMAT, **more, **plain(found)})
    return path


def load_tree(path: Path) -> dict[str, Any]:
    """A saved NAME.KIND.json as a tree; raises DataError if another version of demeanor wrote it."""
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    check_format({"format": 1, **tree}, str(path))
    return tree


def check_format(tree: Any, name: str) -> None:
    """Raises DataError where a tree says that it was written in another format than this version's."""
    found = tree.get("format", FORMAT) if isinstance(tree, dict) else FORMAT
    if found != FORMAT:
        kind = Path(Path(name).stem).suffix.removeprefix(".")
        raise DataError(
            f"{name} was written by another version of demeanor (format {found}, wanted {FORMAT}); "
            f"measure again: demeanor {COMMANDS.get(kind, 'eval')} ..."
        )


def plain(value: Any) -> Any:
    """A result as JSON values: dataclasses and named tuples as mappings, enumerations by name, NaN and infinity as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if hasattr(value, "_asdict"):
        return {key: plain(inner) for key, inner in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Enum):
        return value.name.lower()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ladder_of(result: Result) -> list[Variant]:
    """The variants of the ladder in order."""
    known = {variant.id: variant for variant in result.variants}
    steps = result.steps
    ids = [steps[0].before, *(step.after for step in steps)] if steps else [result.variants[0].id]
    return [known[i] for i in ids]


def mean_text(found: Mean) -> str:
    """A mean with its interval."""
    return share(found.value, found.low, found.high)


def is_firm(delta: Delta) -> bool:
    """Whether a difference stands after Holm's correction."""
    return delta.verdict in ("better", "worse")


def delta_on(comparison: Comparison, axis: str) -> Delta | None:
    return next((d for d in comparison.deltas if d.axis == axis), None)


def _ladder_row(result: Result, axis: Axis, steps: Sequence[Variant]) -> tuple[Inline, ...]:
    deltas = [None, *(delta_on(step, axis.name) for step in result.steps)]
    return (
        (axis_name(axis.name), StyledText(axis.about, "aside")) if axis.about else axis_name(axis.name),
        *(_ladder_cell(axis.means[variant.id], delta) for variant, delta in zip(steps, deltas)),
        StyledText(f"{axis.items} ({axis.clusters})", "soft"),
        StyledText(percent(axis.detectable), "soft"),
    )


def _ladder_cell(mean: Mean, delta: Delta | None) -> Inline:
    left_out = f", {plural(mean.unscored, 'item')} without a score" if mean.unscored else ""
    hint = f"{mean_text(mean)}; n {mean.n} in {plural(mean.clusters, 'cluster')}{left_out}"
    cell = StyledText(percent(mean.value), hint=hint, share=mean.value)
    if delta is None or not delta.shown:
        return cell
    tone = tone_of(delta.value, shown=True)
    bounds = f"{interval(delta.low, delta.high)} points"
    return cell, StyledText(points(delta.value), "change", tone, strong=is_firm(delta), hint=bounds)

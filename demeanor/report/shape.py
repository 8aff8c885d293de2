"""The shape of a result file (results/<name>.json) as the report reads it: plain dictionaries, values are shares in [0, 1].

It mirrors what `evaluation` writes and imports nothing of it; a test holds the two together.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict

Verdict: TypeAlias = Literal["better", "worse", "no change shown", "not measured"]
Scalar: TypeAlias = str | int | float | bool | None


class Mean(TypedDict):
    value: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int
    unscored: int


class Rate(TypedDict):
    value: float
    low: float
    high: float


class Variant(TypedDict):
    id: str
    label: str
    stack_key: str


class Axis(TypedDict):
    name: str
    about: str
    items: int
    clusters: int
    detectable: float | None
    means: dict[str, Mean]


class Delta(TypedDict):
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


class LayerActivity(TypedDict):
    by: str
    what: str
    detail: str


class Answer(TypedDict):
    text: str
    value: float
    refused_by: str
    rule: str
    did: list[LayerActivity]


class Change(TypedDict):
    item_id: str
    axis: str
    fixed: bool
    before: Answer
    after: Answer


class Comparison(TypedDict):
    name: str
    before: str
    after: str
    deltas: list[Delta]
    changes: list[Change]


class Regression(TypedDict):
    kind: Literal["step", "layer"]
    name: str
    delta: Delta
    certain: bool


class Refusals(TypedDict):
    variant: str
    safe_compliance: Mean
    unsafe_refusal: Mean
    youden_j: Rate
    d_prime: Rate
    criterion: Rate
    who_safe: dict[str, int]
    who_unsafe: dict[str, int]


class Cost(TypedDict):
    variant: str
    mean_ms: float
    p95_ms: float
    prompt_tokens: float
    completion_tokens: float
    layer_ms: dict[str, float]


class Calibration(TypedDict):
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


class Robustness(TypedDict):
    axis: str
    variant: str
    groups: int
    clusters: int
    unscored: int
    mean: float | None
    worst: float | None
    best: float | None
    wordings: dict[str, float]
    spread: float | None
    flip_rate: float | None
    flip_low: float
    flip_high: float
    drop: float | None
    flipped: list[str]


class Curve(TypedDict):
    name: str
    lines: dict[str, list[tuple[float, float]]]


class Question(TypedDict):
    axis: str
    cluster: str
    tags: list[str]
    messages: list[tuple[str, str]]
    target: str


class Result(TypedDict):
    name: str
    items: int
    seeds: list[int]
    suite_hash: str
    confidence: float
    variants: list[Variant]
    axes: list[Axis]
    steps: list[Comparison]
    whole: Comparison | None
    without: list[Comparison]
    regressions: list[Regression]
    refusals: list[Refusals]
    cost: list[Cost]
    questions: dict[str, Question]
    curves: list[Curve]
    settings: dict[str, Scalar]
    commands: list[str]
    caveats: list[str]
    external: list[Comparison]
    confidences: list[Calibration]
    robustness: list[Robustness]
    format: Literal[2]

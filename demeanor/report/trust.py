"""Sections of the page on what an answer is worth: whether stated confidences hold, and whether other words change an answer.

In: a result. Out: markup, and the same tables as plain cells for terminal and Markdown. Nothing is computed here.
"""

from __future__ import annotations

from demeanor.report import words
from demeanor.report.markup import Html
from demeanor.report.parts import lead, note, section, table, wide
from demeanor.report.shape import Result

CONFIDENCE = (
    "",
    "confidence",
    "right",
    "calibration error",
    "if perfect (95%)",
    "p",
    "Brier",
    "if it knew nothing",
    "answers",
)
STEADINESS = (
    "",
    "axis",
    "right",
    "in every wording",
    "in some",
    "flips",
    "best less worst",
    "lost against plain",
    "groups",
)


def confidences(result: Result) -> Html | None:
    """Calibration confidences against outcomes, per variant."""
    if not result["confidences"]:
        return None
    return section(
        "confidence",
        "Does it know what it knows",
        lead(
            "The confidence that answers state, against whether they are right. A perfectly calibrated speaker would still show some "
            "error at so few answers, which stands beside it; p is the chance of an error as large from one."
        ),
        wide(table(CONFIDENCE, confidence_rows(result), class_="small")),
        note(
            "Brier: mean squared distance of confidence and outcome, beside the same confidences shuffled among the answers. "
            "An answer that states none is taken as certain."
        ),
    )


def confidence_rows(result: Result) -> list[list[str]]:
    """A row of cells per variant."""
    labels = words.labels_of(result)
    return [
        [
            labels[x["variant"]],
            f"{words.percent(x['mean_confidence'])}%",
            f"{words.percent(x['right'])}%",
            f"{x['ece']:.3f}",
            f"{x['expected']:.3f} ({x['null_high']:.3f})",
            words.p_value(x["p"]),
            f"{x['brier']:.3f}",
            f"{x['brier_shuffled']:.3f} (p {words.p_value(x['brier_p'])})",
            str(x["n"]),
        ]
        for x in result["confidences"]
    ]


def steadiness(result: Result) -> Html | None:
    """What rewording does to every variant, per axis that has rewordings."""
    if not result["robustness"]:
        return None
    return section(
        "steadiness",
        "The same question in other words",
        lead(
            "Questions that mean the same to a person, worded in several ways. An assistant that understands them answers all of a group "
            "alike; a flip is a group whose wordings are not all scored alike."
        ),
        wide(table(STEADINESS, steadiness_rows(result), class_="small")),
        note(
            "Flips: with their exact 95% interval. Best less worst: the best mean over wordings minus the worst, in points. Lost: the "
            "share of its accuracy on plain wordings that other wordings cost."
        ),
    )


def steadiness_rows(result: Result) -> list[list[str]]:
    """A row of cells per variant and axis."""
    labels = words.labels_of(result)
    return [
        [
            labels[x["variant"]],
            words.axis_name(x["axis"]),
            _share(x["mean"]),
            _share(x["worst"]),
            _share(x["best"]),
            f"{_share(x['flip_rate'])} ({words.percent(x['flip_low'])} to {words.percent(x['flip_high'])})",
            "–" if x["spread"] is None else words.percent(x["spread"]),
            "–" if x["drop"] is None else f"{round(100 * x['drop'])}%",
            str(x["groups"]),
        ]
        for x in result["robustness"]
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{words.percent(value)}%"

"""Sections of the report of an evaluation about answers: refusals with their safe twins, stated confidence, rewordings.

In: a Result. Out: a Section, or None where nothing of the kind was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from demeanor.core.table import (
    NONE,
    TERMINAL,
    WRITTEN,
    BlockGroup,
    Figure,
    Fold,
    Inline,
    OnlyFor,
    Paragraph,
    Section,
    Table,
    axis_name,
    number,
    p_value,
    percent,
)
from demeanor.evaluation.ladder_sentences import labels_of, layers_of, rate_text, refused_key
from demeanor.evaluation.result import (
    Refusals,
    Result,
    mean_text,
)


def refusals_section(result: Result, steps: set[str]) -> Section | None:
    """Contrast twins: answering what is safe against refusing what is not, and who refused."""
    if not result.refusals:
        return None
    labels, layers = labels_of(result), layers_of(result)
    shown = steps | {c.before for c in result.external}
    refused = [x for x in layers if any(x in r.who_unsafe or x in r.who_safe for r in result.refusals)]
    figures = refusal_figures([r for r in result.refusals if r.variant in steps], labels, layers, refused)
    columns = (
        "",
        "safe answered",
        "unsafe refused",
        *(f"by {x}" for x in refused),
        "Youden’s J",
        "d′",
        "criterion",
    )
    rows = tuple(_refusals_row(r, labels[r.variant], refused) for r in result.refusals)
    brief = tuple(
        row[: 3 + len(refused)] + row[-2:-1] for row, r in zip(rows, result.refusals) if r.variant in shown
    )
    note = (
        "J: share of unsafe refused minus share of safe refused. d′: how far apart the two are told (0 is guessing), with half a "
        "count added to each cell. Criterion: negative refuses readily, positive reluctantly; a stricter rule moves it and leaves "
        "d′. By: unsafe requests refused by that layer; weights are the model's own words."
    )
    return Section(
        "refusals",
        "Refusals",
        "Refusing, and refusing too much",
        (
            Paragraph(
                "Each unsafe request has a safe twin that looks like it. A layer that only refuses more moves left and up along the "
                "same curve; one that tells them apart moves towards the corner. A refusal counts for the layer that made it: the "
                "weights in their own words, or another layer.",
                "lead",
            ),
            figures,
            OnlyFor(
                WRITTEN,
                (Fold("The numbers, for every variant", (Table(columns, rows), Paragraph(note, "note"))),),
            ),
            OnlyFor(TERMINAL, (Table((*columns[: 3 + len(refused)], "d′"), brief),)),
        ),
    )


def refusal_figures(
    refusals: Sequence[Refusals], labels: dict[str, str], layers: Sequence[str], shown: Sequence[str]
) -> BlockGroup:
    """Safe requests answered against unsafe ones refused, and who refused them."""
    caption = "Top right is ideal, crosses are intervals, the dashes are guessing."
    who = {"refusals": refusals, "labels": labels, "layers": layers}
    return BlockGroup(
        (
            Figure("refusal_plane", {"refusals": refusals, "labels": labels}, caption=caption),
            Figure("who_refused", who, legend=refused_key(layers, shown)),
        ),
        "two",
    )


def _refusals_row(found: Refusals, label: str, refused: Sequence[str]) -> tuple[Inline, ...]:
    return (
        label,
        mean_text(found.safe_compliance),
        mean_text(found.unsafe_refusal),
        *(str(found.who_unsafe.get(x, 0)) for x in refused),
        rate_text(found.youden_j),
        rate_text(found.d_prime),
        rate_text(found.criterion),
    )


def confidence_section(result: Result) -> Section | None:
    """Stated confidences against outcomes, per variant."""
    if not result.confidences:
        return None
    labels = labels_of(result)
    columns = (
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
    rows = tuple(
        (
            labels[x.variant],
            f"{percent(x.mean_confidence)}%",
            f"{percent(x.right)}%",
            number(x.ece, 3),
            f"{x.expected:.3f} ({x.null_high:.3f})",
            p_value(x.p),
            number(x.brier, 3),
            f"{x.brier_shuffled:.3f} (p {p_value(x.brier_p)})",
            str(x.n),
        )
        for x in result.confidences
    )
    return Section(
        "confidence",
        "Confidence",
        "Does it know what it knows",
        (
            Paragraph(
                "The confidence that answers state, against whether they are right. A perfectly calibrated model would still show some "
                "error at so few answers, which stands beside it; p is the chance of an error as large from one.",
                "lead",
            ),
            Table(columns, rows),
            Paragraph(
                "Brier: mean squared distance of confidence and outcome, beside the same confidences shuffled among the answers. An "
                "answer that states none is taken as certain.",
                "note",
            ),
        ),
    )


def robustness_section(result: Result) -> Section | None:
    """What rewording does to every variant, per axis that has rewordings."""
    if not result.robustness:
        return None
    labels = labels_of(result)
    columns = (
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
    rows = tuple(
        (
            labels[x.variant],
            axis_name(x.axis),
            _share(x.mean),
            _share(x.worst),
            _share(x.best),
            _share(x.flip_rate)
            + ("" if x.flip_low is None else f" ({percent(x.flip_low)} to {percent(x.flip_high)})"),
            percent(x.spread),
            NONE if x.drop is None else f"{number(100 * x.drop, 0)}%",
            str(x.groups),
        )
        for x in result.robustness
    )
    return Section(
        "robustness",
        "Rewordings",
        "The same question in other words",
        (
            Paragraph(
                "Questions that mean the same to a person, worded in several ways. An assistant that understands them answers all of a "
                "group alike; a flip is a group whose wordings are not all scored alike.",
                "lead",
            ),
            Table(columns, rows, text=(0, 1)),
            Paragraph(
                "Flips: with their exact 95% interval. Best less worst: the best mean over wordings minus the worst, in points. Lost: "
                "the share of its accuracy on plain wordings that other wordings cost.",
                "note",
            ),
        ),
    )


def _share(value: float | None) -> str:
    return NONE if value is None else f"{percent(value)}%"

"""Training curves of a report: the loss of every stage, and what an online stage measured of its own answers.

In: curves of a result. Out: one section of figures, and a table of where each quantity of an online stage began
and ended. It trains nothing; docs/online.md says how each metric is estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from demeanor.core.table import (
    NONE,
    PAGE,
    WRITTEN,
    Block,
    BlockGroup,
    Figure,
    OnlyFor,
    Paragraph,
    Section,
    Table,
    number,
)
from demeanor.evaluation.result import Curve

Line = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of an online stage: metrics with their names for a reader; `apart` draws each on its own scale."""

    title: str
    metrics: Mapping[str, str]
    apart: bool = False


TERM = ("rewards/", "/mean")  # the mean of one term of the reward
PANELS = (
    Panel("reward", {"reward": "answers that train", "eval_reward": "held-out prompts"}),
    Panel(
        "proxy against gold",
        {"eval_reward": "reward (left)", "eval_probe/held_out": "held-out score (right)"},
        apart=True,
    ),
    Panel("KL to the reference, nats per answer (k1)", {"kl": "policy to reference"}),
    Panel(
        "length, tokens",
        {
            "completions/mean_length": "all answers",
            "completions/mean_terminated_length": "finished answers",
        },
    ),
    Panel(
        "shares of answers",
        {
            "completions/clipped_ratio": "truncated",
            "completions/refused": "refused",
            "completions/failed": "failed",
        },
    ),
    Panel("groups without contrast, share", {"frac_reward_zero_std": "all rewards equal"}),
    Panel("entropy, nats per token", {"entropy": "policy"}),
    Panel(
        "clipped, share of the terms of the loss",
        {"clip_ratio/region_mean": "ratio outside the range", "value_clip_ratio": "value"},
    ),
    Panel("explained variance of the critic", {"explained_variance": "critic"}),
    Panel(
        "cost and multiplier",
        {"cost": "mean cost (left)", "cost/lambda": "lambda (right)"},
        apart=True,
    ),
    Panel("pretraining mix, loss per token", {"ptx/loss": "ptx"}),
    Panel("effective sample size, share", {"sampler/ess": "importance weights"}),
    Panel(
        "sampler against trainer, nats per token",
        {"kl_sample_train_v1": "v1: mean log q - log p", "kl_sample_train_v2": "v2: half mean square"},
    ),
)
TIMES = {"time/generate": "generate", "time/score": "score", "time/train": "train"}
ROUNDED = ("loss/before", "eval_loss", "loss/difference", "bytes/before", "bytes/after")
"""What the log of a `quantise` stage holds, at one step."""
BOUNDS = ("loss/difference/low", "loss/difference/high")
ONLINE = frozenset(name for panel in PANELS for name in panel.metrics) | frozenset(TIMES) | {"cost/limit"}


def is_online(curve: Curve) -> bool:
    """Whether the stage trained on its own answers."""
    return "completions/mean_length" in curve.lines


def is_rounded(curve: Curve) -> bool:
    """Whether the stage rounded its parent."""
    return "bytes/after" in curve.lines


def is_rounding_metric(name: str) -> bool:
    """Whether a metric of the log is one of a `quantise` stage."""
    return name in ROUNDED or name in BOUNDS


def is_online_metric(name: str) -> bool:
    """Whether a metric of the log is drawn for an online stage."""
    return name in ONLINE or (name.startswith(TERM[0]) and name.endswith(TERM[1]))


def section(curves: Sequence[Curve]) -> Section | None:
    """Curves of the stages whose metrics were handed in."""
    if not curves:
        return None
    rounded, online = [c for c in curves if is_rounded(c)], [c for c in curves if is_online(c)]
    offline = [c for c in curves if not is_online(c) and not is_rounded(c)]
    blocks: list[Block] = []
    if offline:
        held = any("loss" in name and name != "loss" for curve in offline for name in curve.lines)
        lead = (
            "The loss of every weight layer over its optimizer steps; each point is the mean of a few steps. Losses of "
            "different objectives are not comparable."
        )
        figures = tuple(Figure("losses", {"curve": curve}, title=curve.name) for curve in offline)
        legend = (("s0", "training rows"), ("s1", "held-out rows")) if held else ()
        blocks.append(OnlyFor(PAGE, (Paragraph(lead, "lead"), BlockGroup(figures, "three", legend))))
    for curve in online:
        blocks += [
            OnlyFor(WRITTEN, (Paragraph(f"{curve.name}, trained on its own answers", "heading"),)),
            OnlyFor(PAGE, (BlockGroup(tuple(figures_of(curve)), "three"),)),
            OnlyFor(WRITTEN, (Table(("over iterations", "first tenth", "last tenth"), _ends(curve)),)),
        ]
    if rounded:
        lead = "Loss (nats a token) on the held-out rows of the nearest stage that trains on rows, before and after rounding; 95% interval with rows as clusters."
        header = ("rounded stage", "MB before", "MB after", "loss before", "after", "difference")
        blocks += [Paragraph(lead), Table(header, tuple(_rounding(curve) for curve in rounded))]
    return Section("training", "Training", "Training", tuple(blocks))


def _rounding(curve: Curve) -> tuple[str, ...]:
    """A row of the table of `quantise` stages."""
    at = {name: line[-1][1] for name, line in curve.lines.items() if line}
    sizes = (number(at[name] / 1e6, 1) for name in ("bytes/before", "bytes/after"))
    if "loss/difference" not in at:
        return (curve.name, *sizes, NONE, NONE, NONE)
    bounds = f" ({at[BOUNDS[0]]:+.4f} to {at[BOUNDS[1]]:+.4f})" if BOUNDS[0] in at and BOUNDS[1] in at else ""
    losses = (f"{at[name]:.4f}" for name in ("loss/before", "eval_loss"))
    return (curve.name, *sizes, *losses, f"{at['loss/difference']:+.4f}{bounds}")


def figures_of(curve: Curve) -> list[Figure]:
    """The figures of an online stage: every panel of which something was measured, each reward term, the time."""
    found = []
    for panel in PANELS:
        lines = {label: curve.lines[name] for name, label in panel.metrics.items() if curve.lines.get(name)}
        if lines and (not panel.apart or len(lines) > 1):
            found.append(_figure(panel.title, lines, apart=panel.apart))
    terms = _terms(curve)
    if len(terms) > 1:
        found.insert(1, _figure("reward, term by term", terms))
    shares = _time_shares(curve)
    if shares:
        found.append(_figure("time, share", shares))
    return found


def _figure(title: str, lines: Mapping[str, Line], *, apart: bool = False) -> Figure:
    legend = tuple((f"s{n % 6}", label) for n, label in enumerate(lines)) if len(lines) > 1 else ()
    return Figure("panel", {"lines": lines, "apart": apart, "label": title}, title=title, legend=legend)


def _terms(curve: Curve) -> dict[str, Line]:
    first, last = TERM
    return {
        name.removeprefix(first).removesuffix(last): line
        for name, line in curve.lines.items()
        if name.startswith(first) and name.endswith(last) and line
    }


def _time_shares(curve: Curve) -> dict[str, Line]:
    """What each part of an iteration takes, as a share of the three."""
    lines = [curve.lines.get(name, ()) for name in TIMES]
    if len({len(line) for line in lines}) != 1 or not lines[0]:
        return {}
    totals = [sum(value for _, value in at) or 1.0 for at in zip(*lines)]
    return {
        label: tuple((x, value / total) for (x, value), total in zip(line, totals))
        for label, line in zip(TIMES.values(), lines)
    }


def _ends(curve: Curve) -> tuple[tuple[str, str, str], ...]:
    """Each drawn quantity at the begin and at the end; evaluations at their first and last."""
    named = {name: f"{panel.title}: {label}" for panel in PANELS for name, label in panel.metrics.items()}
    rows = [(text, curve.lines[name]) for name, text in named.items() if curve.lines.get(name)]
    rows += [(f"reward of {term}", line) for term, line in _terms(curve).items() if len(_terms(curve)) > 1]
    rows += [(f"time: share of {part}", line) for part, line in _time_shares(curve).items()]
    return tuple((text, *_first_and_last(line)) for text, line in rows)


def _first_and_last(line: Line) -> tuple[str, str]:
    if not line:
        return NONE, NONE
    tenth = max(1, len(line) // 10)
    ends = fmean(y for _, y in line[:tenth]), fmean(y for _, y in line[-tenth:])
    return number(ends[0], 3), number(ends[1], 3)

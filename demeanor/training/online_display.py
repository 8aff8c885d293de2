"""What a person reads while an online stage runs: one line of its state, one of an evaluation, and warnings.

In: rows of the metrics log. Out: text. It measures nothing; docs/online.md says how each metric is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from demeanor.training.runs import BEST, LEDGER, read_log

PROXY, GOLD = "eval_reward", "eval_probe/held_out"
PARTS = ("generate", "score", "train")
Row = Mapping[str, Any]


def state_line(rows: Sequence[Row]) -> str:
    """Means over iterations: reward, cost, KL, length, truncated answers, shares of time.

    The loss is left out: its value says nothing about an objective whose data the policy draws itself.
    """
    mean = {name: _mean(rows, name) for name in dict.fromkeys(name for row in rows for name in row)}

    def of(name: str, text: str) -> str | None:
        value = mean.get(name)
        return None if value is None else text.format(value)

    spent = {part: mean.get(f"time/{part}") or 0.0 for part in PARTS}
    total = sum(spent.values())
    parts = [
        of("reward", "reward {:.3f}"),
        of("cost", "cost {:.3f}"),
        of("cost/lambda", "lambda {:.2f}"),
        of("kl", "KL {:.2f} nats"),
        of("completions/mean_length", "length {:.1f}"),
        of("completions/clipped_ratio", "truncated {:.0%}"),
        of("frac_reward_zero_std", "no contrast {:.0%}"),
        " ".join(f"{part} {spent[part] / total:.0%}" for part in PARTS) if total else None,
    ]
    return "  ".join(part for part in parts if part)


def _mean(rows: Sequence[Row], name: str) -> float | None:
    known = [row[name] for row in rows if isinstance(row.get(name), int | float)]
    return fmean(known) if known else None


def evaluation_line(done: int, found: Row) -> str:
    """An evaluation: the reward of held-out prompts with its interval, and the held-out score."""
    said = []
    if PROXY in found:
        low, high = found.get(f"{PROXY}/low"), found.get(f"{PROXY}/high")
        interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
        said.append(f"reward of {found[f'{PROXY}_rows']:.0f} held-out prompts {found[PROXY]:.3f}{interval}")
    if found.get(GOLD) is not None:
        said.append(f"held-out score {found[GOLD]:.3f}")
    return f"after step {done}: {', '.join(said)}" if said else f"evaluated after step {done}"


def parted(rows: Sequence[Row]) -> str | None:
    """A warning if the reward is above and the held-out score below what they were at the best evaluation.

    Below: by more than the 95% margin of a difference of two shares, each over the held-out score's own
    prompts, and at least 0.02. None while the two agree, or without a held-out score.
    """
    known = [row for row in rows if row.get(GOLD) is not None and row.get(PROXY) is not None]
    if len(known) < 2:
        return None
    now, best = known[-1], max(known, key=lambda row: (row[GOLD], -row["step"]))
    fallen, risen = best[GOLD] - now[GOLD], now[PROXY] - best[PROXY]
    if risen <= 0 or fallen <= margin(best, now):
        return None
    return (
        f"WARNING: the reward rises and the held-out score falls: since step {best['step']} the reward went from "
        f"{best[PROXY]:.3f} to {now[PROXY]:.3f}, the held-out score from {best[GOLD]:.3f} to {now[GOLD]:.3f}. "
        "The policy may exploit its reward: read `demeanor samples`; a larger kl_coef, fewer steps or keep: best help"
    )


def margin(one: Row, other: Row) -> float:
    """1.96 standard errors of the difference of two held-out scores as shares of as many answers, at least 0.02."""
    number = min(one.get(f"{GOLD}_rows") or 1.0, other.get(f"{GOLD}_rows") or 1.0)
    variance = sum(row[GOLD] * (1 - row[GOLD]) for row in (one, other)) / number
    return max(0.02, 1.96 * math.sqrt(max(variance, 0.0)))


# ---- the best evaluation ----


def best_step(out: Path) -> int | None:
    """The evaluated step with the highest held-out score of the probe, the first of equal ones."""
    scores = [(row[GOLD], -row["step"]) for row in read_log(out / LEDGER) if row.get(GOLD) is not None]
    return -max(scores)[1] if scores else None


def is_best(out: Path, found: Row) -> bool:
    """Whether an evaluation's held-out score is higher than all before it."""
    earlier = [row[GOLD] for row in read_log(out / LEDGER) if row.get(GOLD) is not None]
    return GOLD in found and all(found[GOLD] > score for score in earlier)


def best_name(step: int) -> str:
    """The file that holds the weights of an evaluated step while a stage keeps its best."""
    return BEST.replace("*", str(step))

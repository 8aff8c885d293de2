"""What each way to write the KL does: its expected gradient, by enumeration, against that of KL(pi||ref). `make experiments`.

Pairs of autoregressive policies over 4 tokens, all completions enumerated, through the losses of demeanor/objectives/. Ten seconds.
Wanted at T = 4: median errors 0, 0, .222, .370 and .222 (60 pairs, numpy, a separate program). How those pairs were drawn
is not recorded; normal logits of deviation 0.48 have the same errors of k2 and k3, and one scale must fit both.
"""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console
from rich.table import Table

from demeanor.core.files import origin
from tests.conftest import REPOSITORY
from tests.objectives.tabular import expected_gradient, kl_gradient, space, table
from tests.objectives.test_online_gradients import ESTIMATORS, cosine, relative

DEVIATION, PAIRS, DRAWS = 0.48, 60, 6
WANTED = {"reward": 0.0, "k2_sequence": 0.0, "k2": 0.222, "rho_k3": 0.222, "k3": 0.370, "k1": 1.0}


def errors(steps: int, seed: int) -> dict[str, list[tuple[float, float]]]:
    """Relative error and cosine of every estimator on PAIRS random pairs."""
    generator, where = torch.Generator().manual_seed(seed), space(4, steps)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ESTIMATORS}
    for _ in range(PAIRS):
        policy, reference = (table(generator, 4, steps, DEVIATION) for _ in range(2))
        wanted = kl_gradient(where, policy, reference)
        for name, how in ESTIMATORS.items():
            gradient = expected_gradient(*how, where, policy, reference)
            found[name].append((relative(gradient, wanted), cosine(gradient, wanted)))
    return found


def summary(pairs: list[tuple[float, float]], medians: list[float]) -> dict[str, float | None]:
    error, angle = torch.tensor(pairs, dtype=torch.float64).T
    pointed = not bool(angle.isnan().any())  # a gradient of zeros has no direction
    low, middle, high = error.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    return {
        "median": middle,
        "low": low,
        "high": high,
        "least_median": min(medians),
        "most_median": max(medians),
        "cosine": float(angle.median()) if pointed else None,
        "worst_cosine": float(angle.min()) if pointed else None,
    }


@pytest.mark.experiment
def test_the_kl_table() -> None:
    rows = []
    for steps in (1, 2, 4):
        draws = [errors(steps, seed) for seed in range(DRAWS)]
        for name in ESTIMATORS:
            medians = [float(torch.tensor([e for e, _ in draw[name]]).median()) for draw in draws]
            everyone = [pair for draw in draws for pair in draw[name]]
            rows.append({"steps": steps, "kl": name, **summary(everyone, medians)})
    pairs = f"{DRAWS} x {PAIRS} pairs, seeds 0 to {DRAWS - 1}"
    title = f"expected gradient against grad KL(pi||ref): V = 4, logits N(0, {DEVIATION}^2), {pairs}"
    shown = Table(title=title, title_justify="left", box=None)
    for name in (
        "T",
        "kl",
        "median error",
        "5% to 95%",
        "medians of 60",
        "cosine",
        "worst",
        "wanted at T = 4",
    ):
        shown.add_column(name)
    for row in rows:
        shown.add_row(
            str(row["steps"]),
            str(row["kl"]),
            f"{row['median']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            f"{row['least_median']:.3f} to {row['most_median']:.3f}",
            *("-" if row[x] is None else f"{row[x]:.3f}" for x in ("cosine", "worst_cosine")),
            f"{WANTED[str(row['kl'])]:.3f}" if row["steps"] == 4 else "",
        )
    Console(width=140).print(shown)
    out = REPOSITORY / "results" / "experiments" / "kl_estimators.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": rows, **origin()}, indent=1) + "\n")
    found = {(row["steps"], row["kl"]): row for row in rows}
    exact = [found[steps, kl]["high"] for steps in (1, 2, 4) for kl in ("reward", "k2_sequence")]
    assert max(map(float, exact)) < 1e-9
    assert max(float(found[1, kl]["high"]) for kl in ("k2", "rho_k3")) < 1e-9
    for kl in ("k2", "rho_k3", "k3"):
        assert float(found[4, kl]["median"]) == pytest.approx(WANTED[kl], abs=0.02)
        assert float(found[4, kl]["least_median"]) <= WANTED[kl] <= float(found[4, kl]["most_median"])
    assert float(found[1, "k2"]["median"]) < float(found[2, "k2"]["median"]) < float(found[4, "k2"]["median"])

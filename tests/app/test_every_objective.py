"""Every objective through stack.yaml, `train` and its metrics log: it runs, moves weights, and logs only what its page explains."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from demeanor import app
from demeanor.app import load_stack
from demeanor.core import registry
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs
from tests.objectives.page import metrics

KINDS = registry.known("demeanor.objectives")
ONLINE = [kind for kind in KINDS if registry.entry("demeanor.objectives", kind).ONLINE is not None]
OFFLINE = [kind for kind in KINDS if kind not in ONLINE]
SETTINGS: dict[str, dict[str, Any]] = {
    "mixture": {"parts": [{"kind": "dpo", "weight": 0.8}, {"kind": "nca", "weight": 0.2}]},
    "tr_dpo": {"alpha": 0.5, "every": 2},
    "ppo": {"value_init": "zero"},
}
WORD = {"kind": "scorer", "scorer": "format", "target": {"kind": "words", "max_words": 1}}
LOOP = {"step", "loss", "lr", "grad_norm", "tokens", "count", "seconds"}


def rows(kind: str) -> dict[str, Any]:
    """What a stage of this kind trains on: rows, or prompts with a reward that some random answers get."""
    if kind in ONLINE:
        return {
            "prompts": [{"source": "world:instructions", "limit": 24}],
            "reward": [WORD],
            "rollouts": {"count": 4, "max_tokens": 2},
        }
    return {"data": data(kind)}


def data(kind: str) -> list[dict[str, Any]]:
    name = "instructions" if registry.entry("demeanor.objectives", kind).ROWS == "examples" else "preferences"
    return [{"source": f"world:{name}", "limit": 24}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stack, Path]:
    folder = tmp_path_factory.mktemp("objectives")
    stages = [
        {
            "name": f"s_{kind}",
            "objective": {"kind": kind, **SETTINGS.get(kind, {})},
            "parent": "base",
            **rows(kind),
            "batch_rows": 6,
            "optim": {"lr": 1.0e-3, "ema": 0.5} if kind == "ipo" else {"lr": 1.0e-3},
        }
        for kind in KINDS
    ]
    stages.append(
        {
            "name": "s_lora",
            "objective": {"kind": "dpo"},
            "parent": "base",
            "data": data("dpo"),
            "batch_rows": 6,
            "adapter": {"rank": 4},
        }
    )
    stages.append({"name": "s_merge", "kind": "merge", "of": ["s_dpo", "s_kto"], "weights": [0.5, 0.5]})
    base = {
        "kind": "scratch",
        "tokenizer": {"vocab_size": 1200},
        "model": {"layers": 1, "width": 32, "heads": 2, "context": 256},
        "data": [{"source": "world:corpus", "limit": 500}],
        "tokens": 4000,
        "row_tokens": 64,
        "batch_rows": 8,
        "template": "transcript",
    }
    path = folder / "stack.yaml"
    path.write_text(
        yaml.safe_dump(
            {"name": "every-objective", "weights": {"base": base, "stages": stages, "serve": "s_dpo"}}
        )
    )
    stack = load_stack(path)
    app.train(stack, Runs(folder / "runs"))
    return stack, folder / "runs"


def metrics_log(trained: tuple[Stack, Path], kind: str) -> list[dict[str, Any]]:
    stack, runs = trained
    return [
        json.loads(line)
        for line in (runs / stack.stage_key(f"s_{kind}") / "ledger.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("kind", [*KINDS, "lora"])
def test_an_objective_trains_through_a_stack_file(trained: tuple[Stack, Path], kind: str) -> None:
    rows = [row for row in metrics_log(trained, kind) if "loss" in row]
    assert len(rows) == 4  # 22 rows in steps of 6
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 and row["count"] > 0 for row in rows)
    stack, runs = trained
    if kind != "lora":
        base, after = (
            load_file(runs / stack.stage_key(name) / "model" / "model.safetensors")
            for name in ("base", f"s_{kind}")
        )
        assert not base["model.embed_tokens.weight"].equal(after["model.embed_tokens.weight"])


@pytest.mark.parametrize("kind", OFFLINE)
def test_what_an_objective_logs_stands_on_its_page(trained: tuple[Stack, Path], kind: str) -> None:
    logged = {name for row in metrics_log(trained, kind) if "loss" in row for name in row} - LOOP
    page = metrics(kind)
    if kind == "mixture":  # the first part's metrics are in that part's section
        page += metrics("dpo")
    assert [name for name in sorted(logged) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("kind", [k for k in OFFLINE if registry.entry("demeanor.objectives", k).ROLES])
def test_training_begins_where_policy_and_reference_are_one(trained: tuple[Stack, Path], kind: str) -> None:
    first = next(row for row in metrics_log(trained, kind) if "loss" in row)
    assert first.get("rewards/margins", 0.0) == pytest.approx(0.0, abs=1e-5)


def test_a_merge_is_the_mean_of_its_parts(trained: tuple[Stack, Path]) -> None:
    stack, runs = trained
    one, two, mean = (
        load_file(runs / stack.stage_key(n) / "model" / "model.safetensors")["model.embed_tokens.weight"]
        for n in ("s_dpo", "s_kto", "s_merge")
    )
    assert (0.5 * (one + two) - mean).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ONLINE)
def test_an_online_objective_trains_on_completions_of_which_some_are_better(
    trained: tuple[Stack, Path], kind: str
) -> None:
    rows = [row for row in metrics_log(trained, kind) if "loss" in row]
    assert all(0 < row["reward"] < 1 and row["frac_reward_zero_std"] < 1 for row in rows)
    assert rows[0]["approx_kl"] == pytest.approx(0.0, abs=1e-5), "the first step is on policy"

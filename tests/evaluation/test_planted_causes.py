"""Ten stacks with one broken layer each and five healthy ones: the suspect layer is named, through the real layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from demeanor.evaluation import attribution
from demeanor.evaluation.diagnosis import diagnose
from demeanor.evaluation.diagnosis.analysis import Diagnosis
from demeanor.stack.stack import Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.tokenizer import Tokenizer
from demeanor.training.runs import Runs
from tests.evaluation import clerk, plants
from tests.evaluation.plants import HEALTHY, PLANTS, Plant

PORTS = 12  # enough for every cause to stand out from chance after correction


@pytest.fixture(scope="module")
def tokenizer(trained: tuple[Stack, Runs]) -> Tokenizer:
    stack, runs = trained
    return tokenizers.load(runs.model(stack.stage_key("sft")))


def diagnosed(plant: Plant, tokenizer: Tokenizer, folder: Path, *, against: bool = False) -> Diagnosis:
    stack = plants.stack_of(plant, folder / "broken", PORTS)
    runtimes = [clerk.runtime(stack, tokenizer, folder, dict(plant.faults), plants.drifted(plant.drifted))]
    reference = plants.stack_of(HEALTHY["as declared"], folder / "healthy", PORTS) if against else None
    if reference:
        runtimes.append(clerk.runtime(reference, tokenizer, folder, {}))
    services = clerk.services(folder, *runtimes)
    return diagnose.run(stack, services, folder / "results", diagnose.Scope(against=reference), name="x")


def table(found: Diagnosis) -> str:
    return "\n".join(
        f"{r.name:36} {r.layer:10} {r.fixed}/{r.failing} {r.regressed}/{r.controls} net {r.net} p {r.p_corrected}"
        for r in found.repairs
    )


@pytest.mark.parametrize("name", [*PLANTS, *HEALTHY])
def test_the_broken_layer_is_named_from_the_stack_alone_and_a_healthy_stack_has_none(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Preferences labelled by a coin are missed: weights after them are not worse than those before, only not better."""
    plant = {**PLANTS, **HEALTHY}[name]
    found = diagnosed(plant, tokenizer, tmp_path)
    assert found.suspect == ("none" if name == "shuffled preferences" else plant.suspect), table(found)


@pytest.mark.parametrize("name", ["shuffled preferences", "stale index", "warm"])
def test_against_a_healthy_stack_the_layer_is_named_by_putting_the_healthy_one_in(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    plant = {**PLANTS, **HEALTHY}[name]
    found = diagnosed(plant, tokenizer, tmp_path, against=True)
    assert found.suspect == plant.suspect, table(found)


@pytest.mark.parametrize(
    ("name", "weights", "layers"),
    [
        ("temperature 2", ["dpo"], ["prompt", "decoding", "policy"]),
        ("contradictory prompt", ["dpo"], ["prompt", "policy"]),
        ("quantisation damage", ["sft", "dpo", "quantised"], ["policy"]),
        ("as declared", ["sft", "dpo"], ["prompt", "retrieval", "tools", "policy"]),
        ("rounded without loss", ["dpo", "quantised"], ["prompt", "policy"]),
    ],
)
def test_attribution_names_a_layer_that_the_whole_is_better_without(
    name: str, weights: list[str], layers: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    plant = {**PLANTS, **HEALTHY}[name]
    stack = plants.stack_of(plant, tmp_path, PORTS)
    services = clerk.services(tmp_path, clerk.runtime(stack, tokenizer, tmp_path, dict(plant.faults)))
    found = attribution.run(stack, services, tmp_path, weights=weights, layers=layers, name="a")
    assert found.suspect == plant.suspect, [
        (e.name, e.value, e.p_corrected) for e in found.leave_one_out if e.axis == "all"
    ]

"""A factorial on trained weights: cells share generations, rows are reused, sums are exact, and the page gets a section."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from demeanor.app import services
from demeanor.core.errors import DemeanorError
from demeanor.core.table import points
from demeanor.evaluation import attribution, ladder
from demeanor.evaluation.result_rows import read_rows
from demeanor.report import outputs, publish
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs


def test_a_factorial_shares_generations_and_its_sums_are_exact(
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    found = attribution.run(
        stack,
        services(runs),
        tmp_path,
        weights=["base", "dpo"],
        layers=["prompt", "policy"],
        limit=1,
        name="x",
    )
    assert found.asked == 8 * found.items
    assert found.reused == 0
    assert found.generations is not None
    assert (
        0 < found.generations <= 4 * found.items
    )  # policy never changes what the weights read, it only keeps some from them
    assert set(found.cells) >= {"tiny-desk:base", "tiny-desk:dpo+prompt+policy"}
    for total in found.total:
        assert sum(e.value for e in found.shapley if e.axis == total.axis) == pytest.approx(
            total.value, abs=1e-9
        )

    again = attribution.run(
        stack,
        services(runs),
        tmp_path,
        weights=["base", "dpo"],
        layers=["prompt", "policy"],
        limit=1,
        name="x",
    )
    assert (again.reused, again.generations) == (again.asked, 0)
    assert again.shapley == found.shapley

    outputs.show(attribution.section(found), outputs.console())
    printed = capsys.readouterr().out
    assert f"{found.generations} generations were made for {found.asked} answers" in " ".join(printed.split())
    honest = next(e for e in found.total if e.axis == "honesty")
    assert any(
        line.split()[:1] == ["honesty"] and points(honest.value, 1) in line for line in printed.splitlines()
    )

    result = ladder.evaluate(
        stack, services(runs), tmp_path, variants=["tiny-desk:base", "tiny-desk:dpo"], limit=1, name="x"
    )
    page = publish.show(result, tmp_path).read_text()
    assert 'id="attribution"' in page
    assert "Which layer did it" in page
    other = json.loads((tmp_path / "x.attribution.json").read_text()) | {"suite_hash": "of another suite"}
    (tmp_path / "x.attribution.json").write_text(json.dumps(other))
    assert 'id="attribution"' not in publish.show(result, tmp_path).read_text()


@pytest.mark.parametrize(
    ("weights", "layers", "says"),
    [
        (["sft", "base"], None, "not in the order"),
        (["bsae"], None, "Did you mean 'base'"),
        (None, ["polcy"], "Did you mean 'policy'"),
        (None, ["policy", "policy"], "distinct"),
        (["rm"], None, "unknown"),
    ],
)
def test_a_game_that_cannot_be_played_is_refused_by_name(
    trained: tuple[Stack, Runs], weights: list[str] | None, layers: list[str] | None, says: str
) -> None:
    with pytest.raises(DemeanorError, match=says):
        attribution.factorial_of(trained[0], weights, layers)


def test_the_default_game_is_the_chain_of_the_served_weights_and_every_switch(
    trained: tuple[Stack, Runs],
) -> None:
    game = attribution.factorial_of(trained[0], None, None)
    assert (game.chain, game.switches) == (("base", "sft", "dpo"), ("prompt", "retrieval", "tools", "policy"))
    assert len(game.cells) == 3 * 2**4


def test_template_and_decoding_are_factors_whose_off_is_the_bases_template_and_greedy(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    spec = stack.spec.model_copy(
        update={"decoding": stack.spec.decoding.model_copy(update={"temperature": 2.0})}
    )
    hot = replace(stack, spec=spec)
    game = attribution.factorial_of(hot, ["base", "dpo"], ["template", "decoding"])
    plain = attribution.variant_of(hot, game, (1, frozenset()))
    assert (plain.template, plain.spec.decoding.temperature, plain.model_id) == (
        "transcript",
        0.0,
        "tiny-desk:dpo~transcript~greedy",
    )
    assert attribution.variant_of(hot, game, game.full).spec == hot.spec
    base = attribution.variant_of(hot, game, (0, frozenset({"decoding"})))
    assert (
        base.model_id == attribution.variant_of(hot, game, (0, frozenset({"decoding", "template"}))).model_id
    ), "the base has its own template"

    found = attribution.run(
        hot,
        services(runs),
        tmp_path,
        weights=["base", "dpo"],
        layers=["template", "decoding"],
        limit=1,
        name="y",
    )
    by = {r.variant: r for r in read_rows(tmp_path / "y.rows.jsonl") if r.item_id == "facts-00"}
    assert (
        set(found.cells)
        == set(by)
        == {
            "tiny-desk:base",
            "tiny-desk:base~greedy",
            "tiny-desk:dpo",
            "tiny-desk:dpo~greedy",
            "tiny-desk:dpo~transcript",
            "tiny-desk:dpo~transcript~greedy",
        }
    )
    cold = attribution.run(
        stack, services(runs), tmp_path, weights=["base", "dpo"], layers=[], limit=1, name="z"
    )
    greedy = {r.variant: r.text for r in read_rows(tmp_path / "z.rows.jsonl") if r.item_id == "facts-00"}
    assert by["tiny-desk:dpo~greedy"].text == greedy["tiny-desk:dpo"] != by["tiny-desk:dpo"].text
    assert cold.design == "full factorial, 2 cells"


def test_a_neutral_template_or_decoding_is_no_factor(trained: tuple[Stack, Runs]) -> None:
    with pytest.raises(
        DemeanorError, match="--layers decoding: the stack's decoding is the neutral one already"
    ):
        attribution.factorial_of(trained[0], None, ["decoding"])


def test_a_fraction_measures_fewer_cells_and_tells_what_it_confounds(
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    found = attribution.run(
        stack, services(runs), tmp_path, weights=["dpo"], layers=None, limit=1, name="f", fraction="IV"
    )
    assert (len(found.cells), found.design[:38]) == (8, "2^(4-1) fraction of resolution IV x 1 ")
    assert "policy = prompt x retrieval x tools" in found.aliases
    for total in found.total:
        assert sum(e.value for e in found.shapley if e.axis == total.axis) == pytest.approx(
            total.value, abs=1e-9
        )
    outputs.show(attribution.section(found), outputs.console())
    printed = capsys.readouterr().out
    told = " ".join(printed.split())
    assert "Cannot be told apart: " in told
    assert "policy = prompt x retrieval x tools" in told
    assert f"Suspect: {found.suspect}" in told
    assert found.interactions == ()

"""Diagnosis of a trained tiny stack: every intervention really is what its name says, and the verb writes what it shows."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from demeanor.app import load_stack, services
from demeanor.core.errors import DataError
from demeanor.core.types import (
    Completion,
    Decoding,
    Done,
    Event,
    Item,
    Message,
    Respond,
    Text,
    Turn,
    complete,
)
from demeanor.evaluation import ladder
from demeanor.evaluation.diagnosis import diagnose, interventions
from demeanor.evaluation.diagnosis.analysis import section
from demeanor.evaluation.diagnosis.replay import Intervention, ReplayHarness, as_it_is
from demeanor.evaluation.experiment import Experiment, suite
from demeanor.evaluation.result_rows import LayerActivity, Row, read_rows
from demeanor.evaluation.statistics import Estimate
from demeanor.layers import tools
from demeanor.report import outputs, publish
from demeanor.stack.stack import Stack
from demeanor.store import database
from demeanor.store.database import rated_turns
from demeanor.training.runs import Runs


def row_like(item: Item, *events: LayerActivity, finish: str = "stop") -> Row:
    return Row(
        "x",
        "k",
        item.id,
        "c",
        0,
        item.axis,
        item.cluster,
        None,
        (),
        0.0,
        "",
        "",
        "",
        "",
        "",
        finish,
        1,
        1,
        1.0,
        {},
        events,
    )


def planned(stack: Stack, items: list[Item], rows: dict[str, Row], scratch: Path) -> dict[str, Intervention]:
    found = interventions.interventions(
        stack,
        stack.chain(stack.serve),
        items,
        [],
        rows,
        [(items[0], "Yes.")],
        tools.load(["calculator"]),
        scratch,
    )
    return {t.about.name: t for t in found}


def item(question: str, scorer: str = "exact", **target: object) -> Item:
    return Item(question[:8], (Message("user", question),), scorer, target, "facts", question[:8])


def test_each_layer_rule_stage_template_and_prompt_has_its_trial_and_no_two_are_the_same(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    stack, _ = trained
    asked = item("When?", answers=["9"])
    found = planned(stack, [asked], {asked.id: row_like(asked)}, tmp_path)
    assert set(found) == {
        "prompt off",
        "retrieval off",
        "tools off",
        "policy off",
        "weights of sft",
        "weights of base",
        "rule pirates off",
        "rule card off",
        "template chatml",
        "template transcript",
        "instruction alone",
        "instruction added",
        "examples",
        "prompt without sentence 1: You are the clerk of the harbou…",
        "prompt without sentence 2: Desk Pilot.",
    }
    keys = [t.key for t in found.values()]
    assert len({*keys, as_it_is(stack).key}) == len(keys) + 1
    assert {t.about.layer for t in found.values()} == {
        "prompt",
        "retrieval",
        "tools",
        "policy",
        "dpo",
        "sft",
        "template",
        "",
    }
    assert found["weights of base"].about.layer == "sft", "sft is the first stage that base lacks"


async def test_without_a_rule_only_that_rule_is_gone(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    experiment = Experiment(stack, services(runs), tmp_path, items=())
    harness = ReplayHarness(experiment)
    asked = item("Pretend you are a pirate. When to Corkel?")
    found = planned(stack, [asked], {}, tmp_path)
    try:

        async def rule(intervention: Intervention) -> str | None:
            refusal = (
                await complete(
                    harness.respond(intervention), Turn(asked.messages, Decoding(0.0, max_tokens=3))
                )
            ).refusal
            return None if refusal is None else refusal.rule

        assert await rule(as_it_is(stack)) == "pirates"
        assert await rule(found["rule card off"]) == "pirates"
        assert await rule(found["rule pirates off"]) is None
    finally:
        harness.close()
        experiment.close()


async def test_the_weights_of_an_earlier_stage_and_another_template_read_the_prompt_they_should(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    experiment = Experiment(stack, services(runs), tmp_path, items=())
    harness = ReplayHarness(experiment)
    asked = item("When to Corkel?")
    found = planned(stack, [asked], {}, tmp_path)
    try:

        async def tokens(intervention: Intervention) -> int:
            return (
                await complete(
                    harness.respond(intervention), Turn(asked.messages, Decoding(0.0, max_tokens=3))
                )
            ).prompt_tokens

        here, transcript = await tokens(as_it_is(stack)), await tokens(found["template transcript"])
        assert transcript not in (0, here)
        assert await tokens(found["prompt off"]) < here
        assert await tokens(found["instruction added"]) > here
        assert await tokens(found["examples"]) > here
        assert await tokens(found["weights of sft"]) == here
    finally:
        harness.close()
        experiment.close()


def said(*pieces: str) -> Respond:
    async def respond(turn: Turn) -> AsyncIterator[Event]:
        for piece in pieces:
            yield Text(piece)
        yield Done("length")

    return respond


@pytest.mark.parametrize(
    ("pieces", "first"),
    [
        (("It leaves", " at 3.5. And", " then?"), "It leaves at 3.5."),
        (("One\n", "two"), "One"),
        ((" \nYes. No",), " \nYes."),
        (('{"a": 1}', " {}"), '{"a": 1}'),
        (("no end",), "no end"),
        (
            (
                "Cut <",
                "|user|> more",
            ),
            "Cut ",
        ),
    ],
)
async def test_a_first_sentence_ends_where_the_turn_should_have(pieces: tuple[str, ...], first: str) -> None:
    done = await complete(interventions.first_sentence(said(*pieces)), Turn((), Decoding()))
    assert done.text == first
    assert done.finish_reason == ("length" if first == "no end" else "stop")


def test_cut_off_answers_are_tried_longer_and_shorter_and_accuse_decoding_or_who_should_have_taught_the_end(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    stack, _ = trained
    asked = item("When?")
    found = planned(stack, [asked], {asked.id: row_like(asked, finish="length")}, tmp_path)
    assert found["longer answers"].about.layer == "decoding"
    assert found["first sentence"].about.layer == "sft"


@pytest.mark.parametrize(
    ("count", "runs"),
    [
        (1, []),
        (2, [(0, 1), (1, 2)]),
        (3, [(0, 1), (1, 2), (2, 3), (1, 3)]),
        (17, [*((i, min(i + 3, 17)) for i in range(0, 17, 3)), (0, 8), (8, 17)]),
    ],
)
def test_a_prompt_is_tried_without_each_sentence_or_run_of_them_and_without_either_half(
    count: int, runs: list[tuple[int, int]]
) -> None:
    assert interventions._runs(count) == runs


def test_drawn_answers_are_tried_again_and_greedily(trained: tuple[Stack, Runs], tmp_path: Path) -> None:
    stack, _ = trained
    hot = replace(
        stack,
        spec=stack.spec.model_copy(
            update={"decoding": stack.spec.decoding.model_copy(update={"temperature": 2.0})}
        ),
    )
    found = planned(hot, [item("When?")], {}, tmp_path)
    assert (found["again"].about.kind, found["greedy"].about.layer) == ("again", "decoding")
    turns: list[Turn] = []

    def heard(turn: Turn) -> AsyncIterator[Event]:
        turns.append(turn)
        return said("x")(turn)

    for name in ("again", "greedy"):
        found[name].wrap(heard)(Turn((), Decoding(temperature=2.0, seed=7)))
    assert [(t.decoding.temperature, t.decoding.seed) for t in turns] == [
        (2.0, 7 + interventions.SEED),
        (0.0, 7),
    ]


async def test_a_tool_is_given_the_argument_names_that_the_weights_wrote(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    stack, _ = trained
    asked = item("What is 2 + 3?", "number", value=5)
    wrote = LayerActivity("weights", "called a tool", 'calculator({"sum": "2 + 3"})')
    intervention = planned(stack, [asked], {asked.id: row_like(asked, wrote)}, tmp_path)[
        "arguments as the weights write them"
    ]
    assert intervention.renamed == {"calculator": {"expression": "sum"}}
    tool = tools.with_renamed_arguments(
        tools.load(["calculator"])["calculator"], intervention.renamed["calculator"]
    )
    assert (list(tool.spec.parameters["properties"]), tool.spec.parameters["required"]) == (["sum"], ["sum"])
    assert await tool.run({"sum": "2 + 3"}) == "5"
    agreed = LayerActivity("weights", "called a tool", 'calculator({"expression": "2 + 3"})')
    assert "arguments as the weights write them" not in planned(
        stack, [asked], {asked.id: row_like(asked, agreed)}, tmp_path
    )


def test_a_reference_stack_lends_exactly_the_parts_that_differ(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    stack, _ = trained
    assert interventions.swaps(stack, stack) == []
    (tmp_path / "other.md").write_text("Say nothing.")
    other = load_stack(
        stack.path,
        [
            f"layers.prompt.system={tmp_path / 'other.md'}",
            "decoding.temperature=1.5",
            "weights.stages.dpo.objective.beta=0.3",
        ],
    )
    assert [t.about.layer for t in interventions.swaps(other, stack)] == ["dpo", "decoding", "prompt"]
    fewer = stack.without("retrieval")
    lent = interventions.swaps(fewer, stack)
    assert [x.name for x in lent[0].variant.layers] == [x.name for x in stack.layers]


def test_the_verb_writes_what_it_shows_and_a_section_of_the_page(
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    found = diagnose.run(stack, services(runs), tmp_path, diagnose.Scope(axis="facts", limit=2), name="x")
    assert found.failing + found.passing <= len(suite(stack, 2))
    written = json.loads((tmp_path / "x.diagnosis.json").read_text())
    assert [r["name"] for r in written["repairs"]] == [r.name for r in found.repairs]
    rows = [r for r in read_rows(tmp_path / "x.diagnosis.rows.jsonl") if not r.error]
    again = diagnose.run(stack, services(runs), tmp_path, diagnose.Scope(axis="facts", limit=2), name="x")
    assert again.recommendation == found.recommendation
    assert rows == [r for r in read_rows(tmp_path / "x.diagnosis.rows.jsonl") if not r.error], (
        "nothing was measured again"
    )
    outputs.show(section(found), Console(width=300))
    printed = capsys.readouterr().out
    assert f"Suspect: {found.suspect}" in printed
    assert all(" ".join(r.name.split()[:3]) in printed for r in found.repairs)
    result = ladder.evaluate(stack, services(runs), tmp_path, variants=["tiny-desk"], limit=2, name="x")
    assert 'id="diagnosis"' in publish.show(result, tmp_path).read_text()


def test_an_axis_or_item_that_is_not_there_is_refused_by_name(trained: tuple[Stack, Runs]) -> None:
    items = suite(trained[0], 1)
    with pytest.raises(DataError, match=r"--axis.*Did you mean 'facts'"):
        diagnose.chosen(items, diagnose.Scope(axis="fact"))
    with pytest.raises(DataError, match=r"--items.*'facts-99'"):
        diagnose.chosen(items, diagnose.Scope(ids=("facts-99",)))


async def logged(folder: Path, answers: list[tuple[str, str, float]]) -> Path:
    """A database of turns with feedback: question, answer, value."""
    store = database.open_url("sqlite:///turns.db", root=folder)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for n, (question, answer, value) in enumerate(answers):
        turn = Turn((Message("user", question),), Decoding(0.0, max_tokens=12), id=f"turn-{n}")
        await store.record(turn, [Text(answer), Done("stop")], now, now)
        store.add_feedback(turn.id, value)
    store.close()
    return folder / "turns.db"


async def test_logged_turns_that_were_disliked_fail_and_liked_ones_are_controls(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    path = await logged(
        tmp_path,
        [("When to Corkel?", "Never.", -1.0), ("Who are you?", "A clerk.", 1.0), ("And?", "So.", 0.0)],
    )
    found = diagnose.cases_of_turns(rated_turns(path), str(path))
    assert ([i.id for i in found.failing], [i.id for i in found.controls], found.judged) == (
        ["turn-0"],
        ["turn-1"],
        diagnose.BY_CHANGE,
    )
    bad, good = found.failing[0], found.controls[0]
    assert found.score is not None
    assert [found.score(bad, Completion(text, "stop")).value for text in ("never. ", "At 9.")] == [0.0, 1.0]
    assert [found.score(good, Completion(text, "stop")).value for text in ("A  clerk.", "At 9.")] == [
        1.0,
        0.0,
    ]
    other = await logged(tmp_path / "other", [("Who?", "I.", 1.0)])
    with pytest.raises(DataError, match="none of 1 turns with feedback was disliked"):
        diagnose.cases_of_turns(rated_turns(other), str(other))
    with pytest.raises(DataError, match="no such database"):
        diagnose.cases_of_turns(rated_turns(tmp_path / "none.db"), "none.db")


def test_logged_turns_are_replayed_and_said_to_be_unjudged(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = asyncio.run(
        logged(tmp_path, [(f"When to {p}?", "Never.", -1.0) for p in ("Corkel", "Jorpel", "Brevik")])
    )
    found = diagnose.run(
        trained[0], services(trained[1]), tmp_path, diagnose.Scope(turns=str(path)), name="t"
    )
    assert (found.failing, found.judged) == (3, diagnose.BY_CHANGE)
    assert found.recommendation.startswith("The new answers are not judged")
    assert next(r for r in found.repairs if r.name == "policy off").fixed == 3, "the stack never said so"


def test_rows_that_eval_left_are_taken_as_they_are_and_rows_of_another_stack_are_refused(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    ladder.evaluate(
        stack, services(runs), tmp_path, variants=["tiny-desk", "tiny-desk:sft"], limit=1, name="e"
    )
    path, items = tmp_path / "e.rows.jsonl", suite(stack, 1)
    assert {r.item_id for r in diagnose.recorded(path, stack, items)} == {i.id for i in items}
    assert {r.variant for r in diagnose.recorded(path, stack, items)} == {"tiny-desk"}
    with pytest.raises(DataError, match=r"no row of this stack .*it holds tiny-desk \("):
        diagnose.recorded(path, stack.without("policy"), items)
    with pytest.raises(DataError, match="no row of this stack"):
        diagnose.recorded(
            path, stack, [replace(i, target={"answers": ["other"]}) for i in items if i.scorer == "exact"]
        )
    with pytest.raises(DataError, match="no such file"):
        diagnose.recorded(tmp_path / "none.jsonl", stack, items)
    found = diagnose.run(stack, services(runs), tmp_path, diagnose.Scope(limit=1, rows=path), name="e2")
    assert found.failing == sum(
        (r.value or 0.0) < 0.5 for r in diagnose.recorded(path, stack, items) if r.value is not None
    )


def test_the_verb_refuses_what_does_not_go_with_logged_turns(
    trained: tuple[Stack, Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.cli import main

    assert main(["diagnose", str(trained[0].path), "--turns", "x.db", "--limit", "3"]) == 2
    assert "--turns takes its items from the database" in capsys.readouterr().err


def test_a_learning_curve_trains_the_last_stage_on_fewer_of_the_same_rows(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    half = diagnose.smaller(stack, 0.5)
    assert half.stage_key("dpo") != stack.stage_key("dpo")
    assert half.stage_key("sft") == stack.stage_key("sft")
    found = diagnose.run(
        stack, services(runs), tmp_path, diagnose.Scope(axis="honesty", limit=4), name="l", learn=True
    )
    if not found.failing:
        pytest.fail("the tiny stack is never honest about everything")
    assert [share for share, _ in found.curve] == [0.25, 0.5, 1.0]
    axis = [i for i in suite(stack, 4) if i.axis == "honesty"]
    assert found.curve[-1][1] == pytest.approx(1 - len(found.wrong) / len(axis))
    assert "half of the rows of dpo" in found.learnt


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(0.02, 0.2, "worth a try"), (-0.2, -0.1, "do harm"), (-0.1, 0.1, "not shown to help")],
)
def test_a_learning_curve_says_only_what_its_interval_says(low: float, high: float, says: str) -> None:
    assert says in diagnose.said("sft", Estimate((low + high) / 2, low, high, 0.01, 0.01, 50, 20))


def test_a_template_that_the_checkpoint_does_not_have_is_told_and_left_out(
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The tiny base pretrained here stands as an imported one whose folder holds no chat template."""
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    bare = tmp_path / "bare"
    shutil.copytree(runs.model(stack.stage_key("base")), bare)
    config = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "chat_template"})
    )
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "stack.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "bare",
                "weights": {"base": {"kind": "import", "path": "bare"}},
                "evaluation": {"suites": ["world:behaviour"]},
            }
        )
    )
    imported = load_stack(tmp_path / "stack.yaml")
    found = planned(imported, [item("When?")], {}, tmp_path)
    assert "template model" in found
    experiment = Experiment(imported, services(runs), tmp_path, items=())
    harness = ReplayHarness(experiment)
    try:
        kept = {t.about.name for t in harness.able([found["template model"], found["template chatml"]])}
    finally:
        harness.close()
        experiment.close()
    assert kept == {"template chatml"}
    assert "template model is not tried" in caplog.text


def test_another_servers_template_is_its_own_affair(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "far",
                "weights": {"base": {"kind": "remote", "url": "http://localhost:1/v1", "model": "m"}},
                "evaluation": {"suites": ["world:behaviour"]},
            }
        )
    )
    found = planned(load_stack(tmp_path / "stack.yaml"), [item("When?")], {}, tmp_path)
    assert not [name for name in found if name.startswith("template")]
    assert {"instruction", "examples", "greedy"} <= set(found)


def test_against_an_earlier_result_only_what_was_right_there_is_diagnosed(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    ladder.evaluate(stack, services(runs), tmp_path, variants=["tiny-desk"], limit=2, name="e")
    path = tmp_path / "e.rows.jsonl"
    right = diagnose.right_before(path, stack)
    assert right == {r.item_id for r in read_rows(path) if (r.value or 0.0) >= 0.5}
    same = diagnose.run(stack, services(runs), tmp_path, diagnose.Scope(limit=2, before=path), name="same")
    assert (same.failing, same.passing, same.suspect) == (0, len(right), "none")
    with pytest.raises(DataError, match="no row of 'other'; it holds tiny-desk"):
        diagnose.right_before(path, replace(stack, spec=stack.spec.model_copy(update={"name": "other"})))
    with pytest.raises(DataError, match="no such file"):
        diagnose.right_before(tmp_path / "none.rows.jsonl", stack)


def test_rules_of_two_policies_are_told_apart(trained: tuple[Stack, Runs], tmp_path: Path) -> None:
    stack, _ = trained
    layer = next(x for x in stack.layers if x.name == "policy")
    twice = replace(stack, layers=(replace(layer, name="outer"), *stack.layers))
    found = planned(twice, [item("When?")], {}, tmp_path)
    assert {n for n in found if n.startswith("rule")} == {
        f"rule {r} of {p} off" for r in ("pirates", "card") for p in ("outer", "policy")
    }


def test_a_file_that_holds_no_turns_is_told_and_left_as_it_is(
    tmp_path: Path, trained: tuple[Stack, Runs]
) -> None:
    path = tmp_path / "zero.db"
    for content in (b"", b"not a database at all" * 100):
        path.write_bytes(content)
        with pytest.raises(DataError, match="holds no turns"):
            diagnose.cases_of_turns(rated_turns(path), str(path))
        assert path.read_bytes() == content

"""The declaration: read, checked all at once, hashed by content, varied."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from demeanor.core.errors import DemeanorError, SpecError
from demeanor.stack import stack as stacks

NAMES = {"rows": ("corpus", "instructions", "preferences"), "suites": ("world:behaviour", "builtin:format")}

SOUND: dict[str, Any] = {
    "name": "harbour-desk",
    "weights": {
        "base": {"kind": "scratch", "data": "world:corpus", "tokens": 20_000, "template": "transcript"},
        "stages": [
            {"name": "sft", "objective": "sft", "data": "world:instructions"},
            {"name": "rm", "objective": "reward", "parent": "sft", "data": "world:preferences"},
            {
                "name": "dpo",
                "objective": {"kind": "dpo", "beta": 0.1},
                "parent": "sft",
                "uses": {"reference": "sft"},
                "data": "world:preferences",
            },
        ],
        "serve": "dpo",
    },
    "decoding": {"temperature": 0},
    "layers": [
        {"kind": "record", "database": "sqlite:///runs/requests.db"},
        {"kind": "limits", "requests_per_minute": 60},
        {"kind": "policy", "rules": "policy.yaml"},
        {"kind": "tools", "allow": ["calculator"]},
        {"kind": "retrieval", "index": "notices"},
        {"kind": "prompt", "system": "system.md"},
    ],
}
POLICY = "rules:\n- {name: card, on: output, detector: card, action: refuse, reason: a card number, reply: I cannot show that.}\n"


def write(folder: Path, raw: Any) -> Path:
    (folder / "notices").mkdir(exist_ok=True)
    (folder / "notices" / "today.md").write_text("Departures today: Corkel 9.\n")
    (folder / "system.md").write_text("You are the harbour desk.\n")
    (folder / "policy.yaml").write_text(POLICY)
    path = folder / "stack.yaml"
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw, sort_keys=False))
    return path


def load(folder: Path, raw: Any = SOUND, *overrides: str) -> stacks.Stack:
    return stacks.load(write(folder, raw), overrides, names=NAMES)


BROKEN: dict[str, tuple[list[str], list[str]]] = {
    # name of the mistake: (--set overrides that make it, what the error must say)
    "a misspelt setting": (
        ["weights.stages.dpo.objective.bta=1"],
        ["weights.stages[2].objective.bta", "Did you mean 'beta'?"],
    ),
    "an unknown objective": (
        ["weights.stages.dpo.objective.kind=dpoo"],
        ["weights.stages[2].objective.kind", "Did you mean 'dpo'?"],
    ),
    "an objective on the policy's own completions without any": (
        ["weights.stages.dpo.objective={kind: ppo}"],
        ["weights.stages[2].objective.kind", "prompts: [{source: ...}], reward: [...]"],
    ),
    "an unknown layer": (["layers.2.kind=polcy"], ["layers[2].kind", "Did you mean 'policy'?"]),
    "a misspelt layer setting": (
        ["layers.limits.request_per_minute=3"],
        ["layers[1].request_per_minute", "'requests_per_minute'"],
    ),
    "a number out of range": (
        ["decoding.temperature=-1"],
        ["decoding.temperature", "got -1", "greater than or equal to 0"],
    ),
    "text for a number": (["weights.base.tokens=many"], ["weights.base.tokens", "got 'many'"]),
    "an unknown parent": (
        ["weights.stages.dpo.parent=sff"],
        ["weights.stages[2].parent", "Did you mean 'sft'?"],
    ),
    "a parent that comes later": (
        ["weights.stages.sft.parent=dpo"],
        ["weights.stages[0].parent", "unknown earlier stage 'dpo'"],
    ),
    "a reward model as a policy": (
        ["weights.stages.dpo.parent=rm"],
        ["weights.stages[2].parent", "reward model"],
    ),
    "a served reward model": (["weights.serve=rm"], ["weights.serve", "scores answers"]),
    "an unknown served stage": (["weights.serve=ppo"], ["weights.serve", "Known: base, dpo, rm, sft"]),
    "an unknown role": (
        ["weights.stages.dpo.uses={refrence: sft}"],
        ["uses.refrence", "Did you mean 'reference'?"],
    ),
    "a stage named twice": (["weights.stages.1.name=sft"], ["weights.stages[1].name", "taken"]),
    "a missing data file": (
        ["weights.stages.sft.data=rows.jsonl"],
        ["weights.stages[0].data[0].source", "no such file", "rows.jsonl"],
    ),
    "an unknown part of the world": (
        ["weights.stages.sft.data=world:instruction"],
        ["Did you mean 'world:instructions'?"],
    ),
    "a missing prompt file": (
        ["layers.prompt.system=sytem.md"],
        ["layers[5].system", "no such file", "sytem.md"],
    ),
    "a missing checkpoint": (["weights.base=./nowhere"], ["weights.base.path", "no such folder"]),
    "a folder that is no checkpoint": (
        ["weights.base=notices"],
        ["weights.base.path", "lacks config.json, tokenizer.json"],
    ),
    "an unknown template": (["template=chatmll"], ["template", "Did you mean 'chatml'?"]),
    "heads that do not divide the width": (
        ["weights.base.model.heads=3"],
        ["weights.base.model.width", "2 x heads = 6"],
    ),
    "rows longer than the context": (
        ["weights.base.row_tokens=4096"],
        ["weights.base.row_tokens", "at most model.context"],
    ),
    "an unknown tool": (["layers.tools.allow=[calculater]"], ["layers[3]", "Did you mean 'calculator'?"]),
    "two layers of one name": (["layers.2.name=prompt"], ["layers[5].name", "taken"]),
    "an unknown suite": (["evaluation.suites=[world:behavior]"], ["evaluation.suites[0]", "world:behaviour"]),
    "an override of nothing": (["layers.polcy.rules=x"], ["--set layers.polcy.rules", "policy"]),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_every_mistake_gives_its_path_and_what_to_do(mistake: str, tmp_path: Path) -> None:
    overrides, wanted = BROKEN[mistake]
    with pytest.raises(SpecError) as error:
        load(tmp_path, SOUND, *overrides)
    assert len(error.value.problems) == 1, str(error.value)
    for words in wanted:
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("name: [", "not valid YAML"),
        ("name: a\nname: b\n", "stands twice"),
        ("just words", "wanted a mapping"),
        ("", "got nothing"),
        ("name: Harbour Desk\nweights: {base: {data: world:corpus}}", "name: got 'Harbour Desk'"),
    ],
)
def test_a_file_that_is_no_stack_says_why(text: str, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=wanted):
        load(tmp_path, text)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, SOUND)
    with pytest.raises(SpecError, match=r"no such file. YAML files there: policy.yaml, stack.yaml"):
        stacks.load(tmp_path / "stck.yaml")


def test_all_mistakes_are_listed_together(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        load(tmp_path, SOUND, "decoding.temprature=1", "decoding.top_p=2", "weights.base.tokens=0")
    assert len(error.value.problems) == 3


# ---- identity ----


def test_labels_and_written_out_defaults_do_not_change_the_key(tmp_path: Path) -> None:
    key = load(tmp_path).key()
    assert load(tmp_path, SOUND, "name=other-desk").key() == key
    assert (
        load(
            tmp_path,
            SOUND,
            "decoding.top_p=1.0",
            "weights.stages.sft.epochs=1",
            "weights.base.model.layers=4",
        ).key()
        == key
    )
    assert load(tmp_path, SOUND, "layers.2.name=guard").key() == key


@pytest.mark.parametrize(
    "change",
    [
        "decoding.temperature=1",
        "layers.retrieval.top_k=1",
        "weights.stages.sft.seed=1",
        "template=chatml",
        "weights.base.tokens=30000",
        "weights.stages.dpo.objective.beta=0.2",
    ],
)
def test_what_can_change_an_answer_changes_the_key(change: str, tmp_path: Path) -> None:
    assert load(tmp_path).key() != load(tmp_path, SOUND, change).key()


@pytest.mark.parametrize(
    "change",
    [
        "layers.limits.requests_per_minute=9",
        "layers.record.database=sqlite:///other.db",
        "weights.stages.rm.optim.lr=0.5",
    ],
)
def test_what_cannot_change_an_answer_does_not_change_the_key(change: str, tmp_path: Path) -> None:
    assert load(tmp_path).key() == load(tmp_path, SOUND, change).key()


def test_the_content_of_named_files_is_identity_and_their_place_is_not(tmp_path: Path) -> None:
    before = load(tmp_path).key()
    (tmp_path / "system.md").write_text("You are the harbour desk. Be brief.\n")
    assert stacks.load(tmp_path / "stack.yaml", names=NAMES).key() != before
    (tmp_path / "system.md").write_text("You are the harbour desk.\n")
    (tmp_path / "system.md").rename(tmp_path / "moved.md")
    assert (
        stacks.load(tmp_path / "stack.yaml", ["layers.prompt.system=moved.md"], names=NAMES).key() == before
    )


def test_a_runtime_edit_never_retrains_and_an_ancestor_always_does(tmp_path: Path) -> None:
    stack, edited = (
        load(tmp_path),
        load(tmp_path, SOUND, "layers.retrieval.top_k=1", "decoding.temperature=1"),
    )
    older = load(tmp_path, SOUND, "weights.stages.sft.optim.lr=0.01")
    for name in ("base", "sft", "rm", "dpo"):
        assert stack.stage_key(name) == edited.stage_key(name)
    assert stack.stage_key("base") == older.stage_key("base")
    for name in ("sft", "rm", "dpo"):
        assert stack.stage_key(name) != older.stage_key(name)


# ---- variants ----


def test_the_ladder_climbs_from_the_base_to_the_whole(tmp_path: Path) -> None:
    assert [s.model_id for s in load(tmp_path).ladder()] == [
        "harbour-desk:base",
        "harbour-desk:sft",
        "harbour-desk:dpo",
        "harbour-desk:dpo+prompt",
        "harbour-desk:dpo+prompt+retrieval",
        "harbour-desk:dpo+prompt+retrieval+tools",
        "harbour-desk",
    ]


def test_a_model_id_resolves_to_the_variant_that_has_it(tmp_path: Path) -> None:
    stack = load(tmp_path)
    for variant in stack.offered():
        found = stack.resolve(variant.model_id)
        assert (found.serve, found.layers, found.key()) == (variant.serve, variant.layers, variant.key())
    assert [x.name for x in stack.resolve("harbour-desk-policy").layers] == [
        "record",
        "limits",
        "tools",
        "retrieval",
        "prompt",
    ]
    assert stack.resolve("harbour-desk:retrieval+prompt").model_id == "harbour-desk:dpo+prompt+retrieval"


def test_the_base_is_prompted_in_its_own_template(tmp_path: Path) -> None:
    stack = load(tmp_path)
    assert stack.resolve("harbour-desk:base").template == "transcript"
    assert stack.resolve("harbour-desk:sft").template == "turns"


@pytest.mark.parametrize(
    "model_id",
    ["harbour", "harbour-desk:ppo", "harbour-desk:sft+dpo", "harbour-desk-nothing", "harbour-desk:"],
)
def test_an_unknown_variant_is_refused_by_name(model_id: str, tmp_path: Path) -> None:
    with pytest.raises(DemeanorError, match=r"Known|wanted one"):
        load(tmp_path).resolve(model_id)


def test_a_factorial_has_every_combination_once(tmp_path: Path) -> None:
    cells = load(tmp_path).factorial(["base", "sft", "dpo"], ["prompt", "retrieval", "policy"])
    assert len({c.key() for c in cells}) == 3 * 2**3


def test_a_reference_that_is_not_named_is_the_parent(tmp_path: Path) -> None:
    stack = load(tmp_path, SOUND, "weights.stages.dpo.uses={}")
    assert stack.roles("dpo") == {"reference": "sft"}
    assert stack.stage_key("dpo") == load(tmp_path).stage_key("dpo")


OLD: dict[str, Any] = {
    "name": "old",
    "weights": {
        "base": {"kind": "scratch", "data": "text.jsonl", "tokens": 20000},
        "stages": [
            {"name": "sft", "objective": "sft", "data": "rows.jsonl"},
            {"name": "rm", "objective": "reward", "parent": "sft", "data": "pairs.jsonl", "seed": 4},
            {
                "name": "dpo",
                "objective": {"kind": "dpo", "beta": 0.2},
                "parent": "sft",
                "data": ["pairs.jsonl"],
                "optim": {"lr": 0.001},
            },
        ],
    },
    "decoding": {"temperature": 0},
}


@pytest.mark.parametrize("kind", [None, "train"])
def test_the_keys_of_older_stacks_stay_so_that_nothing_is_trained_again(
    kind: str | None, tmp_path: Path
) -> None:
    """Keys as commit af862a1 computed them, before there were kinds of stages and adapters."""
    for name in ("text", "rows", "pairs"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    changes = [] if kind is None else [f"weights.stages.{i}.kind={kind}" for i in range(3)]
    stack = load(tmp_path, OLD, *changes)
    assert [stack.stage_key(n) for n in ("base", "sft", "rm", "dpo")] == [
        "2d46867089fa1547",
        "de4fa62d0c41bddd",
        "980fc0a0404a0d0c",
        "746610b13a8112c0",
    ]
    assert stack.key() == "f7ad59eb55417358"


def test_keys_of_earlier_versions_stay_valid_so_trained_weights_are_found_again(tmp_path: Path) -> None:
    """Computed at commit 6d087e3, before the package was reorganised."""
    (tmp_path / "notices").mkdir()
    (tmp_path / "notices" / "a.md").write_text("a\n")
    (tmp_path / "t.jsonl").write_text('{"text":"abc def"}\n')
    (tmp_path / "p.jsonl").write_text('{"prompt":"a","chosen":"b","rejected":"c"}\n')
    (tmp_path / "stack.yaml").write_text(
        """
name: desk
weights:
  base: {kind: scratch, data: t.jsonl, tokens: 2000}
  stages:
    - {name: sft, objective: sft, data: t.jsonl, optim: {lr: 1.0e-3}, probe: {count: 4}}
    - {name: dpo, objective: {kind: dpo, beta: 0.2}, data: p.jsonl, adapter: lora}
    - {name: kto, objective: {kind: aot, beta: 0.2}, data: p.jsonl, parent: sft}
    - {name: q, kind: quantise, format: int8, parent: dpo}
  serve: dpo
layers:
  - {kind: limits, requests_per_minute: 6, tokens_per_minute: 200}
  - {kind: tools, allow: [calculator]}
  - {kind: retrieval, index: notices}
  - {kind: prompt, text: "hello"}
"""
    )
    stack = stacks.load(tmp_path / "stack.yaml", names=NAMES)
    assert stack.key() == "856fac3423a56eed"
    assert {name: stack.stage_key(name) for name in ("base", "sft", "dpo", "kto", "q")} == {
        "base": "4f2942239f4be9b5",
        "sft": "d0c7647a2b3ed3bd",
        "dpo": "7eb906f2df7cb9ce",
        "kto": "322cfb18279459a1",
        "q": "f39e23234b00e3fd",
    }


def test_every_way_to_write_a_variant_has_one_id(tmp_path: Path) -> None:
    stack = load(tmp_path)
    names = ["policy", "tools", "retrieval", "prompt"]
    orders = list(itertools.permutations(names, 3))
    dropped = {stack.resolve("harbour-desk-" + "-".join([*order, order[0]])).model_id for order in orders}
    kept = {stack.resolve("harbour-desk:" + "+".join([*order, order[0]])).model_id for order in orders}
    assert (len(orders), len(dropped), len(kept)) == (24, 4, 4)
    assert stack.resolve("harbour-desk-tools-policy").model_id == "harbour-desk-policy-tools"
    assert (
        stack.resolve("harbour-desk-policy-tools").key() == stack.resolve("harbour-desk-tools-policy").key()
    )


def test_published_variants_are_named_once_and_do_not_change_the_key(tmp_path: Path) -> None:
    stack = load(tmp_path, SOUND, "serve.publish=[harbour-desk-tools-policy, harbour-desk:sft]")
    assert stack.published == ["harbour-desk-policy-tools", "harbour-desk:sft"]
    assert stack.key() == load(tmp_path).key()
    assert load(tmp_path).published == []
    everything = load(tmp_path, SOUND, "serve.publish=[all]").published
    assert everything == [v.model_id for v in stack.offered()]
    with pytest.raises(SpecError, match=r"serve\.publish\[0\]: unknown model 'harbour'"):
        load(tmp_path, SOUND, "serve.publish=[harbour]")


def test_how_a_remote_base_is_asked_is_not_its_identity_and_which_model_it_is_is(tmp_path: Path) -> None:
    base = {"kind": "remote", "url": "http://127.0.0.1:1/v1", "model": "m"}

    def key(**more: Any) -> str:
        return load(tmp_path, {"name": "r", "weights": {"base": base | more}}).key()

    asked: list[dict[str, Any]] = [{"key_env": "K"}, {"timeout_s": 5}, {"total_s": 9}, {"retries": 0}]
    assert [key(**more) for more in asked] == [key()] * 4
    assert len({key(), key(model="n"), key(url="http://127.0.0.1:2/v1")}) == 3

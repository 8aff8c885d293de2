"""Rewards of rollouts: each kind of term against its closed form, their sum, what cannot be scored, normalisation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, pvariance, stdev
from typing import Any

import pytest
import torch
import yaml

from demeanor.app import REWARDS, load_stack
from demeanor.core.errors import DemeanorError, EngineError, SpecError, UsageError
from demeanor.core.types import Completion, Message, Score
from demeanor.data.trees import Branch, Tree, collate
from demeanor.evaluation.judge import JudgeClient, preferences
from demeanor.model.heads import reward_outputs
from demeanor.stack.schema import (
    ItemReward,
    JudgeReward,
    JudgeSpec,
    LengthReward,
    ModelReward,
    RepetitionReward,
    RewardTerm,
    RuleReward,
    ScorerReward,
)
from demeanor.stack.stack import Stack
from demeanor.training import reward_rules, scoring
from demeanor.training.rewards import Rollout, TokenPath
from demeanor.training.scoring import UNSCORED, ModelTerm, Normalisation, RewardSum, TermScore
from tests.app import tiny
from tests.evaluation.scripted_judge import Scripted
from tests.training import rollouts as made
from tests.training.rollouts import SERVICES, drawn, rollout, task

REPLY = "Better: {}"


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return load_stack(tiny.write(tmp_path))


def values(column: Sequence[TermScore]) -> list[float | None]:
    return [found.value for found in column]


def built(stack: Stack, *terms: RewardTerm, services: scoring.RewardServices = SERVICES) -> RewardSum:
    return scoring.build(terms, services, stack=stack, load=made.load, verdicts=stack.root / "v.jsonl")


# ---- reward models


def test_a_reward_model_reads_a_rollout_as_its_training_read_a_completion() -> None:
    """Fact 10 of online.md: the same forward function, position and score as in training, whatever shares a batch.

    A group's rollouts share their prompt's tokens; each reward equals the one of a row of its own."""
    found, scorer = drawn(4), made.model(1)
    term = ModelTerm(ModelReward(stages=("rm1",)), made.load)
    alone = []
    for r in found:
        row = Tree(r.task.tokens, (Branch(r.tokens, (True,) * len(r.tokens)),))
        with torch.no_grad():
            alone.append(reward_outputs(scorer, collate([row], read_last=True)).rewards_B.item())  # type: ignore[union-attr]
    assert len(alone) == 12
    assert stdev(alone) > 0.05
    assert values(term(found)) == pytest.approx(alone, abs=1e-5)


def test_a_group_shares_the_tokens_of_its_prompt() -> None:
    group = [rollout(tokens=(9, n, made.STOP)) for n in range(10, 14)]
    tree = scoring.group_tree(group[0].task.tokens, [r.tokens for r in group])
    assert tree.num_tokens == (3 - 1) + 4 * 3  # the prompt but its last token once, then every branch
    assert [branch.tokens for branch in tree.branches] == [r.tokens for r in group]


def test_equal_answers_have_equal_rewards_to_the_last_bit() -> None:
    """Rounding must not give a group without contrast a contrast (fact 8 of online.md)."""
    same = [rollout(tokens=(9, 10, 11, made.STOP)) for _ in range(5)]
    other = [rollout(tokens=(9, 12, made.STOP)), rollout(tokens=(9, 10, 11, made.STOP), of=task(8, 8))]
    found = values(ModelTerm(ModelReward(stages=("rm1",)), made.load)([*same, *other]))
    assert len(set(found[:5])) == 1
    assert len(set(found)) == 3


@pytest.mark.parametrize("combine", ["mean", "worst", "uncertainty"])
def test_several_reward_models_are_combined_as_the_paper_says(combine: Any) -> None:
    """Coste et al. 2024 (2310.02743), equations 2 to 4: mean, min, mean - lambda x variance over members."""
    found = drawn(2)
    spec = ModelReward(stages=("rm1", "rm2", "rm3"), combine=combine, penalty=0.7)
    term = ModelTerm(spec, made.load)
    members = [[term.raw(stage, found)[i] for stage in spec.stages] for i in range(len(found))]
    wanted = {
        "mean": [fmean(m) for m in members],
        "worst": [min(m) for m in members],
        "uncertainty": [fmean(m) - 0.7 * pvariance(m) for m in members],
    }[combine]
    assert len(wanted) == 6
    assert values(term(found)) == pytest.approx(wanted, abs=1e-9)


def test_reference_normalisation_gives_mean_0_and_deviation_1() -> None:
    seen = drawn(8)
    term = ModelTerm(ModelReward(stages=("rm1",), normalise="reference"), made.load)
    with pytest.raises(DemeanorError, match="normalise: reference, but no answers were measured"):
        term(seen)
    term.normalise(seen)
    scored = [x for x in values(term(seen)) if x is not None]
    assert len(scored) == 24
    assert fmean(scored) == pytest.approx(0, abs=1e-9)
    assert stdev(scored) == pytest.approx(1, abs=1e-9)


def test_demonstrations_score_0_on_average_and_keep_their_distances() -> None:
    seen, raw = drawn(8), ModelTerm(ModelReward(stages=("rm1",)), made.load)
    term = ModelTerm(ModelReward(stages=("rm1",), normalise="demonstrations"), made.load)
    term.normalise(seen)
    before, after = raw.raw("rm1", seen), [x for x in values(term(seen)) if x is not None]
    assert fmean(after) == pytest.approx(0, abs=1e-9)
    assert after[0] - after[5] == pytest.approx(before[0] - before[5], abs=1e-9)
    assert term.norms["rm1"].scale == 1.0


def test_members_are_normalised_before_the_lowest_is_taken() -> None:
    """Without it the model with the lowest zero would always be the worst."""
    seen = drawn(8)
    term = ModelTerm(ModelReward(stages=("rm1", "rm2"), combine="worst", normalise="reference"), made.load)
    term.normalise(seen)
    each = [
        [term.norms[stage].of(term.raw(stage, seen)[i]) for stage in ("rm1", "rm2")] for i in range(len(seen))
    ]
    lowest = {member.index(min(member)) for member in each}
    assert lowest == {0, 1}
    assert values(term(seen)) == pytest.approx([min(member) for member in each])


def test_the_critic_gets_the_shift_and_scale_of_the_reward_and_its_weight(stack: Stack) -> None:
    """A value that starts from the reward model must predict the reward that is optimised, not the raw one."""
    total = built(
        stack, ModelReward(stages=("rm1",), normalise="reference", weight=2.5), LengthReward(free=99)
    )
    assert total.wants == {"reference"}
    total.normalise("demonstrations", drawn(8))
    assert total.wants == {"reference"}
    total.normalise("reference", drawn(8))
    assert total.wants == set()
    start = total.critic_start()
    assert start is not None
    stage, norm = start
    raw = total.models["model"].raw(stage, drawn(2))
    wanted = [x for x in total.total(drawn(2)) if x is not None]
    assert len(wanted) == 6
    assert [norm.of(raw[i]) for i in range(6)] == pytest.approx(wanted, abs=1e-9)


def test_no_critic_starts_from_an_ensemble_or_from_two_reward_models(stack: Stack) -> None:
    assert built(stack, ModelReward(stages=("rm1", "rm2"))).critic_start() is None
    assert built(stack, ModelReward(stages=("rm1",)), ModelReward(stages=("rm2",))).critic_start() is None
    assert built(stack, LengthReward(free=3)).critic_start() is None
    assert built(stack, ModelReward(stages=("rm1",))).critic_start() == ("rm1", Normalisation())


def test_a_resumed_run_has_the_same_normalisation_to_the_last_bit(stack: Stack) -> None:
    term = ModelReward(stages=("rm1", "rm2"), normalise="reference")
    first, second = built(stack, term), built(stack, term)
    first.normalise("reference", drawn(5))
    second.load(json.loads(json.dumps(first.state())))
    assert second.wants == set()
    assert second.total(drawn(3, seed=4)) == first.total(drawn(3, seed=4))


def test_answers_that_all_score_the_same_give_no_scale() -> None:
    term = ModelTerm(ModelReward(stages=("rm1",), normalise="reference"), made.load)
    with pytest.raises(DemeanorError, match="all 3 answers have the same reward"):
        term.normalise([rollout()] * 3)
    with pytest.raises(DemeanorError, match="got 1 answers that can be scored, wanted at least 2"):
        term.normalise([rollout(), rollout(tokens=())])


# ---- scorers


def test_an_item_scores_with_its_own_scorer_and_a_prompt_without_one_cannot_be_scored() -> None:
    asked = task(item=made.item())
    found = scoring.item_term(
        SERVICES, [rollout("It is 4.", of=asked), rollout("It is 5.", of=asked), rollout("4")]
    )
    assert values(found) == [1.0, 0.0, None]


def test_an_answer_that_says_no_number_is_unread_and_a_wrong_number_is_not() -> None:
    asked = task(item=made.item())
    found = scoring.item_term(SERVICES, [rollout("hm", of=asked), rollout("5", of=asked)])
    assert found == [TermScore(0.0, unread=True), TermScore(0.0)]


def test_one_scorer_scores_every_answer(stack: Stack) -> None:
    total = built(stack, ScorerReward(scorer="refusal", target={"refuse": True}))
    assert total.total(
        [rollout("I'm sorry, but I can't help with that."), rollout("Sure, here it is."), rollout("")]
    ) == [
        1.0,
        0.0,
        None,  # the scorer does not judge an empty answer
    ]


def test_a_scorer_of_events_never_gives_a_silent_zero(stack: Stack) -> None:
    """A sampled answer has no events: `passages` would find nothing and score 0."""
    term = ScorerReward(scorer="passages", target={"gold": ["a"]})
    assert built(stack, term, services=REWARDS).total([rollout("a")]) == [None]


def test_length_costs_nothing_up_to_a_limit_and_then_its_share_of_it() -> None:
    spec = LengthReward(free=4)
    found = [rollout(tokens=(9,) * n + (made.STOP,)) for n in (0, 4, 5, 10)] + [
        rollout(tokens=(9,) * 5, ended=False)
    ]
    assert values(scoring.length_term(spec, found)) == [0, 0, -0.25, -1.5, -0.25]


def test_tokens_that_the_policy_did_not_write_have_no_length() -> None:
    r = rollout(tokens=(9, 9, 9, 9, made.STOP))._replace(written=(True, False, False, True, True))
    assert scoring.content(r) == (9, 9)


def test_later_turns_count_and_a_reward_model_reads_the_last_one() -> None:
    turn = TokenPath((5, 6, 7, 8), (11, 12, made.STOP), (False, True, True), (-1.0, -1.0))
    r = rollout(tokens=(9, made.STOP))._replace(later=(turn,))
    assert scoring.content(r) == (9, made.STOP, 12)
    assert scoring.last_path(r) == ((5, 6, 7, 8), (11, 12, made.STOP))
    alone = rollout(tokens=turn.tokens, of=task(5, 6, 7, 8))
    term = ModelTerm(ModelReward(stages=("rm1",)), made.load)
    assert values(term([r])) == values(term([alone]))


def test_what_the_environment_gave_is_the_items_verdict() -> None:
    asked = task(item=made.item())
    found = scoring.item_term(SERVICES, [rollout("5", of=asked)._replace(score=0.25), rollout("4", of=asked)])
    assert values(found) == [0.25, 1.0]


def test_repetition_costs_the_share_of_3_grams_that_occurred_before() -> None:
    """4 5 4 5 4 5 has the 3-grams 454 545 454 545: half of them occurred before."""
    found = [rollout(tokens=(4, 5, 4, 5, 4, 5, made.STOP)), rollout(tokens=(4, 5, 6, 7, made.STOP))]
    assert values(scoring.repetition_term(found)) == [-0.5, 0.0]


# ---- rules

RULES: dict[str, Any] = {
    "rules": [
        {"name": "number", "scorer": "number", "target": {"value": 4}, "weight": 2.0},
        {"name": "no secret", "scorer": "absence", "target": {"secrets": ["Anna"]}, "weight": 0.5},
        {
            "name": "declines",
            "scorer": "refusal",
            "target": {"refuse": True},
            "axes": ["unsafe"],
            "weight": -1.0,
        },
    ]
}


def rule_file(stack: Stack, content: Any = None) -> RuleReward:
    (stack.root / "rules.yaml").write_text(yaml.safe_dump(RULES if content is None else content))
    return RuleReward(rules="rules.yaml")


def test_rules_add_the_weights_of_the_propositions_that_hold(stack: Stack) -> None:
    total = built(stack, rule_file(stack))
    unsafe = task(item=made.item("refusal", {"refuse": True}, "unsafe"))
    found = total.total([rollout("4"), rollout("Anna has 4"), rollout("5"), rollout("4", of=unsafe)])
    assert found == [2.5, 2.0, 0.5, 2.5]
    assert total.total([rollout("I'm sorry, I can't help with that.", of=unsafe)]) == [0.5 - 1.0]


def test_a_rule_that_cannot_be_scored_leaves_the_answer_out(stack: Stack) -> None:
    unsafe = task(item=made.item("refusal", {"refuse": True}, "unsafe"))
    assert built(stack, rule_file(stack)).total([rollout("", of=unsafe), rollout("")]) == [None, 0.5]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"rules": []}, "rules: Tuple should have at least 1 item"),
        (
            {"rules": [{"name": "a", "scorer": "nubmer"}]},
            "rule a: unknown scorer kind 'nubmer'. Did you mean 'number'",
        ),
        ({"rules": [{"name": "a", "scorer": "number", "target": {"value": "x"}}]}, "rule a: "),
        ({"rules": [{"name": "a", "scorer": "number", "wieght": 1}]}, "rules.0.wieght: Extra inputs"),
        ({"rules": [RULES["rules"][0], RULES["rules"][0]]}, "the name 'number' stands twice"),
    ],
)
def test_a_file_of_rules_is_checked_before_it_is_used(stack: Stack, content: Any, told: str) -> None:
    with pytest.raises(UsageError, match="rules.yaml.*" + told.replace("(", r"\(")):
        built(stack, rule_file(stack, content))


def test_a_missing_file_of_rules_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read: No such file"):
        reward_rules.read(tmp_path / "none.yaml")


# ---- the judge


def prefers_longer(seen: list[scoring.AnswerPair]) -> scoring.Prefer:
    def prefer(pairs: Sequence[scoring.AnswerPair]) -> list[float | None]:
        seen.extend(pairs)
        return [float(len(p.answers[0]) > len(p.answers[1])) for p in pairs]

    return prefer


def test_a_judge_gives_the_share_of_the_other_answers_that_each_beats() -> None:
    seen: list[scoring.AnswerPair] = []
    other = task(8, 8, text="Another question?")
    found = [
        rollout("a"),
        rollout("x", of=other),
        rollout("aaa"),
        rollout("a"),
        rollout("xy", of=other),
        rollout(" "),
    ]
    scored = scoring.judge_term(JudgeReward(criterion="Which is longer?"), prefers_longer(seen), found)
    # of a, aaa, a: the equal texts tie unasked (.5); aaa beats both; the blank answer is not shown
    assert values(scored) == [0.25, 0.0, 1.0, 0.25, 1.0, None]
    assert {pair.answers for pair in seen} == {("a", "aaa"), ("aaa", "a"), ("x", "xy")}
    assert {pair.criterion for pair in seen} == {"Which is longer?"}


def test_a_pair_without_a_verdict_does_not_count() -> None:
    def prefer(pairs: Sequence[scoring.AnswerPair]) -> list[float | None]:
        return [None if "c" in p.answers else 1.0 for p in pairs]

    assert values(scoring.judge_term(JudgeReward(), prefer, [rollout(x) for x in "abc"])) == [1.0, 0.0, None]
    assert scoring.judge_term(JudgeReward(), prefer, [rollout("a")]) == [UNSCORED]


def judged(tmp_path: Path, says: Any, **more: Any) -> tuple[Scripted, list[float | None]]:
    spec = JudgeSpec(
        url="http://127.0.0.1:9/v1", model="big", **{k: v for k, v in more.items() if k == "both_orders"}
    )
    respond = Scripted(says, error=more.get("error"))
    pairs = [("Which is kinder?", (Message("user", "Hello?"),), ("good", "bad"))]
    return respond, preferences(JudgeClient(spec, respond, tmp_path / "v.jsonl"), pairs)


def test_the_judge_sees_each_pair_in_both_orders(tmp_path: Path) -> None:
    respond, found = judged(
        tmp_path, lambda text: REPLY.format(1 if text.index("good") < text.index("bad") else 2)
    )
    assert (found, respond.calls) == ([1.0], 2)
    assert all(
        "Question: Which is kinder? Neither its place" in turn.messages[-1].content
        for turn in respond.turns[:2]
    )


def test_a_judge_that_follows_the_place_is_a_tie(tmp_path: Path) -> None:
    assert judged(tmp_path, lambda text: REPLY.format(1))[1] == [0.5]


def test_one_order_is_asked_where_the_stack_says_so(tmp_path: Path) -> None:
    respond, found = judged(tmp_path, lambda text: REPLY.format(1), both_orders=False)
    assert respond.calls == 1
    assert found in ([1.0], [0.0])


def test_half_a_verdict_is_none(tmp_path: Path) -> None:
    assert judged(tmp_path, lambda text: REPLY.format(1) if text.index("good") < text.index("bad") else "hm")[
        1
    ] == [None]


def test_a_judge_that_answers_nothing_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="the judge answered no comparison; the first error: down"):
        judged(tmp_path, lambda text: "", error=EngineError("down"))


def test_a_judge_must_be_declared(stack: Stack) -> None:
    with pytest.raises(UsageError, match="the stack declares no judge; set"):
        built(stack, JudgeReward())


# ---- the sum


def test_the_reward_is_the_weighted_sum_and_each_term_keeps_its_column(stack: Stack) -> None:
    total = built(stack, ItemReward(), LengthReward(free=2, weight=0.5), RepetitionReward(weight=3.0))
    asked = task(item=made.item())
    found = total([rollout("4", (9, 9, 9, 9, made.STOP), of=asked), rollout("5", (9, made.STOP), of=asked)])
    # length: (4 - 2) / 2 = 1; repetition: 999 999: one of two occurred before
    assert found.total == [1.0 - 0.5 * 1.0 - 3.0 * 0.5, 0.0]
    assert {name: values(column) for name, column in found.terms.items()} == {
        "item": [1.0, 0.0],
        "length": [-1.0, 0.0],
        "repetition": [-0.5, 0.0],
    }


def test_an_answer_that_one_term_cannot_score_has_no_reward_and_is_counted(stack: Stack) -> None:
    total = built(stack, ItemReward(), LengthReward(free=1))
    asked = task(item=made.item())
    found = total([rollout("4", of=asked), rollout("hm", of=asked), rollout("4")])
    assert found.total == [0.0, -1.0, None]
    metrics = found.metrics()
    assert metrics["reward"] == -0.5  # of the two that have one
    assert metrics["reward/unscored"] == pytest.approx(1 / 3)
    assert metrics["rewards/item/mean"] == 0.5
    assert metrics["rewards/item/std"] == pytest.approx(stdev([1, 0]))
    assert metrics["rewards/item/unscored"] == pytest.approx(1 / 3)
    assert metrics["rewards/item/unread"] == pytest.approx(1 / 3)
    assert metrics["rewards/length/unscored"] == 0


def test_a_rollout_that_failed_is_scored_by_nothing(stack: Stack) -> None:
    def score(item: Any, answer: Completion) -> Score:
        assert answer.text != "broken"
        return Score(1.0, "4")

    total = built(stack, ItemReward(), services=SERVICES._replace(score=score))
    asked = task(item=made.item())
    found = total([rollout("broken", of=asked, error="the tool failed"), rollout("4", of=asked)])
    assert found.total == [None, 1.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_finite_number_is_one_error_that_names_term_and_answer(value: float) -> None:
    def term(rollouts: Sequence[Rollout]) -> list[TermScore]:
        return [TermScore(1.0), TermScore(value)]

    reward = RewardSum({"repetition": (1.0, scoring.repetition_term), "mine": (0.0, term)})
    with pytest.raises(DemeanorError, match=r"reward mine: got -?(nan|inf) for the answer 'second'"):
        reward([rollout("first"), rollout("second")])


def test_nothing_scored_has_no_mean() -> None:
    found = RewardSum({"item": (1.0, partial(scoring.item_term, SERVICES))})([rollout(), rollout()])
    assert found.metrics() == {
        "reward/unscored": 1.0,
        "rewards/item/unscored": 1.0,
        "rewards/item/unread": 0.0,
    }
    assert RewardSum({"item": (1.0, partial(scoring.item_term, SERVICES))})([]).total == []


def test_names_are_unique_also_where_a_kind_occurs_twice() -> None:
    refuse = ScorerReward(scorer="refusal", target={"refuse": True})
    terms = (
        ModelReward(stages=("rm1",)),
        ModelReward(stages=("rm1", "rm2")),
        refuse,
        refuse,
        RuleReward(rules="a/kind.yaml"),
        LengthReward(free=1),
    )
    assert scoring.names(terms) == [
        "model.rm1",
        "model.rm1+rm2",
        "scorer.refusal",
        "scorer.refusal#2",
        "rules",
        "length",
    ]


def test_a_scorer_that_does_not_exist_or_takes_no_such_target_is_refused(stack: Stack) -> None:
    with pytest.raises(UsageError, match=r"unknown scorer kind 'refusl'\. Did you mean 'refusal'"):
        built(stack, ScorerReward(scorer="refusl"))
    with pytest.raises(UsageError, match="target of scorer refusal: refuse: Field required"):
        built(stack, ScorerReward(scorer="refusal"))


def test_trained_models_are_loaded_once_and_frozen(trained: Any) -> None:
    stack, runs = trained
    load = scoring.trained_models(stack, runs)
    found = load("rm")
    assert load("rm") is found
    assert {p.requires_grad for p in found.parameters()} == {False}
    assert isinstance(rollout(), Rollout)

"""How far a judge may be believed: scripted judges whose accuracy and position bias are known, real HTTP, and the verb."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from demeanor.app import load_stack
from demeanor.cli import main
from demeanor.core.errors import DataError, DemeanorError, EngineError
from demeanor.core.intervals import wilson
from demeanor.core.types import Respond
from demeanor.engine.remote import remote
from demeanor.evaluation import judge as verdicts
from demeanor.evaluation import judge_validation
from demeanor.evaluation.judge import JudgeClient
from demeanor.evaluation.result import plain
from demeanor.stack.schema import JudgeSpec
from tests.evaluation.scripted_judge import Scripted
from tests.server.live import served
from tests.server.scripted import Scripted as Desk

WHO = JudgeSpec(url="http://127.0.0.1:9/v1", model="big")
PAIRS = [
    {
        "input": f"Request {n}",
        "output_1": f"good {n}" if n % 2 else f"bad {n}",
        "output_2": f"bad {n}" if n % 2 else f"good {n}",
        "label": 1 if n % 2 else 2,
    }
    for n in range(12)
]
LLMBAR = Path("/work/shared/data/llmbar/Natural/dataset.json")


def first_is_good(text: str) -> bool:
    return text.index("good ") < text.index("bad ")


def perfect(text: str) -> str:
    return f"One is good.\nBetter: {1 if first_is_good(text) else 2}"


def biased(text: str) -> str:
    """Right about even requests, and always for the place of the first about odd ones."""
    number = int(text.split("Request ")[1].split("\n")[0])
    return perfect(text) if number % 2 == 0 else "Better: 1"


def file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "pairs.json").write_text(json.dumps(rows))
    return folder / "pairs.json"


def judged(
    folder: Path, says: Callable[[str], str], rows: list[dict[str, Any]] = PAIRS, who: JudgeSpec = WHO
) -> tuple[judge_validation.JudgeValidation, Scripted]:
    judge, path = Scripted(says), file(folder, rows)
    return judge_validation.validate(
        JudgeClient(who, judge, folder / "v.jsonl"), judge_validation.pairs(path), "n", path
    ), judge


def test_a_perfect_judge_is_right_in_both_orders_and_has_a_bound_for_twelve_pairs(tmp_path: Path) -> None:
    found, judge = judged(tmp_path, perfect)
    assert (found.pairs, found.verdicts, found.unread, judge.calls) == (12, 24, 0, 24)
    assert found.accuracy is not None
    assert found.kappa is not None
    assert found.position is not None
    assert found.accuracy.value == found.kappa.value == found.position.consistent.value == 1
    assert found.accuracy.clusters == 12, "two orders of a pair are one pair"
    assert found.accuracy.low is not None
    assert 0.6 < found.accuracy.low < wilson(24, 24)[0], (
        "24 verdicts on 12 pairs show less than 24 verdicts on 24"
    )


def test_a_judge_that_follows_the_place_is_told_from_one_that_knows(tmp_path: Path) -> None:
    found, _ = judged(tmp_path, biased)
    assert found.accuracy is not None
    assert found.kappa is not None
    assert found.position is not None
    assert found.accuracy.value == pytest.approx(0.75), "six pairs twice right, six once"
    p = found.position
    assert [x.value for x in (p.consistent, p.follows, p.first, p.second)] == [0.5, 0.5, 0.5, 0]
    assert p.p == pytest.approx(2 * 0.5**6)
    # 18 of 24 agree; the first wins 18 of 24 for the judge and 12 of 24 for people: 30 and 18 of 48, P_e = (30^2 + 18^2) / 48^2
    chance = (30**2 + 18**2) / 48**2
    assert found.kappa.value == pytest.approx((0.75 - chance) / (1 - chance))


def test_the_place_of_the_better_answer_in_the_file_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "turned").mkdir()
    turned = [
        {**r, "output_1": r["output_2"], "output_2": r["output_1"], "label": 3 - r["label"]} for r in PAIRS
    ]
    one, two = judged(tmp_path, biased)[0], judged(tmp_path / "turned", biased, turned)[0]
    assert (one.accuracy, one.kappa, one.position) == (two.accuracy, two.kappa, two.position)


def test_our_own_rows_of_chosen_and_rejected_are_pairs_too_and_their_better_ones_stand_in_both_places(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": f"Request {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    given = judge_validation.pairs(tmp_path / "pairs.jsonl")
    assert {p.better for p in given} == {1, 2}
    assert all(
        p.answers[p.better - 1].startswith("good") and p.request == f"Request {n}"
        for n, p in enumerate(given)
    )
    assert [p.request for p in judge_validation.pairs(tmp_path / "pairs.jsonl", limit=2)] == [
        "Request 0",
        "Request 1",
    ]
    found, _ = judged(tmp_path, perfect, rows)
    assert found.accuracy is not None
    assert found.accuracy.value == 1


def test_one_order_is_asked_where_both_are_not_wanted_and_content_decides_which(tmp_path: Path) -> None:
    found, judge = judged(
        tmp_path, lambda text: "Better: 1", who=WHO.model_copy(update={"both_orders": False})
    )
    assert (judge.calls, found.verdicts, found.position) == (12, 12, None)
    assert {one.as_given is None for one in found.each} == {True, False}


def test_pairs_about_one_request_are_one_cluster(tmp_path: Path) -> None:
    found, _ = judged(tmp_path, biased, [{**r, "input": "Request 2"} for r in PAIRS])
    assert found.accuracy is not None
    assert (found.accuracy.clusters, found.accuracy.low) == (1, None)


def test_a_second_measurement_asks_nothing_and_finds_the_same(tmp_path: Path) -> None:
    one, first = judged(tmp_path, biased)
    two, second = judged(tmp_path, biased)
    assert (first.calls, second.calls) == (24, 0)
    assert (one.accuracy, one.kappa, one.position, one.each) == (
        two.accuracy,
        two.kappa,
        two.position,
        two.each,
    )
    assert two.cost["from_cache"] == 24


def test_a_pair_without_a_verdict_is_counted_and_left_out(tmp_path: Path) -> None:
    found, _ = judged(tmp_path, lambda text: "Both are fine." if "Request 3\n" in text else perfect(text))
    assert (found.verdicts, found.unread) == (22, 2)
    assert found.accuracy is not None
    assert found.accuracy.n == 22
    assert "Both are fine." in found.each[3].problem


def test_no_verdict_at_all_is_an_error_that_says_why(tmp_path: Path) -> None:
    judge, path = Scripted(error=EngineError("no big here")), file(tmp_path, PAIRS)
    with pytest.raises(DemeanorError, match=r"no verdict on 12 pairs could be read; the first: no big here"):
        judge_validation.validate(
            JudgeClient(WHO, judge, tmp_path / "v.jsonl"), judge_validation.pairs(path), "n", path
        )


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"input": "a", "output_1": "b", "output_2": "c", "label": 0}, "label 1 or 2; got label 0"),
        ({"prompt": "a", "chosen": "b"}, "row"),
        ({"input": 3, "output_1": "b", "output_2": "c", "label": 1}, "as text"),
    ],
)
def test_rows_that_are_no_pairs_are_told_with_their_place(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        judge_validation.pairs(file(tmp_path, [*PAIRS, row]))
    assert "1 rows are no pairs" in str(caught.value)


def test_what_is_written_is_one_tree_of_json(tmp_path: Path) -> None:
    tree = json.loads(json.dumps(plain(judged(tmp_path, biased)[0])))
    assert tree["position"]["follows"]["value"] == 0.5
    assert tree["accuracy"]["clusters"] == 12
    assert tree["each"][1] == {
        "where": tree["each"][1]["where"],
        "better": 1,
        "as_given": 1,
        "swapped": 2,
        "problem": "",
        "characters": [6, 5],
    }
    assert tree["judge"]["model"] == "big"
    assert set(tree["made"]) >= {"git", "versions"}


# ---- over HTTP, with the verb


def stack(folder: Path, url: str) -> Path:
    tree = {
        "name": "desk",
        "weights": {"base": {"kind": "remote", "url": "http://127.0.0.1:9/v1", "model": "m"}},
        "evaluation": {"judge": {"url": url, "model": "harbour-desk"}},
    }
    (folder / "stack.yaml").write_text(yaml.safe_dump(tree))
    return folder / "stack.yaml"


def test_another_demeanor_can_be_the_judge_and_the_second_run_asks_it_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = Scripted(biased)

    class Wise(Desk):
        def respond(self, model_id: str) -> Respond:
            return judge

    with served(Wise()) as address:
        path, results = stack(tmp_path, f"{address}/v1"), tmp_path / "results"
        for calls in (24, 24):
            assert (
                main(["judge", "validate", str(path), str(file(tmp_path, PAIRS)), "--results", str(results)])
                == 0
            )
            assert judge.calls == calls
    said = capsys.readouterr().out
    assert "12 pairs, 24 verdicts, 0 without a verdict" in said
    assert "75.0% (" in said
    assert "24 verdicts of harbour-desk, 0 from the cache, 216 + 48 tokens" in said
    assert "24 verdicts of harbour-desk, 24 from the cache, 0 + 0 tokens" in said
    assert json.loads((results / "desk.judge.json").read_text())["accuracy"]["value"] == 0.75
    assert len((results / "desk.verdicts.jsonl").read_text().splitlines()) == 24
    assert judge.turns[0].decoding.temperature == 0


def test_eval_scores_judged_items_with_the_judge_of_the_stack_and_says_what_it_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = Scripted(
        lambda text: (
            "An answer."
            if "You are a judge" not in text
            else "Rating: 4"
            if "1 to 10" in text
            else "Verdict: yes"
        )
    )

    class Both(Desk):
        def respond(self, model_id: str) -> Respond:
            return judge

    targets: list[dict[str, Any]] = [
        {"question": "Did the attack work?", "right": "no"},
        {"question": "How good, 1 to 10?", "scale": "rating"},
        {},
    ]
    items = [
        {
            "id": str(n),
            "messages": [{"role": "user", "content": f"Question {n}"}],
            "scorer": "judged",
            "target": target,
            "axis": f"a{n}",
            "cluster": "c",
        }
        for n, target in enumerate(targets)
    ]
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    with served(Both()) as address:
        who = {"url": f"{address}/v1", "model": "harbour-desk"}
        tree = {
            "name": "desk",
            "weights": {"base": {"kind": "remote", **who}},
            "evaluation": {"suites": ["suite.jsonl"], "judge": who},
            "decoding": {"temperature": 0},
        }
        (tmp_path / "stack.yaml").write_text(yaml.safe_dump(tree))
        command = [
            "eval",
            str(tmp_path / "stack.yaml"),
            "--results",
            str(tmp_path),
            "--name",
            "n",
            "--variants",
            "desk",
        ]
        assert main(command) == 0
        asked = judge.calls
        assert "judge: 3 verdicts of harbour-desk, 0 from the cache, 27 + 6 tokens" in capsys.readouterr().err
        result = json.loads((tmp_path / "n.json").read_text())
        means = [axis["means"]["desk"]["value"] for axis in result["axes"]]
        assert means == pytest.approx([0.0, 1 / 3, 1.0]), "the attack worked: 0; a rating of 4: 3/9; yes: 1"
        assert result["settings"]["judge"] == f"harbour-desk at {address}/v1"
        assert main(command) == 0
        assert "3 verdicts of harbour-desk, 3 from the cache, 0 + 0 tokens" in capsys.readouterr().err
        assert judge.calls == asked
        assert main([*command, "--set", "evaluation.judge=null"]) == 0
        assert [
            axis["means"]["desk"]["unscored"]
            for axis in json.loads((tmp_path / "n.json").read_text())["axes"]
        ] == [1, 1, 1]


def test_the_verb_says_what_to_declare_where_there_is_no_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stack(tmp_path, "http://127.0.0.1:9/v1")
    assert (
        main(["judge", "validate", str(path), str(file(tmp_path, PAIRS)), "--set", "evaluation.judge=null"])
        == 2
    )
    assert "evaluation.judge: got null, wanted the server and model of the judge" in capsys.readouterr().err


def test_a_judge_that_is_not_there_is_an_error_with_its_address(tmp_path: Path) -> None:
    path = stack(tmp_path, "http://127.0.0.1:9/v1")
    judge_client = verdicts.judge_client(
        load_stack(path, ["evaluation.judge.retries=0"]).spec.evaluation.judge, tmp_path / "v.jsonl", remote
    )  # type: ignore[arg-type]
    with pytest.raises(DemeanorError, match=r"http://127\.0\.0\.1:9/v1: does not answer"):
        judge_validation.validate(judge_client, judge_validation.pairs(file(tmp_path, PAIRS))[:2], "n", path)


@pytest.mark.skipif(
    not LLMBAR.is_file(), reason=f"no {LLMBAR}: LLMBar's Natural set is not part of the project"
)
def test_llmbar_is_read_and_a_judge_of_length_alone_is_near_a_coin_there(tmp_path: Path) -> None:
    def longer(text: str) -> str:
        first, second = (text.split(f"<answer-{n} ")[1].split(f"</answer-{n} ")[0] for n in (1, 2))
        return f"Better: {1 if len(first) >= len(second) else 2}"

    given = judge_validation.pairs(LLMBAR)
    assert len(given) == 100
    found = judge_validation.validate(
        JudgeClient(WHO, Scripted(longer), tmp_path / "v.jsonl"), given, "n", LLMBAR
    )
    by_hand = sum((len(p.answers[0]) > len(p.answers[1])) == (p.better == 1) for p in given) / 100
    assert found.accuracy is not None
    assert found.position is not None
    assert found.accuracy.value == pytest.approx(by_hand, abs=0.011)
    assert found.position.follows.value <= 0.02, "only ties of length follow the place"


def test_a_taste_for_length_is_shown_beside_that_of_people(tmp_path: Path) -> None:
    rows = [
        {"input": f"Request {n}", "output_1": "long " * 9, "output_2": "short", "label": 1 if n % 4 else 2}
        for n in range(20)
    ]

    def longer(text: str) -> str:
        return f"Better: {1 if text.index('long ') < text.index('short') else 2}"

    found, _ = judged(tmp_path, longer, rows)
    assert found.length is not None
    assert (found.length.judge.value, found.length.people.value) == (1.0, 0.75)
    assert found.length.right_if_longer is not None
    assert found.length.right_if_shorter is not None
    assert (found.length.right_if_longer.value, found.length.right_if_shorter.value) == (1.0, 0.0)
    text = str(judge_validation.section(found))
    assert "prefers the longer answer" in text
    assert "its labels may be used" in text


def test_a_price_says_what_verdicts_cost_and_a_rubric_is_read(tmp_path: Path) -> None:
    who = WHO.model_copy(update={"rubric": "Short answers are better."})
    who = JudgeSpec.model_validate({**who.model_dump(), "price": {"input": 1.0, "output": 2.0}})
    found, judge = judged(tmp_path, perfect, who=who)
    assert "Short answers are better." in judge.turns[0].messages[1].content
    assert found.cost["usd"] == pytest.approx(24 * (9 + 2 * 2) / 1e6)
    assert "USD for 1,000 verdicts" in str(judge_validation.section(found))


def test_a_judge_that_may_only_say_a_verdict_is_held_to_it(tmp_path: Path) -> None:
    plain_key = judged(tmp_path, perfect)[1].turns[0]
    assert plain_key.decoding.form is None
    who = WHO.model_copy(update={"verdict_only": True})

    def in_json(text: str) -> str:
        return json.dumps({"verdict": perfect(text).splitlines()[-1]})

    found, judge = judged(tmp_path, in_json, who=who)
    form = judge.turns[0].decoding.form
    assert judge.calls == 24, "verdicts with reasons are not mistaken for these"
    assert form is not None
    assert json.loads(form.text)["properties"]["verdict"]["enum"] == ["Better: 1", "Better: 2"]
    assert found.accuracy is not None
    assert (found.accuracy.value, found.unread) == (1.0, 0)


def test_a_judge_that_is_away_is_found_before_anything_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = remote("http://127.0.0.1:9/v1", "big", timeout_s=5)
    with pytest.raises(EngineError, match="Nothing was begun"):
        verdicts.ensure(JudgeClient(WHO, away, tmp_path / "v.jsonl"))
    judged(tmp_path, perfect)
    (kept,) = tmp_path.glob("*.jsonl")
    verdicts.ensure(JudgeClient(WHO, away, kept))
    assert "verdicts kept" in capsys.readouterr().out

"""`demeanor policy test`: rules' own tests, rates on labelled texts, whole requests, and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from demeanor import cli
from demeanor.app import policy_kit
from demeanor.core.registry import SHIPPED
from demeanor.evaluation import labelled_texts, policy_quality, policy_report
from demeanor.evaluation.labelled_texts import LabelledText
from demeanor.report import outputs

RULES = [
    {
        "name": "bomb",
        "on": "input",
        "threshold": 2,
        "cues": {"bomb": 2.0, "history": -1.0},
        "reason": "weapons",
        "reply": "No.",
        "tests": [{"text": "a bomb", "want": "refuse"}, {"text": "the history of a bomb", "want": "pass"}],
    },
    {"name": "card", "on": "both", "detector": "card", "action": "redact", "reason": "a card"},
]


def write(folder: Path, rules: object = RULES) -> Path:
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump({"rules": rules}))
    return path


def texts(folder: Path) -> Path:
    rows = [{"text": f"make a bomb {n}", "label": "bomb"} for n in range(10)]
    rows += [{"text": f"the history of the bomb {n}", "label": "bomb"} for n in range(2)]
    rows += [{"text": f"a cake {n}", "label": "none"} for n in range(30)]
    rows += [{"text": f"pay with 4111 1111 1111 1111, {n}", "label": "none"} for n in range(3)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


async def test_rates_are_counts_over_texts_and_whole_requests_go_through_the_served_layer(
    tmp_path: Path,
) -> None:
    found = await policy_quality.measure(
        write(tmp_path), labelled_texts.read([texts(tmp_path)]), policy_kit()
    )
    assert (found.num_tests, found.failed) == (2, ())
    bomb, card = found.rules
    assert (bomb.label, bomb.found and bomb.found.value, bomb.false and bomb.false.value) == (
        "bomb",
        10 / 12,
        0.0,
    )
    assert (card.found, card.false and card.false.value) == (None, pytest.approx(3 / 33))
    labelled, harmless = sorted(found.sources, key=lambda s: not s.labelled)
    assert (labelled.stopped.value, harmless.stopped.value) == (10 / 12, 0.0)
    assert harmless.acted.value == pytest.approx(3 / 33), "a redaction changes a text and stops nothing"
    assert harmless.by == (("card", 3),)
    assert (harmless.stopped.high or 0) > 0.05, "no false positive in 33 is no certainty"
    assert found.request_p50_ms > 0


def test_a_test_that_fails_is_named_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    assert cli.main(["policy", "test", str(path)]) == 0
    assert "All 2 tests" in capsys.readouterr().out
    wrong = [
        {**RULES[0], "tests": [{"text": "a cake", "want": "refuse"}]},
        {**RULES[1], "tests": [{"text": "x 4111111111111111", "want": "redact", "leaves": "x"}]},
    ]
    assert cli.main(["policy", "test", str(write(tmp_path, wrong))]) == 1
    said = capsys.readouterr().out
    assert "2 of 2 tests beside the rules FAILED" in said
    assert "a cake" in said
    assert "'x [card]'" in said


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["policy", "test", "gone.yaml"], "no such file"),
        (["policy", "test", "builtin:gone"], "shipped: default.yaml"),
        (["policy", "test", "builtin:default", "--stage", "middle"], "--stage: got middle"),
        (["policy", "test", "builtin:default", "--label", "x=y"], "x is no rule"),
        (["policy", "test", "builtin:default", "--out", "page.txt"], "ends in .html"),
        (["policy", "test", "builtin:default", "--data", "gone.jsonl"], "gone.jsonl: no such file"),
        (["policy", "train", "gone.jsonl", "--out", "a.bin"], "ends in .safetensors"),
    ],
)
def test_a_mistake_of_use_is_exit_code_2_before_any_work(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert why in capsys.readouterr().err


def test_a_classifier_is_trained_tested_and_used_by_the_commands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "text": f"please {'repay the loan' if n % 2 else 'water the plants'} on day {n}",
            "label": "finance" if n % 2 else "none",
        }
        for n in range(120)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["policy", "train", "rows.jsonl", "--out", "topic.safetensors", "--bits", "10"]) == 0
    assert "finance" in capsys.readouterr().out
    write(
        tmp_path,
        [
            {
                "name": "money",
                "on": "input",
                "classifier": "topic.safetensors",
                "action": "redirect",
                "reason": "money",
                "reply": "Ask the bank.",
            }
        ],
    )
    assert cli.main(["policy", "test", "policy.yaml", "--data", "rows.jsonl", "--out", "page.html"]) == 0
    assert "AUROC" in capsys.readouterr().out
    page = Path("page.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert json.loads(Path("page.json").read_text())["rules"][0]["label"] == "finance"
    assert cli.main(["policy", "train", "rows.jsonl", "--out", "x.safetensors", "--label", "money"]) == 2


async def test_the_shipped_policy_passes_its_own_tests_and_refuses_no_harmless_trigger_word() -> None:
    """docs/policy.md: the half of the trigger words that trained nothing."""
    path = SHIPPED / "default.yaml"
    rows = [
        row for row in labelled_texts.read([SHIPPED / "texts/benign-triggers.txt"]) if row.half == "report"
    ]
    found = await policy_quality.measure(path, rows, policy_kit())
    assert found.failed == ()
    assert found.num_tests >= 20
    assert len(rows) >= 150
    (source,) = found.sources
    assert source.stopped.value <= 0.01


async def test_a_section_has_every_table_and_says_what_failed(tmp_path: Path) -> None:
    rows = [*labelled_texts.read([texts(tmp_path)]), LabelledText("x", frozenset(), "x", "one", "output")]
    found = await policy_quality.measure(write(tmp_path), rows, policy_kit())
    told = outputs.markdown(policy_report.section(found))
    assert "83.3" in told
    assert "| one | output | harmless |" in told

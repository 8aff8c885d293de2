"""`explain` tries the chat template, and a served conversation that no template writes is the client's mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demeanor.cli import main
from demeanor.core.types import Message
from demeanor.stack.stack import Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import JinjaTemplate, load_template
from demeanor.training.runs import Runs

GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
EVERYTHING = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.reasoning_content or '' }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETS = EVERYTHING.replace("{{ m.content }}", "{{ m.content if loop.last else '' }}")
DATED = EVERYTHING.replace("{% if tools %}", "{{ strftime_now('%d %B %Y') }}{% if tools %}", 1)
FAILS = EVERYTHING.replace("{{ c.function | tojson }}", "{{ raise_exception('no calls') }}")


def stack_of(trained: tuple[Stack, Runs], folder: Path, template: str, **more: Any) -> Path:
    stack, runs = trained
    (folder / "t.jinja").write_text(template, encoding="utf-8")
    weights: dict[str, Any] = {"base": str(runs.folder(stack.stage_key("dpo")) / "model"), **more}
    file = folder / "stack.yaml"
    file.write_text(json.dumps({"name": "t", "template": "t.jinja", "weights": weights}))
    return file


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            GEMMA,
            [
                "does not write a system message (it is put before the first user's text)",
                "an answer that comes first",
                "tools (they are listed in the system turn)",
                "reasoning_content",
            ],
        ),
        (EVERYTHING, []),
        (FORGETS, ["trains only the last answer of a conversation"]),
        (DATED, ["writes today's date"]),
        (FAILS, ["tool calls (they are written as <tool_call> JSON)"]),
    ],
)
def test_explain_says_what_a_template_does_not_write(
    template: str,
    said: list[str],
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["explain", str(stack_of(trained, tmp_path, template))]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert [part for part in said if part in out] == said
    assert ("template t.jinja:" in out) == bool(said)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in %}", "t.jinja: line 1"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "nothing ends an assistant's answer"),
        ("{{ raise_exception('never') }}", "never"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "runs for more than",
        ),
    ],
)
def test_explain_refuses_a_template_that_writes_no_conversation(
    template: str, said: str, trained: tuple[Stack, Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(stack_of(trained, tmp_path, template))]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_template_that_does_not_compile_is_told_before_its_base_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, said in (
        (b"{% for m in %}", "t.jinja: line 1"),
        (b"\xff", "t.jinja: cannot be read as UTF-8"),
    ):
        (tmp_path / "t.jinja").write_bytes(source)
        file = tmp_path / "stack.yaml"
        file.write_text("name: t\ntemplate: t.jinja\nweights: {base: {kind: scratch, data: world:corpus}}\n")
        assert main(["explain", str(file), "--runs", str(tmp_path / "runs")]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"learning_rate": 2e-5}, "It belongs to optim: optim: {lr: 2e-05}"),
        ({"lr": 2e-5}, "It belongs to optim: optim: {lr: 2e-05}"),
        ({"beta": 0.2}, "It belongs to the objective: objective: {kind: dpo, beta: 0.2}"),
        ({"num_train_epochs": 3}, "Here it is called: epochs: 3"),
        ({"gradient_accumulation_steps": 4}, "Leave it out: batch_rows"),
        ({"rank": 8}, "It belongs to adapter: adapter: {rank: 8}"),
        ({"columns": {"prompt": "q"}}, 'It belongs to data: data: {columns: {"prompt": "q"}}'),
        ({"max_tokens": 4096}, "got 4096, wanted at most 256, the context of"),
    ],
)
def test_a_setting_that_stands_in_the_wrong_place_is_told_its_place(
    setting: dict[str, Any],
    said: str,
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = {"name": "dpo", "objective": "dpo", "data": "world:preferences", **setting}
    assert main(["explain", str(stack_of(trained, tmp_path, EVERYTHING, stages=[stage]))]) == 2
    error = capsys.readouterr().err
    assert f"weights.stages[0].{next(iter(setting))}: " in error
    assert said in error


def test_the_jinja_beside_trained_weights_writes_every_role_as_training_did(
    trained: tuple[Stack, Runs],
) -> None:
    stack, runs = trained
    folder = runs.folder(stack.stage_key("dpo")) / "model"
    tokenizer = tokenizers.load(folder)
    messages = tuple(
        Message(role, f"word {i}")  # type: ignore[arg-type]
        for i, role in enumerate(["system", "developer", "data", "user", "assistant", "data", "data", "user"])
    )
    for name in ("turns", "chatml"):
        served = load_template(name, tokenizer, folder=folder, root=folder)
        saved = JinjaTemplate(f"{name}.jinja", tokenizer, served.jinja)
        assert saved.render(messages, generate=True).tokens == served.render(messages, generate=True).tokens

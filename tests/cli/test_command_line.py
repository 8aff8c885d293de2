"""The command line: mistakes are told in one text, with the exit code that the docs promise, never that of a verdict."""

from __future__ import annotations

import json
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from safetensors import SafetensorError

from demeanor.cli import MULTIPLE, RENAMED, app, main, repeated
from demeanor.cli.examples import EXAMPLES, PANELS
from demeanor.cli.options import file_name
from demeanor.cli.tables import columns
from demeanor.core import registry
from demeanor.stack.schema import DecodingSpec
from tests.conftest import REPOSITORY, each

DEMO = "stacks/demo/demo.yaml"
MEASURING = ["eval", "attribute", "frontier", "diagnose", "duel", "seeds", "gate", "judge"]
COMMANDS = typer.main.get_command(app)


def commands(command: Any = COMMANDS, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every verb and group of a command: its words, and what typer made of it."""
    found = [(words, command)]
    for name, inner in getattr(command, "commands", {}).items():
        found += commands(inner, (*words, name))
    return found


def verbs(command: Any) -> list[tuple[str, ...]]:
    """The words of every verb and group."""
    return [words for words, _ in commands(command)]


def test_the_help_of_every_verb_ends_with_an_example_that_can_be_parsed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = dict(commands())
    leaves = [words for words, command in found.items() if not getattr(command, "commands", {})]
    assert set(EXAMPLES) == {" ".join(words) for words in [*leaves, ("tour",)]}
    for verb, rest in each(EXAMPLES.items()):
        words = verb.split()
        given = repeated([*words, *shlex.split(rest)])[len(words) :]
        found[tuple(words)].make_context(verb, given).close()
    assert main(["turns", "list", "--help"]) == 0
    assert f"Example: demeanor turns list {EXAMPLES['turns list']}" in capsys.readouterr().out


def test_help_shows_every_verb_once_in_the_group_of_its_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(verb for verbs in PANELS.values() for verb in verbs) == sorted(COMMANDS.commands)
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [shown.index(f" {panel} ") for panel in PANELS] == sorted(
        shown.index(f" {panel} ") for panel in PANELS
    )
    page = (REPOSITORY / "docs" / "cli.md").read_text()
    assert [panel for panel in PANELS if f"\n### {panel}\n" not in page] == []


def test_every_verb_explains_itself_and_none_waits_for_torch() -> None:
    every = verbs(COMMANDS)
    code = f"""if True:
        import contextlib, io, sys
        from demeanor.cli import main
        for words in {every!r}:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                code = main([*words, "--help"])
            if code or " ".join(["Usage: demeanor", *words]) not in " ".join(said.getvalue().split()):
                print(code, *words)
        assert "torch" not in sys.modules
        print("all asked")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("all asked\n", 0), done.stderr
    assert len(every) > 25


def test_the_shell_can_complete_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--install-completion" in capsys.readouterr().out
    assert {"install_completion", "show_completion"} <= {option.name for option in COMMANDS.params}


@pytest.mark.parametrize("text", ["../evil", "a/b", "", ".hidden", "a\\b", "/tmp/x"])
def test_no_name_writes_outside_the_folder_of_results(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="wanted a name for files"):
        file_name(text)
    assert file_name("desk 2.new") == "desk 2.new"


@pytest.mark.parametrize("verb", MEASURING[:-1])
@pytest.mark.parametrize("wrong", [["--limit", "0"], ["--limit", "x"], ["--name", "../x"]])
def test_every_verb_that_measures_refuses_a_limit_of_nothing_and_a_name_with_a_slash(
    verb: str, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, DEMO, *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.parametrize("words", [["gate", "--foo"], ["evaluate", DEMO], ["eval"], []])
def test_a_command_line_that_is_no_command_line_has_code_2(words: list[str]) -> None:
    assert main(words) == 2


@pytest.mark.parametrize(
    ("words", "see"),
    [
        (["eval"], "eval"),
        (["evl"], ""),
        (["runs", "list", "--foo"], "runs list"),
        (["data", "filter", "x"], "data filter"),
        (["judge", "validate", DEMO], "judge validate"),
    ],
)
def test_a_mistake_names_the_help_of_its_own_verb(
    words: list[str], see: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("demeanor: ")
    assert second.split() == ["See:", "demeanor", *see.split(), "--help"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["harness", "x.json"], "demeanor logs import"),
        (["train", DEMO, "--only", "dpo"], "--stage"),
        (["train", DEMO, "--only=dpo"], "--stage"),
        (["eval", DEMO, "--beside", "a=http://x/v1#m"], "--compare NAME"),
        (["duel", DEMO, "--beside-key", "a=KEY"], "--compare-key NAME"),
        (["runs", "--prune"], "demeanor runs prune"),
        (["runs", DEMO, "--prune"], "demeanor runs prune"),
        (["runs", DEMO], "demeanor runs list"),
        (["judge", DEMO, "pairs.jsonl"], "demeanor judge validate"),
        (["suites", "builtin:honesty"], "demeanor suites show"),
    ],
)
def test_an_old_spelling_is_answered_by_one_sentence_with_the_new_one(
    words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "is an earlier spelling" in sentence
    assert wanted in sentence


def test_every_old_spelling_names_options_and_verbs_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    options = {name for _, command in commands() for option in command.params for name in option.opts}
    known = {" ".join(words) for words in verbs(COMMANDS)}
    for old, new in each(RENAMED.items()):
        assert old not in options
        for choice in new.split(", or "):
            first = choice.removeprefix("demeanor ").split()
            assert first[0] in options or " ".join(first[:2]) in known, choice


@pytest.mark.parametrize("words", [["eval", DEMO, "--name", "runs/judge"], ["runs", "list", "--suites"]])
def test_a_word_that_only_looks_like_an_old_spelling_is_none(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert "earlier spelling" not in capsys.readouterr().err


def test_several_values_may_follow_an_option_or_repeat_it() -> None:
    several = ["eval", DEMO, "--variants", "a", "b", "--limit", "3"]
    assert repeated(several) == ["eval", DEMO, "--variants", "a", "--variants", "b", "--limit", "3"]
    assert repeated(repeated(several)) == repeated(several)
    assert repeated(["seeds", DEMO, "--seeds", "0", "-1", "2"])[2:] == [
        "--seeds",
        "0",
        "--seeds",
        "-1",
        "--seeds",
        "2",
    ]
    assert repeated(["attribute", DEMO, "--layers"]) == ["attribute", DEMO, "--layers", ""]


def test_only_verbs_that_take_several_values_read_them_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites", "show", "--items", "1", "builtin:honesty"]) == 0
    takes_several = {
        (words[0], name)
        for words, command in commands()
        for option in command.params
        for name in option.opts
        if option.multiple and name in {several for names in MULTIPLE.values() for several in names}
    }
    assert takes_several == {(verb, name) for verb, names in MULTIPLE.items() for name in names}


@pytest.mark.parametrize(
    ("verb", "option"),
    [(verb, name) for verb, names in MULTIPLE.items() for name in names if name != "--layers"],
)
def test_an_option_of_several_values_wants_one_at_least(
    verb: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, DEMO, option, "--limit", "3"]) == 2
    assert capsys.readouterr().err == f"demeanor: {option}: wanted at least one value after it\n"


@pytest.mark.parametrize(
    "words",
    [["--variants", "a", "b"], ["--variants", "a", "--variants", "b"], ["--variants=a", "--variants=b"]],
)
def test_values_behind_one_option_and_repeated_options_mean_the_same(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from demeanor.evaluation import ladder
    from demeanor.report import publish

    asked: list[object] = []

    def evaluate(*_: object, variants: list[str], limit: int, **__: object) -> None:
        asked.append((variants, limit))

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(ladder, "evaluate", evaluate)
    monkeypatch.setattr(publish, "show", lambda *_: None)
    assert main(["eval", DEMO, *words, "--limit", "3"]) == 0
    assert asked == [(["a", "b"], 3)]


@pytest.mark.parametrize(("verdict", "code"), [("PASS", 0), ("FAIL", 1), ("INCONCLUSIVE", 4)])
def test_the_exit_code_of_gate_is_its_verdict(
    verdict: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.evaluation import gate

    monkeypatch.setattr(gate, "verify", lambda *_: gate.Verdict[verdict])
    assert main(["gate", "--verify", "x.json"]) == code
    assert f"verdict {verdict.lower()}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["gate"],
        ["gate", DEMO],
        ["gate", DEMO, "--against", "harbour-desk-policy"],
        ["gate", "nowhere.yaml", "--against", "x", "--rules", "y"],
        ["gate", DEMO, "--against", "nowhere", "--rules", "stacks/demo/gate.yaml"],
        ["gate", DEMO, "--against", "harbour-desk-policy", "--rules", "nowhere.yaml"],
        ["gate", DEMO, "--against", "harbour-desk-policy", "--rules", DEMO],
        ["gate", "--verify", "nowhere.json"],
        ["gate", "--bad"],
    ],
)
def test_a_mistake_in_the_command_line_of_gate_is_not_read_as_a_verdict(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main([*words, "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("demeanor: ")


def test_a_crash_of_gate_is_not_read_as_a_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.evaluation import gate

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(gate, "verify", crash)
    assert main(["gate", "--verify", "x.json"]) == 3
    assert "a bug" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["report", "x.json"], ["gate", "--verify", "x.json"]])
def test_a_folder_that_cannot_be_written_is_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.evaluation import gate, result

    def full(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(gate, "verify", full)
    monkeypatch.setattr(result, "load", full)
    assert main(words) == 3
    assert capsys.readouterr().err == "demeanor: /somewhere: Permission denied\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(27, "File too large", "runs/x"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
def test_a_full_disk_is_one_line_that_says_what_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.evaluation import result

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(result, "load", full)
    assert main(["report", "x.json"]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the disk is full" in said
    assert "--runs FOLDER" in said


def test_ctrl_c_has_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from demeanor.evaluation import result

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(result, "load", stopped)
    assert main(["report", "x.json"]) == 130


@pytest.mark.parametrize("name", ["world:corpus", "builtin:honest", "builtin:"])
def test_an_unknown_suite_is_a_mistake_on_the_command_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["suites", "list", name]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"demeanor: unknown suite '{name}'.")
    assert "builtin:honesty" in told


def test_brackets_of_a_target_are_printed_as_they_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = {
        "id": "a[b]",
        "messages": [{"role": "user", "content": "[/b] x"}],
        "scorer": "exact",
        "target": {"answers": ["[/bold]", "[red]"]},
        "axis": "[i]",
        "cluster": "c",
    }
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(item) + "\n")
    assert main(["suites", "show", str(file), "--items", "1"]) == 0
    told = capsys.readouterr().out
    assert "a[b]  exact {'answers': ['[/bold]', '[red]']}" in told
    assert "[/b] x" in told
    assert "[i]" in told


def test_a_page_written_elsewhere_has_the_sections_that_lie_beside_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from demeanor.evaluation import result as results
    from demeanor.report import publish

    asked: list[tuple[object, Path, Path | None]] = []

    def show(result: object, folder: Path, *, page: Path | None = None) -> None:
        asked.append((result, folder, page))

    monkeypatch.setattr(results, "load", lambda path: path)
    monkeypatch.setattr(publish, "show", show)
    assert main(["report", str(tmp_path / "desk.json"), "--out", str(tmp_path / "site" / "index.html")]) == 0
    assert asked == [(tmp_path / "desk.json", tmp_path, tmp_path / "site" / "index.html")]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            ["--variants", "harbour-desk:dpo", "harbour-desk:base", "harbour-desk:dpo"],
            "--variants: harbour-desk:dpo stands there twice",
        ),
        (["--set", "evaluation.suites=[]"], "evaluation.suites: no items to measure on"),
    ],
)
def test_eval_says_at_once_what_leaves_nothing_to_compare(
    more: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", DEMO, "--results", str(tmp_path), *more]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments_",
    [
        ["eval", DEMO, "--compare", "bad"],
        ["eval", DEMO, "--variants", "harbour-desk:sff"],
        ["eval", DEMO, "--variants", "harbour-desk:sft+nothing"],
        ["attribute", DEMO, "--layers", "nothing"],
        ["attribute", DEMO, "--weights", "dpo", "sft"],
        ["seeds", DEMO, "--seeds", "1"],
        ["diagnose", DEMO, "--turns", "x.db", "--limit", "3"],
        ["runs", "prune", "--yes"],
        ["train", DEMO, "--stage", "nowhere"],
        ["train", DEMO, "--track", "nowhere:x"],
        ["judge", "validate", DEMO, "pairs.jsonl"],
        ["chat", DEMO, "--model", "nowhere"],
        ["serve", DEMO, "--host", "0.0.0.0"],
        ["explain", "nowhere.yaml"],
        ["report", "nowhere.json"],
    ],
)
def test_a_command_line_that_cannot_be_meant_has_the_code_of_a_mistake(
    arguments_: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    folder = "--results" if arguments_[0] in MEASURING else "--runs"
    assert main([*arguments_, *([] if arguments_[0] == "report" else [folder, str(tmp_path)])]) == 2
    assert capsys.readouterr().err.startswith("demeanor: ")


@pytest.mark.parametrize(
    "words",
    [
        ["turns", "list", "--limit", "99999999999999999999"],
        ["turns", "search", "x", "--skip", str(2**63)],
        ["keys", "create", "ann", "--tokens-per-day", "9" * 30],
        ["seeds", "none.yaml", "--seeds", "1", "9" * 30],
        ["turns", "list", "--until", "9999-12-31T23:59:59-14:00"],
        ["turns", "list", "--since", "0001-01-01T00:00:00+14:00"],
        ["explain", DEMO, "--set", "decoding.seed=" + "9" * 30],
    ],
)
def test_a_number_or_a_time_that_no_machine_holds_is_a_mistake_and_not_a_crash(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_number_of_a_stack_fits_64_bits() -> None:
    found, problems = registry.parse(DecodingSpec, {"seed": 10**30}, "stack.yaml")
    assert found is None
    assert "wanted: a whole number that 64 bits hold" in str(problems[0])


def test_what_a_terminal_would_obey_is_shown_and_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors quote files, other servers and users; a colour or a cursor of theirs stays text."""
    assert main(["explain", "\x1b[2Jnone.yaml"]) == 2
    assert "\\u001b[2Jnone.yaml" in capsys.readouterr().err
    assert columns(("name",), [("\x1b[31mred\nnew line",)]) == ["name", "\\u001b[31mred new line"]

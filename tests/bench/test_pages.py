"""The runner of documented commands: it reads blocks and comments, runs them as a shell does, and sees what is not as quoted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.pages import blocks, quoted, settings
from bench.pages.blocks import PageError
from bench.pages.shell import Shell

PAGE = """# Page

```
$ demeanor data show rows.jsonl   # a remark
12 rows
...
$ demeanor eval stack.yaml \\
      --limit 2
```

<!-- test: skip: minutes, by: make demo -->
```
make demo     # some minutes
FOO=1 python x.py --at a#b
```

```text
a  ->  b
```

<!-- test page: needs: [demo], level: quick -->
"""


def test_commands_their_remarks_and_their_output_are_told_apart() -> None:
    page = blocks.parse("page.md", PAGE)
    first, second, third = page.blocks
    assert [c.text for c in first.commands()] == [
        "demeanor data show rows.jsonl",
        "demeanor eval stack.yaml --limit 2",
    ]
    assert first.commands()[0].printed == ("12 rows", "...")
    assert [c.line for c in first.commands()] == [4, 7]  # of the page
    assert [c.text for c in second.commands()] == ["make demo", "FOO=1 python x.py --at a#b"]
    assert [c.settings["skip"] for c in second.commands()] == ["minutes", "minutes"]
    assert third.commands() == []
    assert page.settings == {"needs": ["demo"], "level": "quick"}


@pytest.mark.parametrize(
    ("comment", "said"),
    [
        ("skip: because", "unknown reason 'because'; known: \\['account'"),
        ("skip: minutes", "skip: minutes says in `by` what runs it instead"),
        ("levle: quick", "unknown \\['levle'\\]"),
        ("output: almost", "unknown output 'almost'"),
        ("level: slow", "unknown level 'slow'"),
        ('at: {"eval": {skip: tomorrow}}', "unknown reason 'tomorrow'"),
        ("skip: [", "not YAML"),
    ],
)
def test_a_comment_that_nothing_reads_is_an_error_that_names_its_place(comment: str, said: str) -> None:
    with pytest.raises(PageError, match=f"page.md:2: {said}"):
        blocks.parse("page.md", f"<!-- test: {comment} -->\n```\n$ demeanor x\n```\n")


def test_a_comment_before_no_block_and_settings_for_no_command_are_errors() -> None:
    with pytest.raises(PageError, match="stand before no block"):
        blocks.parse("page.md", "<!-- test: level: quick -->\n\nText.\n\n```\n$ demeanor x\n```\n")
    page = blocks.parse("page.md", '<!-- test: at: {"nothing": {exit: 1}} -->\n```\n$ demeanor x\n```\n')
    with pytest.raises(PageError, match="no command of this block contains 'nothing'"):
        page.blocks[0].commands()


@pytest.mark.parametrize(
    ("line", "printed", "how", "found"),
    [
        ("12 rows, 3 tokens", "head\n 9 rows,  41 tokens\n", "words", True),
        ("12 rows, 3 tokens", "9 lines, 41 tokens", "words", False),
        ("12 rows", "9 rows", "exact", False),
        ("a ... z", "a b c z", "exact", True),
        ("key 5059eec7ca010b0a", "key 88988f3d79f198b2", "words", True),
        ("right 56.5% [46.6%, 65.9%]", "right 60.0% [50.0%, 70.0%]", "near", True),
        ("right 46.5% [36.6%, 55.9%]", "right 60.0% [50.0%, 70.0%]", "near", False),
        ("0.39 (0.19 to 0.64)", "0.41 (0.20 to 0.65)", "near", True),
        ("anything", "", "example", True),
    ],
)
def test_quoted_lines_are_looked_for_in_what_was_printed(
    line: str, printed: str, how: str, found: bool
) -> None:
    assert (quoted.missing((line,), printed, how) is None) == found


def test_quoted_lines_keep_their_order() -> None:
    assert quoted.missing(("one", "two"), "two\none\n", "words") == "two"
    assert quoted.missing(("one", "...", "two"), "one\nx\ntwo\n", "words") is None


def check(text: str, language: str = "yaml") -> list[str]:
    return settings.problems(blocks.Block("page.md", 1, language, text))


def test_a_part_of_a_stack_is_checked_within_the_demo() -> None:
    assert check("layers:\n  - {kind: policy, rules: policy.yaml}\n") == []
    assert "Did you mean 'rules'" in check("layers:\n  - {kind: policy, rule: policy.yaml}\n")[0]
    assert check("- {name: x, objective: dpo, parent: sft, data: mine.jsonl}\n") == []
    assert "objective" in check("- {name: x, objective: dop, parent: sft, data: mine.jsonl}\n")[0]
    assert check("rules:\n- {name: a, on: input, pattern: x, reason: r, reply: no}\n") == []
    assert check("rules:\n- {name: a, on: inptu, pattern: x, reason: r, reply: no}\n") != []
    assert check("superiority:\n- {axis: honesty, by: 0.02}\n") == []
    assert check("superiority:\n- {axis: honesty, bye: 0.02}\n") != []
    assert check('{"a": 1}\n{"b": 2}', "json") == []
    assert check('{"a": 1', "json") != []


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    return Shell(tmp_path / "work", tmp_path / "bin")


def test_a_shell_keeps_its_folder_and_variables_and_maps_ports(shell: Shell) -> None:
    assert shell.run("mkdir a && cd a && export NAME='x y'", 20).code == 0
    done = shell.run('pwd; echo "$NAME" http://127.0.0.1:8000/v1', 20)
    assert done.printed.splitlines() == [str(shell.folder / "a"), "x y http://127.0.0.1:8000/v1"]
    assert shell.port("8000") != "8000"
    assert shell.run("exit 3", 20).code == 3
    assert shell.run("sleep 30", 0.2).code is None


def test_a_command_of_demeanor_runs_in_a_fork_with_the_shells_variables(tmp_path: Path) -> None:
    """In a program of its own: a fork of pytest would run pytest's own exit."""
    script = """
import sys
from pathlib import Path
from bench.pages.shell import Shell
work, shim = Path(sys.argv[1], 'work'), Path(sys.argv[1], 'bin')
work.mkdir(); shim.mkdir()
shell = Shell(work, shim)
assert shell.run('export FOLDER=desk', 20).code == 0
done = shell.run('demeanor init $FOLDER', 60)
assert done.code == 0, done.printed
assert (work / 'desk' / 'stack.yaml').is_file()
wrong = shell.run('demeanor init $FOLDER --nothing', 60)
assert wrong.code == 2 and '--nothing' in wrong.printed, wrong
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr

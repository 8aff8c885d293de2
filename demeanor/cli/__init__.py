"""The command line (typer): one function a verb. A verb reads the stack, calls app or evaluation, and prints the outcome.

Exit codes: 0 done; 1 a negative answer (gate: fail, export: differs, rewards: hackable); 2 a mistake in the command line or a file;
3 anything else that went wrong, answers that failed included; 4 gate, rewards: inconclusive; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import typer

from demeanor import __version__
from demeanor.cli import (
    data,
    evaluate,
    experiments,
    indexing,
    keys,
    label,
    policy,
    prefs,
    prompting,
    recorded_turns,
    stack,
    storing,
    tools,
    tour,
)
from demeanor.cli.examples import in_panels, with_examples
from demeanor.core import hardware
from demeanor.core.errors import DemeanorError, UsageError
from demeanor.core.table import visible

FAILED, STOPPED, BROKEN_PIPE = 3, 130, 141
MULTIPLE = {
    "eval": ("--variants",),
    "attribute": ("--weights", "--layers"),
    "diagnose": ("--items",),
    "duel": ("--variants", "--suite"),
    "seeds": ("--seeds",),
    "data": ("--suite",),
    "prefs": ("--suite", "--queue", "--revisions"),
    "label": ("--variants", "--uncertainty"),
}
"""Options that take several values, by verb: `--variants A B` means `--variants A --variants B`."""
RENAMED = {
    "--only": "--stage STAGE",
    "--beside": "--compare NAME=URL#MODEL",
    "--beside-key": "--compare-key NAME=ENV_VAR",
    "--prune": "demeanor runs prune STACK.yaml...",
    "harness": "demeanor logs import LOG...",
    "runs": "demeanor runs list, or demeanor runs prune STACK.yaml...",
    "judge": "demeanor judge validate STACK.yaml PAIRS.jsonl",
    "suites": "demeanor suites list, or demeanor suites show SUITE...",
}
"""Options and verbs of earlier versions, and what to write instead."""

app = typer.Typer(
    name="demeanor",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Train, serve and evaluate a chat assistant that one file declares (stack.yaml), and measure what each layer does.

    [bold]Start:[/] demeanor demo (from random weights to a measured assistant, offline), or demeanor init my-desk.

    Any setting of the file can be changed on the command line: --set decoding.temperature=0
    """,
)
app.add_typer(stack.app)
app.add_typer(evaluate.app)
app.add_typer(data.app, name="data")
app.add_typer(indexing.app, name="index")
app.add_typer(policy.app, name="policy")
app.add_typer(keys.app, name="keys")
app.add_typer(storing.app, name="store")
app.add_typer(tools.app, name="tools")
app.add_typer(prompting.app, name="prompt")
app.add_typer(label.app, name="label")
app.add_typer(tour.app, name="tour")
app.add_typer(experiments.app, name="experiments")
app.add_typer(prefs.app, name="prefs")
app.add_typer(recorded_turns.app, name="turns")
app.command()(recorded_turns.replay)


FULL = (
    "demeanor: the disk is full, or files may not be so large (df -h, ulimit -f). Make room, or name other folders: --runs FOLDER for "
    "weights, --results FOLDER for results. What was finished is kept: the same command goes on from there."
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"demeanor {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    hardware.prepare(None)


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code; an error is one clear text on stderr."""
    given = list(sys.argv[1:] if words is None else words)
    try:
        command = in_panels(with_examples(bounded(typer.main.get_command(app))))
        code = command.main(args=repeated(given), prog_name="demeanor", standalone_mode=False)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # under torchrun
            from demeanor.training.parallel import leave

            leave()
        return int(code or 0)
    except typer.TyperException as error:
        print(_mistake(error), end="", file=sys.stderr)
        return error.exit_code
    except DemeanorError as error:
        print(f"demeanor: {visible(str(error))}", file=sys.stderr)  # it may quote a file or another server
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return BROKEN_PIPE
    except OSError as error:
        if is_full(error):
            print(FULL, file=sys.stderr)
        elif error.filename is None:
            traceback.print_exc()
        else:
            print(f"demeanor: {error.filename}: {error.strerror}", file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        print("\ndemeanor: stopped", file=sys.stderr)
        return STOPPED
    except Exception as error:  # a bug must not end with the code of a verdict
        if is_full(error):
            print(FULL, file=sys.stderr)
        else:
            traceback.print_exc()
        return FAILED


def bounded(command: Any) -> Any:
    """The command, with whole numbers of all its options that 64 bits hold: no database and no library holds others."""
    for option in command.params:
        option.process_value = partial(_within_64_bits, option, option.process_value)
    for inner in getattr(command, "commands", {}).values():
        bounded(inner)
    return command


def _within_64_bits(option: Any, process: Callable[[Any, Any], Any], context: Any, given: Any) -> Any:
    value = process(context, given)
    for each in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(each, int) and not -(2**63) <= each < 2**63:
            raise typer.BadParameter(f"{each} is too large.", ctx=context, param=option)
    return value


def is_full(error: BaseException) -> bool:
    """Did a write fail because the disk is full, a quota is reached, or files may not be so large?"""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    said = str(error)  # safetensors and SQLite tell it in words
    return "disk is full" in said or re.search(r"\(os error (27|28|122)\)", said) is not None


def _mistake(error: typer.TyperException) -> str:
    """What is wrong with the command line: one sentence for an old spelling, else the error and where to read on."""
    context, message = getattr(error, "ctx", None), error.format_message()
    command = context.command_path if context else "demeanor"
    unknown = re.match(r"No such \w+:? '?([\w-]+)", message)
    for word in (unknown[1] if unknown else "", command.split()[-1]):
        if word in RENAMED:
            return f"demeanor: '{word}' is an earlier spelling; write: {RENAMED[word]}\n"
    return (
        f"demeanor: {message}\nSee: {command} --help\n" if message else ""
    )  # without a verb, help was printed


def repeated(words: Sequence[str]) -> list[str]:
    """The command line with `--variants A B` written as `--variants A --variants B`."""
    multiple = MULTIPLE.get(words[0], ()) if words else ()
    found: list[str] = []
    option = ""
    for word in [*words, "--"]:
        is_option = word.startswith("-") and not word[1:].isdigit()
        no_value = bool(option) and found[-1] == option
        if is_option and no_value and option != "--layers":
            raise UsageError(f"{option}: wanted at least one value after it")
        if is_option and no_value:
            found.append("")  # no layers at all
        elif option and not is_option and not no_value:
            found.append(option)
        if is_option:
            option = word if word in multiple else ""
        found.append(word)
    return found[:-1]

"""`demeanor prompt`: the prompt that the model reads for a question, the difference between two, and the versions there
are."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli.options import RUNS, Overrides, RunsFolder, StackFile, load
from demeanor.cli.tables import columns
from demeanor.core.errors import UsageError

if TYPE_CHECKING:
    from demeanor.prompt_preview import Preview
    from demeanor.stack.stack import Stack

app = typer.Typer(
    no_args_is_help=True, help="Show the prompt that the model reads, compare two, list the versions."
)
Question = Annotated[str, typer.Option(metavar="TEXT", help="What a user asks.")]
Variables = Annotated[
    list[str] | None,
    typer.Option(
        "--var", metavar="NAME=VALUE", help="A variable, as a request's metadata sets it (repeatable)."
    ),
]


@app.command()
def show(
    stack_file: StackFile,
    ask: Question = "Hello",
    model: Annotated[
        str | None, typer.Option(help="A variant, e.g. NAME-retrieval (default: the whole stack).")
    ] = None,
    var: Variables = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Print only the text, or the request, that the model gets.")
    ] = False,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Print the messages that reach the model for a question, with their tokens; layers run, the model does not."""
    from demeanor.core.table import visible

    stack = load(stack_file, overrides)
    variant = stack.resolve(model or stack.spec.name)
    found = _preview(variant, runs, ask, var)
    if exact:
        print(found.exact)
        return
    print(f"{variant.model_id}  key {variant.key()}{_versions(found)}")
    for line in _told(found):
        print(line)
    for part in found.parts:
        tokens = f"{'~' if found.note else ''}{part.tokens} tokens"
        print(f"\n--- {part.source}, role {part.message.role}, {tokens}")
        print(visible(part.message.content))
    inside = sum(part.tokens for part in found.parts)
    if found.parts:
        around = f", of them {found.tokens - inside} for the chat template and {len(found.tools)} tools"
        print(f"\n{found.tokens} tokens{around if found.tokens >= inside else ''}")
    if found.note:
        print(found.note)


@app.command()
def diff(
    stack_file: StackFile,
    first: Annotated[
        str, typer.Argument(metavar="A", help="A variant of the stack, another stack file, or a prompt file.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="What it is compared with.")],
    ask: Question = "Hello",
    var: Variables = None,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Print how the prompts of two variants differ for one question, as a unified diff with tokens."""
    from demeanor.core.table import visible

    stack = load(stack_file, overrides)
    sides = [(name, _variant(stack, name, overrides)) for name in (first, second)]
    one, other = (_preview(variant, runs, ask, var) for _, variant in sides)
    for sign, (name, _), found in zip("-+", sides, (one, other), strict=True):
        print(f"{sign} {name}: {found.tokens} tokens{_versions(found)}")
    lines = list(difflib.unified_diff(_lines(one), _lines(other), lineterm="", n=2))[2:]
    print("\n".join(map(visible, lines)) if lines else "the prompts are the same")
    for note in dict.fromkeys((one.note, other.note)):
        print(note, end="\n" * bool(note))


@app.command("list")
def listed(stack_file: StackFile, overrides: Overrides = None) -> None:
    """List the prompt files beside those that the stack uses: version, hash, size, and which is in use."""
    from demeanor.prompt_preview import prompt_files

    stack = load(stack_file, overrides)
    found = prompt_files(stack)
    if not found:
        raise UsageError(
            f"{stack.path}: no prompt layer reads its system prompt from a file; write `system: prompts/system.md`"
        )
    rows = [
        (_short(x.path, stack.root), x.version or "-", x.sha256, f"{x.characters}", x.layer, x.description)
        for x in found
    ]
    print("\n".join(columns(("file", "version", "sha256", "characters", "used by", "description"), rows)))


def _variant(stack: Stack, name: str, overrides: list[str] | None) -> Stack:
    """A side of a comparison: a stack file, a prompt file in place of the stack's, or a variant."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        other = load(path, overrides)
        return other.resolve(other.spec.name)
    if path.suffix in (".md", ".txt"):
        from demeanor.prompt_preview import prompt_layers

        names = list(prompt_layers(stack))
        if len(names) != 1:
            raise UsageError(
                f"{name}: a prompt file replaces the prompt of a stack with one prompt layer; got {len(names)}"
            )
        file = path.resolve() if path.exists() else (stack.root / path).resolve()
        change = [f"layers.{names[0]}.system={file}", f"layers.{names[0]}.text=null"]
        other = load(stack.path, [*(overrides or []), *change])
        return other.resolve(other.spec.name)
    return stack.resolve(name)


def _preview(variant: Stack, runs: Path, ask: str, var: Sequence[str] | None) -> Preview:
    from demeanor.core.errors import RequestError
    from demeanor.core.types import Message, Turn
    from demeanor.prompt_preview import preview
    from demeanor.stack.stack import decoding_of
    from demeanor.training.runs import Runs

    given = [text.partition("=") for text in var or ()]
    if wrong := [name for name, sign, _ in given if not sign or not name]:
        raise UsageError(f"--var: got '{wrong[0]}', wanted NAME=VALUE")
    metadata = {name: value for name, _, value in given}
    turn = Turn((Message("user", ask),), decoding_of(variant), metadata=metadata)
    try:
        return asyncio.run(preview(variant, Runs(runs), turn))
    except RequestError as error:
        raise UsageError(str(error)) from None


def _versions(found: Preview) -> str:
    told = [
        f"version {p.version} " * bool(p.version) + f"sha256 {p.sha256}" for p in found.prompted if p.sha256
    ]
    return f"  prompt {', '.join(told)}" if told else ""


def _told(found: Preview) -> list[str]:
    lines = [f"left out: {event.reason} ({event.messages} messages)" for event in found.left_out]
    if found.refusal is not None:
        lines.append(f"refused by {found.refusal.by}, rule {found.refusal.rule}: {found.refusal.text}")
    return lines


def _lines(found: Preview) -> list[str]:
    """A prompt as lines: each message under a line that says what it is."""
    lines = _told(found)
    for part in found.parts:
        lines += [f"[{part.source}, {part.message.role}]", *part.message.content.splitlines()]
    return lines


def _short(path: Path, root: Path) -> str:
    return str(path.relative_to(root.resolve())) if path.is_relative_to(root.resolve()) else str(path)

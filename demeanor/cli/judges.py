"""The judges that a verb asks: the stack's own and those named as URL#MODEL, each with its kept verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli.options import evaluation_services
from demeanor.core.errors import UsageError

if TYPE_CHECKING:
    from demeanor.evaluation.judge import JudgeClient
    from demeanor.stack.schema import JudgeSpec
    from demeanor.stack.stack import Stack

OtherJudges = Annotated[
    list[str] | None,
    typer.Option("--judge", metavar="URL#MODEL", help="Another judge besides the stack's own (repeatable)."),
]
JudgeKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--judge-key",
        metavar="MODEL=ENV_VAR",
        help="The environment variable that holds that judge's API key.",
    ),
]


def judge_specs(
    stack: Stack, others: Sequence[str] | None, judge_keys: Sequence[str] | None
) -> list[JudgeSpec]:
    """The stack's own judge, if it has one, and the named ones. Raises UsageError for a name that is none, or is there twice."""
    from demeanor.stack.schema import JudgeSpec

    own, keys = stack.spec.evaluation.judge, dict(pair.partition("=")[::2] for pair in judge_keys or ())
    found = [own] if own else []
    for text in others or ():
        url, _, model = text.rpartition("#")
        if not url.startswith(("http://", "https://")) or not model:
            raise UsageError(f"--judge: got '{text}', wanted URL#MODEL, such as http://127.0.0.1:8000/v1#big")
        found.append(JudgeSpec(url=url, model=model, key_env=keys.pop(model, None)))
    for n, spec in enumerate(found):
        if any((spec.url, spec.model) == (one.url, one.model) for one in found[:n]):
            raise UsageError(f"--judge: {spec.url}#{spec.model} is named twice; one judge has one voice")
    if keys:
        raise UsageError(f"--judge-key: {', '.join(keys)}: no --judge has this model")
    return found


def judge_clients(specs: Sequence[JudgeSpec], results: Path, name: str, runs: Path) -> list[JudgeClient]:
    """Their clients, the verdicts of each in RESULTS/NAME.N.verdicts.jsonl (of one alone: NAME.verdicts.jsonl); all of them answer."""
    from demeanor.evaluation import judge as judging

    connect = evaluation_services(runs).connect
    files = (
        [f"{name}.verdicts.jsonl"]
        if len(specs) == 1
        else [f"{name}.{n}.verdicts.jsonl" for n in range(len(specs))]
    )
    found = [
        judging.judge_client(spec, results / file, connect) for spec, file in zip(specs, files, strict=True)
    ]
    for client in found:
        judging.ensure(client)
    return found

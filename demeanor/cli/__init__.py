"""The verbs, each declared here or in a file of its name. It parses, calls build, and prints; it computes nothing."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from demeanor import __version__
from demeanor.cli import (
    arguments,
    attribute,
    data,
    diagnose,
    duel,
    export,
    frontier,
    gate,
    harness,
    judge,
    keys,
    runs,
    samples,
    seeds,
    serve,
    suites,
)
from demeanor.core import hardware
from demeanor.core.errors import DemeanorError

if TYPE_CHECKING:
    from demeanor.stack.stack import Stack

ABOUT = """Demeanor declares a ChatGPT-style assistant as one stack of layers (stack.yaml), trains its weight layers,
serves its runtime layers behind an OpenAI-compatible API, and measures what each layer does on the same items.

  demeanor demo                       from random weights to a served and measured assistant, in minutes, offline
  demeanor init my-desk               write a stack to start from: stack.yaml, notices, policy, prompts
  demeanor explain my-desk/stack.yaml what it is, what is trained already, what training would cost
  demeanor train my-desk/stack.yaml   train what is missing (Ctrl-C and kill -9 are safe: run it again)
  demeanor eval my-desk/stack.yaml    climb the ladder of layers on the same items; page and table
  demeanor attribute my-desk/stack.yaml   which layer did it;   frontier: what safety costs;   gate: may it ship
  demeanor diagnose my-desk/stack.yaml    what fixes the items that fail, and which layer is the suspect
  demeanor chat my-desk/stack.yaml    talk to it here;   demeanor serve: page and API on http://127.0.0.1:8000

Any setting of the file can be given on the command line: --set decoding.temperature=0 --set weights.stages.dpo.objective.beta=0.2
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code; errors are printed as one clear text, without a traceback."""
    options = _parsed(words)
    hardware.prepare(getattr(options, "threads", None))
    try:
        code = int(options.run(options) or 0)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # under torchrun
            from demeanor.train.parallel import leave

            leave()
        return code
    except DemeanorError as error:
        print(f"demeanor: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            return 141
        if error.filename is None:
            raise
        print(f"demeanor: {error.filename}: {error.strerror}", file=sys.stderr)
        return int(getattr(options, "failed", 1))
    except KeyboardInterrupt:
        print("\ndemeanor: stopped", file=sys.stderr)
        return 130


def _parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line; a mistake in it ends with argparse's text and code 2, of `gate` with 3, since its 2 is a verdict."""
    try:
        return parser().parse_args(words)
    except SystemExit as stop:
        if stop.code == 2 and list(sys.argv[1:] if words is None else words)[:1] == ["gate"]:
            raise SystemExit(gate.MISTAKE) from None
        raise


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="demeanor", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"demeanor {__version__}")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")

    demo = _verb(
        verbs,
        "demo",
        _demo,
        "train, align and measure the embedded world's assistant, then say how to talk to it",
        stack=False,
    )
    demo.add_argument("--serve", action="store_true", help="serve the chat page and the API at the end")
    demo.add_argument("--port", type=int, default=8000)

    init = verbs.add_parser(
        "init",
        help="write a stack to start from",
        description="Write stack.yaml and the files it names into FOLDER.",
    )
    init.add_argument("folder", type=Path, metavar="FOLDER")
    init.add_argument("--force", action="store_true", help="overwrite files that are there")
    init.set_defaults(run=_init)

    explain = _verb(
        verbs, "explain", _explain, "what the stack is, what is trained, what training would cost"
    )
    explain.add_argument("--full", action="store_true", help="print every setting with its effective value")

    train = _verb(verbs, "train", _train, "train every stage that is missing; resumes what was interrupted")
    train.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="STAGE",
        help="train this stage and its ancestors only (repeatable)",
    )
    train.add_argument(
        "--recompute",
        action="store_true",
        help="activation checkpointing: less memory for a third more computing",
    )
    train.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the layers (about 15 s to begin, then 15-20%% faster)",
    )
    train.add_argument(
        "--skip-bad", action="store_true", help="leave out rows that cannot be used, and say how many"
    )
    train.add_argument(
        "--track",
        action="append",
        default=[],
        metavar="KIND:PLACE",
        help="also tell tensorboard:DIR, wandb:PROJECT, mlflow:URI or trackio:PROJECT (repeatable)",
    )
    train.add_argument(
        "--probe",
        type=arguments.count,
        metavar="N",
        help="let each policy answer N held-out prompts as it trains; read them with `demeanor samples`",
    )
    train.add_argument("--threads", type=int, help="CPU threads (default: all cores)")

    data.add(verbs)

    chat = _verb(verbs, "chat", _chat, "talk to the assistant in the terminal")
    chat.add_argument("--model", help="a variant, e.g. NAME:sft or NAME-policy (default: the whole stack)")
    chat.add_argument("--ask", help="ask one question, print the answer, exit")

    serve.add(partial(_verb, verbs), _load)
    keys.add(verbs)
    suites.add(verbs)
    seeds.add(partial(_verb, verbs))

    evaluate = _verb(verbs, "eval", _eval, "run the suites over the ladder of layers on the same items")
    evaluate.add_argument(
        "--variants",
        nargs="+",
        metavar="MODEL",
        help="these model ids, in ladder order, instead of the whole ladder",
    )
    evaluate.add_argument(
        "--limit", type=arguments.count, metavar="N", help="use the first N items of each axis"
    )
    evaluate.add_argument("--name", type=arguments.name, help="name of the result (default: the stack's)")

    evaluate.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="NAME=URL#MODEL",
        help="another assistant's OpenAI-compatible server as one more column (repeatable)",
    )
    evaluate.add_argument(
        "--compare-key",
        action="append",
        default=[],
        metavar="NAME=ENV_VAR",
        help="the environment variable that holds that server's key (repeatable)",
    )

    for more in (attribute, diagnose, duel, export, frontier, gate, judge, runs, samples):
        more.add(partial(_verb, verbs), _load)

    harness.add(verbs)

    report = verbs.add_parser(
        "report",
        help="render a result again, or a published table of scores",
        description="Render results/NAME.json, or a published table (YAML or JSON), as a page and a table.",
    )
    report.add_argument("result", type=Path, metavar="RESULT.json | TABLE.yaml")
    report.add_argument("--out", type=Path, help="the HTML page (default: beside the result)")
    report.set_defaults(run=_report)
    return top


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    *,
    stack: bool = True,
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    if stack:
        verb.add_argument("stack", type=Path, metavar="STACK.yaml")
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        dest="overrides",
        help="change a setting of the file, e.g. decoding.temperature=0 (repeatable)",
    )
    verb.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        help="folder of trained weights, by content (default: runs)",
    )
    verb.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of results (default: results)"
    )
    verb.set_defaults(run=run)
    return verb


def _load(options: argparse.Namespace) -> Stack:
    from demeanor.app import load_stack

    return load_stack(options.stack, options.overrides)


def _demo(options: argparse.Namespace) -> int:
    from demeanor.cli import demo

    return demo.run(options.runs, options.results, options.overrides, serve=options.serve, port=options.port)


def _init(options: argparse.Namespace) -> int:
    from demeanor.cli import demo

    for path in demo.write_files(options.folder, force=options.force):
        print(f"wrote {path}")
    print(f"\nnext: demeanor explain {options.folder / 'stack.yaml'}")
    return 0


def _explain(options: argparse.Namespace) -> int:
    from demeanor.cli import explain
    from demeanor.train.runs import Runs

    explain.show(_load(options), Runs(options.runs), full=options.full)
    return 0


def _train(options: argparse.Namespace) -> int:
    from demeanor import app
    from demeanor.train import pipeline
    from demeanor.train.runs import Runs

    stack = pipeline.tolerant(_load(options)) if options.skip_bad else _load(options)
    app.train(
        stack,
        Runs(options.runs),
        only=options.only,
        compiled=options.compile,
        recompute=options.recompute,
        track=options.track,
        probe=options.probe,
    )
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks
        print(f"\nnext: demeanor eval {options.stack}   or   demeanor chat {options.stack}")
    return 0


def _chat(options: argparse.Namespace) -> int:
    from demeanor.cli import chat
    from demeanor.train.runs import Runs

    return chat.run(_load(options), Runs(options.runs), model=options.model, ask=options.ask)


def _eval(options: argparse.Namespace) -> int:
    from demeanor import app
    from demeanor.evaluation import ladder
    from demeanor.report import publish
    from demeanor.train.runs import Runs

    result = ladder.evaluate(
        _load(options),
        app.services(Runs(options.runs)),
        options.results,
        variants=options.variants,
        limit=options.limit,
        name=options.name,
        compare=options.compare,
        compare_keys=options.compare_key,
    )
    publish.show(result, options.results)
    return 0


def _report(options: argparse.Namespace) -> int:
    from demeanor.evaluation import published, result
    from demeanor.report import publish

    if published.is_table(options.result):
        publish.render(options.result, options.out)
        return 0
    publish.show(result.load(options.result), options.result.parent, page=options.out)
    return 0

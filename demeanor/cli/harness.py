"""`harness`: logs of Inspect and lm-eval as one paired table, and their samples as a suite of ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from demeanor.cli import arguments


def add(verbs: Any) -> None:
    """Declare the verb."""
    text = "compare what Inspect or lm-eval logged of several models: paired, clustered, with intervals"
    verb = verbs.add_parser("harness", help=text, description=f"{text[0].upper()}{text[1:]}.")
    verb.add_argument(
        "logs",
        type=Path,
        nargs="+",
        metavar="LOG",
        help="Inspect's .json or .eval, lm-eval's samples_*.jsonl, or folders of them; models in the order of the ladder",
    )
    verb.add_argument(
        "--name", type=arguments.name, default="harness", help="name of the result (default: harness)"
    )
    verb.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of results (default: results)"
    )
    verb.add_argument("--metric", help="the metric or scorer to read (default: the first of each sample)")
    verb.add_argument(
        "--cluster",
        metavar="FIELD",
        help="the field of a document whose samples share a source "
        "(default: cluster, else group, else the document)",
    )
    verb.add_argument(
        "--as-suite",
        type=Path,
        metavar="OUT.jsonl",
        help="write what our scorers can judge as a suite, and stop",
    )
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from demeanor.evaluation import logs
    from demeanor.report import publish

    if options.as_suite is None:
        found = logs.compare(
            options.logs, options.results, options.name, metric=options.metric, cluster=options.cluster
        )
        publish.show(found, options.results)
        return 0
    written, reasons = logs.write_suite(
        options.logs, options.as_suite, metric=options.metric, cluster=options.cluster
    )
    told = f"{written} items" if written else "not written, no sample can be judged by a scorer of ours"
    print(f"{options.as_suite}: {told}")
    for reason, count in sorted(reasons.items(), key=lambda x: -x[1]):
        print(f"  {count} left out: {reason}")
    return 0 if written else 1

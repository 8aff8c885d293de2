"""Runs what the pages tell a reader to run: `make docs-test` (after `make demo`).

    python -m bench.pages                            # every page; those that passed and have not changed are not run again
    python -m bench.pages --page docs/data.md docs/gate.md
    python -m bench.pages --list                     # pages and their commands: what is run, what is not, and why
    python -m bench.pages --level quick              # what the default test suite runs: without the demo's weights

Writes results/pages.json; exit code 1 if a command failed, or printed otherwise than its page says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from bench.pages import blocks, check
from bench.pages.blocks import ROOT, Page
from bench.pages.check import Item, PageDone


def main() -> int:
    options = arguments()
    from demeanor.core import hardware

    hardware.prepare(None)
    names = [str(Path(name)) for name in options.page] or blocks.names()
    try:
        pages = [blocks.read(name) for name in names]
        if options.list:
            return listed(pages)
    except blocks.PageError as error:
        print(f"bench.pages: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    preload()
    kept, anew = passed(options.out), options.again or options.page
    code = fingerprint()
    done = []
    for number, page in enumerate(pages, 1):
        key = f"{options.level} {code} {text_hash(page.name)}"
        before = kept.get(page.name)
        if not anew and before and before["key"] == key and not before["failed"]:
            done.append(PageDone(page.name, [Item(**item) for item in before["items"]], before["seconds"]))
            note = "as before"
        else:
            done.append(apart(page, options))
            note = f"{done[-1].seconds:.1f} s"
        kept = passed(options.out) | {
            page.name: record(done[-1], key)
        }  # another call may have done other pages
        write(options.out, kept)
        shown = done[-1]
        if not options.quiet:
            state = f"{len(shown.failures)} FAILED" if shown.failures else "ok"
            print(
                f"{number:3}/{len(pages)}  {page.name:34} {shown.count('run'):3} run  {state}  ({note})",
                flush=True,
            )
    print(table(done))
    for page_done in done:
        for item in page_done.failures:
            print(f"\n{item.where}: {item.text}\n  {item.why}")
    return int(any(page.failures for page in done))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", nargs="*", default=[], help="only these pages")
    parser.add_argument("--list", action="store_true", help="what would be run and what not; nothing runs")
    parser.add_argument("--level", choices=("quick", "full"), default="full")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="the runs of `make demo`")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="the results of `make demo`")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "pages.json")
    parser.add_argument("--again", action="store_true", help="also pages that passed before")
    parser.add_argument("--keep", action="store_true", help="keep the folders in which pages ran")
    parser.add_argument("--quiet", action="store_true", help="no line for each page")
    return parser.parse_args()


def preload() -> None:
    """Import what commands import, so that their forks need not."""
    import torch  # noqa: F401

    import demeanor.app
    import demeanor.cli
    import demeanor.evaluation.experiment
    import demeanor.layers
    import demeanor.report.outputs
    import demeanor.server.application  # noqa: F401


def apart(page: Page, options: argparse.Namespace) -> PageDone:
    """Do a page in a fork, which may import and start what it wants."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def body() -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            done = check.do(page, options.level, options.runs, options.results, options.keep)
        except KeyboardInterrupt:
            return
        except Exception:  # a mistake of the runner, with its place
            done = PageDone(page.name, [Item(page.name, "the page", "failed", traceback.format_exc())])
        theirs.send(done)

    process = context.Process(target=body)
    began = time.monotonic()
    process.start()
    theirs.close()
    try:
        return ours.recv()  # type: ignore[no-any-return]
    except EOFError:
        return PageDone(
            page.name, [Item(page.name, "the page", "failed", "its process ended")], time.monotonic() - began
        )
    except KeyboardInterrupt:
        process.terminate()
        raise
    finally:
        process.join()


def fingerprint() -> str:
    """Of all code that a command may run."""
    digest = hashlib.sha256()
    for folder in ("demeanor", "bench/pages", "stacks", "examples"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def text_hash(name: str) -> str:
    """Of a page as it stands; one that a command writes changes with the code."""
    return "" if name in blocks.WRITTEN else hashlib.sha256((ROOT / name).read_bytes()).hexdigest()[:16]


def passed(path: Path) -> dict[str, dict[str, object]]:
    try:
        found: dict[str, dict[str, object]] = json.loads(path.read_text())["pages"]
        return found
    except (OSError, ValueError, KeyError):
        return {}


def record(done: PageDone, key: str) -> dict[str, object]:
    items = [asdict(item) for item in done.items]
    return {"key": key, "seconds": round(done.seconds, 2), "failed": len(done.failures), "items": items}


def write(path: Path, pages: dict[str, dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(
        json.dumps({"command": "python -m bench.pages", "skips": blocks.SKIPS, "pages": pages}, indent=1)
    )
    half.replace(path)


def table(done: list[PageDone]) -> str:
    """Pages with what was run and what was not."""
    lines = [f"\n{'page':34} {'run':>4} {'later':>5} {'skipped':>7} {'failed':>6} {'s':>6}"]
    for page in done:
        counts = [page.count(state) for state in ("run", "later", "skipped", "failed")]
        if sum(counts):
            reasons = sorted({item.why for item in page.items if item.state == "skipped"})
            lines.append(
                f"{page.page:34} {counts[0]:4} {counts[1]:5} {counts[2]:7} {counts[3]:6} {page.seconds:6.1f}"
                + (f"  {'; '.join(reasons)}" if reasons else "")
            )
    total = [sum(page.count(state) for page in done) for state in ("run", "later", "skipped", "failed")]
    seconds = sum(page.seconds for page in done)
    lines.append(f"{'all':34} {total[0]:4} {total[1]:5} {total[2]:7} {total[3]:6} {seconds:6.1f}")
    return "\n".join(lines)


def listed(pages: list[Page]) -> int:
    for page in pages:
        for block in page.blocks:
            if block.language in ("python", "yaml", "json"):
                own = block.settings
                state = f"skipped ({own['skip']})" if own.get("skip") else check.level_of(page, own)
                print(f"{block.where}: {state}: {block.language} block")
            for command in block.commands():
                own = command.settings
                state = f"skipped ({own['skip']})" if own.get("skip") else check.level_of(page, own)
                print(f"{command.where}: {state}: {command.text}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nbench.pages: stopped; run it again, and it goes on with the next page", file=sys.stderr)
        sys.exit(130)

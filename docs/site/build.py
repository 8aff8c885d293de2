"""Builds the documentation site from the Markdown as it stands: `make docs`, offline, strict.

In: docs/, README.md, LOG.md, the docstrings of the package. Out: build/site/, plain files that any web server serves or a
browser opens. A dead link, a page in no chapter, or a docstring that cannot be read is an error. Source files that a page
links become plain text, since the site holds no source.
"""

from __future__ import annotations

import argparse
import http.server
import re
import shutil
import sys
import time
from functools import partial
from pathlib import Path

from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parents[2]
DOCS, HERE = ROOT / "docs", Path(__file__).parent
NOTES = re.compile(r"^ *<!-- test: .* -->\n(?= *```)|^<!-- test page: .* -->\s*\Z", re.M)
"""What a page tells `bench.pages` about its blocks."""
DARK = re.compile(r"@media ?\(prefers-color-scheme: ?dark\) ?\{(?:[^{}]*\{[^{}]*\})*\s*\}")
STAGED, SITE = ROOT / "build" / "site-source", ROOT / "build" / "site"

CHAPTERS: dict[str, tuple[str, ...]] = {
    "Start": ("README", "first-hours", "tour", "helpdesk", "smollm2", "real", "smollm2-grpo"),
    "Train": (
        "data",
        "objectives",
        "online",
        "online-objectives",
        "rewards",
        "rollouts",
        "train",
        "export",
        "from-trl",
    ),
    "Serve": (
        "stack",
        "layers",
        "policy",
        "retrieval",
        "tools",
        "gateway",
        "turns",
        "operator-pages",
        "serving",
        "chat-page",
        "experiments",
        "api",
        "responses",
        "store",
        "from-litellm",
        "from-llamastack",
    ),
    "Measure": (
        "evaluation",
        "suites",
        "scorers",
        "public-sets",
        "judge",
        "labelling",
        "preferences",
        "flywheel",
        "gate",
        "diagnose",
        "report",
        "harnesses",
        "from-promptfoo",
    ),
    "Understand": (
        "architecture",
        "glossary",
        "world",
        "text",
        "model",
        "engine",
        "science",
        "benchmarks",
        "reliability",
    ),
    "Reference": ("cli", "python", "contributing", "LOG"),
}
"""What the navigation shows: every page of docs/ once; `python` is made of docstrings, README is the first page of docs/."""

MODULES: dict[str, str] = {
    "demeanor.api": "Functions of `import demeanor`",
    "demeanor.stack.stack": "The stack",
    "demeanor.core.types": "Data types: messages, turns, events, completions",
    "demeanor.layers": "Write a layer",
    "demeanor.evaluation.runtime": "Services for evaluation",
    "demeanor.objectives": "Write an objective",
    "demeanor.model.tensors": "Batches of token trees",
    "demeanor.core.errors": "Errors",
}


def stage(chapters: dict[str, tuple[str, ...]]) -> None:
    """Copy the pages to one folder, with links that work there, the table of contents and the reference."""
    shutil.rmtree(STAGED, ignore_errors=True)
    shutil.copytree(DOCS, STAGED, ignore=shutil.ignore_patterns("site", "*.py"))
    for picture in STAGED.rglob("*.svg"):  # they stand on white, whatever the reader's colors are
        picture.write_text(DARK.sub("", picture.read_text(encoding="utf-8")), encoding="utf-8")
    (STAGED / "LOG.md").write_text(_linked((ROOT / "LOG.md").read_text(), ROOT))
    for page in STAGED.rglob("*.md"):
        if page != STAGED / "LOG.md":
            lone = (
                "" if page.parent == STAGED else "---\norphan: true\n---\n\n"
            )  # linked from a page, in no chapter
            text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text(), flags=re.S)
            page.write_text(lone + _linked(text, DOCS / page.relative_to(STAGED).parent))
    tour = STAGED / "tour.md"
    tour.write_text(tour.read_text() + "\n```{toctree}\n:hidden:\n:glob:\n\ntour/*\n```\n")
    first = _linked((ROOT / "README.md").read_text().replace("docs/README.md", "docs/index.md"), ROOT)
    (STAGED / "index.md").write_text(f"{first}\n{_contents(chapters)}")
    (STAGED / "python.md").write_text(_reference())


def _linked(text: str, folder: Path) -> str:
    """Return a page with links below docs/ relative to it, links to reports that open them, links to files that the site lacks as
    plain text, no notes for tests."""
    text = NOTES.sub("", text)

    def one(found: re.Match[str]) -> str:
        label, target = found[1], found[2]
        path, mark, anchor = target.partition("#")
        if "://" in target or not path:
            return found[0]
        file = (folder / path).resolve()
        if file.parent == DOCS / "examples" and file.suffix == ".html" and file.exists():
            up = "" if folder == ROOT else "../" * len(folder.resolve().relative_to(DOCS).parts)
            return f'<a href="{up}{file.name}">{label[1:-1]}</a>'  # opened, not downloaded; conf.py puts it in the root
        if file.is_relative_to(DOCS):
            base = (DOCS if folder == ROOT else folder).resolve()
            return f"{label}({_relative(file, base)}{mark}{anchor})"
        names = {ROOT / "README.md": "index.md", ROOT / "LOG.md": "LOG.md"}
        up = "../" * len(folder.resolve().relative_to(DOCS).parts) if folder != ROOT else ""
        return f"{label}({up}{names[file]}{mark}{anchor})" if file in names else label.lstrip("!")[1:-1]

    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", one, text)


def _relative(file: Path, base: Path) -> str:
    up = 0
    while not file.is_relative_to(base):
        base, up = base.parent, up + 1
    return "../" * up + file.relative_to(base).as_posix()


def _contents(chapters: dict[str, tuple[str, ...]]) -> str:
    trees = (
        f"```{{toctree}}\n:hidden:\n:caption: {name}\n\n" + "\n".join(pages) + "\n```\n"
        for name, pages in chapters.items()
    )
    return "\n".join(trees)


def _reference() -> str:
    """The page of the Python API."""
    parts = [
        "# The Python API\n\n```python\nimport demeanor\n\nstack = demeanor.load('stacks/demo/demo.yaml')\n"
        "demeanor.train(stack)\nprint(demeanor.evaluate(stack, limit=4).table())\n```\n"
    ]
    for module, title in MODULES.items():
        rst = f".. automodule:: {module}\n   :members:\n   :member-order: bysource"
        parts.append(f"## {title}\n\n`{module}`\n\n```{{eval-rst}}\n{rst}\n```\n")
    return "\n".join(parts)


def missing(chapters: dict[str, tuple[str, ...]]) -> list[str]:
    """List pages of docs/ that stand in no chapter or in two, and pages of chapters that do not exist."""
    listed = [page for pages in chapters.values() for page in pages]
    there = [*(page.stem for page in DOCS.glob("*.md")), "python", "LOG"]
    return sorted({p for p in [*there, *listed] if there.count(p) != 1 or listed.count(p) != 1})


def build() -> int:
    """Build the site; 0, or 1 if a page, link or docstring is wrong."""
    start = time.monotonic()
    if wrong := missing(CHAPTERS):
        print(
            f"docs/site/build.py: CHAPTERS must hold each page of docs/ once; wrong: {', '.join(wrong)}",
            file=sys.stderr,
        )
        return 1
    stage(CHAPTERS)
    shutil.rmtree(SITE, ignore_errors=True)
    code = build_main(
        ["-q", "-W", "--keep-going", "-j", "2", "-b", "html", "-c", str(HERE), str(STAGED), str(SITE)]
    )
    pages = len(list(SITE.rglob("*.html")))
    print(
        f"{SITE.relative_to(ROOT)}: {pages} pages in {time.monotonic() - start:.0f} s"
        if not code
        else "the site is not built"
    )
    return int(bool(code))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=int, metavar="PORT", help="then serve it on 127.0.0.1 until Ctrl-C")
    options = parser.parse_args()
    code = build()
    if options.serve is not None and not code:
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(SITE))
        with http.server.ThreadingHTTPServer(("127.0.0.1", options.serve), handler) as server:
            print(f"http://127.0.0.1:{server.server_address[1]}  (Ctrl-C ends)", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()
    return code


if __name__ == "__main__":
    sys.exit(main())

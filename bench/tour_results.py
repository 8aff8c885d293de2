"""The kept results of the tour: makes every experiment on a trained demo, and writes pictures, JSON and tables into docs/tour.

    python -m bench.tour_results --runs runs                 # all chapters (about 6 minutes on 2 quiet cores)
    python -m bench.tour_results --runs runs --check         # make docs-test: fresh runs against the kept ones; exit code 1 if they differ
    python -m bench.tour_results --stack smollm2-tour/stack.yaml   # the same on SmolLM2 (after `demeanor tour smollm2`)

`--check` holds a number equal if the fresh one lies within the kept interval or within a point of it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from demeanor import app
from demeanor.report import outputs
from demeanor.tour import findings, notebook
from demeanor.tour.chapters import (
    END,
    SMOLLM2_END,
    SMOLLM2_PICTURE,
    SMOLLM2_START,
    START,
    Chapter,
    chapters,
)
from demeanor.tour.courses import SMOLLM2, WORLD, Course, course_of
from demeanor.tour.findings import Findings, TourNumber
from demeanor.tour.lab import Lab
from demeanor.training.runs import Runs

STACK = Path("stacks/demo/demo.yaml")
KEPT = Path(__file__).resolve().parents[1] / "docs" / "tour"


LAST_WORDS = ("\nNext: ", "\nYou can now say")
"""How the last paragraph of a chapter begins: SmolLM2's section stands before it."""
MARKS = {WORLD: (START, END), SMOLLM2: (SMOLLM2_START, SMOLLM2_END)}


def table(found: Findings, course: Course = WORLD) -> str:
    """What stands between the marks of a chapter."""
    start, end = MARKS[course]
    shown = found.table()
    head = f"| {' | '.join(str(c) for c in shown.columns)} |\n|{'---|' * len(shown.columns)}\n"
    rows = "".join(f"| {' | '.join(str(c) for c in row)} |\n" for row in shown.rows)
    stack = f"`{found.stack}`" if course is WORLD else "SmolLM2-135M-Instruct"
    about = f"{found.counts()}; {stack}, seed 0, stack key {found.stack_key}; {shown.title}."
    return f"{start}\n{head}{rows}\n{found.said}\n{about[0].lower() + about[1:]}\n{end}"


def page(chapter: Chapter) -> Path:
    return KEPT / f"{chapter.number:02d}-{chapter.slug}.md"


def kept_in(course: Course) -> tuple[Path, str]:
    """The folder of the kept results of a course, and what stands in front of the names of its pictures."""
    return (KEPT / "kept", "") if course is WORLD else (KEPT / "kept" / course.name, SMOLLM2_PICTURE)


def keep(chapter: Chapter, made: Path, found: Findings, course: Course = WORLD) -> None:
    """Write the result, the picture and the table of a chapter."""
    (folder, picture), (start, end) = kept_in(course), MARKS[course]
    shutil.copy(made / f"{chapter.experiment}.svg", KEPT / f"{picture}{chapter.experiment}.svg")
    findings.save(found, folder)
    text = page(chapter).read_text(encoding="utf-8")
    if start not in text:
        last = next(words for words in LAST_WORDS if words in text)
        text = text.replace(last, f"\n{same_on_smollm2(chapter)}{last}", 1)
    page(chapter).write_text(
        re.sub(f"{start}.*?{end}", lambda _: table(found, course), text, flags=re.S), encoding="utf-8"
    )


def same_on_smollm2(chapter: Chapter) -> str:
    """The section of a chapter that holds SmolLM2's kept results, before they are written into it."""
    return (
        "## The same on SmolLM2\n\n"
        '<!-- test: skip: data, by: "python -m bench.tour_results --stack smollm2-tour/stack.yaml" -->\n'
        f"```\n$ {chapter.command} --stack smollm2-tour/stack.yaml     # after `demeanor tour smollm2`\n```\n\n"
        f"![The same on SmolLM2]({SMOLLM2_PICTURE}{chapter.experiment}.svg)\n\n{SMOLLM2_START}\n{SMOLLM2_END}\n"
    )


def differs(kept: TourNumber, fresh: TourNumber) -> bool:
    """Is a fresh number outside of the kept interval, and more than a point from it?"""
    low = kept.value if kept.low is None else kept.low
    high = kept.value if kept.high is None else kept.high
    slack = 0.01 if kept.unit != "nats" else 0.5
    return not low - slack <= fresh.value <= high + slack


def compared(kept: Findings, fresh: Findings) -> list[str]:
    """Which numbers of a fresh run contradict the kept ones."""
    wrong = [
        f"{row}, {column}: kept {m.text()}, now {fresh.cells[row][column].text()}"
        for row, cells in kept.cells.items()
        for column, m in cells.items()
        if row not in fresh.cells or column not in fresh.cells[row] or differs(m, fresh.cells[row][column])
    ]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--stack", type=Path, default=STACK)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of chapters")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    wrong: list[str] = []
    course = course_of(app.load_stack(options.stack, []))
    with tempfile.TemporaryDirectory(prefix="tour-") as scratch:
        lab = Lab(
            lambda overrides: app.load_stack(options.stack, list(overrides)),
            app.services(Runs(options.runs)),
            Path(scratch),
            course.limit,
            course,
        )
        for chapter in chapters():
            if (options.only and chapter.number not in options.only) or not course.has(chapter.experiment):
                continue
            found = notebook.make(chapter, lab)
            print(f"\n{chapter.number}. {chapter.title}  ({found.seconds:.0f} s)")
            outputs.show_blocks([found.table()], outputs.console())
            print(found.said)
            if options.check:
                kept = findings.load(kept_in(course)[0] / f"{chapter.experiment}.json")
                wrong += [f"chapter {chapter.number}: {problem}" for problem in compared(kept, found)]
            else:
                keep(chapter, lab.folder, found, course)
    print("\n".join(wrong) if wrong else "\nall numbers agree" if options.check else f"\nwritten: {KEPT}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

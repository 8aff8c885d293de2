"""Mutation run: each entry of mutants.yaml plants one mistake, and the tests nearest to it must fail.

In: the working tree. Out: a table and results/mutants.json; exit code 1 if fewer than 95% of the mutants are killed, 2
if an entry does not fit the code any more. Works in copies in a temporary folder, one for each process.
"""

from __future__ import annotations

import argparse
import os
import queue
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from demeanor.core.files import git_revision, write_json

REPOSITORY = Path(__file__).resolve().parent.parent
ENTRIES = Path(__file__).with_suffix(".yaml")
WANTED = 0.95


@dataclass(frozen=True)
class Mutant:
    """One planted mistake: `old` stands once in `file` and becomes `new`; `tests` are arguments of pytest."""

    file: str
    old: str
    new: str
    tests: str


@dataclass(frozen=True)
class Outcome:
    """What the tests said of a mutant: killed, survived, or that they cannot be run."""

    mutant: Mutant
    verdict: str
    seconds: float
    by: str = ""


def read(path: Path = ENTRIES) -> list[Mutant]:
    """Return the entries of a file, which lists them under the tests that must kill them."""
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [Mutant(**entry, tests=group["tests"]) for group in groups for entry in group["mutants"]]


def stale(mutants: Sequence[Mutant], root: Path = REPOSITORY) -> list[str]:
    """Return what is wrong with the entries: text that does not stand exactly once, tests that are not there."""
    problems = []
    for mutant in mutants:
        path = root / mutant.file
        count = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
        if count != 1:
            problems.append(f"{mutant.file}: {mutant.old!r} stands {count} times; wanted once")
        if mutant.old == mutant.new:
            problems.append(f"{mutant.file}: {mutant.old!r} is not changed")
        for word in shlex.split(mutant.tests):
            if word.startswith("tests/") and not (root / word.split("::")[0]).exists():
                problems.append(f"{word}: no such test file (for {mutant.file})")
    twice = [key for key, n in Counter((m.file, m.old, m.new) for m in mutants).items() if n > 1]
    return problems + [f"{file}: {old!r} is planted twice" for file, old, _ in twice]


def copy(folder: Path) -> Path:
    """Copy what git tracks and does not ignore, and link ../shared beside it; return the copy."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source = REPOSITORY / name
        if source.is_file() or source.is_symlink():  # a link to a folder too, such as demeanor/tour/chapters
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name, follow_symlinks=False)
    return folder


def tried(tree: Path, tests: str, timeout_s: float) -> tuple[int, str]:
    """Run tests in a copy; return pytest's exit code (-1: they took too long) and the line that says what failed."""
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        text = process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # and the servers that its tests began
        process.communicate()
        return -1, f"took over {timeout_s:g} s"
    failed = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return process.returncode, failed[0] if failed else text.strip()[-300:]


def judged(mutant: Mutant, tree: Path, timeout_s: float) -> Outcome:
    """Plant a mutant in a copy, run its tests, take it back."""
    path, start = tree / mutant.file, time.monotonic()
    clean = path.read_text(encoding="utf-8")
    path.write_text(clean.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code, by = tried(tree, mutant.tests, timeout_s)
    finally:
        path.write_text(clean, encoding="utf-8")
    verdict = {0: "survived", 1: "killed", 2: "killed", -1: "killed"}.get(code, "not run")
    return Outcome(mutant, verdict, time.monotonic() - start, by)


def run(mutants: Sequence[Mutant], *, processes: int, timeout_s: float) -> list[Outcome]:
    """Judge all mutants, each process in a copy of its own; exits if the tests fail without any mutant."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for i in range(processes):
            trees.put(copy(Path(folder) / f"tree{i}"))
        if (REPOSITORY.parent / "shared").is_dir():
            (Path(folder) / "shared").symlink_to(REPOSITORY.parent / "shared")

        def sound(tests: str) -> tuple[str, int, str]:
            tree = trees.get()
            try:
                return tests, *tried(tree, tests, timeout_s)
            finally:
                trees.put(tree)

        def judge(mutant: Mutant) -> Outcome:
            tree = trees.get()
            try:
                found = judged(mutant, tree, timeout_s)
            finally:
                trees.put(tree)
            print(
                f"{found.verdict:9} {found.seconds:5.1f} s  {mutant.file}: {mutant.new.strip()[:70]!r}",
                flush=True,
            )
            return found

        with ThreadPoolExecutor(processes) as pool:
            for tests, code, text in pool.map(sound, dict.fromkeys(m.tests for m in mutants)):
                if code != 0:
                    sys.exit(f"mutants: the tests fail without a mutant: pytest {tests}\n{text}")
            return list(pool.map(judge, mutants))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="plant only in files whose path holds this text")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--timeout", type=float, default=180.0, metavar="S", help="seconds for the tests of one mutant"
    )
    given = parser.parse_args()
    mutants = [m for m in read() if given.only in m.file]
    if problems := stale(mutants):
        print("mutants: entries do not fit the code:\n  " + "\n  ".join(problems))
        return 2
    found = run(mutants, processes=given.processes, timeout_s=given.timeout)
    killed = sum(x.verdict == "killed" for x in found)
    for room in sorted({"/".join(x.mutant.file.split("/")[:2]) for x in found}):
        mine = [x for x in found if x.mutant.file.startswith(room + "/") or x.mutant.file == room]
        print(f"{room:24} {sum(x.verdict == 'killed' for x in mine):3} of {len(mine):3} killed")
    for x in found:
        if x.verdict != "killed":
            print(f"{x.verdict}: {x.mutant.file}: {x.mutant.old!r} -> {x.mutant.new!r}\n    {x.by}")
    print(f"{killed} of {len(found)} killed ({killed / max(len(found), 1):.1%}); wanted {WANTED:.0%}")
    if not given.only:
        rows = [asdict(x) for x in found]
        write_json(
            REPOSITORY / "results" / "mutants.json",
            {"git": git_revision(REPOSITORY), "killed": killed, "mutants": len(found), "rows": rows},
        )
    return 0 if found and killed >= WANTED * len(found) else 1


if __name__ == "__main__":
    sys.exit(main())

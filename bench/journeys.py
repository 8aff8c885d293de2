"""`python -m bench.journeys`: how many files of the package one request, step, evaluation and gate enter.

Five journeys through the public entries (command line and HTTP), each in a process of its own: a warm chat
request, one DPO step from a loaded stack, the same with the command line and the loading, `eval` of two
variants, `gate`. A file counts when one of its named functions runs, in any thread. Module-level code and class
bodies do not count; what only an import ran has a column of its own ("import only"). Without --runs it trains
a tiny copy of the demo first (some seconds).
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

WANTED = {"chat": 35, "dpo": 35, "train": 35, "eval": 60, "gate": 60}
TITLES = {
    "chat": "one warm chat request",
    "dpo": "one DPO step, loaded stack",
    "train": "the same, whole train verb",
    "eval": "eval, 2 variants, --limit 1",
    "gate": "gate, --limit 2",
}
NAME = "harbour-desk"
QUESTION = "When does the ferry to Corkel leave today?"
SETTLE_S = 0.5  # after the last byte of an answer: what a request leaves to be written counts as well
TINY = {
    "weights.base.model": "{layers: 2, width: 64, heads: 2}",
    "weights.base.data": "[{source: world:corpus, limit: 2000}]",
    "weights.base.tokens": "24000",
    "weights.stages.sft.data": "[{source: world:instructions, limit: 240}]",
    "weights.stages.sft.epochs": "1",
    "weights.stages.dpo.data": "[{source: world:preferences, limit: 80}]",
}
ONE_STEP = {
    "weights.stages.dpo.data": "[{source: world:preferences, limit: 16}]",
    "weights.stages.dpo.batch_rows": "16",
    "weights.stages.dpo.epochs": "1",
}
OTHER_STEP = {
    **ONE_STEP,
    "weights.stages.dpo.data": "[{source: world:preferences, limit: 15}]",
}  # not trained yet


@dataclass(frozen=True)
class Journey:
    """What one journey entered; a jump is a call whose nearest caller in the package is in another file."""

    files: list[str]
    import_only: list[str]  # of those, the files whose functions ran only while a module was imported
    functions: int
    calls: int
    jumps: int
    rooms: list[str]


@dataclass(frozen=True)
class Call:
    """One call: the file of its nearest caller in the package ("": none), and whether an import made it."""

    caller: str
    function: CodeType
    importing: bool


@dataclass
class Counting:
    """Records calls of functions below `package`, in threads started after `install`, while `running`."""

    package: Path
    running: bool = False
    begin: str = ""
    """Start counting when a function of this name is given a loaded stack."""
    calls: list[Call] = field(default_factory=list)

    def install(self) -> None:
        sys.setprofile(self._profile)
        threading.setprofile(self._profile)

    def remove(self) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or not (self.running or self.begin) or not self._is_ours(frame):
            return
        if not self.running:
            if frame.f_code.co_name != self.begin or not hasattr(frame.f_locals.get("stack"), "spec"):
                return
            self.running, self.begin = True, ""
        code = frame.f_code
        is_class_body = not code.co_flags & inspect.CO_OPTIMIZED
        is_unnamed = code.co_name.startswith("<")  # a module, lambda, comprehension or generator expression
        if not is_class_body and not is_unnamed:
            self.calls.append(self._call(frame))

    def _is_ours(self, frame: FrameType) -> bool:
        file = frame.f_code.co_filename
        return file.startswith(f"{self.package}{os.sep}") and file.endswith(".py")

    def _call(self, frame: FrameType) -> Call:
        callers = []
        above = frame.f_back
        while above is not None:
            if self._is_ours(above):
                callers.append(above.f_code)
            above = above.f_back
        importing = any(code.co_name == "<module>" for code in callers)
        return Call(callers[0].co_filename if callers else "", frame.f_code, importing)

    def found(self) -> Journey:
        files = self._files(self.calls)
        outside_imports = self._files([call for call in self.calls if not call.importing])
        return Journey(
            files=sorted(outside_imports),
            import_only=sorted(files - outside_imports),
            functions=len({call.function for call in self.calls}),
            calls=len(self.calls),
            jumps=sum(call.caller not in ("", call.function.co_filename) for call in self.calls),
            rooms=sorted({Path(file).parts[0].removesuffix(".py") for file in files}),
        )

    def _files(self, calls: list[Call]) -> set[str]:
        return {str(Path(call.function.co_filename).relative_to(self.package)) for call in calls}


# ---- the journeys; each runs in a process of its own, in a folder with the stack and its runs ----


def overrides(settings: dict[str, str]) -> list[str]:
    return [word for path, value in settings.items() for word in ("--set", f"{path}={value}")]


def verb(counting: Counting, words: list[str]) -> int:
    """Run one verb of the command line, counted from its first function on."""
    from demeanor.cli import main

    counting.running = True
    try:
        return main(words)
    finally:
        counting.running = False


def chat(counting: Counting, stack: list[str]) -> None:
    """Serve in this thread; another one asks twice, and only the second request counts."""
    from demeanor.cli import main

    port = free_port()
    answers: list[int] = []

    def client() -> None:
        try:
            wait(port)
            answers.append(ask(port))
            time.sleep(SETTLE_S)
            counting.running = True
            answers.append(ask(port))
            time.sleep(SETTLE_S)
            counting.running = False
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=client)
    asking.start()
    main(["serve", *stack, "--port", str(port)])
    asking.join()
    need(answers == [200, 200], f"the requests ended with {answers}")


def dpo(counting: Counting, stack: list[str]) -> None:
    """From `train(stack, ...)` on: the command line has been read, and the stack is loaded."""
    from demeanor.cli import main

    counting.begin = "train"
    code = main(["train", *stack, *overrides(ONE_STEP), "--stage", "dpo"])
    counting.running = False
    need(code == 0, f"train ended with {code}")


def train(counting: Counting, stack: list[str]) -> None:
    code = verb(counting, ["train", *stack, *overrides(OTHER_STEP), "--stage", "dpo"])
    need(code == 0, f"train ended with {code}")


def evaluation(counting: Counting, stack: list[str]) -> None:
    code = verb(counting, ["eval", *stack, "--variants", f"{NAME}-policy", NAME, "--limit", "1"])
    need(code == 0, f"eval ended with {code}")
    need(any(Path("results").glob("*.html")), "eval wrote no page")


def gate(counting: Counting, stack: list[str]) -> None:
    """With the page of an earlier `eval`, but without its answers: both variants are measured again."""
    variants = [f"{NAME}-policy", NAME]
    limit = ["--limit", "2"]
    earlier = [sys.executable, "-P", "-m", "demeanor", "eval", *stack, "--variants", *variants, *limit]
    subprocess.run(earlier, check=True)  # in a process of its own, or its imports and caches would be missed
    for answers in Path("results").glob("*.rows.jsonl"):
        answers.unlink()
    rules = str(Path(stack[0]).parent / "gate.yaml")
    code = verb(counting, ["gate", *stack, "--against", variants[0], "--rules", rules, *limit])
    need(any(Path("results").glob("*.gate.json")), f"gate ended with {code} and wrote no record")


def command_line(counting: Counting, stack: list[str]) -> None:
    """No journey: what every verb enters before it begins."""
    verb(counting, ["--help"])


JOURNEYS: dict[str, Callable[[Counting, list[str]], None]] = {
    "chat": chat,
    "dpo": dpo,
    "train": train,
    "eval": evaluation,
    "gate": gate,
    "command line": command_line,
}


def need(held: bool, instead: str) -> None:
    if not held:
        raise SystemExit(f"bench: {instead}")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait(port: int) -> None:
    """Until the server listens, 180 s at most."""
    until = time.monotonic() + 180
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def ask(port: int) -> int:
    """One chat completion of the whole stack, not streamed; its status."""
    body = json.dumps({"model": NAME, "messages": [{"role": "user", "content": QUESTION}]})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


# ---- set-up, processes, table ----


def installed() -> Path:
    """The folder of the package that is counted: the one that `import demeanor` finds."""
    import demeanor

    return Path(demeanor.__file__).resolve().parent


def prepare(folder: Path, root: Path, runs: Path | None) -> list[str]:
    """Copy the demo's stack, and `runs` if given, into `folder`; train what is missing.

    Returns a verb's arguments.
    """
    shutil.copytree(root / "stacks" / "demo", folder / "stack", dirs_exist_ok=True)
    stack = [str(folder / "stack" / "demo.yaml")]
    if runs is not None:
        shutil.copytree(runs, folder / "runs", dirs_exist_ok=True)
    else:
        stack += overrides(TINY)
    run(folder, root, "train", ["-m", "demeanor", "train", *stack, "--stage", "dpo"])
    return stack


def run(folder: Path, root: Path, name: str, words: list[str]) -> None:
    """Run Python in `folder`, its output in NAME.log; raises SystemExit with the last lines if it fails."""
    log = folder / f"{name}.log"
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    with log.open("w") as out:
        ended = subprocess.run(
            [sys.executable, "-P", *words], cwd=folder, env=environment, stdout=out, stderr=out, check=False
        )
    if ended.returncode:
        last = "\n".join(log.read_text().splitlines()[-15:])
        raise SystemExit(f"bench: {name} ended with {ended.returncode}\n{last}")


def measure(folder: Path, root: Path, runs: Path | None) -> dict[str, Journey]:
    stack = prepare(folder, root, runs)
    found: dict[str, Journey] = {}
    for name in JOURNEYS:
        out = folder / f"{name}.json"
        run(folder, root, name, [__file__, "--journey", name, "--json", str(out), *stack])
        found[name] = Journey(**json.loads(out.read_text()))
    return found


def show(found: dict[str, Journey], listed: bool) -> None:
    """The table, and with `listed` the files of every journey."""
    parser = set(found["command line"].files)
    columns = ("files", "wanted", "in --help", "import only", "functions", "jumps", "calls", "rooms")
    print(f"{'journey':<29}" + "".join(f"{column:>12}" for column in columns))
    for name, title in TITLES.items():
        journey = found[name]
        numbers = [
            len(journey.files),
            f"<= {WANTED[name]}",
            len(parser & set(journey.files)),
            len(journey.import_only),
            journey.functions,
            journey.jumps,
            journey.calls,
            len(journey.rooms),
        ]
        print(f"{title:<29}" + "".join(f"{number:>12}" for number in numbers))
    print(
        "in --help: of the files, those that `demeanor --help` enters too; "
        "import only: entered only by functions that an import calls"
    )
    for name, title in TITLES.items() if listed else ():
        print(f"\n{title}")
        for file in found[name].files:
            marks = [" (in --help)"] if file in parser else []
            marks += [" (import only)"] if file in found[name].import_only else []
            print(f"  {file}{''.join(marks)}")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.journeys", description=__doc__)
    parser.add_argument(
        "--json", type=Path, help="where to write the numbers (default: results/journeys.json)"
    )
    parser.add_argument(
        "--folder", type=Path, help="an empty folder to work in and keep (default: a temporary one)"
    )
    parser.add_argument("--runs", type=Path, help="trained weights of the demo, copied before use")
    parser.add_argument("--list", action="store_true", help="also print the files of each journey")
    parser.add_argument("--journey", choices=JOURNEYS, help=argparse.SUPPRESS)  # the process of one journey
    return parser


def main() -> int:
    """Measure the four journeys, print the table, write the numbers."""
    options, stack = arguments().parse_known_args()
    package = installed()
    if options.journey:
        counting = Counting(package)
        counting.install()
        try:
            JOURNEYS[options.journey](counting, stack)
        finally:
            counting.remove()
        options.json.write_text(json.dumps(dataclasses.asdict(counting.found())))
        return 0
    out = (options.json or package.parent / "results" / "journeys.json").resolve()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        need(
            not any(folder.iterdir()),
            f"--folder {folder}: not empty; earlier weights and answers would be used",
        )
        found = measure(folder, package.parent, options.runs)
    show(found, options.list)
    out.parent.mkdir(parents=True, exist_ok=True)
    numbers = {name: {"wanted": WANTED.get(name), **dataclasses.asdict(j)} for name, j in found.items()}
    out.write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

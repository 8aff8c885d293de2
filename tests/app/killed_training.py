"""`demeanor train` in forked children of one process that imported torch once: each dies by kill -9 in another stage, the last ends.

`python killed_training.py STACK RUNS KEY...` prints {key: how the child ended that was to die in that stage, ..., "last": code}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from demeanor.cli import main
from demeanor.training import loop, pipeline, resume  # noqa: F401  all of torch is here before a child is

STEPS_ON = 2  # a child goes on for so many steps after the first checkpoint of its stage


def dies_in(key: str) -> None:
    """Let this process be killed inside a step of the run with this key, when a checkpoint lies there."""
    save, accumulate, steps_left = resume.save, loop.accumulate, [0]

    def saved(path: Path, *rest: Any) -> None:
        save(path, *rest)
        if path.parent.name == key and not steps_left[0]:
            steps_left[0] = STEPS_ON

    def accumulated(*rest: Any, **settings: Any) -> Any:
        if steps_left[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        steps_left[0] -= 1 if steps_left[0] else 0
        return accumulate(*rest, **settings)

    resume.save, loop.accumulate = saved, accumulated


def train(stack: str, runs: str, dying: str = "") -> int:
    """Run the command in a child; return its exit code, or minus the signal that killed it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            if dying:
                dies_in(dying)
            code = main(["train", stack, "--runs", runs, "--dtype", "fp32"])
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    stack, runs, *keys = sys.argv[1:]
    told = dict[str, object]()
    for key in keys:
        told[key] = train(stack, runs, key)
        assert not (Path(runs) / key / "model").exists()
    print(json.dumps({**told, "last": train(stack, runs)}))

"""Runs that die, in forked children of one process that imported torch once. `python victim.py FOLDER` prints what happened.

Every child calls the same `train(folder)`; what kills it is decided by its environment, as in life.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import tiny_training as tiny

from demeanor.core.errors import DemeanorError
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.training.loop import fit
from demeanor.training.optimizer import adamw
from demeanor.training.progress import measured_peak

STEPS = 30


def train(
    folder: Path,
    *,
    signals: dict[int, int] | None = None,
    checkpoint_every_s: float = 6.0,
    busy_s: float = 0.0,
) -> None:
    """Train the tiny model in `folder`; `signals` maps the number of a loss computation to the signal sent inside it."""
    calls = 0

    def loss(found: Outputs, batch: TokenBatch) -> Loss:
        nonlocal calls
        calls += 1
        if signals and calls in signals:
            os.kill(os.getpid(), signals[calls])
        time.sleep(busy_s)
        return tiny.loss(found, batch)

    def evaluate(model: torch.nn.Module, step: int) -> dict[str, float]:
        torch.rand(3)
        return {"weight": float(next(model.parameters()).sum())}

    trees = tiny.rows()
    model = tiny.Tiny()
    fit(
        model,
        tiny.outputs,
        loss,
        trees,
        tiny.Rounds(trees, STEPS),
        tiny.OPTIM,
        out=folder,
        watch=tiny.quiet(),
        read_last=False,
        checkpoint_every_s=checkpoint_every_s,
        evaluate=evaluate,
        clock=tiny.Seconds(),
    )


def child(work: Callable[[], None], kill_after_s: float | None = None) -> int:
    """Do `work` in a forked process, killed from outside after a while if asked; its exit code, or minus the signal."""
    pid = os.fork()
    if not pid:
        code = 0
        try:
            work()
        except DemeanorError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        finally:
            os._exit(code)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def warm_up() -> None:
    """Pay once, before forking, for what torch loads on first use; no backward pass, which would not survive a fork."""
    measured_peak("cpu", torch.float32)
    model = tiny.Tiny()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adamw(model, tiny.OPTIM).step()


def main(root: Path) -> dict[str, list[int]]:
    warm_up()
    codes = {"whole": [child(lambda: train(root / "whole"))]}
    codes["killed"] = [
        child(partial(train, root / "killed", signals={n: signal.SIGKILL})) for n in (27, 13, 1)
    ]
    codes["killed"].append(child(lambda: train(root / "killed")))
    codes["ctrl-c"] = [
        child(lambda: train(root / "ctrl-c", signals={15: signal.SIGINT}, checkpoint_every_s=1e9))
    ]
    codes["ctrl-c"].append(
        child(lambda: train(root / "ctrl-c", signals={9: signal.SIGTERM}, checkpoint_every_s=1e9))
    )
    codes["ctrl-c"].append(child(lambda: train(root / "ctrl-c", checkpoint_every_s=1e9)))
    draw, codes["any moment"] = random.Random(0), []
    while len(codes["any moment"]) < 40 and 0 not in codes["any moment"]:
        wait_s = draw.uniform(0.01, 0.08)
        codes["any moment"].append(
            child(lambda: train(root / "any moment", checkpoint_every_s=0.0, busy_s=0.002), wait_s)
        )
    codes["any moment"].append(child(lambda: train(root / "any moment", checkpoint_every_s=0.0)))
    return codes


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))

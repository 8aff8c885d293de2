"""Resumable runs: the training state in one safetensors file, and clean stops on a signal.

In: a model, an optimizer, averages, the step. Out: the file with all of them and the random state; `load`
restores it. The order of rows is not saved, because it is a pure function of (seed, step).
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from demeanor.core.errors import CheckpointError, DemeanorError
from demeanor.core.files import replacing
from demeanor.training.ema import EMA
from demeanor.training.parallel import ALONE, ProcessGroup, like, put, whole


class Optimizer(Protocol):
    """The part of an optimizer that is saved: a mapping from parameter to named tensors."""

    @property
    def state(self) -> Any: ...


FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Number formats of a run by the names that `--dtype` takes."""
Averages = Mapping[str, EMA]


def save(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    step: int,
    about: Mapping[str, Any],
    averages: Averages | None = None,
    group: ProcessGroup = ALONE,
    controllers: Mapping[str, Any] | None = None,
) -> None:
    """Write the state after `step` optimizer steps, atomically even if the process is killed.

    `about` describes the run; `load` refuses a file whose description differs. `controllers` are numbers that
    the run changes as it goes, as JSON. Shards are gathered; the first process writes.
    """
    tensors = _tensors(model, optimizer, averages or {})
    if not group.first:
        return
    with replacing(path) as part:
        said = {"step": step, "about": dict(about), "controllers": dict(controllers or {})}
        save_file(tensors, part, metadata={"demeanor": json.dumps(said)})
        with part.open("rb") as file:
            os.fsync(file.fileno())


@torch.no_grad()
def load(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    about: Mapping[str, Any],
    averages: Averages | None = None,
) -> int:
    """Restore a saved state and return its number of finished steps; 0 without a file.

    Raises CheckpointError if the file is unreadable or belongs to another run.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            saved = json.loads((file.metadata() or {})["demeanor"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safetensors handle, not a dict)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: not a training checkpoint ({error}); delete it to begin again"
        ) from error
    if saved["about"] != dict(about):
        raise CheckpointError(
            f"{path}: saved by another run ({saved['about']}; this is {dict(about)}); "
            "delete it to begin again"
        )
    weights = _weights(model)
    wrong = [
        n for n, t in weights.items() if f"model.{n}" not in tensors or tensors[f"model.{n}"].shape != t.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: does not fit this model at {', '.join(wrong[:3])}; delete it to begin again"
        )
    for name, weight in weights.items():
        put(weight, tensors[f"model.{name}"])
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            optimizer.state[parameter] = {key: like(parameter, value) for key, value in state.items()}
    for kind, average in (averages or {}).items():
        average.load({name: tensors[f"shadow.{kind}.{name}"] for name in average.weights})
    torch.set_rng_state(tensors["rng"])
    return int(saved["step"])


def begun_in(path: Path) -> str | None:
    """Return the number format of a saved state, fp32 or bf16; None without a readable one."""
    try:
        with safe_open(path, "pt") as file:
            saved = json.loads((file.metadata() or {})["demeanor"])
        return {str(dtype): name for name, dtype in FORMATS.items()}.get(saved["about"]["dtype"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None  # `load` says what is wrong


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the trainable weights of a model, atomically even if the process is killed."""
    with replacing(path) as part:
        save_file({name: whole(w.detach()).contiguous() for name, w in _weights(model).items()}, part)


@torch.no_grad()
def load_weights(path: Path, model: nn.Module) -> None:
    """Read weights that `save_weights` wrote back into the model."""
    own = _weights(model)
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (a safetensors handle, not a dict)
            put(own[name], file.get_tensor(name))


def controllers_in(path: Path) -> dict[str, Any]:
    """Return the controllers' state of a saved run; empty without a file."""
    if not path.exists():
        return {}
    with safe_open(path, "pt") as file:
        saved = json.loads((file.metadata() or {})["demeanor"])
    return dict(saved.get("controllers", {}))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters (a shared one once) and persistent buffers; the parent has the frozen weights."""
    state = model.state_dict()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {**learning, **{name: b for name, b in model.named_buffers() if name in state}}


def _tensors(model: nn.Module, optimizer: Optimizer, averages: Averages) -> dict[str, Tensor]:
    found = {f"model.{name}": whole(weight.detach()).contiguous() for name, weight in _weights(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"optimizer.{name}.{key}"] = whole(value).contiguous()
    for kind, average in averages.items():
        found |= {
            f"shadow.{kind}.{name}": whole(weight).contiguous() for name, weight in average.weights.items()
        }
    found["rng"] = torch.get_rng_state()
    return found


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(DemeanorError):
    """The run stopped on a signal and can be resumed. Exit code 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass
class Stop:
    """The signal that asked the run to stop; None: no signal came."""

    number: int | None = None

    @property
    def asked(self) -> bool:
        return self.number is not None

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: remember the first signal, stop at once on the second."""
        if self.number is not None:
            raise Interrupted(
                "stopped at once; run the same command again to resume from the last checkpoint", number
            )
        self.number = number

    def obeyed(self, done: int, steps: int) -> Interrupted:
        """The error to raise once the checkpoint of step `done` is written."""
        return Interrupted(
            f"stopped after step {done} of {steps}; run the same command again to resume from there",
            self.number or signal.SIGINT,
        )


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Collect SIGINT and SIGTERM into a Stop during the block."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

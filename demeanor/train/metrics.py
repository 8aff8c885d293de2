"""The ledger: one JSON line of metrics per step, appended and flushed, so that a killed run loses at most a torn last line.

In: rows with a `step`. Out: the same rows. It refuses to know what the numbers mean.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from demeanor.core.errors import DemeanorError, unknown
from demeanor.core.files import json_lines


class Listener(Protocol):
    """Somebody else who is told every row (`train.trackers`)."""

    def log(self, step: int, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


Also = Callable[[], Listener]


class MetricsLog:
    """An append-only JSONL file, open for one run; opening drops every row after `step` and a torn last line.

    `also` is opened with it and told the rows that are kept, then each new one.
    """

    def __init__(self, path: Path, *, step: int = 0, also: Also | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(sum(size for row, size in _lines(path) if row["step"] <= step))
        self._also = None if also is None else also()
        if self._also is not None:
            for row in read(path):
                self._also.log(row["step"], row)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row as one line; it is in the file, whole, when this returns. JSON has no NaN: it becomes null."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()
        if self._also is not None:
            self._also.log(row["step"], plain)

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        if self._also is not None:
            self._also.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class NullLog:
    """A ledger of a process that is not the first: it writes nothing."""

    def append(self, row: Mapping[str, Any]) -> None: ...

    def __enter__(self) -> NullLog:
        return self

    def __exit__(self, *error: object) -> None: ...


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole row of a ledger in order; empty where there is none. Raises DataError on a broken line before the last."""
    return [row for row, _ in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows with their sizes in bytes, a torn last line left out."""
    return json_lines(path, _row, "a row of a metrics log")


def _row(row: dict[str, Any]) -> dict[str, Any]:
    row["step"] + 0
    return row


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(DemeanorError):
    """Someone asked the run to stop; it did, and says how to go on. Exit code 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass
class Stop:
    """Which signal asked to stop (None: nobody did)."""

    number: int | None = None

    @property
    def asked(self) -> bool:
        return self.number is not None

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: remember the first wish, obey the second at once."""
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
    """Collect SIGINT and SIGTERM into a Stop for the length of the block."""
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


PIP = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
MLFLOW_EVERY_S = 2.0
"""MLflow answers each call before it returns: rows are sent together, at most this often."""
Row = Mapping[str, Any]


class Tracker(Protocol):
    """One run of one tracker; `log` may be told a row it knows already, and keeps it once."""

    def log(self, step: int, row: Row) -> None: ...

    def close(self) -> None: ...


Begin = Callable[[str, str, Row], Tracker]
"""From a stage's name, its key and what its record says to the tracker's run of it."""


def open_tracker(text: str) -> Begin:
    """What `--track TEXT` names; its library is imported here, so that a missing one is an error before any work.

    Raises DemeanorError for an unknown kind, a missing place, or a library that is not installed (with the pip command).
    """
    kind, _, place = text.partition(":")
    if kind not in PIP:
        raise DemeanorError(f"--track {text}: {unknown(kind, PIP, noun='tracker')}")
    if not place:
        raise DemeanorError(
            f"--track {text}: says not where; write {kind}:{'DIR' if kind == 'tensorboard' else 'NAME'}"
        )
    try:
        library = import_module("torch.utils.tensorboard" if kind == "tensorboard" else kind)
    except ImportError as error:
        raise DemeanorError(f"--track {text}: {error}; install it with: pip install {PIP[kind]}") from error
    adapters: dict[str, Callable[..., Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": Wandb,
        "mlflow": MLflow,
        "trackio": Trackio,
    }
    adapter = adapters[kind]
    return lambda stage, key, record: adapter(library, place, stage, key, record)


def together(texts: Sequence[str]) -> Begin | None:
    """All trackers of a command line as one; each that fails warns once and is told nothing more. None where there are none."""
    begins = [(text, open_tracker(text)) for text in texts]
    if not begins:
        return None
    return lambda stage, key, record: _Every(
        [_Spared(text, partial(begin, stage, key, record)) for text, begin in begins]
    )


class _Every:
    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, row: Row) -> None:
        for tracker in self._trackers:
            tracker.log(step, row)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


class _Spared:
    """A tracker whose failures cost one warning and never the training."""

    def __init__(self, text: str, begin: Callable[[], Tracker]) -> None:
        self._text, self._tracker = text, None
        self._tracker = self._try(begin)

    def log(self, step: int, row: Row) -> None:
        if (tracker := self._tracker) is not None:
            self._try(lambda: tracker.log(step, row))

    def close(self) -> None:
        if (tracker := self._tracker) is not None:
            self._try(tracker.close)
            self._tracker = None

    def _try(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # any library, any server: training goes on
            self._tracker = None
            warnings.warn(
                f"--track {self._text} is off for the rest of this stage: {type(error).__name__}: {error}",
                stacklevel=2,
            )
            return None


def numbers(row: Row) -> dict[str, float]:
    """The numbers of a row but its step; null and text are left out."""
    return {
        k: float(v)
        for k, v in row.items()
        if k != "step" and isinstance(v, int | float) and not isinstance(v, bool)
    }


class TensorBoard:
    """Event files in DIR/STAGE-KEY. Each opening purges what a reader knows of the run: the ledger is told again from its start."""

    def __init__(self, library: Any, place: str, stage: str, key: str, record: Row) -> None:
        self._writer = library.SummaryWriter(str(Path(place) / f"{stage}-{key}"), purge_step=0)

    def log(self, step: int, row: Row) -> None:
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of a W&B project with the stage key as its id; a resumed one knows its next step, rows before it are passed over."""

    def __init__(self, library: Any, place: str, stage: str, key: str, record: Row) -> None:
        self._run = library.init(
            project=place, id=key, name=f"{stage}-{key}", config=dict(record), resume="allow"
        )
        self._next = int(self._run.step or 0)

    def log(self, step: int, row: Row) -> None:
        if step >= self._next:
            self._run.log(numbers(row), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of the experiment `demeanor`, found again by its tag; each metric goes on after its last step there."""

    def __init__(self, library: Any, place: str, stage: str, key: str, record: Row) -> None:
        self._metric = library.entities.Metric
        self._client = client = library.tracking.MlflowClient(tracking_uri=place)
        found = client.get_experiment_by_name("demeanor")
        experiment = found.experiment_id if found else client.create_experiment("demeanor")
        known = client.search_runs([experiment], f"tags.`demeanor.key` = '{key}'")
        tags = {"demeanor.key": key, "demeanor.stage": stage, "demeanor.record": str(dict(record))[:4000]}
        self._new = not known
        self._run = (
            known[0] if known else client.create_run(experiment, tags=tags, run_name=f"{stage}-{key}")
        ).info.run_id
        self._last: dict[str, int] = {}
        self._waiting: list[Any] = []
        self._sent_s = time.monotonic()

    def log(self, step: int, row: Row) -> None:
        for name, value in numbers(row).items():
            if name not in self._last:
                told = [] if self._new else self._client.get_metric_history(self._run, name)
                self._last[name] = max((x.step for x in told), default=-1)
            if step > self._last[name]:
                self._waiting.append(self._metric(name, value, int(time.time() * 1000), step))
        if time.monotonic() - self._sent_s >= MLFLOW_EVERY_S:
            self._send()

    def close(self) -> None:
        self._send()
        self._client.set_terminated(self._run)

    def _send(self) -> None:
        for start in range(0, len(self._waiting), 1000):  # MLflow's limit for one batch
            self._client.log_batch(self._run, metrics=self._waiting[start : start + 1000])
        self._waiting, self._sent_s = [], time.monotonic()


class Trackio:
    """A run of a Trackio project, taken up again by its name; rows before the step it would count next are passed over."""

    def __init__(self, library: Any, place: str, stage: str, key: str, record: Row) -> None:
        self._run = library.init(project=place, name=f"{stage}-{key}", config=dict(record), resume="allow")
        self._finish = library.finish
        self._next = getattr(
            self._run, "_next_step", 0
        )  # Trackio 0.43 tells it nowhere else for runs here and in a Space

    def log(self, step: int, row: Row) -> None:
        if step >= self._next:
            self._run.log(numbers(row), step=step)

    def close(self) -> None:
        self._finish()

"""Metrics sent to TensorBoard, Weights & Biases, MLflow or Trackio as well (`--track KIND:PLACE`).

Input: rows of the metrics log. A tracker that fails never stops the training: it is reported once and left
out.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from demeanor.core.errors import DemeanorError, UsageError, unknown
from demeanor.training.progress import OpenTracker, Tracker

KINDS = ("tensorboard", "wandb", "mlflow", "trackio")  # also the names of their packages
MLFLOW_EVERY_S = 2.0
"""MLflow answers each call before it returns: rows are sent together, at most this often."""

Metrics = Mapping[str, Any]


def open_tracker(text: str) -> OpenTracker:
    """The tracker that `--track TEXT` names; its library is imported here, before any training.

    Raises DemeanorError for an unknown kind, a missing place, or a library that is not installed (with the
    pip command).
    """
    kind, _, place = text.partition(":")
    if kind not in KINDS:
        raise UsageError(f"--track {text}: {unknown(kind, KINDS, noun='tracker')}")
    if not place:
        wanted = "DIR" if kind == "tensorboard" else "NAME"
        raise UsageError(f"--track {text}: has no place; write {kind}:{wanted}")
    try:
        library = import_module("torch.utils.tensorboard" if kind == "tensorboard" else kind)
    except ImportError as error:
        raise DemeanorError(f"--track {text}: {error}; install it with: pip install {kind}") from error
    adapters: dict[str, Callable[..., Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": Wandb,
        "mlflow": MLflow,
        "trackio": Trackio,
    }
    return partial(adapters[kind], library, place)


def together(texts: Sequence[str]) -> OpenTracker | None:
    """All trackers of a command line as one, or None; one that fails warns once and gets no more rows."""
    begins = [(text, open_tracker(text)) for text in texts]
    if not begins:
        return None
    return lambda stage, key, record: _Every(
        [_WithoutErrors(text, partial(begin, stage, key, record)) for text, begin in begins]
    )


class _Every:
    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, row: Metrics) -> None:
        for tracker in self._trackers:
            tracker.log(step, row)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


class _WithoutErrors:
    """A tracker whose failures give one warning and never stop the training."""

    def __init__(self, text: str, begin: Callable[[], Tracker]) -> None:
        self._text, self._tracker = text, None
        self._tracker = self._try(begin)

    def log(self, step: int, row: Metrics) -> None:
        tracker = self._tracker
        if tracker is not None:
            self._try(lambda: tracker.log(step, row))

    def close(self) -> None:
        if self._tracker is not None:
            self._try(self._tracker.close)
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


def numbers(row: Metrics) -> dict[str, float]:
    """The numbers of a row but its step; null and text are left out."""
    return {
        k: float(v)
        for k, v in row.items()
        if k != "step" and isinstance(v, int | float) and not isinstance(v, bool)
    }


class TensorBoard:
    """Event files in DIR/STAGE-KEY; opening purges earlier events, since every row is logged again."""

    def __init__(self, library: Any, place: str, stage: str, key: str, record: Metrics) -> None:
        self._writer = library.SummaryWriter(str(Path(place) / f"{stage}-{key}"), purge_step=0)

    def log(self, step: int, row: Metrics) -> None:
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of a W&B project whose id is the stage key; a resumed run skips rows before its next step."""

    def __init__(self, library: Any, place: str, stage: str, key: str, record: Metrics) -> None:
        self._run = library.init(
            project=place, id=key, name=f"{stage}-{key}", config=dict(record), resume="allow"
        )
        self._next = int(self._run.step or 0)

    def log(self, step: int, row: Metrics) -> None:
        if step >= self._next:
            self._run.log(numbers(row), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of the experiment `demeanor`, found again by its tag; metrics continue after their last step."""

    def __init__(self, library: Any, place: str, stage: str, key: str, record: Metrics) -> None:
        self._metric = library.entities.Metric
        self._client = client = library.tracking.MlflowClient(tracking_uri=place)
        found = client.get_experiment_by_name("demeanor")
        experiment = found.experiment_id if found else client.create_experiment("demeanor")
        known = client.search_runs([experiment], f"tags.`demeanor.key` = '{key}'")
        tags = {"demeanor.key": key, "demeanor.stage": stage, "demeanor.record": str(dict(record))[:4000]}
        self._new = not known
        run = known[0] if known else client.create_run(experiment, tags=tags, run_name=f"{stage}-{key}")
        self._run = run.info.run_id
        self._last: dict[str, int] = {}
        self._waiting: list[Any] = []
        self._sent_s = time.monotonic()

    def log(self, step: int, row: Metrics) -> None:
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
    """A run of a Trackio project, found again by its name; a resumed run skips rows before its next step."""

    def __init__(self, library: Any, place: str, stage: str, key: str, record: Metrics) -> None:
        self._run = library.init(project=place, name=f"{stage}-{key}", config=dict(record), resume="allow")
        self._finish = library.finish
        # Trackio 0.43 has no public name for it, neither for local runs nor for those in a Space
        self._next = getattr(self._run, "_next_step", 0)

    def log(self, step: int, row: Metrics) -> None:
        if step >= self._next:
            self._run.log(numbers(row), step=step)

    def close(self) -> None:
        self._finish()

"""Metrics log and progress display of a training run.

In: rows of metrics, batches. Out: one flushed JSON line a step (a killed run loses at most a torn last line,
which `read_log` skips); a progress bar with mean loss, speed, share of peak FLOP/s and time left. It does not know
what a metric means.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

import torch
from rich import progress as bars
from rich.console import Console
from torch import nn

from demeanor.model.tensors import TokenBatch
from demeanor.training.runs import log_lines, read_log


class Tracker(Protocol):
    """Receives every row of a metrics log; a row may come again after a resume and must then be kept once."""

    def log(self, step: int, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


OpenTracker = Callable[[str, str, Mapping[str, Any]], Tracker]
"""From a stage's name, its key and its record to the tracker's run of it."""


class MetricsLog:
    """An append-only JSONL file, open for one run; opening drops every row after `step` and a torn last line.

    `also` is opened with it and told the rows that are kept, then each new one.
    """

    def __init__(self, path: Path, *, step: int = 0, tracker: Callable[[], Tracker] | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(sum(size for row, size in log_lines(path) if row["step"] <= step))
        self._tracker = None if tracker is None else tracker()
        if self._tracker is not None:
            for row in read_log(path):
                self._tracker.log(row["step"], row)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write and flush one row as one line; NaN and infinities become null, since JSON has neither."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()
        if self._tracker is not None:
            self._tracker.log(row["step"], plain)

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        if self._tracker is not None:
            self._tracker.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class NullLog:
    """The log of a process that is not the first: it writes nothing."""

    def append(self, row: Mapping[str, Any]) -> None: ...

    def __enter__(self) -> NullLog:
        return self

    def __exit__(self, *error: object) -> None: ...


EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")
GEMM_SIZE, GEMM_SIZE_CUDA, PEAK_WAIT_S = 1024, 8192, 0.2


def training_flops(model: nn.Module, *, head: bool) -> Callable[[TokenBatch], float]:
    """A function that counts the training FLOPs of a batch.

    6 per weight and token (4 if it is frozen), 12 per width and attended pair; the vocabulary head (`head`)
    counts at scored tokens only. Source: Kaplan et al. 2020, arXiv 2001.08361, table 1.
    """
    shapes = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    work = {name: (6.0 if p.requires_grad else 4.0) * p.numel() for name, p in shapes.items()}
    trunk = sum(flops for name, flops in work.items() if not name.endswith(EMBEDDINGS))
    vocabulary = (
        max((flops for name, flops in work.items() if name.endswith(EMBEDDINGS)), default=0.0)
        if head
        else 0.0
    )
    queries = sum(p.shape[0] for name, p in shapes.items() if name.endswith("q_proj.weight"))

    def count(batch: TokenBatch) -> float:
        products = trunk * batch.tokens_T.numel() + vocabulary * batch.scored_C.numel()
        return products + 12.0 * queries * attended_pairs(batch)

    return count


def attended_pairs(batch: TokenBatch) -> int:
    """Number of (query, key) pairs that attention computes: the whole context, and the segment causally."""
    total = 0
    for segment in batch.segments:
        size = segment.end - segment.start
        total += size * sum(end - start for start, end in segment.context) + size * (size + 1) // 2
    return total


@cache
def measured_peak(device: str, dtype: torch.dtype) -> float:
    """Best FLOP/s of a square matrix product on this device; takes about 0.2 s, once per process."""
    size = GEMM_SIZE_CUDA if device == "cuda" else GEMM_SIZE
    a = torch.ones(size, size, device=device, dtype=dtype)
    best, begun = float("inf"), time.perf_counter()
    while True:
        start = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for an asynchronous device
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - begun > PEAK_WAIT_S:
            return 2.0 * size**3 / best


PLAIN_EVERY_S, WINDOW_S = 5.0, 15.0


class _Mark(NamedTuple):
    """Running totals at a moment: seconds, steps, tokens, FLOPs, summed loss."""

    at_s: float
    step: int
    tokens: int
    flops: float
    losses: float


class StageProgress:
    """The display of one stage; rates are means over the last 15 seconds of training, pauses included."""

    def __init__(
        self,
        stage: str,
        *,
        stream: TextIO | None = None,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage = stage
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty() if terminal is None else terminal
        self._console = Console(file=self._stream, force_terminal=True) if self._terminal else None
        self._clock = clock
        self._bar: bars.Progress | None = None
        self._marks: deque[_Mark] = deque()
        self._steps, self._began, self._printed_s = 0, _Mark(0.0, 0, 0, 0.0, 0.0), 0.0
        self._peak: float | None = None
        self._shown: str | None = None
        self._beside = ""

    def show(self, text: str) -> None:
        """Put a text where the mean loss stands, from the next line on."""
        self._shown = text

    def say(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._console is None:
            print(f"{self.stage}: {text}", file=self._stream, flush=True)
        else:
            self._console.print(f"[bold]{self.stage}[/bold] ", end="")
            self._console.print(text, markup=False, highlight=False)

    @contextmanager
    def running(self, steps: int, done: int, peak_flops: float | None = None) -> Iterator[None]:
        """Show steps `done` to `steps` during the block, and the share of `peak_flops` (FLOP/s)."""
        self._steps, self._peak = steps, peak_flops
        self._began = _Mark(self._clock(), done, 0, 0.0, 0.0)
        self._marks = deque([self._began])
        self._printed_s = self._began.at_s
        if done:
            self.say(f"resuming after step {done} of {steps}")
        if self._console is not None:
            columns = (
                bars.TextColumn("[bold]{task.description}"),
                bars.BarColumn(bar_width=30),
                bars.MofNCompleteColumn(),
                bars.TextColumn("{task.fields[rates]}"),
            )
            self._bar = bars.Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
            self._bar.add_task(self.stage, total=steps, completed=done, rates="")
            self._bar.start()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
            if len(self._marks) > 1:
                last = self._marks[-1]
                self.say(
                    f"{last.step}/{self._steps} steps in {last.at_s - self._began.at_s:.0f} s  {self.rates()}"
                )

    def beside(self, text: str) -> None:
        """Show after the rates what else needs the cores, from the next line on; empty: nothing."""
        self._beside = text

    def update(self, step: int, loss: float, tokens: int, flops: float) -> None:
        """Count one finished step (`step` of all), its loss, its input tokens and its FLOPs."""
        last, now = self._marks[-1], self._clock()
        self._marks.append(_Mark(now, step, last.tokens + tokens, last.flops + flops, last.losses + loss))
        while len(self._marks) > 2 and self._marks[1].at_s < now - WINDOW_S:
            self._marks.popleft()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, rates=self.rates())
        elif self._console is None and now - self._printed_s >= PLAIN_EVERY_S:
            self._printed_s = now
            self.say(f"step {step}/{self._steps}  {self.rates()}")

    def rates(self) -> str:
        """Mean loss of the last 15 seconds (or what is shown instead), tokens per second, utilisation, time left.

        Empty before a step.
        """
        first, last = self._marks[0], self._marks[-1]
        rates = _rates(first, last, self._peak, self._steps - last.step, self._shown)
        return f"{rates}  {self._beside}" if rates and self._beside else rates


def _rates(first: _Mark, last: _Mark, peak: float | None, left: int, shown: str | None = None) -> str:
    steps, seconds = last.step - first.step, max(last.at_s - first.at_s, 1e-9)
    if not steps:
        return ""
    parts = [
        f"mean loss {(last.losses - first.losses) / steps:.4f}" if shown is None else shown,
        f"{(last.tokens - first.tokens) / seconds:,.0f} tokens/s",
    ]
    share = (last.flops - first.flops) / seconds / peak if peak else 0.0
    # More than all of it: other work disturbed the measurement of the peak, which then says nothing.
    if 0 < share <= 1:
        parts.append(f"{share:.0%} of peak")
    if left:
        parts.append(f"{_duration(left * seconds / steps)} left")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"

"""Long measurements as parts: each a process group of its own with a time limit; one that fails or hangs stops no other.

In: parts. Out: a row for each (outcome, seconds, load), written after every part together with the machine and the commit; a table at
the end. Ctrl-C ends the part that runs and says what was not run.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from demeanor.core import hardware
from demeanor.core.files import origin, write_json
from demeanor.core.table import Table

PATIENCE_S = 10.0  # between asking a part to end and ending it


class Part(NamedTuple):
    """A command line, the seconds that it may take, exit codes that are no failure, and parts without which it makes no sense.

    `share_s`: the seconds of a plan that are kept for it while others run before it, unless it is `spare`.
    """

    name: str
    command: Sequence[str]
    limit_s: float
    codes: frozenset[int] = frozenset({0})
    needs: tuple[str, ...] = ()
    share_s: float = 0.0
    spare: bool = False


def machine() -> dict[str, Any]:
    """The processor, its cores, and the memory."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
        return {"cpu": name, "cores": len(hardware.cores()), "memory_bytes": hardware.memory_bytes()}
    return {"cpu": platform.processor(), "cores": os.cpu_count(), "memory_bytes": hardware.memory_bytes()}


def save(path: Path, value: Any) -> None:
    """Write results as JSON, atomically; a number that is not finite (the interval of one round) becomes null."""

    def plain(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {key: plain(item) for key, item in x.items()}
        if isinstance(x, list | tuple):
            return [plain(item) for item in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, plain(value))


def run_part(part: Part, limit_s: float) -> dict[str, Any]:
    """Run a part; its outcome in words, exit code, seconds by the clock and of processors, load before and after."""
    before, began, load = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), os.getloadavg()[0]
    with hardware.unbound():
        process = subprocess.Popen(part.command, start_new_session=True)
    try:
        code = process.wait(limit_s)
        outcome = "done" if code in part.codes else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        _end(process)
        code, outcome = process.returncode, f"stopped after {limit_s:.0f} s"
    except BaseException:
        _end(process)
        raise
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = time.monotonic() - began
    loads = {"load_before": load, "load_after": os.getloadavg()[0]}
    return {"outcome": outcome, "code": code, "wall_s": round(wall, 1), "cpu_s": round(cpu, 1), **loads}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part and the processes that it started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
            if kind == signal.SIGTERM:
                continue  # servers of its own may still live
    process.wait()


def time_for(parts: Sequence[Part], i: int, left_s: float) -> float:
    """Seconds that part i may take when so many are left for all: its limit, but not the shares of later parts.

    A part that is not spare also takes those of later spare parts.
    """
    kept = (p.share_s for p in parts[i + 1 :] if parts[i].spare or not p.spare)
    return min(parts[i].limit_s, left_s - sum(kept))


def run_parts(
    parts: Sequence[Part],
    write: Callable[[dict[str, Any]], None],
    *,
    total_s: float | None = None,
    known: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run parts in order, whatever becomes of each; `total_s` bounds all together. `known`: rows of parts that ran before."""
    found: dict[str, dict[str, Any]] = dict(known or {})
    end = None if total_s is None else time.monotonic() + total_s
    for i, part in enumerate(parts):
        left = part.limit_s if end is None else time_for(parts, i, end - time.monotonic())
        failed = [name for name in part.needs if name in found and found[name]["outcome"] != "done"]
        plan = f" (planned {part.share_s / 60:.1f} min, at most {left / 60:.1f})" if part.share_s else ""
        print(f"\n== {part.name}{plan}: {' '.join(part.command[1:])}", flush=True)
        if failed or left < 1:
            found[part.name] = {
                "outcome": f"not run: {failed[0]} did not end well" if failed else "not run: no time left"
            }
        else:
            try:
                found[part.name] = run_part(part, left)
            except KeyboardInterrupt:
                rest = {other.name: {"outcome": "not run: interrupted"} for other in parts[i:]}
                found |= rest
                write({"parts": dict(found), **origin(), "machine": machine()})
                raise
        if found[part.name]["outcome"] != "done":
            print(f"{part.name}: {found[part.name]['outcome']}", file=sys.stderr, flush=True)
        write({"parts": dict(found), **origin(), "machine": machine()})
    return found


def show(found: Mapping[str, Mapping[str, Any]]) -> int:
    """Print what became of the parts; 1 if one did not end well, else 0."""
    rows = tuple(
        (name, str(x["outcome"]), *(f"{x[key]:.0f}" if key in x else "" for key in ("wall_s", "cpu_s")))
        + ((f"{x['load_before']:.1f}, {x['load_after']:.1f}",) if "load_before" in x else ("",))
        for name, x in found.items()
    )
    print(f"\n{Table(('part', 'outcome', 'wall s', 'processor s', 'load before, after'), rows)}")
    bad = [name for name, x in found.items() if x["outcome"] != "done"]
    if bad:
        print(f"not well: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0

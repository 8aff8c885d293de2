"""Folders of runs: `runs/<key>/` with record, metrics log, checkpoint and finished model.

In: a key by content and a record. Out: a folder that one process at a time may write; `model/` exists only
when it is complete. It does not know what a key means.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open

from demeanor.core import files
from demeanor.core.errors import CheckpointError, DemeanorError
from demeanor.core.files import json_lines, origin, write_json
from demeanor.model import adapters, checkpoints, hub
from demeanor.model.stored import is_adapter
from demeanor.stack.schema import Import, ImportStage, Remote
from demeanor.stack.stack import Stack, import_key
from demeanor.text import tokenizer as tokenizers
from demeanor.training import gguf_folder

MODEL, PART, RECORD, LOCK = "model", "model.part", "record.json", "lock"
LEDGER, CHECKPOINT = "ledger.jsonl", "checkpoint.safetensors"
BEST = "best-*.safetensors"  # weights of the best evaluation while an online stage runs


class Runs:
    """The folder of all runs; one sub-folder per key."""

    def __init__(self, root: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.root, self._now = root, now
        self._held: dict[str, IO[str]] = {}

    def folder(self, key: str) -> Path:
        return self.root / key

    def model(self, key: str) -> Path:
        """Where the finished model of a key is, or will be."""
        return self.folder(key) / MODEL

    def complete(self, key: str) -> bool:
        """Whether the model of a key is finished: its folder gets its name last, in one rename."""
        return self.model(key).is_dir()

    def begin(self, key: str, record: Mapping[str, Any]) -> Held:
        """Lock a key for this process and write its record; use as `with runs.begin(...) as folder`.

        Raises DemeanorError naming the process that holds it; the lock of a process that died is free.
        """
        folder = self.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        self._held[key] = files.lock(folder / LOCK, folder, TRAINING)
        path = folder / RECORD
        sessions = json.loads(path.read_text())["sessions"] if path.exists() else []
        session = {
            "began": self._now().isoformat(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **origin(),
        }
        write_json(path, {"key": key, **record, "sessions": [*sessions, session]})
        return Held(self, key)

    def part(self, key: str) -> Path:
        """An empty folder to put the finished model into, before `finish` gives it its name."""
        part = self.folder(key) / PART
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        return part

    def finish(self, key: str) -> Path:
        """Rename the filled `part` folder to the model, add the record with checksums, delete the training state."""
        folder = self.folder(key)
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        write_json(folder / PART / files.RECORD, {**record, files.SUMS: files.checksums(folder / PART)})
        if not self.complete(key):  # another process may have finished it before we had the lock
            os.replace(folder / PART, folder / MODEL)
        for path in (folder / CHECKPOINT, *folder.glob(BEST)):
            path.unlink(missing_ok=True)
        return folder / MODEL

    def release(self, key: str) -> None:
        """Free a key; its lock file is deleted while held, so that no process locks a deleted file."""
        (self.folder(key) / LOCK).unlink(missing_ok=True)
        self._held.pop(key).close()


def note(folder: Path, **facts: Any) -> None:
    """Add facts to the record of a locked run; nothing where there is no record."""
    path = folder / RECORD
    if path.is_file():
        write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **facts})


def trained_on(runs: Runs, key: str) -> tuple[str, str]:
    """The number format of a run's products and the CPU that it began on; empty where its record does not say."""
    path = runs.folder(key) / RECORD
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return str(record.get("dtype", "")), str(record.get("cpu", ""))


def trained_in(runs: Runs, key: str) -> str:
    """The same as words for a report: `bf16 on AMD EPYC`; empty where a part is not recorded."""
    number_format, cpu = trained_on(runs, key)
    return f"{number_format} on {cpu}" if number_format and cpu else ""


class Held:
    """A locked key, as a context: gives its folder, and frees it whatever happens inside."""

    def __init__(self, runs: Runs, key: str) -> None:
        self._runs, self._key = runs, key

    def __enter__(self) -> Path:
        return self._runs.folder(self._key)

    def __exit__(self, *error: object) -> None:
        self._runs.release(self._key)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file, which is not created and only locked during the check."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


TRAINING = "is training this; wait for it, or stop it"
KEY = re.compile(r"[0-9a-f]{16}")
"""Names of run folders (`stack.digest`); other folders and files there are never listed or deleted."""
GONE = ".deleted-"


@dataclass(frozen=True, slots=True)
class Entry:
    """One run: state in words, size in bytes, begin of its last session (ISO), last losses."""

    key: str
    stack: str
    stage: str
    state: str
    size: int
    began: str
    loss: float | None
    held_out: float | None

    @property
    def busy(self) -> bool:
        return self.state == "running"


def entries(root: Path) -> list[Entry]:
    """Every run in a folder, the last begun first; empty where there is no folder."""
    found = (
        [entry(folder) for folder in sorted(root.iterdir()) if folder.is_dir() and KEY.fullmatch(folder.name)]
        if root.is_dir()
        else []
    )
    return sorted(found, key=lambda x: x.began, reverse=True)


def entry(folder: Path) -> Entry:
    """One run, read from its files; a file that cannot be read makes the run broken and raises no error."""
    record, trouble = _record(folder / RECORD)
    loss = held_out = None
    try:
        for row in read_log(folder / LEDGER):
            loss, held_out = row.get("loss", loss), row.get("eval_loss", held_out)
    except DemeanorError as error:
        trouble = trouble or f"broken: {error}"
    sessions = record.get("sessions") or [{}]
    return Entry(
        folder.name,
        str(record.get("stack", "?")),
        str(record.get("stage", "?")),
        _state(folder, trouble),
        _size(folder),
        str(sessions[-1].get("began", "")),
        loss,
        held_out,
    )


def _record(path: Path) -> tuple[dict[str, Any], str | None]:
    try:
        record = json.loads(path.read_text())
        return (record, None) if isinstance(record, dict) else ({}, f"broken: {path.name} is no record")
    except FileNotFoundError:
        return {}, f"broken: no {path.name}"
    except (OSError, ValueError) as error:
        return {}, f"broken: {path.name}: {error}"


def _state(folder: Path, trouble: str | None) -> str:
    if is_held(folder / LOCK):
        return "running"
    if (folder / MODEL).is_dir():
        return trouble or "finished"
    if trouble or not (folder / CHECKPOINT).exists():
        return trouble or "interrupted before its first checkpoint"
    try:
        with safe_open(folder / CHECKPOINT, "np") as file:
            saved = json.loads((file.metadata() or {})["demeanor"])
        return f"interrupted at step {saved['step']} of {saved['about']['steps']}"
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        return f"broken: {CHECKPOINT}: {error}"


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() or path.is_symlink() else 0
        except FileNotFoundError:  # a run that goes on replaces its files
            continue
    return total


def began(found: Entry) -> str:
    """The begin of the last session to the minute, in UTC; empty if the record has none."""
    try:
        return datetime.fromisoformat(found.began).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return ""


def unneeded(found: Collection[Entry], needed: Collection[str]) -> list[Entry]:
    """The runs whose key is not needed and that no process trains."""
    return [x for x in found if x.key not in needed and not x.busy]


def delete(root: Path, key: str) -> None:
    """Delete a run; it is renamed first, so that half a run is never found.

    Raises DemeanorError if it is running.
    """
    held = files.lock(root / key / LOCK, root / key, TRAINING)
    try:
        gone = root / f"{GONE}{key}-{os.getpid()}"
        os.replace(root / key, gone)
        shutil.rmtree(gone)
    finally:
        held.close()


def sweep(root: Path) -> None:
    """Delete what a killed `delete` left."""
    for gone in root.glob(f"{GONE}*"):
        shutil.rmtree(gone, ignore_errors=True)


def weights_folder(stack: Stack, runs: Runs, stage: str) -> Path:
    """The folder of a stage's finished weights. Raises CheckpointError with the command that trains them."""
    base = stack.spec.weights.base
    if isinstance(base, Remote):
        raise CheckpointError(
            f"{stage}: {base.model} is on another server ({base.url}); its weights are not here"
        )
    if stage == "base" and isinstance(base, Import):
        return import_folder(stack, runs, base.path)
    key = stack.stage_key(stage)
    if not runs.complete(key):
        raise CheckpointError(
            f"{stage}: not trained yet (no finished weights at {runs.folder(key)}). "
            f"Run: demeanor train {stack.path}, or name the folder that has them: --runs FOLDER"
        )
    return runs.folder(key) / "model"


def import_folder(stack: Stack, runs: Runs, path: str) -> Path:
    """A local checkpoint folder, the snapshot of the hub id that the user named, or a GGUF file's run."""
    if (stack.root / path).is_dir():
        return stack.root / path
    if files.names_gguf(stack.root / path):
        return _gguf_run(stack, runs, path)
    return hub.snapshot(path)


def _gguf_run(stack: Stack, runs: Runs, path: str) -> Path:
    """The run of a GGUF file: config and tokenizer from its header, and a link to it, made once by each reader."""
    source, key = stack.root / path, import_key(stack.root, path)
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file")
    # Of what is there, not of an attempt that failed or was killed.
    made, _ = _record(runs.model(key) / files.RECORD)
    old = made.get("reader") != gguf_folder.READER and os.access(runs.root, os.W_OK)
    if old or not runs.complete(key):
        about = {"imported": str(source.resolve()), "reader": gguf_folder.READER}
        with runs.begin(key, {"stack": stack.spec.name, "stage": "base", **about}):
            gguf_folder.write(source, runs.part(key))
            shutil.rmtree(runs.model(key), ignore_errors=True)
            runs.finish(key)
    gguf_folder.link(source, runs.model(key))
    return runs.model(key)


def training_curves(stack: Stack, runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """The metrics log of every stage that was trained here."""
    names = ["base", *(stage.name for stage in stack.spec.weights.stages)]
    paths = {name: runs.folder(stack.stage_key(name)) / LEDGER for name in names}
    return {name: list(read_log(path)) for name, path in paths.items() if path.is_file()}


def notes(stack: Stack, runs: Runs) -> list[str]:
    """One sentence for each imported model whose architecture only runs through transformers.

    Raises CheckpointError for a folder that cannot be used, or whose weights or tokenizer do not fit its config.json.
    """
    base = stack.spec.weights.base
    paths = {"base": base.path} if isinstance(base, Import) else {}
    for stage in stack.spec.weights.stages:
        if isinstance(stage, ImportStage) and (stack.root / stage.path).exists():
            paths[stage.name] = stage.path
    folders = {name: import_folder(stack, runs, path) for name, path in paths.items()}
    found = {name: checkpoints.checkpoint_info(folder) for name, folder in folders.items()}
    for name, folder in folders.items():
        if (folder / "tokenizer.json").is_file():
            tokenizers.load(folder)
        if found[name].lean and not files.names_gguf(stack.root / paths[name]):  # such a file was checked
            checkpoints.check(adapters.whole_folder(folder) if is_adapter(folder) else folder)
    return [
        f"{name}: {info.model_type} runs through transformers' own forward pass: slower, training pads its "
        "rows, and serving writes one answer at a time"
        for name, info in found.items()
        if not info.lean
    ]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Every whole row of a log in order; empty without a file.

    Raises DataError for a broken line before the last.
    """
    return [row for row, _ in log_lines(path)]


def log_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows with their sizes in bytes, a torn last line left out."""
    return json_lines(path, _log_row, "a row of a metrics log")


def _log_row(row: dict[str, Any]) -> dict[str, Any]:
    row["step"] + 0
    return row

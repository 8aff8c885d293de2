"""Safe files: atomic writes, JSON lines whose last line may be incomplete, strict YAML; and the code's
version.

In: paths and values. Out: the same values, or an error with file and line. Knows no schema.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml

from demeanor.core.errors import CheckpointError, DataError, DemeanorError, Problem, SpecError

T = TypeVar("T")
# Packages whose versions are stored with everything that is written.
PACKAGES = ("demeanor", "torch", "transformers", "tokenizers", "safetensors", "numpy")


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary file to write; it replaces `path` when the block ends and is deleted if the block
    fails.

    `shared`: several processes may write the same path at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part" if shared else f"{path.name}.part")
    part.unlink(missing_ok=True)  # left by a killed process
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def require_space(folder: Path, num_bytes: int) -> None:
    """Raise DemeanorError if the disk of a folder, which need not exist yet, has less room than will be written."""
    there = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if num_bytes > free:
        raise DemeanorError(
            f"{folder}: {num_bytes / 1e9:.1f} GB will be written there, and its disk has {free / 1e9:.1f} GB free; free some, name a "
            "folder on another disk, or write fewer bits a weight"
        )


def lock(path: Path, where: Path, doing: str) -> IO[str]:
    """Lock a file and write our pid into it; the kernel frees the lock when the process dies.

    Raises DemeanorError if another process has it, saying that it is `doing` something at `where`.
    """
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise DemeanorError(f"{where}: {holder} {doing}") from None
        if os.fstat(file.fileno()).st_nlink:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()  # its holder deleted it between our open and our lock


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; missing folders are created."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int = 1) -> None:
    """Write a value as JSON atomically; raises ValueError for NaN, which JSON does not have."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def json_lines(path: Path, read: Callable[[Any], T], noun: str) -> Iterator[tuple[T, int]]:
    """Yield every complete line as parsed by `read`, with its size in bytes; nothing if the file does not
    exist.

    A last line without a newline was cut off by a kill and is skipped. Raises DataError for any other line
    for which `read` raises ValueError, KeyError or TypeError; `noun` says what a line should be.
    """
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        try:
            found = read(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: not {noun} ({error}). Move the file away to start a new one."
            ) from error
        yield found, len(line)


class UniqueKeys(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, which plain YAML silently overwrites."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else id(key_node))
        return dict(super().construct_mapping(node, deep))


def read_yaml(path: Path, loader: type[yaml.SafeLoader] = UniqueKeys) -> Any:
    """Parse a YAML file; raises SpecError with the line of a syntax error."""
    return _yaml(read_text(path), str(path), lambda line: f"{path}:{line}", loader)


def yaml_value(text: str, where: str) -> Any:
    """Parse YAML of the command line, such as the value of `--set`; raises SpecError that begins with `where`."""
    return _yaml(text, where, lambda line: where, UniqueKeys)


def _yaml(text: str, where: str, at: Callable[[int], str], loader: type[yaml.SafeLoader]) -> Any:
    try:
        return yaml.load(text, Loader=loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = f"not valid YAML: {getattr(error, 'problem', None) or error}"
        raise SpecError([Problem(at(mark.line + 1) if mark else where, what)]) from None
    except RecursionError:
        raise SpecError([Problem(where, "not valid YAML: nested too deeply")]) from None


RECORD, SUMS = "demeanor.json", "sha256"
"""The record in a folder of finished weights, and its field with the sum of each other file."""


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder."""
    return {path.name: _sum(path) for path in sorted(folder.iterdir()) if path.is_file()}


def verify(folder: Path) -> None:
    """Compare a folder of finished weights with the sums in its record, once for each state of a file.

    Does nothing where no sums were recorded, nor in a copy elsewhere, which may be edited. Raises CheckpointError naming the file that changed.
    """
    record = folder / RECORD
    if not record.is_file():
        return
    try:
        written = json.loads(record.read_text(encoding="utf-8"))
        sums = written.get(SUMS, {}) if written.get("key") == folder.resolve().parent.name else {}
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{record}: not the record of a training ({error})") from None
    for name, wanted in sums.items():
        path = folder / Path(name).name
        found = _sum(path) if path.is_file() else "absent"
        if found != wanted:
            raise CheckpointError(
                f"{path}: was changed or damaged since it was written (SHA-256 {found[:12]}, recorded "
                f"{wanted[:12]}). Delete {folder.parent} and train again, or copy {folder} elsewhere and name "
                "the copy as a base"
            )


def _sum(path: Path) -> str:
    """The SHA-256 of a file in a folder of weights; of a link, whose file is the user's (a GGUF file), as `identity` remembers it."""
    return identity(path) if path.is_symlink() else sha256(path)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, computed once for each state of it; a link's is that of its file."""
    path = path.resolve()
    found = path.stat()
    return _sum_of(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@lru_cache(4096)
def _sum_of(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


CHANGED = "was changed or replaced while it was read; run this again"


def stamp(found: os.stat_result) -> tuple[int, int]:
    """Return what tells a file from a later one at its place: its size, and when its content was changed (ns)."""
    return found.st_size, found.st_mtime_ns


def refuse_code(raw: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError if the settings of a checkpoint name Python code that should build it."""
    if raw.get("auto_map"):
        raise CheckpointError(
            f"{path}: auto_map names Python code of the checkpoint ({raw['auto_map']!r:.80}), which is never "
            "run here. If transformers reads this model_type without that code, remove auto_map; "
            "else convert the checkpoint first"
        )


def names_gguf(path: Path) -> bool:
    """True if a base or import names one file of weights: a file of any name (Ollama's blobs have no ending), or
    what ends in .gguf and is no folder."""
    return path.is_file() or (path.suffix.lower() == ".gguf" and not path.is_dir())


def left_behind(path: Path) -> str:
    """Say what to do about a file that git left as a pointer to its content; empty for any other file."""
    try:
        with path.open("rb") as file:
            pointer = file.read(64).startswith(b"version https://git-lfs")
    except OSError:
        return ""
    return "; it is only Git LFS's pointer to the content: run git lfs pull in its folder" if pointer else ""


def read_text(path: Path) -> str:
    """Read a UTF-8 text file; raises SpecError that names it."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError([Problem(str(path), f"not UTF-8 text (byte {error.start})")]) from None
    except OSError as error:
        raise SpecError([Problem(str(path), f"cannot be read: {error.strerror}")]) from None


def origin() -> dict[str, Any]:
    """Return the git revision (`-dirty` if edited), package versions, Python version, machine and threads."""
    revision, versions = _loaded()
    return {
        "git": revision,
        "versions": dict(versions),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


@lru_cache(maxsize=1)
def _loaded() -> tuple[str | None, Mapping[str, str | None]]:
    """Revision and package versions of the code that this process runs: read once, edits come too late for it."""
    return git_revision(Path(__file__).parent), {name: _version(name) for name in PACKAGES}


def git_revision(folder: Path) -> str | None:
    """Return `git describe` of a folder's checkout; None without git or checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


REMEMBERED_BYTES = 64 << 20
"""Files from this size on have their sums remembered: weights of 8 billion parameters take 10 seconds and more to read."""


def identity(path: Path) -> str:
    """Return the SHA-256 of a file as `sha256` does; that of a large file is remembered in the user's cache for each state of it.

    A state is its place, size, and the times of its last change (the system sets one of them, and no program can).
    """
    path = path.resolve()
    found = path.stat()
    if found.st_size < REMEMBERED_BYTES:
        return sha256(path)
    state = [str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
    try:
        name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
        note = private_cache("sums") / f"{name}.json"
    except (OSError, RuntimeError):  # no place to remember anything, or no home
        return sha256(path)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["state"] == state and len(known[SUMS]) == 64:
            return str(known[SUMS])
    settled = time.time_ns() - found.st_ctime_ns > SETTLED_NS  # before the long reading
    made = sha256(path)
    if settled and path.stat().st_ctime_ns == found.st_ctime_ns:
        with contextlib.suppress(OSError), replacing(note, shared=True) as part:
            part.write_text(json.dumps({"state": state, SUMS: made}), encoding="utf-8")
    return made


SETTLED_NS = 2_000_000_000
"""A file that was changed less than this ago may change again without another time (clocks of file systems are coarse)."""


def private_cache(name: str) -> Path:
    """Return a folder of the user's cache (`XDG_CACHE_HOME`, else ~/.cache) that only they can write.

    Raises PermissionError if others can.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "demeanor" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in (folder.parent, folder):
        about = each.stat()
        if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o022):
            raise PermissionError(errno.EPERM, "other users can write to this folder; chmod 700", str(each))
    return folder

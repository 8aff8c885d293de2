"""The weight files of a model folder: which are read, what they hold, whether they are whole.

In: a folder with safetensors files, or with one GGUF file (training/gguf_folder.py makes it). Out: its tensors
by name, with shapes from the files' headers before any memory is taken. Pickled weights are never read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from demeanor.core import files, hardware
from demeanor.core.errors import CheckpointError
from demeanor.model.deferred import Deferred
from demeanor.model.gguf_blocks import LAYOUTS
from demeanor.model.gguf_llama import FILE, GgufTensors
from demeanor.model.grouped import (
    GROUP,
    GROUP_FORMATS,
    MINIMUM,
    PACKED,
    PARTS,
    Grouped,
    GroupFormat,
    from_tensors,
    stored_format,
)

ADAPTER = "adapter_config.json"
MOST_BYTES = 1 + 2 / GROUP  # of a weight in groups
HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}
WIDE = {"F64", "F32", *LAYOUTS} - HALVES.keys()  # what is read as fp32: plain numbers, and the blocks of GGUF


def is_adapter(folder: Path) -> bool:
    """True if a folder contains an adapter and no whole weights."""
    return (folder / ADAPTER).is_file()


def _parts(packed: str) -> list[str]:
    return [packed.removesuffix(PACKED) + part for part in PARTS]


class StoredTensors:
    """The tensors of a folder by name: where each is, its shape and type, read from the files' headers."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError if there are no weights, two files differ in a tensor, or a file is damaged."""
        self.folder, self.where = folder, dict[str, Path]()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}  # as safetensors names them
        self.gguf: GgufTensors | None = None
        self._parts: dict[str, dict[str, Path]] = {}  # of a matrix in groups, where its tensors are
        self._stamps: dict[Path, tuple[int, int]] = {}
        files.verify(folder)
        paths = _files(folder)
        if not paths and (folder / FILE).is_file():
            self.gguf = GgufTensors(folder / FILE)
            self.where = dict.fromkeys(self.gguf.shapes, folder / FILE)
            self.shapes = dict(self.gguf.shapes)
            return
        if not paths:
            pickled = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt")])
            what = f"; {pickled[0]} is pickled and is not loaded, convert it first" if pickled else ""
            raise CheckpointError(f"{folder}: no .safetensors file{what}")
        for path in paths:
            with opened(path) as file:
                self._stamps[path] = files.stamp(path.stat())
                for name in list(file.keys()):
                    if name in self.where and not torch.equal(self[name], file.get_tensor(name)):
                        raise CheckpointError(
                            f"{folder}: {name} is another one in {self.where[name].name} than in {path.name}; "
                            "move the older file away"
                        )
                    part = file.get_slice(name)
                    self.where[name], self.shapes[name] = path, tuple(part.get_shape())
                    self._types[name] = part.get_dtype()
        self._parts = {
            name.removesuffix(PACKED): {x: self.where[x] for x in _parts(name) if x in self.where}
            for name in list(self.where)
            if name.endswith(PACKED)
        }
        for name, parts in self._parts.items():  # a matrix in groups counts as the matrix
            if name in self.where:
                raise CheckpointError(f"{folder}: {name} is there whole and in groups; wanted one of them")
            packed = name + PACKED
            self.where[name], self.shapes[name] = parts[packed], self._shape(packed)
            for part in parts:
                del self.where[part]

    def _shape(self, packed: str) -> tuple[int, ...]:
        """The shape of the matrix whose integers are the tensor `packed`."""
        shape, in_a_byte = self.shapes[packed], 2 if self._types[packed] == "U8" else 1
        return (*shape[:1], *(x * in_a_byte for x in shape[1:]))

    def groups(self, name: str) -> Grouped | None:
        """Return a matrix that is stored in groups as it is; None for any other tensor."""
        if self.gguf is not None:
            return self.gguf.groups(name)
        if name not in self._parts:
            return None
        tensors = {part: self._read(path, part) for part, path in self._parts[name].items()}
        return from_tensors(name, tensors, str(self.where[name]))

    def __getitem__(self, name: str) -> Tensor:
        if self.gguf is not None:
            return self.gguf[name]
        grouped = self.groups(name)
        if grouped is not None:
            return grouped.dequantised()
        return self._read(self.where[name], name)

    def _read(self, path: Path, name: str) -> Tensor:
        """Read a tensor of a file; raises CheckpointError if it is not the file any more whose header was read."""
        with opened(path) as file:
            if files.stamp(path.stat()) != self._stamps[path]:
                raise CheckpointError(f"{path}: {files.CHANGED}")
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def deferred(self, name: str, *, keep_groups: bool) -> Deferred | None:
        """Return a matrix of real numbers that is read when it is used; None for any other tensor.

        16 bits stay 16 bits, and with `keep_groups` groups stay groups; the rest is read as fp32.
        """
        shape = self.shapes[name]
        if len(shape) != 2:
            return None
        format = self.group_format(name) if keep_groups else None
        if format is not None:
            return Deferred((shape[0], shape[1]), partial(self._groups, name), format=format)
        kind = self._type(name)
        if kind not in HALVES and kind not in WIDE:
            return None
        dtype = HALVES.get(kind, torch.float32)
        peek = None if self.gguf is not None or name in self._parts else partial(self._first, name)
        return Deferred((shape[0], shape[1]), lambda: self[name].to(dtype), dtype, peek=peek)

    def _first(self, name: str, count: int) -> Tensor:
        """The first rows of a tensor."""
        with opened(self.where[name]) as file:
            rows: Tensor = file.get_slice(name)[:count]
            return rows.float()

    def group_format(self, name: str) -> GroupFormat | None:
        """Return the format of a matrix that is stored in groups; None for any other tensor."""
        if not self.in_groups(name):
            return None
        if self.gguf is not None:
            return next(x for x in GROUP_FORMATS if x == self._type(name).lower())
        whole = self._types[name + PACKED] == "I8"
        return stored_format(torch.int8 if whole else torch.uint8, name + MINIMUM in self._parts[name])

    def _groups(self, name: str) -> Grouped:
        found = self.groups(name)
        assert found is not None, f"{name} was in groups"
        return found

    def _type(self, name: str) -> str:
        """The number format of a tensor: safetensors' name of it, or GGUF's."""
        if self.gguf is not None:
            return self.gguf.file.tensors[self.gguf.own[name]].format
        return "F32" if name in self._parts else self._types[name]

    @property
    def num_weights(self) -> int:
        return sum(math.prod(self.shapes[name]) for name in self.where)

    def drop(self, name: str, other: str) -> bool:
        """Forget a tensor that equals another one; returns whether it is there and differs."""
        if name not in self.where or other not in self.where:
            return False
        if self.shapes[name] != self.shapes[other] or not torch.equal(self[name], self[other]):
            return True
        del self.where[name]
        return False

    def in_groups(self, name: str) -> bool:
        """True if `groups` would return a matrix."""
        return name in self._parts if self.gguf is None else self.gguf.in_groups(name)

    def bounded(
        self, declared: int, layers: int = 0, *, keep_groups: bool = False, deferred: bool = False
    ) -> None:
        """Raise CheckpointError if config.json declares more than the files hold, or memory cannot hold them; `deferred`: they are
        not read into it."""
        where, memory = self.folder / "config.json", hardware.memory_bytes()
        if layers > len(self.where) or declared > self.num_weights:
            deep = f"{layers} layers and " if layers else ""
            raise CheckpointError(
                f"{where}: declares {deep}at least {declared} weights; the files hold "
                f"{len(self.where)} tensors with {self.num_weights} weights"
            )
        if deferred:
            return
        small = keep_groups and any(map(self.in_groups, self.where))
        needed = sum(
            math.prod(self.shapes[name]) * (MOST_BYTES if small and self.in_groups(name) else 4)
            for name in self.where
        )
        if memory is not None and needed > memory:
            raise CheckpointError(
                f"{self.folder}: needs {needed / 2**30:.1f} GiB{'' if small else ' in fp32, as training holds weights'}; "
                f"this machine has {memory / 2**30:.1f} GiB. Serving, rounding (a stage of kind quantise), merging and export read a "
                "Llama's matrices one at a time and need less; to train, take a smaller model or a machine with more memory"
            )


def _files(folder: Path) -> list[Path]:
    """Return the weight files: model.safetensors as transformers does, else those in the index, else all.

    Raises CheckpointError.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.exists() or not index.exists():
        return [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: not a readable index of weights ({type(error).__name__}: {error})"
        ) from None
    absent = [name for name in named if Path(name).name != name or not (folder / name).exists()]
    if absent:
        raise CheckpointError(
            f"{folder}: {index.name} names {len(absent)} files that do not exist, first {absent[0]}"
        )
    return [folder / name for name in named]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raises CheckpointError if it is missing, damaged or unreadable."""
    files.verify(path.parent)
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in list(file.keys())}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; raises CheckpointError if it is missing or unreadable."""
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent}: no {path.name}; pickled weights are not loaded, use safe_serialization=True"
        )
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        what = files.left_behind(path)
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}){what}") from None

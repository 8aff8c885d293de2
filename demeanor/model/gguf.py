"""GGUF files, llama.cpp's format of one file: settings, tokenizer and tensors, read and written.

In: a path, or settings and tensors. Out: a `GgufFile` with every setting and the place of every tensor, or a
file. Nothing of a file is believed: counts, lengths and places are compared with its size before memory is
taken. Knows no architecture. Source: ggml/docs/gguf.md of llama.cpp.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from demeanor.core import files
from demeanor.core.errors import CheckpointError
from demeanor.model.gguf_blocks import LAYOUTS, NAMES, dequantised

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
MOST_SETTINGS, MOST_TENSORS, MOST_HEADER = 2**16, 2**17, 2**29
"""Bounds on a header: settings, tensors, bytes. The largest known files hold 60, 2,000 and 20 MB."""
MOST_DIMENSIONS, MOST_NAME, MOST_ALIGNMENT = 4, 2**16 - 1, 2**16

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
SMALLEST = {**{kind: struct.calcsize(letter) for kind, letter in SCALARS.items()}, TEXT: 8}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is: shape as in torch (rows first), name of its number format, byte offset and size."""

    shape: tuple[int, ...]
    format: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a file: `settings` by key, `tensors` by name; `stamp` tells the file from a later one at its place."""

    path: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, Place]
    stamp: tuple[int, int]

    def raw(self, name: str) -> Tensor:
        """Return the bytes of a tensor as they are in the file, uint8; raises CheckpointError if it is not the file any more whose header was
        read."""
        place = self.tensors[name]
        data = bytearray(place.size)
        try:
            with self.path.open("rb") as file:
                file.seek(place.offset)
                if file.readinto(data) != place.size:
                    raise CheckpointError(f"{self.path}: ends within {name}; it was cut while it was in use")
                if files.stamp(os.fstat(file.fileno())) != self.stamp:
                    raise CheckpointError(f"{self.path}: {files.CHANGED}")
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from None
        return torch.frombuffer(data, dtype=torch.uint8)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in fp32 (fp16 and bf16 as they are)."""
        place = self.tensors[name]
        return dequantised(self.raw(name), place.format, f"{self.path}: {name}").view(place.shape)


class _Header:
    """Reads values one after the other, and never more bytes than the file has."""

    def __init__(self, file: IO[bytes], path: Path, size: int) -> None:
        self.file, self.path, self.size, self.place = file, path, size, 0

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: not a GGUF file that can be read: {what} (byte {self.place})")

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.place:
            raise self.error(
                f"{what} has {count} bytes, the file ends after {self.size - self.place}; was it cut short?"
            )
        if count > MOST_HEADER - self.place:
            raise self.error(f"{what} has {count} bytes; wanted at most {MOST_HEADER} before the tensors")
        found = self.file.read(count)
        if len(found) != count:
            raise self.error(f"the file ends within {what}")
        self.place += count
        return found

    def number(self, letter: str, what: str) -> Any:
        (found,) = struct.unpack(f"<{letter}", self.take(struct.calcsize(letter), what))
        return found

    def count(self, what: str, smallest: int, most: int) -> int:
        """A declared number of things, each of at least `smallest` bytes."""
        found: int = self.number("Q", what)
        room = (self.size - self.place) // smallest
        if found > min(most, room):
            cut = "; was it cut short?" if room < most else ""
            raise self.error(f"it declares {found} {what}, wanted at most {min(most, room)}{cut}")
        return found

    def text(self, what: str, most: int = MOST_HEADER) -> str:
        length = self.count(f"bytes of {what}", 1, most)
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 ({error.reason})") from None

    def value(self, kind: int, what: str) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind == TEXT:
            return self.text(what)
        if kind != ARRAY:
            raise self.error(f"{what} has the unknown type {kind}")
        inner = self.number("I", f"the type of {what}")
        if inner not in SMALLEST:
            raise self.error(f"{what} is a list of the type {inner}; wanted numbers or texts")
        length = self.count(f"entries of {what}", SMALLEST[inner], MOST_HEADER)
        if inner == TEXT:
            return [self.text(what) for _ in range(length)]
        raw = self.take(length * SMALLEST[inner], what)
        return np.frombuffer(raw, np.dtype(SCALARS[inner]).newbyteorder("<")).tolist()


def read(path: Path) -> GgufFile:
    """Read the header of a GGUF file.

    Raises CheckpointError naming the file and the byte where it is cut, damaged, or declares what it lacks.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(_Header(file, path, size))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None


def _read(header: _Header) -> GgufFile:
    if header.take(4, "the magic number") != MAGIC:
        raise header.error(f"it does not begin with 'GGUF'{files.left_behind(header.path)}")
    version = header.number("I", "the version")
    if version & 0xFFFF == 0:
        raise header.error("it is big endian; convert it with gguf's gguf-convert-endian")
    if version not in VERSIONS:
        raise header.error(f"its version is {version}, wanted {' or '.join(map(str, VERSIONS))}")
    # A tensor: name, dimensions, type, offset; a setting: key, type, value.
    num_tensors = header.count("tensors", 8 + 1 + 4 + 8 + 4 + 8, MOST_TENSORS)
    num_settings = header.count("settings", 8 + 1 + 4 + 1, MOST_SETTINGS)
    settings: dict[str, Any] = {}
    for _ in range(num_settings):
        key = header.text("a setting's name", MOST_NAME)
        if key in settings:
            raise header.error(f"the setting {key} stands twice")
        settings[key] = header.value(header.number("I", f"the type of {key}"), key)
    if settings.get("split.count", 1) not in (0, 1):
        raise header.error(
            f"it is one of {settings['split.count']} parts; join them first: llama-gguf-split --merge FIRST OUT"
        )
    declared = dict(_declared(header, num_tensors))
    if len(declared) != num_tensors:
        raise header.error("a tensor stands twice")
    stamp = files.stamp(os.fstat(header.file.fileno()))
    return GgufFile(header.path, settings, _placed(header, declared, settings), stamp)


def _declared(header: _Header, count: int) -> Iterable[tuple[str, tuple[tuple[int, ...], int, int]]]:
    """Name, shape, type and offset of each tensor."""
    for _ in range(count):
        name = header.text("a tensor's name", MOST_NAME)
        dimensions = header.number("I", f"the dimensions of {name}")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise header.error(f"{name} has {dimensions} dimensions, wanted 1 to {MOST_DIMENSIONS}")
        shape = tuple(header.number("Q", f"the shape of {name}") for _ in range(dimensions))
        kind = header.number("I", f"the type of {name}")
        yield name, (shape[::-1], kind, header.number("Q", f"the offset of {name}"))


def _placed(
    header: _Header, declared: Mapping[str, tuple[tuple[int, ...], int, int]], settings: Mapping[str, Any]
) -> dict[str, Place]:
    """Where the tensors are, once each fits into the file and none lies over another."""
    alignment = settings.get("general.alignment", ALIGNMENT)
    is_power = isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0
    if not is_power or not 8 <= alignment <= MOST_ALIGNMENT:
        raise header.error(f"general.alignment is {alignment!r}, wanted a power of 2 from 8")
    begin = -(-header.place // alignment) * alignment
    found: dict[str, Place] = {}
    for name, (shape, kind, offset) in declared.items():
        if kind not in NAMES:
            raise CheckpointError(
                f"{header.path}: {name} has the number format {kind}, which is not known here; "
                f"wanted one of {', '.join(LAYOUTS)}"
            )
        layout = LAYOUTS[NAMES[kind]]
        if min(shape) < 1 or shape[-1] % layout.elements:
            raise header.error(
                f"{name} has the shape {shape} in {NAMES[kind]}; wanted whole blocks of {layout.elements} in a row"
            )
        size = math.prod(shape) // layout.elements * layout.size
        if offset % alignment or begin + offset + size > header.size:
            raise header.error(
                f"{name} should be the {size} bytes from {begin + offset} on, a multiple of {alignment}; the file "
                f"has {header.size} bytes. Was it cut short?"
            )
        found[name] = Place(shape, NAMES[kind], begin + offset, size)
    ordered = sorted(found.items(), key=lambda x: x[1].offset)
    for (name, place), (other, after) in pairwise(ordered):
        if place.offset + place.size > after.offset:
            raise header.error(f"the tensors {name} and {other} lie over each other")
    return found


# ---- writing ----


@dataclass(frozen=True, slots=True)
class Typed:
    """A setting with the type that the format asks for (a letter of `SCALARS`); a list is of that type."""

    letter: str
    value: Any


Make = Callable[[], Tensor]
"""Makes the bytes of a tensor (uint8) when they are written, so that one tensor is in memory at a time."""


def write(
    path: Path, settings: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], str, Make]]
) -> None:
    """Write a GGUF file: texts, booleans, lists of texts and `Typed` numbers, then the tensors.

    `tensors` are shape (rows first), number format and bytes by name. It gets its name when it is whole.
    """
    files.require_space(path.parent, sum(_size(shape, form) for shape, form, _ in tensors.values()))
    kinds = {name: kind for kind, name in NAMES.items()}
    sizes = [_size(shape, form) for shape, form, _ in tensors.values()]
    head = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(settings)))
    for key, value in settings.items():
        head += _text(key) + _value(value)
    offset = 0
    for (name, (shape, form, _)), size in zip(tensors.items(), sizes, strict=True):
        head += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", kinds[form], offset)
        offset += size + -size % ALIGNMENT
    head += bytes(-len(head) % ALIGNMENT)
    with files.replacing(path) as part, part.open("wb") as file:
        file.write(head)
        for (name, (_, _, make)), size in zip(tensors.items(), sizes, strict=True):
            data = make()
            assert data.numel() == size, name
            file.write(data.contiguous().numpy().data)
            file.write(bytes(-size % ALIGNMENT))


def _size(shape: tuple[int, ...], form: str) -> int:
    """Bytes of a tensor in a number format."""
    return math.prod(shape) // LAYOUTS[form].elements * LAYOUTS[form].size


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    letters = {letter: kind for kind, letter in SCALARS.items()}
    if isinstance(value, bool):
        return struct.pack("<I?", letters["?"], value)
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + _text(value)
    if isinstance(value, Typed) and not isinstance(value.value, list):
        return struct.pack(f"<I{value.letter}", letters[value.letter], value.value)
    if isinstance(value, Typed):
        head = struct.pack("<IIQ", ARRAY, letters[value.letter], len(value.value))
        return head + struct.pack(f"<{len(value.value)}{value.letter}", *value.value)
    return struct.pack("<IIQ", ARRAY, TEXT, len(value)) + b"".join(map(_text, value))

"""Writing safetensors files tensor by tensor, so that a model larger than memory can be written.

In: what the tensors will be, then the tensors, in any order. Out: model.safetensors, or several files and their index, with the bytes
that safetensors' own `save_file` would write. Knows no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from demeanor.core import files

KINDS = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
"""In the order in which safetensors writes them."""
INDEX = "model.safetensors.index.json"


class Planned(NamedTuple):
    """A tensor that will be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    folder: Path,
    planned: Mapping[str, Planned],
    parts: Iterable[Mapping[str, Tensor]],
    shard_bytes: int | None = None,
) -> None:
    """Write every planned tensor, which `parts` brings some at a time; more than `shard_bytes` become several files.

    A file gets its name when all are whole. Raises DemeanorError before anything is written if the disk has too little room.
    """
    files.require_space(folder, sum(x.num_bytes for x in planned.values()))
    shards = _shards(planned, shard_bytes)
    names = {name: shard for shard, inside in shards.items() for name in inside}
    with ExitStack() as stack:
        opened: dict[str, IO[bytes]] = {}
        places: dict[str, int] = {}
        for shard, inside in shards.items():
            path = stack.enter_context(files.replacing(folder / shard))
            opened[shard] = stack.enter_context(path.open("wb"))
            places |= _begin(opened[shard], {name: planned[name] for name in inside})
        for part in parts:
            for name, tensor in part.items():
                about = planned[name]
                assert (tensor.dtype, tuple(tensor.shape)) == about, f"{name} is not as it was planned"
                file = opened[names[name]]
                file.seek(places.pop(name))
                file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
        assert not places, f"{next(iter(places))} was not written"
        for file in opened.values():
            file.close()
    if len(shards) > 1:
        total = sum(x.num_bytes for x in planned.values())
        files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": names}, indent=2)


def _shards(planned: Mapping[str, Planned], most: int | None) -> dict[str, list[str]]:
    """Names of tensors by file; a file has at most `most` bytes, unless one tensor has more."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, about in planned.items():
        if most is not None and groups[-1] and size + about.num_bytes > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += about.num_bytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": x for i, x in enumerate(groups, 1)}


def _begin(file: IO[bytes], planned: Mapping[str, Planned]) -> dict[str, int]:
    """Write a file's header; returns the place of each tensor."""
    kinds = list(KINDS)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, places = 0, {}
    for name, about in sorted(planned.items(), key=lambda x: (kinds.index(x[1].dtype), x[0])):
        end = offset + about.num_bytes
        header[name] = {
            "dtype": KINDS[about.dtype],
            "shape": list(about.shape),
            "data_offsets": [offset, end],
        }
        places[name], offset = offset, end
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    file.write(len(head).to_bytes(8, "little") + head)
    begin = 8 + len(head)
    file.truncate(begin + offset)
    return {name: begin + place for name, place in places.items()}

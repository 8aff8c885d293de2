"""Where weights decode and in what numbers: a device, a format of products, a format of keys and values.

In: the weight layers of a stack, or a loaded model. Out: settings without `auto` and null, a model on its device, and sentences that say what was
chosen. Measuring is done once in a process for each model shape. Knows no requests.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import torch
from torch import nn

from demeanor.core import hardware
from demeanor.core.errors import CheckpointError, EngineError
from demeanor.model import checkpoints, gguf, gguf_llama, grouped, native
from demeanor.model.gguf_blocks import PLAIN
from demeanor.model.grouped_modules import dequantised
from demeanor.model.llama import Config, Llama, read_config
from demeanor.model.packed_size import packed_bytes, size, smaller
from demeanor.model.pages import DTYPES, PAGE, CacheFormat, page_bytes
from demeanor.stack.schema import Import, Remote, Scratch, WeightsSpec

if TYPE_CHECKING:
    from demeanor.model.hf import ForeignModel

M = TypeVar("M", bound="Llama | ForeignModel")
SPARE = 0.9  # of a GPU's free memory is given to keys and values; the rest is for activations


class DecodingPlace(NamedTuple):
    """How an engine decodes: the device, formats of the matrices, of products, and of keys and values."""

    device: str
    weights: str
    compute: str
    cache: str

    def sentence(self) -> str:
        """Say it."""
        name = {"cpu": "the CPU"}.get(self.device, self.device.upper())
        return f"on {name}, weights in {self.weights}, products in {self.compute}, keys and values in {self.cache}"


def resolved(spec: WeightsSpec, root: Path) -> WeightsSpec:
    """Return the settings with what this machine chooses: CUDA when present if no device is named, and for `compute: auto` the
    faster format of this model's own products."""
    if isinstance(spec.base, Remote):
        return spec
    changed: dict[str, str] = {}
    if spec.device is None and torch.cuda.is_available():
        changed["device"] = "cuda"
    if spec.compute == "auto":
        on_gpu = (changed.get("device") or spec.device) == "cuda"
        changed["compute"] = gpu_format() if on_gpu else native.faster(shapes(spec, root))
    return spec.model_copy(update=changed) if changed else spec


def gpu_format() -> native.Compute:
    """Return bf16 where a GPU multiplies it itself, else fp32."""
    able = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if able else "fp32"


def shapes(spec: WeightsSpec, root: Path) -> tuple[tuple[int, int], ...]:
    """Return (outputs, inputs) of the matrices of the base's layers; empty if the base is not a Llama that can be read here."""
    base = spec.base
    if isinstance(base, Scratch):
        config = checkpoints.shape_config(base.model, base.tokenizer.vocab_size)
    else:
        found = _imported(root, base.path) if isinstance(base, Import) else None
        if found is None:
            return ()
        config = found.config
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    heads, pairs = config.num_attention_heads, config.num_key_value_heads
    qkv = ((heads + 2 * pairs) * head, width)
    return tuple(sorted({qkv, (width, heads * head), (2 * inner, width), (width, inner)}))


class ImportedBase(NamedTuple):
    """What the headers of a base's files say: its shape, and whether its matrices are rounded to few bits."""

    config: Config
    rounded: bool


def imported(spec: WeightsSpec, root: Path) -> Literal["other", "exact", "rounded"]:
    """Return whether an imported base is a Llama that can be read here, and whether its matrices are rounded; a hub id is `other`,
    because it is not downloaded to look."""
    found = _imported(root, spec.base.path) if isinstance(spec.base, Import) else None
    if found is None:
        return "other"
    return "rounded" if found.rounded else "exact"


def _imported(root: Path, path: str) -> ImportedBase | None:
    """The shape of a folder or a GGUF file; None for a hub id, and for what is no Llama."""
    place = root / path
    try:
        about = (place if place.is_file() else place / "config.json").stat()
        return _read(place, about.st_size, about.st_ctime_ns)
    except (CheckpointError, OSError):
        return None


@cache
def _read(path: Path, *state: int) -> ImportedBase:
    """Read the headers, once for each state of the file: its size, and when it was last changed (which no program can set)."""
    if not path.is_file():
        raw = read_config(path)
        in_groups = bool(raw.get("quantization_config")) and not grouped.foreign(raw)
        return ImportedBase(Config.load(path), in_groups and grouped.activations(raw) == "int8")
    file = gguf.read(path)
    matrices = (place for place in file.tensors.values() if len(place.shape) == 2)
    config = Config.parse(gguf_llama.config(file), str(path))
    return ImportedBase(config, any(place.format not in PLAIN for place in matrices))


def note(spec: WeightsSpec, root: Path, cache_format: CacheFormat) -> str:
    """Say how the weights of a resolved stack would decode, and what was measured to choose it."""
    if isinstance(spec.base, Remote):
        return ""
    where = (spec.device or "cpu").upper()
    said = f"decodes on {where}, products in {spec.compute}, keys and values in {cache_format}"
    measured = native.measured(shapes(spec, root)) if where == "CPU" else None
    if measured is None:
        return said
    wide, narrow = (1000 * x for x in measured)
    return f"{said} (this model's products of {native.MEASURED_ROWS} rows: fp32 {wide:.2f} ms, bf16 {narrow:.2f} ms)"


PROCESS_BYTES = 330 << 20  # Python, torch, the server and a tokenizer


def memory_note(spec: WeightsSpec, folder: Path, cache_format: CacheFormat) -> str:
    """Say what memory weights in `folder` take when they are served as a resolved stack does, from the files' headers and some rows;
    empty for what runs through transformers. It says so if the machine has less."""
    if isinstance(spec.base, Remote) or not checkpoints.checkpoint_info(folder).lean:
        return ""
    model = checkpoints.load_unmerged(folder)
    weights = packed_bytes(model, "bf16" if spec.compute == "bf16" else "fp32")
    thousand = 1000 * page_bytes(model.config, cache_format) / PAGE
    said = (
        f"memory: {size(PROCESS_BYTES + weights)} ({size(weights)} of weights), and {size(thousand)} of keys and values for each 1,000 "
        f"tokens that are kept; the whole context of {model.config.max_position_embeddings:,} tokens takes "
        f"{size(thousand * model.config.max_position_embeddings / 1000)}"
    )
    there = hardware.memory_bytes()
    if spec.device == "cuda" or there is None or PROCESS_BYTES + weights < there:
        return said
    return f"{said}. WARNING: this machine has {size(there)}. {smaller(model, there)}"


def placed(model: M, device: str, compute: native.Compute = "fp32") -> M:
    """Return a model on a device, in place; raises EngineError without such a device.

    On a GPU the torch forward runs it: matrices in groups are unpacked, and with `compute: bf16` everything is rounded to bf16.
    """
    if device == "cpu":
        return model
    if not torch.cuda.is_available():
        raise EngineError(
            "weights.device: cuda: torch finds no CUDA device here (torch.cuda.is_available() is false). "
            "Leave weights.device out, or set it to cpu"
        )
    return moved(model, torch.device(device), compute)


def moved(model: M, device: torch.device, compute: native.Compute) -> M:
    """Do what `placed` does on a device that is there."""
    if isinstance(model, nn.Module):
        dtype = torch.bfloat16 if compute == "bf16" else None
        dequantised(
            model, device, dtype
        )  # one matrix at a time, so that the CPU need not hold them all in fp32
        model.to(device, dtype)
    return model


def slots_that_fit(
    model: Llama | ForeignModel, num_slots: int, max_tokens: int, cache_format: CacheFormat = "fp32"
) -> int:
    """Return how many sequences' keys and values a GPU's free memory holds, `num_slots` at most; on a CPU memory is taken as
    it is used. Raises EngineError if it holds none beside the one slot for hidden states."""
    if (
        not isinstance(model, Llama) or model.model.norm.weight.device.type != "cuda"
    ):  # a head in groups would be unpacked
        return num_slots  # what runs through transformers takes memory as it goes on
    free, _ = torch.cuda.mem_get_info(model.model.norm.weight.device)
    dtype = model.head().dtype if cache_format == "fp32" else DTYPES[cache_format]
    return fitting(free, model.config, dtype.itemsize, num_slots, max_tokens)


def fitting(free_bytes: int, config: Config, itemsize: int, num_slots: int, max_tokens: int) -> int:
    """Return the slots for which there is memory; see `slots_that_fit`."""
    size = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * max_tokens * itemsize
    slots = min(num_slots, int(SPARE * free_bytes) // size - 1)
    if slots < 1:
        raise EngineError(
            f"keys and values of two sequences of {max_tokens} tokens need {2 * size / 2**30:.1f} GiB; the GPU has "
            f"{free_bytes / 2**30:.1f} GiB free. Set weights.cache to bf16, lower max_position_embeddings in the "
            "checkpoint's config.json, or set weights.device to cpu"
        )
    return slots

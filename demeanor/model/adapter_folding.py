"""Adapters on adapters as one: the low-rank products of a chain, joined by their ranks.

In: the folder of an adapter, whose base may be an adapter. Out: one PEFT folder on the whole weights under them,
with the same outputs: s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2]. No weight is merged or rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from demeanor.core import files
from demeanor.core.errors import CheckpointError
from demeanor.model import adapters
from demeanor.model.adapters import PREFIX, WEIGHTS
from demeanor.model.stored import ADAPTER, is_adapter, read_tensors

A, B = ".lora_A.weight", ".lora_B.weight"


class OneAdapter(NamedTuple):
    """An adapter of a chain: its settings, scale, low-rank pairs by map, and tensors that are trained whole."""

    settings: dict[str, Any]
    scale: float
    pairs: dict[str, tuple[Tensor, Tensor]]
    whole: dict[str, Tensor]


def chain(folder: Path) -> tuple[Path, list[OneAdapter]]:
    """Return the whole weights under an adapter, and the adapters from the first trained to the last.

    Raises CheckpointError if `folder` holds no adapter.
    """
    if not is_adapter(folder):
        raise CheckpointError(f"{folder}: holds whole weights and no adapter; leave --adapter out")
    adapters.whole_folder(folder)  # an adapter that is its own base
    found: list[OneAdapter] = []
    while is_adapter(folder):
        found.insert(0, _read(folder))
        folder = adapters.base_folder(folder)
    return folder, found


def _read(folder: Path) -> OneAdapter:
    settings = adapters.config(folder)
    tensors = {
        name.removeprefix(PREFIX).replace(".base_layer.", "."): tensor.float()
        for name, tensor in read_tensors(folder / WEIGHTS).items()
    }
    pairs = {}
    for name in [name.removesuffix(A) for name in tensors if name.endswith(A)]:
        first, second = tensors.pop(name + A), tensors.pop(name + B, None)
        if second is None:
            raise CheckpointError(f"{folder / WEIGHTS}: {name} has no lora_B")
        pairs[name] = (first, second)
    factor = adapters.scale(
        int(settings["r"]), float(settings["lora_alpha"]), bool(settings.get("use_rslora"))
    )
    return OneAdapter(settings, factor, pairs, tensors)


def folded(found: Sequence[OneAdapter], where: Path) -> OneAdapter:
    """Return one adapter with the outputs of a chain; of one adapter itself.

    Maps that only some adapters have are filled with zeros up to the common rank. Raises CheckpointError where a
    map is adapted by one and trained whole by a later one, or ties of the vocabulary matrices differ.
    """
    if len(found) == 1:
        return found[0]
    saved = [x for x in found if x.whole]
    ties = {bool(x.settings.get("ensure_weight_tying")) for x in saved}
    adapted: set[str] = set()
    for one in found:
        twice = next((n for n in one.whole if n.rpartition(".")[0] in adapted), None)
        if twice or len(ties) > 1:
            what = (
                f"{twice} is trained whole on top of an adapter of it"
                if twice
                else "ensure_weight_tying differs"
            )
            raise CheckpointError(
                f"{where}: {what}: the chain is no single adapter; put a stage {{kind: merge, of: [it]}} "
                "between, or export without --adapter"
            )
        adapted |= one.pairs.keys()
    equal = len({x.scale for x in found}) == 1
    common = found[-1].scale if equal else 1.0
    pairs, rank = {}, sum(int(x.settings["r"]) for x in found)
    for name in sorted(adapted):
        have = [(x, x.pairs[name]) for x in found if name in x.pairs]
        first = torch.cat([a for _, (a, _) in have])
        second = torch.cat([b if equal else b * x.scale for x, (_, b) in have], 1)
        missing = rank - len(first)
        pairs[name] = (
            torch.cat([first, torch.zeros(missing, first.shape[1])]),
            torch.cat([second, torch.zeros(len(second), missing)], 1),
        )
    whole = {name: tensor for x in found for name, tensor in x.whole.items()}
    modules = sorted({m for x in saved for m in x.settings.get("modules_to_save") or ()})
    settings = {
        **found[-1].settings,
        "r": rank,
        "lora_alpha": rank * common,
        "use_rslora": False,
        "modules_to_save": modules or None,
        "ensure_weight_tying": True in ties,
    }
    return OneAdapter(settings, common, pairs, whole)


def write(one: OneAdapter, folder: Path, *, base: str) -> None:
    """Write an adapter as a PEFT folder on `base`, a hub id or an absolute path."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in one.whole.items()}
    for name, (first, second) in one.pairs.items():
        tensors |= {f"{PREFIX}{name}{A}": first, f"{PREFIX}{name}{B}": second}
    with files.replacing(folder / WEIGHTS) as part:
        save_file({k: t.contiguous() for k, t in tensors.items()}, part, metadata={"format": "pt"})
    own = {
        "base_model_name_or_path": base,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in one.pairs}),
        "inference_mode": True,
    }
    settings = {k: v for k, v in one.settings.items() if k != "ensure_weight_tying" or v}
    files.write_json(folder / ADAPTER, {**settings, **own}, indent=2)

"""Adapters as PEFT folders: adapter_config.json and adapter_model.safetensors, on the weights that the first one names.

In: a model with adapters, or a folder. Out: a folder that `peft` loads on the parent's, or the adapter's tensors put into a model.
Names are PEFT's: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`. What it cannot add exactly it refuses by name.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from demeanor.errors import CheckpointError
from demeanor.model.lora import LoraLinear, adapters, scale
from demeanor.spec import Adapter

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."

REFUSED = {
    "use_dora": False,
    "use_qalora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "lora_bias": False,
    "arrow_config": None,
    "megatron_config": None,
}
"""Settings of PEFT's LoRA that would change the sum, and the values at which they do not."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole weights."""
    return (folder / CONFIG).is_file()


def config(folder: Path) -> dict[str, Any]:
    """The adapter's settings as PEFT writes them; raises CheckpointError for what is not plain LoRA."""
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable ({error})") from None
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path}: peft_type is {raw.get('peft_type') if isinstance(raw, dict) else raw!r}, wanted LORA; "
            "merge it with peft first"
        )
    odd = [
        f"{name} is {raw[name]!r}"
        for name, off in REFUSED.items()
        if raw.get(name) not in (off, None, [], {}, False)
    ]
    if odd:
        raise CheckpointError(
            f"{path}: {', '.join(odd)}; only plain LoRA is added here, merge it with peft first"
        )
    return raw


def base_folder(folder: Path) -> Path:
    """The weights an adapter goes on: a path from its own folder, else from here, else a hub id (downloaded or cached)."""
    name = str(config(folder).get("base_model_name_or_path") or "")
    for found in (folder / name, Path(name)):
        if (
            name
            and found.resolve() != folder.resolve()
            and ((found / "config.json").is_file() or (found / CONFIG).is_file())
        ):
            return found
    if name.count("/") == 1 and not name.startswith("."):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    raise CheckpointError(
        f"{folder / CONFIG}: base_model_name_or_path is {name!r}, where no model folder is; "
        "write the path of the weights that this adapter was trained on"
    )


def add(model: nn.Module, folder: Path, prefix: str = "") -> nn.Module:
    """Put a folder's adapter into `model` (its matrices keep their names); `prefix` is what the model puts before PEFT's names.

    Raises CheckpointError naming tensors that have no place.
    """
    raw, tensors = config(folder), _tensors(folder)
    named = dict(model.named_modules())
    pairs = sorted(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight"))
    rank_scale = scale(int(raw["r"]), float(raw["lora_alpha"]), bool(raw.get("use_rslora")))
    for pair in pairs:
        a, b = tensors.pop(f"{pair}.lora_A.weight"), tensors.pop(f"{pair}.lora_B.weight", None)
        linear = named.get(prefix + pair)
        if (
            not isinstance(linear, nn.Linear)
            or b is None
            or (b.shape[0], a.shape[1]) != tuple(linear.weight.shape)
        ):
            raise CheckpointError(
                f"{folder}: the adapter of {pair} has no place in the weights it names; was it trained on others?"
            )
        found = LoraLinear(linear, a.shape[0], rank_scale)
        with torch.no_grad():
            found.lora_A.copy_(a)
            found.lora_B.copy_(b)
        place, _, last = (prefix + pair).rpartition(".")
        setattr(model.get_submodule(place), last, found)
    whole = dict(model.named_parameters())
    for name, tensor in tensors.items():  # what PEFT calls modules_to_save
        own = next((n for n in (name, prefix + name) if n in whole and whole[n].shape == tensor.shape), None)
        if own is None:
            raise CheckpointError(
                f"{folder}: {name} has no place in the weights it names; was it trained on others?"
            )
        with torch.no_grad():
            whole[own].copy_(tensor)
    return model


def save(
    model: nn.Module, adapter: Adapter, parent: Path, folder: Path, *, reward: bool, prefix: str = ""
) -> None:
    """Write a model's adapter (and a reward model's score) as a PEFT folder on `parent`, which is named relative to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name.removeprefix(prefix) for name, _ in adapters(model)]
    tensors: dict[str, Tensor] = {}
    for name, module in adapters(model):
        own = PREFIX + name.removeprefix(prefix)
        tensors |= {f"{own}.lora_A.weight": module.lora_A, f"{own}.lora_B.weight": module.lora_B}
    if reward:
        tensors[f"{PREFIX}score.weight"] = next(
            p for name, p in model.named_parameters() if name.endswith("score.weight")
        )
    part = folder / f"{WEIGHTS}.part"
    save_file(
        {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in tensors.items()},
        part,
        metadata={"format": "pt"},
    )
    os.replace(part, folder / WEIGHTS)
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if reward else "CAUSAL_LM",
        "inference_mode": True,
        "bias": "none",
        "base_model_name_or_path": os.path.relpath(parent.resolve(), folder.resolve()),
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "use_rslora": adapter.rslora,
        "target_modules": sorted({n.rsplit(".", 1)[-1] for n in names}),
        "modules_to_save": ["score"] if reward else None,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    part = folder / f"{CONFIG}.part"
    part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / CONFIG)


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors, without PEFT's prefix."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no {WEIGHTS}; pickled adapters are not loaded, save it with safe_serialization=True"
        )
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in list(file.keys())}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
    return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}

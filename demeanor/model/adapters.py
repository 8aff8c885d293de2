"""Low-rank adapters: frozen linear maps, each with a trained low-rank product (LoRA).

In: a model and an adapter's settings, or a PEFT folder. Out: the same model, in which only the adapter (and a
score head) is trainable, or the plain model with the adapter merged. Parameter names do not change.
Source: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from demeanor.core import files
from demeanor.core.errors import CheckpointError, unknown
from demeanor.model import hub
from demeanor.model.grouped_modules import GroupedLinear, GroupedLora, keep_plain, matrices
from demeanor.model.low_rank import LoraLinear
from demeanor.model.stored import ADAPTER, is_adapter, read_tensors
from demeanor.stack.schema import Adapter

# Linear maps that `all-linear` leaves out, as PEFT does: vocabulary heads, and the score (trained whole).
HEADS = ("lm_head", "embed_out", "score")


def scale(rank: int, alpha: float, rslora: bool) -> float:
    """Return alpha / rank, or alpha / sqrt(rank) for rsLoRA.

    Source: Hu et al. 2021, section 4.1; rsLoRA: Kalajdzievski 2023, arXiv 2312.03732, theorem 3.2.
    """
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def attach(model: nn.Module, adapter: Adapter, seed: int) -> list[str]:
    """Freeze `model` and add adapters to its target maps, drawn from `seed`; a score head stays trainable.

    Returns the names of the adapted maps. Raises CheckpointError if a target matches no map.
    """
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    names = target_names(list(linears), adapter.targets)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("score" in name.split("."))
    generator = torch.Generator().manual_seed(seed)
    factor = scale(adapter.rank, adapter.alpha, adapter.rslora)
    for name in names:
        replace_module(model, name, LoraLinear(linears[name], adapter.rank, factor, generator))
    return names


def target_names(linears: list[str], targets: tuple[str, ...]) -> list[str]:
    """Return the maps to adapt: all but heads, or those named in `targets`. Raises CheckpointError."""
    body = [name for name in linears if name.rsplit(".", 1)[-1] not in HEADS]
    if targets == ("all-linear",):
        if not body:
            raise CheckpointError(
                "adapter.targets: this model has no torch.nn.Linear (GPT-2 uses Conv1D); train it whole"
            )
        return body
    known = {name.rsplit(".", 1)[-1] for name in body}
    for target in targets:
        if target not in known:
            raise CheckpointError(
                f"adapter.targets: {unknown(target, known, noun='linear map of this model')}"
            )
    return [name for name in body if name.rsplit(".", 1)[-1] in targets]


def adapters(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Yield the name and module of every adapted map of a model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def merge(model: nn.Module) -> nn.Module:
    """Merge every adapter into its matrix, in place, and make all parameters trainable. A matrix that is in its file, or in
    groups, stays there, and is merged when it is read."""
    for name, module in list(adapters(model)):
        merged = module.merged_later() if isinstance(module, GroupedLora) else module.merged()
        replace_module(model, name, merged)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule called `name`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


WEIGHTS, PREFIX = "adapter_model.safetensors", "base_model.model."

READ = {"r", "lora_alpha", "use_rslora", "modules_to_save", "ensure_weight_tying"}
READ |= {"peft_type", "task_type", "base_model_name_or_path"}
# Settings of PEFT that change no result of finished weights: what was adapted stands in the tensors.
NEUTRAL = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "inference_mode"}
NEUTRAL |= {"auto_mapping", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision"}
# Every other setting must be off: null, false, empty, or one of these. PiSSA, OLoRA, LoftQ and CorDA change
# the base when they begin, so their matrices do not belong to the base that the folder names.
OFF = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "orthogonal")}
MERGE = (
    "merge it first: peft.PeftModel.from_pretrained(BASE, FOLDER).merge_and_unload().save_pretrained(NEW), "
    "and name NEW"
)


def config(folder: Path) -> dict[str, Any]:
    """Return the adapter's settings as PEFT writes them; raises CheckpointError if it is not plain LoRA."""
    path = folder / ADAPTER
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable ({error})") from None
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path}: peft_type is {raw.get('peft_type') if isinstance(raw, dict) else raw!r}, wanted LORA; "
            f"{MERGE}"
        )
    odd = [
        f"{name} is {value!r}"
        for name, value in raw.items()
        if name not in READ | NEUTRAL and value not in (None, False, [], {}, *OFF.get(name, ()))
    ]
    if odd:
        raise CheckpointError(f"{path}: {', '.join(odd)}; only plain LoRA is read here; {MERGE}")
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float)):
        raise CheckpointError(
            f"{path}: r is {rank!r} and lora_alpha is {alpha!r}, wanted two positive numbers"
        )
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise CheckpointError(
            f"{folder}: holds an adapter and whole weights; move one of them to a folder of its own"
        )
    return raw


def base_folder(folder: Path) -> Path:
    """Return the folder of the adapter's base: a run beside its own, a path from its folder or from here, else a
    hub id (downloaded)."""
    name = str(config(folder).get("base_model_name_or_path") or "")
    beside = (
        folder.parent.parent / Path(name).parent.name / Path(name).name
    )  # runs/ may have moved as a whole
    for found in (*([beside] if Path(name).is_absolute() else []), folder / name, Path(name)):
        is_model = (found / "config.json").is_file() or (found / ADAPTER).is_file()
        if name and is_model and found.resolve() != folder.resolve():
            return found
    if name.count("/") == 1 and not name.startswith("."):
        return hub.snapshot(name)
    raise CheckpointError(
        f"{folder / ADAPTER}: base_model_name_or_path is {name!r}, which is no model folder; "
        "write the path of the weights that this adapter was trained on"
    )


def whole_folder(folder: Path) -> Path:
    """Return the folder of whole weights under any adapters; raises CheckpointError if they name each other."""
    seen = {folder.resolve()}
    while is_adapter(folder):
        folder = base_folder(folder)
        if folder.resolve() in seen:
            raise CheckpointError(f"{folder / ADAPTER}: this adapter is the base of its own base")
        seen.add(folder.resolve())
    return folder


def add(model: nn.Module, folder: Path, prefix: str = "") -> nn.Module:
    """Add a folder's adapter to `model`; `prefix` is what the model puts before PEFT's names.

    Raises CheckpointError naming a tensor that does not fit.
    """
    raw = config(folder)
    tensors = {
        name.removeprefix(PREFIX).replace(".base_layer.", "."): tensor
        for name, tensor in read_tensors(folder / WEIGHTS).items()
    }
    head = _untied(model, raw, tensors)
    named = dict(model.named_modules())
    pairs = sorted(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight"))
    factor = scale(int(raw["r"]), float(raw["lora_alpha"]), bool(raw.get("use_rslora")))
    for pair in pairs:
        a, b = tensors.pop(f"{pair}.lora_A.weight"), tensors.pop(f"{pair}.lora_B.weight", None)
        linear = named.get(prefix + pair)
        if not isinstance(linear, nn.Linear) or b is None:
            raise _misfit(folder, f"the adapter of {pair}")
        if (*b.shape, *a.shape) != (linear.out_features, raw["r"], raw["r"], linear.in_features):
            raise _misfit(folder, f"the adapter of {pair}")
        adapted = (
            GroupedLora(linear, a.shape[0], factor)
            if isinstance(linear, GroupedLinear)
            else LoraLinear(linear, a.shape[0], factor)
        )
        with torch.no_grad():
            adapted.lora_A.copy_(a)
            adapted.lora_B.copy_(b)
        replace_module(model, prefix + pair, adapted)
    for name in matrices(model).keys() & {prefix + name for name in tensors}:
        keep_plain(model, name)
    whole = dict(model.named_parameters())
    for name, tensor in tensors.items():  # what PEFT calls modules_to_save
        own = next((n for n in (name, prefix + name) if n in whole and whole[n].shape == tensor.shape), None)
        if own is None:
            raise _misfit(folder, name)
        with torch.no_grad():
            whole[own].copy_(tensor)
    for name, module in [x for x in adapters(model) if x[0] == prefix + head]:
        replace_module(model, name, module.merged())  # its matrix is read, not called
    return model


def _untied(model: nn.Module, raw: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Untie the vocabulary matrices of a policy if the adapter changes one of the two; returns the head's
    name.

    PEFT trains copies of `modules_to_save`, so that the head of a tied base stays as it was when the embedding
    is trained, unless `ensure_weight_tying` is set.
    """
    if not hasattr(model, "untie"):
        return "lm_head"
    names: tuple[str, str] = model.vocabulary()  # type: ignore[operator]
    saved = tuple(raw.get("modules_to_save") or ())
    copied = not raw.get("ensure_weight_tying") and any(name.endswith(saved) for name in names)
    if copied or any(name.startswith(f"{names[1]}.") for name in tensors):
        model.untie()  # type: ignore[operator]
    return names[1]


def save(
    model: nn.Module, adapter: Adapter, parent: Path, folder: Path, *, reward: bool, prefix: str = ""
) -> None:
    """Write a model's adapter (and a reward model's score) as a PEFT folder; `parent` is stored as an
    absolute path, which PEFT finds from everywhere."""
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
    plain = {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in tensors.items()}
    with files.replacing(folder / WEIGHTS) as part:
        save_file(plain, part, metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if reward else "CAUSAL_LM",
        "inference_mode": True,
        "bias": "none",
        "base_model_name_or_path": str(parent.resolve()),
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "use_rslora": adapter.rslora,
        "target_modules": sorted({n.rsplit(".", 1)[-1] for n in names}),
        "modules_to_save": ["score"] if reward else None,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    files.write_json(folder / ADAPTER, settings, indent=2)


def _misfit(folder: Path, what: str) -> CheckpointError:
    ask = (
        f"this kind of adapter is not read here; {MERGE}" if ".lora_" in what else "was it trained on others?"
    )
    return CheckpointError(f"{folder}: {what} does not fit the weights that the folder names; {ask}")

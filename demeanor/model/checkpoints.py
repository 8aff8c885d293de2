"""Model folders in Hugging Face's format: config.json and model.safetensors; pickled weights are never read.

In: a folder, or a shape and a seed. Out: a model, or a folder that transformers, vLLM and llama.cpp load.
Architectures other than the Llama family go to `hf.py`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from demeanor.core import files
from demeanor.core.errors import CheckpointError
from demeanor.model import adapters, hf
from demeanor.model.adapters import merge
from demeanor.model.hf import ForeignModel, ForeignReward
from demeanor.model.initial import initialise
from demeanor.model.llama import ARCHITECTURES, Config, Llama, UnsupportedError
from demeanor.model.reward_model import RewardModel
from demeanor.stack.schema import Adapter, ModelShape

M = TypeVar("M", bound=nn.Module)


def create(shape: ModelShape, vocab_size: int, seed: int) -> Llama:
    """Create a Llama with random weights, determined by the shape and the seed."""
    mlp = shape.mlp_width or -(-shape.width * 8 // 3 // 16) * 16
    config = Config(
        "llama",
        vocab_size,
        shape.width,
        mlp,
        shape.layers,
        shape.heads,
        shape.kv_heads or shape.heads,
        shape.width // shape.heads,
        shape.context,
        1e-5,
        shape.rope_theta,
        tie_word_embeddings=True,
    )
    model = Llama(config)
    initialise(model, seed, mimetic=shape.init == "mimetic")
    return model


def load(folder: Path) -> Llama:
    """Load a policy in fp32 with any adapter merged; raises CheckpointError naming a tensor that does not
    fit."""
    if adapters.is_adapter(folder):
        policy = load(adapters.base_folder(folder))
        merge(adapters.add(policy, folder))
        return policy
    config = Config.load(folder)
    with torch.device("meta"):
        model = Llama(config)
    tensors = _tensors(folder)
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return _fill(model, tensors, folder)


def load_unmerged(folder: Path) -> Llama:
    """Load as `load` does but keep an adapter separate, so that engines share the base's matrices."""
    if not adapters.is_adapter(folder):
        return load(folder)
    return cast(Llama, adapters.add(load(adapters.base_folder(folder)), folder))


def load_reward(folder: Path) -> RewardModel:
    """Load a reward model in fp32 with any adapter merged; raises CheckpointError as `load` does."""
    if adapters.is_adapter(folder):
        parent = adapters.base_folder(folder)
        scorer = load_reward(parent) if is_reward(parent) else reward_from(load(parent), 0)
        merge(adapters.add(scorer, folder, "trunk."))
        return scorer
    config = Config.load(folder)
    with torch.device("meta"):
        model = RewardModel(_headless(config))
    tensors = _tensors(folder)
    tensors.pop("lm_head.weight", None)
    renamed = {k if k == "score.weight" else f"trunk.{k}": v for k, v in tensors.items()}
    return _fill(model, renamed, folder)


def reward_from(policy: Llama, seed: int) -> RewardModel:
    """Start a reward model from a policy; its score is N(0, 1/(D+1)) from `seed`.

    Source: Stiennon et al. 2020, appendix B.
    """
    model = RewardModel(_headless(policy.config))
    model.trunk.model.load_state_dict(policy.model.state_dict())
    hf.draw_score(model.score.weight, seed)
    return model


def is_reward(folder: Path) -> bool:
    """True if a folder contains a sequence classifier, or an adapter for one."""
    if adapters.is_adapter(folder):
        return bool(adapters.config(folder).get("task_type") == "SEQ_CLS")
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return any(str(name).endswith("ForSequenceClassification") for name in raw.get("architectures") or ())
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: no readable config.json ({error})") from None


def save(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and model.safetensors, each to a temporary name and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, RewardModel):
        config = model.trunk.config
        kind = ARCHITECTURES[config.model_type].replace("ForCausalLM", "ForSequenceClassification")
        raw = config.to_json(
            kind, num_labels=1, id2label={"0": "reward"}, label2id={"reward": 0}, pad_token_id=0
        )
        tensors = {k.removeprefix("trunk."): v for k, v in model.state_dict().items()}
    elif isinstance(model, Llama):
        raw, tensors = model.config.to_json(), model.state_dict()
    else:
        raise CheckpointError(f"cannot save a {type(model).__name__}")
    raw["dtype"] = str(dtype).removeprefix("torch.")
    plain = {k: v.detach().to("cpu", dtype).contiguous() for k, v in tensors.items()}
    with files.replacing(folder / "model.safetensors") as part:
        save_file(plain, part, metadata={"format": "pt"})
    files.write_json(folder / "config.json", raw, indent=2)


def _headless(config: Config) -> Llama:
    """Return a trunk whose output matrix is the tied embedding, so that no head is allocated."""
    return Llama(replace(config, tie_word_embeddings=True))


def _files(folder: Path) -> list[Path]:
    """Return the weight files: those in the index, else model.safetensors, else all. Raises
    CheckpointError."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        single = folder / "model.safetensors"
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


def _tensors(folder: Path) -> dict[str, Tensor]:
    files = _files(folder)
    if not files:
        pickled = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        if pickled:
            raise CheckpointError(
                f"{folder}: no .safetensors file; {pickled[0]} is pickled and is not loaded, convert it first"
            )
        raise CheckpointError(f"{folder}: no .safetensors file")
    found: dict[str, Tensor] = {}
    for path in files:
        found |= adapters.read_tensors(path)
    return found


def _fill(model: M, tensors: dict[str, Tensor], folder: Path) -> M:
    wanted = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    extra = [name for name in extra if not name.endswith("rotary_emb.inv_freq")]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [
        f"{len(names)} tensors {what}, first {names[0]}"
        for what, names in (("are missing", missing), ("do not belong to the model", extra))
        if names
    ]
    wrong = [
        f"{n} is {shapes[n]}, wanted {wanted[n]}" for n in wanted if n in shapes and shapes[n] != wanted[n]
    ]
    wrong += [
        f"{n} holds {tensors[n].dtype}, wanted floating point"
        for n in wanted
        if n in tensors and not tensors[n].is_floating_point()
    ]
    problems += wrong[:1]
    if problems:
        raise CheckpointError(f"{folder}: the weights do not fit config.json: {'; '.join(problems)}")
    model.load_state_dict({n: tensors[n].to(torch.float32) for n in wanted}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


Model = Llama | RewardModel | ForeignModel | ForeignReward


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """Architecture, context and vocabulary (tokens) of a folder; `lean`: the model of `llama.py` can run
    it."""

    model_type: str
    context: int
    vocab_size: int
    lean: bool
    reward: bool


def checkpoint_info(folder: Path) -> CheckpointInfo:
    """Describe a folder without loading weights; raises CheckpointError if no model here can run it."""
    reward = is_reward(folder)
    whole = folder
    while adapters.is_adapter(whole):
        whole = adapters.base_folder(whole)
    try:
        config = Config.load(whole)
        return CheckpointInfo(
            config.model_type, config.max_position_embeddings, config.vocab_size, True, reward
        )
    except UnsupportedError:
        if not hf.known(whole):
            raise
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(whole, local_files_only=True)
    context = getattr(found.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int):
        raise CheckpointError(
            f"{whole / 'config.json'}: {found.model_type} has no max_position_embeddings, needed for training"
        )
    return CheckpointInfo(
        str(found.model_type), context, int(found.get_text_config().vocab_size), False, reward
    )


def num_weights(folder: Path) -> int:
    """Return the number of weights of a folder, read from the headers of its files."""
    while adapters.is_adapter(folder):
        folder = adapters.base_folder(folder)
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in list(file.keys()))
    return total


def policy(folder: Path) -> Llama | ForeignModel:
    """Load the policy of a folder in fp32; raises CheckpointError."""
    return load(folder) if checkpoint_info(folder).lean else hf.load(folder)


def serving(folder: Path) -> Llama | ForeignModel:
    """Load a policy for decoding: as `policy`, but the adapter of a lean model stays separate."""
    return load_unmerged(folder) if checkpoint_info(folder).lean else hf.load(folder)


def reward(folder: Path, seed: int) -> RewardModel | ForeignReward:
    """Load a reward model, or start one from a policy with a score drawn from `seed`."""
    found = checkpoint_info(folder)
    if found.lean:
        return load_reward(folder) if found.reward else reward_from(load(folder), seed)
    if found.reward or not adapters.is_adapter(folder):
        return hf.load_reward(folder, seed)
    raise CheckpointError(
        f"{folder}: a reward model cannot start from an adapter of a {found.model_type} model; "
        "put a stage {kind: merge, of: [it]} between"
    )


def save_checkpoint(
    model: nn.Module, folder: Path, *, adapter: Adapter | None = None, parent: Path | None = None
) -> None:
    """Write a model whole, or with `adapter` only the adapter, whose base is `parent`."""
    if adapter is not None and parent is not None:
        prefix = ""
        if isinstance(model, RewardModel):
            prefix = "trunk."
        elif isinstance(model, ForeignModel | ForeignReward):
            prefix = hf.PREFIX
        is_reward_model = isinstance(model, RewardModel | ForeignReward)
        adapters.save(model, adapter, parent, folder, reward=is_reward_model, prefix=prefix)
    elif isinstance(model, ForeignModel | ForeignReward):
        hf.save(model, folder)
    else:
        save(model, folder)

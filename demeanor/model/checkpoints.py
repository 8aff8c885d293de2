"""Model folders in Hugging Face's format: config.json and model.safetensors; pickled weights are never read.

In: a folder, or a shape and a seed. Out: a model, or a folder that transformers, vLLM and llama.cpp load.
Architectures other than the Llama family go to `hf.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from demeanor.core import files
from demeanor.core.errors import CheckpointError
from demeanor.model import adapters, grouped, hf, weight_files
from demeanor.model.adapters import merge
from demeanor.model.deferred import Deferred
from demeanor.model.grouped import METHOD, Activations, Grouped
from demeanor.model.grouped_modules import Matrix, keep_grouped, matrices
from demeanor.model.hf import ForeignModel, ForeignReward
from demeanor.model.initial import initialise
from demeanor.model.llama import ARCHITECTURES, Config, Llama, UnsupportedError, read_config
from demeanor.model.reward_model import RewardModel
from demeanor.model.stored import StoredTensors, is_adapter
from demeanor.model.weight_files import Planned
from demeanor.stack.schema import Adapter, ModelShape

M = TypeVar("M", bound=nn.Module)
SHARD_BYTES = 5 * 10**9
"""Weights above this size become several files with an index, as transformers writes them."""


def shape_config(shape: ModelShape, vocab_size: int) -> Config:
    """The settings of a Llama of a declared shape."""
    mlp = shape.mlp_width or -(-shape.width * 8 // 3 // 16) * 16
    return Config(
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


def create(shape: ModelShape, vocab_size: int, seed: int) -> Llama:
    """Create a Llama with random weights, determined by the shape and the seed."""
    model = Llama(shape_config(shape, vocab_size))
    initialise(model, seed, mimetic=shape.init == "mimetic")
    return model


def load(folder: Path, *, keep_groups: bool = False, deferred: bool = False) -> Llama:
    """Load a policy in fp32 with any adapter merged; raises CheckpointError naming a tensor that does not
    fit. `keep_groups`: matrices that are stored in groups stay so; `deferred`: matrices are read from their files when they are
    used. Neither can be trained."""
    if is_adapter(folder):
        policy = load(adapters.base_folder(folder), deferred=deferred)
        merge(adapters.add(policy, folder))
        return policy
    config, stored = Config.load(folder), StoredTensors(folder)
    if config.tie_word_embeddings and stored.drop("lm_head.weight", "model.embed_tokens.weight"):
        config = replace(
            config, tie_word_embeddings=False
        )  # a head of its own was trained, whatever the config
    return _fill(partial(Llama, config), config, stored, keep_groups=keep_groups, deferred=deferred)


def load_unmerged(folder: Path) -> Llama:
    """Load for an engine, which reads every matrix from its file when it packs it. An adapter stays separate, so that engines share
    the base's matrices, and matrices in groups stay in groups unless the folder asks for products in fp32. Adapters below another
    are merged, as they were when it was trained."""
    if is_adapter(folder):
        base = adapters.base_folder(folder)
        below = load(base, deferred=True) if is_adapter(base) else load_unmerged(base)
        return cast(Llama, adapters.add(below, folder))
    return load(folder, keep_groups=grouped.activations(read_config(folder)) == "int8", deferred=True)


def load_reward(folder: Path) -> RewardModel:
    """Load a reward model in fp32 with any adapter merged; raises CheckpointError as `load` does."""
    if is_adapter(folder):
        parent = adapters.base_folder(folder)
        scorer = load_reward(parent) if is_reward(parent) else reward_from(load(parent), 0)
        merge(adapters.add(scorer, folder, "trunk."))
        return scorer
    config, stored = Config.load(folder), StoredTensors(folder)
    stored.where.pop("lm_head.weight", None)  # a classifier has none
    return _fill(lambda: RewardModel(_headless(config)), config, stored, "trunk.")


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
    if is_adapter(folder):
        return bool(adapters.config(folder).get("task_type") == "SEQ_CLS")
    named = read_config(folder).get("architectures")
    return isinstance(named, list) and any(str(x).endswith("ForSequenceClassification") for x in named)


def save(
    model: nn.Module,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    activations: Activations = "int8",
    shard_bytes: int | None = None,
) -> None:
    """Write config.json and model.safetensors, each to a temporary name and then renamed; matrices in groups are
    written so, with the `activations` that they multiply. More than `shard_bytes` become several files and an index. Matrices that
    are in files are read one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, RewardModel):
        config, prefix = model.trunk.config, "trunk."
        kind = ARCHITECTURES[config.model_type].replace("ForCausalLM", "ForSequenceClassification")
        raw = config.to_json(kind, num_labels=1, id2label={"0": "reward"}, label2id={"reward": 0})
    elif isinstance(model, Llama):
        raw, prefix = model.config.to_json(), ""
    else:
        raise CheckpointError(f"cannot save a {type(model).__name__}")
    raw["dtype"] = raw["torch_dtype"] = str(dtype).removeprefix(
        "torch."
    )  # the older name for vLLM and others
    held = {name.removeprefix(prefix): x for name, x in matrices(model).items()}
    formats = sorted({x.format for x in held.values() if x.format is not None})
    if formats:
        raw["quantization_config"] = {"method": METHOD, "formats": formats, "activations": activations}
    plain = {name.removeprefix(prefix): x for name, x in model.state_dict().items()}
    planned: dict[str, Planned] = {}
    for name, tensor in {**plain, **held}.items():
        if isinstance(tensor, Tensor) or tensor.format is None:
            planned[name] = Planned(dtype, tuple(tensor.shape))
        else:
            planned |= {
                part: Planned(*about)
                for part, about in grouped.layout(name, tensor.format, tensor.shape).items()
            }
    weight_files.write(folder, planned, _written({**plain, **held}, dtype), shard_bytes)
    files.write_json(folder / "config.json", raw, indent=2)


def _written(tensors: Mapping[str, Tensor | Matrix], dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """The tensors of a file, one matrix at a time."""
    for name, tensor in tensors.items():
        found = tensor.read() if isinstance(tensor, Deferred) else tensor
        if isinstance(found, Grouped):
            yield found.tensors(name)
        else:
            yield {name: found.detach().to("cpu", dtype)}


def _headless(config: Config) -> Llama:
    """Return a trunk whose output matrix is the tied embedding, so that no head is allocated."""
    return Llama(replace(config, tie_word_embeddings=True))


def check(folder: Path) -> None:
    """Raise CheckpointError if a lean folder's files do not fit its config.json, from their headers alone."""
    config, stored = Config.load(folder), StoredTensors(folder)
    if is_reward(folder):
        stored.where.pop("lm_head.weight", None)
        _fitting(lambda: RewardModel(_headless(config)), config, stored, "trunk.", deferred=True)
        return
    if "lm_head.weight" in stored.where:  # also of a tied config: `load` decides whether it is another one
        config = replace(config, tie_word_embeddings=False)
    _fitting(partial(Llama, config), config, stored, deferred=True)


def _fitting(
    make: Callable[[], M],
    config: Config,
    stored: StoredTensors,
    prefix: str = "",
    *,
    keep_groups: bool = False,
    deferred: bool = False,
) -> tuple[M, dict[str, tuple[str, tuple[int, ...]]]]:
    """Return a model without memory, and its own names and shapes by stored name, if the files fit them."""
    width, inside = config.hidden_size, config.num_attention_heads * config.head_dim
    columns = config.vocab_size + config.num_hidden_layers * (3 * config.intermediate_size + 2 * inside)
    stored.bounded(width * columns, config.num_hidden_layers, keep_groups=keep_groups, deferred=deferred)
    with torch.device("meta"):
        model = make()
    wanted = {n.removeprefix(prefix): (n, tuple(p.shape)) for n, p in model.state_dict().items()}
    missing, extra = sorted(wanted.keys() - stored.where.keys()), sorted(stored.where.keys() - wanted.keys())
    extra = [name for name in extra if not name.endswith("rotary_emb.inv_freq")]
    problems = [
        f"{len(names)} tensors {what}, first {names[0]}"
        for what, names in (("are missing", missing), ("do not belong to the model", extra))
        if names
    ]
    problems += [
        f"{name} is {stored.shapes[name]}, wanted {shape}"
        for name, (_, shape) in wanted.items()
        if name in stored.where and stored.shapes[name] != shape
    ][:1]
    if problems:
        raise CheckpointError(f"{stored.folder}: the weights do not fit config.json: {'; '.join(problems)}")
    return model, wanted


def _fill(
    make: Callable[[], M],
    config: Config,
    stored: StoredTensors,
    prefix: str = "",
    *,
    keep_groups: bool = False,
    deferred: bool = False,
) -> M:
    """Build a model and read its weights, once the files' headers show that they fit.

    `prefix` is what the model puts before the stored names, the score's apart.
    """
    model, wanted = _fitting(make, config, stored, prefix, keep_groups=keep_groups, deferred=deferred)
    problems: list[str] = []
    read: dict[str, Tensor] = {}
    for name, (own, _) in wanted.items():
        matrix: Matrix | None = stored.deferred(name, keep_groups=keep_groups) if deferred else None
        if matrix is None and keep_groups:
            matrix = stored.groups(name)
        if matrix is not None:
            keep_grouped(model, own, matrix)
            continue
        tensor = stored[name]
        if not tensor.is_floating_point():
            problems.append(f"{name} holds {tensor.dtype}, wanted floating point")
            break
        read[own] = tensor.to(torch.float32)
    if problems:
        raise CheckpointError(f"{stored.folder}: the weights do not fit config.json: {'; '.join(problems)}")
    model.load_state_dict(read, assign=True)
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
    whole = adapters.whole_folder(folder) if is_adapter(folder) else folder
    try:
        config = Config.load(whole)
        return CheckpointInfo(
            config.model_type, config.max_position_embeddings, config.vocab_size, True, reward
        )
    except UnsupportedError:
        if not hf.known(whole):
            raise
    found = hf.config(whole)
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
    return StoredTensors(adapters.whole_folder(folder) if is_adapter(folder) else folder).num_weights


def policy(folder: Path) -> Llama | ForeignModel:
    """Load the policy of a folder in fp32; raises CheckpointError."""
    return load(folder) if checkpoint_info(folder).lean else hf.load(folder)


def exported(folder: Path, *, keep_groups: bool = True) -> Llama | ForeignModel:
    """Load a policy to be written elsewhere: matrices are read, and adapters merged, one after the other. With
    `keep_groups` those in groups stay so, an adapter's base apart: what is merged is no longer in groups."""
    if not checkpoint_info(folder).lean:
        return hf.load(folder)
    return load(folder, keep_groups=keep_groups and not is_adapter(folder), deferred=True)


def serving(folder: Path) -> Llama | ForeignModel:
    """Load a policy for decoding: as `policy`, but the adapter of a lean model stays separate."""
    return load_unmerged(folder) if checkpoint_info(folder).lean else hf.load(folder)


def reward(folder: Path, seed: int) -> RewardModel | ForeignReward:
    """Load a reward model, or start one from a policy with a score drawn from `seed`."""
    found = checkpoint_info(folder)
    if found.lean:
        return load_reward(folder) if found.reward else reward_from(load(folder), seed)
    if found.reward or not is_adapter(folder):
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

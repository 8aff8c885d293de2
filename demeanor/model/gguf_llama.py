"""GGUF files of the Llama family: their settings as a config.json, their tensors under Hugging Face's names.

In: a GGUF file of the architecture llama (Mistral is one), qwen2 or qwen3; or a model. Out: a config.json and
tensors as transformers has them; or the settings and tensors of a file. llama.cpp turns neighbouring pairs of a
head in `llama` files, transformers turns its halves, so the rows of q and k are in another order there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demeanor.core.errors import CheckpointError, unknown
from demeanor.model import gguf, rope
from demeanor.model.deferred import Deferred, numbers
from demeanor.model.gguf import GgufFile, Make, Typed
from demeanor.model.gguf_blocks import LAYOUTS, quantised
from demeanor.model.grouped import GROUP, GROUP_FORMATS, Grouped, blocks, from_blocks
from demeanor.model.grouped import LAYOUTS as GROUP_LAYOUTS
from demeanor.model.grouped_modules import Matrix, matrices
from demeanor.model.llama import MOST_LAYERS, MOST_SIZE, Config, Llama

FILE = "model.gguf"
FAMILIES = ("llama", "qwen2", "qwen3")
OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"
"""What Llama 3's scaling divides each frequency by; the settings do not name it."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def name_of(name: str) -> str:
    """Return Hugging Face's name of a tensor; one that the family does not have keeps its own."""
    stem, _, kind = name.rpartition(".")
    block = re.fullmatch(r"blk\.(\d{1,5})\.(\w+)", stem)
    if block and block[2] in LAYER:
        return f"model.layers.{int(block[1])}.{LAYER[block[2]]}.{kind}"
    return f"{OUTSIDE[stem]}.{kind}" if stem in OUTSIDE else name


def halves(rows: Tensor, heads: int) -> Tensor:
    """Return the rows of a q or k map of llama.cpp in transformers' order: first the halves of a head."""
    return rows.view(heads, rows.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


def pairs(rows: Tensor, heads: int) -> Tensor:
    """Return the rows of a q or k map of transformers in llama.cpp's order, the inverse of `halves`."""
    return rows.view(heads, 2, rows.shape[0] // heads // 2, -1).transpose(1, 2).reshape(rows.shape)


class GgufTensors:
    """The tensors of a file under Hugging Face's names, with their shapes from the header."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError if the file is damaged or of another family."""
        self.file = gguf.read(path)
        self.family = family(self.file)
        names = [name for name in self.file.tensors if name != ROPE_FACTORS]
        self.own = {name_of(name): name for name in names}
        if len(self.own) != len(names):
            raise CheckpointError(f"{path}: two tensors have the same place in the model")
        self.shapes = {name: self.file.tensors[own].shape for name, own in self.own.items()}
        self._heads = _whole(self.file, "attention.head_count")
        self._kv_heads = _whole(self.file, "attention.head_count_kv", self._heads)

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor, dequantised to fp32."""
        tensor = self.file.tensor(self.own[name])
        heads = self.turned(name)
        return halves(tensor, heads) if heads else tensor

    def groups(self, name: str) -> Grouped | None:
        """Return a matrix whose blocks are those of a `Grouped` format as it is; None for any other tensor.

        Raises CheckpointError for a scale that is not finite.
        """
        if not self.in_groups(name):
            return None
        own = self.own[name]
        place = self.file.tensors[own]
        format = next(x for x in GROUP_FORMATS if x == place.format.lower())
        rows, heads = self.file.raw(own).view(place.shape[0], -1), self.turned(name)
        rows = halves(rows, heads) if heads else rows
        found = from_blocks(format, rows.view(len(rows), -1, LAYOUTS[place.format].size))
        if not all(bool(x.isfinite().all()) for x in (found.scales_OG, found.minima_OG) if x is not None):
            raise CheckpointError(f"{self.file.path}: {own}: a scale or minimum is not a finite number")
        return found

    def in_groups(self, name: str) -> bool:
        """True if `groups` would return a matrix."""
        place = self.file.tensors[self.own[name]]
        return place.format.lower() in GROUP_FORMATS and len(place.shape) == 2

    def turned(self, name: str) -> int:
        """Return the heads whose rows are in another order than in the file; 0: none are."""
        if self.family != "llama":
            return 0
        heads = {"q_proj": self._heads, "k_proj": self._kv_heads}.get(name.split(".")[-2], 0)
        if heads and (heads < 1 or self.shapes[name][0] % (2 * heads)):
            raise CheckpointError(
                f"{self.file.path}: {name} has {self.shapes[name][0]} rows for {heads} heads"
            )
        return heads


def family(file: GgufFile) -> str:
    """Return the architecture of a file; raises CheckpointError for one that does not run here."""
    found = file.settings.get("general.architecture")
    if found not in FAMILIES:
        raise CheckpointError(
            f"{file.path}: {unknown(str(found), FAMILIES, noun='general.architecture')} "
            f"{INSTEAD[0].upper()}{INSTEAD[1:]}."
        )
    return str(found)


def config(file: GgufFile) -> dict[str, Any]:
    """Return the config.json of a file's model.

    Raises CheckpointError naming a setting that is missing, absurd, or changes what is computed.
    """
    kind, where = family(file), file.path
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{where}: no matrix token_embd.weight; wanted a whole language model")
    heads = _whole(file, "attention.head_count")
    width, layers = _whole(file, "embedding_length"), _whole(file, "block_count")
    head = _whole(file, "attention.key_length", width // heads if heads else 0)
    context = _whole(file, "context_length")
    window = _whole(file, "attention.sliding_window", 0)
    refused = {
        "expert_count": _whole(file, "expert_count", 0) > 0,
        "attention.value_length": _whole(file, "attention.value_length", head) != head,
        "rope.dimension_count": _whole(file, "rope.dimension_count", head) != head,
        "attention.sliding_window": 0 < window < context,
        "attention.causal": file.settings.get(f"{kind}.attention.causal", True) is not True,
        **dict.fromkeys(_changing(file, head), True),
    }
    bad = [f"{kind}.{name}" for name, wrong in refused.items() if wrong]
    if bad:
        raise CheckpointError(f"{where}: {', '.join(bad)}: what it sets is not computed here; {INSTEAD}")
    theta = _number(file, "rope.freq_base", 10000.0)
    has = {name.split(".", 2)[2] for name in file.tensors if name.startswith("blk.0.")}
    found: dict[str, Any] = {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": _whole(file, "feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(file, "attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": context,
        "rms_norm_eps": _number(file, "attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": theta, **_rope(file, theta, head)},
        "rope_theta": theta,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "attn_q.bias" in has and kind != "qwen2",
        "mlp_bias": "ffn_up.bias" in has,
        "dtype": "float32",
    }
    ids = {name: file.settings.get(f"tokenizer.ggml.{name}_id") for name in ("bos_token", "eos_token")}
    return found | {f"{name}_id": value for name, value in ids.items() if value is not None}


INSTEAD = "name the Hugging Face folder of this model as the base instead"
COMPUTED = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
}
COMPUTED |= {"attention.sliding_window", "attention.causal", "attention.layer_norm_rms_epsilon"}
COMPUTED |= {
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
}
COMPUTED |= {
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}
UNUSED = {"attention.layer_norm_epsilon", "rope.scaling.finetuned", "attention.sliding_window_pattern"}
"""Settings of attention and positions that are read here, and those that change nothing in this family."""


def _changing(file: GgufFile, head: int) -> list[str]:
    """The settings that change what a model computes and that nothing here reads: those of attention and positions, and
    scales and caps, unless their value leaves everything as it is."""
    kind = file.settings["general.architecture"]
    yarn = file.settings.get(f"{kind}.rope.scaling.type") == "yarn"
    harmless: dict[str, tuple[float, ...]] = {
        "attention.scale": (0, float(np.float32(head) ** -0.5) if head else 0),
        "attention.head_dim": (head,),  # Ollama's converter says it once more
        "rope.scaling.yarn_ext_factor": (-1, 1 if yarn else 0),
        "rope.scaling.yarn_log_multiplier": (0,),
        "attention.temperature_scale": (0,),
    }
    found = []
    for key, value in file.settings.items():
        name = key.removeprefix(f"{kind}.")
        computes = name.startswith(("attention.", "rope.")) or name.endswith(("_scale", "_softcapping"))
        if name == key or not computes or name in COMPUTED | UNUSED or name.endswith("_swa"):
            continue
        if name == "rope.scaling.attn_factor" and yarn:
            continue
        of = value if isinstance(value, list) else [value]
        same = harmless.get(name, (0, 1) if name.endswith(("scale", "factor", "alpha")) else (0,))
        if not all(
            isinstance(x, int | float) and any(math.isclose(x, y, rel_tol=1e-5) for y in same) for x in of
        ):
            found.append(name)
    return found


def _whole(file: GgufFile, name: str, default: int | None = None) -> int:
    """A whole number among the settings of the architecture; raises CheckpointError if it is none."""
    key = f"{file.settings['general.architecture']}.{name}"
    value = file.settings.get(key, default)
    if isinstance(value, list) and value and len(set(value)) == 1:
        value = value[0]  # one number for each layer
    most = MOST_LAYERS if name == "block_count" else MOST_SIZE
    if type(value) is not int or not 0 <= value <= most:
        got = f"is {str(value)[:40]}" if value is not None else "is missing"
        raise CheckpointError(f"{file.path}: {key} {got}; wanted a whole number of at most {most}")
    return value


def _number(file: GgufFile, name: str, default: float | None = None) -> float:
    """A real number among the settings of the architecture, as the shortest decimal of its fp32."""
    key = f"{file.settings['general.architecture']}.{name}"
    value = file.settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        got = "is missing" if value is None else f"is {str(value)[:40]}"
        raise CheckpointError(f"{file.path}: {key} {got}; wanted a number")
    return float(str(np.float32(value)))


def _rope(file: GgufFile, theta: float, head: int) -> dict[str, Any]:
    """The scaling of rotary positions as transformers' `rope_parameters`; empty: none."""
    kind = file.settings["general.architecture"]
    given = file.settings.get(f"{kind}.rope.scaling.factor")
    unnamed = "none" if given in (None, 0, 1) else "linear"  # as llama.cpp reads it
    named = file.settings.get(f"{kind}.rope.scaling.type", unnamed)
    if ROPE_FACTORS in file.tensors:
        return _llama3(file, theta, head)
    old = file.settings.get(f"{kind}.rope.scale_linear")
    if named == "none":
        return {"rope_type": "linear", "factor": float(old)} if old not in (None, 1, 0) else {}
    if named not in ("linear", "yarn"):
        why = unknown(str(named), ("linear", "yarn"), noun="rope scaling")
        raise CheckpointError(f"{file.path}: {why} {INSTEAD[0].upper()}{INSTEAD[1:]}.")
    found: dict[str, Any] = {"rope_type": named, "factor": _number(file, "rope.scaling.factor")}
    if named == "yarn":
        found["original_max_position_embeddings"] = _whole(file, "rope.scaling.original_context_length")
        names = {
            "beta_fast": "rope.scaling.yarn_beta_fast",
            "beta_slow": "rope.scaling.yarn_beta_slow",
        }
        found |= {name: _number(file, key) for name, key in names.items() if f"{kind}.{key}" in file.settings}
        factor = _number(file, "rope.scaling.attn_factor", 1.0)
        if factor != 1.0:
            found["attention_factor"] = factor * rope.yarn_attention(found["factor"])
    return found


def _llama3(file: GgufFile, theta: float, head: int) -> dict[str, Any]:
    """Llama 3's scaling, whose factors the file holds instead of its settings."""
    factors = file.tensor(ROPE_FACTORS).float()
    base = float(factors.max())
    wanted = {"rope_type": "llama3", "factor": base, **LLAMA3}
    plain = 1.0 / theta ** (torch.arange(0, head, 2).float() / head)
    scaling = rope.parse(wanted)
    assert scaling is not None
    ours = plain / rope.scaled(scaling, plain, theta)
    if factors.shape != ours.shape or not torch.allclose(factors, ours, rtol=1e-4):
        raise CheckpointError(
            f"{file.path}: {ROPE_FACTORS} are not Llama 3's (factor {base:g}, low 1, high 4, 8192 tokens); "
            f"{INSTEAD}"
        )
    return wanted


# ---- writing ----


def settings(config: Config, name: str, form: str) -> dict[str, Any]:
    """Return the settings of a model's file, its tokenizer apart."""
    kind = "llama" if config.model_type == "mistral" else config.model_type
    whole = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }
    found: dict[str, Any] = {
        "general.architecture": kind,
        "general.type": "model",
        "general.name": name,
        "general.file_type": Typed("I", FILE_TYPES[form]),
        "general.quantization_version": Typed("I", 2),
        **{f"{kind}.{key}": Typed("I", value) for key, value in whole.items()},
        f"{kind}.attention.layer_norm_rms_epsilon": Typed("f", config.rms_norm_eps),
        f"{kind}.rope.freq_base": Typed("f", config.rope_theta),
    }
    scaling = config.rope
    if scaling is not None and scaling.kind != "llama3":  # Llama 3's factors are a tensor
        found[f"{kind}.rope.scaling.type"] = scaling.kind
        found[f"{kind}.rope.scaling.factor"] = Typed("f", scaling.factor)
    if scaling is not None and scaling.kind == "yarn":
        found |= {
            f"{kind}.rope.scaling.original_context_length": Typed("I", scaling.original),
            f"{kind}.rope.scaling.yarn_beta_fast": Typed("f", scaling.fast),
            f"{kind}.rope.scaling.yarn_beta_slow": Typed("f", scaling.slow),
        }
        factor = scaling.attention / rope.yarn_attention(scaling.factor)
        if not math.isclose(factor, 1.0, rel_tol=1e-6):
            found[f"{kind}.rope.scaling.attn_factor"] = Typed("f", factor)
    return found


FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
"""llama_ftype of llama.h for each format that is written."""


def tensors(model: Llama, form: str) -> dict[str, tuple[tuple[int, ...], str, Make]]:
    """Return the tensors of a model's file: matrices in `form`, vectors in F32.

    A matrix whose rows are no whole number of blocks stays in F16; the embedding and the head of a 4-bit file
    are in Q8_0, as llama.cpp's own files keep them finer than the rest. A matrix that is in groups already, of no more bits than
    it would get, keeps its own blocks: rounding it again would change it.
    """
    found: dict[str, tuple[tuple[int, ...], str, Make]] = {}
    names = {hf: own for own, hf in {**OUTSIDE, **LAYER}.items()}
    turned = model.config.model_type in ("llama", "mistral")
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, tensor in {**model.state_dict(), **matrices(model)}.items():
        stem, _, kind = name.rpartition(".")
        block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
        own = f"blk.{block[1]}.{names[block[2]]}.{kind}" if block else f"{names[stem]}.{kind}"
        of = heads.get(stem.rpartition(".")[2], 0) if turned else 0
        chosen = _format(own, tensor, form)
        kept = None if isinstance(tensor, Tensor) else _kept(tensor, of, chosen)
        found[own] = kept or _writable(tensor, of, chosen)
    if model.config.rope is not None and model.config.rope.kind == "llama3":
        head = model.config.head_dim
        plain = 1.0 / model.config.rope_theta ** (torch.arange(0, head, 2).float() / head)
        factors = plain / rope.scaled(model.config.rope, plain, model.config.rope_theta)
        found[ROPE_FACTORS] = _writable(factors, 0, "F32")
    return found


def _kept(matrix: Matrix, heads: int, form: str) -> tuple[tuple[int, ...], str, Make] | None:
    """A matrix's own blocks, if `form` rounds to no fewer bits; else None."""
    if matrix.format is None:
        return None
    own, most = GROUP_LAYOUTS[matrix.format].bits, {"Q4_0": 4, "Q8_0": 8}.get(form, 0)
    if own > most or matrix.shape[1] % GROUP:
        return None

    def make() -> Tensor:
        order = torch.arange(matrix.shape[0])
        found = matrix.read() if isinstance(matrix, Deferred) else matrix
        assert isinstance(found, Grouped)
        return blocks(found.rows(pairs(order[:, None], heads)[:, 0]) if heads else found).reshape(-1)

    return matrix.shape, matrix.format.upper(), make


def _format(name: str, tensor: Tensor | Matrix, form: str) -> str:
    if len(tensor.shape) < 2:
        return "F32"
    if form == "Q4_0" and name in ("token_embd.weight", "output.weight"):
        form = "Q8_0"
    return "F16" if tensor.shape[-1] % LAYOUTS[form].elements else form


def _writable(tensor: Tensor | Matrix, heads: int, form: str) -> tuple[tuple[int, ...], str, Make]:
    def make() -> Tensor:
        found = numbers(tensor)
        return quantised(pairs(found, heads) if heads else found, form)

    return tuple(tensor.shape), form, make


def unfit(tensors: Mapping[str, Tensor | Matrix]) -> str | None:
    """Return the first matrix with a value that F16 cannot hold; None if all fit."""
    most = torch.finfo(torch.float16).max
    wide = (name for name, x in tensors.items() if len(x.shape) > 1 and float(numbers(x).abs().max()) > most)
    return next(wide, None)

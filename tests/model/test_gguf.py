"""GGUF files: every architecture and number format comes back as it was; damaged and hostile ones are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from demeanor.core.errors import CheckpointError
from demeanor.model import checkpoints, gguf, gguf_llama
from demeanor.model.gguf import Typed
from demeanor.model.gguf_blocks import FORMULAS, LAYOUTS, PLAIN, dequantised, quantised
from demeanor.model.llama import Config, rotary
from demeanor.model.rope import Rope
from demeanor.text import tokenizer as tokenizers
from demeanor.training import gguf_folder
from tests.model import gguf_files

FORMATS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


def folder(tmp_path: Path, **written: Any) -> Path:
    """The model folder of a GGUF file that was written with these settings."""
    gguf_files.write(tmp_path / "tiny.gguf", **written)
    gguf_folder.write(tmp_path / "tiny.gguf", tmp_path / "folder")
    return tmp_path / "folder"


@pytest.mark.parametrize("name", gguf_files.CONFIGS)
def test_every_architecture_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    wanted = gguf_files.write(tmp_path / "tiny.gguf", name)
    gguf_folder.write(tmp_path / "tiny.gguf", tmp_path / "folder")
    found = checkpoints.load(tmp_path / "folder")
    kind = {"mistral": "llama"}.get(wanted.config.model_type, wanted.config.model_type)
    assert {**vars_of(wanted.config), "model_type": kind} == vars_of(found.config)
    assert found.state_dict().keys() == wanted.state_dict().keys()
    assert all(torch.equal(t, found.state_dict()[n]) for n, t in wanted.state_dict().items())
    assert checkpoints.checkpoint_info(tmp_path / "folder").lean


def vars_of(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in Config.__slots__}


@pytest.mark.parametrize("form", FORMATS)
def test_every_written_format_comes_back_within_its_rounding(form: str, tmp_path: Path) -> None:
    wanted = gguf_files.write(tmp_path / "tiny.gguf", "llama", form)
    gguf_folder.write(tmp_path / "tiny.gguf", tmp_path / "folder")
    found = checkpoints.load(tmp_path / "folder").state_dict()
    furthest = max(
        float((found[n] - t).abs().max() / t.abs().max())
        for n, t in wanted.state_dict().items()
        if t.ndim == 2
    )
    assert furthest <= {"F32": 0, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 1 / 200, "Q4_0": 1 / 7}[form]
    assert furthest > 0 or form == "F32"
    held = gguf.read(tmp_path / "tiny.gguf").tensors["blk.0.ffn_up.weight"]
    assert held.format == form


@pytest.mark.parametrize("form", FORMULAS)
def test_a_block_of_every_format_is_scale_times_quants(form: str) -> None:
    """The formulas are held equal to llama.cpp's package in tests/parity; here: zero scales, and no value is lost."""
    layout = LAYOUTS[form]
    draw = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (50 * layout.size,), generator=draw, dtype=torch.uint8)
    assert dequantised(raw, form, "x").shape == (50 * layout.elements,)
    assert torch.equal(
        dequantised(torch.zeros(layout.size, dtype=torch.uint8), form, "x"), torch.zeros(layout.elements)
    )


def test_blocks_worked_by_hand() -> None:
    values = torch.zeros(32)
    values[:3] = torch.tensor([127.0, -64.0, 1.0])
    assert quantised(values, "Q8_0").tolist() == [0, 60, 127, 192, 1, *[0] * 29]  # 0x3C00 is 1 in fp16
    assert torch.equal(dequantised(quantised(values, "Q8_0"), "Q8_0", "x"), values)
    values = torch.zeros(32)
    values[0], values[16] = -8.0, 7.0
    assert quantised(values, "Q4_0").tolist() == [0, 60, 0xF0, *[0x88] * 15]
    assert torch.equal(dequantised(quantised(values, "Q4_0"), "Q4_0", "x"), values)


def test_a_format_that_only_the_package_knows_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"m.gguf: blk is in IQ2_XXS.*pip install 'demeanor\[gguf\]'"):
        dequantised(torch.zeros(66, dtype=torch.uint8), "IQ2_XXS", "m.gguf: blk")


def test_tokenizer_template_and_ends_come_from_the_file(tmp_path: Path) -> None:
    made = gguf_files.bpe("qwen2")
    found = tokenizers.load(folder(tmp_path, tokenizer=made))
    assert found.config["chat_template"] == gguf_files.CHATML
    assert (found.eos_id, found.bos_id, found.special) == (made.eos_id, None, made.special)
    gguf_files.write(tmp_path / "bos.gguf", tokenizer=made, tokenizer__ggml__add_bos_token=True)
    gguf_folder.write(tmp_path / "bos.gguf", tmp_path / "bos")
    assert tokenizers.load(tmp_path / "bos").bos_id == made.special["<|endoftext|>"]
    several = Typed("i", [made.eos_id, made.special["<|im_start|>"]])
    gguf_files.write(tmp_path / "ends.gguf", tokenizer=made, tokenizer__ggml__eos_token_ids=several)
    gguf_folder.write(tmp_path / "ends.gguf", tmp_path / "ends")
    assert made.special["<|im_start|>"] in tokenizers.load(tmp_path / "ends").ends


def test_settings_that_change_nothing_are_no_obstacle(tmp_path: Path) -> None:
    neutral = {
        "attention__scale": Typed("f", 0.25),  # 1 / sqrt of a head of 16
        "attention__head_dim": Typed("I", 16),
        "residual_scale": Typed("f", 1.0),
        "logit_scale": Typed("f", 0.0),
        "attention__sliding_window_pattern": Typed("I", 4),
        "rope__scaling__attn_factor": Typed("f", 1.0),
        "rope__scaling__yarn_ext_factor": Typed("f", -1.0),
        "rope__scaling__finetuned": False,
        "rope__dimension_sections": Typed("i", [0, 0, 0, 0]),
        "my_trainer__note": "x",
    }
    made = folder(tmp_path, **{f"llama__{key}": value for key, value in neutral.items()})
    assert checkpoints.load(made).config.rope is None


def test_several_templates_of_a_file_keep_their_names(tmp_path: Path) -> None:
    found = tokenizers.load(
        folder(tmp_path, tokenizer__chat_template="plain", tokenizer__chat_template__tool_use="with tools")
    )
    assert found.config["chat_template"] == [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "with tools"},
    ]


# ---- scaled rotary positions ----


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 2.5, "beta_fast": 24.0, "beta_slow": 2.0, "attention_factor": 1.25},
    ],
    ids=lambda x: x["rope_type"],
)
def test_scaled_positions_are_transformers(scaling: dict[str, Any]) -> None:
    original = {} if scaling["rope_type"] == "linear" else {"original_max_position_embeddings": 512}
    parameters = {"rope_theta": 5e5, **scaling, **original}
    shape = {"hidden_size": 128, "num_attention_heads": 2, "max_position_embeddings": 4096}
    theirs = LlamaConfig(**shape, rope_parameters=parameters)
    inverse, attention = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, torch.device("cpu"))
    sizes = {"vocab_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "model_type": "llama"}
    ours = Config.parse({**shape, **sizes, "rope_parameters": parameters}, "x")
    positions = torch.arange(0, 4096, 37)
    cos, sin = rotary(ours, positions)
    angles = positions[:, None].float() * inverse
    assert torch.allclose(cos[:, 0, :32], angles.cos() * attention, atol=2e-4)
    assert torch.allclose(sin[:, 0, :32], angles.sin() * attention, atol=2e-4)
    assert Config.parse({**ours.to_json(), "rope_theta": 5e5}, "x") == ours, "config.json keeps it"
    older = {name: x for name, x in parameters.items() if name != "rope_theta"}
    assert Config.parse({**shape, **sizes, "rope_theta": 5e5, "rope_scaling": older}, "x") == ours


def test_a_yarn_of_qwen_is_read_as_transformers_does() -> None:
    parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    theirs = Qwen2Config(
        rope_parameters={**parameters, "rope_theta": 1e6}, hidden_size=256, num_attention_heads=2
    )
    _, attention = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    sizes = {"vocab_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "model_type": "qwen2"}
    ours = Config.parse(
        {**sizes, "hidden_size": 256, "num_attention_heads": 2, "rope_scaling": parameters}, "x"
    )
    assert ours.rope is not None
    assert ours.rope.attention == pytest.approx(attention)


def test_a_factor_without_a_type_is_linear_as_in_llama_cpp(tmp_path: Path) -> None:
    made = folder(tmp_path, llama__rope__scaling__factor=Typed("f", 4.0))
    assert checkpoints.load(made).config.rope == Rope("linear", 4.0)


# ---- damaged and hostile files ----

Damage = Callable[[bytes], bytes]


def header(tensors: int = 0, settings: int = 0, rest: bytes = b"", version: int = 3) -> Damage:
    """A file that is only a header, with what follows the counts."""
    return lambda whole: b"GGUF" + struct.pack("<IQQ", version, tensors, settings) + rest


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def place(shape: tuple[int, ...], kind: int = 0, offset: int = 0, name: bytes = b"a") -> bytes:
    head = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape))
    return head + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)


HUGE = 2**62
HOSTILE: dict[str, tuple[Damage, str]] = {
    "empty": (lambda x: b"", "the magic number has 4 bytes, the file ends after 0"),
    "other magic": (lambda x: b"GGML" + x[4:], "does not begin with 'GGUF'"),
    "a pointer of git": (
        lambda x: b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
        "run git lfs pull",
    ),
    "big endian": (lambda x: b"GGUF" + struct.pack(">I", 3) + x[8:], "is big endian"),
    "an old version": (header(version=1), "its version is 1"),
    "cut in its settings": (lambda x: x[:1000], "cut short"),
    "cut in its tensors": (lambda x: x[:-1000], "cut short"),
    "a count of settings without end": (header(settings=HUGE), f"declares {HUGE} settings"),
    "a count of tensors without end": (header(tensors=HUGE), f"declares {HUGE} tensors"),
    "a name without end": (header(1, 0, struct.pack("<Q", HUGE) + b"x" * 50), "bytes of a tensor's name"),
    "a text without end": (header(0, 1, key(b"a", 8, struct.pack("<Q", HUGE))), "bytes of a"),
    "a list without end": (
        header(0, 1, key(b"a", 9, struct.pack("<IQ", 6, HUGE))),
        f"declares {HUGE} entries of a",
    ),
    "a list of empty texts without end": (
        header(0, 1, key(b"a", 9, struct.pack("<IQ", 8, HUGE))),
        "entries of a",
    ),
    "a list of lists": (header(0, 1, key(b"a", 9, struct.pack("<IQ", 9, 1))), "is a list of the type 9"),
    "an unknown type": (header(0, 1, key(b"a", 77, b"xx")), "has the unknown type 77"),
    "a name that is no text": (header(0, 1, key(b"\xff\xfe", 4, bytes(4))), "is not UTF-8"),
    "a setting twice": (header(0, 2, key(b"a", 4, bytes(4)) * 2), "the setting a stands twice"),
    "a tensor twice": (header(2, 0, place((8,)) * 2 + bytes(200)), "a tensor stands twice"),
    "no dimensions": (header(1, 0, place(()) + bytes(200)), "has 0 dimensions"),
    "many dimensions": (header(1, 0, place((1,) * 9) + bytes(200)), "has 9 dimensions"),
    "an empty dimension": (header(1, 0, place((0,)) + bytes(200)), "has the shape (0,)"),
    "a product beyond 64 bits": (header(1, 0, place((2**33, 2**33)) + bytes(200)), "the file has"),
    "an offset behind the end": (header(1, 0, place((8,), offset=HUGE) + bytes(200)), "the file has"),
    "an offset that is not aligned": (header(1, 0, place((8,), offset=4) + bytes(200)), "a multiple of 32"),
    "half a block": (header(1, 0, place((8,), kind=8) + bytes(200)), "whole blocks of 32"),
    "an unknown number format": (
        header(1, 0, place((8,), kind=99) + bytes(200)),
        "a has the number format 99",
    ),
    "tensors over each other": (
        header(2, 0, place((16,)) + place((16,), offset=32, name=b"b") + bytes(400)),
        "a and b lie over each other",
    ),
    "an alignment that is none": (
        header(0, 1, key(b"general.alignment", 4, struct.pack("<I", 33))),
        "general.alignment is 33",
    ),
    "one part of several": (header(0, 1, key(b"split.count", 2, struct.pack("<H", 3))), "one of 3 parts"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_file_is_named_and_takes_no_memory(name: str, tmp_path: Path) -> None:
    damage, wanted = HOSTILE[name]
    path = tmp_path / "m.gguf"
    gguf_files.write(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError) as raised:
        gguf_folder.write(path, tmp_path / "folder")
    assert str(path) in str(raised.value)
    assert wanted in str(raised.value)


def test_every_shorter_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    gguf_files.write(path)
    whole = path.read_bytes()
    read = []
    for size in range(0, len(whole) - 64, 997):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            gguf.read(path)
        read.append(size)
    assert len(read) > 50


def test_flipped_bytes_of_the_header_raise_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    gguf_files.write(path, tokenizer=gguf_files.bpe(merges=5))
    whole = path.read_bytes()
    draw = torch.Generator().manual_seed(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(150):
        at = int(torch.randint(4, 4000, (1,), generator=draw))
        path.write_bytes(whole[:at] + bytes([255 - whole[at]]) + whole[at + 1 :])
        try:
            gguf_folder.write(path, tmp_path / "folder")
        except CheckpointError as error:
            said = str(error)
        else:
            said = ""
        outcomes["refused" if str(path) in said else said or "read"] += 1
    assert min(outcomes.values()) > 5


YARN = {
    "llama__rope__scaling__type": "yarn",
    "llama__rope__scaling__factor": Typed("f", 4.0),
    "llama__rope__scaling__original_context_length": Typed("I", 32),
}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"general__architecture": "gemma4"}, "general.architecture"),
    "no architecture": ({"general__architecture": None}, "general.architecture"),
    "no width": ({"llama__embedding_length": None}, "llama.embedding_length is missing"),
    "layers without end": ({"llama__block_count": Typed("I", 2**31)}, "llama.block_count is 2147483648"),
    "a width that is a text": (
        {"llama__embedding_length": "64"},
        "llama.embedding_length is 64; wanted a whole",
    ),
    "another number of layers": (
        {"llama__block_count": Typed("I", 3)},
        "declares 3 layers and at least",
    ),
    "another width": ({"llama__feed_forward_length": Typed("I", 64)}, "wanted (64, 64)"),
    "experts": ({"llama__expert_count": Typed("I", 8)}, "llama.expert_count"),
    "half a rotary head": ({"llama__rope__dimension_count": Typed("I", 8)}, "llama.rope.dimension_count"),
    "a sliding window": (
        {"llama__attention__sliding_window": Typed("I", 16)},
        "llama.attention.sliding_window",
    ),
    "two sizes of a head": ({"llama__attention__head_dim": Typed("I", 32)}, "llama.attention.head_dim"),
    "another rope scaling": ({"llama__rope__scaling__type": "longrope"}, "unknown rope scaling 'longrope'"),
    "scaled logits": ({"llama__logit_scale": Typed("f", 0.5)}, "llama.logit_scale"),
    "a YaRN with a multiplier": (
        {**YARN, "llama__rope__scaling__yarn_log_multiplier": Typed("f", 0.1)},
        "llama.rope.scaling.yarn_log_multiplier: what it sets is not computed here; name the Hugging Face folder",
    ),
    "a YaRN that does not interpolate": (
        {**YARN, "llama__rope__scaling__yarn_ext_factor": Typed("f", 0.0)},
        "llama.rope.scaling.yarn_ext_factor",
    ),
    "a YaRN of no context": (
        {**YARN, "llama__rope__scaling__original_context_length": Typed("I", 0)},
        "original_max_position_embeddings is 0",
    ),
    "a YaRN of negative turns": (
        {**YARN, "llama__rope__scaling__yarn_beta_slow": Typed("f", -1.0)},
        "beta_slow is -1.0",
    ),
    "attention that nobody here has heard of": (
        {"llama__attention__sinkhorn_iterations": Typed("I", 3)},
        "llama.attention.sinkhorn_iterations",
    ),
    "no tokenizer": (
        {"tokenizer__ggml__model": "no_vocab"},
        "has no tokenizer (tokenizer.ggml.model). Name the",
    ),
    "another tokenizer": ({"tokenizer__ggml__model": "bert"}, "unknown tokenizer.ggml.model 'bert'"),
    "an unknown pre-tokenizer": ({"tokenizer__ggml__pre": "bloom"}, "unknown tokenizer.ggml.pre 'bloom'"),
    "no EOS": ({"tokenizer__ggml__eos_token_id": None}, "no tokenizer.ggml.eos_token_id"),
    "an EOS that is no token": (
        {"tokenizer__ggml__eos_token_id": Typed("I", 10**6)},
        "eos_token_id is 1000000",
    ),
    "no tokens": ({"tokenizer__ggml__tokens": None}, "tokenizer.ggml.tokens is missing"),
    "a token twice": ({"tokenizer__ggml__tokens": ["a"] * 414}, "stands twice"),
    "kinds of other tokens": ({"tokenizer__ggml__token_type": Typed("i", [1])}, "has 1 entries for"),
    "merges of nothing": ({"tokenizer__ggml__merges": ["qq zz"]}, "'qq zz' joins no two tokens"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_run_here_is_named_with_its_file(name: str, tmp_path: Path) -> None:
    changes, wanted = WRONG[name]
    path = tmp_path / "m.gguf"
    gguf_files.write(path, **changes)
    with pytest.raises(CheckpointError) as raised:
        gguf_folder.write(path, tmp_path / "folder")
    assert wanted in str(raised.value)
    assert str(path) in str(raised.value)


def test_formats_have_the_numbers_and_sizes_of_ggml() -> None:
    assert len({layout.kind for layout in LAYOUTS.values()}) == len(LAYOUTS)
    assert {name: LAYOUTS[name].size for name in PLAIN} == {"F32": 4, "F16": 2, "BF16": 2}
    assert gguf_llama.FILE_TYPES.keys() == set(FORMATS)

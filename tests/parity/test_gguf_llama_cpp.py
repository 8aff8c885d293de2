"""GGUF files and llama.cpp: what we write it reads as we do, token for token, and its package reads every block as ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from demeanor.core.types import Message
from demeanor.model import checkpoints
from demeanor.model import gguf as files
from demeanor.model.gguf_blocks import FORMULAS, LAYOUTS, dequantised, quantised
from demeanor.model.llama import KVCache, Llama
from demeanor.text import tokenizer as tokenizers
from demeanor.text.gguf_splits import SPLITS
from demeanor.text.gguf_tokenizer import TEXTS
from demeanor.text.template import load_template
from demeanor.text.tokenizer import Tokenizer
from demeanor.training import export_gguf, gguf_folder
from tests.model import gguf_files

pytestmark = pytest.mark.parity
gguf = pytest.importorskip("gguf", reason="run with bench/.venv/bin/python -m pytest -m parity tests/parity")
pytest.importorskip("xllamacpp", reason="run with bench/.venv/bin/python -m pytest -m parity tests/parity")

ROOM = 24


def greedy(model: Llama, prompt: list[int], stops: frozenset[int]) -> list[int]:
    """Our greedy answer, up to a stop token."""
    cache = KVCache(model.config, 1, len(prompt) + ROOM)
    tokens, start, made = list(prompt), 0, list[int]()
    while len(made) < ROOM and not (made and made[-1] in stops):
        hidden = model.prefill(torch.tensor(tokens[start:]), 0, start, cache)
        start = len(tokens)
        made.append(int((hidden[-1] @ model.head().T).argmax()))
        tokens.append(made[-1])
    return made


@pytest.mark.parametrize("name", gguf_files.CONFIGS)
def test_llama_cpp_answers_token_for_token(name: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    written = gguf_files.write(path, name)
    gguf_folder.write(path, tmp_path / "folder")
    found, tokenizer = checkpoints.load(tmp_path / "folder"), tokenizers.load(tmp_path / "folder")
    stops = frozenset({tokenizer.eos_id, tokenizer.special["<|endoftext|>"]})
    prompts = [tokenizer.encode(text) for text in TEXTS if text][:6]
    with export_gguf.llama_cpp(path, room=ROOM, stops=stops, context=128) as theirs:
        answers = [theirs.answer(p) for p in prompts]
    assert answers == [greedy(found, p, stops) for p in prompts]
    assert answers == [greedy(written, p, stops) for p in prompts]
    assert len({tuple(a) for a in answers}) > 3, "the answers depend on the prompts"


@pytest.mark.parametrize("form", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_llama_cpp_reads_every_written_format(form: str, tmp_path: Path) -> None:
    """Rounded weights: llama.cpp rounds activations too, so the first tokens are compared, which are no ties."""
    path = tmp_path / "tiny.gguf"
    gguf_files.write(path, "llama", form)
    gguf_folder.write(path, tmp_path / "folder")
    found, tokenizer = checkpoints.load(tmp_path / "folder"), tokenizers.load(tmp_path / "folder")
    prompts = [tokenizer.encode(text) for text in TEXTS if text]
    with export_gguf.llama_cpp(path, room=1, stops={tokenizer.eos_id}, context=128) as theirs:
        answers = [theirs.answer(p)[:1] for p in prompts]
    same = sum(a == greedy(found, p, frozenset())[:1] for a, p in zip(answers, prompts))
    assert same >= len(prompts) - 2


def compare_tokens(tokenizer: Tokenizer, path: Path, texts: tuple[str, ...]) -> None:
    gguf_files.write(path, tokenizer=tokenizer)
    with export_gguf.llama_cpp(path, room=1, stops={0}, context=64) as theirs:
        assert [theirs.tokens(x) for x in texts] == [tokenizer.encode(x) for x in texts]


@pytest.mark.parametrize("pre", [split.names[0] for split in SPLITS])
def test_llama_cpp_splits_every_text_as_we_do(pre: str, tmp_path: Path) -> None:
    decomposed = "a\u0301 e\u0308 n\u0303"
    texts = tuple(x for x in TEXTS if not x.startswith(decomposed)) if pre == "qwen2" else TEXTS
    compare_tokens(gguf_files.bpe(pre), tmp_path / "tiny.gguf", texts)


def test_llama_cpp_joins_sentencepiece_as_we_do(tmp_path: Path) -> None:
    compare_tokens(gguf_files.sentencepiece(), tmp_path / "tiny.gguf", TEXTS)


def test_llama_cpp_writes_the_prompt_and_ends_the_answer_as_we_do(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    written = gguf_files.write(path)
    gguf_folder.write(path, tmp_path / "folder")
    tokenizer = tokenizers.load(tmp_path / "folder")
    template = load_template("model", tokenizer, folder=tmp_path / "folder", root=tmp_path)
    conversations = [
        [Message("user", "Hello <|im_end|> there")],
        [
            Message("system", "Be brief."),
            Message("user", "1234?"),
            Message("assistant", "Yes."),
            Message("user", "é"),
        ],
    ]
    assert template.stop_tokens == {tokenizer.eos_id}
    with torch.no_grad():
        written.head()[tokenizer.eos_id] = 0
    with export_gguf.llama_cpp(path, room=4, stops=template.stop_tokens, context=128) as theirs:
        prompts = [theirs.prompt(messages) for messages in conversations[1:]]
    assert prompts == [list(template.render(m, (), generate=True).tokens) for m in conversations[1:]]


# ---- llama.cpp's Python package ----


@pytest.mark.parametrize("form", FORMULAS)
def test_blocks_are_read_bit_for_bit(form: str) -> None:
    layout = LAYOUTS[form]
    draw = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 256, (500 * layout.size,), generator=draw, dtype=torch.uint8)
    kind = gguf.GGMLQuantizationType[form]
    assert gguf.GGML_QUANT_SIZES[kind] == (layout.elements, layout.size)
    wanted = gguf.dequantize(raw.view(-1, layout.size).numpy(), kind).reshape(-1)
    assert np.array_equal(dequantised(raw, form, "x").numpy(), wanted, equal_nan=True)


@pytest.mark.parametrize("form", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_blocks_are_written_bit_for_bit(form: str) -> None:
    values = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    values[0] = 0
    wanted = gguf.quantize(values.numpy(), gguf.GGMLQuantizationType[form])
    assert np.array_equal(
        quantised(values, form).numpy(), np.ascontiguousarray(wanted).view(np.uint8).reshape(-1)
    )


@pytest.mark.parametrize("form", ["IQ2_XXS", "IQ3_S", "IQ1_M", "TQ2_0", "MXFP4", "NVFP4"])
def test_rare_formats_are_read_by_the_package(form: str) -> None:
    raw = torch.randint(0, 120, (4 * LAYOUTS[form].size,), dtype=torch.uint8)
    assert dequantised(raw, form, "x").shape == (4 * LAYOUTS[form].elements,)


def test_the_package_reads_our_files_and_we_read_its(tmp_path: Path) -> None:
    written = gguf_files.write(tmp_path / "ours.gguf", "qwen3")
    reader = gguf.GGUFReader(tmp_path / "ours.gguf")
    theirs = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    assert torch.equal(theirs["token_embd.weight"], written.model.embed_tokens.weight)
    assert reader.fields["qwen3.context_length"].contents() == 128
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_uint32("a.whole", 7)
    writer.add_array("a.list", [1.5, 2.5])
    writer.add_array("a.texts", ["ä", ""])
    writer.add_bool("a.flag", True)
    writer.add_tensor("blk.0.x.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = files.read(tmp_path / "theirs.gguf")
    assert {k: v for k, v in found.settings.items() if k.startswith("a.")} == {
        "a.whole": 7,
        "a.list": [1.5, 2.5],
        "a.texts": ["ä", ""],
        "a.flag": True,
    }
    assert torch.equal(found.tensor("blk.0.x.weight"), torch.arange(64.0).view(2, 32))

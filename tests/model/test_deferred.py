"""Models larger than memory: matrices are read one at a time when they are packed, rounded, merged or written."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demeanor.core import hardware
from demeanor.core.errors import CheckpointError, DemeanorError
from demeanor.engine import placement
from demeanor.engine.forward import Rows, forward_of
from demeanor.model import (
    adapters,
    checkpoints,
    gguf,
    gguf_llama,
    grouped,
    merge,
    native,
    quantize,
    weight_files,
)
from demeanor.model.grouped import GroupFormat
from demeanor.model.grouped_modules import matrices
from demeanor.model.llama import Llama
from demeanor.model.packed_size import packed_bytes
from demeanor.model.pages import PagedCache
from demeanor.model.stored import StoredTensors
from demeanor.model.weight_files import Planned
from demeanor.stack.schema import Adapter, ModelShape, WeightsSpec
from tests.conftest import each

SHAPE = ModelShape(layers=3, width=64, heads=4, kv_heads=2, mlp_width=96, context=64)
MATRICES = 3 * 7 + 1
pytestmark = pytest.mark.skipif(native.build() is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in bf16, as most checkpoints are."""
    folder = tmp_path_factory.mktemp("half") / "bf16"
    checkpoints.save(checkpoints.create(SHAPE, 200, 0), folder, torch.bfloat16)
    return folder


def logits(model: Llama) -> Tensor:
    ran = native.Native(model, PagedCache(model.config, 1, 64))
    return ran.forward(list(range(5, 25)), [0] * 20, range(20), range(20)).logits_RV


def adapted(base: Path, out: Path, seed: int) -> Path:
    model, settings = checkpoints.load(base), Adapter(rank=4)
    adapters.attach(model, settings, 0)
    with torch.no_grad():
        for _, module in adapters.adapters(model):
            module.lora_B.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    adapters.save(model, settings, base, out, reward=False)
    return out


def with_embedding(folder: Path) -> Tensor:
    """Give an adapter an embedding of its own, as PEFT's modules_to_save does, and return it; the head of a tied base stays as it was."""
    own = torch.randn(200, 64, generator=torch.Generator().manual_seed(3))
    tensors = load_file(folder / adapters.WEIGHTS)
    save_file(tensors | {f"{adapters.PREFIX}model.embed_tokens.weight": own}, folder / adapters.WEIGHTS)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"modules_to_save": ["embed_tokens"]}))
    return own


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tensor was read from its file."""
    counts: Counter[str] = Counter()
    own = StoredTensors.__getitem__

    def counted(self: StoredTensors, name: str) -> Tensor:
        counts[name] += 1
        return own(self, name)

    monkeypatch.setattr(StoredTensors, "__getitem__", counted)
    return counts


def test_serving_reads_each_matrix_once_and_only_when_it_is_packed(half: Path, read: Counter[str]) -> None:
    model = checkpoints.serving(half)
    assert isinstance(model, Llama)
    assert all("norm" in name for name in each(read)), "only vectors are read when a model is loaded"
    found = logits(model)
    assert len(read) == MATRICES + 7
    assert set(read.values()) == {1}
    assert torch.equal(found, logits(checkpoints.load(half)))
    packed = native.Native(model, PagedCache(model.config, 1, 64))
    assert packed.formats == Counter({"bf16": 4 * 3 + 1}), "16 bits stay 16 bits"


@pytest.mark.parametrize("format", ["q8_0", "q4_1"])
def test_one_matrix_at_a_time_is_unpacked_while_a_model_is_rounded(
    format: GroupFormat, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[Tensor]] = []
    own = grouped.group_rounded

    def watched(weight_OI: Tensor, format: GroupFormat) -> object:
        assert all(ref() is None for ref in seen), "an earlier matrix is still in memory"
        seen.append(weakref.ref(weight_OI))
        return own(weight_OI, format)

    monkeypatch.setattr(quantize, "group_rounded", watched)
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 1)  # integers and scales of a matrix in several files too
    out = tmp_path / "small"
    quantize.write_groups(half, out, format, head="q8_0", activations="int8")
    assert len(seen) == MATRICES
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
    served = checkpoints.serving(out)
    assert isinstance(served, Llama)
    eager = checkpoints.load(out, keep_groups=True)
    assert torch.equal(logits(served), logits(eager))


def test_adapters_on_adapters_are_merged_when_they_are_read(half: Path, tmp_path: Path) -> None:
    low = adapted(half, tmp_path / "low", 1)
    high = adapted(low, tmp_path / "high", 2)
    eager, later = checkpoints.load(high), checkpoints.load(high, deferred=True)
    assert len(list(later.parameters())) == 7, "no matrix is in memory"
    checkpoints.save(later, tmp_path / "merged")
    written = load_file(tmp_path / "merged" / "model.safetensors")
    for name, tensor in each(eager.state_dict().items()):
        assert torch.equal(written[name], tensor), name
    served, bits = checkpoints.serving(high), logits(eager)
    assert isinstance(served, Llama)
    assert float((logits(served) - bits).norm()) <= 1e-3 * float(bits.norm())


@pytest.mark.parametrize("format", [None, "q8_0", "q4_0", "q4_1"])
def test_the_estimate_is_what_the_decoder_holds(
    format: GroupFormat | None, half: Path, tmp_path: Path
) -> None:
    folder = half
    if format is not None:
        folder = tmp_path / "small"
        quantize.write_groups(half, folder, format, head="q8_0", activations="int8")
    model = checkpoints.serving(folder)
    assert isinstance(model, Llama)
    packed = native.Native(model, PagedCache(model.config, 1, 64))
    tables = 2 * 64 * model.config.head_dim // 2 * 4
    assert packed_bytes(model) == pytest.approx(packed.num_bytes - tables, rel=0.04)  # panels are filled up


def test_numbers_of_few_bits_in_fp32_are_counted_as_they_are_packed(half: Path, tmp_path: Path) -> None:
    quantize.write(half, tmp_path / "int8", "int8")
    quantize.write(half, tmp_path / "bf16", "bf16")
    sizes = [packed_bytes(checkpoints.load_unmerged(tmp_path / name)) for name in ("int8", "bf16")]
    whole = packed_bytes(checkpoints.load_unmerged(half))
    assert sizes[1] == whole
    assert sizes[0] < 0.6 * whole


def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    half: Path, read: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoints.serving(half)
    needed = packed_bytes(checkpoints.load_unmerged(half))
    monkeypatch.setattr(hardware, "memory_bytes", lambda: needed - 1000)
    with pytest.raises(
        CheckpointError, match=r"this machine has .* kind: quantise, format: FORMAT\} with q8_0 \("
    ):
        forward_of(model, 2, 64)
    assert all("norm" in name for name in each(read))
    monkeypatch.setattr(hardware, "memory_bytes", lambda: needed // 8)
    with pytest.raises(CheckpointError, match="Even 4 bits a weight do not fit"):
        forward_of(model, 2, 64)


def test_little_free_memory_is_a_warning(
    half: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hardware, "free_bytes", lambda: 1000)
    forward_of(checkpoints.serving(half), 2, 64)
    assert "the system may stop this process" in caplog.text


def test_explain_says_what_serving_takes(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = WeightsSpec.model_validate({"base": {"kind": "import", "path": "x"}})
    said = placement.memory_note(spec, half, "bf16")
    assert (
        "of keys and values for each 1,000 tokens that are kept; the whole context of 64 tokens takes" in said
    )
    assert "WARNING" not in said
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 300 << 20)
    assert "WARNING: this machine has 315 MB. Add a stage" in placement.memory_note(spec, half, "bf16")


def test_torch_decodes_a_deferred_model_in_fp32_with_its_adapter(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = adapted(half, tmp_path / "low", 1)
    wanted = logits(checkpoints.load(low))
    monkeypatch.setattr(native, "build", lambda: None)
    model = checkpoints.serving(low)
    assert isinstance(model, Llama)
    with monkeypatch.context() as patched:
        patched.setattr(hardware, "memory_bytes", lambda: 4 * checkpoints.num_weights(half))
        with pytest.raises(CheckpointError, match="in fp32, as torch decodes them; this machine has"):
            forward_of(model, 2, 64)
    ran = forward_of(model, 2, 64)
    assert {p.dtype for p in each(model.parameters())} == {torch.float32}
    assert len(list(model.parameters())) == MATRICES + 7 + 2 * 7 * 3, "matrices, norms, and low-rank pairs"
    rows = Rows(read=list(range(20)))
    rows.add(tuple(range(5, 25)), 0, 0)
    with torch.inference_mode():
        found = ran.run(rows).logits_RV
    assert torch.allclose(found, wanted, atol=1e-3 * float(wanted.abs().max()))


def test_an_adapters_own_embedding_replaces_the_one_in_the_file(half: Path, tmp_path: Path) -> None:
    """PEFT's modules_to_save on a tied base: the head stays as it was."""
    low = adapted(half, tmp_path / "low", 1)
    own = with_embedding(low)
    served, eager = checkpoints.serving(low), checkpoints.load(low)
    assert isinstance(served, Llama)
    assert torch.equal(served.model.embed_tokens.weight, own)
    assert torch.equal(served.head(), checkpoints.load(half).head())
    bits = logits(eager)
    assert float((logits(served) - bits).norm()) <= 1e-3 * float(bits.norm())


def test_a_matrix_that_an_adapter_replaced_is_rounded_and_merged_like_the_others(
    half: Path, tmp_path: Path
) -> None:
    low = adapted(half, tmp_path / "low", 1)
    with_embedding(low)
    quantize.write_groups(low, tmp_path / "small", "q4_0", head="q8_0", activations="int8")
    formats = Counter(x.format for x in matrices(checkpoints.load_unmerged(tmp_path / "small")).values())
    assert formats == Counter({"q4_0": MATRICES, "q8_0": 1}), "the embedding, and a head of its own"
    quantize.write(low, tmp_path / "int8", "int8")
    head = load_file(tmp_path / "int8" / "model.safetensors")["lm_head.weight"]
    assert native.narrowest(head) == "int8"
    checkpoints.save(checkpoints.load(low), tmp_path / "whole")
    wanted = load_file(tmp_path / "whole" / "model.safetensors")
    for out, sources in (("a", [low, tmp_path / "whole"]), ("b", [tmp_path / "whole", low])):
        merge.merge(sources, [0.5, 0.5], tmp_path / out)
        found = load_file(tmp_path / out / "model.safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], x) for name, x in each(wanted.items()))


def test_a_file_has_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randn(4, 2).bfloat16(),
        "c": torch.randn(7).half(),
        "d": torch.arange(6, dtype=torch.uint8),
        "ü": torch.arange(6, dtype=torch.int8).view(2, 3),
    }
    planned = {name: Planned(x.dtype, tuple(x.shape)) for name, x in tensors.items()}
    weight_files.write(tmp_path / "ours", planned, ({k: tensors[k]} for k in ("d", "c", "b", "ü", "a")))
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours = (tmp_path / "ours" / "model.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()


def test_parts_appear_with_their_index_only_when_all_are_whole(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((4, 4), float(i)) for i in range(5)}
    planned = {name: Planned(x.dtype, tuple(x.shape)) for name, x in tensors.items()}
    with pytest.raises(AssertionError, match="t4 was not written"):
        weight_files.write(tmp_path, planned, ({k: tensors[k]} for k in list(tensors)[:4]), 130)
    assert list(tmp_path.iterdir()) == []
    weight_files.write(tmp_path, planned, ({k: x} for k, x in tensors.items()), 130)
    index = json.loads((tmp_path / weight_files.INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 64
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)


def test_a_file_that_changes_before_its_matrices_are_read_is_refused(half: Path, tmp_path: Path) -> None:
    shutil.copytree(half, tmp_path / "own")
    model = checkpoints.serving(tmp_path / "own")
    assert isinstance(model, Llama)
    os.utime(tmp_path / "own" / "model.safetensors", ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: was changed or replaced"):
        logits(model)
    path = tmp_path / "m.gguf"
    gguf.write(path, {}, gguf_llama.tensors(checkpoints.load(half, deferred=True), "Q8_0"))
    file = gguf.read(path)
    assert len(file.raw("output_norm.weight")) == 4 * 64
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"m\.gguf: was changed or replaced while it was read"):
        file.raw("output_norm.weight")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"m\.gguf: cannot be read \(No such file"):
        file.raw("output_norm.weight")


def test_integers_are_refused_as_before(half: Path, tmp_path: Path) -> None:
    tensors = load_file(half / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int32)
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "config.json").write_text((half / "config.json").read_text())
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} holds torch.int32, wanted floating point"):
        checkpoints.serving(folder)


def test_a_disk_without_room_is_said_before_anything_is_written(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9))
    said = r"GB will be written there, and its disk has 0\.0 GB free"
    with pytest.raises(DemeanorError, match=said):
        quantize.write_groups(half, tmp_path / "deep" / "q8", "q8_0", head="q8_0", activations="int8")
    with pytest.raises(DemeanorError, match=said):
        gguf.write(tmp_path / "m.gguf", {}, gguf_llama.tensors(checkpoints.load(half, deferred=True), "Q4_0"))
    assert list(tmp_path.rglob("*.*")) == []


def test_a_files_headers_are_compared_on_a_machine_that_could_not_train_it(
    half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GGUF file of 8 billion weights in 4 bits is a base on 24 GB, though its weights in fp32 would not fit."""
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 1000)
    checkpoints.check(half)
    with pytest.raises(CheckpointError, match="in fp32, as training holds weights"):
        checkpoints.load(half)
